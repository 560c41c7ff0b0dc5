"""Phi-3.5-vision against values computed once by the original 2024 implementation, float32, CPU."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from torch import Tensor
from torch.nn.functional import mse_loss
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor, BatchFeature

import xvlm2vec_st.phi3v  # noqa: F401

GOLDEN = Path(__file__).parent / "golden" / "phi3v"
CASES = json.loads((GOLDEN / "cases.json").read_text("utf-8"))
EXPECTED = load_file(GOLDEN / "expected.safetensors")
DISTILLATION = json.loads((GOLDEN / "distillation.json").read_text("utf-8"))
BOS = 1

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: f"case{case['case']}")


@cache
def model(attention: str = "sdpa") -> torch.nn.Module:
    return AutoModel.from_pretrained(GOLDEN, attn_implementation=attention)


@cache
def processor() -> xvlm2vec_st.phi3v.Phi3VProcessor:
    return AutoProcessor.from_pretrained(GOLDEN)


def features(case: dict) -> BatchFeature:
    image = None if case["image"] is None else str(GOLDEN / case["image"])
    return processor()(text=case["text"], images=image, num_crops=case["num_crops"], return_tensors="pt")


def masked_ids(inputs: BatchFeature) -> Tensor:
    """The row's ids, -1 where an image token stands."""
    types = inputs.get("mm_token_type_ids", torch.zeros_like(inputs["input_ids"]))
    return inputs["input_ids"].masked_fill(types == 1, -1)[0]


@torch.no_grad()
def states(encoder: torch.nn.Module, inputs: BatchFeature) -> Tensor:
    return encoder(**inputs).last_hidden_state[0]


def expected(case: dict, name: str) -> Tensor:
    return EXPECTED[f"{case['case']}.{name}"]


def close(got: Tensor, case: dict, name: str, within: float) -> None:
    want = expected(case, name)
    assert want.abs().max() > 10 * within  # two nothings would be equal too
    torch.testing.assert_close(got, want, rtol=0, atol=within)


def test_cases_cover_text_images_both_crop_numbers_and_long_factors() -> None:
    assert len(CASES) == 15
    assert {case["num_crops"] for case in CASES if case["image"]} == {4, 16}
    assert [case["case"] for case in CASES if case["length"] > 1024] == [8, 9]
    assert {key.split(".")[1] for key in EXPECTED} == {
        *("input_ids", "last", "last_lora", "last_dora", "image_part_mean", "text_part_mean"),
        *("image_sizes", "pixel_samples", "pixel_mean_per_crop", "pixel_std_per_crop"),
    }


@every_case
def test_token_ids(case: dict) -> None:
    ids = masked_ids(features(case))
    assert torch.equal(ids, expected(case, "input_ids").long())
    assert len(ids) == case["length"]
    assert (ids == -1).sum() == case["image_tokens"]


