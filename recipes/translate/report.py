"""What was kept and what refused, by reason, language and subset, with examples: Markdown and HTML."""

import hashlib
import html
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from heapq import nsmallest

from xvlm2vec_st.utils.texts import printable

from ..shared.markup import markdown_table, page_head
from .merge import Merged
from .schedule import TranslationStats

EXAMPLES = 10
SUBSETS = 40  # in a table of their own; MMEB-train has 21
SHOWN = 200  # characters of an example
MARKUP = re.compile(r"[\\`*~\[\]|]")
ADDRESS = re.compile(r"(https?|ftp|mailto|javascript|xmpp|www)([:.])", re.IGNORECASE)
Table = list[list[str]]
Example = tuple[str, str, str, str, str]  # row, language, English, translation, why


def subset_of(row_id: str) -> str:
    """The part of an id before the first "/".

    >>> subset_of("MSCOCO_i2t/17/qry"), subset_of("17")
    ('MSCOCO_i2t', '')
    """
    return row_id.split("/")[0] if "/" in row_id else ""


def tables(merged: Merged, codes: Sequence[str]) -> Iterator[tuple[str, Table]]:
    """(title, rows of cells, head first): by language, by reason, by subset."""
    kept = Counter((code, subset_of(row.id)) for row in merged.kept for code in row.translations)
    by_language = Counter(code for code, _ in kept.elements())
    refused = Counter((r.language or "all", r.reason) for r in merged.refused)
    languages = [*codes, "all"] if any(not r.language for r in merged.refused) else list(codes)
    reasons = sorted({reason for _, reason in refused})
    head = ["", *languages]
    rows = [["kept", *(f"{by_language[code]:,}" for code in languages)]]
    rows += [[reason, *(f"{refused[code, reason]:,}" for code in languages)] for reason in reasons]
    yield "By reason and language", [head, *rows]
    subsets = Counter((subset_of(r.id), r.reason) for r in merged.refused)
    kept_subsets = Counter(subset for _, subset in kept.elements())
    names = sorted({*kept_subsets, *(name for name, _ in subsets)})
    if len(names) > SUBSETS:  # ids that have a slash for another reason
        return
    cells = [
        [name or "–", f"{kept_subsets[name]:,}", *(f"{subsets[name, reason]:,}" for reason in reasons)]
        for name in names
    ]
    yield "By subset", [["", "kept", *reasons], *cells]


def examples(merged: Merged) -> Iterator[tuple[str, Table]]:
    """(title, table) of ten kept pairs a language and ten refused ones a reason, spread over the corpus."""
    groups: dict[str, list[Example]] = {}
    for row in merged.kept:
        for code, text in row.translations.items():
            groups.setdefault(f"kept, {code}", []).append((row.id, code, row.english, text, ""))
    for one in merged.refused:
        example = one.id, one.language, one.english, one.translation or "", one.detail
        groups.setdefault(f"refused: {one.reason}", []).append(example)
    for title, entries in groups.items():
        chosen = nsmallest(EXAMPLES, entries, key=_order)
        rows = ([one[0], one[1], *map(_short, one[2:])] for one in chosen)
        yield f"{title} ({len(entries):,})", [["row", "", "English", "translation", "why"], *rows]


def _order(example: Example) -> bytes:
    """Random, and the same in every report."""
    return hashlib.sha256(f"{example[0]}/{example[1]}".encode()).digest()


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else text[:SHOWN] + " …"


def markdown(merged: Merged, codes: Sequence[str], stats: TranslationStats, translator: str) -> str:
    """The report as Markdown."""
    lines = ["# Parallel corpus", "", _cell(_summary(merged, stats, translator)), ""]
    for level, titled in (("##", tables(merged, codes)), ("###", examples(merged))):
        for title, table in titled:
            lines += [f"{level} {title}", ""]
            cells = [[_cell(cell) for cell in row] for row in table]
            lines += [markdown_table(cells[0], cells[1:]), ""]
    return "\n".join(lines)


def _cell(text: str) -> str:
    r"""A text as it is: no link, no image, no emphasis, and it cannot break a table.

    >>> print(_cell("a|b\nc <x> ![y](http://z)"))
    a\|b↵c &lt;x&gt; !\[y\](http&#58;//z)
    """
    plain = printable(text.replace("\r", "")).replace("\n", "↵")
    escaped = MARKUP.sub(r"\\\g<0>", html.escape(plain, quote=False))
    # An address without brackets becomes a link on GitHub and elsewhere.
    return ADDRESS.sub(lambda match: f"{match[1]}&#{ord(match[2])};", escaped)


def _summary(merged: Merged, stats: TranslationStats, translator: str) -> str:
    kept = sum(len(row.translations) for row in merged.kept)
    return (
        f"{len(merged.kept):,} rows with {kept:,} translations kept, {len(merged.refused):,} refused. "
        f"Translator: {printable(translator)}. {stats}."
    )


STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:#1c1c1c}
table{border-collapse:collapse;margin:.5rem 0 1.5rem}
td,th{border-bottom:1px solid #ddd;padding:.25rem .6rem;text-align:left;vertical-align:top}
td{white-space:pre-wrap;overflow-wrap:anywhere}th{background:#f5f5f5}
tr>:not(:first-child){font-variant-numeric:tabular-nums}
summary{cursor:pointer;font-weight:600;margin:.4rem 0}
"""


def html_page(merged: Merged, codes: Sequence[str], stats: TranslationStats, translator: str) -> str:
    """The report as one HTML page that needs no other file."""
    body = ["<h1>Parallel corpus</h1>", f"<p>{html.escape(_summary(merged, stats, translator))}</p>"]
    for title, table in tables(merged, codes):
        body += [f"<h2>{html.escape(title)}</h2>", _html_table(table)]
    body.append("<h2>Examples</h2>")
    for title, table in examples(merged):
        opened = "" if title.startswith("kept") else " open"
        body.append(f"<details{opened}><summary>{html.escape(title)}</summary>{_html_table(table)}</details>")
    return page_head("Parallel corpus", STYLE, viewport=True) + "\n".join(body) + "</html>\n"


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(printable(cell))}</th>" for cell in table[0])
    rows = "".join(
        "<tr>" + "".join(f'<td dir="auto">{html.escape(printable(cell))}</td>' for cell in row) + "</tr>\n"
        for row in table[1:]
    )
    return f"<table><tr>{head}</tr>\n{rows}</table>"
