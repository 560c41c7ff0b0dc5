"""Score models on MMMEB and compare them: load, score, write the report.

The command line is in `__main__` and `options`.
"""

import argparse
import csv
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import mteb
import numpy as np
from mteb.cache import ResultCache
from mteb.models import ModelMeta
from mteb.types import PromptType

from mmmeb_tasks.instructions import STYLES, Style
from mmmeb_tasks.models.two_models import TwoModels, take_candidates
from mmmeb_tasks.plugin.cli import expand_aggregates, mmmeb_tasks_among, set_aside
from mmmeb_tasks.retrieval import MMMEBRetrieval
from xvlm2vec_st.utils.folders import Destination, whole_file
from xvlm2vec_st.utils.texts import printable

from .comparison import Cell, difference, interval, markdown, scores_chart
from .language_gap import LanguageGap, gap_markdown, gap_rows, measure
from .models import Index, Run, load_index, meta_of, refuse_half, runs
from .options import parse_args
from .queries_page import queries_page

TOP = 10  # mteb keeps so many candidates a query
# What the report is, beside `predictions` and `results`.
FILES = ("scores.md", "scores.csv", "queries.csv", "pairs.csv", "gap.md", "gap.csv", "languages.png")
FILES += ("queries.html", "images")


def main(argv: Sequence[str] | None = None) -> Path:
    """Score models as the command line says; returns the report's folder."""
    return evaluate(parse_args(argv))


def evaluate(args: argparse.Namespace) -> Path:
    """Score, and write the report; returns its folder."""
    # 1. Names first: nothing is loaded for a mistyped one.
    styles = args.styles.split(",")
    for style in styles:
        if style not in STYLES:
            raise ValueError(f"unknown style {style!r}; known: {', '.join(STYLES)}")
    requested = expand_aggregates(mmmeb_tasks_among(args.tasks, args.languages))
    tasks = [task for task in requested if isinstance(task, MMMEBRetrieval)]
    if not tasks:
        raise ValueError(f"none of {', '.join(args.tasks)} is a task of MMMEB")
    metas = {name: meta_of(name) for name in args.models}
    side = PromptType.query if args.index else None
    for name, meta in metas.items():
        refuse_half(name, meta, tasks, styles, args.device, side)
    check_out(args.out)
    index = index_of(args, metas, tasks, styles)
    # The lock lies in OUT, which may be a mount point: a report is filled, not moved into place.
    with Destination(args.out / "evaluate").hold():
        evaluated(args, metas, tasks, styles, index)
    return args.out


def index_of(
    args: argparse.Namespace, metas: Mapping[str, ModelMeta], tasks: Sequence[MMMEBRetrieval], styles: Sequence[Style]
) -> Index | None:
    """The index of --index, after a look whether all models and tasks fit it; None without.

    Raises:
        ValueError: the first that does not fit; an --index-language without an --index.
    """
    if args.index is None:
        if args.index_language:
            raise ValueError(f"--index-language {args.index_language} needs --index MODEL, which made the index")
        return None
    for task in tasks:
        if args.index_language not in (None, *task.metadata.eval_langs):
            known = ", ".join(task.metadata.eval_langs)
            raise ValueError(f"{task.metadata.name} has no --index-language {args.index_language}; it has {known}")
    meta = meta_of(args.index)
    refuse_half(args.index, meta, tasks, styles, args.device, PromptType.document)
    index = load_index(args.index, meta, styles, args.device, args.index_language)
    if len(metas) > 1:  # a single one is refused as early when it is scored
        for name, own in metas.items():
            next(runs(name, own, styles, args.device, index))
    return index


def check_out(out: Path) -> None:
    """Refuse an OUT that is not a folder, or that has files which the report would replace.

    Raises:
        ValueError: the first of them.
    """
    Destination(out).check_kind()
    if not any(out.glob("predictions/*__*/*_predictions.json")):  # an earlier report is gone on with
        for name in FILES:
            if os.path.lexists(out / name):
                raise ValueError(f"{out / name} exists, and no earlier report wrote it; choose another --out")


def evaluated(
    args: argparse.Namespace,
    metas: Mapping[str, ModelMeta],
    tasks: Sequence[MMMEBRetrieval],
    styles: Sequence[Style],
    index: Index | None = None,
) -> None:
    """Score all models on all tasks, and write the report."""
    hashes: dict[str, str] = {}  # of the rows that the candidates are from, where these are of another language
    for task in tasks:
        task.load_data()
        if args.index_language:
            hashes[task.metadata.name] = take_candidates(task, args.index_language)

    # 2. One model after another in memory, all styles and tasks of each.
    cells: list[Cell] = []
    gaps: list[LanguageGap] = []
    for name, meta in metas.items():
        for run in runs(name, meta, styles, args.device, index):
            for task in tasks:
                print(f"{printable(run.label)}: {task.metadata.name}", file=sys.stderr)
                index_sha256 = hashes.get(task.metadata.name)
                cells += score(run, task, args.out, batch_size=args.batch_size, index_sha256=index_sha256)
            gaps += measure(run, tasks, args.out, batch_size=args.batch_size)

    # 3. The report.
    rng = np.random.default_rng(args.seed)
    for cell in cells:
        cell.low, cell.high = interval(cell.hits, args.resamples, rng)
    text = markdown(cells)
    with whole_file(args.out / "scores.md") as part:
        part.write_text(text, "utf-8")
    write_csv(args.out / "scores.csv", [cell.row() for cell in cells])
    write_csv(args.out / "queries.csv", [row for cell in cells for row in cell.query_rows()])
    write_csv(args.out / "pairs.csv", [*pairs(cells, args.resamples, rng)])
    gap_lines = gap_rows(gaps, cells)
    write_csv(args.out / "gap.csv", gap_lines)
    with whole_file(args.out / "gap.md") as part:
        part.write_text(gap_markdown(gap_lines, cells), "utf-8")
    with whole_file(args.out / "languages.png") as part:
        scores_chart(cells, part)
    queries_page(cells, {task.metadata.name: task for task in tasks}, args.out)
    print(text)
    print(f"{args.out}: {', '.join(name for name in FILES if name != 'images')}")


