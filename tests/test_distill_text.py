"""`recipes.experiments.text_embedder`, with a tiny text model instead of the real one."""

import pytest
import tiny
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import BertConfig, BertModel

from recipes.experiments import text_embedder

SMALL = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
SMALL |= {"intermediate_size": 48}


@pytest.fixture
def folder(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertModel(BertConfig(**SMALL))
    model.save_pretrained(tmp_path / "bert")
    tiny.tokenizer().save_pretrained(tmp_path / "bert")
    modules = [Transformer(str(tmp_path / "bert")), Pooling(32, "mean"), Normalize()]
    SentenceTransformer(modules=modules).save(str(tmp_path / "start"))
    return tmp_path / "start"


def test_what_is_held_out_was_not_seen():
    names = text_embedder.all_names(["en", *text_embedder.LANGUAGES])
    chosen = text_embedder.sets(names, 2000, 0)
    assert len(names) > 1000 and len({row["en"] for row in names}) == len(names)
    assert len(chosen["pairs"]) == 300 and len(chosen["names"]) == 150
    train = {row["en"] for row in chosen["train"]}
    turned = {", ".join(reversed(text.split(", "))) for text in train}
    for row in chosen["pairs"]:
        assert row["en"] not in train | turned
    for row in chosen["names"]:
        assert not any(row["en"] == part for text in train for part in text.split(", "))
        assert row["en"] not in text_embedder.others(row)


def test_from_a_folder_to_the_table(folder, tmp_path, capsys):
    document = tmp_path / "results.md"
    document.write_text("<!-- text_embedder -->\n<!-- /text_embedder -->\n")
    argv = ["--model", str(folder), "--out", str(tmp_path / "out"), "--rows", "60", "--steps", "12"]
    scores = text_embedder.main([*argv, "--learning-rate", "5e-3", "--document", str(document)])
    assert set(scores) == {"pairs", "names"} and set(scores["pairs"][0]) == set(text_embedder.LANGUAGES)
    assert all(0 <= value <= 1 for found in scores.values() for part in found for value in part.values())
    assert scores["pairs"][0] != scores["pairs"][1], "nothing was learnt"
    table = document.read_text()
    assert "| 300 pairs of names, never seen together |" in table and "| 150 of 1," in table
    assert "python -m recipes.experiments.text_embedder --model" in table
    assert table.splitlines()[-2] in capsys.readouterr().out
    assert SentenceTransformer(str(tmp_path / "out")).encode("cane").shape == (32,)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bert", "out", "results.md", "start"]
    with pytest.raises(ValueError, match="out exists and is not empty; choose another --out"):
        text_embedder.main(argv)


def test_the_default_is_the_hubs_model_and_offline_that_of_a_package(monkeypatch):
    monkeypatch.setattr(text_embedder, "HF_HUB_OFFLINE", False)
    assert text_embedder.default_model() == "sentence-transformers/all-MiniLM-L6-v2"
    monkeypatch.setattr(text_embedder, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(text_embedder, "PACKAGE", "no_such_package_at_all")
    assert text_embedder.default_model() == text_embedder.MODEL
    monkeypatch.setattr(text_embedder, "PACKAGE", "xvlm2vec_st")
    assert text_embedder.default_model().endswith("xvlm2vec_st/model")
