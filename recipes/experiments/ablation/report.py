"""The tables and the plot of a comparison."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from xvlm2vec_st.utils.folders import whole_file

from ...shared.markup import markdown_table
from .records import Key, Record
from .statistics import Estimate, difference, estimate, query_means
from .training import BEFORE, CEILING
from .untrained import MAPS
from .variants import PAPER
from .worlds import World

SAME = 0.02  # operations within this share are the same
Runs = dict[str, list[Record]]


def same_updates(records: Mapping[Key, Record], updates: int) -> Runs:
    """The runs of each variant with this number of updates, and what is not trained."""
    runs: Runs = {}
    for (name, _, steps), record in records.items():
        if steps in (updates, 0):
            runs.setdefault(name, []).append(record)
    order = [BEFORE, *MAPS, PAPER]
    names = sorted(runs, key=lambda name: order.index(name) if name in order else len(order))
    return {name: runs[name] for name in names if name != CEILING} | {n: runs[n] for n in runs if n == CEILING}


def updates_for_equal_operations(runs: Runs, name: str, updates: int) -> int:
    """The updates of a variant that take the paper's operations; `updates` where they differ by up to 2 %."""
    if PAPER not in runs:
        return updates
    paper, own = mean_operations(runs[PAPER]), mean_operations(runs[name])
    return updates if abs(own / paper - 1) <= SAME else round(updates * paper / own)


def mean_operations(records: Sequence[Record]) -> float:
    """Operations of a variant's runs, the mean over seeds."""
    return float(np.mean([record.operations for record in records]))


def report(world: World, records: Mapping[Key, Record], updates: int, plot: Path | None) -> str:
    """The comparison as Markdown; with `plot`, also as an image."""
    runs, cells = same_updates(records, updates), world.headline()
    parts = [summary_table(runs, records, cells, updates)]
    tasks = dict.fromkeys(task for record in runs[BEFORE] for task, _ in record.cells())
    parts += [task_table(task, runs) for task in tasks]
    if plot is not None:
        with whole_file(plot) as part:
            draw(runs, cells, part)
        parts.insert(1, f"![{world.name}: the variants' means]({plot.name})")
    return "\n\n".join(parts) + "\n"


def summary_table(runs: Runs, records: Mapping[Key, Record], cells: Sequence[tuple[str, str]], updates: int) -> str:
    """A row per variant: the mean at equal updates and at equal operations, and the difference to the paper."""
    paper = {record.seed: record for record in runs.get(PAPER, [])}
    rows = []
    for name, own in runs.items():
        values, trained = query_means(own, cells), own[0].updates > 0
        seeds = f"{spread(estimate(values))} ({len(own)})" if len(own) > 1 else "1" if trained else "–"
        row = [name, with_interval(estimate(values)), seeds]
        row.append("–" if name == PAPER or not paper else signed(minus_paper(own, paper, cells)))
        row.append(f"{mean_operations(own) / 1e12:.2f}" if trained else "0")
        row.append(at_equal_operations(name, runs, records, cells, updates) if trained else "–")
        rows.append(row)
    first = f"mean of {len(cells)} scores, %"
    return markdown_table(
        [first, f"{updates} updates", "seeds", "minus paper", "10¹² operations", "same operations"], rows
    )


def minus_paper(own: Sequence[Record], paper: Mapping[int, Record], cells: Sequence[tuple[str, str]]) -> Estimate:
    """A variant minus the paper, over the seeds that both have; what is not trained, minus all of the paper's."""
    both = [record for record in own if record.seed in paper] if own[0].updates else list(own)
    others = [paper[record.seed] for record in both] if own[0].updates else list(paper.values())
    if not both:
        both, others = list(own), list(paper.values())
    return difference(query_means(both, cells), query_means(others, cells))


def at_equal_operations(
    name: str, runs: Runs, records: Mapping[Key, Record], cells: Sequence[tuple[str, str]], updates: int
) -> str:
    """The cell of equal operations: the mean, and the number of updates where it is another one."""
    steps = updates_for_equal_operations(runs, name, updates)
    own = [record for (other, _, number), record in records.items() if (other, number) == (name, steps)]
    if not own:
        return "–"
    text = with_interval(estimate(query_means(own, cells)))
    return text if steps == updates else f"{text}, {steps} updates"


def task_table(task: str, runs: Runs) -> str:
    """A row per variant, a column per language."""
    languages = [language for name, language in runs[BEFORE][0].cells() if name == task]
    rows = [
        [name, *(with_interval(estimate(query_means(own, [(task, language)]))) for language in languages)]
        for name, own in runs.items()
    ]
    return markdown_table([f"{task}, %", *languages], rows)


def with_interval(value: Estimate) -> str:
    """A mean with half the width of its interval, in per cent."""
    return f"{100 * value.mean:.1f} ± {50 * (value.high - value.low):.1f}"


def spread(value: Estimate) -> str:
    """The range over seeds, in per cent."""
    return f"{100 * value.least:.1f} to {100 * value.greatest:.1f}"


def signed(value: Estimate) -> str:
    """A difference with its interval, in points; bold where the interval leaves 0 out."""
    text = f"{100 * value.mean:+.1f} [{100 * value.low:+.1f}, {100 * value.high:+.1f}]"
    return f"**{text}**" if value.beyond_zero else text


def draw(runs: Runs, cells: Sequence[tuple[str, str]], path: Path) -> None:
    """Dots with intervals, and each seed as a tick; PNG."""
    names = list(runs)[::-1]
    figure, axes = plt.subplots(figsize=(7, 0.32 * len(names) + 1), dpi=150)
    for place, name in enumerate(names):
        values = query_means(runs[name], cells)
        value = estimate(values)
        error = [[100 * (value.mean - value.low)], [100 * (value.high - value.mean)]]
        colour = "#1f77b4" if runs[name][0].updates else "#9aa5b1"
        axes.errorbar(100 * value.mean, place, xerr=error, fmt="o", color=colour, markersize=4, linewidth=1)
        axes.plot(100 * values.mean(1), [place] * len(values), "|", color="black", markersize=7)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel(f"mean of {len(cells)} scores, %; line: 95 % of resampled queries; ticks: seeds", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", linewidth=0.3)
    figure.tight_layout()
    figure.savefig(path, format="png")
    plt.close(figure)
