"""Encode sixteen texts of each image, in batches that hold half of them."""

import hashlib
from pathlib import Path

from mmmeb_tasks.mini import TEACHER
from xvlm2vec_st import SentenceTransformer

TITLE = "encode, 16 texts for each of 96 images of 1504 x 1504 pixels"
SIZES = {"images": 96, "side": 1504}


def prepare(folder: Path, images: int, side: int) -> None:
    """JPEG files: see `encode_distinct_images`."""
    from .encode_distinct_images import prepare as write_images  # `run` meets versions that do not have this file

    write_images(folder, images, side)


def run(folder: Path) -> str:
    """Encode them with the bundled teacher; the digest is of the embeddings' bits."""
    model = SentenceTransformer(str(TEACHER), device="cpu")
    paths = sorted(folder.glob("*.jpg"))
    rows = [{"image": str(path), "text": f"Does it show {n} things?"} for path in paths for n in range(16)]
    return hashlib.sha256(model.encode(rows, batch_size=8).tobytes()).hexdigest()
