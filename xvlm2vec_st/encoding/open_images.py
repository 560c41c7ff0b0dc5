"""Images of one call, opened and hashed once while its batches need them."""

import os
from collections.abc import Hashable, Iterable
from typing import Any

from PIL import Image

from xvlm2vec_st.images.hashing import image_key
from xvlm2vec_st.images.opening import open_image


class OpenImages:
    """The images of a call: each path and each object is opened once, and hashed once at most.

    Args:
        lasting: whether the inputs' image objects live as long as the call, so that an id stands for one object. Those
            of a list do; other sequences may make them anew for each access.

    >>> images, gray = OpenImages(), Image.new("L", (2, 2))
    >>> images.open(gray) is images.open(gray), images.open(gray).mode
    (True, 'RGB')
    """

    def __init__(self, *, lasting: bool = True) -> None:
        self._lasting = lasting
        self._opened: dict[Hashable, Image.Image] = {}
        # By id: of the inputs' objects, and of opened images.
        self._source_keys: dict[int, Hashable] = {}
        self._keys: dict[int, Hashable] = {}

    def open(self, source: Any) -> Image.Image:
        """Open a path or an object; a known one gives the same image again.

        Raises:
            ValueError: see `open_image`.
        """
        place = place_of(source)
        if place not in self._opened:
            self._opened[place] = image = open_image(source)
            if id(source) in self._source_keys:
                self._keys[id(image)] = self._source_keys[id(source)]
        return self._opened[place]

    def key(self, image: Image.Image) -> Hashable:
        """The key of an opened image's content."""
        if id(image) not in self._keys:
            self._keys[id(image)] = image_key(image)
        return self._keys[id(image)]

    def source_key(self, source: Any) -> Hashable:
        """A path or text, or else the key of the object's content.

        Raises:
            ValueError: see `open_image`.
        """
        if isinstance(source, str | os.PathLike):
            return os.fspath(source)
        if not self._lasting:
            return image_key(source)
        if id(source) not in self._source_keys:
            self._source_keys[id(source)] = image_key(source)
        return self._source_keys[id(source)]

    def keep(self, sources: Iterable[Any]) -> None:
        """Forget all images but those of `sources`, which the next batch needs."""
        kept = self._opened.keys() & {place_of(source) for source in sources}
        self._opened = {place: self._opened[place] for place in kept}
        # A forgotten image's id may soon be another image's.
        known = {id(image) for image in self._opened.values()}
        self._keys = {number: key for number, key in self._keys.items() if number in known}


def place_of(source: Any) -> Hashable:
    """A path or text, or else the object's id."""
    return os.fspath(source) if isinstance(source, str | os.PathLike) else id(source)
