"""Texts of a benchmark: what one may hold, how one is shown, and that it is embedded as text."""

import html
import re
from collections.abc import Iterable, Iterator
from typing import Any

from mmmeb_tasks.utils.shared import shared

_texts = shared("texts")

fault_of = _texts.fault_of
is_blank = _texts.is_blank
printable = _texts.printable

# What sentence-transformers 6.2 takes a str for, where the model supports it.
GUESSED = ("text", "image", "video", "audio")
SHOWN = 80  # characters of a value in a message
MARKUP = re.compile(r"[\\`*\[\]|]")


def short(value: object) -> str:
    """A value for a message, which a row can make as long as it likes.

    >>> short("dog"), len(short("n" * 1000))
    ("'dog'", 80)
    """
    try:
        shown = repr(value[:SHOWN] if isinstance(value, str) else value)
    except RecursionError:  # nested deeper than Python can show
        return f"a {type(value).__name__}"
    return shown if len(shown) <= SHOWN else shown[: SHOWN - 1] + "…"


def markdown_cell(text: str) -> str:
    r"""A name in a Markdown table, as it is: no link, no image, no tag, and it cannot break the table.

    >>> print(markdown_cell("a|b\n<x> ![y](http://z)"))
    a\|b↵&lt;x&gt; !\[y\](http&#58;//z)
    """
    plain = html.escape(printable(text.replace("\n", "↵")), quote=False)
    return MARKUP.sub(r"\\\g<0>", plain).replace("://", "&#58;//")


def as_text(text: str, modalities: Iterable[Any] = GUESSED) -> str | dict[str, str]:
    """A text that nothing fetches or opens.

    sentence-transformers 6.2 takes a str that is the address of an image, or the path of one that exists,
    for that image (`infer_modality`), if the model takes images. A dict with "text" alone is never guessed
    at; a model of texts need not know it.

    Args:
        text: to be embedded.
        modalities: what the model takes.

    >>> as_text("a dog"), as_text("https://example.org/dog.png")
    ('a dog', {'text': 'https://example.org/dog.png'})
    >>> as_text("https://example.org/dog.png", ["text"])
    'https://example.org/dog.png'
    """
    from sentence_transformers.base.modality import infer_modality  # seconds, which the checker saves

    return text if infer_modality(text, [*modalities]) == "text" else {"text": text}


class PlainTexts:
    """A loader of mteb whose texts mteb's wrapper hands to sentence-transformers as texts.

    Args:
        loader: of a task.
        modalities: what the model takes.
    """

    def __init__(self, loader: Any, modalities: Iterable[Any]) -> None:
        self.loader, self.modalities = loader, [*modalities]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # Of rows with an image, a video or a sound, mteb makes dicts, which are not guessed at.
        alone = not {"image", "video", "audio"} & {*self.loader.dataset.features}
        for batch in self.loader:
            if alone and "text" in batch:
                batch = {**batch, "text": [as_text(text, self.modalities) for text in batch["text"]]}
            yield batch
