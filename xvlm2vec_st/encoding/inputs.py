"""Inputs of `encode` before the processor: open images, drop missing parts, name rows in errors."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from sentence_transformers.base.modality import is_image_url_or_path

from xvlm2vec_st.encoding.open_images import OpenImages

SOURCES = ("image", "url", "path", "base64")


class InputError(ValueError):
    """An input that cannot be embedded; `row` is its place among the inputs of this call."""

    def __init__(self, row: int, item: Any, reason: str) -> None:
        """Start the message with the row."""
        super().__init__(f"row {row}{reason if reason.startswith(',') else f': {reason}'}")
        self.row, self.item, self.reason = row, item, reason

    def __reduce__(self) -> tuple:
        """Pickle without the input, which may be large: a worker sends the error to its parent."""
        return type(self), (self.row, None, self.reason)

    def with_place_in(self, inputs: Sequence[Any]) -> "InputError":
        """The same error with the row's place in `inputs`, which this call had a batch of."""
        places = (number for number, item in enumerate(inputs) if item is self.item)
        return InputError(next(places, self.row), self.item, self.reason)


def text_input(item: Any) -> Any:
    """Wrap a string so that it is embedded as text, even if it is the address or path of an image.

    sentence-transformers 6.2 opens or fetches a plain string that looks like a file, but not the text of a dict. Other
    inputs are returned unchanged.

    >>> text_input("https://example.org/dog.png")
    {'text': 'https://example.org/dog.png'}
    """
    return {"text": item} if isinstance(item, str) else item


def text_inputs(model: Any, items: Sequence[Any]) -> list[Any]:
    """Apply `text_input` to all inputs, unless the model embeds texts only."""
    if list(getattr(model, "modalities", ("text",))) == ["text"]:
        return list(items)
    return [text_input(item) for item in items]


def open_inputs(inputs: Sequence[Any], images: OpenImages | None = None) -> list[Any]:
    """Open every image of the inputs, each path and object once, and drop parts that are None.

    Args:
        inputs: inputs of `encode`.
        images: the images that are open already; the others are added.

    Raises:
        InputError: an image cannot be read; an input has neither text nor image.
    """
    images = OpenImages() if images is None else images
    return [open_input(row, item, images) for row, item in enumerate(inputs)]


def open_input(row: int, item: Any, images: OpenImages) -> Any:
    """Open the images of one input; `images` are those of a call.

    >>> open_input(0, {"image": None, "text": "a dog"}, OpenImages())
    {'text': 'a dog'}
    """
    count = 0

    def image(source: Any) -> Image.Image:
        nonlocal count
        count += 1
        try:
            return images.open(source)
        except ValueError as error:
            raise InputError(row, item, f", image {count}: {error}") from error

    def parts(value: Any) -> Any:
        if isinstance(value, Image.Image | os.PathLike) or (
            isinstance(value, np.ndarray | torch.Tensor) and value.ndim == 3
        ):
            return image(value)
        if isinstance(value, str):
            return image(value) if is_image_url_or_path(value) else value
        if isinstance(value, list | tuple):
            return type(value)(parts(part) for part in value)
        return fields(value) if isinstance(value, dict) else value

    def fields(value: dict) -> dict:
        if "content" in value:
            content = value["content"]
            return value if isinstance(content, str) else value | {"content": blocks(content)}
        present = {key: part for key, part in value.items() if part is not None}
        if "image" in present:
            given = present["image"]
            several = isinstance(given, list | tuple)
            present["image"] = [image(part) for part in given] if several else image(given)
        return present

    def blocks(content: Any) -> Any:
        if not isinstance(content, list | tuple):
            return [] if content is None else content
        result = []
        for block in content:
            if not isinstance(block, dict):
                result.append(block)
            elif block.get("type") == "image":
                source = next((block[key] for key in SOURCES if block.get(key) is not None), None)
                result.append({"type": "image", "image": image(source)})
            elif block.get("type") != "text" or block.get("text") is not None:
                result.append(block)
        return result

    result = parts(item)
    if result is None or (isinstance(result, dict) and not result):
        raise InputError(row, item, "it has neither text nor image; remove the row")
    return result
