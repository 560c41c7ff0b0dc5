"""Images in texts: tags, token ids of rows, truncation and padding."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

Side = Literal["left", "right"]

TAG = re.compile(r"<\|image_(\d+)\|>")


@dataclass(frozen=True)
class TypedRow:
    """Token ids of a text, and for each whether it is text (0) or image (1)."""

    ids: list[int]
    types: list[int]


@contextmanager
def error_in(where: str) -> Iterator[None]:
    """Add a place to the message of a ValueError.

    >>> with error_in("row 3"):
    ...     raise ValueError("too long")
    Traceback (most recent call last):
    ...
    ValueError: row 3: too long
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def images_by_row(texts: Sequence[str], images: Any) -> list[list[Any]]:
    """The images of each text, in the order of the text's tags.

    Args:
        texts: with tags `<|image_1|>`, `<|image_2|>` …, numbered within each text.
        images: None; one image; a list in order of all tags; or, for each text, None or a list.

    Raises:
        ValueError: a text's tags are not 1 to n, or there are more or fewer images.

    >>> images_by_row(["a", "<|image_2|> or <|image_1|>"], [None, ["x", "y"]])
    [[], ['y', 'x']]
    """
    tags = [[int(number) for number in TAG.findall(text)] for text in texts]
    for row, numbers in enumerate(tags):
        if sorted(numbers) != list(range(1, len(numbers) + 1)):
            raise ValueError(
                f"row {row}: image tags {numbers}; number a text's images from 1, each once: <|image_1|>, <|image_2|>"
            )
    by_row = split_images(images, [len(numbers) for numbers in tags])
    for row, (numbers, row_images) in enumerate(zip(tags, by_row, strict=True)):
        if len(numbers) != len(row_images):
            raise ValueError(
                f"row {row}: {len(numbers)} image tag(s) in the text and {len(row_images)} image(s); "
                "pass as many images as tags, and '<|image_1|>\\n' before the text of an image"
            )
    return [[row_images[number - 1] for number in numbers] for numbers, row_images in zip(tags, by_row, strict=True)]


def split_images(images: Any, counts: Sequence[int]) -> list[list[Any]]:
    """Split `images` into one list per row; each row of a flat list gets `counts` images.

    Raises:
        ValueError: there are lists for another number of rows, or a flat list has another length.

    >>> split_images(["x", "y"], [1, 0, 1])
    [['x'], [], ['y']]
    """
    if images is None:
        return [[] for _ in counts]
    listed = list(images) if isinstance(images, (list, tuple)) else [images]
    if any(part is None or isinstance(part, (list, tuple)) for part in listed):
        if len(listed) != len(counts):
            raise ValueError(f"images for {len(listed)} rows and {len(counts)} texts; pass one per text")
        return [list(p) if isinstance(p, (list, tuple)) else [p] * (p is not None) for p in listed]
    if len(listed) != sum(counts):
        raise ValueError(
            f"{sum(counts)} image tag(s) in {len(counts)} text(s) and {len(listed)} image(s); pass "
            "as many images as tags, and '<|image_1|>\\n' before the text of an image"
        )
    rest = iter(listed)
    return [[next(rest) for _ in range(number)] for number in counts]


def join_chunks(chunks: Sequence[Sequence[int]], counts: Sequence[int], bos: int, image: int) -> TypedRow:
    """Join the ids of a row's texts and the tokens of the images between them.

    >>> join_chunks([[], [5, 6]], [3], bos=1, image=9)
    TypedRow(ids=[1, 9, 9, 9, 1, 5, 6], types=[0, 1, 1, 1, 0, 0, 0])
    """
    ids: list[int] = []
    types: list[int] = []
    for chunk, count in zip(chunks, [*counts, 0], strict=True):
        ids += [bos, *chunk, *[image] * count]
        types += [0] * (1 + len(chunk)) + [1] * count
    return TypedRow(ids, types)


def truncate(row: TypedRow, limit: int, side: Side) -> TypedRow:
    """Truncate a row to `limit` tokens, on `side`.

    Raises:
        ValueError: an image, or the `<s>` after it, would be truncated.

    >>> truncate(TypedRow([1, 5, 6], [0, 0, 0]), 2, "right").ids
    [1, 5]
    """
    if len(row.ids) <= limit:
        return row
    kept = slice(None, limit) if side == "right" else slice(-limit, None)
    if 1 in row.types:
        first, last = row.types.index(1), len(row.types) - 1 - row.types[::-1].index(1)
        needed = last + 2 if side == "right" else len(row.ids) - first + 1
        if limit < needed:
            raise ValueError(
                f"max_length {limit} would truncate an image: the row has {len(row.ids)} tokens, "
                f"{sum(row.types)} of them image; pass max_length {needed} or more, or smaller "
                "num_crops"
            )
    return TypedRow(row.ids[kept], row.types[kept])


def pad(values: list[int], width: int, fill: int, side: Side) -> list[int]:
    """Pad `values` to `width` with `fill` on `side`.

    >>> pad([1, 2], 4, 0, "left")
    [0, 0, 1, 2]
    """
    filling = [fill] * (width - len(values))
    return values + filling if side == "right" else filling + values
