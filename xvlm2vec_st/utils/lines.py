"""Lines of files: UTF-8, plain or gzip; other encodings and packings are named."""

import codecs
import gzip
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

GZIP = b"\x1f\x8b"
# How other files begin, and what to do with them.
FOREIGN = (
    (codecs.BOM_UTF32_LE, "UTF-32", "convert it: iconv -f utf-32 -t utf-8 {path}"),
    (codecs.BOM_UTF32_BE, "UTF-32", "convert it: iconv -f utf-32 -t utf-8 {path}"),
    (codecs.BOM_UTF16_LE, "UTF-16", "convert it: iconv -f utf-16 -t utf-8 {path}"),
    (codecs.BOM_UTF16_BE, "UTF-16", "convert it: iconv -f utf-16 -t utf-8 {path}"),
    (b"PK\x03\x04", "a zip file", "unpack it"),
    (b"BZh", "a bzip2 file", "unpack it: bunzip2 {path}"),
    (b"\xfd7zXZ\0", "an xz file", "unpack it: unxz {path}"),
    (b"\x28\xb5\x2f\xfd", "a zstandard file", "unpack it: unzstd {path}"),
)
# Text is packed to a third or a tenth; a file of zeros to a thousandth.
RATIO = 200
FREE = 64 * 2**20  # bytes that the ratio does not look at


def byte_lines(path: str | Path, *, any_encoding: bool = False) -> Iterator[tuple[int, bytes]]:
    """(number, line) of a file, unpacked where it is gzip; a byte order mark is no part of the first line.

    With `any_encoding`, for XML, which tells its own, UTF-16 is no error.

    Raises:
        ValueError: UTF-16 or another packing; a damaged gzip file, or one that grows out of proportion.
    """
    with open(path, "rb") as file:
        head = file.read(8)
        file.seek(0)
        encodings = () if any_encoding else FOREIGN
        if not head.startswith(GZIP):
            check_head(path, head, encodings)
            yield from numbered(path, file, encodings)
            return
        size = os.fstat(file.fileno()).st_size
        try:
            with gzip.open(file) as unpacked:
                yield from numbered(path, unpacked, encodings, max(FREE, RATIO * size))
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: a damaged gzip file ({error}); copy it or pack it anew") from error


def numbered(
    path: str | Path, file: BinaryIO, encodings: tuple, limit: int | None = None
) -> Iterator[tuple[int, bytes]]:
    """(number, line) of an open file of at most `limit` bytes.

    Raises:
        ValueError: there are more.
    """
    number, left = 0, -1 if limit is None else limit + 1
    while line := file.readline(left):
        number += 1
        if number == 1 and encodings:
            line = line.removeprefix(codecs.BOM_UTF8)
            check_head(path, line[:8], encodings)
        if limit is not None:
            left -= len(line)
            if left <= 0:
                raise ValueError(
                    f"{path}, line {number}: unpacks to more than {RATIO} times its size; unpack it yourself "
                    "if you trust it"
                )
        yield number, line


def check_head(path: str | Path, head: bytes, encodings: tuple) -> None:
    """Refuse what is no UTF-8 by its first bytes.

    Raises:
        ValueError: its kind, and what to do.
    """
    for start, kind, advice in encodings:
        if head.startswith(start):
            raise ValueError(f"{path} is {kind}, not UTF-8; {advice.format(path=path)}")
    if encodings and b"\0" in head[:4]:
        raise ValueError(
            f"{path} is UTF-16 or no text, not UTF-8; convert it: iconv -f utf-16le -t utf-8 {path}"
        )


def decoded(path: str | Path, number: int, line: bytes) -> str:
    """A line as text.

    Raises:
        ValueError: not UTF-8, with the byte and its column.
    """
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}, line {number}: not UTF-8 (byte 0x{line[error.start]:02x} at column {error.start + 1}); "
            f"convert it: iconv -f latin1 -t utf-8 {path}"
        ) from error
