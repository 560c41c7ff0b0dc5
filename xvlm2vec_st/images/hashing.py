"""Images by content: the same pixels are the same image, as a path, a PIL image or an array."""

import hashlib
from typing import Any

from PIL import Image

from xvlm2vec_st.images.opening import open_image


def opened(image: Any) -> Image.Image:
    """The image as `open_image` gives it."""
    return open_image(image)


def image_key(source: Any) -> tuple:
    """What tells images apart: mode, size and a hash of the pixels.

    Raises:
        ValueError: as `open_image`.

    >>> red = Image.new("RGB", (2, 2), "red")
    >>> image_key(red) == image_key(red.convert("P")), image_key(red) == image_key(red.convert("L"))
    (True, False)
    """
    image = open_image(source)
    return (image.mode, image.size, digest(image.tobytes()))


def digest(content: bytes) -> bytes:
    """32 bytes that stand for `content`; most processors have instructions for this hash."""
    return hashlib.sha256(content).digest()
