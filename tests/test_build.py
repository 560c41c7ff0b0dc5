"""`build`: every family against its raw model run by hand, adapters, and what is refused."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentence_transformers
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLProcessor,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    SmolVLMConfig,
    SmolVLMProcessor,
    VipLlavaConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from xvlm2vec_st import families
from xvlm2vec_st.__main__ import main
from xvlm2vec_st.build import build
from xvlm2vec_st.sentence_transformer import SentenceTransformer

GOLDEN = Path(__file__).parent / "golden" / "phi3v"
CASES = json.loads((GOLDEN / "cases.json").read_text("utf-8"))
EXPECTED = load_file(GOLDEN / "expected.safetensors")
BACKEND = {f: {"backend": "torchvision"} for f in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "smolvlm")}
NATIVE = ["Transformer", "Pooling", "Normalize"]

SPECIAL = ["<pad>", "<s>", "</s>", "<image>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
SPECIAL += ["<|video_pad|>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<video>"]
ID = {token: i for i, token in enumerate(SPECIAL)}
TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT |= {"num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 2048}
TEXT |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
CLIP = CLIPVisionConfig(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=28,
    patch_size=14,
)
IDEFICS = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
IDEFICS |= {"image_size": 28, "patch_size": 7}
QWEN = {"image_token_id": ID["<|image_pad|>"], "video_token_id": ID["<|video_pad|>"]}
QWEN |= {"vision_start_token_id": ID["<|vision_start|>"], "vision_end_token_id": ID["<|vision_end|>"]}
QWEN_PIXELS = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
QWEN_PIXELS["size"] = {"shortest_edge": 28 * 28, "longest_edge": 4 * 28 * 28}


def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and `<s>` before every text as LLaMA's tokenizer has it."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    whole = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(SPECIAL + letters)}, merges=[]))
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    whole.decoder = decoders.ByteLevel()
    whole.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    whole.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=whole, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=2048
    )


def needs_torchvision() -> Any:
    """The host's processors of Qwen-VL and SmolVLM read videos too, which takes torchvision."""
    pytest.importorskip("torchvision")
    pytest.importorskip("num2words")
    from transformers import Qwen2VLVideoProcessor, Qwen3VLVideoProcessor, SmolVLMVideoProcessor

    return Qwen2VLVideoProcessor, Qwen3VLVideoProcessor, SmolVLMVideoProcessor


