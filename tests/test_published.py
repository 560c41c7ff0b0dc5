"""Checkpoints of published embedders: recognised, with their own layout, the token they pool, and shared prefixes."""

import json
import logging
import shutil

import numpy as np
import pytest
import sentence_transformers
import tiny
from tokenizers.processors import TemplateProcessing

from recipes.image_search.prompts import IMAGE, image_prompt, text_prompt
from xvlm2vec_st import SentenceTransformer, build
from xvlm2vec_st.families.published import PUBLISHED
from xvlm2vec_st.families.templates import build_template

TEXTS = ["what is it?", "che cos'è?", "was ist das, und wo?"]


def renamed(family, name, folder):
    """A copy of a family's tiny checkpoint under a published name."""
    shutil.copytree(tiny.checkpoint(family), folder / name)
    return folder / name


def both(folder):
    return SentenceTransformer(str(folder)), sentence_transformers.SentenceTransformer(str(folder), device="cpu")


def last_text(model, item, count):
    """The end of a row as the tokenizer reads it."""
    features = model[0].preprocess([item])
    ids = features["input_ids"][0][features["attention_mask"][0].bool()]
    return model.tokenizer.decode(ids[-count:])


def assert_shares(folder, prompts=(None, "Find the image: ")):
    model, stock = both(folder)
    images = [tiny.random_image(seed) for seed in (0, 1)]
    rows = [{"image": image, "text": text} for image in images for text in TEXTS] + ["a text"]
    for prompt in prompts:
        assert "image_group" in model[0].preprocess(rows, prompt=prompt)
        expected = stock.encode(rows, prompt=prompt)
        assert np.abs(model.encode(rows, prompt=prompt) - expected).max() < 1e-5
        assert np.abs(expected[0] - expected[1]).max() > 1e-3
    return model


@tiny.some_families("llava_next")
def test_e5_v_by_its_name(family, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    model = assert_shares(build(renamed(family, "e5-v", tmp_path), tmp_path / "out"))
    assert model[0].processor.chat_template == PUBLISHED["e5_v"].template
    assert image_prompt(model) == "" == text_prompt(model), "an image with a text would be one to modify"
    assert last_text(model, {"text": "a dog"}, 30).endswith("assistant<|end_header_id|>\n\n \n")
    assert "is e5_v, with the layout of royokong/e5-v" in caplog.text
    in_memory = SentenceTransformer(str(tmp_path / "e5-v"), device="cpu")
    assert np.abs(in_memory.encode(["a dog"]) - model.encode(["a dog"])).max() < 1e-6


@tiny.some_families("llava_next")
def test_what_cannot_be_recognised_is_reported(family, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    folder = build(renamed(family, "mine", tmp_path), tmp_path / "out")
    assert both(folder)[0][0].processor.chat_template == build_template(family)
    assert image_prompt(both(folder)[1]) == IMAGE
    assert "mine is not an embedder that is known here. It gets the layout of VLM2Vec" in caplog.text
    other = build(tmp_path / "mine", tmp_path / "other", template="bge_vl")
    assert both(other)[0][0].processor.chat_template == PUBLISHED["bge_vl"].template


@tiny.some_families("qwen3_vl")
def test_qwen3_vl_embedding_by_its_name_and_by_its_template(family, tmp_path):
    named = renamed(family, "Qwen3-VL-Embedding-2B", tmp_path)
    model = assert_shares(build(named, tmp_path / "out"))
    assert last_text(model, {"text": "a dog"}, 40).endswith("a dog<|im_end|>\n<|im_start|>assistant\n")
    unnamed = renamed(family, "local", tmp_path)
    (unnamed / "chat_template.jinja").write_text("{%- set d = 'Represent the user\\'s input.' -%}{{ d }}")
    other = both(build(unnamed, tmp_path / "other"))[0]
    assert (
        other[0].processor.chat_template == model[0].processor.chat_template == PUBLISHED["qwen3_vl_embedding"].template
    )


@tiny.some_families("qwen3_vl")
def test_a_folder_whose_settings_ask_for_a_generation_prompt_shares(family, tmp_path):
    """sentence-transformers' own way; the template alone would pool another token."""
    template = build_template("qwen3_vl_embedding").replace(
        "<|im_start|>assistant\\n'", "' ~ ('A' if add_generation_prompt else '')"
    )
    (tmp_path / "t.jinja").write_text(template)
    folder = build(tiny.checkpoint(family), tmp_path / "out", template=tmp_path / "t.jinja")
    plain = both(folder)[0].encode(["a dog"])
    file = folder / "sentence_bert_config.json"
    settings = json.loads(file.read_text())
    settings["processing_kwargs"] = {"chat_template": {"add_generation_prompt": True}}
    file.write_text(json.dumps(settings))
    model = assert_shares(folder)
    assert last_text(model, {"text": "a dog"}, 1) == "A"
    assert np.abs(model.encode(["a dog"]) - plain).max() > 1e-3


@tiny.some_families("qwen3_5")
def test_wemm_pools_the_token_that_its_tokenizer_appends(family, tmp_path):
    named = renamed(family, "WeMM-Embedding-2B", tmp_path)
    with pytest.raises(ValueError, match="template wemm pools <embedding>, which this tokenizer does not append"):
        build(named, tmp_path / "out")
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<embedding>"]})
    number = tokenizer.convert_tokens_to_ids("<embedding>")
    ending = TemplateProcessing(single="$A <embedding>", special_tokens=[("<embedding>", number)])
    tokenizer.backend_tokenizer.post_processor = ending
    tokenizer.save_pretrained(named)
    model = assert_shares(build(named, tmp_path / "out"))
    assert last_text(model, {"text": "a dog"}, 1) == "<embedding>"
    assert last_text(model, {"image": tiny.random_image(), "text": "a dog"}, 1) == "<embedding>"
