"""Tools for the benchmark's data.

python -m mmmeb_tasks check DIR      # is DIR the published benchmark, whole and readable?
python -m mmmeb_tasks data           # download and unpack it, and say where it is
python -m mmmeb_tasks run …          # what `mteb run …` does after installation, in a checkout as well
    python -m mmmeb_tasks statistics MiniI2TRanking ...     # mteb's statistics, kept in the package
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from mmmeb_tasks.data.check import check
from mmmeb_tasks.data.download import mmmeb_data
from mmmeb_tasks.plugin.import_hook import install
from mmmeb_tasks.utils.folders import expanded
from mmmeb_tasks.utils.texts import printable


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 1 where something is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m mmmeb_tasks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    checker = commands.add_parser("check", help="compare a data folder with the published benchmark")
    checker.add_argument("folder", type=expanded)
    checker.add_argument("--no-images", action="store_true", help="do not open the images")
    commands.add_parser("data", help="download and unpack the benchmark")
    statistics = commands.add_parser("statistics", help="write mteb's statistics of tasks into the package")
    statistics.add_argument("tasks", nargs="+")
    commands.add_parser("run", help="as `mteb run`, which knows MMMEB after installation", add_help=False)
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["run"]:
        return run_mteb(words)
    args = parser.parse_args(words)
    try:
        if args.command == "data":
            print(mmmeb_data())
            return 0
        if args.command == "statistics":
            for name in args.tasks:
                print(write_statistics(name))
            return 0
        wrong = 0
        for report in check(args.folder, images=not args.no_images):
            wrong += bool(report.findings)
            print(report, flush=True)
    except (ValueError, OSError) as error:
        print(printable(error), file=sys.stderr)
        return 1
    print("all files are as published" if not wrong else f"{wrong} files are not as published")
    return 1 if wrong else 0


def run_mteb(words: Sequence[str]) -> int:
    """mteb's own command, with MMMEB, whether or not a start-up file has added it."""
    install()
    from mteb.cli.build_cli import main as run

    before, sys.argv = sys.argv, ["mteb", *words]
    try:
        run()
    finally:
        sys.argv = before
    return 0


def write_statistics(name: str) -> Path:
    """Compute mteb's descriptive statistics of a task, from its data, into the package."""
    from mmmeb_tasks.plugin.cli import mmmeb_tasks_among  # mteb takes seconds, and the checker does without

    if not (Path(__file__).parents[1] / "pyproject.toml").is_file():
        raise ValueError("statistics are written into a checkout; pip could not remove them from an installation")
    task = mmmeb_tasks_among([name], None)[0]
    packaged = Path(__file__).parent / "statistics" / f"{name}.json"
    packaged.parent.mkdir(exist_ok=True)
    packaged.unlink(missing_ok=True)
    task.calculate_descriptive_statistics(overwrite_results=True)
    written = task.metadata.descriptive_stat_path
    packaged.write_text(json.dumps(json.loads(written.read_text("utf-8"))) + "\n", "utf-8")
    return packaged


if __name__ == "__main__":
    sys.exit(main())
