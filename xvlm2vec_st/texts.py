"""A text of a corpus is embedded as text, whatever it says."""

from typing import Any

from sentence_transformers.base.modality import infer_modality


def as_text(item: Any) -> Any:
    """An input whose text nothing fetches or opens.

    sentence-transformers 6.2 takes a str that is the address of an image, or the path of one that exists,
    for that image (`infer_modality`), and likewise videos and sounds. A dict with "text" alone is never
    guessed at. Other inputs stay as they are.

    >>> as_text("a dog"), as_text("https://example.org/dog.png")
    ('a dog', {'text': 'https://example.org/dog.png'})
    """
    return {"text": item} if isinstance(item, str) and infer_modality(item) != "text" else item
