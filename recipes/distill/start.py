"""How `recipes.distill` begins: what it refuses, what it goes on with, and where the student starts."""

import argparse
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformerTrainingArguments

from xvlm2vec_st import build
from xvlm2vec_st.utils.folders import DRAFT, NOTE, Destination, remove, write_note

from .options import MAY_CHANGE, MODELS, dashed

logger = logging.getLogger(__name__)

# What a run writes in OUT.partial before its note says which run it is.
EARLY = ("start", "start.*", ".start.*", DRAFT)


def destination(args: argparse.Namespace) -> Destination:
    """OUT and OUT.partial."""
    return Destination(args.out, overwrite=args.overwrite, again="pass --resume")


def inputs(args: argparse.Namespace) -> list[tuple[str, str | Path | None]]:
    """(option, path) of what a run reads or keeps; none of it may lie in what the run replaces."""
    models = [(dashed(name), getattr(args, name)) for name in MODELS]
    files = [(dashed(name), getattr(args, name)) for name in ("cache", "images", "eval_corpus")]
    local = [(option, name) for option, name in models if name and Path(name).is_dir()]
    return [*local, *files, *(("--corpus", path) for path in args.corpus)]


def check_folders(args: argparse.Namespace, work: Path, settings: dict[str, Any]) -> None:
    """Refuse to overwrite what is finished or unfinished, and clear it where that is asked for.

    Raises:
        ValueError: OUT cannot be filled; an unfinished run, or what no run wrote, lies in OUT.partial;
            nothing, or another run, to resume.
    """
    place = destination(args)
    place.check(inputs(args))
    if place.check_work(*EARLY) and not args.resume:
        if not (args.overwrite or place.note() is None):
            raise ValueError(
                f"{work} holds an unfinished run; pass --resume to go on, --overwrite to drop it"
            )
        remove(work)
    if args.resume:
        check_same_run(work, place.note(), settings)


def before_the_note(name: str) -> bool:
    """Whether a run writes a file of that name before it says which run it is.

    >>> [before_the_note(name) for name in ("start", ".start.7.partial", "checkpoint-5", NOTE)]
    [True, True, False, False]
    """
    return any(fnmatch(name, pattern) for pattern in EARLY)


def check_same_run(work: Path, before: dict[str, Any] | None, settings: dict[str, Any]) -> None:
    """Refuse to go on with another run; a warning says that texts were edited in their rows.

    Raises:
        ValueError: no run is there, or one of other options or another number of rows.
    """
    if before is None:
        raise ValueError(f"{work}: no unfinished run to resume; leave --resume out")
    if changed := [key for key in settings if key not in MAY_CHANGE and settings[key] != before.get(key)]:
        listed = ", ".join(f"{key} {before.get(key)!r} -> {settings[key]!r}" for key in changed)
        raise ValueError(
            f"{work} was started with other arguments ({listed}); resume with the same, or start anew: "
            "--overwrite instead of --resume"
        )
    if settings["corpus_digests"] != before.get("corpus_digests"):
        logger.warning(
            "the corpus was edited since this run began: as many rows, other texts; it goes on with these"
        )


def begin(work: Path, settings: dict[str, Any]) -> None:
    """Say which run OUT.partial is, in one step."""
    write_note(work, settings)


@contextmanager
def nothing_left(work: Path, process: int) -> Iterator[None]:
    """Drop what a run has written that ends before it has begun."""
    try:
        yield
    except BaseException:
        if process == 0 and work.is_dir() and not (work / NOTE).is_file():
            for path in filter(lambda path: before_the_note(path.name), list(work.iterdir())):
                remove(path)
            with suppress(OSError):  # not empty: it holds what the run did not write
                work.rmdir()
        raise


def start_of(args: argparse.Namespace, work: Path, arguments: SentenceTransformerTrainingArguments) -> str:
    """Where the student starts: the folder or Hub id asked for, or that with the adapter merged.

    Raises:
        ValueError: as `build`.
    """
    if not (args.adapter or args.num_crops):
        return args.student
    start = work / "start"
    with arguments.main_process_first(local=False):
        if arguments.process_index == 0 and not start.exists():
            build(args.student, start, adapter=args.adapter, num_crops=args.num_crops)
    if not start.exists():
        raise ValueError(f"{start} is missing: the first process could not build it, and says why")
    return str(start)
