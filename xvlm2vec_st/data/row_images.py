"""Open the images of corpus rows; messages name the row and the path."""

import os

from PIL import Image

from xvlm2vec_st.images.archives import image_file
from xvlm2vec_st.images.opening import check_regular, image_errors, open_image, upright_size
from xvlm2vec_st.utils.texts import printable


def open_row_image(path: str, row: str, *, decode: bool = False) -> Image.Image:
    """Open a row's image; with `decode`, load it as upright RGB.

    Raises:
        ValueError: the file is missing or not an image; with the row's id and the path.
    """
    try:
        file = image_file(path)
        if isinstance(file, str):
            os.stat(file)
            check_regular(file)
        if decode:
            return open_image(file).convert("RGB")
        with image_errors(path):
            return Image.open(file)
    except FileNotFoundError:
        raise ValueError(
            f"row {printable(row)}: image {printable(path)} not found; pass images= with the folder or archive "
            "that holds it"
        ) from None
    except (OSError, ValueError) as error:
        raise unreadable(path, row, error) from error


def row_image_size(path: str, row: str) -> tuple[int, int]:
    """(width, height) of a row's image as `open_row_image` decodes it; reads the header only."""
    open_row_image(path, row).close()
    try:
        return upright_size(image_file(path))
    except ValueError as error:
        raise unreadable(path, row, error) from error


def unreadable(path: str, row: str, error: Exception) -> ValueError:
    """The error for an image that cannot be read."""
    return ValueError(f"row {printable(row)}: image {printable(path)} cannot be read: {printable(error)}")
