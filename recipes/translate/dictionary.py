"""A translator without a model: names that people gave (Unicode CLDR) and phrases with slots for them."""

import re
from collections.abc import Mapping, Sequence

from mmmeb_tasks.mini.phrases import phrases
from mmmeb_tasks.mini.world import load_world

from .fields import instruction_field, instruction_table
from .languages import nearest
from .placeholders import mask


class Dictionary:
    """Translate by looking up: whole texts, then patterns whose slots are looked up in turn.

    Args:
        tables: `{language: {English: translation}}`; an entry may have slots, as in
            `{"{a} above {b}": "{a} sopra {b}"}`.
        name: what decides the translations.

    >>> Dictionary({"it": {"dog": "cane", "cat": "gatto", "{a} above {b}": "{a} sopra {b}"}}).translate(
    ...     ["cat above dog", "bird"], "it")
    ['gatto sopra cane', '']
    """

    max_tokens = 512

    def __init__(self, tables: Mapping[str, Mapping[str, str]], name: str = "dictionary") -> None:
        self.name = name
        self.tables = tables
        self.patterns = {
            code: [(_pattern(english), target) for english, target in table.items() if _SLOT.search(english)]
            for code, table in tables.items()
        }

    def check_language(self, code: str) -> None:
        """Raise `ValueError`, with the nearest codes, for a language that it does not have."""
        if code not in self.tables:
            raise ValueError(f"{self.name}: does not know language {code!r}; {nearest(code, self.tables)}")

    def lengths(self, texts: Sequence[str], code: str) -> list[int]:
        """How many words each text has."""
        return [len(text.split()) for text in texts]

    def translate(self, texts: Sequence[str], code: str) -> list[str | None]:
        """One translation a text; "" where a word is not in the dictionary."""
        return [self._translate(text, code) for text in texts]

    def _translate(self, text: str, code: str) -> str:
        if text in self.tables[code]:
            return self.tables[code][text]
        for pattern, target in self.patterns[code]:
            if match := pattern.fullmatch(text):
                slots = {key: self.tables[code].get(value) for key, value in match.groupdict().items()}
                if all(slots.values()):
                    return target.format(**slots)
        return ""


_SLOT = re.compile(r"\{(\w+)\}")


def _pattern(english: str) -> re.Pattern:
    """`{a} above {b}` as what finds it; the slots take any text."""
    return re.compile("".join(f"(?P<{p}>.+)" if i % 2 else re.escape(p) for i, p in enumerate(_SLOT.split(english))))


def mini_dictionary(languages: Sequence[str]) -> Dictionary:
    """The mini world's names and phrases: true translations of all that it says.

    Instructions that a language lacks are left in English, as the mini world's benchmark has them.

    Raises:
        ValueError: a language without names.

    >>> mini_dictionary(["pt"]).translate(["dog to the left of cat", "what is above dog?"], "pt")
    ['cachorro à esquerda de gato', 'o que há acima de cachorro?']
    """
    world = load_world(["en", *languages])
    english = phrases("en")
    tables = {}
    for code in languages:
        table = {concept.names["en"]: concept.names[code] for concept in world.concepts}
        target = phrases(code)
        for relation in english.caption:
            table[english.caption[relation]] = target.caption[relation]
            table[english.question[relation]] = target.question[relation]
            # MMMEB's plain style: no final mark.
            table[english.question[relation].rstrip("? ")] = target.question[relation].rstrip("? ")
        for instruction, known in instruction_table().items():
            if code not in known:
                field = mask(instruction_field(instruction))[0]
                table[field] = field
        tables[code] = table
    return Dictionary(tables, name="cldr")
