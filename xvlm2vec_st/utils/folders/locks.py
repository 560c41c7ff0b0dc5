"""One run at a time writes an OUT: a lock that the system releases when the process dies."""

import errno
import logging
import os
import socket
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no flock: there two runs into one OUT do not see each other
    fcntl = None  # type: ignore[assignment]  # the usual form of an optional module

logger = logging.getLogger(__name__)

LOCK = ".partial.lock"
OWNER = "xvlm2vec_st run: "  # how a lock's content begins; another file of that name is the user's
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_held: set[int] = set()


def lock(out: Path, *, wait: bool, shared: bool) -> int:
    """Lock `out` by a file beside it; returns the file's descriptor, for `unlock`.

    `wait`: for another run to end. `shared`: admit others that share it too.

    Raises:
        ValueError: another run holds it; the file is the user's.
        OSError: the file cannot be written.
    """
    path = out.with_name(out.name + LOCK)
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            content = os.pread(handle, 200, 0).decode(errors="replace")
            if content and not content.startswith(OWNER):
                raise ValueError(f"{path} is not the lock of a run; move it away, or choose another OUT")
            _flock(handle, out, content.removeprefix(OWNER).strip(), wait=wait, shared=shared)
            # A run that has ended meanwhile deleted the file: then lock the one that is there now.
            if os.path.exists(path) and os.path.samestat(os.fstat(handle), os.stat(path)):
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"{OWNER}process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
                _held.add(handle)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _flock(handle: int, out: Path, holder: str, *, wait: bool, shared: bool) -> None:
    if fcntl is None:
        return
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        if not wait:
            raise ValueError(
                f"{out}: another run is writing it ({holder or 'just begun'}); wait for its end, or choose another OUT"
            ) from None
        logger.warning("%s: waiting for the run that is writing it (%s)", out, holder)
        fcntl.flock(handle, kind)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        logger.warning("%s: this disk has no locks; start no second run into it", out)


def unlock(handle: int, out: Path) -> None:
    """Delete the lock's file, unless others share it, and unlock."""
    _held.discard(handle)
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        last = True
    except OSError as error:
        last = not isinstance(error, BlockingIOError)  # else others share it
    if last:
        out.with_name(out.name + LOCK).unlink(missing_ok=True)
    os.close(handle)


def is_complete(folder: Path) -> bool:
    """Whether a folder of a cache is in place, and unlocked.

    A run that is killed between these two steps leaves its lock behind. To hold the folder's `Destination` removes
    the lock. Where the cache cannot be written, the lock is ignored.
    """
    locked = folder.with_name(folder.name + LOCK).exists() and os.access(folder.parent, os.W_OK)
    return folder.is_dir() and not locked


def _close_in_child() -> None:
    """A forked child, a loading worker say, must not hold the lock when its parent is dead."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
