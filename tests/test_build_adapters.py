"""`build` with adapters: merged is attached, kept is attached, keys of any layout."""

import json
import re
from pathlib import Path

import pytest
import sentence_transformers
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import PLACEHOLDER, by_hand, checkpoint, damaged, random_image, some_families
from transformers import AutoModel, AutoModelForImageTextToText

from xvlm2vec_st import build

GOLDEN = Path(__file__).parent / "golden" / "phi3v"


def lora(folder: Path, raw_folder: Path, *, head: bool, dora: bool = False, rank: int = 2) -> torch.nn.Module:
    """Write a random adapter of the language model; returns the headless model, adapter attached."""
    whole = (AutoModelForImageTextToText if head else AutoModel).from_pretrained(raw_folder)
    torch.manual_seed(7)
    config = LoraConfig(
        r=rank,
        lora_alpha=8,
        use_dora=dora,
        init_lora_weights=False,
        target_modules=r".*(language_model|text_model).*\.(q_proj|v_proj|down_proj)",
        task_type="CAUSAL_LM" if head else None,
    )
    wrapped = get_peft_model(whole, config)
    for name, value in wrapped.named_parameters():
        if "magnitude" in name:
            value.data *= 1.3
    wrapped.save_pretrained(folder)
    inner = wrapped.base_model.model
    return inner.model if head else inner


@some_families("llava", "idefics3", "qwen2_vl")
@pytest.mark.parametrize("head", [True, False])
def test_merged_is_attached(family: str, head: bool, tmp_path: Path) -> None:
    dora = head == (family == "llava")
    attached = lora(tmp_path / "adapter", checkpoint(family), head=head, dora=dora)
    out = build(checkpoint(family), tmp_path / "out", adapter=tmp_path / "adapter")
    text = PLACEHOLDER[family] + "what?"
    want = by_hand(checkpoint(family), text, random_image(), attached)
    assert (want - by_hand(checkpoint(family), text, random_image())).abs().max() > 1e-3
    model = sentence_transformers.SentenceTransformer(str(out), device="cpu")
    got = torch.as_tensor(model.encode({"image": random_image(), "text": "what?"}))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
    assert not list(out.glob("adapter*"))


@some_families("llava", "qwen2_vl")
def test_adapters_of_transformers_4_fit(family: str, tmp_path: Path) -> None:
    old = {"llava": "language_model.model.layers", "qwen2_vl": "model.layers"}[family]
    attached = lora(tmp_path / "adapter", checkpoint(family), head=True)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = {re.sub(r"(model\.)?language_model\.(model\.)?layers", old, k): v for k, v in load_file(file).items()}
    assert all(key.startswith(f"base_model.model.{old}.") for key in weights)
    save_file(weights, file, metadata={"format": "pt"})
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    config["target_modules"] = ["q_proj", "v_proj", "down_proj"]
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        json.dumps(config | {"exclude_modules": ".*vision.*|.*visual.*"})
    )
    out = build(checkpoint(family), tmp_path / "out", adapter=tmp_path / "adapter")
    got = sentence_transformers.SentenceTransformer(str(out), device="cpu").encode("why?")
    torch.testing.assert_close(
        torch.as_tensor(got), by_hand(checkpoint(family), "why?", None, attached), rtol=0, atol=1e-4
    )


def test_kept_adapter_of_another_family(tmp_path: Path) -> None:
    attached = lora(tmp_path / "adapter", checkpoint("llava"), head=True)
    out = build(checkpoint("llava"), tmp_path / "out", adapter=tmp_path / "adapter", keep_adapter=True)
    assert not (out / "model.safetensors").exists()
    got = sentence_transformers.SentenceTransformer(str(out), device="cpu").encode("why?")
    torch.testing.assert_close(
        torch.as_tensor(got), by_hand(checkpoint("llava"), "why?", None, attached), rtol=0, atol=1e-4
    )
    lora(tmp_path / "dora", checkpoint("llava"), head=True, dora=True)
    with pytest.raises(ValueError, match="is DoRA, whose magnitudes transformers drops"):
        build(checkpoint("llava"), tmp_path / "d", adapter=tmp_path / "dora", keep_adapter=True)


def test_an_adapter_as_base_brings_its_own(tmp_path: Path) -> None:
    lora(tmp_path / "adapter", checkpoint("llava"), head=True)
    one = build(tmp_path / "adapter", tmp_path / "one")
    two = build(checkpoint("llava"), tmp_path / "two", adapter=tmp_path / "adapter")
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="is an adapter"):
        build(tmp_path / "adapter", tmp_path / "three", adapter=tmp_path / "adapter")


