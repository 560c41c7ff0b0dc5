"""Pictures by content: the same pixels are the same picture, as a path, a PIL image or an array."""

import hashlib
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_utils import load_image


def opened(picture: Any) -> Any:
    """A path, address or base64 text as the host reads it (RGB, upright); all else as it is."""
    return load_image(picture) if isinstance(picture, str) else picture


def picture_key(picture: Any) -> tuple:
    """What tells pictures apart: size, layout and a hash of the pixels.

    An array of height x width x 3 bytes is the RGB picture of these pixels.

    Raises:
        ValueError: not a picture that transformers' processors take, or one without pixels.

    >>> red = Image.new("RGB", (2, 2), "red")
    >>> picture_key(red) == picture_key(np.asarray(red)), picture_key(red) == picture_key(red.convert("L"))
    (True, False)
    """
    if 0 in (picture.size if isinstance(picture, Image.Image) else getattr(picture, "shape", ())):
        raise ValueError("a picture without pixels; leave it out, or mend the file it came from")
    if isinstance(picture, Image.Image):
        palette = tuple(picture.getpalette() or ()) if picture.mode == "P" else ()
        clear = picture.info.get("transparency")
        return (picture.mode, picture.size, digest(picture.tobytes()), palette, clear)
    if isinstance(picture, torch.Tensor):
        picture = picture.numpy(force=True)
    if isinstance(picture, np.ndarray):
        if picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[-1] == 3:
            return ("RGB", picture.shape[1::-1], digest(np.ascontiguousarray(picture)), (), None)
        return (str(picture.dtype), picture.shape, digest(np.ascontiguousarray(picture)))
    raise ValueError(
        f"a picture is a {type(picture).__name__}; pass a path or address, a PIL image, an array or a tensor"
    )


def digest(content: bytes | np.ndarray) -> bytes:
    """32 bytes that stand for `content`; most processors have instructions for this hash."""
    return hashlib.sha256(content).digest()
