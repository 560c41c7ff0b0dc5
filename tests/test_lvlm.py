"""Shared prefixes against the plain route, family by family."""

import json
from functools import cache, wraps

import numpy as np
import pytest
import sentence_transformers
import tiny
import torch
from PIL import Image
from transformers import MistralConfig

from xvlm2vec_st import LVLM, SentenceTransformer, build
from xvlm2vec_st.encoding.batches import plan_batches
from xvlm2vec_st.encoding.routes import packed_plan
from xvlm2vec_st.images.hashing import image_key

TOLERANCE = 1e-5
LANGUAGES = ["what is it?", "che cos'è questo?", "¿qué es?", "qu'est-ce que c'est ?", "was ist das?"]


def loaded(folder):
    """(the stock model, ours) of one folder."""
    return sentence_transformers.SentenceTransformer(str(folder)), SentenceTransformer(str(folder))


@cache
def pair(family):
    """A family's; not to be changed."""
    return loaded(tiny.embedder(family))


def assert_equal(stock, ours, inputs, **kwargs):
    expected, found = stock.encode(inputs, **kwargs), ours.encode(inputs, **kwargs)
    assert np.abs(expected - found).max() < TOLERANCE
    assert np.abs(expected[0] - expected[-1]).max() > 100 * TOLERANCE, "all rows alike: nothing compared"


def asked(image, texts=LANGUAGES):
    return [{"image": image, "text": text} for text in texts]


class Calls:
    """Counts the rows and tokens that a model's parts get."""

    def __init__(self, model, monkeypatch):
        self.tokens, self.images = [], []
        inner = model[0].model
        run, look = inner.forward, inner.get_image_features

        @wraps(run)
        def forward(*args, **kwargs):
            self.tokens.append(kwargs["input_ids"].numel())
            return run(*args, **kwargs)

        @wraps(look)
        def features(*args, **kwargs):
            self.images.append(len(kwargs.get("pixel_values", ())))
            return look(*args, **kwargs)

        monkeypatch.setattr(inner, "forward", forward)
        monkeypatch.setattr(inner, "get_image_features", features)


@tiny.every_family
@pytest.mark.parametrize(("batch_size", "side"), [(1, "right"), (3, "left"), (64, "right"), (64, "left")])
def test_languages_images_and_texts_mixed(family, batch_size, side, monkeypatch):
    stock, ours = pair(family)
    assert isinstance(ours[0], LVLM) and ours[0].shares_prefix
    for model in (stock, ours):
        monkeypatch.setattr(model.tokenizer, "padding_side", side)
    inputs = [item for seed in range(3) for item in asked(tiny.random_image(seed))]
    inputs += LANGUAGES + [tiny.random_image(1), asked(tiny.random_image(7))[0]]
    order = np.random.default_rng(0).permutation(len(inputs))
    assert_equal(stock, ours, [inputs[i] for i in order], batch_size=batch_size)


@tiny.every_family
def test_sixteen_texts_an_image_cost_one_image(family, monkeypatch):
    stock, ours = pair(family)
    inputs = asked(tiny.random_image(), [f"is it number {i}?" for i in range(16)])
    plain = stock[0].preprocess(inputs)["input_ids"].numel()
    assert_equal(stock, ours, inputs)
    calls = Calls(ours, monkeypatch)
    ours.encode(inputs)
    assert len(calls.images) == 1 and calls.images[0] <= plain
    assert calls.tokens[0] < 0.8 * plain


@tiny.every_family
def test_several_images_a_row(family):
    stock, ours = pair(family)
    one, two, three = (tiny.random_image(seed) for seed in range(3))
    inputs = [{"image": [one, two], "text": text} for text in LANGUAGES]
    inputs += [{"image": [two, one], "text": "other order"}, {"image": [one], "text": "one"}, "none"]
    inputs += [{"image": [three, one, two], "text": text} for text in ("a", "bb")]
    assert_equal(stock, ours, inputs)


