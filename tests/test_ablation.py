"""`recipes.experiments.ablation`: statistics, records, untrained maps, both worlds from end to end."""

import gzip
import json

import numpy as np
import pytest
import tiny
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import BertConfig, BertModel

from recipes.experiments.ablation import command
from recipes.experiments.ablation.mini_world import MiniWorld
from recipes.experiments.ablation.operations import OperationCounter
from recipes.experiments.ablation.records import append_record, new_record, pack_bits, read_records, unpack_bits
from recipes.experiments.ablation.report import updates_for_equal_operations
from recipes.experiments.ablation.statistics import difference, estimate, query_means
from recipes.experiments.ablation.text_world import TextWorld, read_texts, write_rows
from recipes.experiments.ablation.untrained import mean_shift, procrustes, with_map
from recipes.experiments.ablation.variants import BY_NAME, VARIANTS, Variant, find_variants
from recipes.experiments.ablation.worlds import read_corpus, write_subset


def record(variant="paper", seed=0, updates=5, operations=100, hits=None):
    hits = hits or {("t2i", "it"): np.array([True, False, True])}
    return new_record(variant, seed, updates, hits, operations=operations, seconds=1.0, settings={})


def test_records_come_back_and_a_cut_line_is_dropped(tmp_path):
    path, bits = tmp_path / "r.jsonl", np.random.default_rng(0).random(301) > 0.4
    assert (unpack_bits(pack_bits(bits), 301) == bits).all()
    first, second = record(hits={("c", "it"): bits}), record(seed=1)
    append_record(path, first)
    append_record(path, second)
    with path.open("a") as file:
        file.write('{"variant": "pa')  # a kill
    assert read_records(path) == {first.key: first, second.key: second}
    assert (read_records(path)[first.key].cells()["c", "it"] == bits).all()
    append_record(path, record(seed=2))
    assert len(read_records(path)) == 3 and len(path.read_text().splitlines()) == 3
    path.write_text("{}\n" + path.read_text())
    with pytest.raises(ValueError, match="line 1: not a record"):
        read_records(path)


def test_intervals_are_over_queries_and_the_spread_over_seeds():
    rng = np.random.default_rng(1)
    values = (rng.random((3, 400)) < 0.7).astype(float)
    value = estimate(values)
    error = values.mean(0).std() / 20
    assert value.mean == pytest.approx(values.mean())
    assert (value.high - value.low) / 2 == pytest.approx(1.96 * error, rel=0.1)
    assert (value.least, value.greatest) == (values.mean(1).min(), values.mean(1).max())
    # Pairs of the same queries: a constant difference has no interval, though each mean has one.
    gap = difference(values, values - 0.1)
    assert gap.low == pytest.approx(0.1) and gap.high == pytest.approx(0.1) and gap.beyond_zero
    assert not difference(values, values).beyond_zero
    assert difference(values, values[:1]).mean == pytest.approx(values.mean() - values[0].mean())


def test_cells_of_a_query_go_together():
    hits = {("t2i", code): np.array(bits) for code, bits in (("it", [True, False]), ("de", [True, True]))}
    cells = [*hits]
    assert query_means([record(hits=hits)], cells).tolist() == [[1.0, 0.5]]
    with pytest.raises(ValueError, match="different numbers of queries"):
        query_means([record(hits=hits | {("c", "it"): np.ones(3)})], [*cells, ("c", "it")])


def test_equal_operations_take_other_updates_only_beyond_two_percent():
    runs = {"paper": [record()], "near": [record("near", operations=101)], "cheap": [record("cheap", operations=40)]}
    assert updates_for_equal_operations(runs, "near", 60) == 60
    assert updates_for_equal_operations(runs, "cheap", 60) == 150


def test_operations_of_a_layer_and_of_attention():
    layer, given = torch.nn.Linear(8, 4, bias=False), torch.randn(16, 8)
    with OperationCounter() as counter:
        layer(given).sum().backward()
    assert counter.total == 2 * (2 * 16 * 8 * 4)  # the output, and the weights' gradient
    query = torch.randn(1, 2, 32, 16)
    with OperationCounter() as counter:
        torch.nn.functional.scaled_dot_product_attention(query, query, query)
    assert counter.total == 2 * (2 * 2 * 32 * 32 * 16)


