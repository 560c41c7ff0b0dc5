"""Group the inputs of `encode` into batches: inputs with the same image go together."""

from collections.abc import Hashable, Sequence
from typing import Any

from PIL import Image

from xvlm2vec_st.encoding.inputs import InputError
from xvlm2vec_st.encoding.open_images import OpenImages


def plan_batches(inputs: Sequence[Any], batch_size: int, images: OpenImages | None = None) -> list[list[int]]:
    """The numbers of the inputs in each batch; a batch never exceeds `batch_size` inputs.

    Inputs with the same images are neighbours, and share a batch if they fit. Groups are sorted by the size of their
    images and then by the length of their texts, largest first, so that little is padded. Inputs without an image come
    last.

    Args:
        inputs: inputs of `encode`.
        batch_size: the most inputs of a batch, 1 or more.
        images: the images of the call; it remembers the keys of image objects.

    Raises:
        InputError: an image object cannot be read.

    >>> red, blue = Image.new("RGB", (2, 2), "red"), Image.new("RGB", (2, 2), "blue")
    >>> plan_batches([{"image": red, "text": "a"}, "b", blue, {"image": red, "text": "cc"}], 2)
    [[3, 0], [2, 1]]
    """
    images = images or OpenImages(lasting=isinstance(inputs, list | tuple))
    groups: dict[Hashable, list[int]] = {}
    alone: list[int] = []
    for number, item in enumerate(inputs):
        keys = []
        for count, image in enumerate(images_in(item), 1):
            try:
                keys.append(images.source_key(image))
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
    """The images of an input. Accepts every image type that sentence-transformers does; a string is text."""
    if isinstance(item, Image.Image):
        return [item]
    if isinstance(item, dict):
        if "content" in item:
            return images_in(item["content"])
        if item.get("type") == "image":
            return [item[key] for key in ("image", "url", "path", "base64") if key in item]
        images = item.get("image")
        if images is None:
            return []
        return list(images) if isinstance(images, list | tuple) else [images]
    if isinstance(item, list | tuple):
        return [image for part in item for image in images_in(part)]
    return []


def size_of(image: Any) -> int:
    """The number of pixels, if it is known without opening a file; else 0."""
    if isinstance(image, Image.Image):
        return image.width * image.height
    shape: Sequence[int] = getattr(image, "shape", ())
    return int(shape[0] * shape[1]) if len(shape) > 1 else 0


def text_length(item: Any) -> int:
    """The number of characters of an input's texts."""
    if isinstance(item, str):
        return len(item)
    if isinstance(item, dict):
        return sum(text_length(value) for key, value in item.items() if key in ("text", "content"))
    if isinstance(item, list | tuple):
        return sum(map(text_length, item))
    return 0
