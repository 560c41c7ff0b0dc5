"""What the mini world says, in each language: captions and questions with slots for names.

Names come from CLDR as they are, so the phrases leave them uninflected and without an article.
"""

from dataclasses import dataclass

RELATIONS = ("left", "right", "above", "below")
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


@dataclass(frozen=True)
class Phrases:
    """Templates of one language: `{a}` is the subject, `{b}` what it is placed by."""

    caption: dict[str, str]
    question: dict[str, str]


def _phrases(caption: str, question: str, places: tuple[str, str, str, str]) -> Phrases:
    """Fill the place of `{place}` for each of RELATIONS, in that order."""
    return Phrases(
        {r: caption.replace("{place}", place) for r, place in zip(RELATIONS, places, strict=True)},
        {r: question.replace("{place}", place) for r, place in zip(RELATIONS, places, strict=True)},
    )


def _opposed(caption: str, question: str, places: tuple[str, str, str, str]) -> Phrases:
    """The same for a language that names both places: `{where}` the subject is, and `{other}` opposite."""
    names = dict(zip(RELATIONS, places, strict=True))

    def fill(text: str) -> dict[str, str]:
        return {r: text.replace("{where}", names[r]).replace("{other}", names[OPPOSITE[r]]) for r in RELATIONS}

    return Phrases(fill(caption), fill(question))


PHRASES = {
    "en": _phrases("{a} {place} {b}", "what is {place} {b}?", ("to the left of", "to the right of", "above", "below")),
    "it": _phrases("{a} {place} {b}", "cosa c'è {place} {b}?", ("a sinistra di", "a destra di", "sopra", "sotto")),
    "es": _phrases(
        "{a} {place} {b}",
        "¿qué hay {place} {b}?",
        ("a la izquierda de", "a la derecha de", "encima de", "debajo de"),
    ),
    "fr": _phrases(
        "{a} {place} {b}",
        "qu'y a-t-il {place} {b} ?",
        ("à gauche de", "à droite de", "au-dessus de", "en dessous de"),
    ),
    "de": _phrases("{a} {place} {b}", "was ist {place} {b}?", ("links von", "rechts von", "über", "unter")),
    "pt": _phrases(
        "{a} {place} {b}", "o que há {place} {b}?", ("à esquerda de", "à direita de", "acima de", "abaixo de")
    ),
    "nl": _phrases("{a} {place} {b}", "wat is er {place} {b}?", ("links van", "rechts van", "boven", "onder")),
    # Names stand in the nominative: "on the left a dog, on the right a cat" needs no other case.
    "pl": _opposed(
        "{where} {a}, {other} {b}", "{other} {b}, co jest {where}?", ("po lewej", "po prawej", "na górze", "na dole")
    ),
    "ru": _opposed("{where} {a}, {other} {b}", "{other} {b}, что {where}?", ("слева", "справа", "сверху", "снизу")),
    "ja": _phrases("{b}の{place}に{a}", "{b}の{place}に何がある?", ("左", "右", "上", "下")),
    "zh": _phrases("{a}在{b}的{place}", "{b}的{place}是什么?", ("左边", "右边", "上面", "下面")),
}

# Any other CLDR locale: names are words of the language, the place is an arrow that points from
# the thing it is placed by to the subject.
ARROWS = _phrases("{a} {place} {b}", "? {place} {b}", ("⬅", "➡", "⬆", "⬇"))


def phrases(language: str) -> Phrases:
    """The language's templates, or arrows between names where the table has none.

    >>> phrases("de").caption["left"].format(a="roter Apfel", b="Hund")
    'roter Apfel links von Hund'
    >>> phrases("fi").caption["above"].format(a="omena", b="koira")
    'omena ⬆ koira'
    """
    return PHRASES.get(language, ARROWS)
