"""Reading files: lines of UTF-8, records of parquet files and of `datasets` datasets."""

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
