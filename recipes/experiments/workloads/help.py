"""The time until `--help` of three commands has answered."""

import subprocess
import sys
from pathlib import Path

TITLE = "`--help` of build, distill and evaluate, one after another"
SIZES: dict[str, int] = {}
COMMANDS = (["recipes", "build"], ["recipes.distill"], ["recipes.evaluate"])


def prepare(folder: Path) -> None:
    """Nothing."""


def run(folder: Path) -> str:
    """Ask for help in new processes."""
    for words in COMMANDS:
        command = [sys.executable, "-m", *words, "--help"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        if "usage:" not in done.stdout:
            raise ValueError(f"{' '.join(words)}: no help text: {done.stdout[:200]!r}")
    return "ok"
