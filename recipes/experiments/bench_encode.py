"""Encode several texts per image: shared prefixes against stock sentence-transformers, in one run.

    python -m recipes.experiments.bench_encode                                  # tiny width, true lengths, any machine
    python -m recipes.experiments.bench_encode --geometry phi3_v                # 4.1 B random weights in bf16, one GPU
    python -m recipes.experiments.bench_encode --document docs/performance.md   # and keep the table there

A Phi-3.5-vision with random weights; an image is 757 tokens, a text 20 to 60. Seconds are the median
of several runs of each route in turn; floating-point operations are counted by torch.
"""

import random
import tempfile
from collections.abc import Sequence
from functools import partial
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

# Images, texts per image, texts alone, seed.
CASES = {
    "32 texts per image": (1, 32, 0, 18),
    "16 texts per image": (2, 16, 0, 17),
    "5 texts per image": (4, 5, 0, 16),
    "1 text per image": (8, 1, 0, 15),
    "texts alone": (0, 0, 64, 11),
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


def compare(
    stock: Any, ours: Any, rows: list[Any], routes: Sequence[str], *, batch_size: int, repeats: int
) -> tuple[dict[str, Cost], dict[str, float]]:
    """Costs of stock sentence-transformers and of our routes, and the largest differences of their embeddings."""

    def encode(route: str) -> np.ndarray:
        if route != "stock":
            ours[0].sharing = route
        model = stock if route == "stock" else ours
        return np.asarray(model.encode(rows, batch_size=batch_size, show_progress_bar=False))

    runs = {route: partial(encode, route) for route in ("stock", *routes)}
    states = {route: run() for route, run in runs.items()}
    differences = {route: float(np.abs(states[route] - states["stock"]).max()) for route in routes}
    return costs(runs, repeats=repeats), differences


def main(argv: Sequence[str] | None = None) -> list[list[str]]:
    """Measure and print; write the table to a document if asked to. Returns the table's rows."""
    parser = parser_of(__doc__)
    parser.add_argument("--geometry", choices=GEOMETRIES, default="tiny")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--texts", type=int, metavar="N", help="measure one image with N texts in one batch, instead")
    parser.add_argument("--document", type=Path, help="the document to write the table to")
    args = parser.parse_args(argv)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        raw = write_checkpoint(Path(folder) / "raw", args.geometry)
        built = str(build(raw, Path(folder) / "model"))
        stock, ours = sentence_transformers.SentenceTransformer(built), SentenceTransformer(built)
        cases = CASES if args.texts is None else {f"{args.texts:,} texts of one image": (1, args.texts, 0, 0)}
        for name, (images, texts, alone, seed) in cases.items():
            items = inputs(images, texts, alone, seed)
            routes = ("packed", "branched") if texts > 1 else ("packed",)
            spent, differ = compare(
                stock, ours, items, routes, batch_size=args.texts or args.batch_size, repeats=args.repeats
            )
            for route in routes:
                label = f"{name}, {route}" if texts > 1 else name
                rows.append([label, *cost_cells(spent["stock"], spent[route]), f"{differ[route]:.0e}"])
                print(markdown_table(["", *HEADER], rows[-1:]).splitlines()[-1], flush=True)
    text = markdown_table(["", *HEADER], rows)
    print(text)
    section = f"bench_encode {args.geometry}" + (" one image" if args.texts else "")
    keep_table(args.document, "bench_encode", argv, text, section=section)
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
