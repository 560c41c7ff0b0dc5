"""OUT as a folder: checked and locked at the start, filled in one step at the end."""

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .locks import lock, unlock
from .moves import exchange, expanded, fixed, identity, inside, remove
from .objects import read_object

logger = logging.getLogger(__name__)

NOTE, FINAL, REPLACED, MOVING = "arguments.json", "final", "replaced", "moving.json"
DRAFT = f"{NOTE}.partial"


class Destination:
    """Where a result will lie: `out`, and the work folder beside it.

    Args:
        out: the new folder. A link is followed: what is behind it is filled.
        overwrite: replace what `out` holds.
        suffix: of the work folder's name.
        command: what writes; a work folder of another command is never touched.
        option: what the user calls `out`.
        again: what finishes a run whose `out` was taken meanwhile.
        after: what else to move when `out` is in place; a run after a kill calls it again.

    Raises:
        ValueError: no folder can have that path.

    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> place = Destination(root / "out", command="an example")
    >>> with place.hold():
    ...     if not place.begin({"size": 1}):
    ...         place.draft.mkdir()
    ...         place.finish(place.draft)
    >>> [path.name for path in root.iterdir()]
    ['out']
    """

    kind = "folder"

    def __init__(
        self,
        out: str | Path,
        *,
        overwrite: bool = False,
        suffix: str = ".partial",
        command: str = "",
        option: str = "--out",
        again: str = "run the same command again",
        after: Callable[[], object] = lambda: None,
    ) -> None:
        self.named = expanded(out)
        self.out = Path(os.path.realpath(self.named))
        if not self.out.name:
            raise ValueError(f"{out} cannot be replaced; choose another {option}")
        self.work = self.out.with_name(self.out.name + suffix)
        self.draft, self.final = self.work / f"{FINAL}.partial", self.work / FINAL
        self.overwrite, self.command, self.option = overwrite, command, option
        self.again, self.after = again, after
        # The settings of a run that was killed when `out` was in place already.
        self.ended: dict[str, Any] | None = None

    # ---- The start ----

    @contextlib.contextmanager
    def hold(self, *, wait: bool = False, shared: bool = False) -> Iterator["Destination"]:
        """Lock `out` until the end, and complete what a kill interrupted between two steps.

        `wait` for another run to end instead of an error; `shared`: admit others that share it too.

        Raises:
            ValueError: another run holds it; the folder around it cannot be written.
        """
        new = [parent for parent in self.out.parents if not parent.exists()]
        handle = None
        try:
            try:
                self.out.parent.mkdir(parents=True, exist_ok=True)
                handle = lock(self.out, wait=wait, shared=shared)
            except OSError as error:
                raise ValueError(
                    f"{self.named} cannot be written ({error.strerror}); choose another {self.option}"
                ) from error
            if not shared:
                self._recover()
            yield self
        except Exception as error:
            if not isinstance(error, ValueError) and (self.work / NOTE).is_file():
                error.add_note(f"the unfinished work stays in {self.work}: mend that, then {self.again}")
            raise
        finally:
            if handle is not None:
                unlock(handle, self.out)
            for parent in new:  # only the empty ones go
                with contextlib.suppress(OSError):
                    parent.rmdir()

    def check(self, inputs: Iterable[tuple[str, str | Path | None]] = ()) -> None:
        """Refuse an `out` that could not be filled at the end, or that holds one of the inputs.

        `inputs`: (option, path) of what the run reads or keeps.

        Raises:
            ValueError: it holds something, is a file, a mount point or a broken link, or holds an input.
        """
        named, out, other = self.named, self.out, f"choose another {self.option}"
        self.check_kind()
        for place, name in ((out, named), (self.work, self.work)):
            if reason := fixed(place):
                raise ValueError(f"{name} {reason}, and cannot be replaced; {other}")
        if not self.overwrite and out.is_dir() and any(out.iterdir()):
            raise ValueError(f"{named} exists and is not empty; {other}, or pass --overwrite")
        self.check_inputs(inputs)

    def check_kind(self) -> None:
        """Refuse a link that leads nowhere, the home of nobody, and a file where a folder is meant.

        Raises:
            ValueError: any of them.
        """
        named, other = self.named, f"choose another {self.option}"
        if named.is_symlink() and not named.exists():
            raise ValueError(f"{named} is a link to {os.readlink(named)}, which is missing; {other}")
        if named.parts[0].startswith("~"):
            raise ValueError(f"{named}: no such user; write ./{named} for a {self.kind} of that name")
        if self.out.exists() and self.out.is_dir() is not (self.kind == "folder"):
            raise ValueError(f"{named} is a {'folder' if self.out.is_dir() else 'file'}; {other}")

    def check_inputs(self, inputs: Iterable[tuple[str, str | Path | None]]) -> None:
        """Refuse inputs that lie in what the run replaces or deletes.

        Raises:
            ValueError: the first of them.
        """
        for option, path in inputs:
            for place in (self.out, self.work):
                if path and inside(path, place):
                    raise ValueError(
                        f"{option} {path} lies in {place}, which the run replaces; choose another {self.option}"
                    )

    def note(self) -> dict[str, Any] | None:
        """What the work folder was begun with; None where it was not.

        Raises:
            ValueError: a note that cannot be read.
        """
        path = self.work / NOTE
        advice = f"delete {self.work}, or choose another {self.option}"
        return read_object(path, advice) if path.is_file() else None

    def check_work(self, *early: str) -> bool:
        """Whether a work folder of this command is there.

        `early`: patterns of what a run writes before its note.

        Raises:
            ValueError: something else lies where the work would.
        """
        work, other = self.work, f"move it away, or choose another {self.option}"
        if not os.path.lexists(work):
            return False
        if work.is_symlink() or not work.is_dir():
            raise ValueError(f"{work} is a {'link' if work.is_symlink() else 'file'}; {other}")
        note = self.note()
        if note is None:
            foreign = [path.name for path in work.iterdir() if not any(map(path.match, (DRAFT, *early)))]
            if foreign:
                raise ValueError(
                    f"{work} holds an unfinished run of something else ({foreign[0]!r}, no {NOTE}); {other}"
                )
        elif note.get("command", "") != self.command:
            raise ValueError(f"{work} holds an unfinished run of {note.get('command') or 'training'}; {other}")
        return True

    def begin(
        self,
        settings: Mapping[str, Any],
        inputs: Iterable[tuple[str, str | Path | None]] = (),
        early: Iterable[str] = (),
    ) -> bool:
        """Check, and start again; True if an earlier run with these settings has ended in `out`.

        Raises:
            ValueError: the finished result of other settings waits; as `check` and `check_work`.
        """
        settings = json.loads(json.dumps({"command": self.command, **settings}))
        if self.ended == settings:
            return True
        self.check(inputs)
        if self.check_work(*early):
            if self.waiting() and not self.overwrite:
                if self.note() == settings:
                    self.finish(self.final)
                    return True
                raise ValueError(
                    f"{self.final} is the finished result of an earlier run; move it away, or pass "
                    "--overwrite to drop it"
                )
            remove(self.work)
        write_note(self.work, settings)
        return False

    # ---- The end ----

    def waiting(self) -> bool:
        """Whether a finished result waits in the work folder for its move into place."""
        moving = self.work / MOVING
        return self.final.exists() and moving.is_file() and moving.read_text(errors="replace") == identity(self.final)

    def abandon(self) -> None:
        """Drop the work of a run that failed, unless a finished result waits in it."""
        if not self.waiting():
            remove(self.work)

    def finish(self, finished: Path) -> None:
        """Move the finished folder into `out` in one step, and drop the work folder.

        Raises:
            ValueError: `out` was taken meanwhile, and is left as it is, or cannot be replaced; the result
                stays in the work folder.
        """
        try:
            if finished != self.work:
                if finished != self.final:
                    remove(self.final)
                (self.work / MOVING).write_text(identity(finished))
                finished = finished.rename(self.final)
            if self.overwrite and os.path.lexists(self.out):
                self._replace(finished)
            else:
                # A folder replaces nothing but an empty folder: the system refuses all else in this step.
                finished.rename(self.out)
        except OSError as error:
            if not os.path.lexists(self.out) and (self.work / REPLACED).exists():
                (self.work / REPLACED).rename(self.out)
            raise ValueError(self.taken(self.named, finished, error.strerror)) from error
        self._end()

    def taken(self, target: Path, finished: Path, reason: str | None) -> str:
        """The message for a result that is finished, and cannot be moved to `target`."""
        why = f"cannot be replaced ({reason})"
        if not self.overwrite and os.path.lexists(target):
            why = "appeared while this ran, and is left as it is"
        return (
            f"{target} {why}; the result is whole in {finished}: move it where you want it, or move "
            f"{target} away and {self.again}"
        )

    def _replace(self, finished: Path) -> None:
        if not exchange(finished, self.out):
            remove(self.work / REPLACED)
            self.out.rename(self.work / REPLACED)
            finished.rename(self.out)

    def _end(self) -> None:
        self.after()
        try:
            # What says that `out` is in place goes last.
            last = [self.work / NOTE, self.work / MOVING]
            for path in [*(p for p in self.work.glob("*") if p not in last), *last, self.work]:
                remove(path)
        except OSError as error:
            logger.warning("%s is finished; delete %s (%s)", self.named, self.work, error.strerror)

    def _recover(self) -> None:
        """Complete the move of a run that was killed in it, or put back what it was about to replace."""
        moving = self.work / MOVING
        if self.work.is_symlink() or not moving.is_file():
            with contextlib.suppress(OSError):  # not there, or not empty
                self.work.rmdir()
            return
        moved = moving.read_text(errors="replace")
        if not os.path.lexists(self.out):
            for path in (self.work / REPLACED, self.final):
                if path.exists() and identity(path) != moved:
                    path.rename(self.out)
                    break
        elif moved == identity(self.out):
            self.ended = self.note() or {}
            self._end()


def write_note(work: Path, settings: Mapping[str, Any]) -> None:
    """Say whose a work folder is, in one step."""
    work.mkdir(parents=True, exist_ok=True)
    (work / DRAFT).write_text(json.dumps(settings, indent=2) + "\n")
    (work / DRAFT).rename(work / NOTE)