def llava() -> tuple[Any, Any]:
    config = LlavaConfig(vision_config=CLIP, text_config=LlamaConfig(**TEXT), image_token_index=ID["<image>"])
    pixels = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    return config, LlavaProcessor(
        image_processor=pixels,
        tokenizer=tokenizer(),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def llava_next() -> tuple[Any, Any]:
    grid = [[28, 56], [56, 28]]
    config = LlavaNextConfig(
        vision_config=CLIP,
        text_config=LlamaConfig(**TEXT),
        image_token_index=ID["<image>"],
        image_grid_pinpoints=grid,
    )
    pixels = LlavaNextImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=grid
    )
    return config, LlavaNextProcessor(
        image_processor=pixels,
        tokenizer=tokenizer(),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def qwen2_vl() -> tuple[Any, Any]:
    vision = {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    config = Qwen2VLConfig(vision_config=vision, text_config=TEXT | {"rope_parameters": rope}, **QWEN)
    videos, _, _ = needs_torchvision()
    return config, Qwen2VLProcessor(Qwen2VLImageProcessorPil(**QWEN_PIXELS), tokenizer(), videos())


def qwen2_5_vl() -> tuple[Any, Any]:
    vision = {"depth": 2, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 24}
    vision |= {"fullatt_block_indexes": [1], "window_size": 56}
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    config = Qwen2_5_VLConfig(vision_config=vision, text_config=TEXT | {"rope_parameters": rope}, **QWEN)
    videos, _, _ = needs_torchvision()
    return config, Qwen2_5_VLProcessor(Qwen2VLImageProcessorPil(**QWEN_PIXELS), tokenizer(), videos())


def qwen3_vl() -> tuple[Any, Any]:
    vision = {"depth": 2, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 24}
    vision |= {"patch_size": 14, "deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    config = Qwen3VLConfig(
        vision_config=vision, text_config=TEXT | {"rope_parameters": rope, "head_dim": 8}, **QWEN
    )
    _, videos, _ = needs_torchvision()
    return config, Qwen3VLProcessor(Qwen2VLImageProcessorPil(**QWEN_PIXELS), tokenizer(), videos())


def idefics3() -> tuple[Any, Any]:
    config = Idefics3Config(
        vision_config=IDEFICS, text_config=LlamaConfig(**TEXT), image_token_id=ID["<image>"], scale_factor=2
    )
    pixels = Idefics3ImageProcessorPil(size={"longest_edge": 56}, max_image_size={"longest_edge": 28})
    return config, Idefics3Processor(pixels, tokenizer(), image_seq_len=4)


def smolvlm() -> tuple[Any, Any]:
    config = SmolVLMConfig(
        vision_config=IDEFICS, text_config=LlamaConfig(**TEXT), image_token_id=ID["<image>"], scale_factor=2
    )
    pixels = SmolVLMImageProcessorPil(size={"longest_edge": 56}, max_image_size={"longest_edge": 28})
    _, _, videos = needs_torchvision()
    return config, SmolVLMProcessor(pixels, tokenizer(), videos(), image_seq_len=4)


MAKERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    make.__name__: make for make in (llava, llava_next, qwen2_vl, qwen2_5_vl, qwen3_vl, idefics3, smolvlm)
}
PLACEHOLDER = {family: "<image>\n" for family in ("llava", "llava_next", "idefics3", "smolvlm")}
PLACEHOLDER |= {
    family: "<|vision_start|><|image_pad|><|vision_end|>\n"
    for family in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
}
PLACEHOLDER["phi3_v"] = "<|image_1|>\n"
every_family = pytest.mark.parametrize("family", ["phi3_v", *MAKERS])


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's tiny random checkpoint, with the language model head."""
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family == "phi3_v":
            return GOLDEN
        if family not in made:
            folder = tmp_path_factory.mktemp("raw") / family
            config, processor = MAKERS[family]()
            torch.manual_seed(len(family))
            model = AutoModelForImageTextToText.from_config(config)
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, std=0.2)
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
            made[family] = folder
        return made[family]

    return get


