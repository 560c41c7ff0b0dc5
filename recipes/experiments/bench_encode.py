"""Encode several texts an image: shared prefixes against stock sentence-transformers, in one run.

    python -m recipes.experiments.bench_encode                                  # tiny width, true lengths, any machine
    python -m recipes.experiments.bench_encode --geometry phi3_v                # 4.1 B random weights in bf16, one GPU
    python -m recipes.experiments.bench_encode --document docs/performance.md   # and keep the table there

A Phi-3.5-vision with random weights; an image is 757 tokens, a text 20 to 60. Seconds are the median
of several runs of each route in turn; floating-point operations are counted by torch.
"""

import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentence_transformers
import torch
from PIL import Image

from xvlm2vec_st import SentenceTransformer, build

from ..shared.command import parser_of, run
from ..shared.markup import markdown_table
from .bench_model import GEOMETRIES, write_checkpoint
from .measure import Cost, costs, keep_table

CASES = {
    "16 texts an image": (2, 16, 0),
    "5 texts an image": (4, 5, 0),
    "1 text an image": (8, 1, 0),
    "texts alone": (0, 0, 64),
}


def inputs(images: int, texts: int, alone: int, seed: int) -> list[Any]:
    """`images` images with `texts` each, and `alone` texts; words of no language."""
    rng = random.Random(seed)

    def text() -> str:
        return " ".join(str(rng.randrange(1000)) for _ in range(rng.randint(5, 15)))

    noise = np.random.default_rng(seed)
    noisy = [Image.fromarray(noise.integers(0, 255, (336, 336, 3), np.uint8)) for _ in range(images)]
    rows: list[Any] = [{"image": image, "text": text()} for image in noisy for _ in range(texts)]
    return rows + [text() for _ in range(alone)]


def compare(stock: Any, ours: Any, rows: list[Any], *, batch_size: int, repeats: int) -> tuple[dict[str, Cost], float]:
    """Costs of both routes, and the largest difference of their embeddings."""
    routes = {
        name: lambda model=model: model.encode(rows, batch_size=batch_size, show_progress_bar=False)
        for name, model in (("stock", stock), ("shared", ours))
    }
    difference = float(np.abs(routes["stock"]() - routes["shared"]()).max())
    return costs(routes, repeats=repeats), difference


def main(argv: Sequence[str] | None = None) -> list[list[str]]:
    """Measure and print; write the table to a document if asked to. Returns the table's rows."""
    parser = parser_of(__doc__)
    parser.add_argument("--geometry", choices=GEOMETRIES, default="tiny")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--document", type=Path, help="the document to write the table to")
    args = parser.parse_args(argv)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        raw = write_checkpoint(Path(folder) / "raw", args.geometry)
        built = str(build(raw, Path(folder) / "model"))
        stock, ours = sentence_transformers.SentenceTransformer(built), SentenceTransformer(built)
        for name, (images, texts, alone) in CASES.items():
            items = inputs(images, texts, alone, seed=len(name))
            spent, difference = compare(stock, ours, items, batch_size=args.batch_size, repeats=args.repeats)
            rows.append([name, *cost_cells(spent["stock"], spent["shared"]), f"{difference:.0e}"])
            print(markdown_table(["", *HEADER], rows[-1:]).splitlines()[-1], flush=True)
    text = markdown_table(["", *HEADER], rows)
    print(text)
    keep_table(args.document, "bench_encode", argv, text, section=f"bench_encode {args.geometry}")
    return rows


HEADER = (
    "stock, s",
    "shared, s",
    "times faster",
    "times fewer FLOPs",
    "peak, shared / stock",
    "largest difference",
)


def cost_cells(stock: Cost, shared: Cost) -> list[str]:
    """Two costs as cells."""
    peak = f"{shared.peak / stock.peak:.2f}" if stock.peak and shared.peak is not None else "–"
    ratios = [f"{stock.seconds / shared.seconds:.2f}", f"{stock.flops / shared.flops:.2f}"]
    return [f"{stock.seconds:.2f}", f"{shared.seconds:.2f}", *ratios, peak]


if __name__ == "__main__":
    torch.manual_seed(0)
    run(main)
