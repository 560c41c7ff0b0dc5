"""How far a language's queries are from the same queries in English: gap.md and gap.csv.

Per model and language: how much less often the first candidate is right, how far a query lies from the same
query in English, how far the language as a whole lies from English, and which words are taken for the
English word that is spelled alike.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmmeb_tasks.mini.homographs import homograph_task, homographs_of, table_hash
from mmmeb_tasks.mini.query_hits import query_hits
from mmmeb_tasks.models.inputs import unit
from mmmeb_tasks.models.two_models import embed_queries
from mmmeb_tasks.retrieval import MMMEBRetrieval
from mmmeb_tasks.utils.folders import read_object
from mmmeb_tasks.utils.texts import markdown_cell
from xvlm2vec_st.utils.folders import whole_file

from ..shared.markup import markdown_table
from .comparison import Cell, gap, languages_of
from .models import Run

PAIRS = 10_000  # pairs of English queries that are drawn
# Column of gap.csv -> heading of its table in gap.md.
TABLES = {
    "gap": "gap to English, points of P@1",
    "distance": "distance of a query to the same one in English (1 - cosine)",
    "bias": "language bias: distance of the means / distance of two English queries",
    "homographs": "false friends that are taken for the English word, %",
}


@dataclass
class LanguageGap:
    """What was measured of one model in one style and language; None: there was nothing to measure.

    `words` is the number of false friends, `confused` are those that were taken for the English word.
    """

    model: str
    style: str
    language: str
    distance: float | None
    bias: float | None
    words: int
    confused: Sequence[str]

    def row(self, p1_gap: float | None) -> dict[str, object]:
        """A line of gap.csv; an empty value: nothing to measure."""
        share = len(self.confused) / self.words if self.words else None
        values = {"gap": p1_gap, "distance": self.distance, "bias": self.bias, "homographs": share}
        return (
            {"model": self.model, "style": self.style, "language": self.language}
            | {name: "" if value is None else round(value, 6) for name, value in values.items()}
            | {"words": self.words, "confused": ", ".join(self.confused)}
        )


def measure(run: Run, tasks: Sequence[MMMEBRetrieval], out: Path, *, batch_size: int) -> list[LanguageGap]:
    """Measure one model in all languages but English; what OUT holds of the same data is read, not measured."""
    kept = _Kept(out / "predictions" / run.folder / "language_gap.json")
    gaps = []
    for language in dict.fromkeys(lang for task in tasks for lang in task.hf_subsets if lang != "en"):
        both = [task for task in tasks if {"en", language} <= {*task.hf_subsets}]
        distances, biases = [], []
        for task in both:
            key = " ".join([task.metadata.name, *(f"{lang} {task.data_hash(lang)}" for lang in ("en", language))])
            if key not in kept.values:
                kept.add(key, _of_task(run, task, language, batch_size))
            distances.append(kept.values[key]["distance"])
            biases.append(kept.values[key]["bias"])
        confused: list[str] = []
        if words := homographs_of([language]):
            key = f"homographs {language} {table_hash()}"
            if key not in kept.values:
                kept.add(key, {"confused": confused_words(run, language, batch_size)})
            confused = kept.values[key]["confused"]
        values = (_mean(distances), _mean(biases), len(words), confused)
        gaps.append(LanguageGap(run.label, run.style or "bare", language, *values))
    return gaps


class _Kept:
    """Measurements of one model in a file, which is written whole after each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, dict[str, Any]] = {}
        if path.is_file():
            self.values = read_object(path, "delete it; the gap is then measured again")

    def add(self, key: str, value: dict[str, Any]) -> None:
        """Keep what was measured."""
        self.values[key] = value
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(self.path) as part:
            part.write_text(json.dumps(self.values, ensure_ascii=False, indent=1) + "\n", "utf-8")


