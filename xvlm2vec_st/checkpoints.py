"""Which checkpoints are whole: a list of files and sizes, written last."""

import json
import logging
import re
from pathlib import Path

logger = logging.getLogger(__name__)

SEAL = "whole.json"


def seal(checkpoint: Path) -> None:
    """Say of a checkpoint that it is whole: its files and their sizes, in one step."""
    sizes = {str(p.relative_to(checkpoint)): p.stat().st_size for p in checkpoint.rglob("*") if p.is_file()}
    draft = checkpoint / f"{SEAL}.partial"
    draft.write_text(json.dumps(sizes, indent=1) + "\n", "utf-8")
    draft.rename(checkpoint / SEAL)


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, None for a whole one."""
    if not (checkpoint / SEAL).is_file():
        return "it was not finished"
    for name, size in json.loads((checkpoint / SEAL).read_text("utf-8")).items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes of {size}"
    return None


def last_whole_checkpoint(run: Path) -> Path | None:
    """The run's newest checkpoint that is whole; those passed over are named in the log, with the reason."""
    numbered = {
        int(found[1]): path
        for path in run.glob("checkpoint-*")
        if (found := re.fullmatch(r"checkpoint-(\d+)", path.name))
    }
    for number in sorted(numbered, reverse=True):
        reason = damage(numbered[number])
        if reason is None:
            return numbered[number]
        logger.warning("%s is passed over: %s", numbered[number], reason)
    return None
