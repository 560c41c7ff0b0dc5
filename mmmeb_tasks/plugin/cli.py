"""Around `mteb run`: names are checked before a model is loaded, a table is printed after."""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from functools import wraps
from pathlib import Path
from typing import cast

import mteb
from mteb.abstasks import AbsTask
from mteb.cache import ResultCache
from mteb.results import TaskResult

from mmmeb_tasks.benchmark import AggregateOfLanguages
from mmmeb_tasks.data.layout import DataError
from mmmeb_tasks.metadata import LANGUAGES
from mmmeb_tasks.models.local_folders import folder_meta, is_local
from mmmeb_tasks.retrieval import MMMEBRetrieval, refuse_splits
from mmmeb_tasks.utils.folders import Destination
from mmmeb_tasks.utils.texts import markdown_cell, printable

# A task whose results are checked before a run, and shown after it.
Scored = MMMEBRetrieval | AggregateOfLanguages
# Why a result is set aside -> the ending of its name.
ASIDE = {"is cut off": "broken", "is of other data": "other"}


def wrap_run(run: Callable[[argparse.Namespace], None]) -> Callable[[argparse.Namespace], None]:
    """mteb's `run`, with a check before and a table after, where tasks of MMMEB are run."""

    @wraps(run)
    def checked(args: argparse.Namespace) -> None:
        try:
            requested = requested_tasks(args)
            name, revision = model_of(args)
            tasks = [task for task in requested if isinstance(task, Scored)]
            cache = ResultCache(args.output_folder)
        except ValueError as error:
            sys.exit(f"mteb run: {printable(error)}")
        with ExitStack() as held:
            try:
                held.enter_context(locked(cache, tasks, name))
                for task in expand_aggregates(tasks):
                    set_aside(cache, task, name)
            except ValueError as error:
                sys.exit(f"mteb run: {printable(error)}")
            try:
                run(args)
            except DataError as error:
                sys.exit(f"mteb run: {printable(error)}")
        results = read(cache, tasks, name, revision)
        if results:
            print(table(results, title=name))

    return checked


@contextmanager
def locked(cache: ResultCache, tasks: Iterable[Scored], model: str) -> Iterator[None]:
    """Keep other runs from these tasks of a model: mteb would write one file from both, the last one wins.

    Raises:
        ValueError: another run scores one of them into the same folder.
    """
    with ExitStack() as held:
        for name in sorted({task.metadata.name for task in expand_aggregates(tasks)}):
            held.enter_context(Destination(_results(cache, model) / name, option="--output-folder").hold())
        yield


def with_folder(create: Callable[[argparse.Namespace], None]) -> Callable[[argparse.Namespace], None]:
    """mteb's `create-model-results`, which needs the folder of a local model, not its name in results."""

    @wraps(create)
    def checked(args: argparse.Namespace) -> None:
        if (args.model_name or "").startswith("local/"):
            folder = args.model_name.removeprefix("local/")
            sys.exit(
                f"mteb create-model-results: {args.model_name} is a local folder's name in results; pass the "
                f"folder itself: --model-name ./{folder}"
            )
        create(args)

    return checked


def requested_tasks(args: argparse.Namespace) -> Sequence[AbsTask]:
    """The tasks of a benchmark, or the tasks of MMMEB, that a command line asks for.

    Raises:
        ValueError: an unknown task, benchmark or language, with the nearest ones.
    """
    if args.benchmarks:
        known = {benchmark.name: benchmark for benchmark in mteb.get_benchmarks()}
        aliases = {alias for benchmark in known.values() for alias in benchmark.aliases or ()}
        _refuse_unknown("benchmark", args.benchmarks, [*known, *aliases])
        return [task for name in args.benchmarks for task in mteb.get_benchmark(name).tasks]
    return mmmeb_tasks_among(args.tasks or (), args.languages, args.eval_splits)


def mmmeb_tasks_among(
    names: Sequence[str], languages: Sequence[str] | None, splits: Sequence[str] | None = None
) -> list[AbsTask]:
    """Those of the named tasks that are of MMMEB, in these languages (three-letter codes; None: all).

    Raises:
        ValueError: an unknown task or language, with the nearest ones; a split that a task does not have.
    """
    from mteb.get_tasks import _TASK_RENAMES, _TASKS_REGISTRY

    _refuse_unknown("task", names, [*_TASKS_REGISTRY, *_TASK_RENAMES])
    named = [_TASKS_REGISTRY[_TASK_RENAMES.get(name, name)] for name in names]
    of_mmmeb = [task for task in named if issubclass(task, MMMEBRetrieval | AggregateOfLanguages)]
    asked = {language.split("-")[0] for language in languages or ()}
    if of_mmmeb:
        _refuse_languages(named, asked)
    there = [task for task in of_mmmeb if not asked or asked & {*task.metadata.languages}]
    for task in there:
        refuse_splits(task.metadata, splits or ())
    return [task().filter_languages(languages) for task in there]


def _refuse_languages(tasks: Sequence[type[AbsTask]], asked: set[str]) -> None:
    """Refuse a language that no task has and MMMEB does not know, and languages that find no data."""
    of_mmmeb = {code.split("-")[0]: lang for lang, code in LANGUAGES.items()}
    has = {code for task in tasks for code in task.metadata.languages}
    known = "; ".join(f"{task.metadata.name} has {_languages(task)}" for task in tasks)
    for language in sorted(asked):
        if language not in has | of_mmmeb.keys():
            near = LANGUAGES.get(language, "").split("-")[0] or _near(language, has)
            hint = f"; did you mean {near}?" if near else ";"
            raise ValueError(f"unknown language {language!r}{hint} {known}")
    if asked and not has & asked:
        raise ValueError(f"no data in {', '.join(sorted(asked))}: {known}")


