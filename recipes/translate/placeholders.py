"""What must come through a translator unchanged: placeholders, quoted labels, links, numbers.

A text goes to the translator with marks instead of what is kept: `a sign that says <0>`. Where
the answer lacks a mark or a number, the text is translated again in pieces, between what is kept:
then nothing can be lost.
"""

import re
import unicodedata
from collections import Counter

MARK = re.compile(r"<\s*(\d{1,9})\s*>")
PLACEHOLDER = re.compile(
    r"""<\|[^|>\s]*\|>             # <|image_1|>
      | </?[A-Za-z][^<>\n]{0,60}>  # a tag
      | \{[^{}\n]{0,40}\}          # {x}
      | %(?:\(\w+\))?[sdif](?!\w)  # %s, %(name)s
      | \[[A-Z]{2,}\]              # [SEP]
      | https?://\S+ | (?<![\w.+-])[\w.+-]+@[\w-]{1,64}\.\w{2,}""",
    re.VERBOSE,
)
# A mark after a number is an inch: 'a 15" screen and a 17" screen' quotes nothing.
QUOTED = re.compile(
    r"(?<![\d½¼¾⅛⅜⅝⅞])(?:(?<!\d\s)|(?=.\S))[\"“„”]([^\"“„”\n]{1,60})[\"“”]"
    r"|«\s?([^»\n]{1,60}?)\s?»|[「『]([^」』\n]{1,60})[」』]"
)
OPENERS = frozenset("“„”«「『")  # of quoted labels, beside the ASCII one
DIGIT = re.compile(r"\d")
NUMBER = re.compile(r"\d+(?:[.,:'’\u00a0\u202f]\d+)*")
KEPT = re.compile(rf"(?:{PLACEHOLDER.pattern})|(?:{QUOTED.pattern})", re.VERBOSE)
KEPT_OR_NUMBER = re.compile(rf"{KEPT.pattern}|(?:{NUMBER.pattern})", re.VERBOSE)


def mask(text: str) -> tuple[str, list[str]]:
    """A text with marks in place of what is kept, and what the marks stand for.

    >>> mask('a sign that says "NO 5" at {place}')
    ('a sign that says <0> at <1>', ['"NO 5"', '{place}'])
    """
    kept: list[str] = []

    def mark(match: re.Match) -> str:
        kept.append(match.group())
        return f"<{len(kept) - 1}>"

    return KEPT.sub(mark, text), kept


def unmask(translated: str, kept: list[str]) -> str | None:
    """Put back what the marks stand for; None where a mark is lost, doubled or new.

    >>> unmask("un cartello < 0 >", ['"STOP"'])
    'un cartello "STOP"'
    >>> unmask("un cartello", ['"STOP"']) is None
    True
    """
    if sorted(int(n) for n in MARK.findall(translated)) != list(range(len(kept))):
        return None
    return MARK.sub(lambda match: kept[int(match.group(1))], translated)


def pieces(text: str) -> list[tuple[str, bool]]:
    """The text in order, as (piece, whether to translate it): kept things, numbers and edges are not.

    >>> pieces('3 dogs by "A"')
    [('3 ', False), ('dogs by', True), (' "A"', False)]
    """
    parts: list[tuple[str, bool]] = []
    start = 0
    for match in [*KEPT_OR_NUMBER.finditer(text), None]:
        between = text[start : match.start() if match else len(text)]
        inner = between.strip()
        if any(c.isalpha() for c in inner):
            before, _, after = between.partition(inner)
            parts += [(before, False), (inner, True), (after, False)]
        else:
            parts.append((between, False))
        if match:
            parts.append((match.group(), False))
            start = match.end()
    merged: list[tuple[list[str], bool]] = []
    for piece, translate in parts:
        if merged and not translate and not merged[-1][1]:
            merged[-1][0].append(piece)
        elif piece:
            merged.append(([piece], translate))
    return [("".join(some), translate) for some, translate in merged]


def numbers(text: str) -> Counter[str]:
    """The numbers of a text by their digits: 1,000.5 and 1.000,5 and １０００٫5 are one.

    >>> numbers("1,000 dogs, ٣ cats") == numbers("1.000 Hunde, 3 Katzen")
    True
    """
    if not DIGIT.search(text):
        return Counter()
    numerals = (DIGIT.findall(number) for number in NUMBER.findall(text))
    return Counter("".join(str(unicodedata.digit(c)) for c in digits) for digits in numerals)


def placeholders(text: str) -> Counter[str]:
    """The placeholders of a text.

    >>> sorted(placeholders("<|image_1|> of {x}, {x}").items())
    [('<|image_1|>', 1), ('{x}', 2)]
    """
    return Counter(PLACEHOLDER.findall(text)) if may_hold_placeholder(text) else Counter()


def may_hold_placeholder(text: str) -> bool:
    """Whether a text has a sign that every placeholder has one of; far faster than the search.

    >>> may_hold_placeholder("a dog, at 5 o'clock"), may_hold_placeholder("{x}")
    (False, True)
    """
    return "<" in text or "{" in text or "%" in text or "[" in text or "@" in text or "://" in text


def quotes(text: str) -> int:
    """How many quoted labels a text has, in whatever quotation marks.

    >>> quotes('labeled as "dog"'), quotes("étiqueté « chien »"), quotes("「犬」"), quotes('15" and 17"')
    (1, 1, 1, 0)
    """
    may_quote = '"' in text or not (text.isascii() or OPENERS.isdisjoint(text))
    return len(QUOTED.findall(text)) if may_quote else 0
