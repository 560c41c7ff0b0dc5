"""Rows of the published MMMEB files. Knows the layout on disk and nothing else.

Source: the data page swap-uniba/MMMEB-Benchmark, `datasets/*.jsonl` beside the image folders.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from mmmeb_tasks.data.contents import Contents, Images
from mmmeb_tasks.utils.texts import fault_of, is_blank, printable, short

Kind = Literal["i2t", "t2i", "vqa", "vg", "c"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class DataError(ValueError):
    """The data are not there, or are not as published."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Which JSON fields a kind of task has, beside `id`; `images`: candidates are images."""

    image: str | None
    text: str | None
    candidates: str
    images: bool

    @property
    def fields(self) -> tuple[str, ...]:
        """Every field that a line must have."""
        return tuple(f for f in ("id", self.image, self.text, self.candidates) if f)


LAYOUTS: dict[Kind, Layout] = {
    "i2t": Layout(image="img", text=None, candidates="captions", images=False),
    "t2i": Layout(image=None, text="text", candidates="images", images=True),
    "vqa": Layout(image="img", text="question", candidates="answers", images=False),
    "vg": Layout(image="img", text="text", candidates="imgs", images=True),
    "c": Layout(image="img", text=None, candidates="classes", images=False),
}


@dataclass(frozen=True, slots=True)
class BenchmarkRow:
    """One query with its own candidates: texts, or paths of images. The first one is the gold."""

    line: int
    id: str
    image: Path | None
    text: str | None
    candidates: Sequence[str] | Sequence[Path] | Sequence[str | Path]


def layout_of(kind: str) -> Layout:
    """The fields of a kind of task; `ValueError` for a kind that MMMEB does not have.

    >>> layout_of("vqa").fields
    ('id', 'img', 'question', 'answers')
    """
    if kind not in LAYOUTS:
        raise ValueError(f"unknown kind {kind!r}; MMMEB has {', '.join(KINDS)}")
    return LAYOUTS[kind]


def data_file(root: Path, dataset: str, lang: str, maximum: int, kind: Kind) -> Path:
    """Where the rows of one task and language are.

    >>> data_file(Path("data"), "maxm_v1", "fr", 100, "vqa").as_posix()
    'data/datasets/maxm_v1_fr_100_formatted_vqa.jsonl'
    """
    return root / "datasets" / f"{dataset}_{lang}_{maximum}_formatted_{kind}.jsonl"


def read_rows(root: Path, dataset: str, lang: str, maximum: int, kind: Kind) -> Iterator[BenchmarkRow]:
    """Rows of one file, read line by line.

    A row whose query text or image is null is left out, so that every model has the same
    denominator.

    Raises:
        DataError: no such file; or, naming file and line: a line that is not a JSON object, a field
            that is missing or of another type, no candidates, an image that is not there.
    """
    return _rows(data_file(root, dataset, lang, maximum, kind), read_records(root, dataset, lang, maximum, kind))


def _rows(path: Path, records: Iterator[tuple[int, BenchmarkRow | ValueError | None]]) -> Iterator[BenchmarkRow]:
    for number, row in records:
        if isinstance(row, ValueError):
            raise DataError(f"{path} line {number}: {printable(row)}") from row
        if row is not None:
            yield row


def read_records(
    root: Path, dataset: str, lang: str, maximum: int, kind: Kind
) -> Iterator[tuple[int, BenchmarkRow | ValueError | None]]:
    """Every line of one file: its number, and its row, what is wrong with it, or None (skipped).

    Raises:
        DataError: no such file.
    """
    layout = layout_of(kind)
    path = data_file(root, dataset, lang, maximum, kind)
    if not path.is_file():
        others = sorted(p.name for p in path.parent.glob(f"{dataset}_*_formatted_*.jsonl"))
        raise DataError(f"no file {path}; of {dataset} there are: {', '.join(others) or 'none'}")
    return _lines(path, Images(root, dataset), layout)


def _lines(path: Path, images: Images, layout: Layout) -> Iterator[tuple[int, BenchmarkRow | ValueError | None]]:
    contents = Contents(images if layout.images else None)
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield number, _row(number, _record(line, layout), images, contents, layout)
            except ValueError as error:
                yield number, error


