"""The candidates of queries as places in one list of ids; equal lists are stored once."""

from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmmeb_tasks.data.contents import Selection

UNKNOWN = np.iinfo(np.uint32).max


class CandidateLists:
    """The candidates of one query after another. Equal contents have one id.

    Args:
        identify: gives the id of a content.

    Attributes:
        contents: `{id: the last content that has it}`.

    >>> lists = CandidateLists(str.upper)
    >>> lists.add(("b", "a")), lists.add(("a", "b")), lists.add(("c", "a", "c"))
    ('B', 'A', 'C')
    >>> lists.finish()
    [['A', 'B'], ['A', 'B'], ['A', 'C']]
    """

    def __init__(self, identify: Callable[[Any], str]) -> None:
        self.identify = identify
        self.contents: dict[str, str | Path] = {}
        self._ids: list[str] = []
        self._of_id: dict[str, int] = {}
        self._of_content: dict[str | Path, int] = {}
        self._whole: list[str | Path] = []
        self._of_place = np.empty(0, np.uint32)  # numbers of the items of `_whole`
        self._lists: dict[bytes, NDArray[Any]] = {}
        self._queries: list[bytes] = []

    def add(self, candidates: Sequence[str | Path]) -> str:
        """Add the candidates of the next query; returns the id of the first."""
        numbers = self._numbers(candidates)
        distinct = distinct_of(numbers, len(self._ids))
        # By a hash, because the lists themselves would be stored twice.
        key = blake2b(distinct.astype(np.uint32).tobytes(), digest_size=16).digest()
        self._lists.setdefault(key, distinct)
        self._queries.append(key)
        return self._ids[numbers[0]]

    def finish(self) -> list[Selection[str]]:
        """The candidates of each query in the order of their ids; nothing can be added after it."""
        ids = sorted(self._ids)
        ranks = np.empty(len(ids), np.uint32)
        ranks[[self._of_id[id] for id in ids]] = np.arange(len(ids))
        keys = [*self._lists]
        lists = {key: Selection(ids, distinct_of(ranks[self._lists.pop(key)], len(ids))) for key in keys}
        return [lists[key] for key in self._queries]

    def _numbers(self, candidates: Sequence[str | Path]) -> NDArray[np.uint32]:
        """The numbers of contents, which get new ones at their first appearance."""
        if not isinstance(candidates, Selection):
            candidates = Selection([*candidates], np.arange(len(candidates)))
        if candidates.whole is not self._whole:
            self._whole, self._of_place = candidates.whole, np.empty(0, np.uint32)
        new = np.full(len(self._whole) - len(self._of_place), UNKNOWN, np.uint32)
        self._of_place = np.concatenate([self._of_place, new]) if len(new) else self._of_place
        places = np.asarray(candidates.places)
        numbers = self._of_place[places]
        if UNKNOWN in numbers:
            for place in dict.fromkeys(places[numbers == UNKNOWN].tolist()):
                self._of_place[place] = self._number(self._whole[place])
            numbers = self._of_place[places]
        return numbers

    def _number(self, content: str | Path) -> int:
        if content not in self._of_content:
            id = self.identify(content)
            self.contents[id] = content
            if id not in self._of_id:
                self._of_id[id] = len(self._ids)
                self._ids.append(id)
            self._of_content[content] = self._of_id[id]
        return self._of_content[content]


def distinct_of(numbers: NDArray[np.uint32], bound: int) -> NDArray[Any]:
    """Distinct numbers below `bound` in order, in as few bytes as they need.

    >>> distinct_of(np.array([3, 1, 3], np.uint32), 4)
    array([1, 3], dtype=uint8)
    """
    there = np.zeros(bound, bool)
    there[numbers] = True
    return np.flatnonzero(there).astype(np.min_scalar_type(bound))
