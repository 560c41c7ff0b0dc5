"""One language of a task of MMMEB, from its file to its scores. Each query has its own candidates."""

import json
import random
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import mteb
import numpy as np
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ScoringFunction
from numpy.typing import NDArray
from PIL import Image

from mmmeb_tasks.data.layout import data_file
from mmmeb_tasks.tasks import XTD10I2TRanking

TITLE = "task of MMMEB, {queries:,} queries x {candidates:,} candidates"
SIZES = {"queries": 3_000, "candidates": 10_000, "texts": 12_000}
IMAGES = 50
WIDTH = 16  # of an embedding


class Hashes(AbsEncoder):
    """A model whose vectors are random, the same for the same text or image."""

    def __init__(self) -> None:
        facts = {"name": "local/hashes", "modalities": ["text", "image"], "use_instructions": False}
        self.mteb_model_meta = ModelMeta.create_empty(
            overwrites={**facts, "similarity_fn_name": ScoringFunction.COSINE}
        )

    def encode(self, inputs: Iterator[dict], **kwargs: object) -> NDArray[np.float32]:
        """Embeddings of all rows, (rows, WIDTH)."""
        contents = (str(content) for batch in inputs for content in contents_of(batch))
        return np.stack([np.random.default_rng(seed_of(content)).standard_normal(WIDTH) for content in contents])


def contents_of(batch: dict) -> list[object]:
    """The texts of a batch, or the colours of its images."""
    return batch["text"] if "text" in batch else [image.getpixel((0, 0)) for image in batch["image"]]


def seed_of(content: str) -> int:
    """A seed from a text."""
    return int.from_bytes(sha256(content.encode()).digest()[:4])


def prepare(folder: Path, *, queries: int, candidates: int, texts: int) -> None:
    """Write a data folder of the published layout with one file."""
    path = data_file(folder, "xtd", "en", 1000, "i2t")
    path.parent.mkdir()
    (folder / "xtd_images").mkdir()
    for number in range(IMAGES):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / "xtd_images" / f"{number}.jpg", "PNG")
    rng, captions = random.Random(0), [f"caption {number}" for number in range(texts)]
    with path.open("w") as file:
        for number in range(queries):
            row = {"id": str(number), "img": str(number % IMAGES), "captions": rng.sample(captions, candidates)}
            file.write(json.dumps(row) + "\n")


def run(folder: Path) -> str:
    """Score the task; returns a digest of all metrics and of the ten best candidates of every query."""
    task = XTD10I2TRanking(data_root=folder)
    task.hf_subsets = ["en"]
    predictions = folder / "predictions"
    results = mteb.evaluate(
        Hashes(), task, cache=None, co2_tracker=False, show_progress_bar=False, prediction_folder=predictions
    )
    scores = json.dumps(results.task_results[0].scores, sort_keys=True).encode()
    best = next(json.loads(path.read_text())["en"] for path in predictions.rglob("*.json"))
    return sha256(scores + json.dumps(best, sort_keys=True).encode()).hexdigest()