@tiny.every_family
def test_gradients(family):
    stock, ours = loaded(tiny.embedder(family))
    inputs = [item for seed in range(2) for item in asked(tiny.random_image(seed))] + LANGUAGES

    def gradients(model):
        tiny.double(model).train()  # in fp32 the order of sums alone moves a gradient by 2e-5
        states = model(model.preprocess(inputs))["sentence_embedding"]
        (states * torch.arange(states.numel()).view_as(states).cos()).sum().backward()
        return {
            name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
        }

    plain, shared = gradients(stock), gradients(ours)
    assert plain.keys() == shared.keys() and len(plain) > 20
    tolerance = 1e-5 if family in tiny.FP32 else 1e-6
    for name, gradient in plain.items():
        assert (gradient - shared[name]).norm() <= tolerance * (gradient.norm() + 1e-3), name
    assert any("vision" in name or "visual" in name for name in plain)


@tiny.every_family
def test_one_image_as_path_image_and_array(family, tmp_path):
    stock, ours = pair(family)
    image = tiny.random_image()
    image.save(tmp_path / "p.png")
    forms = [str(tmp_path / "p.png"), image, np.asarray(image), image.copy()]
    inputs = [{"image": form, "text": text} for form, text in zip(forms, LANGUAGES, strict=False)]
    # With torchvision the host reads paths by a decoder that not every build has.
    plain = [{"image": image, "text": text} for text in LANGUAGES[:4]] if family in tiny.VIDEO else inputs
    expected = stock.encode(plain)
    assert np.abs(expected - ours.encode(inputs)).max() < TOLERANCE
    assert np.abs(expected[0] - expected[-1]).max() > 100 * TOLERANCE
    features = ours[0].preprocess(inputs)
    assert features["num_images_per_sample"].tolist() == [1] and features["image_group"].tolist() == [0] * 4


def test_other_pixels_are_another_image():
    _, ours = pair("llava")
    image = tiny.random_image()
    other = image.copy()
    other.putpixel((0, 0), (1, 2, 3))
    inputs = [*asked(image, LANGUAGES[:2]), *asked(other, LANGUAGES[:2])]
    assert ours[0].preprocess(inputs)["image_group"].tolist() == [0, 0, 1, 1]
    # Edited in place between two calls: content decides.
    before = ours.encode(asked(image))
    image.paste(tiny.random_image(5))
    after = ours.encode(asked(image))
    assert np.abs(after - ours.encode(asked(tiny.random_image(5)))).max() == 0
    assert np.abs(before - after).max() > 1e-4


def test_other_processor_settings_are_another_image():
    stock, ours = loaded(tiny.embedder("phi3_v"))
    inputs = asked(tiny.random_image(width=700, height=340))
    few = ours.encode(inputs)
    for model in (stock, ours):
        model[0].processor.image_processor.num_crops = 2
    assert_equal(stock, ours, inputs)
    assert np.abs(ours.encode(inputs) - few).max() > 1e-4


def test_all_images_distinct_is_the_plain_route():
    stock, ours = pair("llava")
    inputs = [{"image": tiny.random_image(seed), "text": "what?"} for seed in range(4)] + ["a text"]
    expected, found = stock[0].preprocess(inputs), ours[0].preprocess(inputs)
    assert expected.keys() == found.keys()
    assert_equal(stock, ours, inputs)


def test_prompts_and_identical_rows():
    stock, ours = pair("qwen2_vl" if tiny_has("qwen2_vl") else "llava")
    inputs = asked(tiny.random_image(), ["same", "same", "other"]) + ["text"]
    assert_equal(stock, ours, inputs, prompt="Represent: ")
    found = ours.encode(inputs)
    assert np.abs(found[0] - found[1]).max() < TOLERANCE


def tiny_has(family):
    return not tiny.case(family).marks[0].args[0]


@tiny.every_family
def test_a_group_longer_than_the_model_is_split(family, monkeypatch):
    """With rows of several images and of none between, whose images' tensors must be found again."""
    stock, ours = pair(family)
    one, two, three = (tiny.random_image(seed) for seed in range(3))
    texts = [str(i) + "x" * 30 for i in range(4)]
    inputs = asked(three, texts) + ["a text"] + asked([one, two], texts) + asked(one, texts)
    features = ours[0].preprocess(inputs)
    monkeypatch.setattr("xvlm2vec_st.encoding.routes.LONGEST_STRETCH", features["input_ids"].shape[1] + 40)
    groups = packed_plan(ours[0].config.get_text_config(), features).groups
    assert len(groups) > len(set(groups)) == 3
    assert_equal(stock, ours, inputs)


