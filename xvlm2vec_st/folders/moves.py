"""Paths, and moves of files in one step."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)


def expanded(path: str | Path) -> Path:
    """A path with `~` replaced by the home folder, as no shell does in `--out=~/m`.

    >>> expanded("~/m") == Path.home() / "m", expanded("a/~").as_posix()
    (True, 'a/~')
    """
    return Path(os.path.expanduser(path))


def identity(path: Path) -> str:
    """What stays the same when a folder is renamed."""
    return f"{path.stat().st_dev}/{path.stat().st_ino}"


def inside(path: str | Path, folder: Path) -> bool:
    """Whether a path is a folder or lies in it, links followed.

    >>> inside("a/b", Path("a")), inside("a", Path("a")), inside("ab", Path("a"))
    (True, True, False)
    """
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def is_mount(path: Path) -> bool:
    """Whether a disk or a folder is mounted there; `os.path.ismount` misses bind mounts of one disk."""
    mounts = Path("/proc/self/mountinfo")
    lines = mounts.read_text("utf-8", errors="replace").splitlines() if mounts.is_file() else []
    return os.path.ismount(path) or str(path).replace(" ", "\\040") in (line.split()[4] for line in lines)


def remove(path: Path) -> None:
    """Delete a file, a link (not what is behind it) or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def move_file(finished: Path, target: Path, *, replace: bool) -> None:
    """Rename a file in one step; without `replace`, nothing that is at `target` is touched.

    Raises:
        OSError: it is there; the system refuses.
    """
    if replace:
        finished.replace(target)
        return
    try:
        os.link(finished, target)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        target.open("x").close()  # a disk without links: an empty file keeps the place
        finished.replace(target)
    else:
        finished.unlink()


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Where to write a file, which becomes `path` in one step at the end; after an error nothing stays.

    >>> with whole_file(Path("a.md")) as part:
    ...     part.name, part.write_text("whole")
    ('a.part.md', 5)
    >>> Path("a.md").unlink()
    """
    part = path.with_name(f"{path.stem}.part{path.suffix}")
    try:
        yield part
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
