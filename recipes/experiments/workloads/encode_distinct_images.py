"""Encode images that are all different: decoding and resizing against the model's work."""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from mmmeb_tasks.mini import TEACHER
from xvlm2vec_st import SentenceTransformer

TITLE = "encode, 192 different images of 1344 x 1344 pixels"
SIZES = {"images": 192, "side": 1344}


def prepare(folder: Path, images: int, side: int) -> None:
    """JPEG files with the detail of photographs: noise at 1/16 of the size, enlarged."""
    noise = np.random.default_rng(0)
    for number in range(images):
        small = Image.fromarray(noise.integers(0, 255, (side // 16, side // 16, 3), np.uint8))
        small.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{number:04}.jpg", quality=90)


def run(folder: Path) -> str:
    """Encode them with the bundled teacher; the digest is of the embeddings' bits."""
    model = SentenceTransformer(str(TEACHER), device="cpu")
    rows = [{"image": str(path), "text": "Represent the image"} for path in sorted(folder.glob("*.jpg"))]
    return hashlib.sha256(model.encode(rows, batch_size=16).tobytes()).hexdigest()
