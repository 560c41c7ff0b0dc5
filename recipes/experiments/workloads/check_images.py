"""Start on a corpus whose images were checked before."""

import io
import json
from pathlib import Path

import datasets
from PIL import Image

from xvlm2vec_st import load_parallel

TITLE = "load_parallel, 20,000 images, second start of an unchanged corpus"
SIZES = {"images": 20_000}


def prepare(folder: Path, *, images: int) -> None:
    """Write the corpus and its images, and start on it once."""
    (folder / "images").mkdir()
    with io.BytesIO() as file, (folder / "parallel.jsonl").open("w") as corpus:
        Image.new("RGB", (64, 48), (200, 30, 90)).save(file, "JPEG")
        for number in range(images):
            (folder / "images" / f"{number}.jpg").write_bytes(file.getvalue())
            row = {"id": f"{number}", "image": f"images/{number}.jpg", "en": "a dog", "it": "un cane"}
            corpus.write(json.dumps(row) + "\n")
    cache = datasets.config.HF_DATASETS_CACHE
    try:
        run(folder)
    finally:
        datasets.config.HF_DATASETS_CACHE = cache


def run(folder: Path) -> str:
    """Load the rows; returns "ok", or raises what a bad image raises."""
    datasets.config.HF_DATASETS_CACHE = str(folder / "datasets")
    rows = load_parallel(folder / "parallel.jsonl", ["it"], show_progress=False)
    assert len(rows) == rows.num_rows > 0
    return "ok"