def _languages(task: type[AbsTask]) -> str:
    if not issubclass(task, Scored):
        return ", ".join(sorted(task.metadata.languages))
    return ", ".join(
        f"{codes[0].split('-')[0]} ({lang})" for lang, codes in cast(dict, task.metadata.eval_langs).items()
    )


def _refuse_unknown(what: str, asked: Iterable[str], known: Sequence[str]) -> None:
    for name in asked:
        if name not in known:
            near = get_close_matches(name, known, n=3, cutoff=0.5)
            # A slip of the shift key is far away for difflib.
            near = [k for k in known if k.lower() == name.lower()] or near
            hint = f"; nearest: {', '.join(near)}" if near else f"; mteb available-{what}s lists them"
            raise ValueError(f"unknown {what} {name!r}{hint}")


def _near(language: str, known: Iterable[str]) -> str:
    return next(iter(get_close_matches(language, [*known], n=1, cutoff=0.3)), "")


def model_of(args: argparse.Namespace) -> tuple[str, str | None]:
    """The name and, where it is known without the Hub, revision that results are filed under.

    Raises:
        ValueError: a path without a model.
    """
    registry = sys.modules["mteb.models.get_model_meta"].MODEL_REGISTRY
    if not dict.__contains__(registry, args.model) and is_local(args.model):
        meta = folder_meta(Path(args.model))
        return str(meta.name), meta.revision
    meta = registry.get(args.model)
    return (str(meta.name), meta.revision) if meta else (args.model, args.model_revision)


def expand_aggregates(tasks: Iterable[Scored]) -> list[Scored]:
    """Tasks, and the tasks of aggregates."""
    expanded: list[Scored] = []
    for task in tasks:
        expanded.append(task)
        if isinstance(task, AggregateOfLanguages):
            expanded += cast(list[MMMEBRetrieval], task.metadata.tasks)
    return expanded


def set_aside(cache: ResultCache, task: Scored, model: str) -> list[Path]:
    """Rename a model's results that are incomplete or of other data, so that mteb computes them again.

    These are files that were cut off while they were written, and scores of other rows than the
    data folder holds now: mteb itself does not ask which data a finished result is of.

    Raises:
        ValueError: there are results, and no data to compare with.
    """
    moved = []
    for path in _results(cache, model).rglob(f"{task.metadata.name}.json"):
        if fault := _fault(path, task):
            kept = path.replace(path.with_suffix(f".json.{ASIDE[fault]}"))
            sys.stderr.write(f"mmmeb_tasks: {path} {fault}; kept as {kept.name}, and computed again\n")
            moved.append(kept)
    return moved


def _fault(path: Path, task: Scored) -> str | None:
    try:
        result = TaskResult.from_disk(path)
    except ValueError:
        return "is cut off"
    for entry in (entry for entries in result.scores.values() for entry in entries):
        now = task.data_hash(entry["hf_subset"])
        if now not in (None, entry.get("data_sha256")):
            return "is of other data"
    return None


def _results(cache: ResultCache, model: str) -> Path:
    """Where mteb keeps the results of all revisions of a model."""
    return cache.get_task_result_path("task", model, "revision").parents[1]


def read(cache: ResultCache, tasks: Iterable[Scored], model: str, revision: str | None) -> dict[str, dict[str, float]]:
    """`{task: {language: main score}}` of one model's results on disk; aggregates by their parts."""
    folder = _results(cache, model)
    scores: dict[str, dict[str, float]] = {}
    for task in expand_aggregates(tasks):
        paths = [*folder.glob(f"{revision or '*'}/{task.metadata.name}.json")]
        if isinstance(task, AggregateOfLanguages) or not paths:
            continue
        newest = max(paths, key=lambda path: path.stat().st_mtime)
        for entry in TaskResult.from_disk(newest).scores.get("test", ()):
            if entry["hf_subset"] in task.hf_subsets:
                scores.setdefault(task.metadata.name, {})[entry["hf_subset"]] = entry["main_score"]
    return scores


def table(results: dict[str, dict[str, float]], *, title: str) -> str:
    """Tasks x languages in per cent, with means, as Markdown; "–" where a task lacks a language.

    The last number is the aggregate's score: the mean over languages of the mean over tasks.

    >>> print(table({"A": {"en": 0.5, "fr": 0.25}, "B": {"en": 1.0}}, title="m"))
    | m: P@1, % | en | fr | mean |
    |---|---|---|---|
    | A | 50.0 | 25.0 | 37.5 |
    | B | 100.0 | – | 100.0 |
    | mean | 75.0 | 25.0 | 50.0 |
    """
    languages = [lang for lang in LANGUAGES if any(lang in scores for scores in results.values())]
    rows = {task: [scores.get(lang) for lang in languages] for task, scores in results.items()}
    if len(rows) > 1:
        columns = zip(*rows.values(), strict=True)
        rows["mean"] = [_mean(column) for column in columns]
    cells = [[f"{markdown_cell(title)}: P@1, %", *languages, "mean"], ["---"] * (len(languages) + 2)]
    for task, values in rows.items():
        shown = (*values, _mean(values))
        cells.append([task, *("–" if v is None else f"{100 * v:.1f}" for v in shown)])
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    lines[1] = lines[1].replace(" ", "")
    return "\n".join(lines)


def _mean(values: Iterable[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None
