"""Two processes over gloo: DDP and true FSDP2, against one process that accumulates."""

import shutil
from types import SimpleNamespace

import processes
import pytest
import tiny
import torch
from sentence_transformers import SentenceTransformer
from torch.distributed.tensor import DTensor

from mmmeb_tasks.mini.write import write_corpus
from recipes.distill import command as distill
from xvlm2vec_st import DistillationTrainer, lora_config
from xvlm2vec_st.training.fsdp import decoder_layer_class, load_states_into, meta_copy, prepare_plugin

BOTH = pytest.mark.parametrize("config", ["ddp.yaml", "fsdp2.yaml"])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Rows with an image and rows without."""
    folder = write_corpus(tmp_path_factory.mktemp("distributed") / "corpus", ["en", "it", "de"], scenes=16)
    return folder / "parallel.jsonl"


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A checkpoint whose shards differ in size: 32 rows to two processes, and one of 15."""
    return shutil.copytree(tiny.embedder("llava"), tmp_path_factory.mktemp("start") / "llava")


def command(start, corpus, out, *more):
    base = ["--student", str(start), "--corpus", str(corpus), "--languages", "it,de", "--output-dir", str(out)]
    # 24 rows to train on: four updates an epoch, so that a resumed run is in its second.
    short = ["--per-device-train-batch-size", "3", "--max-steps", "6", "--learning-rate", "1e-3", "--eval-rows", "8"]
    short += ["--save-steps", "5", "--logging-steps", "1", "--report-to", "none"]
    # Adam divides a gradient by its own size. With its usual epsilon, 1e-8, it enlarges the rounding of one that is
    # almost 0: with torch 2.9, three weights of 1,536 then differ by 1.5e-6.
    return [*base, *short, "--adam-epsilon", "1e-6", *more]


def weights(folder):
    return SentenceTransformer(str(folder)).state_dict()


def assert_close(found, expected, start):
    """To 1e-6, where training moved weights by much more."""
    one, two, before = weights(expected), weights(found), weights(start)
    assert one.keys() == two.keys()
    assert max((one[key] - before[key]).abs().max() for key in one) > 1e-3
    for key in one:
        torch.testing.assert_close(two[key], one[key], atol=1e-6, rtol=0)


class Watched(Exception):
    """Stands for a kill."""


def train(rank, argv, stop_after=None):
    """Run the recipe in this process; returns what its parameters were, batches, files written, forwards."""
    seen = {"types": set(), "images": [], "saved": 0}
    step, save = DistillationTrainer.training_step, SentenceTransformer.save

    def watching(self, model, inputs, *args, **kwargs):
        if stop_after is not None and self.state.global_step == stop_after:
            raise Watched
        seen["types"] |= {isinstance(p, DTensor) for p in model.parameters() if p.requires_grad}
        seen["images"].append(any("pixel" in key for key in inputs))
        return step(self, model, inputs, *args, **kwargs)

    def counting(self, *args, **kwargs):
        seen["saved"] += 1
        return save(self, *args, **kwargs)

    DistillationTrainer.training_step, SentenceTransformer.save = watching, counting
    try:
        distill.main(argv)
    except Watched:
        pass
    finally:
        DistillationTrainer.training_step, SentenceTransformer.save = step, save
    return seen


@pytest.fixture(scope="module")
def alone(start, corpus, tmp_path_factory):
    """One process that accumulates what two see at once."""
    out = tmp_path_factory.mktemp("alone") / "out"
    return distill.main(command(start, corpus, out, "--gradient-accumulation-steps", "2"))


@BOTH
def test_two_processes_stopped_and_resumed_end_where_one_does(config, start, corpus, alone, tmp_path):
    argv, sharded = command(start, corpus, tmp_path / "out"), config.startswith("fsdp2")
    first = processes.together(config, train, argv, 5)
    assert all(rank["types"] == {sharded} for rank in first), "the parameters are no shards"
    assert not (tmp_path / "out").exists()
    checkpoint = tmp_path / "out.partial" / "checkpoint-5"
    assert (checkpoint / "whole.json").is_file()
    assert (checkpoint / "pytorch_model_fsdp_0").is_dir() is sharded
    second = processes.together(config, train, [*argv, "--resume-from-checkpoint"])
    assert [len(rank["images"]) for rank in second] == [1, 1], "it began anew"
    assert [rank["saved"] > 0 for rank in second] == [True, False], "one process writes"
    assert_close(tmp_path / "out", alone, start)
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "nothing half-written stays"


