"""Phi-3.5-vision: what loads, what is saved, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    CLIPVisionModel,
)
from transformers.models.auto import image_processing_auto

from xvlm2vec_st.phi3v import (
    Phi3VConfig,
    Phi3VForCausalLM,
    Phi3VImageProcessor,
    Phi3VModel,
    Phi3VProcessor,
)

GOLDEN = Path(__file__).parent / "golden" / "phi3v"
WEIGHTS = load_file(GOLDEN / "model.safetensors")
IDS = torch.tensor([[1, 300, 301, 302]])
OFFICIAL = {
    "model_type": "phi3_v",
    "architectures": ["Phi3VForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_phi3_v.Phi3VConfig",
        "AutoModelForCausalLM": "modeling_phi3_v.Phi3VForCausalLM",
    },
    "_attn_implementation": "flash_attention_2",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"type": "su", "short_factor": [1.05] * 48, "long_factor": [1.03] * 48},
    "rope_theta": 10000.0,
    "sliding_window": 262144,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 32064,
    "embd_layer": {
        "embedding_cls": "image",
        "hd_transform_order": "sub_glb",
        "projection_cls": "mlp",
        "use_hd_transform": True,
        "with_learnable_separator": True,
    },
    "img_processor": {
        "image_dim_out": 1024,
        "model_name": "openai/clip-vit-large-patch14-336",
        "name": "clip_vision_model",
        "num_img_tokens": 144,
    },
}


def checkpoint(folder: Path, weights: dict[str, torch.Tensor] | None = None, **config: object) -> str:
    """A copy of the golden checkpoint with other weights, or other keys in its config.json."""
    shutil.copytree(GOLDEN, folder, ignore=shutil.ignore_patterns("adapter_*", "images"))
    if weights is not None:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    said = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(said | config), "utf-8")
    return str(folder)


@torch.no_grad()
def last(model: torch.nn.Module) -> torch.Tensor:
    return model.model(IDS).last_hidden_state[0, -1]


def test_official_geometry_has_the_published_size(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(OFFICIAL), "utf-8")
    config = AutoConfig.from_pretrained(tmp_path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        headless = AutoModel.from_config(config)
    assert sum(weight.numel() for weight in model.parameters()) == 4_146_621_440
    assert len(model.state_dict()) == 592
    assert len(headless.state_dict()) == 591
    assert model.state_dict()["model.vision_embed_tokens.sub_GN"].shape == (1, 1, 1, 4096)


def test_official_config_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(OFFICIAL), "utf-8")
    config = AutoConfig.from_pretrained(tmp_path, trust_remote_code=False)
    assert isinstance(config, Phi3VConfig)
    assert config.rope_parameters["rope_type"] == "longrope"
    assert config.rope_parameters["factor"] == 32
    assert config.vision_config.hidden_size == 1024  # CLIP ViT-L/14-336
    assert config.image_token_id == 32044
    assert config.dtype is torch.bfloat16
    # Neither the machine it was made on nor its remote code.
    assert config._attn_implementation is None
    assert not hasattr(config, "auto_map")
    config.save_pretrained(tmp_path / "saved")
    again = AutoConfig.from_pretrained(tmp_path / "saved")
    assert again.rope_parameters == config.rope_parameters
    assert again.vision_config.to_dict() == config.vision_config.to_dict()


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"embd_layer": {"hd_transform_order": "glb_sub"}}, "hd_transform_order is 'glb_sub'"),
        ({"img_processor": {"layer_idx": -1}}, "layer_idx is -1"),
        ({"img_processor": {"image_dim_out": 1152}}, "image_dim_out is 1152"),
        ({"vision_config": {"image_size": 322, "patch_size": 14}}, "image_size 322"),
    ],
)
def test_another_architecture_is_refused(keys: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Phi3VConfig(**keys)


def test_auto_classes() -> None:
    assert isinstance(AutoModel.from_pretrained(GOLDEN), Phi3VModel)
    for auto in (AutoModelForImageTextToText, AutoModelForCausalLM, AutoModelForMultimodalLM):
        assert isinstance(auto.from_pretrained(GOLDEN), Phi3VForCausalLM)
    assert isinstance(AutoImageProcessor.from_pretrained(GOLDEN), Phi3VImageProcessor)
    assert isinstance(AutoProcessor.from_pretrained(GOLDEN), Phi3VProcessor)


def test_image_processor_is_the_same_with_torchvision_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(image_processing_auto, "is_torchvision_available", lambda: True)
    assert type(AutoImageProcessor.from_pretrained(GOLDEN)) is Phi3VImageProcessor
    assert image_processing_auto._resolve_backend(None, None, None) == "torchvision"


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForImageTextToText])
@pytest.mark.parametrize("shard", ["50GB", "200KB"])
def test_saved_in_the_official_layout_and_exact(tmp_path: Path, auto: type, shard: str) -> None:
    model = auto.from_pretrained(GOLDEN)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    files = list(tmp_path.glob("*.safetensors"))
    assert (len(files) > 1) == (shard == "200KB")
    saved = {key: value for file in files for key, value in load_file(file).items()}
    kept = {key for key in WEIGHTS if auto is not AutoModel or key != "lm_head.weight"}
    assert saved.keys() == kept
    assert all(torch.equal(saved[key], WEIGHTS[key]) for key in kept)
    assert torch.equal(last(auto.from_pretrained(tmp_path)), last(model))


def test_model_from_scratch_is_saved_in_the_official_layout(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(GOLDEN))
    assert model.model.vision_embed_tokens.sub_GN.isfinite().all()
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == WEIGHTS.keys()
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(last(again), last(model))


def test_bin_file_with_copies_and_buffers_of_2024(tmp_path: Path) -> None:
    folder = Path(checkpoint(tmp_path / "bin"))
    (folder / "model.safetensors").unlink()
    vision = "model.vision_embed_tokens."
    extra = {
        f"{vision}wte.weight": WEIGHTS["model.embed_tokens.weight"],
        f"{vision}img_processor.vision_model.embeddings.position_ids": torch.arange(577)[None],
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
    }
    torch.save(WEIGHTS | extra, folder / "pytorch_model.bin")
    for auto in (AutoModel, AutoModelForImageTextToText):
        assert torch.equal(last(auto.from_pretrained(folder)), last(auto.from_pretrained(GOLDEN)))


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForImageTextToText])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model.norm.weight": None}, "missing: model.norm.weight"),
        ({"model.layers.9.x": torch.ones(1)}, "unexpected: model.layers.9.x"),
        (
            {"model.norm.weight": torch.ones(65)},
            r"another shape: model.norm.weight \[65\] not \[64\]",
        ),
    ],
)
def test_keys_that_do_not_fit_are_listed(tmp_path: Path, auto: type, change: dict, named: str) -> None:
    weights = {key: value for key, value in (WEIGHTS | change).items() if value is not None}
    folder = checkpoint(tmp_path / "changed", weights)
    with pytest.raises(ValueError, match=named):
        auto.from_pretrained(folder)
    with pytest.raises(ValueError, match=named):
        auto.from_pretrained(folder, ignore_mismatched_sizes=True)


def test_head_from_a_headless_checkpoint_is_refused(tmp_path: Path) -> None:
    AutoModel.from_pretrained(GOLDEN).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="missing: lm_head.weight"):
        AutoModelForImageTextToText.from_pretrained(tmp_path)


@pytest.mark.parametrize("kept", [5, 1000, 400_000])
def test_truncated_safetensors(tmp_path: Path, kept: int) -> None:
    folder = Path(checkpoint(tmp_path / "cut"))
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"cut cannot be read.*copy or download it again"):
        AutoModel.from_pretrained(folder)


def test_blocks_to_wrap_are_the_decoder_layers() -> None:
    for auto in (AutoModel, AutoModelForImageTextToText):
        assert set(auto.from_pretrained(GOLDEN)._no_split_modules) == {"Phi3DecoderLayer"}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_reaches_the_tower(attention: str) -> None:
    model = AutoModel.from_pretrained(GOLDEN, attn_implementation=attention)
    tower = model.model.vision_embed_tokens.img_processor["vision_model"]
    assert model.config._attn_implementation == attention
    assert tower.config._attn_implementation == attention
    assert model.model._supports_flash_attn
    assert tower._supports_flash_attn


@torch.no_grad()
def test_tower_gives_the_last_but_one_layer_of_transformers() -> None:
    tower = AutoModel.from_pretrained(GOLDEN).model.vision_embed_tokens.img_processor["vision_model"]
    crops = torch.randn(2, 3, 336, 336, generator=torch.Generator().manual_seed(0))
    layers = CLIPVisionModel.forward(tower, crops, output_hidden_states=True).hidden_states
    assert len(layers) == 4
    torch.testing.assert_close(tower(crops), layers[-2][:, 1:])
    assert (layers[-1] - layers[-2]).abs().max() > 1e-2
