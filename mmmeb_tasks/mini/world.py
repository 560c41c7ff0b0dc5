"""The mini world's concepts: an image and a name in every language, read from the bundle."""

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from mmmeb_tasks.mini.bundle import BUNDLE

LANGUAGES = ("en", "it", "es", "fr", "de")
ELEVEN = (*LANGUAGES, "pt", "nl", "pl", "ru", "zh", "ja")  # in three scripts and more
ALIASES = {"ind": "id"}  # a corpus has its rows' ids under `id`


@dataclass(frozen=True)
class Concept:
    """One thing of the mini world: its glyph (64 x 64 RGBA) and `{language: name}`."""

    emoji: str
    names: dict[str, str]
    glyph: Image.Image


@dataclass(frozen=True)
class World:
    """All concepts, in the bundle's order, with names in `languages`."""

    concepts: tuple[Concept, ...]
    languages: tuple[str, ...]
    sources: dict[str, str]

    def name(self, concept: int, language: str) -> str:
        """The name of concept number `concept` in one of the world's languages."""
        return self.concepts[concept].names[language]


@cache
def _read(bundle: Path) -> tuple[dict, dict[str, Image.Image]]:
    with zipfile.ZipFile(bundle) as archive:
        world = json.loads(archive.read("world.json"))
        glyphs = {}
        for entry in world["concepts"]:
            data = archive.read(f"glyphs/{ord(entry['emoji']):x}.png")
            glyphs[entry["emoji"]] = Image.open(io.BytesIO(data)).convert("RGBA")
    return world, glyphs


def load_world(languages: Sequence[str] = LANGUAGES, *, bundle: Path = BUNDLE) -> World:
    """Read the bundled world, with names in `languages` (CLDR locales; 101 are bundled).

    Raises:
        ValueError: for a language without names; the message lists those that have them.

    >>> world = load_world(["en", "it"])
    >>> world.name(45, "it")
    'girasole'
    """
    data, glyphs = _read(bundle)
    known = (*data["concepts"][0]["names"], *ALIASES)
    if unknown := [language for language in languages if language not in known]:
        raise ValueError(
            f"the mini world has no names in {unknown}; it has {', '.join(known)}. "
            "python -m mmmeb_tasks.mini.bundle adds a CLDR locale."
        )
    concepts = tuple(
        Concept(
            entry["emoji"],
            {language: entry["names"][ALIASES.get(language, language)] for language in languages},
            glyphs[entry["emoji"]],
        )
        for entry in data["concepts"]
    )
    return World(concepts, tuple(languages), data["sources"])
