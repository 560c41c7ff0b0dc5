"""Merge a DoRA adapter with `build`: most memory, against the bytes of the checkpoint, and minutes.

    python -m recipes.experiments.bench_build                                    # tiny: any machine, in a minute
    python -m recipes.experiments.bench_build --geometry phi3_v --folder DISK --document docs/performance.md

Random weights in bf16, in shards, and a random adapter on the published target modules. `build` runs in a fresh
process; its peak includes the libraries, and the pages of the checkpoint's files that it has mapped. The published
geometry takes 17 GB of disk, for the checkpoint and its result, and 10 GB of memory.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModel

from xvlm2vec_st import lora_config
from xvlm2vec_st.phi3v import Phi3VConfig, Phi3VImageProcessor, Phi3VProcessor
from xvlm2vec_st.utils.folders import expanded

from ..shared.command import parser_of, run
from ..shared.markup import markdown_table
from .bench_model import GEOMETRIES, letters
from .measure import keep_table

# 0.3 B parameters: a fifth of the published width and half of its depth, and the whole vision tower.
SMALL = {"hidden_size": 640, "intermediate_size": 1536, "num_hidden_layers": 16, "vocab_size": 8192}
CHOICES = {**GEOMETRIES, "small": SMALL | {"num_attention_heads": 10, "num_key_value_heads": 10}}
SHARD = 2 * 10**9  # bytes
STANDARD_DEVIATION = 0.02
GB = 10**9
HEADER = ("geometry", "parameters", "checkpoint, GB", "peak of `build`, GB", "peak / checkpoint", "minutes")
CHILD = """\
import json, resource, sys, time
from xvlm2vec_st import build
start = time.perf_counter()
base, adapter, out = sys.argv[1:]
build(base, out, adapter=adapter, dtype="bf16")
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps({"peak": peak, "seconds": time.perf_counter() - start}))
"""


def write_base(folder: Path, geometry: Mapping[str, Any]) -> nn.Module:
    """Write a checkpoint of random weights, a shard at a time; returns the model, without memory."""
    config = Phi3VConfig(
        **geometry, pad_token_id=4, bos_token_id=1, eos_token_id=2, original_max_position_embeddings=4096
    )
    config.dtype = "bfloat16"
    config.architectures = ["Phi3VModel"]
    with torch.device("meta"):
        model = AutoModel.from_config(config, dtype=torch.bfloat16)
    folder.mkdir(parents=True)
    states, places = model.state_dict(), {}
    shards = [*split_shards(states, SHARD)]
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file({name: random_weight(states[name]) for name in names}, folder / file, {"format": "pt"})
        places |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": checkpoint_bytes(folder)}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config.save_pretrained(folder)
    Phi3VProcessor(Phi3VImageProcessor(num_crops=4), letters()).save_pretrained(folder)
    return model


def split_shards(states: dict[str, Tensor], size: int) -> Iterator[list[str]]:
    """The names of tensors, in groups of at most `size` bytes or of one tensor.

    >>> list(split_shards({"a": torch.ones(2), "b": torch.ones(1), "c": torch.ones(3)}, 12))
    [['a', 'b'], ['c']]
    """
    names: list[str] = []
    held = 0
    for name, tensor in states.items():
        if names and held + tensor.nbytes > size:
            yield names
            names, held = [], 0
        names.append(name)
        held += tensor.nbytes
    if names:
        yield names


def random_weight(like: Tensor) -> Tensor:
    """Random numbers of a weight's shape and dtype; ones for a vector, which scales."""
    if like.ndim < 2:
        return torch.ones(like.shape, dtype=like.dtype)
    return torch.empty(like.shape, dtype=like.dtype).normal_(0, STANDARD_DEVIATION)


def write_adapter(folder: Path, model: nn.Module, rank: int = 16) -> None:
    """Write a random DoRA adapter of every linear layer of the language model."""
    config = lora_config("phi3_v", rank=rank, dora=True)
    weights = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and check_target_module_exists(config, name):
            to, of = module.weight.shape
            key = f"base_model.model.{name}.lora_"
            weights[f"{key}A.weight"] = torch.randn(rank, of) * STANDARD_DEVIATION
            weights[f"{key}B.weight"] = torch.randn(to, rank) * STANDARD_DEVIATION
            # Near the norm of a row, which is where DoRA begins.
            weights[f"{key}magnitude_vector"] = STANDARD_DEVIATION * of**0.5 * (1 + 0.1 * torch.rand(to))
    folder.mkdir(parents=True)
    save_file(weights, folder / "adapter_model.safetensors")
    config.save_pretrained(str(folder))


def checkpoint_bytes(folder: Path) -> int:
    """Bytes of the weight files."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def measure(folder: Path, geometry: str) -> list[str]:
    """The row of the table: write the inputs in `folder`, and build in a fresh process.

    Raises:
        RuntimeError: the build failed; with what it wrote.
    """
    torch.manual_seed(0)
    base, adapter, out = (folder / name for name in ("base", "adapter", "out"))
    model = write_base(base, CHOICES[geometry])
    write_adapter(adapter, model)
    command = [sys.executable, "-c", CHILD, *map(str, (base, adapter, out))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"build ended with status {done.returncode}\n{done.stderr[-2000:]}")
    measured, size = json.loads(done.stdout.splitlines()[-1]), checkpoint_bytes(base)
    return [
        geometry,
        f"{sum(each.numel() for each in model.parameters()) / 1e9:.2f} B",
        f"{size / GB:.2f}",
        f"{measured['peak'] / GB:.2f}",
        f"{measured['peak'] / size:.2f}",
        f"{measured['seconds'] / 60:.1f}",
    ]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--geometry", choices=CHOICES, default="tiny")
    parser.add_argument("--folder", type=expanded, help="where the files lie while it runs; default: the system's")
    parser.add_argument("--document", type=Path, help="the document to write the table to")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> list[str]:
    """Measure and print; write the table to a document if asked to. Returns the table's row."""
    args = parse(argv)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        row = measure(Path(folder), args.geometry)
    table = markdown_table(HEADER, [row])
    print(table)
    keep_table(args.document, "bench_build", argv, table)
    return row


if __name__ == "__main__":
    run(main)
