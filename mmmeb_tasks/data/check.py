"""Check a data folder against the published layout and counts.

python -m mmmeb_tasks check DIR
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from mmmeb_tasks.data.layout import BenchmarkRow, Published, files, read_records
from mmmeb_tasks.utils.texts import printable, short

SHOWN = 3  # examples of each finding a file


@dataclass
class Report:
    """What one file holds; `findings`: what is wrong -> where (line, value)."""

    task: str
    path: Path
    queries: int = 0
    skipped: int = 0
    candidates: tuple[int, int] = (0, 0)
    findings: dict[str, list[str]] = field(default_factory=dict)

    def add(self, finding: str, where: str) -> None:
        """Note one place of a finding."""
        self.findings.setdefault(finding, []).append(where)

    def __str__(self) -> str:
        """One line, and one for each finding with its first examples."""
        fewest, most = self.candidates
        span = str(most) if fewest == most else f"{fewest} to {most}"
        nulls = f", {self.skipped} null rows skipped" if self.skipped else ""
        state = "ok" if not self.findings else "WRONG"
        lines = [f"{state:5} {self.path.name}: {self.queries} queries, {span} candidates{nulls}"]
        for finding, places in self.findings.items():
            more = f" and {len(places) - SHOWN} more" if len(places) > SHOWN else ""
            lines.append(f"      {finding} ({len(places)}): {'; '.join(places[:SHOWN])}{more}")
        return printable("\n".join(lines))


def check(root: Path, *, images: bool = True) -> Iterator[Report]:
    """Every file of the benchmark, looked through to its end, one report each.

    Args:
        root: the data folder.
        images: open every image once, too.

    Raises:
        ValueError: `root` is not a folder.
    """
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder; pass the one with datasets/ and the image folders")
    opened: dict[Path, str | None] = {}
    for expected, language, path in files(root):
        report = Report(expected.task, path)
        if not path.is_file():
            report.add("no such file", str(path))
        else:
            _look_through(root, expected, language, report, opened if images else None)
        yield report


def _look_through(
    root: Path, expected: Published, language: str, report: Report, opened: dict[Path, str | None] | None
) -> None:
    ids: Counter[str] = Counter()
    counts: set[int] = set()
    arguments = (root, expected.dataset, language, expected.maximum, expected.kind)
    for number, row in read_records(*arguments):
        if isinstance(row, ValueError):
            report.add(_kind_of(str(row)), f"line {number}: {row}")
        elif row is None:
            report.skipped += 1
        else:
            ids[row.id] += 1
            counts.add(len(row.candidates))
            report.queries += 1
            _look_at_row(row, report, opened)
    for name, times in ids.items():
        if times > 1:
            report.add("repeated ids", f"{short(name)} {times} times")
    report.candidates = (min(counts, default=0), max(counts, default=0))
    _compare(expected, report)


def _look_at_row(row: BenchmarkRow, report: Report, opened: dict[Path, str | None] | None) -> None:
    where = f"line {row.line}"
    if len(row.candidates) == 1:
        report.add("candidates without a wrong one", where)
    gold, *others = row.candidates
    if gold in others:
        report.add("the gold stands among the others, too", f"{where}: {short(str(gold))}")
    if len(set(others)) < len(others):
        twice = next(name for name, times in Counter(others).items() if times > 1)
        report.add("repeated candidates", f"{where}: {short(str(twice))}")
    if isinstance(gold, str) and not gold.strip():
        report.add("candidates without gold", f"{where}: the first candidate is {short(gold)}")
    if opened is None:
        return
    for path in {p for p in (row.image, *row.candidates) if isinstance(p, Path)} - opened.keys():
        opened[path] = _image_fault(path)
        if opened[path]:
            report.add("images that cannot be read", f"{where}: {path}: {opened[path]}")


def _image_fault(path: Path) -> str | None:
    try:
        with Image.open(path) as image:
            image.load()
    except MemoryError:
        raise
    except Exception as error:
        # Pillow's plugins raise OSError, SyntaxError, RuntimeError (AVIF), struct.error and others on a
        # damaged image.
        return str(error) or type(error).__name__
    return None


def _kind_of(message: str) -> str:
    """The heading under which an unreadable line is counted."""
    headings = {"image": "missing images", "the gold first": "candidates without gold"}
    return next((name for part, name in headings.items() if part in message), "unreadable lines")


def _compare(expected: Published, report: Report) -> None:
    for what, (least, most), actual in (
        ("queries", expected.queries, (report.queries + report.skipped,) * 2),
        ("candidates a query", expected.candidates, report.candidates),
    ):
        if report.queries and not (least <= actual[0] and actual[1] <= most):
            wanted = str(most) if least == most else f"{least} to {most}"
            have = str(actual[0]) if actual[0] == actual[1] else f"{actual[0]} to {actual[1]}"
            report.add(f"not the published number of {what}", f"{have}, published: {wanted}")
    if not report.queries:
        report.add("no row with a query", report.path.name)
