"""Merge a DoRA adapter into a checkpoint in bf16."""

import hashlib
import shutil
from pathlib import Path

import peft  # noqa: F401 - `build` imports it where there is an adapter; imports are not measured
import torch

from xvlm2vec_st import build

TITLE = "build, merge a DoRA into 270 MB of bf16"
SIZES = {"width": 1024, "layers": 8}


def prepare(folder: Path, *, width: int, layers: int) -> None:
    """Write the checkpoint and the adapter, both random."""
    # Of the new source alone: `run` goes without.
    from recipes.experiments.bench_build import write_adapter, write_base
    from recipes.experiments.bench_model import GEOMETRIES

    torch.manual_seed(0)
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    model = write_base(folder / "base", GEOMETRIES["tiny"] | sizes)
    write_adapter(folder / "adapter", model)


def run(folder: Path) -> str:
    """Build; returns a digest of the merged weights."""
    out = build(folder / "base", folder / "out", adapter=folder / "adapter", num_crops=1, dtype="bf16")
    with (out / "model.safetensors").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    shutil.rmtree(out)
    return digest
