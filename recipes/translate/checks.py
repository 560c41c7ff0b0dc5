"""Why a translation is refused: one small function a reason, in the order of a table."""

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache

from sentence_transformers import SentenceTransformer

from xvlm2vec_st.encoding.inputs import text_inputs

from .fields import contents
from .language_check import width, wrong_language
from .language_scores import surely_right
from .languages import SCRIPTS, language
from .misaligned import mismatch
from .placeholders import DIGIT, may_hold_placeholder, numbers, placeholders, quotes
from .repair import ARTEFACT
from .repetition import repetition

# A sentence's end: a mark and a new beginning, not the point of Mr. or of an initial. The mark comes first, because
# the search for one of a set of characters is fast.
STOPS, WIDE_STOPS = ".!?…؟۔։።", "。！？।॥།။።"
SENTENCE_END = re.compile(f"[{STOPS}{WIDE_STOPS}]")
SENTENCE = re.compile(
    rf"{SENTENCE_END.pattern}(?:(?<=[{STOPS}])(?<!\bMr.)(?<!\bDr.)(?<!\bSt.)(?<!\bMs.)(?<!\bvs.)(?<!Mrs.)(?<!\b\w.)"
    rf"[\"'”’»)]*(?=\s+[^\Wa-z\d_]|\s*$)|(?<=[{WIDE_STOPS}])[」』”)]*)"
)
BROKEN = ("\u2047", "\ufffd", "<unk>", "<UNK>", "[UNK]")
SLACK = 10  # letters that both sides are given, since short texts differ widely
RATIO = (0.4, 2.5)


def empty(english: str, translation: str, code: str) -> str | None:
    """A side without text."""
    return None if english.strip() and translation.strip() else "no text"


def artefact(english: str, translation: str, code: str) -> str | None:
    """MADLAD's "#300000 - " and its like, in the middle, where repair does not cut.

    >>> artefact("a dog", "ein #300000 - Hund", "de")
    '#300000 - '
    """
    match = ARTEFACT.search(translation)
    return match.group() if match and not ARTEFACT.search(english) else None


def broken(english: str, translation: str, code: str) -> str | None:
    """What a translator writes for a word that it does not know.

    >>> broken("a dog", "un ⁇ rosso", "it"), broken("a dog", "un <unk> cane", "it")
    ('⁇', '<unk>')
    """
    return next((mark for mark in BROKEN if mark in translation and mark not in english), None)


def lost_sentence(english: str, translation: str, code: str) -> str | None:
    """A sentence lost: the English has several, the translation fewer than half of their marks and length.

    >>> lost_sentence("Where was it? The whole town looks for him.", "Dov'era?", "it")
    '2 sentences, 1 in the translation'
    >>> lost_sentence("Look. A dog. It runs.", "Guarda, un cane che corre.", "it")
    """
    source, target = contents(english, translation, code)
    before = sentences(source)
    if before < 2 or (after := sentences(target)) >= before:
        return None
    # Two short ones may be joined by a comma or a semicolon; then the length stays.
    ratio = (SLACK + width(target.strip())) / (SLACK + width(source.strip()))
    lost = ratio < (0.75 if after * 2 <= before else 0.6)
    return f"{before} sentences, {after} in the translation" if lost else None


def sentences(text: str) -> int:
    """How many sentences a text has.

    >>> sentences("Mr. Smith has 2.5 dogs. Is it so?"), sentences("犬。猫。")
    (2, 2)
    """
    return len(SENTENCE.findall(text)) + (not SENTENCE_END.search(text.rstrip()[-3:]))


def lost_placeholder(english: str, translation: str, code: str) -> str | None:
    """A placeholder lost, or one too many."""
    if not may_hold_placeholder(english) and not may_hold_placeholder(translation):
        return None
    before, after = placeholders(english), placeholders(translation)
    return None if before == after else " ".join((before - after) + (after - before))


def lost_number(english: str, translation: str, code: str) -> str | None:
    """A number lost; separators and digits of other scripts do not count.

    >>> lost_number("2 of 1,000", "2 von 1.000", "de"), lost_number("2 dogs", "drei Hunde", "de")
    (None, '2')
    """
    return " ".join(numbers(english) - numbers(translation)) or None if DIGIT.search(english) else None


def lost_quote(english: str, translation: str, code: str) -> str | None:
    """A quoted label lost."""
    before = quotes(english)
    after = quotes(translation) if before else 0
    return f"{before} quoted, {after} in the translation" if after < before else None


def lost_newline(english: str, translation: str, code: str) -> str | None:
    """Line breaks lost or added."""
    before, after = english.count("\n"), translation.count("\n")
    return None if before == after else f"{before} line breaks, {after} in the translation"


def copied(english: str, translation: str, code: str) -> str | None:
    """An untranslated copy; names are exempt.

    >>> copied("a red apple", "A red apple", "it"), copied("Paris", "Paris", "it")
    ('a red apple', None)
    """
    source, target = contents(english, translation, code)
    if source.strip().casefold() != target.strip().casefold():
        return None
    source = source.strip()
    if not source:  # an instruction alone: a copy unless it is its own translation
        return english.strip() if english.strip().casefold() == translation.strip().casefold() else None
    return None if is_name(source, code) else source


def is_name(text: str, code: str) -> bool:
    """Whether a text may be the same in another language: names; one word, in the same script.

    >>> is_name("New York", "it"), is_name("pizza", "it"), is_name("pizza", "ja"), is_name("a dog", "it")
    (True, True, False, False)
    """
    words = [word for word in text.split() if any(c.isalpha() for c in word)]
    if all(any(c.isupper() for c in word[:2]) for word in words):
        return len(words) <= 4
    return len(words) == 1 and language(code).script == "Latn"


