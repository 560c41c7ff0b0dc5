"""Read images by name from zip, tar and parquet files; each process opens an archive once."""

import io
import lzma
import os
import posixpath
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import pyarrow
import pyarrow.compute
import pyarrow.parquet as parquet

from xvlm2vec_st.images.paths import ARCHIVES, split_place
from xvlm2vec_st.utils.texts import printable

# Exceptions of the readers for a damaged file, an encrypted one (RuntimeError), or an unknown compression
# (NotImplementedError).
BROKEN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    pyarrow.ArrowException,
    lzma.LZMAError,
    zlib.error,
    struct.error,
    OSError,
    EOFError,
    RuntimeError,
    IndexError,
    TypeError,
    OverflowError,
    UnicodeError,
    ValueError,
)
# A member that unpacks to more than LIMIT bytes, or to more than both RATIO times its size and SMALL bytes, is not an
# image: a file of zeros is packed to a thousandth, the most regular images in use to a fiftieth.
LIMIT = 512 * 2**20
SMALL = 64 * 2**20
RATIO = 100
LINKS = 40  # maximum length of a chain of links, as in Linux
MEMBERS = 20_000_000  # maximum names in memory


class UnfitMember(ValueError):
    """A member that is refused, although the archive is not damaged."""


class Archive(Protocol):
    """Reads images by name."""

    def read(self, name: str) -> bytes:
        """The bytes of an image.

        Raises:
            KeyError: there is no such member.
        """


def normalize_name(name: str) -> str:
    """A member's name as rows write it.

    >>> normalize_name("./a//b/../1.png")
    'a/1.png'
    """
    return posixpath.normpath(name)


def check_size(name: str, size: int, packed: int | None = None) -> None:
    """Refuse a member that would fill the memory.

    Raises:
        UnfitMember: it is too large, or compressed too well to be an image.
    """
    if size > LIMIT or (packed is not None and size > max(SMALL, RATIO * packed)):
        how = "" if packed is None else f" from {packed:,}"
        raise UnfitMember(f"{printable(name)} unpacks to {size:,} bytes{how}; images are smaller")


class MemberIndex:
    """Places of members by name. A name that several members share is refused."""

    def __init__(self) -> None:
        self.place: dict[str, object] = {}
        self.several: set[str] = set()

    def add(self, name: str, place: object) -> None:
        """Add a member.

        Raises:
            UnfitMember: there are too many.
        """
        name = normalize_name(name)
        if name in self.place:
            self.several.add(name)
        self.place[name] = place
        if len(self.place) > MEMBERS:
            raise UnfitMember(f"it has more than {MEMBERS:,} members; pack them into several archives")

    def __getitem__(self, name: str) -> Any:
        """The place of a member.

        Raises:
            KeyError: there is no such member.
            UnfitMember: several members have the name.
        """
        name = normalize_name(name)
        if name in self.several:
            raise UnfitMember(f"several members are named {printable(name)}; give each image its own name")
        return self.place[name]


class Zip:
    """A zip file."""

    def __init__(self, path: str) -> None:
        self.file = zipfile.ZipFile(path)
        self.names = MemberIndex()
        for member in self.file.infolist():
            if not member.is_dir():
                self.names.add(member.filename, member)

    def read(self, name: str) -> bytes:
        """An image's bytes."""
        member = self.names[name]
        check_size(name, member.file_size, member.compress_size)
        with self.file.open(member) as file:
            return file.read(member.file_size + 1)


class Tar:
    """An uncompressed tar file. Names are listed once; reading an image is one seek."""

    def __init__(self, path: str) -> None:
        self.names = MemberIndex()
        links: list[tuple[str, str]] = []
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.issparse():
                    raise tarfile.ReadError(f"{member.name} is stored with holes")
                if member.isfile():
                    self.names.add(member.name, (member.offset_data, member.size))
                elif member.islnk():
                    links.append((member.name, member.linkname))
                elif member.issym():
                    folder = posixpath.dirname(member.name)
                    links.append((member.name, posixpath.join(folder, member.linkname)))
            end = archive.offset
        # A link points at a member or at another link.
        targets = {normalize_name(name): normalize_name(target) for name, target in links}
        for name, target in links:
            place = target
            for _ in range(LINKS):
                if normalize_name(place) in self.names.place:
                    self.names.add(name, self.names.place[normalize_name(place)])
                    break
                place = targets.get(normalize_name(place), "")
        self.file = open(path, "rb")  # noqa: SIM115 - open until the process ends
        # tarfile silently stops at a damaged header; a complete archive ends in zeros.
        if any(os.pread(self.file.fileno(), tarfile.BLOCKSIZE, end)):
            raise tarfile.ReadError(f"no header at byte {end}")

    def read(self, name: str) -> bytes:
        """An image's bytes."""
        start, size = self.names[name]
        check_size(name, size)
        return os.pread(self.file.fileno(), size, start)


