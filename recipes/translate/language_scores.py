"""Scores of py3langid for many short texts at once, some ten times as fast as one by one.

py3langid 0.4 reads a text byte by byte in Python. Here one byte of every text is read at a time, and one product
scores all texts. The sums round otherwise, by less than 1e-5: who decides by them leaves a margin.
"""

import unicodedata
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from .fields import contents
from .language_check import ALMOST_NOTHING, ENOUGH, LETTERS, SURE, accepted_as, identifier, letters

LONGEST = 400  # bytes of a text that is scored here: all wait for the longest
TEXTS = 4096  # scored at a time
MARGIN = 0.005


def surely_right(pairs: Sequence[tuple[str, str, str]]) -> list[bool]:
    """Of which (English, translation, language) `wrong_language` certainly finds nothing.

    >>> texts = "Un uomo cavalca un'onda su una tavola", "A man is riding a wave on a surfboard"
    >>> surely_right([("a", text, "it") for text in texts])
    [True, False]
    """
    texts = [contents(*pair)[1] for pair in pairs]
    certain = [letters(text) < LETTERS for text in texts]
    places = [place for place, known in enumerate(certain) if not known]
    encoded = [encode(texts[place][:ENOUGH]) for place in places]
    short = [(place, data) for place, data in zip(places, encoded, strict=True) if len(data) <= LONGEST]
    scores = language_scores([data for _, data in short])
    best = scores.max(1, initial=0)
    for row, (place, _) in enumerate(short):
        wanted = scores[row, _columns(pairs[place][2])].sum()
        certain[place] = bool(wanted > ALMOST_NOTHING + MARGIN or best[row] < SURE - MARGIN)
    return certain


@cache
def _columns(code: str) -> list[int]:
    """The classes that a language may be taken for."""
    return [column for column, name in enumerate(identifier().nb_classes) if name in accepted_as(code)]


def language_scores(texts: Sequence[bytes]) -> NDArray[np.float32]:
    """(texts, classes) probabilities by `identifier().nb_classes`; a class that stands there twice has its first."""
    blocks = [texts[start : start + TEXTS] for start in range(0, len(texts), TEXTS)]
    return np.concatenate([np.empty((0, len(identifier().nb_classes)), np.float32), *map(_scores, blocks)])


def encode(text: str) -> bytes:
    """The bytes that py3langid reads of a text."""
    text = text.lower() if text.isupper() else text
    return unicodedata.normalize("NFC", text).encode("utf-8", "surrogatepass")


def _scores(texts: Sequence[bytes]) -> NDArray[np.float32]:
    rows, features = _visits(texts)
    pairs, counts = np.unique(rows * len(_table()) + features, return_counts=True)
    rows, features = np.divmod(pairs, len(_table()))
    weights = np.log1p(counts.astype(np.float32))
    sums = csr_array((weights, (rows, features)), shape=(len(texts), len(_table()))) @ _table()
    # Without any feature py3langid takes all languages for equally likely.
    sums += np.where(np.bincount(rows, minlength=len(texts))[:, None] > 0, identifier().nb_pc, 0)
    sums /= np.sqrt([[len(text) or 1] for text in texts], dtype=np.float32)
    sums = np.exp(sums - sums.max(1, keepdims=True))
    sums /= sums.sum(1, keepdims=True)
    for column, name in enumerate(names := identifier().nb_classes):
        if (first := names.index(name)) < column:
            sums[:, first] += sums[:, column]
            sums[:, column] = 0
    return sums


def _visits(texts: Sequence[bytes]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(text, feature) of every byte that ends a feature: the walk of `py3langid.langid.visit_counts`."""
    moves, starts, outputs = _automaton()
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    lengths = np.array([len(texts[i]) for i in order])
    letters = np.zeros((lengths.max(initial=0), len(texts)), np.uint8)
    for column, i in enumerate(order):
        letters[: lengths[column], column] = np.frombuffer(texts[i], np.uint8)
    state = np.zeros(len(texts), np.int64)
    rows, features = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for place, at in enumerate(letters):
        still = np.searchsorted(-lengths, -place)  # texts are shorter from here on
        state = moves[starts[state[:still]] + at[:still]].astype(np.int64)
        output = outputs[state]
        ends = np.flatnonzero(output >= 0)
        rows.append(ends)
        features.append(output[ends])
    return np.array(order)[np.concatenate(rows)], np.concatenate(features)


@cache
def _automaton() -> tuple[NDArray[np.uint32], NDArray[np.int64], NDArray[np.int64]]:
    """(next state by row and byte, where a state's row starts, the feature that a state ends or -1)."""
    model = identifier()
    starts = np.asarray(model.tk_row, np.int64) << 8
    return np.frombuffer(model.tk_nextmove, np.dtype(model.tk_nextmove.typecode)), starts, np.asarray(model.tk_output)


@cache
def _table() -> NDArray[np.float32]:
    """(features, classes) log-probabilities."""
    return np.asarray(identifier().nb_ptc, np.float32)
