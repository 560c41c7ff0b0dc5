"""Rows as chat messages and as token ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xvlm2vec_st.encoding.packing import common_prefix

# Features that give the type of each token.
TYPES = ("mm_token_type_ids", "token_type_ids")


@dataclass(frozen=True)
class TokenRow:
    """Token ids of a row, and its token types by name, 0 for text (empty: the processor returns none)."""

    ids: list[int]
    types: dict[str, list[int]]


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
    types = {key: features[key] for key in TYPES if key in features}
    return [
        TokenRow(ids[mask].tolist(), {key: value[row][mask].tolist() for key, value in types.items()})
        for row, (ids, mask) in enumerate(zip(features["input_ids"], real, strict=True))
    ]


def with_new_tail(row: TokenRow, count: int, tail: list[int]) -> TokenRow:
    """Replace the last `count` tokens of a row with `tail`.

    >>> with_new_tail(TokenRow([1, 9, 9, 5, 6], {}), 2, [7]).ids
    [1, 9, 9, 7]
    """
    kept = len(row.ids) - count
    types = {key: value[:kept] + [0] * len(tail) for key, value in row.types.items()}
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


def row_features(
    rows: Sequence[TokenRow], leads: Sequence[int], has_images: Sequence[bool], side: str, pad: int
) -> dict[str, Tensor]:
    """The per-token and per-row values of a batch that shares.

    Args:
        rows: all rows of the batch.
        leads: for each row, the first row with the same images and the same ids up to the last image.
        has_images: whether a row has images.
        side: side of the padding.
        pad: id of the padding token.

    >>> rows = [TokenRow([1, 9, 5], {}), TokenRow([1, 9, 6], {})]
    >>> row_features(rows, [0, 0], [True, True], "right", 0)["shared_tokens"].tolist()
    [2, 2]
    """
    members: dict[int, list[int]] = {}
    for number, lead in enumerate(leads):
        if has_images[lead]:
            members.setdefault(lead, []).append(number)
    group = {lead: number for number, lead in enumerate(members)}
    common = {lead: common_prefix([rows[n].ids for n in numbers]) for lead, numbers in members.items()}
    features = {
        "input_ids": pad_rows([row.ids for row in rows], pad, side),
        "attention_mask": pad_rows([[1] * len(row.ids) for row in rows], 0, side),
        "image_group": torch.tensor([group.get(lead, -1) for lead in leads]),
        "shared_tokens": torch.tensor([common.get(lead, 0) for lead in leads]),
    }
    return features | {key: pad_rows([row.types[key] for row in rows], 0, side) for key in rows[0].types}