def score(run: Run, task: MMMEBRetrieval, out: Path, *, batch_size: int, index_sha256: str | None = None) -> list[Cell]:
    """One model on one task, each language a cell; what is done already is read, not run.

    `index_sha256` is what `take_candidates` gave for the task: scores of other candidates are set aside.
    """
    cache, name = ResultCache(out), task.metadata.name
    folder = out / "predictions" / run.folder
    meta = run.model.mteb_model_meta
    set_aside(cache, task, meta.name)
    predictions = folder / task.prediction_file_name
    result = cache.get_task_result_path(name, meta)
    if index_sha256 and any(entry.get("index_sha256") != index_sha256 for entry in _entries(result)):
        result.replace(result.with_suffix(".json.other"))
    if result.is_file() and not set(task.hf_subsets) & _languages_done(result) <= _read(predictions).keys():
        result.unlink()  # scores without their queries: a run that was stopped between the two files
    if predictions.is_file() and not (result.is_file() and _read(predictions)):
        # Cut off, or of a result that was set aside; mteb would add to it.
        predictions.replace(predictions.with_suffix(".json.other"))
    if isinstance(run.model, TwoModels):
        done = _languages_done(result)
        run.model.ahead = {lang: task.dataset[lang]["test"] for lang in task.hf_subsets if lang not in done}
    mteb.evaluate(
        run.model,
        task,
        cache=cache,
        co2_tracker=False,
        encode_kwargs={"batch_size": batch_size},
        prediction_folder=folder,
    )
    query_scores = _read(predictions)
    return [cell(run, task, language, query_scores[language]["test"]) for language in task.hf_subsets]


def _languages_done(result: Path) -> set[str]:
    return {entry["hf_subset"] for entry in _entries(result)}


def _entries(result: Path) -> list[dict]:
    """The scores of each language in a file of mteb; none without the file."""
    return json.loads(result.read_text("utf-8"))["scores"].get("test", []) if result.is_file() else []


def _read(path: Path) -> dict[str, dict]:
    """A file of predictions; empty where there is none, or one that was cut off."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def cell(run: Run, task: MMMEBRetrieval, language: str, query_scores: dict[str, dict[str, float]]) -> Cell:
    """One model, task and language: for each query, the rank of the right answer and the first one."""
    gold = task.dataset[language]["test"]["relevant_docs"]
    ranks: dict[str, int | None] = {}
    first: dict[str, str] = {}
    for query, scores in query_scores.items():
        # Of equal scores the greater id is first, as mteb has it.
        order = sorted(scores, key=lambda document: (scores[document], document), reverse=True)
        right = next(iter(gold[query]))
        ranks[query] = order.index(right) + 1 if right in order[:TOP] else None
        first[query] = order[0]
    return Cell(run.label, run.style or "bare", task.metadata.name, language, ranks, first)


def pairs(cells: Sequence[Cell], resamples: int, rng: np.random.Generator) -> Iterator[dict[str, object]]:
    """Each two models on the same task, language and style: difference of P@1, over the same queries."""
    for one, two in combinations(cells, 2):
        same = one.task == two.task and one.language == two.language
        if same and one.model != two.model and (one.style == two.style or "bare" in (one.style, two.style)):
            mean, low, high = difference(one.hits, two.hits, resamples, rng)
            names = {"model": one.model, "other": two.model, "style": one.style, "other_style": two.style}
            yield names | {
                "task": one.task,
                "language": one.language,
                "difference": round(mean, 6),
                "low": round(low, 6),
                "high": round(high, 6),
            }


def write_csv(path: Path, rows: Sequence[dict[str, object]]) -> None:
    """Rows of one shape as a CSV file, which appears whole; without rows an empty one."""
    with whole_file(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        if rows:
            writer = csv.DictWriter(file, [*rows[0]])
            writer.writeheader()
            writer.writerows({key: csv_value(value) for key, value in row.items()} for row in rows)


def csv_value(value: object) -> object:
    r"""A value for a spreadsheet, which would compute a text that begins as a formula does.

    >>> csv_value("=1+1"), csv_value("./model"), csv_value(-0.5)
    ("'=1+1", './model', -0.5)
    """
    if not isinstance(value, str):
        return value
    return printable(f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value)