@pytest.mark.parametrize("case", [c for c in CASES if c["image"]], ids=lambda c: f"case{c['case']}")
def test_pixels(case: dict) -> None:
    inputs = features(case)
    pixels = inputs["pixel_values"][0]
    assert torch.equal(inputs["image_sizes"][0], expected(case, "image_sizes").long())
    close(pixels[:, :, ::56, ::56], case, "pixel_samples", 1e-5)
    close(pixels.mean((1, 2, 3)), case, "pixel_mean_per_crop", 1e-5)
    close(pixels.std((1, 2, 3)), case, "pixel_std_per_crop", 1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@every_case
def test_states(case: dict, attention: str) -> None:
    inputs = features(case)
    got = states(model(attention), inputs)
    close(got[-1], case, "last", 1e-4)
    if case["image"]:
        image_end = int((masked_ids(inputs) == BOS).nonzero().max()) + 1
        assert 1 < image_end < len(got)
        close(got[:image_end].mean(0), case, "image_part_mean", 1e-4)
        close(got[image_end:].mean(0), case, "text_part_mean", 1e-4)


def test_states_tell_tiles_separators_and_factors_apart() -> None:
    """What the golden values pin down: each of these slips would show."""
    square, tall = features(CASES[5]), features(CASES[9])
    swapped = BatchFeature(dict(square, pixel_values=square["pixel_values"][:, [0, 2, 1, 3, 4]]))
    turned = BatchFeature(dict(tall, image_sizes=tall["image_sizes"].flip(1)))
    short = BatchFeature(dict(tall, position_ids=torch.arange(tall["input_ids"].shape[1])[None]))
    assert (states(model(), swapped)[-1] - expected(CASES[5], "last")).abs().max() > 1e-3
    with pytest.raises(ValueError, match="image positions"):  # other lines, other newlines
        states(model(), turned)
    model().model.rotary_emb.original = 4096
    try:
        assert (states(model(), short)[-1] - expected(CASES[9], "last")).abs().max() > 1e-3
    finally:
        model().model.rotary_emb.original = 1024


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("head", [AutoModel, AutoModelForImageTextToText])
def test_states_with_a_published_adapter(head: type, kind: str) -> None:
    adapted = PeftModel.from_pretrained(head.from_pretrained(GOLDEN), GOLDEN / f"adapter_{kind}")
    decoder = adapted.base_model.model.model
    cases = [case for case in CASES if f"{case['case']}.last_{kind}" in EXPECTED]
    assert {bool(case["image"]) for case in cases} == {True, False}
    for case in cases:
        close(states(decoder, features(case))[-1], case, f"last_{kind}", 1e-4)
        assert (expected(case, "last") - expected(case, f"last_{kind}")).abs().max() > 0.1
    if head is AutoModel and kind == "dora":
        merged = adapted.merge_and_unload()
        close(states(merged, features(cases[0]))[-1], cases[0], "last_dora", 1e-4)


def pooled(encoder: torch.nn.Module, language: str) -> tuple[Tensor, Tensor]:
    """The last real token's state, and the mean up to the last `<s>`, for the four pairs."""
    pairs = DISTILLATION["pairs"]
    inputs = processor()(
        text=[pair[language] for pair in pairs],
        images=[pair["image"] and str(GOLDEN / pair["image"]) for pair in pairs],
        padding=True,
        return_tensors="pt",
    )
    hidden = encoder(**inputs).last_hidden_state
    last = inputs["attention_mask"].sum(1) - 1
    positions = torch.arange(hidden.shape[1])
    image_end = ((inputs["input_ids"] == BOS) * positions).amax(1)
    in_image = (positions[None] <= image_end[:, None]).float()[..., None]
    image_part = (hidden * in_image).sum(1) / in_image.sum(1)
    return hidden[torch.arange(len(pairs)), last], image_part


def test_distillation_losses_and_gradients() -> None:
    student = PeftModel.from_pretrained(AutoModel.from_pretrained(GOLDEN), GOLDEN / "adapter_lora", is_trainable=True)
    with torch.no_grad():
        target, image_target = pooled(model(), "en")
    english, english_image = pooled(student, "en")
    translated, translated_image = pooled(student, "lang")
    parts = {
        "english": mse_loss(english, target),
        "translated": mse_loss(translated, target),
        "english_image_part": mse_loss(english_image, image_target),
        "translated_image_part": mse_loss(translated_image, image_target),
    }
    losses = {
        "loss": (parts["english"] + parts["translated"]) / 2,
        "image_loss": sum(parts.values()) / 4,
    }
    for name, value in (parts | losses).items():
        assert value.item() == pytest.approx(DISTILLATION[name], rel=1e-4)
    weights = dict(student.named_parameters())
    compared = 0
    for name, loss in losses.items():
        student.zero_grad()
        loss.backward(retain_graph=True)
        for key, norm in DISTILLATION["grad_norms"].items():
            if key.startswith(f"{name}/"):
                gradient = weights[key.removeprefix(f"{name}/")].grad
                assert gradient.norm().item() == pytest.approx(norm, rel=1e-4)
                compared += 1
    assert compared == len(DISTILLATION["grad_norms"]) == 8


def test_stock_sentence_transformers(tmp_path: Path) -> None:
    """Transformer(folder) + last-token pooling, as built, and after saving and loading."""
    built = SentenceTransformer(modules=[Transformer(str(GOLDEN)), Pooling(64, "lasttoken")])
    cases = [case for case in CASES if case["num_crops"] == 4 and case["length"] < 800]
    rows = [
        {"text": case["text"].removeprefix("<|image_1|>\n"), "image": str(GOLDEN / case["image"])}
        if case["image"]
        else case["text"]
        for case in cases
    ]
    built.save_pretrained(str(tmp_path))
    modules = json.loads((tmp_path / "modules.json").read_text("utf-8"))
    assert all(module["type"].startswith("sentence_transformers.") for module in modules)
    for encoder in (built, SentenceTransformer(str(tmp_path))):
        for case, vector in zip(cases, encoder.encode(rows, convert_to_tensor=True), strict=True):
            close(vector, case, "last", 1e-4)
    assert len(cases) == 13


def test_sentence_transformers_prompt_stands_before_the_text_after_the_image() -> None:
    encoder = SentenceTransformer(modules=[Transformer(str(GOLDEN)), Pooling(64, "lasttoken")])
    image = str(GOLDEN / "images/4_97x61.png")
    prompted = encoder.preprocess([{"text": "a dog", "image": image}], prompt="Find: ")
    plain = encoder.preprocess([{"image": image, "text": "Find: a dog"}])
    assert torch.equal(prompted["input_ids"], plain["input_ids"])
    assert prompted["mm_token_type_ids"].sum() == 757