def _of_task(run: Run, task: MMMEBRetrieval, language: str, batch_size: int) -> dict[str, float | None]:
    """Distance and bias over the queries that both languages have."""
    vectors, rows = {}, {}
    for lang in ("en", language):
        queries = task.dataset[lang]["test"]["queries"]
        vectors[lang] = unit(embed_queries(run.model, queries, task.metadata, lang, batch_size))
        rows[lang] = unique_rows(queries["id"][:])
    same = [row for row in rows["en"] if row in rows[language]]
    if not same:
        return {"distance": None, "bias": None}
    english, other = (vectors[lang][[rows[lang][row] for row in same]] for lang in ("en", language))
    return {"distance": same_meaning_distance(english, other), "bias": language_bias(english, other)}


def unique_rows(queries: Sequence[str]) -> dict[str, int]:
    """Row id -> place of its query, for the ids that one query has.

    >>> unique_rows(["1:a", "2:b", "3:b"])
    {'a': 0}
    """
    places: dict[str, list[int]] = {}
    for place, query in enumerate(queries):
        places.setdefault(query.split(":", 1)[1], []).append(place)
    return {row: of[0] for row, of in places.items() if len(of) == 1}


def same_meaning_distance(english: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Mean of 1 - cosine over rows of unit vectors that mean the same.

    >>> same_meaning_distance(np.eye(2), np.eye(2)[::-1])
    1.0
    """
    return float(1 - np.mean(np.sum(english * other, axis=1)))


def language_bias(english: NDArray[np.float32], other: NDArray[np.float32]) -> float | None:
    """Distance of the two means, relative to the mean distance of two English queries that are drawn.

    A shift of all queries by as much as two English queries differ is 1. None: the English ones do not differ.

    >>> language_bias(np.eye(2), np.eye(2)[::-1])
    0.0
    """
    rng = np.random.default_rng(0)
    first = rng.integers(0, len(english), PAIRS)
    second = (first + rng.integers(1, max(2, len(english)), PAIRS)) % len(english)  # never the same one
    between = float(np.mean(np.linalg.norm(english[first] - english[second], axis=1)))
    if between < 1e-6:
        return None
    return float(np.linalg.norm(other.mean(0) - english.mean(0))) / between


def confused_words(run: Run, language: str, batch_size: int) -> list[str]:
    """The words of a language whose false friend's image is nearer than the image of what they mean."""
    with tempfile.TemporaryDirectory() as folder:
        hits = query_hits(run.model, homograph_task(language, Path(folder)), language, batch_size=batch_size)
    return [query.split(":", 1)[1] for query, is_right in hits.items() if not is_right]


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None


def gap_rows(gaps: Sequence[LanguageGap], cells: Sequence[Cell]) -> list[dict[str, object]]:
    """The lines of gap.csv."""
    rows = []
    for one in gaps:
        own = [cell for cell in cells if (cell.model, cell.style) == (one.model, one.style)]
        rows.append(one.row(gap(own, one.language)))
    return rows


def gap_markdown(rows: Sequence[Mapping[str, object]], cells: Sequence[Cell]) -> str:
    """A table of models and languages for each measure, and the words that were confused."""
    languages = [language for language in languages_of(cells) if language != "en"]
    if not rows:
        return "No language but English was scored.\n"
    parts = [_table(rows, languages, name, head) for name, head in TABLES.items()]
    return "\n\n".join([*parts, *_confused(rows)]) + "\n"


def _table(rows: Sequence[Mapping[str, object]], languages: Sequence[str], name: str, head: str) -> str:
    shown = {"gap": lambda v: f"{100 * v:+.1f}", "homographs": lambda v: f"{100 * v:.0f}"}
    write = shown.get(name, lambda v: f"{v:.3f}")
    lines: dict[str, dict[str, str]] = {}
    for row in rows:
        value = row[name]
        lines.setdefault(f"{row['model']} ({row['style']})", {})[str(row["language"])] = (
            "–" if value == "" else write(value)
        )
    table = [[markdown_cell(model), *(of.get(language, "–") for language in languages)] for model, of in lines.items()]
    return markdown_table([head, *languages], table)


def _confused(rows: Sequence[Mapping[str, object]]) -> Iterator[str]:
    for row in rows:
        if row["confused"]:
            model = markdown_cell(f"{row['model']} ({row['style']})")
            yield f"{model}, {row['language']}, taken for the English word: {row['confused']}."
