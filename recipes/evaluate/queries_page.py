"""queries.html: the hardest and the most language-dependent queries, with their images."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Image

from mmmeb_tasks.retrieval import MMMEBRetrieval
from xvlm2vec_st.utils.folders import whole_file
from xvlm2vec_st.utils.texts import printable

from ..shared.image_copies import image_tag
from ..shared.markup import page_head
from .comparison import Cell

SHOWN = 12  # queries of each list


def telling(cells: Sequence[Cell]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The hardest and the most language-dependent queries: (task, row id), the most telling first.

    Hardest: the smallest share of models and languages that have it right, the right answer far
    down. Language-dependent: right for as many languages as wrong. A row is the same one in all
    languages where its id is.
    """
    hits: dict[tuple[str, str], dict[str, list[float]]] = {}
    for cell in cells:
        for query, rank in cell.ranks.items():
            row = hits.setdefault((cell.task, query.split(":", 1)[1]), {})
            row.setdefault(cell.language, []).append(1 / rank if rank else 0.0)
    hardness = {key: float(np.mean([np.mean(v) for v in row.values()])) for key, row in hits.items()}
    firsts = {
        key: float(np.std([np.mean([share == 1 for share in shares]) for shares in row.values()]))
        for key, row in hits.items()
    }
    hardest = sorted((key for key in hits if hardness[key] < 1), key=lambda key: hardness[key])
    dependent = sorted((key for key in hits if firsts[key] > 0), key=lambda key: -firsts[key])
    return hardest[:SHOWN], dependent[:SHOWN]


def queries_page(cells: Sequence[Cell], tasks: Mapping[str, MMMEBRetrieval], out: Path) -> None:
    """queries.html: the hardest and the most language-dependent queries, with their images."""
    (out / "images").mkdir(exist_ok=True)
    hardest, dependent = telling(cells)
    page = _Page(cells, tasks, out)
    lists = {"Hardest queries": hardest, "Queries that depend most on the language": dependent}
    body = [f"<h1>{title}</h1>{''.join(map(page.query, keys)) or '<p>None.</p>'}" for title, keys in lists.items()]
    style = (
        "body{font:15px sans-serif;margin:2em}section{border-top:1px solid #ccc;padding:.5em 0}"
        "img{max-height:96px;max-width:160px;margin:2px;border:3px solid #ddd;vertical-align:middle}"
        "td,th{padding:2px 10px;text-align:left;vertical-align:top}.right{color:#1a7f37}.wrong{color:#b42318}"
    )
    head = page_head("MMMEB", style)
    with whole_file(out / "queries.html") as part:
        part.write_text(f"{head}{''.join(body)}</html>\n", "utf-8")


class _Page:
    """Looks up what queries and candidates hold, and copies their images beside the page."""

    def __init__(self, cells: Sequence[Cell], tasks: Mapping[str, MMMEBRetrieval], out: Path) -> None:
        self.cells, self.out = cells, out
        self.rows: dict[tuple[str, str, str], dict[str, Any]] = {}
        for name, task in tasks.items():
            for language, splits in task.dataset.items():
                self.rows[name, language, "queries"] = _by_id(splits["test"]["queries"])
                self.rows[name, language, "corpus"] = _by_id(splits["test"]["corpus"])
        self.tasks = tasks

    def query(self, key: tuple[str, str]) -> str:
        """One row in all its languages: what was asked, what is right, what the models took."""
        task, row = key
        lines = []
        for cell in self.cells:
            for query in (q for q in cell.ranks if cell.task == task and q.split(":", 1)[1] == row):
                shown = self.show(self.rows[task, cell.language, "queries"][query])
                documents = self.rows[task, cell.language, "corpus"]
                gold = next(iter(self.tasks[task].dataset[cell.language]["test"]["relevant_docs"][query]))
                rank = cell.ranks[query]
                state = "right" if rank == 1 else "wrong"
                values = [escaped(cell.language), escaped(cell.name), shown, self.show(documents[gold])]
                values.append(f'<span class="{state}">{rank or "&gt; 10"}</span>')
                values.append(self.show(documents[cell.first[query]]))
                lines.append("<tr>" + "".join(f"<td>{value}</td>" for value in values) + "</tr>")
        head = "".join(f"<th>{name}</th>" for name in ("", "model", "query", "right", "rank", "first"))
        rows = f"<table><tr>{head}</tr>{''.join(lines)}</table>"
        return f"<section><h2>{escaped(f'{task} {row}')}</h2>{rows}</section>"

    def show(self, row: Mapping[str, Any]) -> str:
        """An image, a text, or both."""
        shown = ""
        if row.get("image"):
            shown = image_tag(Path(row["image"]["path"]), self.out / "images")
        return shown + escaped(row.get("text") or "")


def escaped(text: str) -> str:
    r"""A text in a page, with what would turn its direction round or act on a terminal as its escape.

    >>> escaped("<b>\u202e")
    '&lt;b&gt;\\u202e'
    """
    return html.escape(printable(text))


def _by_id(table: Any) -> dict[str, Any]:
    if "image" in table.column_names:
        table = table.cast_column("image", Image(decode=False))
    return {row["id"]: row for row in table}
