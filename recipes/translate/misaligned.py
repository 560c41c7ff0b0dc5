"""Rows whose sides do not belong together: an instruction of one task beside a translation of another's.

The published corpus joined translations of MSCOCO_i2t and MSCOCO_t2i with the English of the
grounding subset MSCOCO, since the subset was parsed from a file name.
"""

import re
from functools import cache

from .fields import instruction_table, split_text

# Machine translations of an instruction are not the table's words, but share most of them. German is
# the hardest: "Finde mir ein Alltagsbild, das zu der angegebenen Bildunterschrift passt".
ALIKE = 0.5
WORD = re.compile(r"\w+")


def instruction_of(text: str, code: str) -> str | None:
    """The English instruction that a text of a language begins with, in other words too; or None.

    >>> instruction_of("Trova una didascalia che descrive l'immagine quotidiana data", "it")
    'Find an image caption describing the given everyday image'
    >>> instruction_of("un cane marrone", "it") is None
    True
    """
    exact = split_text(text, code).instruction
    if exact is not None or code == "en":
        return exact
    if not (known := _known(code)):
        return None
    target = _words(text)
    there, best = set(target), (ALIKE, "")
    for english, words, distinct, opens in known:
        # No likeness is greater than with the words of the whole text and no other word beside them.
        if len(distinct & there) + 1 >= ALIKE * (len(distinct) + 1):
            best = max(best, (_likeness(words, target[: len(words)] if opens else target), english))
    return best[1] or None


@cache
def _known(code: str) -> list[tuple[str, list[str], frozenset[str], bool]]:
    """(English, words of the language, distinct ones, whether a text goes on after them)."""
    entries = []
    for english, known in instruction_table().items():
        if code in known:
            words = _words(known[code].split("{x}")[0])
            entries.append((english, words, frozenset(words), "{x}" in english))
    return entries


def _words(text: str) -> list[str]:
    return WORD.findall(text.casefold())


def _likeness(wanted: list[str], target: list[str]) -> float:
    """Shared words over all words of the longer one; the first word counts twice."""
    shared = len(set(wanted) & set(target)) + (wanted[:1] == target[:1])
    return shared / (max(len(set(wanted)), len(set(target))) + 1)


def mismatch(english: str, translation: str, code: str) -> str | None:
    """What two sides ask for where that differs, or None.

    >>> mismatch("Represent the given cropped image of the object", "Rappresenta l'immagine data", "it")
    "'Represent the given image' beside 'Represent the given cropped image…'"
    >>> mismatch("Represent the given image.", "Rappresenta l'immagine data.", "it")
    """
    source, target = instruction_of(english, "en"), instruction_of(translation, code)
    if target is None or target == source:
        # A known instruction whose translation begins otherwise may only be put freely.
        return None
    beside = source or english.strip()
    return f"{target!r} beside {beside if len(beside) < 40 else beside[:33] + '…'!r}"
