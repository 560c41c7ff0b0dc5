"""Means over seeds and queries, with intervals over resampled queries."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .records import Record

RESAMPLES = 2000
Cell = tuple[str, str]  # task, language


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval over queries, and its smallest and largest value over seeds."""

    mean: float
    low: float
    high: float
    least: float
    greatest: float

    @property
    def beyond_zero(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


def query_means(records: Sequence[Record], cells: Iterable[Cell]) -> np.ndarray:
    """Mean hits over cells: (seeds, queries). The query of number n is the same one in every cell.

    Raises:
        ValueError: cells with different numbers of queries.
    """
    columns = [[record.cells()[cell] for cell in cells] for record in records]
    if len({len(hits) for row in columns for hits in row}) > 1:
        raise ValueError(f"{[record.key for record in records]}: cells with different numbers of queries")
    return np.array(columns, dtype=float).mean(1)


def estimate(values: np.ndarray, seed: int = 0) -> Estimate:
    """The mean of (seeds, queries) values: resampled queries give the interval, rows the spread.

    >>> estimate(np.ones((3, 50)))
    Estimate(mean=1.0, low=1.0, high=1.0, least=1.0, greatest=1.0)
    """
    per_query, per_seed = values.mean(0), values.mean(1)
    rng = np.random.default_rng(seed)
    chosen = rng.integers(0, len(per_query), (RESAMPLES, len(per_query)))
    low, high = np.percentile(per_query[chosen].mean(1), [2.5, 97.5])
    return Estimate(*map(float, (per_query.mean(), low, high, per_seed.min(), per_seed.max())))


def difference(one: np.ndarray, two: np.ndarray) -> Estimate:
    """One minus two over the same queries; over the same seeds where both have as many, else over means."""
    if len(one) != len(two):
        one, two = one.mean(0, keepdims=True), two.mean(0, keepdims=True)
    return estimate(one - two)