class Parquet:
    """A parquet file of images: a column `image` of {path, bytes}, as in `datasets`, or columns `path` and `bytes`.

    The names are read once. Reading an image loads its row group; the last row group is kept.
    """

    def __init__(self, path: str) -> None:
        self.file = parquet.ParquetFile(path)
        self.nested = "image" in self.file.schema_arrow.names
        self._check_schema(path)
        self.names = MemberIndex()
        for group in range(self.file.num_row_groups):
            for row, name in enumerate(self._group(group, "path").to_pylist()):
                if name is not None:
                    self.names.add(name, (group, row))
        self.cached: tuple[int, Any] = (-1, None)  # a row group and its bytes

    def _check_schema(self, path: str) -> None:
        schema = self.file.schema_arrow
        fields = {field.name: field.type for field in schema}
        if self.nested:
            kind = fields["image"]
            inner = range(kind.num_fields) if pyarrow.types.is_struct(kind) else ()
            fields = {kind.field(i).name: kind.field(i).type for i in inner}
        texts = pyarrow.types.is_string, pyarrow.types.is_large_string
        binaries = pyarrow.types.is_binary, pyarrow.types.is_large_binary
        if not ("path" in fields and any(test(fields["path"]) for test in texts)) or not (
            "bytes" in fields and any(test(fields["bytes"]) for test in binaries)
        ):
            raise UnfitMember(
                f"{path}: columns {sorted(schema.names)}; images are a column 'image' of {{path, bytes}}, "
                "or columns 'path' (texts) and 'bytes' (binary)"
            )

    def _group(self, group: int, part: str) -> pyarrow.ChunkedArray:
        table = self.file.read_row_group(group, columns=[f"image.{part}" if self.nested else part])
        column = table.column(0)
        return pyarrow.compute.struct_field(column, part) if self.nested else column

    def read(self, name: str) -> bytes:
        """An image's bytes."""
        group, row = self.names[name]
        if self.cached[0] != group:
            self._check_group(name, group)
            self.cached = (group, self._group(group, "bytes"))
        data = self.cached[1][row].as_py()
        if data is None:
            raise UnfitMember(f"{printable(name)} has no bytes")
        return data

    def _check_group(self, name: str, group: int) -> None:
        """Refuse a row group that is compressed too well to hold images."""
        metadata = self.file.metadata.row_group(group)
        columns = [metadata.column(i) for i in range(metadata.num_columns)]
        wanted = "image.bytes" if self.nested else "bytes"
        for column in columns:
            if column.path_in_schema == wanted:
                size, packed = column.total_uncompressed_size, column.total_compressed_size
                if size > max(SMALL, RATIO * packed):
                    check_size(f"the row group of {name}", size, packed)


@lru_cache(maxsize=64)
def archive(path: str, process: int, changed: int) -> Archive:
    """An open archive.

    `process` separates the file positions of forked workers. `changed` is the time of the last change: a changed
    archive is opened again.
    """
    kinds: dict[str, Callable[[str], Archive]] = {".zip": Zip, ".tar": Tar, ".parquet": Parquet}
    return kinds[Path(path).suffix](path)


def image_file(place: str) -> io.BytesIO | str:
    """What `PIL.Image.open` accepts for a path, or for ARCHIVE::NAME.

    Raises:
        FileNotFoundError: the archive or the member is missing.
        ValueError: the archive is damaged; the member is too large; several members have this name.
    """
    path, name = split_place(place)
    if name is None:
        return place
    try:
        return io.BytesIO(archive(path, os.getpid(), os.stat(path).st_mtime_ns).read(name))
    except KeyError:
        raise FileNotFoundError(place) from None
    except FileNotFoundError:
        raise
    except UnfitMember as error:
        raise ValueError(f"{path}: {error}") from error
    except BROKEN as error:
        reason = printable(error) or type(error).__name__
        raise ValueError(f"{path} is damaged ({reason}); copy it or pack it again") from error


def image_exists(place: str) -> bool:
    """Whether a path, or ARCHIVE::NAME, is a file.

    Raises:
        ValueError: see `image_file`.
    """
    if split_place(place)[1] is None:
        return os.path.isfile(place)
    try:
        image_file(place)
    except FileNotFoundError:
        return False
    return True


def resolve_image_root(images: str | Path | None) -> Path | None:
    """The absolute path of the folder or archive of the images.

    Raises:
        ValueError: it is neither a folder nor a supported archive.
    """
    if images is None:
        return None
    if not Path(images).is_dir() and Path(images).suffix not in ARCHIVES:
        raise ValueError(
            f"images is {images}: neither a folder nor a file of {', '.join(ARCHIVES)} (a tar that is not "
            "compressed); unpack it, or pack it as one of these"
        )
    return Path(images).resolve()
