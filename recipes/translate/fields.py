"""A text and the fields in it that are translated one by one: instruction, lines, labels of speakers.

The published pipeline glued fields into one string and split the translation by its own words for
"Question:" and "Answer:". Here the structure never goes through a translator: line breaks, speakers'
labels and the place of `{x}` in an instruction stay, and known instructions come from a table.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache

from mmmeb_tasks.instructions import EXTRA_INSTRUCTIONS, PUBLISHED

from .languages import language
from .repair import mark_class, repair_end, strip_artefact

# The other instructions of MMEB-train; `{x}` is the row's own text. Each is translated once.
MMEB_INSTRUCTIONS = (
    "Represent the given dialogue about an image, which is used for image retrieval: {x}",
    "Given an image, find a similar everyday image with the described changes: {x}",
    "Find an image to match the fashion image and style note: {x}",
    "Find a day-to-day image that looks similar to the provided image",
    "Represent the given day-to-day image",
    "Represent the given news image with the following caption for domain classification: {x}",
    "Identify the scene shown in the image",
    "Identify the object shown in the image",
    "Find a caption for the news in the given photo",
    "Retrieve an image of this news caption: {x}",
    "Retrieve an image of this news caption. {x}",
    "Find a Wikipedia image that answers this question: {x}",
    "Represent the given Wikipedia image with related text information: {x}",
    'Select the portion of the image that answers the question "{x}"',
    'Select the portion of the image that follows the language expressions: "{x}"',
)
ENDS = ".?!"
SHORT = 10_000  # characters of a text of which many are kept in parts
SPEAKER = re.compile(r"^(\s*[A-Z]\s*[:.)]\s*)(?=\S)")  # "Q: ", "A:", "B) "
BREAK = re.compile(r"((?<!\s)\s*\n\s*)")
LABEL = re.compile(r"^(\s*)(Question|Answer|Caption|Context|Title|Options?)(\s*:\s*)(?=\S)")


@dataclass(frozen=True)
class Split:
    """A text as head + instruction filled with the pieces + ending + tail; pieces: (text, translate)."""

    head: str
    instruction: str | None
    pieces: tuple[tuple[str, bool], ...]
    ending: str
    tail: str


@cache
def instruction_table() -> dict[str, dict[str, str]]:
    """English instruction -> `{language: instruction}`, for every one that is more than `{x}`.

    >>> instruction_table()["Represent the given image"]["de"]
    'Stelle das gegebene Bild dar'
    """
    table: dict[str, dict[str, str]] = {}
    for kind, published in PUBLISHED.items():
        known = published | EXTRA_INSTRUCTIONS.get(kind, {})
        for side in (0, 1):
            english = known["en"][side]
            if english != "{x}":
                table[english] = {code: sides[side] for code, sides in known.items()}
    return table


def _known_instructions(code: str) -> list[tuple[str, str]]:
    """(instruction in the language, in English), the longest first."""
    known_pairs = [(known[code], english) for english, known in instruction_table().items() if code in known]
    if code == "en":
        known_pairs += [(text, text) for text in MMEB_INSTRUCTIONS]
    return sorted(known_pairs, key=lambda pair: -len(pair[0]))


@cache
def _patterns(code: str) -> list[tuple[str, re.Pattern]]:
    """(English instruction, what finds it in a text of the language), the longest first."""
    return [(english, _pattern(text)) for text, english in _known_instructions(code)]


@cache
def _openings(code: str) -> re.Pattern:
    """What finds the words before `{x}` of any known instruction at a text's start."""
    openings = [re.escape(text.partition("{x}")[0].rstrip()) for text, _ in _known_instructions(code)]
    return re.compile("|".join(openings) or r"(?!)", re.IGNORECASE)


def _pattern(instruction: str) -> re.Pattern:
    before, x, after = (re.escape(part) for part in instruction.partition("{x}"))
    ends = f"(?P<ending>[{ENDS}]*)"
    if not x:
        return re.compile(f"{before}{ends}", re.IGNORECASE)
    before = before.removesuffix(r"\ ") + r"\s*+"  # possessive: nothing is tried twice
    return re.compile(f"{before}(?P<x>.+?){after}{ends if after else ''}", re.IGNORECASE | re.DOTALL)


def split_text(text: str, code: str = "en") -> Split:
    r"""Part a text of a language into its instruction and the pieces of its own content.

    >>> split_text("Represent the given image.\n").instruction
    'Represent the given image'
    >>> split_text("Q: a dog?\nA: no").pieces
    (('Q: ', False), ('a dog?', True), ('\n', False), ('A: ', False), ('no', True))
    """
    return _known_split(text, code) if len(text) <= SHORT else _known_long_split(text, code)


def _split(text: str, code: str) -> Split:
    body = text.strip()
    if not body:
        return Split(text, None, (), "", "")
    head, tail = text[: text.index(body[0])], text[len(text.rstrip()) :]
    for english, pattern in _patterns(code) if _openings(code).match(body) else ():
        if match := pattern.fullmatch(body):
            groups = match.groupdict()
            own = split_lines(groups["x"].strip()) if groups.get("x") else ()
            return Split(head, english, own, groups.get("ending") or "", tail)
    return Split(head, None, split_lines(body), "", tail)


