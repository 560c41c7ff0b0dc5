"""MMMEB and MMMEBMini as wholes: aggregate tasks for `mteb run -t`, benchmarks for `-b`."""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any, Self, cast

import numpy as np
from mteb.abstasks.aggregate_task_metadata import AggregateTaskMetadata
from mteb.abstasks.aggregated_task import AbsTaskAggregate
from mteb.benchmarks.benchmark import Benchmark
from mteb.results import TaskResult

from mmmeb_tasks.mini.tasks import MINI_TASKS, MINI_TASKS_11
from mmmeb_tasks.retrieval import MMMEBRetrieval
from mmmeb_tasks.tasks import MMMEB_CITATION, MMMEB_TASKS

REFERENCE = "https://arxiv.org/abs/2503.09313"

DESCRIPTIONS = {
    "MMMEB": "Massive Multimodal and Multilingual Embedding Benchmark: five kinds of task over images and "
    "texts in English, Italian, Spanish, French and German; each query ranks its own candidates.",
    "MMMEBMini": "MMMEB in small, over scenes of emoji: five kinds of task, five languages, bundled.",
    "MMMEBMini11": "MMMEBMini in eleven languages: en it es fr de, and pt nl pl ru zh ja.",
}


class AggregateOfLanguages(AbsTaskAggregate):
    """Several tasks as one; its subsets are languages, each scored by the mean over its tasks.

    The numbers of the tasks stand beside the mean, under their names. `filter_languages` goes
    through to the tasks; those that have none of the languages drop out.
    """

    def __init__(self, **kwargs: Any) -> None:
        """Make tasks of its own: a filter must not reach the next instance."""
        tasks = [type(task)() for task in type(self).metadata.tasks]
        self.metadata = type(self).metadata.model_copy(update={"tasks": tasks})
        super().__init__(**kwargs)

    def filter_languages(
        self,
        languages: Sequence[str] | None,
        script: Sequence[str] | None = None,
        hf_subsets: Sequence[str] | None = None,
        exclusive_language_filter: bool = False,
    ) -> Self:
        """Keep some languages, here and in every task."""
        super().filter_languages(languages, script, hf_subsets, exclusive_language_filter)
        left = []
        for task in self.metadata.tasks:
            if own := [lang for lang in task.metadata.hf_subsets if lang in self.hf_subsets]:
                task.hf_subsets = own
                left.append(task)
        self.metadata = self.metadata.model_copy(update={"tasks": left})
        self.tasks = left
        self.taskname_to_task = {task.metadata.name: task for task in left}
        return self

    def filter_eval_splits(self, eval_splits: Sequence[str] | None) -> Self:
        """Hand the splits on to the tasks, which refuse one that they do not have when they load data."""
        for task in self.metadata.tasks:
            task.filter_eval_splits(eval_splits)
        return super().filter_eval_splits(eval_splits)

    def data_hash(self, language: str) -> str | None:
        """One hash for the rows of a language in all tasks that have it."""
        tasks = [task for task in self.metadata.tasks if language in task.metadata.hf_subsets]
        return _together(cast(MMMEBRetrieval, task).data_hash(language) for task in tasks)

    def task_results_to_scores(self, task_results: list[TaskResult]) -> dict[str, Mapping[str, Mapping[str, Any]]]:
        """Split -> language -> main score, and the score of each task that has the language."""
        scores: dict[str, dict[str, dict[str, Any]]] = {}
        rows: dict[tuple[str, str], list[str | None]] = {}
        for result in task_results:
            for split, entries in result.scores.items():
                for entry in entries:
                    of_language = scores.setdefault(split, {}).setdefault(entry["hf_subset"], {})
                    of_language[result.task_name] = float(entry["main_score"])
                    rows.setdefault((split, entry["hf_subset"]), []).append(entry.get("data_sha256"))
        main = self.metadata.main_score
        for split, languages in scores.items():
            for language in [*languages]:
                if language not in self.hf_subsets:
                    del languages[language]
                    continue
                mean = float(np.mean([*languages[language].values()]))
                languages[language] |= {main: mean, "main_score": mean}
                languages[language]["data_sha256"] = _together(rows[split, language])
        return {**scores}


def _together(hashes: Iterable[str | None]) -> str | None:
    """Hashes of parts -> one of the whole, None where one is missing; their order decides nothing.

    >>> _together(["a", "b"]) == _together(["b", "a"]) != _together(["a", "c"])
    True
    """
    there = [*hashes]
    return None if None in there else sha256(" ".join(sorted(map(str, there))).encode()).hexdigest()


def _aggregate(name: str, tasks: Sequence[type[MMMEBRetrieval]]) -> AggregateTaskMetadata:
    return AggregateTaskMetadata(
        name=name,
        description=DESCRIPTIONS[name],
        tasks=[task() for task in tasks],
        main_score="accuracy",
        type="Any2AnyReranking",
        eval_splits=["test"],
        eval_langs={lang: codes for task in tasks for lang, codes in cast(dict, task.metadata.eval_langs).items()},
        modalities=["image", "text"],
        annotations_creators="human-annotated" if name == "MMMEB" else "algorithmic",
        reference=REFERENCE,
        bibtex_citation=MMMEB_CITATION,
    )


class MMMEB(AggregateOfLanguages):
    """The seven tasks of MMMEB."""

    metadata = _aggregate("MMMEB", MMMEB_TASKS)


class MMMEBMini(AggregateOfLanguages):
    """The five tasks of MMMEBMini."""

    metadata = _aggregate("MMMEBMini", MINI_TASKS)


class MMMEBMini11(AggregateOfLanguages):
    """The five tasks of MMMEBMini in eleven languages."""

    metadata = _aggregate("MMMEBMini11", MINI_TASKS_11)


AGGREGATES: tuple[type[AggregateOfLanguages], ...] = (MMMEB, MMMEBMini, MMMEBMini11)


def benchmarks() -> list[Benchmark]:
    """The three as mteb's benchmarks."""
    # Not above: mteb imports this module while it gathers its tasks.
    from mteb.get_tasks import MTEBTasks

    return [
        Benchmark(
            name=aggregate.metadata.name,
            tasks=MTEBTasks(task() for task in (type(t) for t in aggregate.metadata.tasks)),
            description=DESCRIPTIONS[aggregate.metadata.name],
            reference=REFERENCE,
            citation=MMMEB_CITATION,
        )
        for aggregate in AGGREGATES
    ]
