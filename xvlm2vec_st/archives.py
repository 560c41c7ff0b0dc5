"""Pictures in zip, tar and parquet files, read by name; each process opens an archive once."""

import io
import os
import tarfile
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import pyarrow
import pyarrow.parquet as parquet

MARK = "::"
KINDS = (".zip", ".tar", ".parquet")
# What the formats' readers raise on a damaged file, an encrypted one (RuntimeError) among them.
BROKEN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    pyarrow.ArrowException,
    zlib.error,
    OSError,
    EOFError,
    RuntimeError,
)


class Archive(Protocol):
    """Pictures by name."""

    def read(self, name: str) -> bytes:
        """A picture's bytes; KeyError for a name that is not there."""


class Tar:
    """An uncompressed tar file: its names are listed once, then a picture is one seek."""

    def __init__(self, path: str) -> None:
        with tarfile.open(path, "r:") as archive:
            self.place = {m.name.removeprefix("./"): (m.offset_data, m.size) for m in archive if m.isfile()}
            end = archive.offset
        self.file = open(path, "rb")  # noqa: SIM115 - as long as the process
        # A header that is damaged ends the list without a word; the end itself is zeros.
        if any(os.pread(self.file.fileno(), tarfile.BLOCKSIZE, end)):
            raise tarfile.ReadError(f"no header at byte {end}")

    def read(self, name: str) -> bytes:
        """A picture's bytes."""
        start, size = self.place[name]
        return os.pread(self.file.fileno(), size, start)


class Parquet:
    """A parquet file of pictures: a column `image` of {path, bytes}, as `datasets` has it, or two columns.

    The names are read once; a picture takes its row group, of which the last one is kept.
    """

    def __init__(self, path: str) -> None:
        self.file = parquet.ParquetFile(path)
        columns = {field.name for field in self.file.schema_arrow}
        self.nested = "image" in columns
        if not self.nested and not {"path", "bytes"} <= columns:
            raise ValueError(
                f"{path}: columns {sorted(columns)}; pictures are a column 'image' of {{path, bytes}}, or "
                "columns 'path' and 'bytes'"
            )
        self.place: dict[str, tuple[int, int]] = {}
        for group in range(self.file.num_row_groups):
            names = self._group(group, "path")
            self.place |= {name: (group, row) for row, name in enumerate(names)}
        self.held: tuple[int, list] = (-1, [])

    def _group(self, group: int, part: str) -> list:
        table = self.file.read_row_group(group, columns=[f"image.{part}" if self.nested else part])
        found = table.column(0).to_pylist()
        return [row[part] for row in found] if self.nested else found

    def read(self, name: str) -> bytes:
        """A picture's bytes."""
        group, row = self.place[name]
        if self.held[0] != group:
            self.held = (group, self._group(group, "bytes"))
        return self.held[1][row]


@lru_cache(maxsize=64)
def archive(path: str, process: int) -> Archive:
    """An open archive; `process` keeps the file positions of forked workers apart."""
    kinds = {".zip": zipfile.ZipFile, ".tar": Tar, ".parquet": Parquet}
    return kinds[Path(path).suffix](path)


def picture_file(place: str) -> io.BytesIO | str:
    """What PIL opens for a path, or for ARCHIVE::NAME.

    Raises:
        FileNotFoundError: no such archive, or none of that name in it.
        ValueError: a damaged archive.
    """
    path, mark, name = place.partition(MARK)
    if not mark or Path(path).suffix not in KINDS:
        return place
    try:
        return io.BytesIO(archive(path, os.getpid()).read(name))
    except KeyError:
        raise FileNotFoundError(place) from None
    except FileNotFoundError:
        raise
    except BROKEN as error:
        raise ValueError(f"{path} is damaged ({error}); copy it or pack it anew") from error


def images_place(images: str | Path | None) -> Path | None:
    """The absolute path of the folder or archive that pictures are in.

    Raises:
        ValueError: neither a folder nor an archive of a kind that is read.
    """
    if images is None:
        return None
    if not Path(images).is_dir() and Path(images).suffix not in KINDS:
        raise ValueError(
            f"--images {images}: neither a folder nor a file of {', '.join(KINDS)} (a tar that is not "
            "compressed); unpack it, or pack it as one of these"
        )
    return Path(images).resolve()
