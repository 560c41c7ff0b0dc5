"""Two versions of the source, side by side: seconds, peak memory, and equal results.

    git worktree add ../before v0.1
    python -m recipes.experiments.bench_versions ../before                       # every workload
    python -m recipes.experiments.bench_versions ../before --only load_parallel
    python -m recipes.experiments.bench_versions ../before --document docs/performance.md
    python -m recipes.experiments.bench_versions ../before --only mmmeb_task --sizes queries=50000 --repeats 1

A workload is a file in `recipes/experiments/workloads`: what it prepares is not timed, what it runs is. Each run
is a process of its own, old and new in turn; seconds are medians, peak is what the process and its children held
at most, minus what it held when its imports were done.
"""

import argparse
import importlib
import json
import os
import pkgutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import ModuleType

from xvlm2vec_st.utils.folders import expanded

from ..shared.command import parser_of, run
from ..shared.markup import markdown_table
from . import workloads
from .measure import keep_table

ROOT = Path(__file__).parents[2]
CHILD = Path(__file__).with_name("workload_process.py")


@dataclass(frozen=True)
class Run:
    """One run of a workload: seconds, peak in bytes, and a digest of the result."""

    seconds: float
    peak: int
    digest: str


def names() -> list[str]:
    """The names of all workloads."""
    return [module.name for module in pkgutil.iter_modules(workloads.__path__)]


def load(name: str) -> ModuleType:
    """The module of a workload.

    Raises:
        ValueError: there is no such workload.
    """
    if name not in names():
        raise ValueError(f"--only {name}: unknown; choose among {', '.join(names())}")
    return importlib.import_module(f"{workloads.__name__}.{name}")


def measure(name: str, folder: Path, tree: Path) -> Run:
    """Run a workload once with the source in `tree`, in a new process.

    Raises:
        RuntimeError: the process failed; the message holds what it wrote.
    """
    environment = os.environ | {"PYTHONPATH": str(tree), "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    file = Path(str(load(name).__file__))
    done = subprocess.run(
        [sys.executable, str(CHILD), str(file), str(folder)],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{name} with {tree}: exit status {done.returncode}\n{done.stderr[-2000:]}")
    return Run(**json.loads(done.stdout.splitlines()[-1]))


def compare(name: str, before: Path, *, repeats: int, sizes: dict[str, int] | None = None) -> list[str]:
    """One row of the table: title, seconds before, after and their ratio, peak before, after and their ratio.

    Raises:
        ValueError: the versions give different results; the workload has no such size.
    """
    workload = load(name)
    if unknown := [size for size in sizes or {} if size not in workload.SIZES]:
        raise ValueError(f"--sizes {unknown[0]}: {name} has {', '.join(workload.SIZES) or 'no sizes'}")
    sizes = workload.SIZES | (sizes or {})
    trees = {"before": before.resolve(), "after": ROOT}
    runs: dict[str, list[Run]] = {version: [] for version in trees}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        workload.prepare(folder, **sizes)
        for turn in range(repeats):
            for version in list(trees)[:: -1 if turn % 2 else 1]:
                runs[version].append(measure(name, folder, trees[version]))
    digests = {run.digest for of_version in runs.values() for run in of_version}
    if len(digests) > 1:
        raise ValueError(f"{name}: the results differ: {', '.join(sorted(digests))}")
    return [workload.TITLE.format(**sizes), *columns(runs)]


def columns(runs: dict[str, list[Run]]) -> list[str]:
    """Seconds and peak megabytes, each before, after, and before / after.

    >>> columns({"before": [Run(4.0, 2 * 10**8, "a")], "after": [Run(1.0, 10**8, "a")]})
    ['4.00', '1.00', '4.0', '200', '100', '2.0']
    """
    seconds = [median(run.seconds for run in runs[version]) for version in ("before", "after")]
    peaks = [median(run.peak for run in runs[version]) / 1e6 for version in ("before", "after")]
    ratio = f"{peaks[0] / peaks[1]:.1f}" if peaks[1] >= 1 else "–"
    return [
        *(f"{value:.2f}" for value in seconds),
        f"{seconds[0] / seconds[1]:.1f}",
        *map("{:.0f}".format, peaks),
        ratio,
    ]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = parser_of(__doc__)
    parser.add_argument("before", type=expanded, help="a checkout of the older version")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"among {', '.join(names())}")
    parser.add_argument("--sizes", nargs="+", metavar="NAME=N", default=[], help="change sizes: queries=50000")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each version")
    parser.add_argument("--document", type=expanded, help="write the table to its section in this document")
    return parser.parse_args(argv)


def parse_sizes(pairs: Sequence[str]) -> dict[str, int]:
    """Sizes of `--sizes`.

    Raises:
        ValueError: a pair is not NAME=N.

    >>> parse_sizes(["queries=50000"])
    {'queries': 50000}
    """
    sizes = {}
    for pair in pairs:
        name, _, number = pair.partition("=")
        if not (name and number.isdecimal()):
            raise ValueError(f"--sizes {pair!r}: write a name and a whole number, as in queries=50000")
        sizes[name] = int(number)
    return sizes


def main(argv: Sequence[str] | None = None) -> None:
    """Compare the versions."""
    args = parse_args(argv)
    if not (args.before / "xvlm2vec_st").is_dir():
        raise ValueError(f"{args.before}: not a checkout of this project: it has no folder xvlm2vec_st")
    rows, sizes = [], parse_sizes(args.sizes)
    for name in args.only or names():
        rows.append(compare(name, args.before, repeats=args.repeats, sizes=sizes))
        print("  ".join(rows[-1]), flush=True)
    header = ["", "before, s", "after, s", "ratio", "before, MB", "after, MB", "ratio"]
    keep_table(args.document, "bench_versions", argv, markdown_table(header, rows))


if __name__ == "__main__":
    run(main)
