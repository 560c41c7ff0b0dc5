"""Rows as chat messages and as token ids: their images, and rows that continue another's prefix."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Row:
    """A row as token ids, beside 1 where an image token stands (None: the family does not say)."""

    ids: list[int]
    types: list[int] | None


def images_of(messages: list[dict]) -> list[Any]:
    """The images of a row's messages, in order."""
    blocks = [
        block for message in messages if isinstance(message["content"], list) for block in message["content"]
    ]
    return [block["image"] for block in blocks if block["type"] == "image"]


def with_text(message: dict, text: str) -> dict:
    """The message with `text` for its texts, unless it is a prompt (a system message).

    >>> with_text({"role": "user", "content": [{"type": "text", "text": "a dog"}]}, "0")["content"]
    [{'type': 'text', 'text': '0'}]
    """
    if message.get("role") == "system":
        return message
    if isinstance(message["content"], str):
        return message | {"content": text}
    blocks = [b | {"text": text} if b.get("type") == "text" else b for b in message["content"]]
    return message | {"content": blocks}


def rows_of(features: dict[str, Tensor]) -> list[Row]:
    """The host's padded rows without their padding."""
    real = features["attention_mask"].bool()
    types = features.get("mm_token_type_ids")
    return [
        Row(ids[mask].tolist(), None if types is None else types[row][mask].tolist())
        for row, (ids, mask) in enumerate(zip(features["input_ids"], real, strict=True))
    ]


def continued(row: Row, own: int, tail: list[int]) -> Row:
    """The row with `tail` in the place of its last `own` tokens.

    >>> continued(Row([1, 9, 9, 5, 6], None), 2, [7]).ids
    [1, 9, 9, 7]
    """
    kept = len(row.ids) - own
    types = None if row.types is None else row.types[:kept] + [0] * len(tail)
    return Row(row.ids[:kept] + tail, types)


def padded(rows: Sequence[list[int]], fill: int, side: str) -> Tensor:
    """Rows of one length: (rows, tokens).

    >>> padded([[5], [6, 7]], 0, "left").tolist()
    [[0, 5], [6, 7]]
    """
    width = max(map(len, rows))
    filled = [[fill] * (width - len(row)) for row in rows]
    both = zip(filled, rows, strict=True) if side == "left" else zip(rows, filled, strict=True)
    return torch.tensor([first + second for first, second in both])
