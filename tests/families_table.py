"""Measure every family on its tiny random checkpoint, and write the table of docs/families.md.

    PYTHONPATH=.venv/families python tests/families_table.py docs/families.md

torchvision and num2words must be importable; `make test` installs them in .venv/families.
"""

import re
import sys
from pathlib import Path
from typing import Any

import torchvision_ops

torchvision_ops.pytest_load_initial_conftests()

import numpy as np  # noqa: E402
import tiny  # noqa: E402
import torch  # noqa: E402
from test_routes import TEXTS, mixed_rows  # noqa: E402
from transformers.utils import logging  # noqa: E402

from recipes.experiments.measure import replace_section  # noqa: E402
from recipes.shared.markup import markdown_table  # noqa: E402
from xvlm2vec_st import SentenceTransformer, lora_config  # noqa: E402
from xvlm2vec_st.training.fsdp import decoder_layer_class  # noqa: E402

HEADS = ["family", "build", "route", "states", "gradients", "tokens saved", "LoRA layers", "FSDP layer"]


def main(document: str) -> None:
    """Measure, and write the section `families` of the document."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(0)
    rows = [measure(family) for family in tiny.MAKERS]
    replace_section(Path(document), "families", markdown_table(HEADS, rows))


def measure(family: str) -> list[str]:
    """The row of a family."""
    model = SentenceTransformer(str(tiny.embedder(family)))
    route = model[0].sharing.route
    targets = lora_config(model).target_modules
    names = [name for name, module in model[0].model.named_modules() if isinstance(module, torch.nn.Linear)]
    row = [family, "yes", route, f"{state_difference(model):.0e}"]
    row += [f"{gradient_difference(family):.0e}", f"{tokens_saved(model):.0%}"]
    sys.stdout.write(" ".join(row) + "\n")
    return [*row, str(sum(bool(re.fullmatch(targets, name)) for name in names)), decoder_layer_class(model)]


def state_difference(model: SentenceTransformer) -> float:
    """Largest difference of embeddings from the plain route, fp32: both sides of padding, three batch sizes."""
    worst = 0.0
    for side in ("right", "left"):
        model.tokenizer.padding_side = side
        model[0].sharing = "plain"
        expected = model.encode(mixed_rows(), batch_size=64)
        assert np.abs(expected[0] - expected[1]).max() > 1e-3, "all rows alike"
        model[0].sharing = None
        assert "image_group" in model[0].preprocess(mixed_rows())
        for size in (1, 3, 64):
            worst = max(worst, float(np.abs(model.encode(mixed_rows(), batch_size=size) - expected).max()))
    return worst


def gradient_difference(family: str) -> float:
    """Largest relative difference of a gradient from the plain route, fp64 where the layers allow it."""
    model = tiny.double(SentenceTransformer(str(tiny.embedder(family)))).train()

    def gradients(route: str | None) -> dict[str, Any]:
        model[0].sharing = route
        model.zero_grad()
        states = model(model.preprocess(mixed_rows()))["sentence_embedding"]
        (states * torch.arange(states.numel()).view_as(states).cos()).sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain, shared = gradients("plain"), gradients(None)
    return max(float((shared[n] - g).norm() / (g.norm() + 1e-3)) for n, g in plain.items())


def tokens_saved(model: SentenceTransformer) -> float:
    """Share of the tokens that the language model is spared, with four texts per image."""
    counts: list[int] = []
    words = model[0].model.get_input_embeddings()
    hook = words.register_forward_pre_hook(lambda _, args: counts.append(args[0].numel()))
    items = [{"image": tiny.random_image(), "text": text[:8].ljust(8)} for text in TEXTS]

    def count(route: str | None) -> int:
        counts.clear()
        model[0].sharing = route
        model(model.preprocess(items))
        return sum(counts)

    plain, shared = count("plain"), count(None)
    hook.remove()
    return 1 - shared / plain


if __name__ == "__main__":
    main(sys.argv[1])
