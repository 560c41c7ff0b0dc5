"""The page of `search --html`: results with their thumbnails, in one file."""

import base64
from collections.abc import Callable, Sequence
from html import escape

from xvlm2vec_st.utils.texts import printable

from ..shared.markup import page_head
from .store import Match

STYLE = (
    "body{font:16px sans-serif;margin:2em}ol{display:flex;flex-wrap:wrap;gap:1em;padding:0;list-style:none}"
    "figure{margin:0;width:256px}img{max-width:256px;max-height:256px}figcaption{overflow-wrap:anywhere}"
)


def results_page(title: str, matches: Sequence[Match], thumbnail: Callable[[str], bytes]) -> str:
    """A page that needs no other file and no network.

    Args:
        title: the query.
        matches: best first.
        thumbnail: the JPEG of a content.
    """
    heading = escape(printable(title))
    figures = "".join(f"<li>{figure(match, thumbnail(match.content))}</li>" for match in matches)
    return f"{page_head(heading, STYLE, viewport=True)}<h1>{heading}</h1><ol>{figures}</ol></html>\n"


def figure(match: Match, jpeg: bytes) -> str:
    """An image with its score and path."""
    path, pixels = escape(printable(match.path)), base64.b64encode(jpeg).decode()
    size = f"{match.width} × {match.height}, {match.modified.astimezone():%Y-%m-%d}"
    return (
        f'<figure><img src="data:image/jpeg;base64,{pixels}" alt="{path}" title="{size}">'
        f"<figcaption>{match.score:.4f} <bdi>{path}</bdi></figcaption></figure>"
    )
