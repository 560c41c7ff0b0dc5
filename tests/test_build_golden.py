"""`build` on the golden Phi-3.5-vision, with its adapters and both numbers of crops."""

import json
from pathlib import Path
from typing import Any

import pytest
import sentence_transformers
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoProcessor

from xvlm2vec_st import build

GOLDEN = Path(__file__).parent / "golden" / "phi3v"
CASES = json.loads((GOLDEN / "cases.json").read_text("utf-8"))
EXPECTED = load_file(GOLDEN / "expected.safetensors")


@torch.no_grad()
def pooled(folder: Path, case: dict) -> Tensor:
    """The last-token state, not normalised, of a golden case as stock sentence-transformers sees it."""
    crops = {"num_crops": case["num_crops"]} if case["num_crops"] else {}
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu", processor_kwargs=crops)
    row: Any = case["text"]
    if case["image"]:
        row = {"image": Image.open(GOLDEN / case["image"]), "text": row.removeprefix("<|image_1|>\n")}
    return model[1](model[0](model.preprocess([row])))["sentence_embedding"][0]


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("kept", [False, True])
def test_golden_adapters_through_build(kind: str, kept: bool, tmp_path: Path) -> None:
    chosen = [case for case in CASES if f"{case['case']}.last_{kind}" in EXPECTED]
    assert {bool(case["image"]) for case in chosen} == {True, False}
    out = build(GOLDEN, tmp_path / "out", adapter=GOLDEN / f"adapter_{kind}", keep_adapter=kept)
    assert (out / "adapter_model.safetensors").exists() == kept
    for case in chosen:
        want = EXPECTED[f"{case['case']}.last_{kind}"]
        torch.testing.assert_close(pooled(out, case), want, rtol=0, atol=1e-4)
        assert (want - EXPECTED[f"{case['case']}.last"]).abs().max() > 1e-3


def test_num_crops_is_stored_and_used(tmp_path: Path) -> None:
    out = build(GOLDEN, tmp_path / "out", num_crops=16)
    assert AutoProcessor.from_pretrained(out).image_processor.num_crops == 16
    case = next(c for c in CASES if c["num_crops"] == 16)
    got = pooled(out, case | {"num_crops": None})
    torch.testing.assert_close(got, EXPECTED[f"{case['case']}.last"], rtol=0, atol=1e-4)
