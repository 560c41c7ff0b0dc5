"""Results that are whole or absent: OUT is checked and locked at the start, and filled in one step.

    OUT.partial.lock      held by the run that writes OUT; the system releases it when the process dies
    OUT.partial           the work; arguments.json in it says whose it is
    OUT.partial/final     the finished result, until it becomes OUT
    OUT.partial/replaced  what OUT was, while it is replaced

Needs Python alone, and imports relatively: `mmmeb_tasks.folders` loads it without the package around it.
"""

import contextlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .locks import lock, unlock
from .moves import expanded, identity, inside, is_mount, move_file, remove, whole_file

__all__ = ["Destination", "expanded", "move_file", "remove", "whole_file", "write_note"]

logger = logging.getLogger(__name__)

NOTE, FINAL, REPLACED, MOVING = "arguments.json", "final", "replaced", "moving.json"
DRAFT = f"{NOTE}.partial"


class Destination:
    """Where a result will lie: `out`, and the work folder beside it.

    Args:
        out: the new folder or file. A link is followed: what is behind it is filled.
        overwrite: replace what `out` holds.
        suffix: of the work folder's name.
        file: whether `out` is a file.
        command: what writes; a work folder of another command is never touched.
        option: what the user calls `out`.
        again: what finishes a run whose `out` was taken meanwhile.

    Raises:
        ValueError: no folder can have that path.

    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> place = Destination(root / "out", command="an example")
    >>> with place.hold():
    ...     place.check()
    ...     if not place.start({"size": 1}):
    ...         place.draft.mkdir()
    ...         place.finish(place.draft)
    >>> [path.name for path in root.iterdir()]
    ['out']
    """

    def __init__(
        self,
        out: str | Path,
        *,
        overwrite: bool = False,
        suffix: str = ".partial",
        file: bool = False,
        command: str = "",
        option: str = "--out",
        again: str = "run the same command again",
    ) -> None:
        self.named = expanded(out)
        self.out = Path(os.path.realpath(self.named))
        if not self.out.name:
            raise ValueError(f"{out} cannot be replaced; choose another {option}")
        self.work = self.out.with_name(self.out.name + suffix)
        self.draft = self.work / f"{FINAL}.partial"
        self.overwrite, self.file, self.command = overwrite, file, command
        self.option, self.again = option, again

    @contextlib.contextmanager
    def hold(self, *, wait: bool = False, shared: bool = False) -> Iterator["Destination"]:
        """Lock `out` until the end, and complete what a kill interrupted between two steps.

        `wait` for another run to end instead of an error; `shared`: admit others that share it too.

        Raises:
            ValueError: another run holds it; the folder around it cannot be written.
        """
        new = [parent for parent in self.out.parents if not parent.exists()]
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            handle = lock(self.out, wait=wait, shared=shared)
        except OSError as error:
            raise ValueError(
                f"{self.named} cannot be written ({error.strerror}); choose another {self.option}"
            ) from error
        try:
            self._recover()
            yield self
        finally:
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
        out, named, other = self.out, self.named, f"choose another {self.option}"
        if named.is_symlink() and not named.exists():
            raise ValueError(f"{named} is a link to {os.readlink(named)}, which is missing; {other}")
        if named.parts[0].startswith("~"):
            raise ValueError(f"{named}: no such user; write ./{named} for a folder of that name")
        if out.exists() and out.is_dir() is self.file:
            raise ValueError(f"{named} is a {'folder' if self.file else 'file'}; {other}")
        for place, what in ((out, named), (self.work, self.work)):
            if is_mount(place):
                raise ValueError(f"{what} is a mount point, which cannot be replaced; {other}, in it perhaps")
        if not self.overwrite and self.file and out.exists():
            raise ValueError(f"{named} exists; {other}, or pass --overwrite")
        if not self.overwrite and out.is_dir() and any(out.iterdir()):
            raise ValueError(f"{named} exists and is not empty; {other}, or pass --overwrite")
        if out.is_dir() and not os.access(out, os.W_OK):
            raise ValueError(f"{named} cannot be written (no permission); {other}")
        for option, path in inputs:
            for place in (out, self.work):
                if path and inside(path, place):
                    raise ValueError(f"{option} {path} lies in {place}, which the run replaces; {other}")

    def note(self) -> dict[str, Any] | None:
        """What the work folder was begun with; None where it was not.

        Raises:
            ValueError: a note that cannot be read.
        """
        path = self.work / NOTE
        try:
            note = json.loads(path.read_text("utf-8")) if path.is_file() else None
        except ValueError:
            note = False
        if note is not None and not isinstance(note, dict):
            raise ValueError(f"{path} cannot be read; delete {self.work}, or choose another {self.option}")
        return note

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
            raise ValueError(
                f"{work} holds an unfinished run of {note.get('command') or 'training'}; {other}"
            )
        return True

    def start(self, settings: Mapping[str, Any]) -> bool:
        """Begin anew; whether an earlier run with these settings was finished, and is now moved into `out`.

        Raises:
            ValueError: the finished result of other settings waits there; as `check_work`.
        """
        settings = json.loads(json.dumps({"command": self.command, **settings}))
        if self.check_work():
            if (self.work / FINAL).exists() and not self.overwrite:
                if self.note() == settings:
                    self.finish(self.work / FINAL)
                    return True
                raise ValueError(
                    f"{self.work / FINAL} is the finished result of an earlier run; move it away, or "
                    "pass --overwrite to drop it"
                )
            remove(self.work)
        write_note(self.work, settings)
        return False

    def abandon(self) -> None:
        """Drop the work of a run that failed, unless a finished result waits in it."""
        if not (self.work / FINAL).exists():
            remove(self.work)

    def _recover(self) -> None:
        moving = self.work / MOVING
        if self.file or self.work.is_symlink() or not moving.is_file():
            return
        if not os.path.lexists(self.out):
            if (self.work / REPLACED).exists():
                (self.work / REPLACED).rename(self.out)
        elif moving.read_text() == identity(self.out):
            remove(self.work)

    def finish(self, finished: Path) -> None:
        """Move the finished folder into `out` in one step, and drop the work folder.

        Raises:
            ValueError: `out` was taken meanwhile, and is left as it is, or cannot be replaced; the result
                stays in the work folder.
        """
        replaced = self.work / REPLACED
        try:
            if finished not in (self.work / FINAL, self.work):
                remove(self.work / FINAL)
                finished = finished.rename(self.work / FINAL)
            if finished != self.work:
                (self.work / MOVING).write_text(identity(finished))
            if self.overwrite and os.path.lexists(self.out):
                remove(replaced)
                self.out.rename(replaced)
            # A folder replaces nothing but an empty folder: the system refuses all else in the same step.
            finished.rename(self.out)
        except OSError as error:
            if replaced.exists() and not os.path.lexists(self.out):
                replaced.rename(self.out)
            raise ValueError(self._taken(self.named, finished, error)) from error
        try:
            remove(self.work)
        except OSError as error:
            logger.warning("%s is finished; delete %s (%s)", self.named, self.work, error.strerror)

    def finish_file(self, finished: Path, target: Path, *, replace: bool) -> None:
        """Move a finished file to `target` in one step.

        Raises:
            ValueError: `target` is there and not to be replaced, or cannot be; `finished` stays.
        """
        try:
            move_file(finished, target, replace=replace)
        except OSError as error:
            raise ValueError(self._taken(target, finished, error)) from error

    def _taken(self, target: Path, finished: Path, error: OSError) -> str:
        why = f"cannot be replaced ({error.strerror})"
        if not self.overwrite and os.path.lexists(target):
            why = "appeared while this ran, and is left as it is"
        return (
            f"{target} {why}; the result is whole in {finished}: move it where you want it, or move "
            f"{target} away and {self.again}"
        )


def write_note(work: Path, settings: Mapping[str, Any]) -> None:
    """Say whose a work folder is, in one step."""
    work.mkdir(parents=True, exist_ok=True)
    (work / DRAFT).write_text(json.dumps(settings, indent=2) + "\n")
    (work / DRAFT).rename(work / NOTE)