@pytest.mark.parametrize(("window", "route"), [(None, "packed"), (16, "branched")])
def test_a_language_model_with_a_window_takes_the_branched_route(window, route, tmp_path):
    config, processor = tiny.llava()
    config.text_config = MistralConfig(**tiny.TEXT, sliding_window=window)
    tiny.write(tmp_path / "raw", config, processor)
    stock, ours = loaded(build(tmp_path / "raw", tmp_path / "built"))
    assert ours[0].sharing.route == route
    assert_equal(stock, ours, asked(tiny.random_image()) + ["a text alone, longer than the window is wide"])


def test_rows_on_both_sides_of_the_rotary_boundary():
    stock, ours = pair("phi3_v")
    inputs = asked(tiny.random_image(), ["short", "s" * 150, "l" * 250, "l" * 260 + "?"])
    assert_equal(stock, ours, inputs)


@tiny.every_family
def test_saved_as_the_native_type(family, tmp_path):
    _, ours = pair(family)
    ours.save(str(tmp_path / "m"))
    types = [entry["type"] for entry in json.loads((tmp_path / "m" / "modules.json").read_text())]
    assert all(name.startswith("sentence_transformers.") for name in types)
    for again in loaded(tmp_path / "m"):
        assert_equal(again, ours, asked(tiny.random_image()))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"convert_to_tensor": True},
        {"convert_to_numpy": False},
        {"precision": "int8"},
        {"truncate_dim": 8},
    ],
)
def test_encode_equals_sentence_transformers(options):
    stock, ours = pair("llava")
    inputs = [item for seed in range(3) for item in asked(tiny.random_image(seed))] + LANGUAGES
    expected, found = (model.encode(inputs, batch_size=4, **options) for model in (stock, ours))
    assert type(expected) is type(found) and len(expected) == len(found)
    for one, other in zip(expected, found, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert np.abs(np.asarray(one, float) - np.asarray(other, float)).max() < (
            2 if options.get("precision") else 1e-5
        )


@pytest.mark.old_name
def test_the_old_name_of_the_inputs():
    stock, ours = pair("llava")
    assert (stock.encode(sentences=["a"]) == ours.encode(sentences=["a"])).all()


def test_a_transparent_colour_is_part_of_an_image():
    image = tiny.random_image().quantize(4)
    other = image.copy()
    other.info["transparency"] = 0
    assert image_key(image) != image_key(other)


def test_rows_of_one_image_share_a_batch(monkeypatch):
    _, ours = pair("llava")
    images = [tiny.random_image(seed) for seed in range(4)]
    inputs = [{"image": image, "text": text} for text in LANGUAGES for image in images]
    calls = Calls(ours, monkeypatch)
    ours.encode(inputs, batch_size=10)
    assert calls.images == [2, 2]


def test_batches_hold_every_input_once_and_at_most_batch_size():
    images = [tiny.random_image(seed) for seed in range(3)]
    inputs = [{"image": p, "text": t} for t in LANGUAGES for p in images] + LANGUAGES + [images[0]]
    for size in (1, 3, 7, 64):
        batches = plan_batches(inputs, size)
        assert sorted(n for batch in batches for n in batch) == list(range(len(inputs)))
        assert max(map(len, batches)) <= size


def test_groups_of_alike_length_share_a_batch():
    """A packed batch is as wide as its widest group: few texts beside few, many beside many."""
    images = [tiny.random_image(seed) for seed in range(4)]
    inputs = [{"image": p, "text": "t"} for n, p in enumerate(images) for _ in range((6, 2, 6, 2)[n])]
    batches = plan_batches(inputs, 12)
    of = [sorted({images.index(inputs[n]["image"]) for n in batch}) for batch in batches]
    assert of == [[0, 2], [1, 3]]


def test_an_image_that_is_none_is_refused():
    _, ours = pair("llava")
    with pytest.raises(ValueError, match="image"):
        ours[0].preprocess([{"image": {"a": 1}, "text": "x"}, {"image": Image.new("RGB", (2, 2)), "text": "y"}])


@tiny.every_family
def test_an_image_without_pixels_is_refused(family):
    _, ours = pair(family)
    for empty in (Image.new("RGB", (0, 5)), np.zeros((4, 0, 3), np.uint8)):
        with pytest.raises(ValueError, match="without pixels"):
            ours.encode([{"image": empty, "text": "x"}])