def alternate(rank, argv):
    """Train on batches of which one process has images and the other texts only, in turn."""
    collate = distill.DistillationTrainer.get_train_dataloader

    def dealt(self):
        loader = collate(self)
        inner, turn = loader.collate_fn, iter(range(10**6))

        def mixed(rows):
            texts = (next(turn) + rank) % 2 == 0
            return inner([row | ({"image": None} if texts else {}) for row in rows])

        loader.base_dataloader.collate_fn = mixed
        return loader

    distill.DistillationTrainer.get_train_dataloader = dealt
    return train(rank, argv)


@pytest.mark.parametrize(
    ("config", "more"),
    [
        pytest.param("ddp.yaml", ["--train-vision"], id="copies that learn vision"),
        pytest.param("fsdp2.yaml", ["--train-vision"], id="shards that learn vision"),
        pytest.param("fsdp2.yaml", ["--lora-rank", "2"], id="shards, their own teacher"),
    ],
)
def test_text_only_and_image_batches_do_not_hang(config, start, tmp_path, more):
    folder = write_corpus(tmp_path / "corpus", ["en", "it", "de"], scenes=16)
    lines = (folder / "parallel.jsonl").read_text().splitlines(keepends=True)
    images = [line for line in lines if '"image": null' not in line]
    (folder / "parallel.jsonl").write_text("".join(images))
    argv = command(start, folder / "parallel.jsonl", tmp_path / "out", *more, "--eval-rows", "0", "--max-steps", "3")
    seen = processes.together(config, alternate, argv)
    stand_in = config.startswith("fsdp2") and "--train-vision" in more
    texts = [[has for has in rank["images"]] for rank in seen]
    if stand_in:  # every process runs every layer
        assert texts == [[True] * 3] * 2
    else:
        assert texts[0] != texts[1] and sorted(map(set, texts), key=len) == [{True, False}] * 2
    before, after = weights(start), weights(tmp_path / "out")
    tower = [key for key in before if "vision_tower" in key]
    moved = any(not torch.equal(before[key], after[key]) for key in tower)
    assert tower and moved is ("--train-vision" in more)


def test_a_cache_that_only_one_process_misses_does_not_hang(start, corpus, tmp_path):
    """The student is its own teacher: sharded, it runs in both processes or in none."""
    first = command(start, corpus, tmp_path / "a", "--lora-rank", "2", "--cache", str(tmp_path / "cache"))
    first += ["--max-steps", "2", "--eval-rows", "0"]
    processes.together("fsdp2.yaml", train, first)
    (store,) = (tmp_path / "cache").iterdir()
    written = sorted(store.iterdir())
    assert len(written) == 2, "a file a process"
    written[0].unlink()
    processes.together("fsdp2.yaml", train, [*first, "--overwrite"])
    assert (tmp_path / "a").is_dir()


def test_a_meta_copy_takes_no_memory_and_can_be_filled():
    model = SentenceTransformer(str(tiny.embedder("llava")))
    model.add_adapter(lora_config("llava", rank=2))
    empty = meta_copy(model)
    assert {p.device.type for p in empty.parameters()} == {"meta"} != {p.device.type for p in model.parameters()}
    states = {name: value.clone() for name, value in model.state_dict().items()}
    again = load_states_into(empty, states).state_dict()
    assert states.keys() == again.keys() and all(torch.equal(states[key], again[key]) for key in states)


def refused(rank, argv):
    with pytest.raises(ValueError, match="fsdp_cpu_ram_efficient_loading: true leaves the teacher empty"):
        import os

        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "true"
        distill.main(argv)
    return True


def test_settings_that_leave_the_teacher_empty_are_refused(start, corpus, tmp_path):
    assert processes.together("fsdp2.yaml", refused, command(start, corpus, tmp_path / "out")) == [True] * 2


@tiny.every_family
def test_the_decoders_layers_are_read_off_the_model(family):
    model = SentenceTransformer(str(tiny.embedder(family)))
    name = decoder_layer_class(model)
    layers = [place for place, module in model.named_modules() if type(module).__name__ == name]
    assert len(layers) == model[0].config.get_text_config().num_hidden_layers
    assert all("layers." in place and "vis" not in place for place in layers)


def test_a_layer_class_in_the_configuration_wins():
    model = SentenceTransformer(str(tiny.embedder("llava")))
    plugin = SimpleNamespace(fsdp_version=2, cpu_ram_efficient_loading=False, transformer_cls_names_to_wrap=None)
    prepare_plugin(plugin, model)
    assert plugin.transformer_cls_names_to_wrap == [decoder_layer_class(model)]
    plugin.transformer_cls_names_to_wrap = ["Mine"]
    prepare_plugin(plugin, model)
    assert plugin.transformer_cls_names_to_wrap == ["Mine"]
