"""Teacher targets on disk, by content: many processes may write, and a kill at any time loses nothing."""

import hashlib
import os
import uuid
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xvlm2vec_st.distillation.fingerprint import fingerprint
from xvlm2vec_st.distillation.states import Features
from xvlm2vec_st.distillation.teachers import Teacher
from xvlm2vec_st.encoding.batches import images_in, text_length
from xvlm2vec_st.images.hashing import image_key
from xvlm2vec_st.utils.finite import check_targets

KEY = 16  # bytes
CHECKSUM = 4  # bytes of a record's CRC-32


class TargetStore:
    """Vectors of one width by key, in files that are only appended to.

    Each process appends to its own file and reads all files, so no lock is needed. A kill can cut the last
    record of one file; that record is then ignored. A record is: key, fp32 values, CRC-32.

    This is not sqlite3, because many processes write at once, and its write-ahead log does not work on network
    folders.

    Args:
        folder: created if it is missing; one store per teacher.
        width: values per record.
    """

    def __init__(self, folder: str | Path, width: int) -> None:
        self.folder, self.width = Path(folder), width
        self.record = KEY + 4 * width + CHECKSUM
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file: Path | None = None
        self._read: dict[Path, int] = {}
        self._place: dict[bytes, tuple[Path, int]] = {}
        self.refresh()

    def __len__(self) -> int:
        return len(self._place)

    def refresh(self) -> None:
        """Read the keys that other processes have written since the last call."""
        for path in sorted(self.folder.glob("*.targets")):
            start, complete = self._read.get(path, 0), path.stat().st_size // self.record
            if complete > start:
                table = np.memmap(path, np.uint8, "r", shape=(complete, self.record))
                for number, key in enumerate(table[start:, :KEY], start):
                    self._place.setdefault(key.tobytes(), (path, number))
            self._read[path] = max(complete, start)

    def get(self, key: bytes) -> np.ndarray | None:
        """(width,) fp32, or None if the key is missing or its record is damaged."""
        if key not in self._place:
            return None
        path, number = self._place[key]
        with path.open("rb") as file:
            file.seek(number * self.record)
            record = file.read(self.record)
        body, checksum = record[:-CHECKSUM], record[-CHECKSUM:]
        if len(record) < self.record or zlib.crc32(body) != int.from_bytes(checksum, "little"):
            del self._place[key]  # it is computed again and appended
            return None
        return np.frombuffer(body[KEY:], np.float32).copy()

    def put(self, keys: Sequence[bytes], values: np.ndarray) -> None:
        """Append (len(keys), width) fp32 values; the values of one call are kept together or not at all.

        Raises:
            ValueError: the disk is full; earlier records stay complete.
        """
        records = b"".join(
            (body := key + row.tobytes()) + zlib.crc32(body).to_bytes(CHECKSUM, "little")
            for key, row in zip(keys, np.ascontiguousarray(values, np.float32), strict=True)
        )
        if self._file is None:
            self._file = self.folder / f"{os.getpid()}-{uuid.uuid4().hex[:12]}.targets"
        start = self._file.stat().st_size if self._file.exists() else 0
        try:
            with self._file.open("ab", buffering=0) as file:
                left = memoryview(records)
                while left:
                    left = left[file.write(left) :]
        except OSError as error:
            if self._file.exists():
                os.truncate(self._file, start)
            raise ValueError(
                f"the cache of teacher targets in {self.folder} cannot grow ({error.strerror}); free space or "
                f"use another folder, and resume: its {len(self)} targets are kept"
            ) from error
        for number, key in enumerate(keys, start // self.record):
            self._place.setdefault(key, (self._file, number))
        self._read[self._file] = (start + len(records)) // self.record


def input_key(item: Any) -> bytes:
    """A key for the content of an input: its text and the pixels of its images, wherever they come from.

    >>> input_key("red apple") == input_key({"text": "red apple"}), input_key("red apple") == input_key("pear")
    (True, False)
    """
    text = item if isinstance(item, str) else item.get("text")
    if text is not None and text_length(item) != len(text):
        raise ValueError(f"an input with {sorted(item)} is more than one text and images; it cannot be cached")
    images = [image_key(image) for image in images_in(item)]
    return hashlib.blake2b(repr((text, images)).encode(), digest_size=KEY).digest()


class CachedTeacher:
    """A teacher whose targets are kept on disk and computed only if they are missing.

    Reordered rows, more languages, other students and later runs use the same targets. If one row of a batch
    is missing, the whole batch is computed, as a live teacher would, so that a resumed run gets the same bits.
    In a distributed run with the student as its own teacher, all processes compute if one of them must.

    Args:
        teacher: the live teacher.
        folder: root of all caches; each teacher has a subfolder, named by its fingerprint.
    """

    # The inputs themselves are the keys.
    needs_inputs = True

    def __init__(self, teacher: Teacher, folder: str | Path) -> None:
        self.live = teacher
        self.model, self.parts, self.width = teacher.model, teacher.parts, teacher.width
        self.is_student = teacher.is_student
        self.store = TargetStore(
            Path(folder) / f"{fingerprint(teacher.model)}-{'-'.join(teacher.parts)}",
            teacher.width * len(teacher.parts),
        )

    def targets(self, features: Features, source: Tensor | None = None) -> dict[str, Tensor]:
        """Return stored targets, and compute missing ones: see `FrozenTeacher.targets`."""
        device = features["row"].device
        keys = [self.key(item, device) for item in features["inputs"]]
        vectors = [self.store.get(key) for key in keys]
        if any(vector is None for vector in vectors):
            self.store.refresh()
            vectors = [
                self.store.get(key) if vector is None else vector for key, vector in zip(keys, vectors, strict=True)
            ]
        missing = [number for number, vector in enumerate(vectors) if vector is None]
        if self._any_rank(bool(missing), device):
            live = self.live.targets(features, source)
            check_targets(self.model, live)
            values = torch.cat([live[part].float() for part in self.parts], dim=-1).numpy(force=True)
            new = list({keys[n]: n for n in reversed(missing)}.values())
            if new:
                self.store.put([keys[n] for n in new], values[new])
            for number in missing:
                vectors[number] = self.store.get(keys[number])
        table = torch.from_numpy(np.stack([v for v in vectors if v is not None])).to(device)
        return dict(zip(self.parts, table.split(self.width, dim=-1), strict=True))

    def key(self, item: Any, device: torch.device) -> bytes:
        """The key of an input; autocast changes the teacher's states, so its dtype is part of the key."""
        if not torch.is_autocast_enabled(device.type):
            return input_key(item)
        dtype = str(torch.get_autocast_dtype(device.type)).encode()
        return hashlib.blake2b(input_key(item) + dtype, digest_size=KEY).digest()

    def _any_rank(self, missing: bool, device: torch.device) -> bool:
        """Whether to compute: a sharded student runs in all processes or in none."""
        if not (self.is_student and torch.distributed.is_initialized()):
            return missing
        flag = torch.tensor(int(missing), device=device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        return bool(flag)
