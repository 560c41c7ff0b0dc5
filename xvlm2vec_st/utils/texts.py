"""Check texts, ids and names, and print them safely in messages."""

import re
import unicodedata

# Invisible characters whose Unicode category is a letter or symbol: Hangul fillers, the Braille blank.
UNSEEN = "\u115f\u1160\u2800\u3164\uffa0"
# A terminal executes control characters (C0, C1); direction marks display a name reversed.
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
HALF = re.compile(r"[\ud800-\udfff]")


def is_blank(text: str) -> bool:
    r"""Whether a text is invisible: white space, controls and characters without width only.

    >>> is_blank(" \u200b\0"), is_blank("\u200bdog")
    (True, False)
    """
    return all(unicodedata.category(c) in ("Cc", "Cf", "Zs", "Zl", "Zp") or c in UNSEEN for c in text)


def fault_of(text: str) -> str | None:
    r"""The reason why a text cannot be stored or read, or None.

    >>> fault_of("a\ud83d")
    'holds half a character (\\ud83d) at column 2; write the whole one, or leave it out'
    >>> fault_of("dog")
    """
    if match := HALF.search(text):
        code = f"\\u{ord(match.group()):04x}"
        where = f"at column {match.start() + 1}"
        return f"holds half a character ({code}) {where}; write the whole one, or leave it out"
    if "\0" in text:
        return f"holds a NUL character at column {text.index(chr(0)) + 1}; leave it out"
    return None


def printable(text: object) -> str:
    r"""A value for a message; characters that a terminal would execute are escaped.

    >>> printable("a\x1b[2J"), printable("dog: cane\n")
    ('a\\x1b[2J', 'dog: cane\n')
    """
    return UNPRINTABLE.sub(lambda match: ascii(match.group())[1:-1], str(text))


def one_line(text: object) -> str:
    r"""A value for a message of one line: as `printable`, and line breaks are escaped too.

    >>> one_line("a\n0.99  b.png")
    'a\\n0.99  b.png'
    """
    return printable(text).replace("\n", "\\n")
