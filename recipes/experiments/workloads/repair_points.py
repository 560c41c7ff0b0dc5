"""Repair and check texts of 40,000 characters that are all alike: code that is not linear takes minutes."""

import json
from hashlib import sha256
from pathlib import Path

from recipes.translate.checks import refusal
from recipes.translate.fields import join_fields
from recipes.translate.repair import repair

TITLE = "repair and checks of 40,000 points in a row, and of other long texts"
SIZES = {"characters": 40_000}
UNITS = (".", ". ", "…", "a.", '."', "Q: a\n", "1\n", "犬", "я", "? ")


def prepare(folder: Path, *, characters: int) -> None:
    """Write the texts."""
    texts = [f"a {unit * (characters // len(unit))} b" for unit in UNITS]
    texts += [unit * (characters // len(unit)) for unit in UNITS]
    (folder / "texts.json").write_text(json.dumps(texts), "utf-8")


def run(folder: Path) -> str:
    """Repair, check and join each text; returns a digest of the results."""
    digest = sha256()
    for text in json.loads((folder / "texts.json").read_text("utf-8")):
        for english, translation in (("A dog.", text), (text, "Un cane"), (text, text)):
            repaired = repair(english, translation, "it")
            digest.update(repr((repaired, refusal(english, repaired, "it"))).encode())
        digest.update(join_fields(text, "it", str).encode())
    return digest.hexdigest()
