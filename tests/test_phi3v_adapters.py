"""Phi-3.5-vision: folders of published adapters, through transformers and sentence-transformers."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from sentence_transformers.sentence_transformer.modules import Transformer
from transformers import AutoModel

import xvlm2vec_st.phi3v  # noqa: F401

GOLDEN = Path(__file__).parent / "golden" / "phi3v"
IDS = torch.tensor([[1, 300, 301, 302]])


def adapter(folder: Path, kind: str, scale: float = 1.0, drop: str = " ") -> str:
    """A copy of a golden adapter: magnitudes scaled, keys with `drop` left out, base named."""
    shutil.copytree(GOLDEN / f"adapter_{kind}", folder)
    weights = load_file(folder / "adapter_model.safetensors")
    weights = {key: value * scale if "magnitude" in key else value for key, value in weights.items() if drop not in key}
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    config["base_model_name_or_path"] = str(GOLDEN)
    (folder / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    return str(folder)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_adapter_folder_loads_as_with_peft(tmp_path: Path, kind: str) -> None:
    """transformers' own adapter loading drops DoRA's magnitudes when left to itself."""
    folder = adapter(tmp_path / "adapter", kind, scale=1.3)
    for file in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        shutil.copy(GOLDEN / file, folder)  # which sentence-transformers wants beside the adapter
    base = AutoModel.from_pretrained(GOLDEN)
    with torch.no_grad():
        want = PeftModel.from_pretrained(AutoModel.from_pretrained(GOLDEN), folder)(IDS)[0]
        by_folder = AutoModel.from_pretrained(folder)(IDS)[0]
        by_sentence_transformers = Transformer(folder).model(IDS)[0]
        assert (base(IDS)[0] - want).abs().max() > 0.1
        base.load_adapter(folder)
        torch.testing.assert_close(base(IDS)[0], want)
    torch.testing.assert_close(by_folder, want)
    torch.testing.assert_close(by_sentence_transformers, want)


def test_adapter_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "incomplete", "lora", drop="layers.1.mlp.down_proj.lora_B")
    with pytest.raises(ValueError, match=r"missing: model.layers.1.mlp.down_proj.lora_B"):
        AutoModel.from_pretrained(folder)
    other = adapter(tmp_path / "rank", "lora")
    said = json.loads((Path(other) / "adapter_config.json").read_text("utf-8"))
    (Path(other) / "adapter_config.json").write_text(json.dumps(said | {"r": 8}), "utf-8")
    with pytest.raises(ValueError, match=r"another shape: .* \[4, 64\] not \[8, 64\]"):
        AutoModel.from_pretrained(GOLDEN).load_adapter(other)


def test_base_model_under_an_adapter_is_checked_too(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(GOLDEN / "adapter_lora", folder)
    shutil.copy(GOLDEN / "config.json", folder)
    weights = load_file(GOLDEN / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"the checkpoint .* missing: model.norm.weight"):
        AutoModel.from_pretrained(folder)
