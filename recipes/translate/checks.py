"""Why a translation is refused: one small function a reason, in the order of a table."""

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache

from sentence_transformers import SentenceTransformer

from xvlm2vec_st.encoding.inputs import text_inputs

from .fields import contents
from .language_check import width, wrong_language
from .languages import SCRIPTS, language
from .misaligned import mismatch
from .placeholders import numbers, placeholders, quotes
from .repair import ARTEFACT

# A sentence's end: a mark and a new beginning, not the point of Mr. or of an initial.
SENTENCE = re.compile(
    r"(?<!\bMr)(?<!\bDr)(?<!\bSt)(?<!\bMs)(?<!\bvs)(?<!Mrs)(?<!\b\w)[.!?…؟۔։።][\"'”’»)]*(?=\s+[^\Wa-z\d_]|\s*$)"
    r"|[。！？।॥။។][」』”)]*"
)
SENTENCE_END = re.compile(r"[.!?…؟۔։።。！？।॥။។]")
BROKEN = ("\u2047", "\ufffd", "<unk>", "<UNK>", "[UNK]")
SLACK = 10  # letters that both sides are given, since short texts differ widely
RATIO = (0.4, 2.5)
REPEATED = re.compile(r"(.{2,60}?)\1{3,}", re.DOTALL)  # four times in a row


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
    before, after = sentences(source), sentences(target)
    if before < 2 or after >= before:
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
    before, after = placeholders(english), placeholders(translation)
    return None if before == after else " ".join((before - after) + (after - before))


def lost_number(english: str, translation: str, code: str) -> str | None:
    """A number lost; separators and digits of other scripts do not count.

    >>> lost_number("2 of 1,000", "2 von 1.000", "de"), lost_number("2 dogs", "drei Hunde", "de")
    (None, '2')
    """
    return " ".join(numbers(english) - numbers(translation)) or None


def lost_quote(english: str, translation: str, code: str) -> str | None:
    """A quoted label lost."""
    before, after = quotes(english), quotes(translation)
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
    source = set(re.findall(r"\w+", english.casefold()))
    for word in re.findall(r"\w+", translation):
        for part in _foreign(word, own):
            known = part.casefold() in source or part.strip("0123456789_").casefold() in source
            if not known and not part.isupper():
                return part
    return None


def _foreign(word: str, own: tuple[str, ...]) -> Iterator[str]:
    """The parts of a word in other scripts: without spaces, a name is one with the next word."""
    part, has_letter = "", False
    for character in word:
        # Marks of any script (category M) and letters common to many, such as ª, pass.
        letter = unicodedata.category(character)[0] == "L"
        if letter and _of_script(character, own):
            if has_letter:
                yield part
            part, has_letter = "", False
        else:
            part, has_letter = part + character, has_letter or letter
    if has_letter:
        yield part


@cache
def _of_script(letter: str, scripts: tuple[str, ...]) -> bool:
    name = unicodedata.name(letter, "")
    first = name.removeprefix("FULLWIDTH ").removeprefix("HALFWIDTH ").split(" ")[0]
    return first in scripts or first in ("MODIFIER", "FEMININE", "MASCULINE", "MICRO", "OHM", "IDEOGRAPHIC")


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
    match = REPEATED.search(translation)
    return match.group(1) if match and not REPEATED.search(english) else None


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


def refusal(english: str, translation: str, code: str, *, skip: Sequence[str] = ()) -> tuple[str, str] | None:
    """Why a pair is refused: (reason, detail), or None where it is kept.

    >>> refusal("a dog", "", "it")
    ('empty', 'no text')
    >>> refusal("a dog", "un cane", "it")
    """
    for reason, check in CHECKS.items():
        if reason not in skip and (detail := check(english, translation, code)) is not None:
            return reason, detail
    return None


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
