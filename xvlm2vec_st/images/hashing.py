"""Identify images by content: a path, a PIL image and an array with the same pixels are the same image."""

import hashlib
from typing import Any

from xvlm2vec_st.images.opening import open_image


def image_key(source: Any) -> tuple:
    """Mode, size and a hash of the pixels; equal for equal images.

    Raises:
        ValueError: see `open_image`.

    >>> from PIL import Image
    >>> red = Image.new("RGB", (2, 2), "red")
    >>> image_key(red) == image_key(red.convert("P")), image_key(red) == image_key(red.convert("L"))
    (True, False)
    """
    image = open_image(source)
    return (image.mode, image.size, pixels_sha256(image.tobytes()))


def pixels_sha256(content: bytes) -> bytes:
    """The SHA-256 of pixels; most processors have instructions for it."""
    return hashlib.sha256(content).digest()
