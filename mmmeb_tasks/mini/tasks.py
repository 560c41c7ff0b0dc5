"""MMMEBMini: the five kinds of MMMEB over scenes of the mini world, in five languages or in eleven."""

import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
import numpy as np
import torch
from mteb.abstasks.task_metadata import TaskCategory, TaskSubtype
from mteb.models import MTEBModels
from tqdm.auto import tqdm

from mmmeb_tasks.data.layout import Kind, layout_of
from mmmeb_tasks.metadata import MMMEBMetadata, langscripts
from mmmeb_tasks.mini.world import ELEVEN
from mmmeb_tasks.mini.world import LANGUAGES as FIVE
from mmmeb_tasks.mini.write import ensure_mini
from mmmeb_tasks.retrieval import MMMEBRetrieval
from mmmeb_tasks.tasks import MMMEB_CITATION

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def mini_data(languages: Sequence[str] = FIVE) -> Path:
    """The data folder: `MMMEB_MINI_DATA` where it is set, else the one that the package writes."""
    if folder := os.environ.get("MMMEB_MINI_DATA"):
        return Path(folder)
    return ensure_mini(languages)


def _metadata(name: str, kind: Kind, category: TaskCategory, subtype: TaskSubtype, description: str) -> MMMEBMetadata:
    """What the five tasks have in common, and what they have not."""
    return MMMEBMetadata(
        name=name,
        kind=kind,
        description=f"{description} Scenes of Noto Color Emoji glyphs (Apache-2.0), named with "
        "Unicode CLDR short names (Unicode-3.0), 100 candidates a query.",
        dataset={"path": "mmmeb_tasks/mini", "revision": "1"},
        reference="https://arxiv.org/abs/2503.09313",
        type="VisionCentricQA" if kind == "vqa" else "Any2AnyReranking",
        category=category,
        modalities=["image", "text"],
        eval_splits=["test"],
        eval_langs=langscripts(*FIVE),
        main_score="accuracy",
        date=("2024-01-01", "2024-12-31"),
        domains=["Constructed", "Scene"],
        task_subtypes=[subtype],
        license="apache-2.0",
        annotations_creators="algorithmic",
        dialect=[],
        sample_creation="rendered",
        bibtex_citation=MMMEB_CITATION,
    )


class MiniTask(MMMEBRetrieval):
    """A task of MMMEBMini."""

    source = "mini"
    maximum = 100
    data_root = staticmethod(mini_data)


class MiniI2TRanking(MiniTask):
    """Image of a scene -> its caption."""

    metadata = _metadata("MiniI2TRanking", "i2t", "i2t", "Image Text Retrieval", "Find the caption of a scene.")


class MiniT2IRanking(MiniTask):
    """Caption -> image of the scene."""

    metadata = _metadata("MiniT2IRanking", "t2i", "t2i", "Image Text Retrieval", "Find the scene of a caption.")


class MiniClassification(MiniTask):
    """Image -> name of what it shows."""

    metadata = _metadata("MiniClassification", "c", "i2t", "Object recognition", "Name what an image shows.")


class MiniVQARanking(MiniTask):
    """Image and question -> answer."""

    metadata = _metadata("MiniVQARanking", "vqa", "it2t", "Question answering", "Answer a question about a scene.")


class MiniGrounding(MiniTask):
    """Image and name -> the part of the image that shows what is named."""

    metadata = _metadata("MiniGrounding", "vg", "it2i", "Object recognition", "Find the part of a scene by name.")


MINI_TASKS: tuple[type[MiniTask], ...] = (
    MiniI2TRanking,
    MiniT2IRanking,
    MiniClassification,
    MiniVQARanking,
    MiniGrounding,
)


