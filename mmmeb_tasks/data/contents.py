"""What the names of rows stand for: texts, or images on disk. Each is in memory once, and rows hold numbers."""

import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Generic, TypeVar, overload

from mmmeb_tasks.utils.texts import printable, short

# Allows images outside the data folder, which links lead to; names never leave it otherwise.
OUTSIDE = "MMMEB_OUTSIDE_IMAGES"

Item = TypeVar("Item")


class Selection(Sequence[Item], Generic[Item]):
    """Some items of a list that many share, by their places: 2 or 4 bytes each instead of 8. Read only.

    Args:
        whole: the list; it may grow.
        places: of the items in it, an array of integers.

    >>> some = Selection(["a", "b", "c"], array("I", [2, 0]))
    >>> list(some), some[-1], some[:1], len(some), some == ["c", "a"], "b" in some
    (['c', 'a'], 'a', ['c'], 2, True, False)
    """

    __slots__ = ("places", "whole")

    def __init__(self, whole: list[Item], places: Any) -> None:
        self.whole, self.places = whole, places

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...

    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [*map(self.whole.__getitem__, self.places[index].tolist())]
        return self.whole[self.places[index]]

    def __iter__(self) -> Iterator[Item]:
        return map(self.whole.__getitem__, self.places.tolist())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Selection | list | tuple):
            return [*self] == [*other]
        return NotImplemented

    def __repr__(self) -> str:
        return repr([*self])


def image_path(root: Path, dataset: str, name: str) -> Path:
    """Where the image that a row names is; the image need not exist.

    A name with "/" is relative to the data root, one without is in `{dataset}_images`; where the
    name has no extension, it is `.jpg`.

    >>> image_path(Path("data"), "xm", "0a1b").as_posix()
    'data/xm_images/0a1b.jpg'
    >>> image_path(Path("data"), "xm", "crops/7.png").as_posix()
    'data/crops/7.png'
    """
    name = name if PurePosixPath(name).suffix else f"{name}.jpg"
    return root / name if "/" in name else root / f"{dataset}_images" / name


class Images(dict[str, Path]):
    """Image names -> paths that exist; each name is looked up on disk once a file."""

    def __init__(self, root: Path, dataset: str) -> None:
        self.root, self.dataset = root, dataset
        self.real = None if os.environ.get(OUTSIDE) else root.resolve()

    def __missing__(self, name: str) -> Path:
        path = image_path(self.root, self.dataset, name)
        try:
            there = path.is_file()
        except OSError as error:  # a name that is too long
            raise ValueError(f"image {short(name)} cannot be looked for ({error.strerror})") from error
        if not there:
            raise ValueError(f"image {short(name)} is not at {printable(path)}")
        if self.real is not None and not path.resolve().is_relative_to(self.real):
            raise ValueError(
                f"image {short(name)} lies outside the data folder, at {printable(path.resolve())}; move "
                f"it there, or allow it: {OUTSIDE}=1"
            )
        self[name] = path
        return path


class Contents:
    """The candidates that the rows of a file have so far, numbered.

    Args:
        images: looks names up; None: a name is a text, which stands for itself.

    >>> contents = Contents(None)
    >>> contents.select(["dog", "cat"]) is None, contents.add(["dog", "cat"]), contents.select(["cat"])
    (True, ['dog', 'cat'], ['cat'])
    """

    def __init__(self, images: Images | None) -> None:
        self.images = images
        self.whole: list[str | Path] = []
        self._numbers: dict[str, int] = {}

    def select(self, names: Sequence[Any]) -> Selection[str | Path] | None:
        """What the names stand for, if earlier rows had all of them."""
        try:
            return Selection(self.whole, array("I", map(self._numbers.__getitem__, names)))
        except (KeyError, TypeError):  # a list or an object cannot be a key
            return None

    def add(self, names: Sequence[str]) -> Selection[str | Path]:
        """What the names stand for.

        Raises:
            ValueError: an image that is not there, or outside the data folder.
        """
        for name in names:
            if name not in self._numbers:
                content = name if self.images is None else self.images[name]
                self._numbers[name] = len(self.whole)
                self.whole.append(content)
        return Selection(self.whole, array("I", map(self._numbers.__getitem__, names)))
