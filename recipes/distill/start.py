"""How a run of `distill` begins: what it refuses, what it resumes, and the student's starting point."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformerTrainingArguments

from xvlm2vec_st import SentenceTransformer, build
from xvlm2vec_st.building.builder import save_embedder
from xvlm2vec_st.building.vocabulary import extend_model
from xvlm2vec_st.utils.folders import DRAFT, NOTE, Destination, remove

from .options import MODELS, DistillArguments, dashed

logger = logging.getLogger(__name__)

# What a run writes in OUT.partial before its note says which run it is.
EARLY = ("start", "start.*", ".start.*", DRAFT)


def run_destination(out: str, arguments: DistillArguments) -> Destination:
    """The output folder, and OUT.partial beside it."""
    return Destination(
        out,
        overwrite=arguments.overwrite,
        option="--output-dir",
        again="pass --resume-from-checkpoint true",
    )


def input_paths(arguments: DistillArguments) -> list[tuple[str, str | Path | None]]:
    """(option, path) of what a run reads or keeps; none of it may lie in a folder that the run replaces."""
    models = [(dashed(name), getattr(arguments, name)) for name in MODELS]
    files = [(dashed(name), getattr(arguments, name)) for name in ("cache", "images", "eval_corpus")]
    local = [(option, name) for option, name in models if name and Path(name).is_dir()]
    return [*local, *files, *(("--corpus", path) for path in arguments.corpus)]


def check_folders(place: Destination, arguments: DistillArguments, settings: dict[str, Any], *, resume: bool) -> None:
    """Refuse to overwrite a finished or unfinished run; with `overwrite`, drop the unfinished one.

    Raises:
        ValueError: the output folder cannot be filled; OUT.partial holds an unfinished run or foreign files;
            there is nothing to resume, or another run.
    """
    place.check(input_paths(arguments))
    if place.check_work(*EARLY) and not resume:
        if not (arguments.overwrite or place.note() is None):
            raise ValueError(
                f"{place.work} holds an unfinished run; pass --resume-from-checkpoint true to continue it, or "
                "--overwrite to drop it"
            )
        remove(place.work)
    if resume:
        check_same_run(place.work, place.note(), settings)


def is_early_file(name: str) -> bool:
    """Whether a run writes a file of that name before its note.

    >>> [is_early_file(name) for name in ("start", ".start.7.partial", "checkpoint-5", NOTE)]
    [True, True, False, False]
    """
    return any(fnmatch(name, pattern) for pattern in EARLY)


def check_same_run(work: Path, before: dict[str, Any] | None, settings: dict[str, Any]) -> None:
    """Refuse to resume another run; log a warning where texts were edited in their rows.

    Raises:
        ValueError: there is no run, or it has other options or another number of rows.
    """
    if before is None:
        raise ValueError(f"{work}: no unfinished run to resume; leave --resume-from-checkpoint out")
    changed = [key for key in settings if key != "corpus_digests" and settings[key] != before.get(key)]
    if changed:
        listed = ", ".join(f"{key} {before.get(key)!r} -> {settings[key]!r}" for key in changed)
        raise ValueError(
            f"{work} was started with other arguments ({listed}); resume with the same ones, or start again: "
            "--overwrite instead of --resume-from-checkpoint"
        )
    if settings["corpus_digests"] != before.get("corpus_digests"):
        logger.warning(
            "the corpus was edited since this run began: the same number of rows, other texts; training "
            "continues with the new texts"
        )


@contextmanager
def remove_unstarted(work: Path, process: int) -> Iterator[None]:
    """Delete what a run has written if it fails before it has begun."""
    try:
        yield
    except BaseException:
        if process == 0 and work.is_dir() and not (work / NOTE).is_file():
            for path in filter(lambda path: is_early_file(path.name), list(work.iterdir())):
                remove(path)
            with suppress(OSError):  # not empty: the run did not write all of it
                work.rmdir()
        raise


def build_start(arguments: DistillArguments, work: Path, training: SentenceTransformerTrainingArguments) -> str:
    """Return the model that the student starts from; merge `adapter` into it if there is one.

    Raises:
        ValueError: see `build`.
    """
    if not (arguments.adapter or arguments.num_crops):
        return arguments.student
    start = work / "start"

    def write() -> None:
        build(arguments.student, start, adapter=arguments.adapter, num_crops=arguments.num_crops)

    return first_process_writes(start, write, training)


def extend_start(
    arguments: DistillArguments, start: str, work: Path, training: SentenceTransformerTrainingArguments
) -> str:
    """Return the model `start` with `new_tokens` in its vocabulary, or itself if none are asked for.

    A run that resumes takes the tokens that it began with, also if the corpus was edited in between.

    Raises:
        ValueError: see `extend_model`.
    """
    if not arguments.new_tokens:
        return start
    extended, draft, count = work / "start.extended", work / "start.draft", arguments.new_tokens

    def write() -> None:
        remove(draft)  # left by a killed run
        model = SentenceTransformer(start, device="cpu")
        languages = arguments.new_tokens_for or arguments.languages
        keep = [code for code in arguments.languages if code not in languages]
        extension = extend_model(model, arguments.corpus, languages, count, join_ascii=arguments.join_ascii, keep=keep)
        save_embedder(model, draft)
        extension.write(draft)
        draft.rename(extended)

    return first_process_writes(extended, write, training)


def first_process_writes(start: Path, write: Callable[[], None], training: SentenceTransformerTrainingArguments) -> str:
    """Write a folder in the first process if it is missing; the others wait for it.

    Raises:
        ValueError: the first process could not write it.
    """
    with training.main_process_first(local=False):
        if training.process_index == 0 and not start.exists():
            write()
    if not start.exists():
        raise ValueError(f"{start} is missing: the first process could not build it; see its message")
    return str(start)
