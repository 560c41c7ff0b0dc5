"""Repair of a translation's ends: they become those of the English; marks are replaced, never appended.

The published corpus' rules (arXiv 2503.09313) appended ("Was ist das." + "?" gave "Was ist das.?"), knew
ASCII marks only, emptied texts of one character, and failed on a lone newline.
"""

import re

from .languages import Language, language

# Every script's marks, by what they say. The Greek question mark is a semicolon: see `mark_class`.
CLASSES = {
    "stop": ".。．｡।॥۔።։᙮។။",
    "question": "?？؟՞፧⸮\u037e",
    "exclamation": "!！՜¡",
    "colon": ":：፡",
}
MARK_CHARACTERS = "".join(CLASSES.values()) + "…"
CLOSERS = "\"'”’»)]」』）】"
# MADLAD's training data leaves "#300000 - " and the like before some translations.
ARTEFACT = re.compile(r"#\d+\s*[-–—:]\s*")
ARTEFACTS = re.compile(rf"^(?:{ARTEFACT.pattern})+")
# "z.B.", "U.S.", "etc.": a point that belongs to the word.
ABBREVIATION = re.compile(r"(?:[^\W\d]\.[^\W\d]{1,2}$|\b(?:etc|ecc|usw|al|Dr|Mr|Mrs|St|Sr|vs|No)$)")


def repair(english: str, translation: str, code: str) -> str:
    r"""A translation with the English text's ends: white space, final mark, no artefact.

    >>> repair("What is this?\n", "Was ist das.", "de")
    'Was ist das?\n'
    >>> repair("A dog.", "#300000 - 犬です", "ja")
    '犬です。'
    >>> repair("\n", "\n", "de")
    '\n'
    """
    body = english.strip()
    if not body or not translation.strip():
        return english if not body else ""
    head, tail = english[: english.index(body[0])], english[len(english.rstrip()) :]
    text = strip_artefact(body, translation.strip())
    return head + repair_end(body, text, language(code)) + tail


def strip_artefact(english: str, translation: str) -> str:
    """Cut "#300000 - " from a translation's start, unless the English begins so.

    >>> strip_artefact("a dog", "#300000 - ein Hund")
    'ein Hund'
    """
    if ARTEFACT.match(english):
        return translation
    return ARTEFACTS.sub("", translation)


def repair_end(english: str, translation: str, target: Language) -> str:
    """Give a translation the English text's final mark, in its own script.

    >>> repair_end("a dog", "¿un perro?", language("es"))
    'un perro'
    >>> repair_end("Is it big?", "它大吗。", language("zh"))
    '它大吗？'
    >>> repair_end("for example", "z.B.", language("de"))
    'z.B.'
    """
    wanted, actual = mark_class(english, "en"), mark_class(translation, target.code)
    if wanted == actual or wanted == "ellipsis":
        return translation
    core, marks, closers = ending(translation)
    if actual == "question" and not marks:  # the Greek ;
        core = core.rstrip(";")
    # A text that is nothing but marks stays; so does a word whose point is its own.
    if not core or (wanted is None and actual == "stop" and ABBREVIATION.search(core)):
        return translation
    if actual in ("question", "exclamation"):
        core = core.lstrip("¿¡")
    mark = target.marks[wanted] if wanted else ""
    # 'It says "stop".' or 'He said "stop."': the mark goes where the English has it.
    return core.rstrip() + (mark + closers if ending(english)[2] else closers + mark)


def ending(text: str) -> tuple[str, str, str]:
    """(text before, final marks, quotes and brackets after them); in linear time, for any text.

    >>> ending('He said "no!"')
    ('He said "no', '!', '"')
    """
    rest = text.rstrip(CLOSERS)
    core = rest.rstrip(MARK_CHARACTERS)
    return core.rstrip(), rest[len(core) :], text[len(rest) :]


def mark_class(text: str, code: str) -> str | None:
    """What a text ends as: stop, question, exclamation, colon, ellipsis, or None.

    >>> mark_class('He said "no!"', "en"), mark_class("Τι είναι;", "el"), mark_class("ok...", "en")
    ('exclamation', 'question', 'ellipsis')
    """
    text = text.rstrip()
    if text[-1:].isalnum():  # most texts without a mark
        return None
    marks = ending(text)[1]
    if not marks:
        return "question" if code.startswith("el") and text.endswith(";") else None
    if "…" in marks or re.search(r"\.\.|。。", marks):
        return "ellipsis"
    for name in ("question", "exclamation", "colon"):
        if not set(marks).isdisjoint(CLASSES[name]):
            return name
    return "stop"
