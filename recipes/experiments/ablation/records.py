"""Finished runs, one line per run in a JSON Lines file that is only appended to."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

# Of each task and language: whether each query's right answer was first.
Hits = dict[tuple[str, str], np.ndarray]
Key = tuple[str, int, int]


@dataclass(frozen=True)
class Record:
    """A finished run.

    Attributes:
        variant: its name.
        seed: of the data order.
        updates: weight updates; 0 for what is not trained.
        operations: floating-point operations of the training, of teacher and student.
        seconds: of the training.
        settings: what decides the run beside variant, seed and updates.
        hits: "task/language" to hexadecimal digits, one bit per query.
        queries: "task/language" to the number of queries.
    """

    variant: str
    seed: int
    updates: int
    operations: int
    seconds: float
    settings: Mapping[str, Any]
    hits: Mapping[str, str]
    queries: Mapping[str, int]

    @property
    def key(self) -> Key:
        """What tells a run from others of a file."""
        return self.variant, self.seed, self.updates

    def cells(self) -> Hits:
        """The hits as arrays of bool."""
        return {
            tuple(name.rsplit("/", 1)): unpack_bits(digits, self.queries[name])  # type: ignore[misc]
            for name, digits in self.hits.items()
        }


def pack_bits(bits: np.ndarray) -> str:
    """Bits as hexadecimal digits.

    >>> pack_bits(np.array([True, False, True])), unpack_bits("a0", 3).tolist()
    ('a0', [True, False, True])
    """
    return np.packbits(bits.astype(bool)).tobytes().hex()


def unpack_bits(digits: str, count: int) -> np.ndarray:
    """The inverse of `pack_bits`: (count,) bool."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(digits), np.uint8), count=count).astype(bool)


def new_record(variant: str, seed: int, updates: int, hits: Hits, **more: Any) -> Record:
    """A record of a run's hits."""
    named = {f"{task}/{language}": bits for (task, language), bits in hits.items()}
    return Record(
        variant,
        seed,
        updates,
        hits={name: pack_bits(bits) for name, bits in named.items()},
        queries={name: len(bits) for name, bits in named.items()},
        **more,
    )


def read_records(path: Path) -> dict[Key, Record]:
    """The records of a file by key; a line that a kill cut off is ignored.

    Raises:
        ValueError: another line cannot be read.
    """
    records: dict[Key, Record] = {}
    lines = path.read_text("utf-8").split("\n") if path.is_file() else []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            record = Record(**json.loads(line))
        except (ValueError, TypeError) as error:
            if number == len(lines):  # without its newline
                break
            raise ValueError(f"{path}, line {number}: not a record ({error}); remove the line") from None
        records[record.key] = record
    return records


def append_record(path: Path, record: Record) -> None:
    """Add a finished run; a line that a kill cut off before is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        file.seek(0)
        whole = file.read()
        file.truncate(whole.rfind(b"\n") + 1)
        file.write(json.dumps(asdict(record), ensure_ascii=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
