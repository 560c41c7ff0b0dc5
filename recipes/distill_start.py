"""How `recipes.distill` begins: what it refuses, what it goes on with, and where the student starts."""

import argparse
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformerTrainingArguments

from recipes.distill_options import MAY_CHANGE
from xvlm2vec_st import build

logger = logging.getLogger(__name__)

# Says of OUT.partial which run it is; a folder without it is none, whatever a kill left there.
NOTE = "arguments.json"
DRAFT = f"{NOTE}.partial"


def check_folders(args: argparse.Namespace, work: Path, told: dict[str, Any]) -> None:
    """Refuse to overwrite what is finished or unfinished, and clear it where that is asked for.

    Raises:
        ValueError: OUT is not empty; an unfinished run lies there; nothing, or another run, to resume.
    """
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())) and not args.overwrite:
        raise ValueError(f"{args.out} exists and is not empty; choose another --out, or pass --overwrite")
    if args.resume:
        check_same_run(work, told)
    elif work.exists():
        if not (args.overwrite or all(before_the_note(path.name) for path in work.iterdir())):
            raise ValueError(
                f"{work} holds an unfinished run; pass --resume to go on, --overwrite to drop it"
            )
        shutil.rmtree(work)


def before_the_note(name: str) -> bool:
    """Whether a run writes a file of that name before it says which run it is.

    >>> [before_the_note(name) for name in ("start", ".start.7.partial", "checkpoint-5", NOTE)]
    [True, True, False, False]
    """
    return name in ("start", DRAFT) or name.startswith(".start.")


def check_same_run(work: Path, told: dict[str, Any]) -> None:
    """Refuse to go on with another run; texts that were edited in their rows are told.

    Raises:
        ValueError: no run is there, or one of other options or another number of rows.
    """
    if not (work / NOTE).is_file():
        raise ValueError(f"{work}: no unfinished run to resume; leave --resume out")
    before = json.loads((work / NOTE).read_text())
    if changed := [key for key in told if key not in MAY_CHANGE and told[key] != before.get(key)]:
        listed = ", ".join(f"{key} {before.get(key)!r} -> {told[key]!r}" for key in changed)
        raise ValueError(
            f"{work} was started with other arguments ({listed}); resume with the same, or start anew: "
            "--overwrite in the place of --resume"
        )
    if told["corpus_digests"] != before.get("corpus_digests"):
        logger.warning(
            "the corpus was edited since this run began: as many rows, other texts; it goes on with these"
        )


def begin(work: Path, told: dict[str, Any]) -> None:
    """Say which run OUT.partial is, in one step."""
    work.mkdir(parents=True, exist_ok=True)
    (work / DRAFT).write_text(json.dumps(told, indent=2) + "\n")
    (work / DRAFT).rename(work / NOTE)


@contextmanager
def nothing_left(work: Path, process: int) -> Iterator[None]:
    """Drop what a run has written that ends before it is one."""
    try:
        yield
    except BaseException:
        if process == 0 and not (work / NOTE).is_file():
            shutil.rmtree(work, ignore_errors=True)
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
