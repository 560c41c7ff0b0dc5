"""The rows of a corpus as an Arrow file in the cache of `datasets`.

    CACHE/xvlm2vec_corpus/FILES-CONTENT-OPTIONS/…    FILES: hash of their paths; CONTENT: of what is in them

A folder of the same files with another content is a replaced version. It is deleted, unless a process has it open.
A process that has a folder open holds a shared lock of it to its end, because a loading worker or a copy of the dataset
may open the file again.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pyarrow
from datasets import ArrowBasedBuilder, BuilderConfig, Dataset, DatasetInfo, Features, Split, SplitGenerator

from xvlm2vec_st.utils.files import file_sha256
from xvlm2vec_st.utils.folders import remove

try:
    import fcntl
except ImportError:  # Windows has no flock: nobody knows who has a folder open, and nothing is deleted
    fcntl = None  # type: ignore[assignment]  # the usual form of an optional module

logger = logging.getLogger(__name__)

NAME = "xvlm2vec_corpus"
VERSION = "1"  # a new number when the same lines give other rows
# (device, inode) of folders that this process has open -> the descriptor that holds the lock.
_open: dict[tuple[int, int], int] = {}
Tables = Callable[[], Iterator[pyarrow.Table]]


@dataclass
class TablesConfig(BuilderConfig):
    """What `TablesBuilder` writes."""

    tables: Tables | None = None
    features: Features | None = None


class TablesBuilder(ArrowBasedBuilder):
    """`Dataset.from_generator` for tables instead of rows, which it would convert one by one."""

    BUILDER_CONFIG_CLASS = TablesConfig

    def _info(self) -> DatasetInfo:
        return DatasetInfo(features=self.config.features)

    def _split_generators(self, dl_manager: object) -> list[SplitGenerator]:
        return [SplitGenerator(name=Split.TRAIN)]

    def _generate_tables(self) -> Iterator[tuple[int, pyarrow.Table]]:
        yield from enumerate(self.config.tables())


def cached_rows(paths: Sequence[Path], options: Sequence[str], features: Features, tables: Tables) -> Dataset:
    """The rows of corpus files, memory-mapped; `tables` is called if the cache does not have them.

    Args:
        paths: the corpus files, absolute.
        options: what else decides the rows, as text.
        features: of the rows.
        tables: gives the rows.

    Raises:
        ValueError: what `tables` raises.
    """
    files, content = hash_of(map(str, paths)), hash_of(map(file_sha256, paths))
    config_id = f"{files}-{content}-{hash_of([VERSION, *options])}"
    builder = TablesBuilder(dataset_name=NAME, config_id=config_id, features=features, tables=tables)
    folder = Path(builder.cache_dir).parent  # the last part is a version
    keep_open(folder)
    try:
        builder.download_and_prepare()
    except Exception as error:  # datasets wraps what a builder raises
        cause = error.__cause__
        if isinstance(cause, ValueError):
            raise cause from None
        raise
    for other in folder.parent.glob(f"{files}-*"):
        if not other.name.startswith(f"{files}-{content}-"):
            delete_unused(other)
    return builder.as_dataset(split=Split.TRAIN)


def keep_open(folder: Path) -> None:
    """Make a folder, and mark it as in use to the end of this process."""
    while fcntl is not None:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
        with contextlib.suppress(OSError):  # a disk without locks, where `delete_unused` gets none either
            fcntl.flock(handle, fcntl.LOCK_SH)
        facts = os.fstat(handle)
        key = facts.st_dev, facts.st_ino
        # Another process may have deleted it before the lock was there.
        if folder.exists() and os.path.samestat(facts, folder.stat()) and key not in _open:
            _open[key] = handle
            return
        os.close(handle)
        if key in _open:
            return


def delete_unused(folder: Path) -> None:
    """Delete a folder of the cache, and its locks of `datasets`, unless a process has it open."""
    if fcntl is None:
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(folder)
        finally:
            os.close(handle)
        for lock in folder.parents[1].glob(f"*_{folder.name}_*.lock"):
            remove(lock)
    except OSError as error:
        # In use, already gone, a disk without locks, or the folder of another user: a copy too many harms nobody.
        logger.debug("%s stays: %s", folder, error)


def hash_of(texts: Iterable[str]) -> str:
    """Tells one list of texts from another.

    >>> hash_of(["a", "b"]) == hash_of(iter(["a", "b"])) != hash_of(["ab"])
    True
    """
    return sha256(repr(list(texts)).encode("utf-8", "surrogatepass")).hexdigest()[:16]
