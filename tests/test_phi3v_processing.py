"""Phi-3.5-vision's processor: rows of any mixture, the chat template, and what is refused."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, BatchFeature

from xvlm2vec_st.phi3v import Phi3VProcessor

GOLDEN = Path(__file__).parent / "golden" / "phi3v"
IMAGE = 500  # <|image|> in the golden tokenizer
BOS = 1
PAD = 496


@cache
def processor() -> Phi3VProcessor:
    return AutoProcessor.from_pretrained(GOLDEN)


def random_image(width: int = 60, height: int = 40, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def features(text: str | list[str], images: Any = None, **kwargs: Any) -> BatchFeature:
    return processor()(text=text, images=images, return_tensors="pt", **kwargs)


def rows(inputs: BatchFeature) -> list[list[int]]:
    """Ids of each row, padding off."""
    masks = inputs["attention_mask"].bool()
    return [ids[mask].tolist() for ids, mask in zip(inputs["input_ids"], masks, strict=True)]


# --- rows -------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
def test_mixed_batch_is_its_rows_padded(side: str) -> None:
    texts = ["a dog", "<|image_1|>\nwhat is it?", "<|image_1|> or <|image_2|>?"]
    wide, tall, small = random_image(90, 30), random_image(30, 90), random_image(9, 9)
    batch = features(texts, [None, [wide], [tall, small]], padding=True, padding_side=side)
    alone = [
        features(texts[0]),
        features(texts[1], wide),
        features(texts[2], [[tall, small]]),
    ]
    assert rows(batch) == [rows(one)[0] for one in alone]
    assert batch["pixel_values"].shape == (3, 5, 3, 336, 336)
    assert torch.equal(batch["pixel_values"], torch.cat([one["pixel_values"] for one in alone[1:]]))
    assert torch.equal(batch["image_sizes"], torch.cat([one["image_sizes"] for one in alone[1:]]))
    padded = batch["attention_mask"] == 0
    assert padded.any()
    assert (batch["input_ids"][padded] == PAD).all()
    assert padded[0, 0 if side == "left" else -1]
    assert torch.equal(batch["mm_token_type_ids"] == 1, batch["input_ids"] == IMAGE)


def test_right_is_the_default_side() -> None:
    batch = features(["a", "a much longer text"], padding=True)
    assert batch["attention_mask"][0].tolist()[:3] == [1, 1, 0]  # `<s>`, a, padding
    assert set(batch) == {"input_ids", "attention_mask"}  # nothing about images without any


def test_begin_of_text_stands_before_every_stretch() -> None:
    ids = rows(features("look <|image_1|> and <|image_2|>", [random_image(), random_image()]))[0]
    pairs = zip([None, *ids], ids, strict=False)
    runs = [token for before, token in pairs if (before, token) != (IMAGE, IMAGE)]
    text = processor().tokenizer
    look, between = (text(t, add_special_tokens=False)["input_ids"] for t in ("look ", " and "))
    assert runs == [BOS, *look, IMAGE, BOS, *between, IMAGE, BOS]


def test_images_follow_their_numbers() -> None:
    first, second = random_image(seed=1), random_image(seed=2)
    named = features("<|image_2|> then <|image_1|>", [[first, second]])
    plain = features("<|image_1|> then <|image_2|>", [[second, first]])
    assert torch.equal(named["pixel_values"], plain["pixel_values"])
    assert not torch.equal(named["pixel_values"][0], named["pixel_values"][1])
    assert rows(named) == rows(plain)


def test_images_flat_nested_or_with_none() -> None:
    texts = ["<|image_1|> a", "b", "<|image_1|> c"]
    first, second = random_image(seed=1), random_image(seed=2)
    given = (
        [first, second],
        [first, None, second],
        [[first], [], [second]],
        [[first], None, second],
    )
    batches = [features(texts, images, padding=True) for images in given]
    for batch in batches[1:]:
        assert torch.equal(batch["pixel_values"], batches[0]["pixel_values"])


def test_nested_and_flat_settings_are_the_same() -> None:
    text, image = ["<|image_1|>\na", "b"], [[random_image(400, 100)], []]
    flat = processor()(
        text=text, images=image, padding="max_length", max_length=3000, num_crops=16,
        padding_side="left", return_tensors="pt",
    )  # fmt: skip
    nested = processor()(
        text=text,
        images=image,
        text_kwargs={"padding": "max_length", "max_length": 3000, "padding_side": "left"},
        images_kwargs={"num_crops": 16},
        common_kwargs={"return_tensors": "pt"},
    )
    assert flat.keys() == nested.keys()
    assert all(torch.equal(flat[key], nested[key]) for key in flat)
    assert flat["input_ids"].shape == (2, 3000)
    assert flat["pixel_values"].shape[1] == 17
    assert features("a b c", padding=True, pad_to_multiple_of=8)["input_ids"].shape == (1, 8)


def test_lists_without_tensors_and_without_mask() -> None:
    plain = processor()(text=["a", "b c"], return_attention_mask=False)
    assert set(plain) == {"input_ids"}
    assert isinstance(plain["input_ids"][1], list)


def test_settings_are_saved_and_can_be_given_on_loading(tmp_path: Path) -> None:
    loaded = AutoProcessor.from_pretrained(GOLDEN, num_crops=16)
    assert (processor().image_processor.num_crops, loaded.image_processor.num_crops) == (4, 16)
    loaded.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert again.image_processor.to_dict() == loaded.image_processor.to_dict()
    assert again.chat_template == loaded.chat_template
    assert AutoProcessor.from_pretrained(tmp_path, num_crops=9).image_processor.num_crops == 9
    image = random_image(300, 200)
    want = loaded(text="<|image_1|>\na", images=image, return_tensors="pt")
    got = again(text="<|image_1|>\na", images=image, return_tensors="pt")
    assert all(torch.equal(got[key], want[key]) for key in want)


# --- chat template ----------------------------------------------------------------------------

USER = {"role": "user"}


@pytest.mark.parametrize(
    ("messages", "rendered"),
    [
        ([USER | {"content": "a dog"}], "a dog"),
        ([USER | {"content": [{"type": "text", "text": "a dog\n"}]}], "a dog\n"),
        ([USER | {"content": [{"type": "image"}]}], "<|image_1|>\n"),
        (
            [USER | {"content": [{"type": "text", "text": "a dog"}, {"type": "image"}]}],
            "<|image_1|>\na dog",
        ),
        (
            [USER | {"content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "x"}]}],
            "<|image_1|>\n<|image_2|>\nx",
        ),
        (
            [
                {"role": "system", "content": [{"type": "text", "text": "Find: "}]},
                USER | {"content": [{"type": "image"}, {"type": "text", "text": "a dog"}]},
            ],
            "<|image_1|>\nFind: a dog",
        ),
    ],
)
def test_chat_template_is_vlm2vecs_layout(messages: list, rendered: str) -> None:
    assert processor().apply_chat_template(messages) == rendered


def test_chat_template_in_a_batch_with_images() -> None:
    image = random_image()
    conversations = [
        [USER | {"content": [{"type": "image", "image": image}, {"type": "text", "text": "a"}]}],
        [USER | {"content": "b"}],
    ]
    batch = processor().apply_chat_template(
        conversations,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"text_kwargs": {"padding": True}},
    )
    want = features(["<|image_1|>\na", "b"], [[image], []], padding=True)
    assert all(torch.equal(batch[key], want[key]) for key in want)


def test_chat_template_refuses_other_media() -> None:
    with pytest.raises(Exception, match="takes text and images, not video"):
        processor().apply_chat_template([USER | {"content": [{"type": "video"}]}])


# --- cutting ----------------------------------------------------------------------------------


def test_text_is_cut_to_max_length() -> None:
    whole = rows(features("one two three four"))[0]
    assert rows(features("one two three four", max_length=4))[0] == whole[:4]
    assert rows(features("one two three four", max_length=4, truncation=False))[0] == whole
    both = features(["<|image_1|>\none two three", "one two"], [random_image()], padding=True, max_length=765)
    assert both["input_ids"].shape == (2, 765)
    assert (both["mm_token_type_ids"].sum(1) == torch.tensor([757, 0])).all()


@pytest.mark.parametrize("max_length", [100, 757, 758])
def test_an_image_is_never_cut(max_length: int) -> None:
    """`<s>`, 757 image tokens, `<s>`: 759 is the least."""
    texts, images = ["a", "<|image_1|>\none two three"], [None, random_image()]
    with pytest.raises(ValueError, match=r"row 1: max_length \d+ would truncate an image.* 759 or more"):
        features(texts, images, padding=True, max_length=max_length)
    assert features(texts, images, padding=True, max_length=759)["input_ids"].shape == (2, 759)


def test_an_image_is_never_cut_from_the_left() -> None:
    text = processor().tokenizer
    text.truncation_side = "left"
    try:
        with pytest.raises(ValueError, match="would truncate an image"):
            features("one <|image_1|> two", random_image(), max_length=759)
        assert rows(features("one two three", max_length=3))[0] == rows(features("one two three"))[0][-3:]
    finally:
        text.truncation_side = "right"


# --- tags -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "images", "named"),
    [
        (["a", "<|image_1|> b"], None, r"row 1: 1 image tag\(s\) in the text and 0 image\(s\)"),
        (["a", "b"], [None, random_image()], r"row 1: 0 image tag\(s\) in the text and 1 image\(s\)"),
        (["a", "b"], [random_image()], r"0 image tag\(s\) in 2 text\(s\) and 1 image\(s\)"),
        (["<|image_1|>", "<|image_1|>"], [random_image()], r"2 image tag\(s\) in 2 text\(s\) and 1"),
        (["<|image_1|>", "b"], [[], [random_image()]], r"row 0: 1 image tag\(s\) in the text and 0"),
        (["<|image_2|> b"], [random_image()], r"row 0: image tags \[2\]; number"),
        (["<|image_1|> <|image_1|>"], [[random_image()]], r"row 0: image tags \[1, 1\]; number"),
        (["a", "b"], [[]], "images for 1 rows and 2 texts"),
        (["a <|image|> b"], None, r"row 0: the text holds '<\|image\|>'"),
        (None, random_image(), "text is missing"),
    ],
)
def test_texts_and_images_that_do_not_match(texts: Any, images: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        features(texts, images, padding=True)


def test_other_media_are_refused() -> None:
    with pytest.raises(ValueError, match="leave audio out"):
        features("a", audio=[np.zeros(10)])


def test_tokenizer_without_the_placeholder_is_refused() -> None:
    parts = processor().image_processor, processor().tokenizer
    with pytest.raises(ValueError, match="no token '<nothing>'"):
        Phi3VProcessor(*parts, image_token="<nothing>")
