"""OUT as a file, with other files beside it: each appears in one step, and no file of the user's goes."""

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .destination import MOVING, Destination
from .moves import identity, move_file, remove, whole_file
from .objects import read_object


class FileDestination(Destination):
    """A `Destination` that is a file.

    Args:
        keep_work: leave the work folder, but for what moves the files; an empty one goes.

    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> place = FileDestination(root / "out.txt", suffix=".work")
    >>> with place.hold():
    ...     place.check_files([root / "out.txt"])
    ...     place.drafts.mkdir(parents=True)
    ...     _ = (place.drafts / "out.txt").write_text("whole")
    ...     place.finish_files([root / "out.txt"])
    >>> [(path.name, path.read_text()) for path in root.iterdir()]
    [('out.txt', 'whole')]
    """

    kind = "file"

    def __init__(self, out: str | Path, *, keep_work: bool = False, **options: Any) -> None:
        super().__init__(out, **options)
        self.keep_work = keep_work

    @property
    def drafts(self) -> Path:
        """Where the finished files lie until they are moved."""
        return self.work / "results"

    def check_files(self, targets: Iterable[Path]) -> None:
        """Refuse files that are there already, unless this run may replace them.

        Raises:
            ValueError: the first that is there, or is a folder.
        """
        self.check_kind()
        for target in targets:
            name = self.named if target == self.out else target
            if target.is_dir():
                raise ValueError(f"{name} is a folder; choose another {self.option}")
            if os.path.lexists(target) and not self._replaceable(target):
                raise ValueError(f"{name} exists; choose another {self.option}, or pass --overwrite")

    def finish_files(self, targets: Iterable[Path]) -> None:
        """Move the drafts of `targets` into place, each in one step, if all of them can be; `out` is last.

        Raises:
            ValueError: a target appeared meanwhile; nothing is moved.
        """
        targets = [*targets]
        replaceable = [target for target in targets if self._replaceable(target)]
        drafts = {target: self.drafts / target.name for target in targets}
        for target in targets:
            if os.path.lexists(target) and target not in replaceable:
                raise ValueError(self.taken(target, drafts[target], None))
        self._note({target.name: identity(draft) for target, draft in drafts.items()})
        for target, draft in drafts.items():
            try:
                move_file(draft, target, replace=target in replaceable)
            except OSError as error:
                raise ValueError(self.taken(target, draft, error.strerror)) from error
        if self.out in map(Path.absolute, targets):
            self._end()

    def _end(self) -> None:
        """Drop the drafts, and the rest of the work if it is not to be kept."""
        last = self.work / MOVING
        others = [] if self.keep_work else [path for path in self.work.glob("*") if path != last]
        for path in [self.drafts, *others, last]:
            remove(path)
        with contextlib.suppress(OSError):  # not empty
            self.work.rmdir()

    def _written(self) -> dict[str, list[str]]:
        path = self.work / MOVING
        try:
            written = read_object(path, "") if path.is_file() else {}
        except ValueError:  # cut off: the run starts again
            return {}
        return written if all(isinstance(ids, list) for ids in written.values()) else {}

    def _note(self, new: Mapping[str, str]) -> None:
        written = self._written()
        for name, one in new.items():
            written.setdefault(name, []).append(one)
        with whole_file(self.work / MOVING) as part:
            part.write_text(json.dumps(written), "utf-8")

    def _replaceable(self, target: Path) -> bool:
        """Whether `target` may go: --overwrite says so, or an earlier, unfinished run wrote it."""
        return self.overwrite or self._ours(target)

    def _ours(self, target: Path) -> bool:
        return target.exists() and identity(target) in self._written().get(target.name, ())

    def _recover(self) -> None:
        """Drop the work of a run that was killed when all files were in place."""
        if self._ours(self.out):
            self._end()
        with contextlib.suppress(OSError):  # not there, or not empty
            self.work.rmdir()
