"""Rows as chat messages and as token ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenRow:
    """Token ids of a row, and 1 for each image token (None: the processor returns no types)."""

    ids: list[int]
    types: list[int] | None


def message_images(messages: list[dict]) -> list[Any]:
    """The images of a row's messages, in order."""
    blocks = [block for message in messages if isinstance(message["content"], list) for block in message["content"]]
    return [block["image"] for block in blocks if block["type"] == "image"]


def with_text(message: dict, text: str) -> dict:
    """Replace the texts of a message, unless it is a prompt (a system message).

    >>> with_text({"role": "user", "content": [{"type": "text", "text": "a dog"}]}, "0")["content"]
    [{'type': 'text', 'text': '0'}]
    """
    if message.get("role") == "system":
        return message
    if isinstance(message["content"], str):
        return message | {"content": text}
    blocks = [b | {"text": text} if b.get("type") == "text" else b for b in message["content"]]
    return message | {"content": blocks}


def unpad_rows(features: dict[str, Tensor]) -> list[TokenRow]:
    """Remove the padding of preprocessed rows."""
    real = features["attention_mask"].bool()
    types = features.get("mm_token_type_ids")
    return [
        TokenRow(ids[mask].tolist(), None if types is None else types[row][mask].tolist())
        for row, (ids, mask) in enumerate(zip(features["input_ids"], real, strict=True))
    ]


def with_new_tail(row: TokenRow, count: int, tail: list[int]) -> TokenRow:
    """Replace the last `count` tokens of a row with `tail`.

    >>> with_new_tail(TokenRow([1, 9, 9, 5, 6], None), 2, [7]).ids
    [1, 9, 9, 7]
    """
    kept = len(row.ids) - count
    types = None if row.types is None else row.types[:kept] + [0] * len(tail)
    return TokenRow(row.ids[:kept] + tail, types)


def pad_rows(rows: Sequence[list[int]], fill: int, side: str) -> Tensor:
    """Pad rows to one length: (rows, tokens).

    >>> pad_rows([[5], [6, 7]], 0, "left").tolist()
    [[0, 5], [6, 7]]
    """
    width = max(map(len, rows))
    filling = [[fill] * (width - len(row)) for row in rows]
    both = zip(filling, rows, strict=True) if side == "left" else zip(rows, filling, strict=True)
    return torch.tensor([first + second for first, second in both])
