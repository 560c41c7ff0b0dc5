"""Texts of a benchmark: what one may hold, how one is shown, and that it is embedded as text."""

from mmmeb_tasks.shared import shared

_texts = shared("texts")

fault_of = _texts.fault_of
is_blank = _texts.is_blank
printable = _texts.printable


def as_text(text: str) -> str | dict[str, str]:
    """A text that nothing fetches or opens.

    sentence-transformers 6.2 takes a str that is the address of an image, or the path of one that exists,
    for that image (`infer_modality`). A dict with "text" alone is never guessed at.

    >>> as_text("a dog"), as_text("https://example.org/dog.png")
    ('a dog', {'text': 'https://example.org/dog.png'})
    """
    from sentence_transformers.base.modality import infer_modality  # seconds, which the checker saves

    return text if infer_modality(text) == "text" else {"text": text}
