"""Batches of texts by tokens, longest first, so that little is spent on padding."""

from collections.abc import Sequence


def plan_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Part texts of `lengths` tokens into batches of at most `max_tokens`, padding included.

    Longest first: memory runs out at once or never. Texts of one length keep their order, so the
    plan depends on the lengths alone. A text longer than `max_tokens` is a batch of its own.

    >>> plan_batches([3, 9, 3, 4], 9)
    [[1], [3, 0], [2]]
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        # The first of a batch is its longest: all others are padded to it.
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def padding_waste(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """The share of a model's input that is padding, 0 to 1.

    >>> padding_waste([4, 2], [[0, 1]]), padding_waste([4, 2], [[0], [1]])
    (0.25, 0.0)
    """
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    real = sum(lengths[i] for batch in batches for i in batch)
    return 1 - real / padded if padded else 0.0
