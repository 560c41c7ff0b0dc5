"""The time until `xvlm2vec evaluate --help` has answered."""

import subprocess
import sys
from pathlib import Path

TITLE = "xvlm2vec evaluate --help"
SIZES: dict[str, int] = {}


def prepare(folder: Path) -> None:
    """Nothing."""


def run(folder: Path) -> str:
    """Ask for help in a new process."""
    command = [sys.executable, "-m", "recipes.evaluate", "--help"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    if "usage:" not in done.stdout:
        raise ValueError(f"no help text: {done.stdout[:200]!r}")
    return "ok"
