"""The families whose processors need torchvision, in a process that has it: see tiny.py."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiny

ROOT = Path(__file__).parents[1]
# One of each kind of language model: the others differ in their vision towers, or stand between two of these.
USUAL = ["qwen2_vl", "qwen3_vl", "smolvlm", "qwen3_5", "lfm2_vl", "gemma4", "internvl"]
OTHERS = [family for family in tiny.VIDEO if family not in USUAL]
PACKAGES = Path(sys.prefix) / "families"  # the Makefile's


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is here: they ran by themselves")
@pytest.mark.skipif(not PACKAGES.is_dir(), reason=f"no {PACKAGES}: `make test` makes it")
@pytest.mark.parametrize("families", [USUAL, pytest.param(OTHERS, marks=pytest.mark.slow)])
def test_every_case_that_needs_torchvision(families: list[str]) -> None:
    files = [
        path
        for path in sorted(Path(__file__).parent.glob("test_*.py"))
        if re.search("^(import tiny|from tiny import)", path.read_text("utf-8"), re.MULTILINE)
        and path != Path(__file__)
    ]
    assert len(files) > 1
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "torchvision_ops", "-p", "no:cacheprovider", "-v", "-rs"]
        + ["-k", " or ".join(f"{family}] or {family}-" for family in families), *map(str, files)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (PACKAGES, ROOT / "tests")))},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    counts = {kind: int(number) for number, kind in re.findall(r"(\d+) (passed|skipped)", done.stdout)}
    assert counts["passed"] >= 2 * len(families), done.stdout[-2000:]
    assert "skipped" not in counts, done.stdout[-2000:]
