"""Whether a translation is in the wanted language, by py3langid."""

import unicodedata
from functools import cache, lru_cache

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from .fields import contents
from .languages import common

# A CJK character says about as much as so many letters.
WIDE = 2.2
# py3langid is sure of long texts only: below this many letters, or unless it gives another language
# nearly all and the wanted one nearly nothing, it is not asked.
LETTERS, SURE, ALMOST_NOTHING = 20, 0.9, 0.02
ENOUGH = 10_000  # characters that it is shown
# What the identifier takes for each other, or calls by another code.
NEAR = (
    ("no", "nb", "nn", "da"),
    ("hr", "bs", "sr"),
    ("id", "ms", "jv"),
    ("zh", "yue", "wuu"),
    ("fil", "tl", "bcl"),
    ("gl", "pt"),
    ("cs", "sk"),
    ("az", "tr"),
    ("el", "grc"),
    ("hi", "mr", "ne"),
    ("xh", "zu"),
    ("be", "ru", "uk"),
)


@lru_cache(maxsize=8)  # several checks in a row, and languages of one English text
def width(text: str) -> float:
    """The length of a text in letters of an alphabet.

    >>> width("dog"), width("小狗")
    (3, 4.4)
    """
    if text.isascii():
        return len(text)
    wide_ones = {c for c in {*text} if unicodedata.east_asian_width(c) in "WF"}
    wide = sum(map(wide_ones.__contains__, text)) if wide_ones else 0
    return len(text) - wide + (WIDE * wide if wide else 0)


def wrong_language(english: str, translation: str, code: str) -> str | None:
    """Another language, where the text is long enough to be sure.

    >>> wrong_language("a", "A man is riding a wave on a surfboard", "it")
    'en'
    >>> wrong_language("a", "Un uomo cavalca un'onda su una tavola da surf", "it")
    """
    text = contents(english, translation, code)[1]
    accepted = accepted_as(code)
    if letters(text) < LETTERS:
        return None
    ranked = dict(identifier().rank(text[:ENOUGH]))
    if not accepted & ranked.keys():  # a language that the identifier does not know
        return None
    best = max(ranked, key=ranked.get)
    wanted = sum(ranked.get(c, 0.0) for c in accepted)
    return best if best not in accepted and ranked[best] >= SURE and wanted <= ALMOST_NOTHING else None


def letters(text: str) -> float:
    """How many letters of an alphabet a text says as much as.

    >>> letters("a dog!"), letters("小狗")
    (4, 4.4)
    """
    return sum(map(str.isalpha, text)) * (WIDE if width(text) > len(text) else 1)


@cache
def accepted_as(code: str) -> frozenset[str]:
    """What the identifier may call a language.

    >>> sorted(accepted_as("pt-BR"))
    ['gl', 'pt', 'pt-BR']
    """
    base = common(code).split("-")[0]
    return frozenset({code, base, *near(base)})


def near(code: str) -> set[str]:
    """The languages that are taken for one another.

    >>> sorted(near("nb"))
    ['da', 'nb', 'nn', 'no']
    """
    return {other for group in NEAR if code in group for other in group}


@cache
def identifier() -> LanguageIdentifier:
    """The language identifier: py3langid, 139 languages, its model in the package."""
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
