"""Find the image files of a folder, and what tells whether one has changed."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# By their names: each other file of the folder would have to be opened, in every run.
SUFFIXES = frozenset(
    ".avif .bmp .dib .gif .heic .heif .hif .j2k .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tga .tif .tiff"
    " .webp".split()
)


class FileState(NamedTuple):
    """A file's path, relative to the root and with `/`, its bytes, and when it was last changed."""

    path: str
    size: int
    mtime_ns: int


class Problem(NamedTuple):
    """A file that is not indexed, and why; a folder that cannot be listed has a path that ends in `/`."""

    path: str
    reason: str


def find_files(root: Path) -> tuple[list[FileState], list[Problem]]:
    """The image files below a folder, and what cannot be one, both by path. Opens none.

    Names that begin with a dot are left out. A link to an image below the same folder counts as a file.
    """
    files, problems = [], []
    for item in walk(os.path.realpath(root)):
        (files if isinstance(item, FileState) else problems).append(item)
    return sorted(files), sorted(problems)


def walk(root: str) -> Iterator[FileState | Problem]:
    """Every image file and problem below a real path, in no order."""
    folders = [root]
    while folders:
        folder = folders.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            yield Problem(f"{relative(folder, root)}/", error.strerror or "cannot be read")
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            elif item := look_at(entry, root):
                yield item


def look_at(entry: os.DirEntry, root: str) -> FileState | Problem | None:
    """A file, or a link, of a folder; None if its name is not an image's."""
    name = relative(entry.path, root)
    try:
        if entry.is_symlink() and (reason := fault_of_link(entry.path, root)):
            return Problem(name, reason)
        if Path(entry.name).suffix.lower() not in SUFFIXES:
            return None
        if not entry.is_file():
            return Problem(name, "is not a regular file")
        state = entry.stat()
    except OSError as error:
        return Problem(name, error.strerror or "cannot be read")
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        return Problem(name, "its name is not UTF-8; rename it")
    return FileState(name, state.st_size, state.st_mtime_ns)


def fault_of_link(path: str, root: str) -> str | None:
    """Why a link is not followed; None if it is.

    Raises:
        OSError: it leads nowhere, or in a circle.
    """
    target = os.path.realpath(path, strict=True)
    if os.path.isdir(target):
        return "is a link to a folder, which is not followed"
    if not target.startswith(os.path.join(root, "")):
        return "is a link to a file outside the folder, which is not followed"
    return None


def relative(path: str, root: str) -> str:
    """A path below the root, with `/`.

    >>> relative("/photos/Rome/1.jpg", "/photos")
    'Rome/1.jpg'
    """
    return Path(os.path.relpath(path, root)).as_posix()
