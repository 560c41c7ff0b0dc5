"""Which checkpoints are whole: a list of files, sizes and digests, written last.

A digest costs one read of the checkpoint, when it is sealed (from the system's memory, where it has just
been written) and when it is resumed: 1.4 GB a second and core, SHA-256. A run of 4 billion parameters in
fp32 with Adam's two states has 48 GB to read: 35 s beside the minutes that writing takes.
"""

import hashlib
import json
import logging
import re
from pathlib import Path

from xvlm2vec_st.utils.folders import whole_file

logger = logging.getLogger(__name__)

SEAL = "whole.json"


def digest(path: Path) -> str:
    """The SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(checkpoint: Path) -> None:
    """Say of a checkpoint that it is whole: `{file: [size, digest]}`, in one step."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    contents = {str(p.relative_to(checkpoint)): [p.stat().st_size, digest(p)] for p in files}
    with whole_file(checkpoint / SEAL) as part:
        part.write_text(json.dumps(contents, indent=1) + "\n", "utf-8")


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, None for a whole one."""
    if not (checkpoint / SEAL).is_file():
        return "it was not finished"
    try:
        contents = json.loads((checkpoint / SEAL).read_text("utf-8"))
        # A seal of version 0.1 holds sizes alone.
        expected = {n: (v, None) if isinstance(v, int) else (int(v[0]), v[1]) for n, v in contents.items()}
    except (ValueError, AttributeError, TypeError, LookupError):
        return f"{SEAL} cannot be read"
    for name, (size, content) in expected.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes of {size}"
        if content is not None and digest(path) != content:
            return f"{name} was changed"
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
