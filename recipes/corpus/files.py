"""Reading files: lines of UTF-8, records of tables, parquet files and `datasets` datasets."""

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from datasets import DatasetDict, Image, load_dataset, load_from_disk

Record = Mapping[str, Any]


def lines_of(path: Path, *, blank: bool = False) -> Iterator[tuple[int, str]]:
    """(number, line) of a UTF-8 file; without `blank`, blank lines are passed over.

    Raises:
        ValueError: another encoding, with the line and what to do.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}, line {number}: not UTF-8 (byte 0x{line[error.start]:02x} at column "
                    f"{error.start + 1}); convert it: iconv -f latin1 -t utf-8 {path}"
                ) from error
            if blank or text.strip():
                yield number, text


def table_records(path: Path) -> Iterator[Record]:
    """Records of a CSV or TSV file with a head. In TSV a quote is a character like others.

    Raises:
        ValueError: quotes that are not closed or not doubled, too many cells; with the record's line.
    """
    text = "".join(line for _, line in lines_of(path, blank=True))
    csv.field_size_limit(2**31 - 1)  # the default is 131,072 characters
    # Without `strict`, a quote that is not closed takes in all rows to the file's end.
    form = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix == ".tsv" else {"strict": True}
    rows = csv.DictReader(io.StringIO(text), **form)
    line = 1
    try:
        rows.fieldnames  # noqa: B018 - reads the head
        line = rows.line_num + 1
        for record in rows:
            if any(record.get(None, ())):
                raise ValueError(f"line {line}: more cells than the head; quote what has a delimiter in it")
            yield record
            line = rows.line_num + 1
    except csv.Error as error:
        raise ValueError(f"line {line}: {error}; close each quote, double one inside a cell") from error


def parquet_records(path: Path) -> Iterator[Record]:
    """Records of a parquet file, a thousand in memory at a time.

    Raises:
        ValueError: it is none.
    """
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(1000):
            yield from batch.to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"no parquet file: {error}") from error


def dataset_records(name: str) -> Iterator[Record]:
    """Records of a `datasets` dataset: `NAME[:CONFIG][@SPLIT]`, or a folder of `save_to_disk`.

    Pictures come as their files' bytes. Without a split, the first.

    Raises:
        ValueError: no such split.
    """
    place, _, split = name.partition("@")
    place, _, config = place.partition(":")
    data = load_from_disk(place) if Path(place).is_dir() else load_dataset(place, config or None)
    if isinstance(data, DatasetDict):
        split = split or next(iter(data))
        if split not in data:
            raise ValueError(f"{name}: no split {split!r}; it has {', '.join(data)}")
        data = data[split]
    for column, feature in data.features.items():
        if isinstance(feature, Image):
            data = data.cast_column(column, Image(decode=False))
    yield from data
