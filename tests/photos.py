"""Folders of small images, and a model with known answers for them."""

import time
from pathlib import Path

import numpy as np
from PIL import Image

from recipes.image_search.store import ImageIndex, Space

DIM = 48
SPACE = Space("toy", None, "0f" * 16, "", DIM)


class Toy:
    """Embeds an image as its pixels, 4 x 4. Counts what it embeds; refuses images of `refused` pixels width."""

    def __init__(self, *, seconds: float = 0.0, refused: int = -1) -> None:
        self.embedded, self.seconds, self.refused = 0, seconds, refused

    def encode_document(self, items: list[dict], **options: object) -> np.ndarray:
        time.sleep(self.seconds)
        if any(item["image"].width == self.refused for item in items):
            raise ValueError("row 0: too wide")
        self.embedded += len(items)
        return np.stack([pixels(item["image"]) for item in items])


def pixels(image: Image.Image) -> np.ndarray:
    """A unit vector of 48 numbers, from -1 to 1."""
    values = np.asarray(image.convert("RGB").resize((4, 4), Image.Resampling.BOX), np.float32).ravel() / 127.5 - 1
    return values / np.linalg.norm(values)


def write_photos(root: Path, numbers: range) -> None:
    """An image of 32 x 32 for each number, the same each time, in a folder for each hundred."""
    for number in numbers:
        blocks = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        path = photo(root, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(blocks.repeat(8, 0).repeat(8, 1)).save(path)


def photo(root: Path, number: int) -> Path:
    """Where `write_photos` writes an image."""
    return root / f"{number // 100:03}" / f"{number:05}.png"


def rows(index: ImageIndex) -> list[dict]:
    """All columns of an index, by path."""
    index.table.checkout_latest()
    return sorted(index.table.to_arrow().to_pylist(), key=lambda row: row["path"])


def empty_index(folder: Path, root: Path) -> ImageIndex:
    """A new index of a folder of images, for `Toy`."""
    return ImageIndex.create(folder, SPACE, root)
