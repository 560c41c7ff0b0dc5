"""A layer at a time or the whole model in fp32: merged weights are equal bit by bit."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import pytest
import torch
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear
from safetensors.torch import load_file, save_file
from test_build_adapters import KINDS
from tiny import checkpoint, some_families
from torch import nn
from transformers import AutoModel, PreTrainedModel

from xvlm2vec_st import build, lora_config
from xvlm2vec_st.building.adapters import load_adapter_weights, read_adapter, set_base_parameters
from xvlm2vec_st.building.merging import merge_adapter
from xvlm2vec_st.families.dtypes import DTYPES, cast_parameters, exact_dtype

MORE = {
    "LoRA": {},
    "DoRA": {"use_dora": True},
    "DoRA of vision and language": {"use_dora": True, "target_modules": ["fc1", "q_proj", "down_proj"]},
    "DoRA of everything": {"use_dora": True, "target_modules": ["embed_tokens", "q_proj", "patch_embedding"]},
    "DoRA, rank-stabilised": {"use_dora": True, "use_rslora": True},
    "ranks by layer": {"rank_pattern": {"layers.0.*q_proj": 4}, "alpha_pattern": {"layers.1.*q_proj": 3}},
    "embeddings as a whole": {"modules_to_save": ["embed_tokens"]},
}


def stored(folder: Path, dtype: torch.dtype, family: str = "llava") -> Path:
    """A checkpoint in that dtype, in several shards."""
    model = AutoModel.from_pretrained(checkpoint(family), dtype=dtype)
    cast_parameters(model, dtype)  # transformers keeps some layers in fp32
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len([*folder.glob("*.safetensors")]) > 3
    return folder


def random_adapter(folder: Path, base: Path, change: Callable[[PreTrainedModel], object] | None = None, **more) -> Path:
    """A random adapter, in fp32, of numbers that bf16 rounds."""
    model = AutoModel.from_pretrained(base, dtype=torch.float32)
    if change:
        change(model)
    torch.manual_seed(0)
    settings = {"r": 2, "init_lora_weights": False, "target_modules": r".*language_model.*(q_proj|up_proj)"} | more
    wrapped = get_peft_model(model, LoraConfig(**settings))
    for name, value in wrapped.named_parameters():
        if value.requires_grad and ("lora_" not in name or "magnitude" in name):
            value.data = value.data * 1.1 + 0.01
    wrapped.save_pretrained(folder)
    return folder


def merge_whole(model: PreTrainedModel, adapter: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The plain way: everything in fp32, then everything cast."""
    assert model.dtype == torch.float32
    read = read_adapter(str(adapter), model)
    set_base_parameters(read, str(adapter), model)
    wrapped = get_peft_model(model, read.config)
    load_adapter_weights(read, str(adapter), wrapped)
    merged = wrapped.merge_and_unload(safe_merge=True)
    cast_parameters(merged, dtype)
    return merged.state_dict()


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys() and len(found) > 20
    for key, value in expected.items():
        assert found[key].dtype == value.dtype, key
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *((kind, "bf16") for kind in KINDS | MORE),
        *((kind, dtype) for kind in ("LoRA", "DoRA") for dtype in ("fp16", "fp32")),
    ],
)
def test_a_layer_at_a_time_is_the_whole_model_at_once(kind: str, dtype: str, tmp_path: Path) -> None:
    base = stored(tmp_path / "base", DTYPES[dtype])
    adapter = random_adapter(tmp_path / "adapter", base, **(KINDS | MORE)[kind])
    expected = merge_whole(AutoModel.from_pretrained(base, dtype=torch.float32), adapter, DTYPES[dtype])
    model = AutoModel.from_pretrained(base, dtype=exact_dtype(str(base)))
    assert model.dtype == DTYPES[dtype]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    merged = merge_adapter(model, str(adapter), DTYPES[dtype])
    assert_equal(merged.state_dict(), expected)
    assert sum(not torch.equal(expected[key], value) for key, value in before.items()) >= 1
    assert not any("lora" in name or "base_layer" in name for name, _ in merged.named_modules())


@some_families("llava", "qwen2_vl")
def test_a_build_of_another_dtype_has_the_same_weights_and_leaves_the_base_alone(family: str, tmp_path: Path) -> None:
    base = copytree(checkpoint(family), tmp_path / "base")
    (base / "model.safetensors").unlink()
    stored(base, torch.bfloat16, family)
    config = lora_config(family, rank=2, dora=True)
    adapter = random_adapter(tmp_path / "adapter", base, target_modules=config.target_modules, use_dora=True)
    digests = {path: hashlib.sha256(path.read_bytes()).digest() for path in base.glob("*")}
    for dtype in ("bf16", "fp32"):
        out = build(base, tmp_path / dtype, adapter=adapter, dtype=dtype)
        expected = merge_whole(AutoModel.from_pretrained(base, dtype=torch.float32), adapter, DTYPES[dtype])
        assert_equal(AutoModel.from_pretrained(out, dtype="auto").state_dict(), expected)
        names = AutoModel.from_pretrained(out).config.to_dict()
        parts = [value["dtype"] for value in names.values() if isinstance(value, dict) and "dtype" in value]
        assert {*parts, names["dtype"]} == {str(DTYPES[dtype]).removeprefix("torch.")}
    assert digests == {path: hashlib.sha256(path.read_bytes()).digest() for path in base.glob("*")}