def test_adapter_that_does_not_fit(tmp_path: Path) -> None:
    def refused(adapter: Path, base: Path, match: str) -> None:
        with pytest.raises(ValueError, match=match):
            build(base, tmp_path / "out", adapter=adapter)
        assert not (tmp_path / "out").exists()

    lora(tmp_path / "good", checkpoint("llava"), head=True)
    refused(tmp_path / "good", GOLDEN, "does not fit .*unexpected: ")
    refused(GOLDEN / "adapter_lora", checkpoint("llava"), "does not fit .*unexpected: ")
    rank = damaged(tmp_path / "rank", tmp_path / "good")
    said = json.loads((rank / "adapter_config.json").read_text("utf-8"))
    (rank / "adapter_config.json").write_text(json.dumps(said | {"r": 8}), "utf-8")
    refused(rank, checkpoint("llava"), r"of another shape: \S+lora_A.weight \[2, 48\] not \[8, 48\]")
    wide = damaged(
        tmp_path / "wide",
        tmp_path / "good",
        lambda w: {k: v.repeat(1, 2) if "q_proj.lora_A" in k else v for k, v in w.items()},
    )
    refused(wide, checkpoint("llava"), r"of another shape: \S+q_proj.lora_A.weight \[2, 64\] not \[2, 32\]")
    half = damaged(tmp_path / "half", tmp_path / "good", lambda w: {k: v for k, v in w.items() if "layers.1" not in k})
    refused(half, checkpoint("llava"), r"missing: \S*layers.1")
    cut = damaged(tmp_path / "cut", tmp_path / "good", keep=900)
    refused(cut, checkpoint("llava"), "truncated")


def test_dtype_of_what_is_merged(tmp_path: Path) -> None:
    lora(tmp_path / "adapter", checkpoint("llava"), head=True)
    for dtype, stored in (("bf16", torch.bfloat16), (None, torch.float32)):
        out = build(checkpoint("llava"), tmp_path / f"out-{dtype}", adapter=tmp_path / "adapter", dtype=dtype)
        assert {value.dtype for value in load_file(out / "model.safetensors").values()} == {stored}


KINDS = {
    "rank-stabilised": {"use_rslora": True},
    "biases of adapted layers": {"bias": "lora_only", "target_modules": r".*(fc1|q_proj)"},
    "all biases": {"bias": "all", "target_modules": r".*(fc1|q_proj)"},
    "a bias of its own": {"lora_bias": True, "target_modules": r".*vision_tower.*fc1"},
    "embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
    "a convolution": {"target_modules": ["patch_embedding", "q_proj"]},
    "whole modules": {"modules_to_save": ["norm"]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_adapter_that_peft_merges_is_merged(kind: str, tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(checkpoint("llava"))
    torch.manual_seed(0)
    settings = {"r": 2, "init_lora_weights": False, "target_modules": r".*language_model.*q_proj"} | KINDS[kind]
    wrapped = get_peft_model(model, LoraConfig(**settings))
    for name, value in wrapped.named_parameters():
        if value.requires_grad and "lora_" not in name:
            value.data += 0.3
    wrapped.save_pretrained(tmp_path / "adapter")
    out = build(checkpoint("llava"), tmp_path / "out", adapter=tmp_path / "adapter")
    want = wrapped.merge_and_unload(safe_merge=True).state_dict()
    got = AutoModel.from_pretrained(out).state_dict()
    assert want.keys() == got.keys()
    assert max((want[key] - got[key]).abs().max() for key in want) < 1e-6
    plain = AutoModel.from_pretrained(checkpoint("llava")).state_dict()
    assert max((want[key] - plain[key]).abs().max() for key in want) > 1e-3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trainable_token_indices": [3, 4]}, "has trainable_token_indices, which is not supported"),
        ({"bias": "all"}, None),
    ],
)
def test_an_adapter_that_cannot_be_built_in_is_refused_for_what_it_is(
    settings: dict, message: str | None, tmp_path: Path
) -> None:
    model = AutoModel.from_pretrained(checkpoint("llava"))
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=r".*(fc1|q_proj)", **settings))
    wrapped.save_pretrained(tmp_path / "adapter")
    keep = message is None
    message = message or r"holds \d+ parameters of the base .*pass keep_adapter=False"
    with pytest.raises(ValueError, match=message):
        build(checkpoint("llava"), tmp_path / "out", adapter=tmp_path / "adapter", keep_adapter=keep)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