@pytest.fixture(scope="session")
def built(raw: Callable, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder that `build` makes of it."""
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            made[family] = build(raw(family), tmp_path_factory.mktemp("built") / family)
        return made[family]

    return get


@pytest.fixture(scope="session")
def picture() -> Image.Image:
    noise = torch.randint(0, 255, (40, 60, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Image.fromarray(noise.numpy())


@torch.no_grad()
def by_hand(folder: Path, text: str, picture: Image.Image | None, model: Any = None) -> Tensor:
    """Raw processor, raw model, the last state after the final norm, normalised. No ST, no template."""
    processor = AutoProcessor.from_pretrained(folder, **BACKEND.get(folder.name, {"backend": "pil"}))
    model = model or AutoModelForImageTextToText.from_pretrained(folder).model
    inputs = processor(text=[text], images=None if picture is None else [picture], return_tensors="pt")
    return torch.nn.functional.normalize(model(**inputs).last_hidden_state[0, -1], dim=0)


@every_family
def test_stock_gives_the_raw_models_embeddings(
    family: str, raw: Callable, built: Callable, picture: Image.Image
) -> None:
    model = sentence_transformers.SentenceTransformer(str(built(family)), device="cpu")
    rows = ["a dog", picture, {"image": picture, "text": "what is it?"}, {"text": "why?", "image": picture}]
    texts = ["a dog", *(PLACEHOLDER[family] + text for text in ("", "what is it?", "why?"))]
    want = torch.stack([by_hand(raw(family), text, picture if i else None) for i, text in enumerate(texts)])
    assert (want[2] - want[3]).abs().max() > 1e-3
    assert (want[1] - want[0]).abs().max() > 1e-3
    one_by_one = torch.stack([torch.as_tensor(model.encode([row])[0]) for row in rows])
    torch.testing.assert_close(one_by_one, want, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.as_tensor(model.encode(rows)), want, rtol=0, atol=1e-5)


@every_family
def test_native_modules_and_a_pinned_backend(family: str, built: Callable) -> None:
    listed = json.loads((built(family) / "modules.json").read_text("utf-8"))
    assert [part["type"].rpartition(".")[2] for part in listed] == NATIVE
    assert all(part["type"].startswith("sentence_transformers.") for part in listed)
    settings = json.loads((built(family) / "sentence_bert_config.json").read_text("utf-8"))
    assert settings["processor_kwargs"] == BACKEND.get(family, {"backend": "pil"})
    card = (built(family) / "README.md").read_text("utf-8")
    assert f"Made from `{'phi3v' if family == 'phi3_v' else ''}" in card
    assert ("import xvlm2vec_st" in card) == (family == "phi3_v")


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


@pytest.mark.parametrize("family", ["llava", "idefics3", "qwen2_vl"])
@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("dora", [False, True])
def test_merged_is_attached(
    family: str, head: bool, dora: bool, raw: Callable, picture: Image.Image, tmp_path: Path
) -> None:
    attached = lora(tmp_path / "adapter", raw(family), head=head, dora=dora)
    out = build(raw(family), tmp_path / "out", adapter=tmp_path / "adapter")
    text = PLACEHOLDER[family] + "what?"
    want = by_hand(raw(family), text, picture, attached)
    assert (want - by_hand(raw(family), text, picture)).abs().max() > 1e-3
    model = sentence_transformers.SentenceTransformer(str(out), device="cpu")
    got = torch.as_tensor(model.encode({"image": picture, "text": "what?"}))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
    assert not list(out.glob("adapter*"))


@pytest.mark.parametrize(
    ("old", "family"), [("language_model.model.layers", "llava"), ("model.layers", "qwen2_vl")]
)
def test_adapters_of_transformers_4_fit(old: str, family: str, raw: Callable, tmp_path: Path) -> None:
    attached = lora(tmp_path / "adapter", raw(family), head=True)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = {
        re.sub(r"(model\.)?language_model\.(model\.)?layers", old, k): v for k, v in load_file(file).items()
    }
    assert all(key.startswith(f"base_model.model.{old}.") for key in weights)
    save_file(weights, file, metadata={"format": "pt"})
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    config["target_modules"] = ["q_proj", "v_proj", "down_proj"]
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        json.dumps(config | {"exclude_modules": ".*vision.*|.*visual.*"})
    )
    out = build(raw(family), tmp_path / "out", adapter=tmp_path / "adapter")
    got = sentence_transformers.SentenceTransformer(str(out), device="cpu").encode("why?")
    torch.testing.assert_close(
        torch.as_tensor(got), by_hand(raw(family), "why?", None, attached), rtol=0, atol=1e-4
    )


@torch.no_grad()
def pooled(folder: Path, case: dict) -> Tensor:
    """The last-token state, not normalised, of a golden case as stock sentence-transformers sees it."""
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    row: Any = case["text"]
    if case["image"]:
        row = {"image": Image.open(GOLDEN / case["image"]), "text": row.removeprefix("<|image_1|>\n")}
    return model[1](model[0](model.preprocess([row])))["sentence_embedding"][0]


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("kept", [False, True])
def test_golden_adapters_through_build(kind: str, kept: bool, tmp_path: Path) -> None:
    chosen = [next(c for c in CASES if c["image"] and c["num_crops"] == 4)]
    chosen += [next(c for c in CASES if not c["image"])]
    out = build(GOLDEN, tmp_path / "out", adapter=GOLDEN / f"adapter_{kind}", keep_adapter=kept)
    assert (out / "adapter_model.safetensors").exists() == kept
    for case in chosen:
        want = EXPECTED[f"{case['case']}.last_{kind}"]
        torch.testing.assert_close(pooled(out, case), want, rtol=0, atol=1e-4)
        assert (want - EXPECTED[f"{case['case']}.last"]).abs().max() > 1e-3


def test_kept_adapter_of_another_family(raw: Callable, tmp_path: Path) -> None:
    attached = lora(tmp_path / "adapter", raw("llava"), head=True)
    out = build(raw("llava"), tmp_path / "out", adapter=tmp_path / "adapter", keep_adapter=True)
    assert not (out / "model.safetensors").exists()
    got = sentence_transformers.SentenceTransformer(str(out), device="cpu").encode("why?")
    torch.testing.assert_close(
        torch.as_tensor(got), by_hand(raw("llava"), "why?", None, attached), rtol=0, atol=1e-4
    )
    lora(tmp_path / "dora", raw("llava"), head=True, dora=True)
    with pytest.raises(ValueError, match="is DoRA, whose magnitudes transformers drops"):
        build(raw("llava"), tmp_path / "d", adapter=tmp_path / "dora", keep_adapter=True)


def test_an_adapter_as_base_brings_its_own(raw: Callable, tmp_path: Path) -> None:
    lora(tmp_path / "adapter", raw("llava"), head=True)
    one = build(tmp_path / "adapter", tmp_path / "one")
    two = build(raw("llava"), tmp_path / "two", adapter=tmp_path / "adapter")
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="is an adapter"):
        build(tmp_path / "adapter", tmp_path / "three", adapter=tmp_path / "adapter")


def test_num_crops_is_stored_and_used(tmp_path: Path) -> None:
    out = build(GOLDEN, tmp_path / "out", num_crops=16)
    assert AutoProcessor.from_pretrained(out).image_processor.num_crops == 16
    case = next(c for c in CASES if c["num_crops"] == 16)
    torch.testing.assert_close(pooled(out, case), EXPECTED[f"{case['case']}.last"], rtol=0, atol=1e-4)


def test_dtype_is_the_stored_one(raw: Callable, tmp_path: Path) -> None:
    lora(tmp_path / "adapter", raw("llava"), head=True)
    for number, extra in enumerate(({}, {"adapter": tmp_path / "adapter"})):
        out = build(raw("llava"), tmp_path / f"out{number}", dtype="bf16", **extra)
        assert {value.dtype for value in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
        assert json.loads((out / "config.json").read_text("utf-8"))["dtype"] == "bfloat16"


def broken(
    folder: Path, source: Path, change: Callable[[dict], dict] | None, keep: int | None = None
) -> Path:
    """A copy of a checkpoint or adapter with changed, or cut, weights."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("images", "adapter_lora", "adapter_dora"))
    file = next(folder.glob("*model.safetensors"))
    if change:
        save_file(change(load_file(file)), file, metadata={"format": "pt"})
    if keep:
        file.write_bytes(file.read_bytes()[:keep])
    return folder


@pytest.mark.parametrize("family", ["phi3_v", "llava"])
@pytest.mark.parametrize("keep", [5, 1000, 60_000])
def test_truncated_weights(family: str, keep: int, raw: Callable, tmp_path: Path) -> None:
    base = broken(tmp_path / "cut", raw(family), None, keep)
    with pytest.raises(ValueError, match="cannot be read.*copy or download it again"):
        build(base, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["cut"]


def test_missing_and_misshapen_weights_are_listed(raw: Callable, tmp_path: Path) -> None:
    def spoil(weights: dict) -> dict:
        gone = next(key for key in weights if key.endswith("layers.1.mlp.up_proj.weight"))
        norm = next(key for key in weights if key.endswith("layers.0.input_layernorm.weight"))
        return {k: torch.ones(33) if k == norm else v for k, v in weights.items() if k != gone}

    base = broken(tmp_path / "spoilt", raw("llava"), spoil)
    with pytest.raises(
        ValueError, match=r"missing: \S+layers.1.mlp.up_proj.weight; of another shape: \S+ \[33\]"
    ):
        build(base, tmp_path / "out")


def test_adapter_that_does_not_fit(raw: Callable, tmp_path: Path) -> None:
    def refused(adapter: Path, base: Path, match: str) -> None:
        with pytest.raises(ValueError, match=match):
            build(base, tmp_path / "out", adapter=adapter)
        assert not (tmp_path / "out").exists()

    lora(tmp_path / "good", raw("llava"), head=True)
    refused(tmp_path / "good", GOLDEN, "does not fit .*unexpected: ")
    refused(GOLDEN / "adapter_lora", raw("llava"), "does not fit .*unexpected: ")
    rank = broken(tmp_path / "rank", tmp_path / "good", None)
    said = json.loads((rank / "adapter_config.json").read_text("utf-8"))
    (rank / "adapter_config.json").write_text(json.dumps(said | {"r": 8}), "utf-8")
    refused(rank, raw("llava"), r"of another shape: \S+lora_A.weight \[2, 48\] not \[8, 48\]")
    half = broken(
        tmp_path / "half", tmp_path / "good", lambda w: {k: v for k, v in w.items() if "layers.1" not in k}
    )
    refused(half, raw("llava"), r"missing: \S*layers.1")
    cut = broken(tmp_path / "cut", tmp_path / "good", None, 900)
    refused(cut, raw("llava"), "cut short")


def test_arguments_that_are_refused(raw: Callable, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("keep me")
    for arguments, match in (
        ({"out": full}, "is not empty"),
        ({"out": raw("llava"), "overwrite": True}, "OUT is BASE"),
        ({"num_crops": 0}, "num_crops is 0; pass 1 or more"),
        ({"num_crops": 4}, "num_crops is for phi3_v; a llava has none"),
        ({"dtype": "int8"}, "dtype is 'int8'; pass one of bf16"),
        ({"keep_adapter": True}, "--keep-adapter without an adapter"),
        ({"keep_adapter": True, "adapter": GOLDEN / "adapter_lora", "dtype": "bf16"}, "leave one out"),
        ({"template": tmp_path / "none.jinja"}, "is no file"),
    ):
        with pytest.raises(ValueError, match=match):
            build(raw("llava"), **({"out": tmp_path / "out"} | arguments))
    assert (full / "mine.txt").read_text() == "keep me"
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    assert build(raw("llava"), full, overwrite=True) == full
    assert not (full / "mine.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_a_build_that_fails_half_way_leaves_nothing(
    raw: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(raw("llava"), tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.json")}

    def full_disk(self: Any, folder: str, **_: Any) -> None:
        assert ".partial" in str(folder)
        raise OSError("no space left")

    monkeypatch.setattr(Pooling, "save", full_disk)
    for out in ("new", "out"):
        with pytest.raises(OSError, match="no space left"):
            build(raw("llava"), tmp_path / out, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.json")}


def unknown(folder: Path) -> Path:
    """A raw VipLLaVA: an LVLM of a family that has no template here."""
    config = VipLlavaConfig(
        vision_config=CLIP,
        text_config=LlamaConfig(**TEXT),
        image_token_index=ID["<image>"],
        vision_feature_layers=[-2, -1],
    )
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    llava()[1].save_pretrained(folder)
    return folder


def test_unknown_family_wants_a_template(tmp_path: Path, picture: Image.Image) -> None:
    base = unknown(tmp_path / "base")
    with pytest.raises(ValueError, match="no chat template for 'vipllava'.*--template FILE"):
        build(base, tmp_path / "out")
    with pytest.raises(ValueError, match="no chat template for 'vipllava'"):
        SentenceTransformer(str(base), device="cpu")
    out = build(base, tmp_path / "out", template="llava")
    got = sentence_transformers.SentenceTransformer(str(out), device="cpu").encode(picture)
    torch.testing.assert_close(torch.as_tensor(got), by_hand(base, "<image>\n", picture), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["phi3_v", "llava"])
def test_drop_in_builds_a_raw_checkpoint_in_memory(
    family: str, raw: Callable, built: Callable, picture: Image.Image, tmp_path: Path
) -> None:
    model = SentenceTransformer(str(raw(family)), device="cpu")
    row = {"image": picture, "text": "what?"}
    want = torch.as_tensor(
        sentence_transformers.SentenceTransformer(str(built(family)), device="cpu").encode(row)
    )
    torch.testing.assert_close(torch.as_tensor(model.encode(row)), want, rtol=0, atol=1e-6)
    stock = sentence_transformers.SentenceTransformer(str(raw(family)), device="cpu")
    assert stock[1].pooling_mode == ("lasttoken" if family == "phi3_v" else "mean")
    model.save(str(tmp_path / "saved"))
    listed = json.loads((tmp_path / "saved" / "modules.json").read_text("utf-8"))
    assert [part["type"].rpartition(".")[2] for part in listed] == NATIVE
    for cls in (sentence_transformers.SentenceTransformer, SentenceTransformer):
        again = torch.as_tensor(cls(str(tmp_path / "saved"), device="cpu").encode(row))
        torch.testing.assert_close(again, want, rtol=0, atol=1e-6)


def test_drop_in_leaves_the_rest_to_the_host(raw: Callable, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    small = BertConfig(
        **{k: TEXT[k] for k in ("hidden_size", "intermediate_size", "vocab_size")},
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    BertModel(small).save_pretrained(tmp_path / "bert")
    tokenizer().save_pretrained(tmp_path / "bert")
    model = SentenceTransformer(str(tmp_path / "bert"), device="cpu")
    assert model[1].pooling_mode == "mean"
    assert SentenceTransformer(modules=list(model), device="cpu").encode("a").shape == (32,)
    lora(tmp_path / "adapter", raw("llava"), head=True)
    with pytest.raises(ValueError, match="is an adapter; build a model with it first"):
        SentenceTransformer(str(tmp_path / "adapter"), device="cpu")


OWN_TEMPLATE = """{% for message in messages -%}
{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}!{% endfor %}
{%- endfor %}"""


def test_drop_in_takes_a_template_and_a_dtype(raw: Callable, tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text(OWN_TEMPLATE)
    model = SentenceTransformer(
        str(raw("llava")),
        template=tmp_path / "own.jinja",
        model_kwargs={"dtype": torch.bfloat16},
        device="cpu",
    )
    assert model.dtype is torch.bfloat16
    plain = sentence_transformers.SentenceTransformer(modules=list(model), device="cpu")
    ids = plain.preprocess(["hi"])["input_ids"]
    assert model.tokenizer.decode(ids[0]) == "<s>hi!"


def test_command_line(raw: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = ["build", str(raw("llava")), str(tmp_path / "out"), "--dtype", "bf16"]
    assert main(said) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}\n"
    assert main(said) == 1
    assert capsys.readouterr().err.startswith("error: ")
    assert main([*said, "--overwrite"]) == 0


@pytest.mark.parametrize("installed", [True, False])
def test_weights_are_checked_without_accelerate_too(
    installed: bool, raw: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(families, "is_accelerate_available", lambda: installed)
    base = broken(tmp_path / "b", raw("llava"), lambda w: {k: v for k, v in w.items() if "k_proj" not in k})
    with pytest.raises(ValueError, match="missing: "):
        SentenceTransformer(str(base), device="cpu")
