"""Read the lines of UTF-8 files, plain or gzip; errors name other encodings and packings."""

import codecs
import gzip
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

GZIP = b"\x1f\x8b"
# First bytes of other files, and what to do with them.
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
# gzip packs text to a third or a tenth of its size, and a file of zeros to a thousandth.
RATIO = 200
FREE = 64 * 2**20  # bytes to which the ratio does not apply


def byte_lines(path: str | Path, *, any_encoding: bool = False) -> Iterator[tuple[int, bytes]]:
    """Yield (number, line) of a file, unpacked if it is gzip, without a byte order mark.

    `any_encoding` accepts UTF-16, for XML, which declares its encoding.

    Raises:
        ValueError: the file is UTF-16 or packed otherwise; it is a damaged gzip file, or unpacks to far more than its
            size.
    """
    with open(path, "rb") as file:
        head = file.read(8)
        file.seek(0)
        encodings = () if any_encoding else FOREIGN
        if not head.startswith(GZIP):
            check_head(path, head, encodings)
            yield from number_lines(path, file, encodings)
            return
        size = os.fstat(file.fileno()).st_size
        try:
            with gzip.open(file) as unpacked:
                yield from number_lines(path, cast(BinaryIO, unpacked), encodings, max(FREE, RATIO * size))
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: a damaged gzip file ({error}); copy it or pack it again") from error


def number_lines(
    path: str | Path, file: BinaryIO, encodings: tuple, limit: int | None = None
) -> Iterator[tuple[int, bytes]]:
    """Yield (number, line) of an open file of at most `limit` bytes.

    Raises:
        ValueError: the file has more bytes.
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
    """Check the first bytes of a file.

    Raises:
        ValueError: it is not UTF-8; the message names its kind, and what to do.
    """
    for start, kind, advice in encodings:
        if head.startswith(start):
            raise ValueError(f"{path} is {kind}, not UTF-8; {advice.format(path=path)}")
    if encodings and b"\0" in head[:4]:
        raise ValueError(f"{path} is UTF-16 or not a text, not UTF-8; convert it: iconv -f utf-16le -t utf-8 {path}")


def decode_line(path: str | Path, number: int, line: bytes) -> str:
    """Decode a line.

    Raises:
        ValueError: it is not UTF-8; with the byte and its column.
    """
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}, line {number}: not UTF-8 (byte 0x{line[error.start]:02x} at column {error.start + 1}); "
            f"convert it: iconv -f latin1 -t utf-8 {path}"
        ) from error
