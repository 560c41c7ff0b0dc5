"""Rows whose sides do not belong together: an instruction of one task beside a translation of another's.

The published corpus joined translations of MSCOCO_i2t and MSCOCO_t2i with the English of the
grounding subset MSCOCO, since the subset was parsed from a file name.
"""

import re
from functools import cache
from itertools import islice

from .fields import instruction_table, split_text

# Machine translations of an instruction are not the table's words, but share most of them. German is
# the hardest: "Finde mir ein Alltagsbild, das zu der angegebenen Bildunterschrift passt".
ALIKE = 0.5


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
    ranked = sorted(
        (_likeness(words, _words(text, len(words) if opens else None)), english)
        for english, words, opens in _known(code)
    )
    return ranked[-1][1] if ranked and ranked[-1][0] >= ALIKE else None


@cache
def _known(code: str) -> list[tuple[str, tuple[str, ...], bool]]:
    """(English, words of the language, whether a text goes on after them)."""
    return [
        (english, _words(known[code].split("{x}")[0]), "{x}" in english)
        for english, known in instruction_table().items()
        if code in known
    ]


def _words(text: str, count: int | None = None) -> tuple[str, ...]:
    return tuple(word.group() for word in islice(re.finditer(r"\w+", text.casefold()), count))


def _likeness(wanted: tuple[str, ...], target: tuple[str, ...]) -> float:
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
