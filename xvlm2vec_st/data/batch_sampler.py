"""Batches with a token budget: a large image cannot take more memory than planned."""

import random
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from sentence_transformers import SentenceTransformer

from xvlm2vec_st.data.corpus import SOURCE
from xvlm2vec_st.data.row_images import row_image_size
from xvlm2vec_st.encoding.packing import place_stretches


@dataclass(frozen=True)
class RowLengths:
    """Tokens of a row: of its image (0 without one), and of each text, English first."""

    image: int
    texts: tuple[int, ...]


def padded_size(lengths: Sequence[int]) -> int:
    """Places that sequences take in one padded tensor.

    >>> padded_size([3, 5, 1]), padded_size([])
    (15, 0)
    """
    return len(lengths) * max(lengths, default=0)


def places_single_forward(rows: Sequence[RowLengths]) -> int:
    """Places of a batch whose texts go through the model in one forward.

    >>> places_single_forward([RowLengths(0, (2, 3)), RowLengths(10, (2, 2))])
    48
    """
    return padded_size([row.image + text for row in rows for text in row.texts])


def places_four_groups(rows: Sequence[RowLengths]) -> int:
    """Places of a batch in the four groups of `ParallelCollator`: by side, with and without an image.

    >>> places_four_groups([RowLengths(0, (2, 3)), RowLengths(10, (2, 2))])
    29
    """
    groups: dict[tuple[bool, bool], list[int]] = {}
    for row in rows:
        for number, text in enumerate(row.texts):
            groups.setdefault((row.image > 0, number > 0), []).append(row.image + text)
    return sum(map(padded_size, groups.values()))


def places_packed(rows: Sequence[RowLengths]) -> int:
    """Places of a packed batch (see `packing.plan_rows`). If no row shares a prefix, nothing is packed.

    >>> places_packed([RowLengths(0, (2, 3)), RowLengths(10, (2, 2))])
    28
    """
    shares = [bool(row.image) and len(row.texts) > 1 for row in rows]
    if not any(shares):
        return places_single_forward(rows)
    sizes: list[int] = []
    ordered: list[bool] = []
    for row, share in zip(rows, shares, strict=True):
        stretches = [row.image + sum(row.texts)] if share else [row.image + text for text in row.texts]
        sizes += stretches
        ordered += [bool(row.image)] * len(stretches)
    return max(sizes) * place_stretches(sizes, ordered, max(sizes))[1]


@dataclass(frozen=True)
class Costs:
    """The cost of rows in one batch.

    Attributes:
        rows: the lengths of each row.
        places: counts the tokens of a batch, padding included: one of the `places_…` functions.
    """

    rows: Sequence[RowLengths]
    places: Callable[[Sequence[RowLengths]], int]

    def total(self, numbers: Sequence[int]) -> int:
        """Tokens of a batch of the rows with these numbers."""
        return self.places([self.rows[number] for number in numbers])


def fill_batches(costs: Costs, order: Sequence[int], budget: int, max_rows: int) -> list[list[int]]:
    """Fill batches in `order`, each until the next row would exceed `budget`, or it has `max_rows` rows.

    >>> costs = Costs([RowLengths(0, (n,)) for n in (5, 5, 8, 1, 1)], places_single_forward)
    >>> fill_batches(costs, [0, 1, 2, 3, 4], budget=10, max_rows=2)
    [[0, 1], [2], [3, 4]]
    """
    batches: list[list[int]] = []
    start = 0
    while start < len(order):
        ahead = list(order[start : start + max_rows])
        # More rows take more places, so a binary search needs a few sums per batch, not one per row.
        count = bisect_right(range(1, len(ahead) + 1), budget, key=lambda n: costs.total(ahead[:n]))
        batches.append(ahead[: max(count, 1)])
        start += max(count, 1)
    return batches


class TokenBudgetBatches:
    """A batch sampler: seeded batches of at most `budget` tokens, in another order in each epoch.

    Batches keep their rows, so that every epoch has the same number of batches.

    Args:
        ids: ids of the rows, for the error message.
        costs: see `row_costs`.
        budget: tokens per batch, padding included.
        max_rows: rows per batch.
        seed: of the rows and of the order.

    Raises:
        ValueError: a single row exceeds the budget.
    """

    batch_size = None  # accelerate reads this; the batch size varies
    drop_last = True  # of the batches that remain when every process has had the same number

    def __init__(self, ids: Sequence[str], costs: Costs, *, budget: int, max_rows: int, seed: int) -> None:
        totals = [costs.total([number]) for number in range(len(ids))]
        largest = max(range(len(ids)), key=totals.__getitem__)
        if totals[largest] > budget:
            raise ValueError(
                f"row {ids[largest]} has {totals[largest]} tokens in all its languages, padding included, and a "
                f"batch has {budget}; raise tokens_per_batch, or lower image_size"
            )
        order = random.Random(seed).sample(range(len(ids)), len(ids))
        self.batches = fill_batches(costs, order, budget, max_rows)
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        yield from random.Random(f"{self.seed}/{self.epoch}").sample(self.batches, len(self.batches))


def row_costs(
    rows: Any, languages: Sequence[str], model: SentenceTransformer, *, image_size: int | None, shared: bool
) -> Costs:
    """Count each row's tokens; a batch is packed if prefixes are `shared`, and padded otherwise.

    The model's processor counts the tokens of an image, once per size, on a blank image.
    """
    known: dict[tuple[int, int], int] = {}

    def image_tokens(image: str | None, row: str) -> int:
        if image is None:
            return 0
        size = (image_size, image_size) if image_size else row_image_size(image, row)
        if size not in known:
            blank = {"image": Image.new("RGB", size), "text": ""}
            known[size] = model.preprocess([blank])["input_ids"].shape[1]
        return known[size]

    texts: list[list[int]] = [[] for _ in rows]
    for code in (SOURCE, *languages):
        column = [text or "" for text in rows[code]]
        token_ids = model.tokenizer(column, truncation=False, add_special_tokens=True)["input_ids"]
        for row, ids in enumerate(token_ids):
            if column[row]:
                texts[row].append(len(ids))
    images = map(image_tokens, rows["image"], rows["id"])
    lengths = [RowLengths(image, tuple(tokens)) for image, tokens in zip(images, texts, strict=True)]
    if shared:
        return Costs(lengths, places_packed)
    # Several processes: one forward per batch, so that no process waits for another.
    distributed = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
    return Costs(lengths, places_single_forward if distributed else places_four_groups)
