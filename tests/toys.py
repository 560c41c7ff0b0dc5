"""Models with known answers, and rows for them: images and texts that hold a number."""

import json
import random
import re
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from PIL import Image as PILImage
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import InputModule

from mmmeb_tasks.data.layout import KINDS, LAYOUTS, Kind, data_file, files
from mmmeb_tasks.mini.world import LANGUAGES
from mmmeb_tasks.models.encoder import MMMEBEncoder

CONCEPTS, CANDIDATES = 12, 6
ALL = (*LANGUAGES,)


def write_mini(root: Path, kinds: Sequence[Kind] = KINDS) -> Path:
    """A data root for toys, all languages: 12 queries per kind."""
    for folder in ("mini_images", "datasets"):
        (root / folder).mkdir()
    for number in range(CONCEPTS):
        PILImage.new("RGB", (2, 2), (number, 0, 0)).save(root / f"mini_images/{number}.jpg", "PNG")
    for kind in kinds:
        for lang in ALL:
            lines = [json.dumps(write_line(kind, lang, i)) for i in range(CONCEPTS)]
            data_file(root, "mini", lang, 100, kind).write_text("\n".join(lines) + "\n")
    return root


def write_line(kind: Kind, lang: str, number: int) -> dict[str, object]:
    """Query `number`: image n shows n, texts name a number; the gold is their sum."""
    layout, gold = LAYOUTS[kind], number
    line: dict[str, object] = {"id": f"q{number}"}
    if layout.image:
        line[layout.image] = str(number)
    if layout.text:
        said = number if not layout.image else 5
        line[layout.text] = f"{lang} text {said}"
        gold = said if not layout.image else (number + said) % CONCEPTS
    others = [i for i in range(CONCEPTS) if i != gold]
    names = [gold, *random.Random(number).sample(others, CANDIDATES - 1)]
    line[layout.candidates] = [str(i) if layout.images else f"{lang} name {i}" for i in names]
    return line


def write_published(root: Path) -> Path:
    """All 29 files of the published layout, 12 queries a file, 6 candidates a query."""
    (root / "datasets").mkdir(parents=True)
    for row, lang, path in files(root):
        folder = root / f"{row.dataset}_images"
        if not folder.is_dir():
            folder.mkdir()
            for number in range(CONCEPTS):
                PILImage.new("RGB", (2, 2), (number, 0, 0)).save(folder / f"{number}.jpg", "PNG")
        lines = [write_line(row.kind, lang, number) for number in range(CONCEPTS)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return root


class Nothing(InputModule):
    """An input module that takes texts, images and both, and computes nothing."""

    modalities = ["text", "image", "message"]
    tokenizer = None

    def forward(self, features: dict, **kwargs: object) -> dict:
        """Never run."""
        return features

    def save(self, *args: object, **kwargs: object) -> None:
        """Never saved."""


class Toy(SentenceTransformer):
    """A model that sees the number of an image and reads the number in a text."""

    def __init__(self) -> None:
        super().__init__(modules=[Nothing()], device="cpu")

    def encode(self, inputs: list, **kwargs: object) -> np.ndarray:
        """One vector an input."""
        return np.stack([self.vector(*self.read(item)) for item in inputs])

    def read(self, item: str | dict) -> tuple[int, str]:
        """The sum of the numbers in an image and a text, and all that was read."""
        item = {"text": item} if isinstance(item, str) else item
        shown = item["image"].getpixel((0, 0))[0] if "image" in item else 0
        return shown + sum(map(int, re.findall(r"\d+", item["text"]))), f"{shown} {item['text']}"

    def vector(self, number: int, read: str) -> np.ndarray:
        """The unit vector of the number."""
        return np.eye(CONCEPTS)[number % CONCEPTS]


class Random(Toy):
    """A random vector for each thing that can be read."""

    def vector(self, number: int, read: str) -> np.ndarray:
        """Normal numbers from a seed made of what was read."""
        seed = int.from_bytes(sha256(read.encode()).digest()[:4])
        return np.random.default_rng(seed).standard_normal(16)


class Constant(Toy):
    """The same vector for everything."""

    def vector(self, number: int, read: str) -> np.ndarray:
        """Four ones."""
        return np.ones(4)


class Inverted(MMMEBEncoder):
    """What is alike counts as unlike."""

    def similarity(self, *embeddings: np.ndarray) -> torch.Tensor:
        """The cosine with the other sign."""
        return -super().similarity(*embeddings)
