"""What several models' scores come to: intervals, tables, a chart."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from mmmeb_tasks.metadata import LANGUAGES
from mmmeb_tasks.utils.texts import markdown_cell
from xvlm2vec_st.utils.texts import printable

from ..shared.markup import markdown_table


@dataclass
class Cell:
    """One model in one style on one task and language: the rank of each query's right answer.

    A rank is 1 to 10, or None beyond; `first` is the id of the candidate that was ranked first.
    """

    model: str
    style: str
    task: str
    language: str
    ranks: Mapping[str, int | None]
    first: Mapping[str, str]
    low: float = 0.0
    high: float = 0.0

    @property
    def hits(self) -> NDArray[np.bool_]:
        """Whether each query's right answer is first."""
        return np.array([rank == 1 for rank in self.ranks.values()])

    def within(self, k: int) -> float:
        """Share of queries whose right answer is among the first k."""
        return sum(rank is not None and rank <= k for rank in self.ranks.values()) / len(self.ranks)

    @property
    def name(self) -> str:
        """Model and style, for a table."""
        return f"{self.model} ({self.style})"

    def row(self) -> dict[str, object]:
        """A line of scores.csv; `p5` is hit/5, `r5` is recall among the first five."""
        five, ten = self.within(5), self.within(10)
        names = {"model": self.model, "style": self.style, "task": self.task, "language": self.language}
        scores = {"p1": self.within(1), "low": self.low, "high": self.high}
        scores |= {"p5": five / 5, "p10": ten / 10, "r1": self.within(1), "r5": five, "r10": ten}
        return names | {"queries": len(self.ranks)} | {key: round(value, 6) for key, value in scores.items()}

    def query_rows(self) -> Iterable[dict[str, object]]:
        """Lines of queries.csv; an empty rank: not among the first ten."""
        names = {"model": self.model, "style": self.style, "task": self.task, "language": self.language}
        for query, rank in self.ranks.items():
            yield names | {"query": query, "rank": rank or "", "first": self.first[query]}


def interval(hits: NDArray[np.bool_], resamples: int, rng: np.random.Generator) -> tuple[float, float]:
    """95 % of the means of resampled queries lie between these.

    Hits are 0 or 1, so the sum over a resample of n queries is binomial: nothing else is drawn.

    >>> interval(np.ones(50, bool), 100, np.random.default_rng(0))
    (1.0, 1.0)
    """
    means = rng.binomial(len(hits), hits.mean(), resamples) / len(hits)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def difference(
    one: NDArray[np.bool_], two: NDArray[np.bool_], resamples: int, rng: np.random.Generator
) -> tuple[float, float, float]:
    """Mean of one minus two over the same queries, and its 95 % interval over resampled queries.

    Raises:
        ValueError: not the same number of queries.

    >>> difference(np.array([True, True]), np.array([False, False]), 10, np.random.default_rng(0))
    (1.0, 1.0, 1.0)
    """
    if len(one) != len(two):
        raise ValueError(f"{len(one)} and {len(two)} queries: these are not the same queries")
    shares = [np.mean(one & ~two), np.mean(~one & two)]
    drawn = rng.multinomial(len(one), [*shares, max(0.0, 1 - sum(shares))], resamples)
    low, high = np.percentile((drawn[:, 0] - drawn[:, 1]) / len(one), [2.5, 97.5])
    return float(shares[0] - shares[1]), float(low), float(high)


def languages_of(cells: Iterable[Cell]) -> list[str]:
    """The languages of cells, in the benchmark's order."""
    there = {cell.language for cell in cells}
    return [language for language in LANGUAGES if language in there]


def mean_of(cells: Iterable[Cell]) -> float:
    """Mean P@1 of cells."""
    return float(np.mean([cell.within(1) for cell in cells]))


def overall(cells: Sequence[Cell]) -> float:
    """The mean over languages of the mean over their tasks, as the aggregate task has it."""
    return float(np.mean([mean_of(c for c in cells if c.language == lang) for lang in languages_of(cells)]))


