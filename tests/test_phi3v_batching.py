"""Phi-3.5-vision: batched is one by one, and what the model does in training and generation."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version
from PIL import Image
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    BatchFeature,
    DynamicCache,
)

from xvlm2vec_st.phi3v import Phi3VForCausalLM, Phi3VModel, Phi3VProcessor
from xvlm2vec_st.phi3v.rope import RowRotaryEmbedding, positions_from_mask, text_lengths
from xvlm2vec_st.phi3v.vision import end_lines, merge_patches, place_images, tile

GOLDEN = Path(__file__).parent / "golden" / "phi3v"
LONG_TEXT = json.loads((GOLDEN / "cases.json").read_text("utf-8"))[14]["text"]
ORIGINAL = 1024  # original_max_position_embeddings of the golden model


@cache
def model(attention: str = "sdpa") -> Phi3VModel:
    return AutoModel.from_pretrained(GOLDEN, attn_implementation=attention)


@cache
def processor() -> Phi3VProcessor:
    return AutoProcessor.from_pretrained(GOLDEN)


def random_image(name: str) -> Image.Image:
    return Image.open(GOLDEN / "images" / name)


def mixed_rows() -> tuple[list[str], list[list[Image.Image]]]:
    """Text, one image, two images (which cross `ORIGINAL`), text."""
    square, wide = random_image("0_336x336.png"), random_image("3_1000x250.png")
    texts = [
        "a dog",
        "<|image_1|>\nwhat is it?",
        "<|image_1|> or <|image_2|>?",
        "un chien noir sur la plage",
    ]
    return texts, [[], [wide], [square, wide], []]


def features(text: str | list[str], images: list | None = None, **kwargs: object) -> BatchFeature:
    return processor()(text=text, images=images, padding=True, return_tensors="pt", **kwargs)


@torch.no_grad()
def pooled(encoder: torch.nn.Module, inputs: BatchFeature) -> Tensor:
    """Each row's last real token's state, [batch, hidden]."""
    mask = inputs["attention_mask"]
    last = (mask * torch.arange(mask.shape[1])).argmax(1)
    return encoder(**inputs).last_hidden_state[torch.arange(len(last)), last]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_batched_is_one_by_one(side: str, attention: str) -> None:
    texts, images = mixed_rows()
    batch = features(texts, images, padding_side=side)
    lengths = batch["attention_mask"].sum(1)
    assert (lengths > ORIGINAL).tolist() == [False, False, True, False]
    got = pooled(model(attention), batch)
    alone = [pooled(model(attention), features(text, [row])) for text, row in zip(texts, images, strict=True)]
    torch.testing.assert_close(got, torch.cat(alone), rtol=0, atol=1e-5)
    assert torch.pdist(got).min() > 1e-2


def test_factors_by_batch_would_change_the_short_rows() -> None:
    """What the original did: one long row, and all rows take the long factors."""
    texts, images = mixed_rows()
    batch = features(texts, images)
    as_one_long_row = torch.arange(batch["input_ids"].shape[1]).expand_as(batch["input_ids"])
    differ = pooled(model(), batch) - pooled(model(), batch | {"position_ids": as_one_long_row})
    assert (differ.abs().amax(1) > 1e-3).tolist() == [True, True, False, True]


def test_texts_end_to_end_in_one_row_keep_their_own_factors() -> None:
    short, long = (features(text)["input_ids"][0] for text in ("a dog", f"{LONG_TEXT} {LONG_TEXT}"))
    rotary = model().model.rotary_emb
    positions = torch.cat([torch.arange(len(short)), torch.arange(len(long))])[None]
    cosine, sine = rotary(torch.zeros(1), positions)
    for part, length in ((slice(0, len(short)), len(short)), (slice(len(short), None), len(long))):
        alone = rotary(torch.zeros(1), torch.arange(length)[None])
        assert torch.equal(cosine[:, part], alone[0])
        assert torch.equal(sine[:, part], alone[1])


def test_rotary_frequencies_stay_in_float32() -> None:
    encoder = AutoModel.from_pretrained(GOLDEN, dtype=torch.bfloat16).to(torch.bfloat16)
    assert isinstance(encoder.model.rotary_emb, RowRotaryEmbedding)
    got, want = (each.model.rotary_emb.frequencies(torch.device("cpu")) for each in (encoder, model()))
    assert got[0].dtype is torch.float32
    assert all(torch.equal(left, right) for left, right in zip(got[:2], want[:2], strict=True))
    assert got[2] == pytest.approx((1 + torch.log(torch.tensor(8.0)) / torch.log(torch.tensor(1024.0))).sqrt().item())


def test_long_factors_begin_after_the_last_original_position() -> None:
    rotary = model().model.rotary_emb
    short, long, scale = rotary.frequencies(torch.device("cpu"))
    for length, frequencies in ((ORIGINAL, short), (ORIGINAL + 1, long)):
        cosine, _ = rotary(torch.zeros(1), torch.arange(length)[None])
        assert torch.allclose(cosine[0, 1, : len(short)], frequencies.cos() * scale)


def test_positions_and_lengths() -> None:
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1]])
    assert positions_from_mask(mask).tolist() == [[0, 1, 2, 2, 2], [0, 0, 0, 1, 2]]
    assert text_lengths(positions_from_mask(mask))[0].tolist() == [3] * 5
    assert text_lengths(positions_from_mask(mask))[1, 2:].tolist() == [3] * 3
    assert text_lengths(torch.tensor([[7]])).tolist() == [[8]]  # a step of generation


def test_layout_of_crops() -> None:
    """Sizes all different, so that no swapped axis can pass."""
    rows, cols, half, width = 2, 3, 5, 7
    page = torch.arange(rows * 2 * half * cols * 2 * half * width).float()
    page = page.view(rows * 2 * half, cols * 2 * half, width)
    crops = page.view(rows, 2 * half, cols, 2 * half, width).transpose(1, 2)
    patches = crops.reshape(rows * cols, (2 * half) ** 2, width)
    grid = tile(merge_patches(patches), rows, cols)
    for line, column in ((0, 0), (6, 13), (9, 14)):
        block = page[2 * line : 2 * line + 2, 2 * column : 2 * column + 2]
        assert torch.equal(grid[line, column], block.reshape(-1))
    lines = end_lines(grid, torch.full((4 * width,), -1.0))
    assert lines.shape == (rows * half * (cols * half + 1), 4 * width)
    assert ((lines == -1).all(1).nonzero()[:, 0] % (cols * half + 1) == cols * half).all()


def test_image_positions_without_the_processors_types() -> None:
    """`config.image_token_id` is enough where the vocabulary has the official token."""
    texts, images = mixed_rows()
    inputs = features(texts[1:3], images[1:3])
    want = pooled(model(), inputs)
    bare = BatchFeature({key: value for key, value in inputs.items() if key != "mm_token_type_ids"})
    with pytest.raises(ValueError, match=r"0 image positions .* 2247 image tokens"):
        pooled(model(), bare)
    model().config.image_token_id = 500
    try:
        assert torch.equal(pooled(model(), bare), want)
    finally:
        model().config.image_token_id = None


def test_images_encoded_beforehand() -> None:
    texts, images = mixed_rows()
    inputs = features(texts[:3], images[:3])
    want = pooled(model(), inputs)
    pixels = {key: inputs.pop(key) for key in ("pixel_values", "image_sizes")}
    with torch.no_grad():
        encoded = model().get_image_features(**pixels)
    assert [len(image) for image in encoded.pooler_output] == [745, 757, 745]
    assert torch.equal(pooled(model(), inputs | {"mm_encoder_outputs": {"image": encoded}}), want)


def test_images_and_positions_that_do_not_match() -> None:
    inputs = features("<|image_1|>\na", [[random_image("0_336x336.png")]])
    pixels, sizes = inputs["pixel_values"], inputs["image_sizes"]
    with pytest.raises(ValueError, match="757 image positions in the text and 0 image tokens"):
        pooled(model(), inputs | {"pixel_values": None})
    with pytest.raises(ValueError, match="757 image positions in the text and 1514 image tokens"):
        pooled(
            model(),
            inputs | {"pixel_values": pixels.repeat(2, 1, 1, 1, 1), "image_sizes": sizes.repeat(2, 1)},
        )
    with pytest.raises(ValueError, match="pass pixel_values and image_sizes"):
        pooled(model(), inputs | {"image_sizes": None})
    for wrong in ([[1000, 672]], [[0, 336]], [[3360, 3360]]):
        with pytest.raises(ValueError, match="image 0: size"):
            pooled(model(), inputs | {"image_sizes": torch.tensor(wrong)})
    with pytest.raises(ValueError, match="pass the processor's output"):
        pooled(model(), inputs | {"pixel_values": pixels[0]})
    embeds = torch.zeros(1, 3, 2)
    placed = place_images(embeds, torch.tensor([[False, True, True]]), [torch.ones(2, 2)])
    assert embeds.sum() == 0 and placed.sum() == 4  # the caller's tensor is left alone


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    encoder = AutoModel.from_pretrained(GOLDEN).train()
    inputs = features("<|image_1|>\na dog", [[random_image("4_97x61.png")]])
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            # transformers 5.23 renamed the method.
            new = getattr(encoder, "activation_checkpointing_enable", None)
            (new or encoder.gradient_checkpointing_enable)({"use_reentrant": False})
            assert encoder.model.gradient_checkpointing
        encoder.zero_grad()
        encoder(**inputs).last_hidden_state[0, -1].square().sum().backward()
        gradients.append({name: p.grad for name, p in encoder.named_parameters() if p.grad is not None})
    first, second = gradients
    assert first.keys() == second.keys()
    assert {"model.vision_embed_tokens.glb_GN", "model.embed_tokens.weight"} <= first.keys()
    for name, gradient in first.items():
        torch.testing.assert_close(second[name], gradient)
        assert gradient.abs().sum() > 0 or "k_proj.bias" in name


def test_bfloat16() -> None:
    encoder = AutoModel.from_pretrained(GOLDEN, dtype=torch.bfloat16)
    texts, images = mixed_rows()
    inputs = features(texts[:2], images[:2])
    got = pooled(encoder, inputs)
    assert got.dtype is torch.bfloat16
    similarity = torch.cosine_similarity(got.float(), pooled(model(), inputs))
    assert (similarity > 0.999).all()


@cache
def generator() -> Phi3VForCausalLM:
    return AutoModelForImageTextToText.from_pretrained(GOLDEN)


@torch.no_grad()
def test_labels_and_kept_logits() -> None:
    ids = features("a black dog on the beach")["input_ids"]
    whole = generator()(ids, labels=ids)
    want = torch.nn.functional.cross_entropy(whole.logits[0, :-1], ids[0, 1:])
    torch.testing.assert_close(whole.loss, want)
    kept = generator()(ids, logits_to_keep=1).logits
    torch.testing.assert_close(kept, whole.logits[:, -1:])
    assert generator()(ids, return_dict=False)[0].shape == whole.logits.shape


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"),
    reason="generate() forgets encoded images after the prefill: an error where a row crosses",
)
@torch.no_grad()
def test_generation_with_a_cache_is_generation_without() -> None:
    """The rows cross `ORIGINAL` at different steps, the second has an image."""
    text = features(f"{LONG_TEXT} {LONG_TEXT}")["input_ids"][0]
    stretch = processor().tokenizer.decode(text[1 : ORIGINAL - 757 - 4])
    inputs = features(
        [processor().tokenizer.decode(text[1 : ORIGINAL - 1]), f"<|image_1|>{stretch}"],
        [[], [random_image("4_97x61.png")]],
        padding_side="left",
    )
    lengths = inputs["attention_mask"].sum(1).tolist()
    assert all(ORIGINAL - 4 <= length <= ORIGINAL for length in lengths)
    settings = {"max_new_tokens": 7, "min_new_tokens": 7, "do_sample": False}
    settings |= {"output_logits": True, "return_dict_in_generate": True}
    cached = generator().generate(**inputs, **settings, use_cache=True)
    plain = generator().generate(**inputs, **settings, use_cache=False)
    assert torch.equal(cached.sequences, plain.sequences)
    for left, right in zip(cached.logits, plain.logits, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-4)
    assert len(cached.logits) == 7


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
@torch.no_grad()
def test_cached_prefix_is_the_whole_row_or_an_error(name: str) -> None:
    inputs = features("<|image_1|>\na black dog on the beach", [[random_image("0_336x336.png")]])
    ids, types = inputs["input_ids"], inputs["mm_token_type_ids"]
    want = model()(**inputs).last_hidden_state[:, 760:]
    cache = DynamicCache(config=model().config)
    first = {"input_ids": ids[:, :760], "mm_token_type_ids": types[:, :760], "use_cache": True}
    first |= {key: inputs[key] for key in ("pixel_values", "image_sizes")}
    model()(**first, **{name: cache})
    got = model()(ids[:, 760:], **{name: cache}, use_cache=True).last_hidden_state
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"grows past original_max_position_embeddings \(1024\)"):
        model()(ids[:, -1:].expand(1, 300), **{name: cache}, use_cache=True)
    with pytest.raises(ValueError, match="one of cache and past_key_values"):
        model()(ids[:, -1:], cache=cache, past_key_values=cache)
