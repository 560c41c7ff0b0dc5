"""Markdown tables and the head of an HTML page, as every recipe writes them."""

from collections.abc import Iterable, Sequence


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a Markdown table; the caller escapes its cells.

    >>> print(markdown_table(["a", "b"], [["1", "2"]]))
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    first, *rest = (f"| {' | '.join(cells)} |" for cells in (header, *rows))
    return "\n".join([first, "|---" * len(header) + "|", *rest])


def page_head(title: str, style: str, *, viewport: bool = False) -> str:
    """Write the start of an HTML page; `viewport` fits the page to a phone's width.

    >>> page_head("Dogs", "b{}")
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>Dogs</title><style>b{}</style>'
    """
    width = '<meta name="viewport" content="width=device-width">' if viewport else ""
    return f'<!doctype html><html lang="en"><meta charset="utf-8">{width}<title>{title}</title><style>{style}</style>'
