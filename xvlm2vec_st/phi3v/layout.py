"""Where images stand in texts: tags, rows of token ids, cutting and padding. No models here."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

Side = Literal["left", "right"]

TAG = re.compile(r"<\|image_(\d+)\|>")

# VLM2Vec's layout, without roles: the images, each on a line, then the texts. A system message,
# which is what sentence-transformers makes of a prompt, so comes right before the user's text.
CHAT_TEMPLATE = """\
{%- set seen = namespace(images=0) -%}
{%- for message in messages if message['content'] is not string -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}
{%- set seen.images = seen.images + 1 -%}
{{- '<|image_' ~ seen.images ~ '|>\\n' -}}
{%- elif part['type'] != 'text' -%}
{{- raise_exception('Phi-3.5-vision reads text and images, not ' ~ part['type']) -}}
{%- endif -%}
{%- endfor -%}
{%- endfor -%}
{%- for message in messages -%}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] if part['type'] == 'text' -%}
{{- part['text'] -}}
{%- endfor -%}
{%- endif -%}
{%- endfor -%}
"""


@dataclass(frozen=True)
class Row:
    """Token ids of a text, and for each whether it is text (0) or image (1)."""

    ids: list[int]
    types: list[int]


@contextmanager
def error_in(where: str) -> Iterator[None]:
    """Name the place of a ValueError that was raised without knowing it.

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
    """The images of each text, in the order in which the text names them.

    Args:
        texts: with tags `<|image_1|>`, `<|image_2|>` …, numbered within each text.
        images: None; one image; a list in order of all tags; or, for each text, None or a list.

    Raises:
        ValueError: a text's tags are not 1 to n, or not as many as its images.

    >>> images_by_row(["a", "<|image_2|> or <|image_1|>"], [None, ["x", "y"]])
    [[], ['y', 'x']]
    """
    tags = [[int(number) for number in TAG.findall(text)] for text in texts]
    for row, numbers in enumerate(tags):
        if sorted(numbers) != list(range(1, len(numbers) + 1)):
            raise ValueError(
                f"row {row}: image tags {numbers}; number a text's images from 1, each once: "
                "<|image_1|>, <|image_2|>"
            )
    dealt = deal(images, [len(numbers) for numbers in tags])
    for row, (numbers, own) in enumerate(zip(tags, dealt, strict=True)):
        if len(numbers) != len(own):
            raise ValueError(
                f"row {row}: {len(numbers)} image tag(s) in the text and {len(own)} image(s); "
                "pass as many images as tags, and '<|image_1|>\\n' before the text of an image"
            )
    return [[own[number - 1] for number in numbers] for numbers, own in zip(tags, dealt, strict=True)]


def deal(images: Any, wanted: Sequence[int]) -> list[list[Any]]:
    """`images` as one list a row; a flat list is dealt out, `wanted` images to each row.

    Raises:
        ValueError: lists for another number of rows, or a flat list of another length.

    >>> deal(["x", "y"], [1, 0, 1])
    [['x'], [], ['y']]
    """
    if images is None:
        return [[] for _ in wanted]
    listed = list(images) if isinstance(images, (list, tuple)) else [images]
    if any(part is None or isinstance(part, (list, tuple)) for part in listed):
        if len(listed) != len(wanted):
            raise ValueError(f"images for {len(listed)} rows and {len(wanted)} texts; pass one each")
        return [list(p) if isinstance(p, (list, tuple)) else [p] * (p is not None) for p in listed]
    if len(listed) != sum(wanted):
        raise ValueError(
            f"{sum(wanted)} image tag(s) in {len(wanted)} text(s) and {len(listed)} image(s); pass "
            "as many images as tags, and '<|image_1|>\\n' before the text of an image"
        )
    rest = iter(listed)
    return [[next(rest) for _ in range(number)] for number in wanted]


def join(chunks: Sequence[Sequence[int]], counts: Sequence[int], bos: int, image: int) -> Row:
    """A row from the ids of its stretches of text and the token counts of the images between.

    >>> join([[], [5, 6]], [3], bos=1, image=9)
    Row(ids=[1, 9, 9, 9, 1, 5, 6], types=[0, 1, 1, 1, 0, 0, 0])
    """
    ids: list[int] = []
    types: list[int] = []
    for chunk, count in zip(chunks, [*counts, 0], strict=True):
        ids += [bos, *chunk, *[image] * count]
        types += [0] * (1 + len(chunk)) + [1] * count
    return Row(ids, types)


def cut(row: Row, limit: int, side: Side) -> Row:
    """At most `limit` tokens of a row, cut from `side`.

    Raises:
        ValueError: an image, or the `<s>` that ends it, would be cut.

    >>> cut(Row([1, 5, 6], [0, 0, 0]), 2, "right").ids
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
                f"max_length {limit} would cut an image: the row has {len(row.ids)} tokens, "
                f"{sum(row.types)} of them image; pass max_length {needed} or more, or smaller "
                "num_crops"
            )
    return Row(row.ids[kept], row.types[kept])


def pad(values: list[int], width: int, fill: int, side: Side) -> list[int]:
    """`values` widened to `width` with `fill` on `side`.

    >>> pad([1, 2], 4, 0, "left")
    [0, 0, 1, 2]
    """
    filling = [fill] * (width - len(values))
    return values + filling if side == "right" else filling + values
