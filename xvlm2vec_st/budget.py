"""Batches of so many tokens, not of so many rows: a large picture cannot take more memory than planned."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image
from sentence_transformers import SentenceTransformer

from xvlm2vec_st.archives import picture_file
from xvlm2vec_st.parallel import SOURCE


def filled_batches(costs: Sequence[int], order: Sequence[int], budget: int, most: int) -> list[list[int]]:
    """Rows in `order`, put together until the next would pass the budget, or `most` rows are in.

    >>> filled_batches([5, 5, 8, 1, 1], [0, 1, 2, 3, 4], budget=10, most=2)
    [[0, 1], [2, 3], [4]]
    """
    batches: list[list[int]] = []
    spent = budget + 1
    for row in order:
        spent += costs[row]
        if spent > budget or len(batches[-1]) == most:
            batches.append([])
            spent = costs[row]
        batches[-1].append(row)
    return batches


class TokenBudgetBatches:
    """A batch sampler: seeded batches of at most `budget` tokens, in another order each epoch.

    Batches keep their rows from epoch to epoch, so that every epoch has as many.

    Args:
        ids: of the rows, for the error.
        costs: tokens a row: see `row_costs`.
        budget: tokens a batch.
        most: rows a batch.
        seed: of rows and order.

    Raises:
        ValueError: a row that alone is over the budget.
    """

    batch_size = None  # what accelerate reads as: it varies
    drop_last = True  # what is left when the processes have had equally many

    def __init__(
        self, ids: Sequence[str], costs: Sequence[int], *, budget: int, most: int, seed: int
    ) -> None:
        largest = max(range(len(costs)), key=costs.__getitem__)
        if costs[largest] > budget:
            raise ValueError(
                f"row {ids[largest]} has {costs[largest]} tokens in all its languages, more than the "
                f"{budget} of a batch; raise --tokens-per-batch, or lower --image-size"
            )
        order = random.Random(seed).sample(range(len(costs)), len(costs))
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
) -> list[int]:
    """Tokens of each row: its texts', and its picture's, once where prefixes are shared, else once a text.

    A picture's are counted by the model's own processor, on a blank one of its size, once a size.
    """
    known: dict[tuple[int, int], int] = {}
    costs = [0] * len(rows)
    texts = [0] * len(rows)
    for code in (SOURCE, *languages):
        given = [text or "" for text in rows[code]]
        lengths = model.tokenizer(given, truncation=False, add_special_tokens=True)["input_ids"]
        for row, ids in enumerate(lengths):
            if given[row]:
                costs[row] += len(ids)
                texts[row] += 1
    for row, image in enumerate(rows["image"]):
        if image is not None:
            size = (image_size, image_size) if image_size else Image.open(picture_file(image)).size
            if size not in known:
                blank = {"image": Image.new("RGB", size), "text": ""}
                known[size] = model.preprocess([blank])["input_ids"].shape[1]
            costs[row] += known[size] * (1 if shared else texts[row])
    return costs
