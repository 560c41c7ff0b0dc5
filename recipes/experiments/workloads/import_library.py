"""The time of `import xvlm2vec_st` in a new process, without Auto classes of transformers."""

import subprocess
import sys
from pathlib import Path

TITLE = "import xvlm2vec_st"
SIZES: dict[str, int] = {}


def prepare(folder: Path) -> None:
    """Nothing."""


def run(folder: Path) -> str:
    """Import the package in a new process."""
    subprocess.run([sys.executable, "-c", "import xvlm2vec_st"], cwd=folder, capture_output=True, check=True)
    return "ok"
