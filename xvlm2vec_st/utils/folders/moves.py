"""Paths, and moves of files in one step."""

import contextlib
import ctypes
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
HERE, EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of <fcntl.h> and <linux/fs.h>


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


def fixed(path: Path) -> str | None:
    """Why no folder can be moved to a path that is there; None where one can.

    >>> fixed(Path("/proc")), fixed(Path("missing"))
    ('is a mount point', None)
    """
    if not path.exists():
        return None
    # `os.path.ismount` misses bind mounts of one disk.
    mounts = Path("/proc/self/mountinfo")
    lines = mounts.read_text("utf-8", errors="replace").splitlines() if mounts.is_file() else []
    if os.path.ismount(path) or str(path).replace(" ", "\\040") in (line.split()[4] for line in lines):
        return "is a mount point"
    around = path.parent.stat()
    mine = os.geteuid() if hasattr(os, "geteuid") else 0
    if around.st_mode & stat.S_ISVTX and mine not in (0, around.st_uid, path.stat().st_uid):
        return f"belongs to another user, in {path.parent}, where users delete only what is theirs"
    if not os.access(path, os.W_OK):
        return "cannot be written (no permission)"
    return None


def exchange(one: Path, two: Path) -> bool:
    """Swap two paths in one step, which Python has no call for; False where the system has none.

    Raises:
        OSError: the system refuses.
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):  # not Linux
        return False
    if renameat2(HERE, os.fsencode(one), HERE, os.fsencode(two), EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):  # this disk has no such step
        return False
    raise OSError(number, os.strerror(number), str(two))


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
