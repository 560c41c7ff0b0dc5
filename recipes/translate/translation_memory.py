"""What was translated, on disk: one line a batch, each text with its language and its translation.

Nothing is kept by its place. A line that a kill or a full disk cut off is not JSON: it is passed
over, and its batch is done again. Lines of several processes add up to one memory.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from xvlm2vec_st.utils.folders import read_object

Key = tuple[str, str]  # language, English text


class Memory:
    """The translations of a work folder, and the file that this process adds to.

    Args:
        folder: where the lines of all processes lie, `shard-1-of-4.jsonl` and so on.
        shard: this process' number, from 0, and how many there are.
    """

    def __init__(self, folder: Path, shard: tuple[int, int] = (0, 1)) -> None:
        self.folder = folder
        self.path = folder / f"shard-{shard[0] + 1}-of-{shard[1]}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        self.known = read_memory([folder])

    def add(self, code: str, texts: Sequence[str], translations: Sequence[str | None]) -> None:
        """Keep a batch: on disk first, whole or not at all.

        Raises:
            ValueError: the disk is full, or does not take it for another reason.
        """
        pairs = list(zip(texts, translations, strict=True))
        line = json.dumps({"to": code, "texts": pairs}, ensure_ascii=False) + "\n"
        append_line(self.path, line)
        self.known |= {(code, text): translation for text, translation in pairs}


def append_line(path: Path, line: str) -> None:
    """Append a line and wait until the disk has it; a torn line before it is closed off first.

    Raises:
        ValueError: what the system says, and that the same command continues where it stopped.
    """
    data = line.encode()
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            if torn(handle):
                data = b"\n" + data
            while data:
                data = data[os.write(handle, data) :]
            if os.path.isfile(path):  # a device or a pipe has nothing to wait for
                os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise ValueError(
            f"{path}: {error.strerror}; what was translated before is kept: make room, then run the same command again"
        ) from error


def torn(handle: int) -> bool:
    """Whether a file ends in the middle of a line."""
    size = os.fstat(handle).st_size
    return size > 0 and os.pread(handle, 1, size - 1) != b"\n"


def read_memory(places: Iterable[Path]) -> dict[Key, str | None]:
    """All translations in folders and files; torn lines are passed over.

    Raises:
        ValueError: a place that is not there, or a line of another kind of file.
    """
    known: dict[Key, str | None] = {}
    for place in places:
        if not place.exists():
            raise ValueError(f"{place}: no such memory; give the folder OUT.work of another run, or a file of it")
        for path in sorted(place.glob("shard-*.jsonl")) if place.is_dir() else [place]:
            with path.open("rb") as lines:
                for number, line in enumerate(lines, 1):
                    try:
                        known |= batch_of(line)
                    except ValueError as error:
                        raise ValueError(f"{path}, line {number}: {error}") from error
    return known


def batch_of(line: bytes) -> dict[Key, str | None]:
    """The translations of one line; of a torn one, none.

    >>> batch_of(b'{"to": "it", "texts": [["dog", "cane"]]}')
    {('it', 'dog'): 'cane'}
    >>> batch_of(b'{"to": "it", "texts": [["dog", "ca')
    {}
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    code, texts = (record.get("to"), record.get("texts")) if isinstance(record, dict) else (None, None)
    if not isinstance(code, str) or not isinstance(texts, list) or not all(map(_is_pair, texts)):
        raise ValueError(
            "no batch of a translation memory ('to', 'texts'); give the folder OUT.work of another run, or a "
            "file of it, not a corpus (pass that with --corpus)"
        )
    return {(code, text): translation for text, translation in texts}


def _is_pair(entry: object) -> bool:
    """Whether it is a text and its translation, or None for an unfinished one."""
    match entry:
        case [str(), str() | None]:
            return True
    return False


def write_whole(path: Path, lines: Iterable[str]) -> None:
    """Write a file that appears whole or not at all.

    Raises:
        ValueError: what the system says, and what to do.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ValueError(
            f"{path}: {error.strerror}; the translations are kept: make room, then run the same command again"
        ) from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def read_run(folder: Path) -> dict[str, str | int]:
    """What a work folder was begun with; nothing where it was not."""
    path = folder / "run.json"
    return read_object(path, "delete it, or the whole folder with --overwrite") if path.is_file() else {}


def find_changed_settings(before: Mapping[str, str | int], settings: Mapping[str, str | int]) -> list[str]:
    """The settings that a run was begun with otherwise.

    >>> find_changed_settings({"translator": "a", "corpus it": "x"}, {"translator": "b", "corpus it": "x", "beams": 1})
    ['translator']
    """
    return [key for key in settings if key in before and settings[key] != before[key]]


def check_run(folder: Path, settings: Mapping[str, str | int]) -> None:
    """Note what a run is, or refuse to go on with one that is another; languages may be added.

    Raises:
        ValueError: translator, corpus or another setting differs from what the folder was begun with.
    """
    before = read_run(folder)
    if keys := find_changed_settings(before, settings):
        listed = ", ".join(f"{key} {before[key]!r} -> {settings[key]!r}" for key in keys)
        raise ValueError(
            f"{folder} was started with other settings ({listed}); run with the same, pass --overwrite to drop it, or "
            f"take what it has over into another --out with --memory {folder}"
        )
    if settings.keys() - before.keys():
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "run.json", [json.dumps(before | dict(settings), indent=2) + "\n"])