# Several checks in a row part the same text; long ones would fill the memory.
_known_split = lru_cache(maxsize=4096)(_split)
_known_long_split = lru_cache(maxsize=4)(_split)


def split_lines(text: str) -> tuple[tuple[str, bool], ...]:
    r"""(piece, whether to translate it): line breaks, speakers, and what has no letter stay.

    >>> split_lines("Question: how many?\n\n 12")
    (('Question', True), (': ', False), ('how many?', True), ('\n\n 12', False))
    """
    parts: list[tuple[str, bool]] = []
    for line in BREAK.split(text) if "\n" in text else (text,):
        if label := LABEL.match(line):
            parts += [(label[1], False), (label[2], True), (label[3], False)]
            line = line[label.end() :]
        elif speaker := SPEAKER.match(line):
            parts.append((speaker[1], False))
            line = line[speaker.end() :]
        if line[-1:].isspace() and line.strip():  # a speaker's line may end in blanks
            parts += [(line.rstrip(), _has_letters(line)), (line[len(line.rstrip()) :], False)]
        else:
            parts.append((line, _has_letters(line)))
    joined: list[tuple[list[str], bool]] = []
    for piece, translate in parts:
        if joined and not translate and not joined[-1][1] and not SPEAKER.match(f"{piece}x"):
            joined[-1][0].append(piece)
        elif piece:
            joined.append(([piece], translate))
    return tuple(("".join(some), translate) for some, translate in joined)


def _has_letters(text: str) -> bool:
    return any(map(str.isalpha, text))


def instruction_field(english: str) -> str:
    """What of an instruction goes to a translator: a `{x}` at its end is joined again afterwards.

    >>> instruction_field("Find me an everyday image that matches the given caption: {x}")
    'Find me an everyday image that matches the given caption:'
    """
    return english.removesuffix("{x}").rstrip()


def fields_of(text: str, code: str) -> list[str]:
    """The texts that a translator must give for an English text in language `code`.

    >>> fields_of("Find me an everyday image that matches the given caption: a dog.", "it")
    ['a dog.']
    >>> fields_of("Represent the given image", "it")
    []
    """
    split = split_text(text)
    fields = [piece for piece, translate in split.pieces if translate]
    if split.instruction and code not in instruction_table().get(split.instruction, {}):
        fields.append(instruction_field(split.instruction))
    return fields


def join_fields(text: str, code: str, translated: Callable[[str], str]) -> str:
    r"""The translation of an English text, from `translated(field)` for each of its fields.

    Each field gets its own English end back; an empty field makes the whole empty.

    >>> join_fields("Q: a dog?\nA: no\n", "it", {"a dog?": "un cane.", "no": "no"}.get)
    'Q: un cane?\nA: no\n'
    """
    split = split_text(text)
    target = language(code)
    own: list[str] = []
    for piece, translate in split.pieces:
        translation = strip_artefact(piece, translated(piece).strip()) if translate else piece
        if not translation.strip() and translate:
            return ""
        own.append(repair_end(piece, translation, target) if translate else translation)
    instruction = "".join(own)
    if split.instruction:
        known = instruction_table().get(split.instruction, {})
        instruction = known.get(code)
        if instruction is None:
            field = instruction_field(split.instruction)
            translation = strip_artefact(field, translated(field).strip())
            if not translation:
                return ""
            instruction = repair_end(field, translation, target) + split.instruction[len(field) :]
        if split.ending:
            instruction += target.marks.get(mark_class(split.ending, "en"), split.ending)
        instruction = instruction.replace("{x}", "".join(own))
    return split.head + instruction + split.tail


@lru_cache(maxsize=4)  # several checks in a row
def contents(english: str, translation: str, code: str) -> tuple[str, str]:
    """Both texts without their instruction, which says nothing of the translation's quality.

    Where the translation's is not known, both with it.

    >>> contents("Represent the given image with the following question: what?",
    ...          "Rappresenta l'immagine data con la seguente domanda: cosa?", "it")
    ('what?', 'cosa?')
    """
    source, target = split_text(english), split_text(translation, code)
    if target.instruction is None and _openings("en").match(translation.strip()):  # left in English, perhaps
        target = split_text(translation, "en")
    if source.instruction is not None and target.instruction is None:
        return english, translation
    return own_text(source), own_text(target)


def own_text(split: Split) -> str:
    """What a text says beside its instruction.

    >>> own_text(split_text("Find me an everyday image that matches the given caption: a dog."))
    'a dog.'
    """
    return split.pieces[0][0] if len(split.pieces) == 1 else "".join([piece for piece, _ in split.pieces])


def untabled_content(english: str, code: str) -> str | None:
    """The own text of an English text whose instruction the table lacks in a language; or None.

    >>> untabled_content("Find me an everyday image that matches the given caption: a dog.", "pt")
    'a dog.'
    """
    split = split_text(english)
    if split.instruction is None or code in instruction_table().get(split.instruction, {}):
        return None
    return own_text(split) or None