def share_weights(model: PreTrainedModel) -> None:
    """Two layers that an adapter changes become one parameter."""
    first, second = (model.get_submodule(f"language_model.layers.{i}.self_attn.q_proj") for i in range(2))
    second.weight = first.weight


def test_a_weight_that_two_adapted_layers_share_is_rounded_once(tmp_path: Path) -> None:
    base = stored(tmp_path / "base", torch.bfloat16)
    adapter = random_adapter(tmp_path / "adapter", base, share_weights)
    whole = AutoModel.from_pretrained(base, dtype=torch.float32)
    share_weights(whole)
    model = AutoModel.from_pretrained(base, dtype=torch.bfloat16)
    share_weights(model)
    merged = merge_adapter(model, str(adapter), torch.bfloat16)
    assert_equal(merged.state_dict(), merge_whole(whole, adapter, torch.bfloat16))
    first, second = (merged.get_submodule(f"language_model.layers.{i}.self_attn.q_proj") for i in range(2))
    assert first.weight is second.weight


def test_one_layer_at_a_time_is_in_fp32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = stored(tmp_path / "base", torch.bfloat16)
    adapter = random_adapter(tmp_path / "adapter", base)
    model = AutoModel.from_pretrained(base, dtype=torch.bfloat16)
    places = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    wide = []
    merge = Linear.merge

    def watching(self: Linear, *args, **kwargs) -> None:
        wide.append([name for name, value in model.named_parameters() if value.dtype == torch.float32])
        merge(self, *args, **kwargs)

    monkeypatch.setattr(Linear, "merge", watching)
    merged = merge_adapter(model, str(adapter), torch.bfloat16)
    bases = [[name for name in names if "lora_" not in name] for names in wide[:4]]
    assert [len(names) for names in bases] == [1, 1, 1, 1]
    assert len({names[0] for names in bases}) == 4
    assert places == {name: parameter.data_ptr() for name, parameter in merged.named_parameters()}, "in their place"


def test_merged_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    base = stored(tmp_path / "base", torch.bfloat16)
    adapter = random_adapter(tmp_path / "adapter", base)
    file = adapter / "adapter_model.safetensors"
    weights = load_file(file)
    weights[min(weights)][0, 0] = float("inf")
    save_file(weights, file)
    with pytest.raises(ValueError, match="NaNs detected in the merged weights"):
        merge_adapter(AutoModel.from_pretrained(base, dtype=torch.bfloat16), str(adapter), torch.bfloat16)


HALF, WHOLE = torch.ones(2, dtype=torch.float16), torch.ones(2)


@pytest.mark.parametrize(
    ("tensors", "dtype"),
    [
        ([{"a": HALF, "ids": torch.arange(3)}], torch.float16),
        ([{"a": HALF.bfloat16()}, {"b": HALF.bfloat16(), "used": torch.tensor([True])}], torch.bfloat16),
        ([{"a": HALF}, {"b": WHOLE}], torch.float32),
        ([{"a": HALF, "b": HALF.bfloat16()}], torch.float32),
        ([{"a": WHOLE.double()}], torch.float32),
        ([{"a": HALF.to(torch.float8_e4m3fn)}], torch.float32),
        ([{"ids": torch.arange(3)}], torch.float32),
        ([], torch.float32),
    ],
)
def test_no_weight_is_rounded_on_loading(tensors: list, dtype: torch.dtype, tmp_path: Path) -> None:
    for number, states in enumerate(tensors):
        save_file(states, tmp_path / f"{number}.safetensors")
    assert exact_dtype(str(tmp_path)) == dtype


def test_a_damaged_file_is_left_to_the_loader(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 20)
    assert exact_dtype(str(tmp_path)) == torch.float32


def test_a_name_on_the_hub_is_read_in_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    stored(repository / "snapshots" / ("0" * 40), torch.bfloat16)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert exact_dtype("owner/name") == torch.bfloat16


def test_what_is_cast_keeps_its_buffers() -> None:
    model = nn.BatchNorm1d(2)
    cast_parameters(model, torch.bfloat16)
    assert [value.dtype for value in model.parameters()] == [torch.bfloat16] * 2
    assert model.running_mean.dtype == torch.float32
