"""Open images: the one place where files, arrays and tensors become pixels."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from transformers.image_utils import load_image

LIMIT_HINT = "resize it, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
CHANNELS = (1, 3, 4)
WIDE_INTEGERS = ("I;16", "I;16L", "I;16B", "I;16N", "I")


def open_image(source: Any) -> Image.Image:
    """Open an image as 8-bit pixels: RGB, or RGBA if a PIL image or an array has transparency.

    A file, URL, base64 text or bytes gives the first frame as RGB, upright by its EXIF tag. A PIL image keeps its
    orientation. An array or tensor is H x W, H x W x C or C x H x W with 1, 3 or 4 channels; if both ends fit,
    channels come first, as in transformers. 8-bit values stay; 16-bit values are divided by 257; floats from 0 to 1 are
    multiplied by 255; floats and wider integers from 0 to 255 stay.

    Raises:
        ValueError: it is not an image, is damaged, has no pixels or too many, or values are out of range.

    >>> open_image(np.full((2, 5), 0.5)).getpixel((0, 0)), open_image(np.zeros((3, 2, 5))).size
    ((128, 128, 128), (5, 2))
    """
    with image_errors(source):
        if isinstance(source, Image.Image):
            image = from_pil(source)
        elif isinstance(source, np.ndarray | torch.Tensor):
            image = from_array(source)
        elif isinstance(source, bytes | bytearray | io.BytesIO):
            image = upright_rgb(source if isinstance(source, io.BytesIO) else io.BytesIO(source))
        elif isinstance(source, str | os.PathLike):
            image = from_text(os.fspath(source))
        else:
            raise TypeError("it is not an image")
    return image


class EmptyImage(ValueError):
    """An image without pixels."""


@contextmanager
def image_errors(source: Any) -> Iterator[None]:
    """Turn every exception of Pillow's decoders into a ValueError that names the file.

    On damaged input, Pillow's plugins raise OSError, SyntaxError, RuntimeError (AVIF), struct.error, TypeError (EXIF)
    and others.
    """
    name = repr(str(source)[:200]) if isinstance(source, str | os.PathLike) else f"a {type(source).__name__}"
    try:
        yield
    except (MemoryError, EmptyImage):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"cannot read an image from {name}: {error}; {LIMIT_HINT}") from error
    except Exception as error:
        # transformers repeats a base64 text that is not an image, however long it is.
        reason = str(error)[:300] or type(error).__name__
        raise ValueError(
            f"cannot read an image from {name}: {reason}; pass a PIL image, an array or tensor, or the "
            "path, URL or bytes of an undamaged image"
        ) from error


def from_text(text: str) -> Image.Image:
    """Open a path, or a URL or base64 text as transformers reads it."""
    if "\0" not in text and len(text) < 4096 and os.path.exists(text):
        check_regular(text)
        return upright_rgb(text)
    if not text.startswith(("http://", "https://", "data:image/")) and Path(text).suffix and len(text) < 4096:
        raise FileNotFoundError("no such file")
    return check_pixels(load_image(text))


def check_regular(path: str) -> None:
    """Refuse a pipe, a device or a folder: reading one may block forever.

    Raises:
        ValueError: it is not a regular file.
    """
    if not os.path.isfile(path):
        raise ValueError("it is not a regular file")


def upright_rgb(file: str | io.BytesIO) -> Image.Image:
    """Decode a file's first frame, upright, as RGB."""
    with Image.open(file) as image:
        check_pixels(image)
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        eight_bit = from_pil(image, transparency=False)
    if orientation in (0, 1):
        return eight_bit
    eight_bit.getexif()[ExifTags.Base.Orientation] = orientation
    ImageOps.exif_transpose(eight_bit, in_place=True)
    return eight_bit


def upright_size(file: str | io.BytesIO) -> tuple[int, int]:
    """(width, height) of a file's image as `open_image` returns it; reads the header only.

    Raises:
        ValueError: see `open_image`.
    """
    with image_errors(file), Image.open(file) as image:
        check_pixels(image)
        is_rotated = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        return image.size[::-1] if is_rotated else image.size


def check_pixels(image: Image.Image) -> Image.Image:
    """Refuse an image without pixels.

    Raises:
        ValueError: the width or the height is 0.
    """
    if 0 in image.size:
        raise EmptyImage(
            f"an image has no pixels: its size is {image.width} x {image.height}; leave images without pixels out"
        )
    return image


def from_pil(image: Image.Image, *, transparency: bool = True) -> Image.Image:
    """Convert a PIL image of any mode to RGB, or to RGBA if it has an alpha channel and `transparency` is set."""
    check_pixels(image)
    if image.mode in (*WIDE_INTEGERS, "F"):
        kind = np.float32 if image.mode == "F" else np.int64
        return from_values(np.asarray(image).astype(kind), wide=image.mode != "F").convert("RGB")
    image.load()  # a closed or truncated file fails here
    alpha = "A" in image.getbands() or "a" in image.getbands() or image.info.get("transparency") is not None
    mode = "RGBA" if alpha and transparency else "RGB"
    return image if image.mode == mode else image.convert(mode)


def from_array(array: np.ndarray | torch.Tensor) -> Image.Image:
    """Convert an array or tensor to RGB, or to RGBA if it has four channels."""
    if isinstance(array, torch.Tensor):
        array = array.detach().float() if array.is_floating_point() else array
        array = array.numpy(force=True)
    if 0 in array.shape:
        raise EmptyImage(f"an image has no pixels: the array's shape is {array.shape}; leave images without pixels out")
    if array.ndim == 3 and array.shape[0] in CHANNELS:
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in CHANNELS):
        raise ValueError(f"the array's shape is {array.shape}, not H x W, H x W x C or C x H x W (C: 1, 3, 4)")
    image = from_values(array, wide=array.dtype == np.uint16)
    return image if image.mode == "RGBA" else image.convert("RGB")


def from_values(values: np.ndarray, *, wide: bool) -> Image.Image:
    """Convert values of any type to 8 bits; `wide` values are 16-bit, whatever the largest value is."""
    if values.dtype == bool:
        values = values.astype(np.uint8) * 255
    if values.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(values))
    if values.dtype.kind not in "iuf":
        raise ValueError(f"its values are {values.dtype}, not numbers")
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= (65535 if wide else 255)):
        allowed = "0 to 65535" if wide else "0 to 1, or 0 to 255"
        raise ValueError(f"its values range from {low:g} to {high:g}; allowed: {allowed}")
    scaled = values / 257 if wide else values * 255.0 if values.dtype.kind == "f" and high <= 1 else values
    return Image.fromarray(np.ascontiguousarray(np.rint(scaled).astype(np.uint8)))