def test_maps_that_need_no_training():
    rng = np.random.default_rng(0)
    target = rng.normal(size=(200, 6))
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    source = (target - 0.5) @ turn
    rotation, shift = procrustes(source, target)
    assert np.allclose(source @ rotation + shift, target)
    assert np.allclose(rotation @ rotation.T, np.eye(6))
    rotation, shift = mean_shift(source, target)
    assert np.allclose((source @ rotation + shift).mean(0), target.mean(0))


@pytest.fixture
def text_model(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        model = BertModel(BertConfig(**sizes, intermediate_size=48))
    model.save_pretrained(tmp_path / "bert")
    tiny.tokenizer().save_pretrained(tmp_path / "bert")
    modules = [Transformer(str(tmp_path / "bert")), Pooling(32, "mean"), Normalize()]
    SentenceTransformer(modules=modules).save(str(tmp_path / "start"))
    return tmp_path / "start"


def test_a_model_with_a_map(text_model):
    model = SentenceTransformer(str(text_model))
    rng = np.random.default_rng(0)
    rotation, shift = np.linalg.qr(rng.normal(size=(32, 32)))[0], rng.normal(size=32)
    texts = ["a dog", "ein Hund", "red apple"]
    mapped = model.encode(texts) @ rotation + shift
    expected = mapped / np.linalg.norm(mapped, axis=1, keepdims=True)
    assert np.allclose(with_map(model, rotation, shift).encode(texts), expected, atol=1e-5)
    assert not np.allclose(model.encode(texts), expected, atol=0.1)


def test_subsets_have_the_share_of_images(tmp_path):
    corpus = tmp_path / "c.jsonl"
    rows = [{"id": str(n), "image": f"{n}.png" if n % 2 else None, "en": "x"} for n in range(40)]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for share, images, texts in ((0.0, 0, 20), (0.1, 2, 20), (0.5, 20, 20), (0.8, 20, 5), (1.0, 20, 0)):
        chosen = read_corpus(write_subset(corpus, share, tmp_path / "s.jsonl"))
        assert sum(bool(row["image"]) for row in chosen) == images and len(chosen) == images + texts
    with pytest.raises(ValueError, match="0 rows with an image and 20 without"):
        write_subset(write_subset(corpus, 0.0, tmp_path / "texts.jsonl"), 0.5, tmp_path / "s.jsonl")


SENTENCES = {
    "en": ["a dog runs", "a red apple", "two men sit", "a blue car", "a cat sleeps", "the sun"],
    "de": ["ein Hund rennt", "ein roter Apfel", "zwei Männer sitzen", "ein blaues Auto", "eine Katze", "die Sonne"],
    "jp": ["犬が走る", "赤いりんご", "男が二人", "青い車", "猫が寝る", "太陽"],
}


@pytest.fixture
def moses(tmp_path):
    for code, lines in SENTENCES.items():
        with gzip.open(tmp_path / f"train.{code}.gz", "wt", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n" * (code == "en"))  # with and without a last newline
    return str(tmp_path / "train.{}.gz")


def test_moses_files_and_json_lines(moses, tmp_path):
    texts = read_texts(moses, ["en", "de"])
    assert [*texts] == ["en", "de", "ja"] and texts["ja"] == SENTENCES["jp"]
    again = read_texts(str(write_rows(texts, tmp_path / "rows.jsonl")))
    assert again == texts
    with pytest.raises(ValueError, match="no sentences in fr; it has de, en, ja"):
        read_texts(moses, ["en", "fr"])
    with gzip.open(moses.format("de"), "at") as file:
        file.write("\nnoch eine")
    with pytest.raises(ValueError, match="files of different length: .*'de': 7"):
        read_texts(moses)


def test_captions_from_files_to_the_table(text_model, moses, tmp_path, monkeypatch):
    document = tmp_path / "results.md"
    document.write_text("<!-- ablation captions 2 -->\n<!-- /ablation captions 2 -->\n")
    argv = ["captions", "--work", str(tmp_path / "w"), "--records", str(tmp_path / "r.jsonl")]
    argv += ["--model", str(text_model), "--train", moses, "--test", f"One={moses}", "--languages", "de"]
    argv += ["--updates", "2", "--seeds", "0", "1", "--document", str(document)]
    argv += ["--variants", "paper", "paper + InfoNCE", "paper + similarity KL"]
    monkeypatch.setattr(TextWorld, "settings", TextWorld.settings | {"per_device_train_batch_size": 3})
    text = command.main(argv)
    assert document.read_text().count("| paper + InfoNCE |") == 2 and "One, %| en" in text.replace(" |", "|")
    for name in ("before", "mean shift, untrained", "Procrustes, untrained", "query translated perfectly"):
        assert text.count(f"| {name} |") == 2
    assert (tmp_path / "ablation-captions-2.png").stat().st_size > 5000
    records = read_records(tmp_path / "r.jsonl")
    assert len(records) == 4 + 6 and not list((tmp_path / "w").glob("run-*"))
    ceiling = records["query translated perfectly", 0, 0].cells()
    assert ceiling["One", "de"].all() and not records["before", 0, 0].cells()["One", "de"].all()
    assert all(r.operations > 1e6 for r in records.values() if r.updates)
    # The same command again runs nothing.
    monkeypatch.setattr(command, "train_and_score", None)
    monkeypatch.setattr(command, "untrained_records", None)
    assert command.main(argv) == text
    assert command.main([*argv, "--seeds", "5", "--report"]) == text
    other = [*argv[:-3], "paper", "--report", "--set", "english_weight=0.2"]
    assert "english_weight" not in command.main(other)  # a variant of its own, which has no run
    changed = TextWorld.settings | {"per_device_train_batch_size": 2}
    with monkeypatch.context() as context, pytest.raises(ValueError, match="'paper' was run with .*3.*, now .*2"):
        context.setattr(TextWorld, "settings", changed)
        command.main(argv)
    with pytest.raises(ValueError, match=r"has no score of \('Two', 'de'\); pass another --records"):
        command.main([word.replace("One=", "Two=") for word in argv])
    with pytest.raises(ValueError, match="--report: .*none.jsonl has no runs yet"):
        command.main([*argv, "--report", "--records", str(tmp_path / "none.jsonl")])


def test_mini_world_with_subsets_and_stages(tmp_path, monkeypatch):
    monkeypatch.setattr(MiniWorld, "settings", MiniWorld.settings | {"per_device_train_batch_size": 8})
    argv = ["mini", "--work", str(tmp_path / "w"), "--records", str(tmp_path / "r.jsonl"), "--scenes", "60"]
    argv += ["--queries", "2", "--updates", "2", "--seeds", "0", "--languages", "it", "de"]
    argv += ["--variants", "paper", "no rows with images", "two stages: texts, then images"]
    text = command.main(argv)
    records = read_records(tmp_path / "r.jsonl")
    paper, texts, stages = (records[name, 0, 2] for name in argv[-3:])
    assert len({paper.operations, texts.operations, stages.operations}) == 3
    runs = {own.variant: [own] for own in (paper, texts, stages)}
    for name in runs:
        steps = updates_for_equal_operations(runs, name, 2)
        assert (name, 0, steps) in records and (steps == 2 or f"{steps} updates" in text)
    assert {task for task, _ in paper.cells()} == {"i2t", "t2i", "c", "vqa", "vg"}


def test_bad_options(tmp_path):
    base = ["captions", "--work", str(tmp_path), "--records", str(tmp_path / "r")]
    with pytest.raises(ValueError, match="captions: pass --train, and --test or --dev-set"):
        command.main(base)
    with pytest.raises(ValueError, match=r"--test x: pass NAME=FILES"):
        command.main([*base, "--train", "a", "--test", "x"])
    with pytest.raises(ValueError, match="--set 'x': pass OPTION=VALUE"):
        command.main([*base, "--set", "x"])
    with pytest.raises(ValueError, match="--variants 'x': unknown; choose among 'paper'"):
        find_variants(["x"], "mini")


def test_enough_variants_for_both_worlds():
    assert len(find_variants(None, "captions")) >= 8 and len(find_variants(None, "mini")) >= 11
    assert {variant.name for variant in VARIANTS} == {*BY_NAME} and len(BY_NAME) == len(VARIANTS)
    changed = Variant("a", {"english_weight": 0.1}, {"mini": {"english_weight": 0.9}}).changed({"english_weight": 0.3})
    assert changed.options_in("mini") == {"english_weight": 0.3}
