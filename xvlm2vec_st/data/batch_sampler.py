"""Batches of so many tokens, not of so many rows: a large image cannot take more memory than planned."""

import random
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from sentence_transformers import SentenceTransformer

from xvlm2vec_st.data.dataset import SOURCE, upright_size
from xvlm2vec_st.encoding.packing import fill


@dataclass(frozen=True)
class Lengths:
    """Tokens of a row: its image's, 0 without one, and each of its texts', English first."""

    image: int
    texts: tuple[int, ...]


def padded(lengths: Sequence[int]) -> int:
    """Places that sequences take in one tensor.

    >>> padded([3, 5, 1]), padded([])
    (15, 0)
    """
    return len(lengths) * max(lengths, default=0)


def together(rows: Sequence[Lengths]) -> int:
    """Places of a batch whose texts go through the model in one forward.

    >>> together([Lengths(0, (2, 3)), Lengths(10, (2, 2))])
    48
    """
    return padded([row.image + text for row in rows for text in row.texts])


def grouped(rows: Sequence[Lengths]) -> int:
    """Places of a batch in the groups of `ParallelCollator`: by side, with and without an image.

    >>> grouped([Lengths(0, (2, 3)), Lengths(10, (2, 2))])
    29
    """
    groups: dict[tuple[bool, bool], list[int]] = {}
    for row in rows:
        for number, text in enumerate(row.texts):
            groups.setdefault((row.image > 0, number > 0), []).append(row.image + text)
    return sum(map(padded, groups.values()))


def packed(rows: Sequence[Lengths]) -> int:
    """Places of a batch that is packed: see `prefix.plan_rows`. Where no row shares, nothing is.

    >>> packed([Lengths(0, (2, 3)), Lengths(10, (2, 2))])
    28
    """
    shares = [bool(row.image) and len(row.texts) > 1 for row in rows]
    if not any(shares):
        return together(rows)
    sizes, ordered = [], []
    for row, share in zip(rows, shares, strict=True):
        own = [row.image + sum(row.texts)] if share else [row.image + text for text in row.texts]
        sizes += own
        ordered += [bool(row.image)] * len(own)
    return max(sizes) * fill(sizes, ordered, max(sizes))[1]


@dataclass(frozen=True)
class Costs:
    """What rows cost in one batch.

    Attributes:
        rows: the lengths of each.
        places: what a batch of them takes, padding included: `packed`, `grouped` or `together`.
    """

    rows: Sequence[Lengths]
    places: Callable[[Sequence[Lengths]], int]

    def of(self, numbers: Sequence[int]) -> int:
        """Of the rows of these numbers."""
        return self.places([self.rows[number] for number in numbers])


def filled_batches(costs: Costs, order: Sequence[int], budget: int, most: int) -> list[list[int]]:
    """Rows in `order`, put together until the next would pass the budget, or `most` rows are in.

    >>> costs = Costs([Lengths(0, (n,)) for n in (5, 5, 8, 1, 1)], together)
    >>> filled_batches(costs, [0, 1, 2, 3, 4], budget=10, most=2)
    [[0, 1], [2], [3, 4]]
    """
    batches: list[list[int]] = []
    start = 0
    while start < len(order):
        ahead = list(order[start : start + most])
        # More rows take more places: a search asks for a few sums a batch, not for one a row.
        fit = bisect_right(range(1, len(ahead) + 1), budget, key=lambda count: costs.of(ahead[:count]))
        batches.append(ahead[: max(fit, 1)])
        start += max(fit, 1)
    return batches


class TokenBudgetBatches:
    """A batch sampler: seeded batches of at most `budget` tokens, in another order each epoch.

    Batches keep their rows from epoch to epoch, so that every epoch has as many.

    Args:
        ids: of the rows, for the error.
        costs: see `row_costs`.
        budget: tokens a batch, padding included.
        most: rows a batch.
        seed: of rows and order.

    Raises:
        ValueError: a row that alone is over the budget.
    """

    batch_size = None  # what accelerate reads as: it varies
    drop_last = True  # what is left when the processes have had equally many

    def __init__(self, ids: Sequence[str], costs: Costs, *, budget: int, most: int, seed: int) -> None:
        alone = [costs.of([number]) for number in range(len(ids))]
        largest = max(range(len(ids)), key=alone.__getitem__)
        if alone[largest] > budget:
            raise ValueError(
                f"row {ids[largest]} has {alone[largest]} tokens in all its languages, padding included, "
                f"more than the {budget} of a batch; raise --tokens-per-batch, or lower --image-size"
            )
        order = random.Random(seed).sample(range(len(ids)), len(ids))
        self.batches = filled_batches(costs, order, budget, most)
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
    """Each row's tokens, and what they take in a batch: packed where prefixes are `shared`, else padded.

    An image's are counted by the model's own processor, on a blank one of its size, once a size.
    """
    known: dict[tuple[int, int], int] = {}

    def of_image(image: str | None, row: str) -> int:
        if image is None:
            return 0
        size = (image_size, image_size) if image_size else upright_size(image, row)
        if size not in known:
            blank = {"image": Image.new("RGB", size), "text": ""}
            known[size] = model.preprocess([blank])["input_ids"].shape[1]
        return known[size]

    texts: list[list[int]] = [[] for _ in rows]
    for code in (SOURCE, *languages):
        given = [text or "" for text in rows[code]]
        lengths = model.tokenizer(given, truncation=False, add_special_tokens=True)["input_ids"]
        for row, ids in enumerate(lengths):
            if given[row]:
                texts[row].append(len(ids))
    images = map(of_image, rows["image"], rows["id"])
    found = [Lengths(image, tuple(own)) for image, own in zip(images, texts, strict=True)]
    several = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
    # Several processes: one forward a batch, so that none waits for another.
    return Costs(found, packed if shared else together if several else grouped)
