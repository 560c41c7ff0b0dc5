"""Read image files: their content, pixels and thumbnail."""

import hashlib
import io
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

from PIL import Image, UnidentifiedImageError

from xvlm2vec_st.images.opening import LIMIT_HINT, open_image

from .scan import FileState, Problem

THUMBNAIL = 256  # pixels, the longer side
HEIC = (".heic", ".heif", ".hif")

Given, Result = TypeVar("Given"), TypeVar("Result")


@dataclass(frozen=True)
class Photo:
    """A file that was read.

    Args:
        state: of the file before it was read.
        content: SHA-256 of its bytes in hex.
        image: its pixels; None if the content is known already.
        thumbnail: a small JPEG of it.
    """

    state: FileState
    content: str
    image: Image.Image | None = None
    thumbnail: bytes = b""


def read_photo(root: Path, state: FileState, known: Container[str]) -> Photo | Problem:
    """Read a file, or say why it cannot be read. A content in `known` is not decoded."""
    try:
        data = (root / state.path).read_bytes()
    except OSError as error:
        return Problem(state.path, error.strerror or "cannot be read")
    if not data:
        return Problem(state.path, "the file is empty")
    content = hashlib.sha256(data).hexdigest()
    if content in known:
        return Photo(state, content)
    try:
        image = open_image(data)
        return Photo(state, content, image, small_jpeg(image))
    except ValueError as error:
        return Problem(state.path, reason(error, state.path))


def reason(error: ValueError, path: str) -> str:
    """Why `open_image` refused a file, in a line."""
    cause = error.__cause__ or error
    if isinstance(cause, UnidentifiedImageError):
        if Path(path).suffix.lower() in HEIC and not find_spec("pillow_heif"):
            return "HEIC images need pillow-heif; pip install pillow-heif"
        return "is not an image, or one that is damaged"
    hint = f"; {LIMIT_HINT}" if isinstance(cause, Image.DecompressionBombError) else ""
    return (" ".join(str(cause).split())[:300] or type(cause).__name__) + hint


def register_heif() -> None:
    """Let Pillow open HEIC, if pillow-heif is installed."""
    if find_spec("pillow_heif"):
        import pillow_heif

        pillow_heif.register_heif_opener()


def small_jpeg(image: Image.Image) -> bytes:
    """A JPEG of at most 256 x 256 pixels; a smaller image keeps its size."""
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    return file.getvalue()


def read_ahead(call: Callable[[Given], Result], items: Iterable[Given], count: int) -> Iterator[Result]:
    """`call` of each item, in order; up to `count` run in threads ahead of what is taken.

    >>> list(read_ahead(str, [1, 2, 3], 2))
    ['1', '2', '3']
    """
    with ThreadPoolExecutor(count) as threads:
        waiting = deque()
        for item in items:
            waiting.append(threads.submit(call, item))
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
