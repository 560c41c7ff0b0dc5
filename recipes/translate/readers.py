"""Reading files: lines of UTF-8, records of tables, parquet files and `datasets` datasets."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from datasets import DatasetDict, Image, load_dataset, load_from_disk

from xvlm2vec_st.utils.lines import byte_lines, decode_line

Record = Mapping[str, Any]


def lines_of(path: Path, *, blank: bool = False) -> Iterator[tuple[int, str]]:
    """(number, line) of a UTF-8 file, plain or gzip; without `blank`, blank lines are passed over.

    Raises:
        ValueError: another encoding, with the line and what to do; a damaged gzip file.
    """
    for number, line in byte_lines(path):
        text = decode_line(path, number, line)
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
    form = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if ".tsv" in path.suffixes else {"strict": True}
    rows = csv.DictReader(io.StringIO(text), **form)
    line = 1
    try:
        check_head(rows.fieldnames or [])
        line = rows.line_num + 1
        for record in rows:
            if any(record.get(None, ())):
                raise ValueError(f"line {line}: more cells than the head; quote what has a delimiter in it")
            yield record
            line = rows.line_num + 1
    except csv.Error as error:
        raise ValueError(f"line {line}: {error}; close each quote, double one inside a cell") from error


def check_head(names: Sequence[str]) -> None:
    """Refuse a head that has one name twice: which column is meant?

    Raises:
        ValueError: there is one, with its columns' numbers.

    >>> check_head(["id", "en", "it"])
    """
    for name in names:
        if name and names.count(name) > 1:
            places = ", ".join(str(place) for place, other in enumerate(names, 1) if other == name)
            raise ValueError(f"line 1: columns {places} are all named {name!r}; give each its own name")


def parquet_records(path: Path) -> Iterator[Record]:
    """Records of a parquet file, a thousand in memory at a time.

    Raises:
        ValueError: it is none.
    """
    try:
        file = pyarrow.parquet.ParquetFile(path)
        check_head(file.schema_arrow.names)
        for batch in file.iter_batches(1000):
            records = batch.to_pylist()
            yield from records
    except (pyarrow.ArrowException, OSError, UnicodeError, TypeError, OverflowError) as error:
        raise ValueError(f"no parquet file: {error}") from error


def dataset_records(name: str) -> Iterator[Record]:
    """Records of a `datasets` dataset: `NAME[:CONFIG][@SPLIT]`, or a folder of `save_to_disk`.

    Images come as their files' bytes. Without a split, the first.

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
