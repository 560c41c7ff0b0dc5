"""What the page shows for a query: one line, and a list of images for each model.

Whatever comes from a file's name, a query or a model's name is escaped.
"""

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from xvlm2vec_st.utils.texts import printable

from .results_page import figure
from .store import ImageIndex, Match

EMPTY = "Type a query, or drop an image."


@dataclass(frozen=True)
class Answers:
    """Searches an index with every model.

    Args:
        index: of the images.
        models: what each is called, and how it embeds a text and the file of an image: (dim,).
        limit: how many images a model may find.
    """

    index: ImageIndex
    models: Mapping[str, Callable[[str | None, str | None], np.ndarray]]
    limit: int

    def answer(self, text: str, image: str | None) -> tuple[str, str]:
        """The line and the lists, as HTML; a query that fails is answered by the reason."""
        text = text.strip()
        if not text and image is None:
            return EMPTY, ""
        try:
            results = {name: self.find(embed(text or None, image)) for name, embed in self.models.items()}
            lists = "".join(result_list(name, matches, self.index.thumbnail) for name, matches in results.items())
        except ValueError as error:
            return escaped(f"error: {error}"), ""
        return summary(text, image, results), f'<div class="lists">{lists}</div>'

    def find(self, vector: np.ndarray) -> list[Match]:
        """The images nearest to a vector (dim,)."""
        return self.index.search(vector, self.limit)


def escaped(text: str) -> str:
    r"""A text for an HTML page; direction marks, which would display a name reversed, are written out.

    >>> escaped("<b>\u202egnp.exe")
    '&lt;b&gt;\\u202egnp.exe'
    """
    return html.escape(printable(text))


def summary(text: str, image: str | None, results: Mapping[str, Sequence[Match]]) -> str:
    """One line: how many images, for what, and the best of each model.

    >>> summary("<b>", "a.png", {"teacher": []})
    '0 images for “&lt;b&gt;” and the image.'
    """
    count = max(map(len, results.values()))
    query = " and ".join(filter(None, [text and f"“{text}”", image and "the image"]))
    best = "".join(f" Best of {name}: {matches[0].path}." for name, matches in results.items() if matches)
    return escaped(f"{count} images for {query}.{best}")


def result_list(title: str, matches: Sequence[Match], thumbnail: Callable[[str], bytes]) -> str:
    """A list of images with their scores and paths, in the order of `matches`.

    Their bytes are in the page, so that no address leads to a file.

    Args:
        title: what found them, as the name of a model.
        matches: as `ImageIndex.search` returns them.
        thumbnail: the JPEG of a match's `content`.
    """
    items = "".join(f"<li>{figure(match, thumbnail(match.content))}</li>" for match in matches)
    return f'<section class="results"><h2>{escaped(title)}</h2><ol>{items}</ol></section>'
