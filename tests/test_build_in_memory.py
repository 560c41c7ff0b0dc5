"""The drop-in `SentenceTransformer`: raw checkpoints in memory, everything else as the host has it."""

import json
from pathlib import Path

import pytest
import sentence_transformers
import tiny
import torch
from tiny import checkpoint, embedder, random_image, some_families
from transformers import BertConfig, BertModel

from xvlm2vec_st import SentenceTransformer

GOLDEN = Path(__file__).parent / "golden" / "phi3v"


@some_families("phi3_v", "llava", "qwen2_vl")
def test_drop_in_builds_a_raw_checkpoint_in_memory(family: str, tmp_path: Path) -> None:
    model = SentenceTransformer(str(checkpoint(family)), device="cpu")
    row = {"image": random_image(), "text": "what?"}
    want = torch.as_tensor(sentence_transformers.SentenceTransformer(str(embedder(family)), device="cpu").encode(row))
    torch.testing.assert_close(torch.as_tensor(model.encode(row)), want, rtol=0, atol=1e-6)
    stock = sentence_transformers.SentenceTransformer(str(checkpoint(family)), device="cpu")
    assert stock[1].pooling_mode == ("lasttoken" if family == "phi3_v" else "mean")
    model.save(str(tmp_path / "saved"))
    listed = json.loads((tmp_path / "saved" / "modules.json").read_text("utf-8"))
    assert [part["type"].rpartition(".")[2] for part in listed] == ["Transformer", "Pooling", "Normalize"]
    for cls in (sentence_transformers.SentenceTransformer, SentenceTransformer):
        again = torch.as_tensor(cls(str(tmp_path / "saved"), device="cpu").encode(row))
        torch.testing.assert_close(again, want, rtol=0, atol=1e-6)


def test_drop_in_leaves_the_rest_to_sentence_transformers(tmp_path: Path) -> None:
    small = BertConfig(
        **{k: tiny.TEXT[k] for k in ("hidden_size", "intermediate_size", "vocab_size")},
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    BertModel(small).save_pretrained(tmp_path / "bert")
    tiny.tokenizer().save_pretrained(tmp_path / "bert")
    model = SentenceTransformer(str(tmp_path / "bert"), device="cpu")
    assert model[1].pooling_mode == "mean"
    assert SentenceTransformer(modules=list(model), device="cpu").encode("a").shape == (32,)
    with pytest.raises(ValueError, match="is an adapter; build a model with it first"):
        SentenceTransformer(str(GOLDEN / "adapter_lora"), device="cpu")


OWN_TEMPLATE = """{% for message in messages -%}
{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}!{% endfor %}
{%- endfor %}"""


def test_drop_in_takes_a_template_and_a_dtype(tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text(OWN_TEMPLATE)
    model = SentenceTransformer(
        str(checkpoint("llava")),
        template=tmp_path / "own.jinja",
        model_kwargs={"dtype": torch.bfloat16},
        device="cpu",
    )
    assert model.dtype is torch.bfloat16
    plain = sentence_transformers.SentenceTransformer(modules=list(model), device="cpu")
    ids = plain.preprocess(["hi"])["input_ids"]
    assert model.tokenizer.decode(ids[0]) == "<s>hi!"
