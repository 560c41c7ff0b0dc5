"""Read a corpus that is not in the cache."""

import json
import random
import shutil
from hashlib import sha256
from pathlib import Path

import datasets

from xvlm2vec_st import load_parallel

TITLE = "load_parallel, {rows:,} rows of five languages"
SIZES = {"rows": 200_000}
WORDS = {
    "en": "a man rides the wave with his big brown dog near two small red cars and an old tree house in summer",
    "it": "un uomo cavalca la sua onda con il grande cane marrone vicino a due piccole macchine rosse in estate",
    "de": "ein Mann reitet auf der Welle mit seinem großen braunen Hund neben zwei kleinen roten Autos im Sommer",
    "fr": "un homme monte sur la vague avec son grand chien brun près de deux petites voitures rouges en été",
    "ja": "男が 大きな 茶色 の 犬 と 波に 乗って いる 二台 小さな 赤い 車 夏 に 家 の 前 で 古い 木",
}


def prepare(folder: Path, *, rows: int) -> None:
    """Write the corpus. Two of three rows name an image, a tenth lacks a language."""
    rng = random.Random(0)
    words = {code: text.split() for code, text in WORDS.items()}
    with (folder / "parallel.jsonl").open("w", encoding="utf-8") as file:
        for number in range(rows):
            texts = {code: " ".join(rng.choices(known, k=rng.randint(5, 15))) for code, known in words.items()}
            if number % 10 == 0:
                del texts["fr"]
            image = f"images/{number % 997}.jpg" if number % 3 else None
            file.write(json.dumps({"id": f"row/{number}", "image": image, **texts}, ensure_ascii=False) + "\n")


def run(folder: Path) -> datasets.Dataset:
    """Load the rows."""
    cache = folder / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    datasets.config.HF_DATASETS_CACHE = str(cache)
    corpus = folder / "parallel.jsonl"
    return load_parallel(corpus, ["it", "de", "fr", "ja"], check_images=False, show_progress=False)


def digest(rows: datasets.Dataset) -> str:
    """A digest of the types and of all values."""
    digest = sha256(repr(rows.features).encode())
    for column in rows.data.table.columns:
        for chunk in column.chunks:
            digest.update(repr(chunk.to_pylist()).encode())
    return digest.hexdigest()