def other_script(english: str, translation: str, code: str) -> str | None:
    """Letters of a script that is neither the language's nor in a word of the English.

    >>> other_script("a dog", "ein собака", "de"), other_script("an iPad", "一台 iPad", "zh")
    ('собака', None)
    >>> other_script("a brown dog", "a brown dog runs", "el")
    'runs'
    >>> other_script("a dog named Max", "Maxという名前の犬", "ja")
    """
    own = SCRIPTS[language(code).script]
    new = {*translation} - (usual := _usual(own))
    if not any(_is_foreign(character, own) for character in new):
        usual |= new
        return None
    source = set(re.findall(r"\w+", english.casefold()))
    for word in re.findall(r"\w+", translation):
        for part in _foreign(word, own):
            known = part.casefold() in source or part.strip("0123456789_").casefold() in source
            if not known and not part.isupper():
                return part
    return None


def _foreign(word: str, own: tuple[str, ...]) -> Iterator[str]:
    """The parts of a word in other scripts: without spaces, a name is one with the next word."""
    start, has_letter = 0, False
    for place, character in enumerate(word):
        letter = unicodedata.category(character)[0] == "L"
        if letter and not _is_foreign(character, own):
            if has_letter:
                yield word[start:place]
            start, has_letter = place + 1, False
        else:
            has_letter = has_letter or letter
    if has_letter:
        yield word[start:]


@cache
def _usual(own: tuple[str, ...]) -> set[str]:
    """Characters that were found not to be foreign. Grows to the script and the marks that are written with it."""
    return set()


@cache
def _is_foreign(character: str, scripts: tuple[str, ...]) -> bool:
    """Whether it is a letter of another script. Marks of any, and letters common to many, such as ª, are not."""
    name = unicodedata.name(character, "")
    first = name.removeprefix("FULLWIDTH ").removeprefix("HALFWIDTH ").split(" ")[0]
    shared = ("MODIFIER", "FEMININE", "MASCULINE", "MICRO", "OHM", "IDEOGRAPHIC")
    return unicodedata.category(character)[0] == "L" and first not in scripts and first not in shared


def length_ratio(english: str, translation: str, code: str) -> str | None:
    """One side far longer than the other.

    >>> length_ratio("a dog", "ein Hund", "de")
    >>> length_ratio("a dog", "Ein Hund, der über eine Wiese läuft und bellt.", "de")
    '3.7 times as long'
    """
    source, target = (SLACK + width(text.strip()) for text in contents(english, translation, code))
    ratio = target / source
    return None if RATIO[0] <= ratio <= RATIO[1] else f"{ratio:.1f} times as long"


def repeats(english: str, translation: str, code: str) -> str | None:
    """Something said four times in a row, which the English does not.

    >>> repeats("a dog", "ein Hund Hund Hund Hund Hund", "de")
    ' Hund'
    """
    said = repetition(translation)
    return said if said and repetition(english) is None else None


Check = Callable[[str, str, str], str | None]

# Reason -> (English, translation, language) -> what is wrong, or None. The first failure is reported.
CHECKS: Mapping[str, Check] = {
    "empty": empty,
    "pairing": mismatch,
    "artefact": artefact,
    "broken": broken,
    "sentence": lost_sentence,
    "placeholder": lost_placeholder,
    "number": lost_number,
    "quote": lost_quote,
    "newline": lost_newline,
    "copy": copied,
    "repeats": repeats,
    "script": other_script,
    "length": length_ratio,
    "language": wrong_language,
}


LAST = "language"  # the last of the checks


def refusal(english: str, translation: str, code: str, *, skip: Sequence[str] = ()) -> tuple[str, str] | None:
    """Why a pair is refused: (reason, detail), or None where it is kept.

    >>> refusal("a dog", "", "it")
    ('empty', 'no text')
    >>> refusal("a dog", "un cane", "it")
    """
    for reason, check in _checks_without(tuple(skip)):
        if (detail := check(english, translation, code)) is not None:
            return reason, detail
    return None


@cache
def _checks_without(skip: tuple[str, ...]) -> list[tuple[str, Check]]:
    return [(reason, check) for reason, check in CHECKS.items() if reason not in skip]


def refusals(pairs: Sequence[tuple[str, str, str]], *, skip: Sequence[str] = ()) -> list[tuple[str, str] | None]:
    """`refusal` of each (English, translation, language): equal ones once, the languages of all together.

    >>> refusals([("a dog", "", "it"), ("a dog", "un cane", "it")])
    [('empty', 'no text'), None]
    """
    reasons = {pair: refusal(*pair, skip=(*skip, LAST)) for pair in dict.fromkeys(pairs)}
    if LAST not in skip:
        asked = [pair for pair, why in reasons.items() if why is None]
        for pair, certain in zip(asked, surely_right(asked), strict=True):
            if not certain and (detail := wrong_language(*pair)) is not None:
                reasons[pair] = LAST, detail
    return [reasons[pair] for pair in pairs]


def similarities(model: SentenceTransformer, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """Cosine of each (English, translation) under a cross-lingual embedder; each text is embedded once."""
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))
    if not texts:
        return []
    place = {text: i for i, text in enumerate(texts)}
    vectors = model.encode(
        text_inputs(model, texts), convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False
    ).float()
    left, right = (vectors[[place[pair[side]] for pair in pairs]] for side in (0, 1))
    return (left * right).sum(-1).tolist()