def _record(line: bytes, layout: Layout) -> Mapping[str, object]:
    """One line as a mapping that has every field of the layout."""
    try:
        record = json.loads(line)
    except RecursionError as error:
        raise ValueError("the line is nested too deep; one object a line") from error
    except ValueError as error:
        shown = line[:60].decode(errors="replace").rstrip()
        raise ValueError(f"{shown!r} is not JSON ({error}); one object a line") from error
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, got {short(record)}")
    if missing := [field for field in layout.fields if field not in record]:
        fields = ", ".join(layout.fields)
        raise ValueError(f"no field {missing[0]!r}; it has {', '.join(record)[:200]}, needs {fields}")
    return record


def _row(
    number: int, record: Mapping[str, object], images: Images, contents: Contents, layout: Layout
) -> BenchmarkRow | None:
    """A record as a row, or `None` where the query's text or image is null."""
    image = _text(record, layout.image)
    text = _text(record, layout.text)
    if (layout.image and image is None) or (layout.text and text is None):
        return None
    names = record[layout.candidates]
    if not isinstance(names, list) or not names:
        raise ValueError(f"{layout.candidates!r} is {short(names)}; needs a list, the gold first")
    candidates = contents.select(names)
    if candidates is None:
        _check_names(names, layout)
    return BenchmarkRow(
        line=number,
        id=_id(record["id"]),
        image=None if image is None else images[image],
        text=text,
        candidates=contents.add(names) if candidates is None else candidates,
    )


def _check_names(names: list[Any], layout: Layout) -> None:
    for name in names:
        if not isinstance(name, str):
            raise ValueError(f"{layout.candidates!r} holds {short(name)}; needs strings only")
        if fault := fault_of(name):
            raise ValueError(f"a text of {layout.candidates!r} {fault}")


def _text(record: Mapping[str, object], field: str | None) -> str | None:
    value = record[field] if field else None
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{field!r} is {short(value)}; needs a string, or null to leave the row out")
    if value is not None and (fault := fault_of(value)):
        raise ValueError(f"{field!r} {fault}")
    return value


def _id(value: object) -> str:
    """A row's id as text.

    >>> _id(7), _id("a7")
    ('7', 'a7')
    """
    if isinstance(value, bool) or not isinstance(value, str | int) or is_blank(str(value)):
        raise ValueError(f"'id' is {short(value)}; needs a text or a whole number")
    if fault := fault_of(str(value)):
        raise ValueError(f"'id' {fault}")
    return str(value)


# The published benchmark: seven kinds of file, 29 files in all.
# Source: the data page swap-uniba/MMMEB-Benchmark and arXiv 2503.09313.
HUB_DATASET = "swap-uniba/MMMEB-Benchmark"
FIVE = ("en", "it", "es", "fr", "de")
TWO = ("en", "fr")


@dataclass(frozen=True, slots=True)
class Published:
    """One task's files; `queries` and `candidates` a query are (fewest, most), both inclusive."""

    task: str
    dataset: str
    kind: Kind
    languages: tuple[str, ...]
    maximum: int
    queries: tuple[int, int]
    candidates: tuple[int, int]

    def file(self, root: Path, language: str) -> Path:
        """Where one language's rows are."""
        return data_file(root, self.dataset, language, self.maximum, self.kind)


# "About 260" and "at most" of the source are ranges here.
TASKS: tuple[Published, ...] = (
    Published("XM3600I2TRanking", "xm", "i2t", FIVE, 1000, (3600, 3600), (1000, 1000)),
    Published("XM3600T2IRanking", "xm", "t2i", FIVE, 1000, (3600, 3600), (1000, 1000)),
    Published("XTD10I2TRanking", "xtd", "i2t", FIVE, 1000, (1000, 1000), (1000, 1000)),
    Published("XTD10T2IRanking", "xtd", "t2i", FIVE, 1000, (1000, 1000), (1000, 1000)),
    Published("ImageNetMultilingual", "imagenet-1k-val", "c", FIVE, 1000, (1000, 1000), (627, 632)),
    Published("MaXMRanking", "maxm_v1", "vqa", TWO, 100, (240, 280), (2, 100)),
    Published("Flickr30kEntitiesGrounding", "flickr30k_entities", "vg", TWO, 1000, (1, 1000), (2, 1000)),
)


def published(task: str) -> Published:
    """A task's row of the table.

    >>> published("MaXMRanking").languages
    ('en', 'fr')
    """
    return next(row for row in TASKS if row.task == task)


def files(root: Path) -> Iterator[tuple[Published, str, Path]]:
    """Every file that the benchmark has: task, language, where it is.

    >>> sum(1 for _ in files(Path("data")))
    29
    """
    for row in TASKS:
        for language in row.languages:
            yield row, language, row.file(root, language)