def in_eleven_languages(task: type[MiniTask]) -> type[MiniTask]:
    """The task with pt, nl, pl, ru, zh and ja besides, under a name that ends in 11."""
    name = f"{task.metadata.name}11"
    metadata = task.metadata.model_copy(update={"name": name, "eval_langs": langscripts(*ELEVEN)})
    members = {"metadata": metadata, "data_root": staticmethod(partial(mini_data, ELEVEN))}
    return type(name, (task,), members | {"__doc__": task.__doc__, "__module__": __name__})


MINI_TASKS_11 = tuple(in_eleven_languages(task) for task in MINI_TASKS)


def evaluate_mini(
    model: "SentenceTransformer | MTEBModels",
    *,
    languages: Sequence[str] = FIVE,
    data_root: Path | None = None,
    tasks: Sequence[Kind] | None = None,
    show_progress: bool = True,
    index: "SentenceTransformer | MTEBModels | None" = None,
    index_language: str | None = None,
) -> dict[str, dict[str, float]]:
    """P@1 of a model on MMMEBMini, `{language: {kind: 0 to 1}}`, through `mteb.evaluate`.

    No result is read from or written to a cache of mteb. The state of the random generators is as
    before, so that it can run during training.

    Args:
        model: a sentence-transformers model, or a model of mteb (`MMMEBEncoder` in another style).
        languages: which of the eleven languages; with any beyond the first five, the tasks of MMMEBMini11.
        data_root: folder in the published layout; by default what `mini_data` says.
        tasks: which kinds, all five by default.
        show_progress: a bar over languages and tasks.
        index: a model that embeds the candidates; `model` then embeds the queries only.
        index_language: with `index`: the language of all candidates; by default that of the queries.

    Raises:
        ValueError: an unknown language or kind; an index language without an index; two models that do
            not fit, as `TwoModels` says; what the tasks and the encoder raise.

    Example:
        evaluate_mini(student, index=teacher, index_language="en")    # does the English index stay valid?
    """
    # mteb imports this module for its list of tasks, and sentence-transformers takes seconds.
    import mteb
    from sentence_transformers import SentenceTransformer

    from mmmeb_tasks.models.encoder import MMMEBEncoder
    from mmmeb_tasks.models.two_models import TwoModels, take_candidates

    if index_language is not None and index is None:
        raise ValueError(f"index_language {index_language!r} needs a model that made the index; pass index=MODEL")
    if unknown := [language for language in languages if language not in ELEVEN]:
        raise ValueError(f"unknown language {unknown[0]!r}; MMMEBMini has {', '.join(ELEVEN)}")
    for kind in tasks or ():
        layout_of(kind)
    among = MINI_TASKS if {*languages} <= {*FIVE} else MINI_TASKS_11
    chosen = [task for task in among if tasks is None or task.metadata.kind in tasks]
    if not chosen or not languages:
        raise ValueError(f"nothing to score: languages {languages!r}, tasks {tasks!r}")
    encoder = MMMEBEncoder(model) if isinstance(model, SentenceTransformer) else model
    if index is not None:
        behind = MMMEBEncoder(index) if isinstance(index, SentenceTransformer) else index
        encoder = TwoModels(encoder, behind, index_language=index_language)
    scores: dict[str, dict[str, float]] = {language: {} for language in languages}
    pairs = [(language, task) for language in languages for task in chosen]
    with _random_state_kept(), _datasets_silent():
        for language, task in (bar := tqdm(pairs, desc="MMMEBMini", disable=not show_progress)):
            bar.set_postfix_str(f"{language} {task.metadata.kind}")
            one = task(data_root=data_root).filter_languages(None, hf_subsets=[language])
            if index_language is not None:
                take_candidates(one, index_language)
            results = mteb.evaluate(
                encoder,
                one,
                cache=None,
                co2_tracker=False,
                encode_kwargs={"show_progress_bar": False},
                show_progress_bar=False,
            )
            scores[language][task.metadata.kind] = float(results.task_results[0].get_score())
    return scores


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Put the global generators back: every mteb task and evaluator seeds all of them with 42."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def _datasets_silent() -> Iterator[None]:
    """No bar for each of the tables that mteb maps, two a task and language."""
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
