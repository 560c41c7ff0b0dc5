"""Which inputs go through a model together: rows of one image are neighbours."""

import os
from collections.abc import Hashable, Sequence
from typing import Any

from PIL import Image

from xvlm2vec_st.encoding.inputs import InputError
from xvlm2vec_st.images.hashing import image_key


def batches_of(inputs: Sequence[Any], batch_size: int) -> list[list[int]]:
    """Numbers of the inputs in each batch, at most `batch_size` in one.

    Inputs with the same images stand together, in one batch if they fit into one; what takes most
    tokens first, by size of the images and then length of all texts, so that neighbours are alike and
    little is padded; inputs without an image last.

    >>> red, blue = Image.new("RGB", (2, 2), "red"), Image.new("RGB", (2, 2), "blue")
    >>> batches_of([{"image": red, "text": "a"}, "b", blue, {"image": red, "text": "cc"}], 2)
    [[3, 0], [2, 1]]
    """
    known: dict[int, Hashable] = {}
    groups: dict[Hashable, list[int]] = {}
    alone: list[int] = []
    for number, item in enumerate(inputs):
        keys = []
        for count, image in enumerate(images_in(item), 1):
            try:
                keys.append(key_of(image, known))
            except ValueError as error:
                raise InputError(number, item, f", image {count}: {error}") from error
        if keys:
            groups.setdefault(tuple(keys), []).append(number)
        else:
            alone.append(number)
    size = {
        key: (
            sum(map(size_of, images_in(inputs[rows[0]]))),
            sum(text_length(inputs[number]) for number in rows),
        )
        for key, rows in groups.items()
    }
    batches: list[list[int]] = []
    for key in sorted(groups, key=size.__getitem__, reverse=True):
        rows = sorted(groups[key], key=lambda number: -text_length(inputs[number]))
        if batches and len(batches[-1]) + len(rows) <= batch_size:
            batches[-1] += rows
        else:
            batches += [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    alone.sort(key=lambda number: -text_length(inputs[number]))
    room = batch_size - len(batches[-1]) if batches else 0
    if room:
        batches[-1] += alone[:room]
    return batches + [alone[i : i + batch_size] for i in range(room, len(alone), batch_size)]


def images_in(item: Any) -> list[Any]:
    """The images of one input, in any form that the host takes; a text that is a path is a text here."""
    if isinstance(item, Image.Image):
        return [item]
    if isinstance(item, dict):
        if "content" in item:
            return images_in(item["content"])
        if item.get("type") == "image":
            return [item[key] for key in ("image", "url", "path", "base64") if key in item]
        images = item.get("image")
        several = list(images) if isinstance(images, list | tuple) else [images]
        return [] if images is None else several
    if isinstance(item, list | tuple):
        return [image for part in item for image in images_in(part)]
    return []


def key_of(image: Any, known: dict[int, Hashable]) -> Hashable:
    """A path as it is; else the content's key, taken once an object."""
    if isinstance(image, str | os.PathLike):
        return os.fspath(image)
    if id(image) not in known:
        known[id(image)] = image_key(image)
    return known[id(image)]


def size_of(image: Any) -> int:
    """Pixels, as far as they are known without opening a file."""
    if isinstance(image, Image.Image):
        return image.width * image.height
    shape = getattr(image, "shape", ())
    return int(shape[0] * shape[1]) if len(shape) > 1 else 0


def text_length(item: Any) -> int:
    """Characters of an input's texts."""
    if isinstance(item, str):
        return len(item)
    if isinstance(item, dict):
        return sum(text_length(value) for key, value in item.items() if key in ("text", "content"))
    if isinstance(item, list | tuple):
        return sum(map(text_length, item))
    return 0
