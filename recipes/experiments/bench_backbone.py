"""Encode images with Phi-3.5-vision: images a second and peak memory, by attention.

    python -m recipes.experiments.bench_backbone --document docs/performance.md     # one GPU with 16 GB or more
    python -m recipes.experiments.bench_backbone --geometry tiny                    # any machine, in a minute

Random weights, bf16 on a GPU and fp32 on a CPU, created on the device, without a file of 8 GB. An image of
1344 x 1344 pixels at num_crops 4 is 757 tokens, the authors' training size. Seconds are the best of
several runs. The published geometry needs a GPU.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from sentence_transformers.util import batch_to_device
from transformers import AutoModel
from transformers.utils import is_flash_attn_2_available

from xvlm2vec_st.phi3v import Phi3VConfig

from ..shared.command import parser_of, run
from ..shared.markup import markdown_table
from .bench_model import GEOMETRIES, write_checkpoint
from .measure import costs, keep_table

SIDE = 1344  # pixels; 757 tokens at num_crops 4
TEXT = "Represent the given image"
GIB = 2**30
HEADER = (
    *("geometry", "attention", "batch", "tokens a row", "images/s, encode", "images/s, model alone"),
    *("weights, GiB", "peak above them, GiB"),
)


def attentions() -> list[str]:
    """What this machine can run."""
    return ["sdpa", "eager", *(["flash_attention_2"] if is_flash_attn_2_available() else [])]


def random_embedder(geometry: str, attention: str, device: str) -> SentenceTransformer:
    """Random weights of that geometry, created on the device, under sentence-transformers.

    sentence-transformers wants a folder: it gets a tiny model's, whose weights are then replaced.
    """
    with tempfile.TemporaryDirectory() as folder:
        body = Transformer(str(write_checkpoint(Path(folder) / "tiny", "tiny")))
    config = Phi3VConfig(**GEOMETRIES[geometry], pad_token_id=4, bos_token_id=1, eos_token_id=2)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    with torch.device(device):
        body.model = AutoModel.from_config(config, dtype=dtype, attn_implementation=attention).eval()
    modules = [body, Pooling(config.hidden_size, "lasttoken"), Normalize()]
    return SentenceTransformer(modules=modules, device=device)


def inputs(count: int) -> list[dict[str, Any]]:
    """Images of noise, each with a short text."""
    noise = np.random.default_rng(0)
    small = (noise.integers(0, 255, (64, 64, 3), np.uint8) for _ in range(count))
    return [{"image": Image.fromarray(pixels).resize((SIDE, SIDE)), "text": TEXT} for pixels in small]


def measure(model: SentenceTransformer, rows: list[dict[str, Any]], repeats: int) -> list[str]:
    """Cells of the table for a batch of `rows`: `encode` as a whole, and the forward pass alone."""
    features = batch_to_device(model.preprocess(rows), model.device)

    @torch.inference_mode()
    def forward() -> torch.Tensor:
        return model(dict(features))["sentence_embedding"]

    def encode() -> torch.Tensor:
        return model.encode(rows, batch_size=len(rows), convert_to_tensor=True, show_progress_bar=False)

    vectors = encode()
    if not torch.isfinite(vectors).all():
        raise ValueError("the model gives vectors that are not finite; nothing to measure")
    spent = costs({"encode": encode, "forward": forward}, repeats=repeats)
    peak = spent["encode"].peak
    weights = sum(each.numel() * each.element_size() for each in model.parameters())
    return [
        str(features["input_ids"].shape[1]),
        *(f"{len(rows) / spent[name].seconds:.2f}" for name in ("encode", "forward")),
        f"{weights / GIB:.2f}",
        "–" if peak is None else f"{peak / GIB:.2f}",
    ]


def main(argv: Sequence[str] | None = None) -> list[list[str]]:
    """Measure and print; write the table to a document if asked to. Returns the table's rows."""
    parser = parser_of(__doc__)
    parser.add_argument("--geometry", choices=GEOMETRIES, default="phi3_v")
    parser.add_argument("--attention", nargs="+", default=attentions(), help="default: all that run here")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32], help="less memory: less")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--document", type=Path, help="the document to write the table to")
    args = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.geometry != "tiny" and device == "cpu":
        raise ValueError(f"--geometry {args.geometry} needs a GPU; pass --geometry tiny")

    rows = []
    for attention in args.attention:
        model = random_embedder(args.geometry, attention, device)
        for size in args.batch_sizes:
            cells = measure(model, inputs(size), args.repeats)
            rows.append([args.geometry, attention, str(size), *cells])
            print(markdown_table(HEADER, rows[-1:]).splitlines()[-1], flush=True)
        del model  # before the next one is created: two do not fit 16 GB

    keep_table(args.document, "bench_backbone", argv, markdown_table(HEADER, rows))
    return rows


if __name__ == "__main__":
    run(main)