def gap(cells: Sequence[Cell], language: str) -> float | None:
    """A language's mean P@1 minus the English one, over the tasks that have both; None without."""
    there = {cell.task for cell in cells if cell.language == language}
    both = {cell.task for cell in cells if cell.language == "en"} & there
    if not both:
        return None
    own = [cell for cell in cells if cell.task in both and cell.language == language]
    return mean_of(own) - mean_of(c for c in cells if c.task in both and c.language == "en")


def markdown(cells: Sequence[Cell]) -> str:
    """Four tables: scores with intervals, means, gap to English, spread over styles."""
    languages = languages_of(cells)
    groups = _grouped(cells, lambda cell: markdown_cell(cell.name))
    parts = []
    for name, own in groups.items():
        rows = []
        for task, of_task in _grouped(own, lambda cell: cell.task).items():
            by_language = {cell.language: cell for cell in of_task}
            rows.append([task, *(_score(by_language.get(language)) for language in languages)])
        parts.append(markdown_table([f"{name}: P@1, %", *languages], rows))
    rows = []
    for name, own in groups.items():
        means = [[cell for cell in own if cell.language == language] for language in languages]
        rows.append([name, *(f"{100 * mean_of(m):.1f}" if m else "–" for m in means), f"{100 * overall(own):.1f}"])
    parts.append(markdown_table(["mean over tasks, %", *languages, "all"], rows))
    if "en" in languages and languages[1:]:
        rows = [[name, *(_signed(gap(own, lang)) for lang in languages[1:])] for name, own in groups.items()]
        parts.append(markdown_table(["gap to English, points", *languages[1:]], rows))
    if spread := _spread(cells, languages):
        parts.append(markdown_table(["spread over styles, points", *languages], spread))
    return "\n\n".join(parts) + "\n"


def _spread(cells: Sequence[Cell], languages: Sequence[str]) -> list[list[str]]:
    """Largest minus smallest P@1 over a model's styles, the mean over tasks."""
    rows = []
    for model, own in _grouped(cells, lambda cell: cell.model).items():
        if len({cell.style for cell in own}) < 2:
            continue
        row = [markdown_cell(model)]
        for language in languages:
            of_task = _grouped([c for c in own if c.language == language], lambda cell: cell.task).values()
            scores = [[cell.within(1) for cell in of_style] for of_style in of_task]
            row.append(f"{100 * np.mean([max(s) - min(s) for s in scores]):.1f}" if scores else "–")
        rows.append(row)
    return rows


def _grouped(cells: Iterable[Cell], key: Callable[[Cell], str]) -> dict[str, list[Cell]]:
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(key(cell), []).append(cell)
    return groups


def _score(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    return f"{100 * cell.within(1):.1f} [{100 * cell.low:.1f}, {100 * cell.high:.1f}]"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:+.1f}"


def scores_chart(cells: Sequence[Cell], path: Path) -> None:
    """Bars: languages x models, mean P@1 over tasks, with the mean of the intervals; PNG."""
    languages, groups = languages_of(cells), _grouped(cells, lambda cell: cell.name)
    figure, axes = plt.subplots(figsize=(max(6, 1.2 * len(languages) * len(groups) ** 0.5 + 2), 3.6), dpi=150)
    width = 0.8 / len(groups)
    for number, (name, own) in enumerate(groups.items()):
        means, low, high, places = [], [], [], []
        for place, language in enumerate(languages):
            if here := [cell for cell in own if cell.language == language]:
                means.append(100 * mean_of(here))
                low.append(max(0.0, means[-1] - 100 * float(np.mean([cell.low for cell in here]))))
                high.append(max(0.0, 100 * float(np.mean([cell.high for cell in here])) - means[-1]))
                places.append(place - 0.4 + width * (number + 0.5))
        # A label that begins with "_" has no place in a legend.
        label = f" {printable(name)}"
        axes.bar(places, means, width, yerr=[low, high], label=label, error_kw={"linewidth": 0.8})
    axes.set_xticks(range(len(languages)), languages)
    axes.set_ylabel("mean P@1 over tasks, %")
    axes.set_ylim(0, 112)
    axes.spines[["top", "right"]].set_visible(False)
    legend = axes.legend(frameon=False, fontsize=7, loc="upper center", ncols=2)
    for text in legend.get_texts():
        text.set_parse_math(False)  # "$" in a name is not a formula
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
