"""`recipes.distill` from the command line to the folder."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from transformers import set_seed
from transformers.models.auto import image_processing_auto

from mmmeb_tasks.mini import TEACHER
from mmmeb_tasks.mini.write import write_corpus
from recipes.distill import command as distill
from recipes.distill.parser import parse_arguments
from xvlm2vec_st import DistillationTrainer, lora_config
from xvlm2vec_st.distillation.states import add_projection


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distill") / "corpus"
    return write_corpus(folder, ["en", "it", "de"], scenes=24) / "parallel.jsonl"


def command(corpus, out, *more):
    base = ["--student", str(TEACHER), "--corpus", str(corpus), "--languages", "it,de", "--output-dir", str(out)]
    short = ["--per-device-train-batch-size", "6", "--max-steps", "4", "--learning-rate", "1e-3", "--eval-rows", "12"]
    return [*base, *short, "--report-to", "none", *more]


def weights(folder):
    return SentenceTransformer(str(folder)).state_dict()


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("distill") / "out"
    return distill.main(command(corpus, out, "--logging-steps", "1", "--report-to", "tensorboard"))


def test_the_folder_is_stock_and_complete(trained, teacher):
    modules = json.loads((trained / "modules.json").read_text())
    assert all(module["type"].startswith("sentence_transformers.") for module in modules)
    assert not trained.with_name("out.partial").exists()
    # The evaluation after training writes a file of its own.
    events = b"".join(path.read_bytes() for path in trained.glob("runs/*/events.out.tfevents.*"))
    assert all(f"train/error_{code}".encode() in events for code in ("en", "it", "de"))
    student = SentenceTransformer(str(trained))
    text = "mela rossa a sinistra di cane"
    assert not (student.encode(text) == teacher.encode(text)).all()
    vision = [key for key in student.state_dict() if "vision_tower" in key or "projector" in key]
    assert vision and all(torch.equal(student.state_dict()[key], teacher.state_dict()[key]) for key in vision)


def test_a_process_that_never_heard_of_this_package_gives_the_same_embeddings(trained, tmp_path):
    script = (
        "import sys, json; from PIL import Image; from sentence_transformers import SentenceTransformer\n"
        f"model = SentenceTransformer({str(trained)!r})\n"
        "image = Image.effect_mandelbrot((96, 96), (-2, -1.5, 1, 1.5), 20)\n"
        "items = ['mela rossa', {'image': image}, {'image': image, 'text': 'Was ist links vom Hund?'}]\n"
        "vectors = model.encode(items)\n"
        "assert not any(name.startswith(('xvlm2vec', 'mmmeb')) for name in sys.modules)\n"
        "print(json.dumps(vectors.tolist()))\n"
    )
    (tmp_path / "use.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "use.py"],
        cwd=tmp_path,
        env=os.environ | {"MMMEB_NO_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    theirs = torch.tensor(json.loads(done.stdout.splitlines()[-1]))
    image = Image.effect_mandelbrot((96, 96), (-2, -1.5, 1, 1.5), 20)
    items = ["mela rossa", {"image": image}, {"image": image, "text": "Was ist links vom Hund?"}]
    ours = torch.as_tensor(SentenceTransformer(str(trained)).encode(items))
    assert theirs.shape == (3, 192)
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)


def test_the_log_names_every_part_and_every_language(trained):
    log = json.loads((trained / "training_log.json").read_text())
    steps = [entry for entry in log if "english" in entry]
    assert len(steps) == 4
    for entry in steps:
        assert entry["loss"] == pytest.approx(entry["english"] + entry["translated"], abs=2e-4)
    last = log[-1]
    mean = (last["eval_it_mean_accuracy"] + last["eval_de_mean_accuracy"]) / 2
    assert last["eval_sequential_score"] == pytest.approx(mean)
    assert "eval_english_negative_mse" in last


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(corpus, trained, tmp_path):
    again = distill.main(command(corpus, tmp_path / "again", "--logging-steps", "1"))
    other = distill.main(command(corpus, tmp_path / "other", "--seed", "1"))
    assert equal(weights(trained), weights(again))
    assert not equal(weights(trained), weights(other))


def stop_after(monkeypatch, steps):
    """Make training break off, as by Ctrl-C, in step `steps` + 1."""
    original, done = DistillationTrainer.training_step, []

    def step(self, *args, **kwargs):
        if len(done) == steps:
            raise KeyboardInterrupt
        done.append(1)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(DistillationTrainer, "training_step", step)
    return lambda: monkeypatch.setattr(DistillationTrainer, "training_step", original)


@pytest.mark.parametrize(
    "more",
    [
        pytest.param([], marks=pytest.mark.slow),
        ["--lora-rank", "4", "--dora"],
        pytest.param(["--muon-learning-rate", "0.01"], marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_leaves_no_result_and_resumes_to_the_same_weights(corpus, tmp_path, monkeypatch, more):
    unbroken = distill.main(command(corpus, tmp_path / "unbroken", *more))
    out = tmp_path / "out"
    arguments = command(corpus, out, "--save-steps", "2", *more)
    go_on = stop_after(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        distill.main(arguments)
    assert not out.exists() and (tmp_path / "out.partial" / "checkpoint-2").is_dir()
    go_on()
    with pytest.raises(ValueError, match="holds an unfinished run; pass --resume-from-checkpoint true to continue it"):
        distill.main(arguments)
    with pytest.raises(ValueError, match=r"started with other arguments \(seed 0 -> 5\)"):
        distill.main([*arguments, "--resume-from-checkpoint", "--seed", "5"])
    distill.main([*arguments, "--resume-from-checkpoint"])
    assert equal(weights(out), weights(unbroken))
    assert not (tmp_path / "out.partial").exists()


def test_a_lora_is_merged_and_leaves_vision_and_embeddings_alone(corpus, tmp_path, teacher):
    out = distill.main(command(corpus, tmp_path / "lora", "--lora-rank", "4", "--dora", "--image-part"))
    assert not list(out.rglob("adapter*"))
    before, after = teacher.state_dict(), weights(out)
    assert before.keys() == after.keys()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed and all("language_model.layers" in key and "_proj" in key for key in changed)
    assert len(changed) == 4 * 7


def test_an_adapter_that_is_kept_loads_in_stock_and_says_what_the_merged_one_says(corpus, tmp_path):
    merged = distill.main(command(corpus, tmp_path / "merged", "--lora-rank", "4", "--max-steps", "2"))
    kept = distill.main(command(corpus, tmp_path / "kept", "--lora-rank", "4", "--max-steps", "2", "--keep-adapter"))
    assert (kept / "adapter_model.safetensors").is_file() and not (kept / "model.safetensors").exists()
    one, two = (SentenceTransformer(str(out)).encode("mela rossa") for out in (merged, kept))
    assert abs(one - two).max() < 1e-5 < abs(one - SentenceTransformer(str(TEACHER)).encode("mela rossa")).max()
    with pytest.raises(ValueError, match="transformers drops the magnitudes of DoRA when it loads a llava"):
        distill.main(command(corpus, tmp_path / "dora", "--lora-rank", "4", "--dora", "--keep-adapter"))


@pytest.mark.parametrize(("told", "is_last"), [((0.1, 0.9, 0.5, 0.4), False), ((0.1, 0.2, 0.3, 0.4), True)])
def test_the_best_checkpoint_is_the_one_that_is_saved(corpus, trained, tmp_path, monkeypatch, told, is_last):
    """The run's evaluations are told: where the last is the best, its weights are those without it."""
    monkeypatch.setattr(
        DistillationTrainer,
        "evaluate",
        lambda self, *a, **k: {"eval_sequential_score": told[self.state.global_step - 1]},
    )
    often = ["--eval-steps", "1", "--save-steps", "1", "--load-best-model-at-end"]
    best = distill.main(command(corpus, tmp_path / "best", *often))
    assert equal(weights(best), weights(trained)) is is_last
    start = weights(TEACHER)
    assert not equal(weights(best), start)


def test_merging_keeps_the_embeddings_also_of_dora_and_of_a_projection(tmp_path):
    """The host's loader would drop the magnitudes without an error."""
    student = SentenceTransformer(str(TEACHER))
    plain = student.encode("red apple to the left of dog", convert_to_tensor=True)
    add_projection(student, len(plain))
    projected = student.encode("red apple to the left of dog", convert_to_tensor=True)
    assert (plain - projected).abs().max() > 0.01
    arguments, _ = parse_arguments(command("none", tmp_path / "x", "--lora-rank", "4", "--dora"), None)
    distill.set_trainable(student, arguments, bf16=False)
    set_seed(0)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora_" in name:
                parameter.mul_(1.1).add_(0.05 * torch.randn_like(parameter))
    assert any("magnitude" in name for name, _ in student.named_parameters())
    before = student.eval().encode("red apple to the left of dog", convert_to_tensor=True)
    distill.merge_adapter(student, str(TEACHER), tmp_path)
    after = student.encode("red apple to the left of dog", convert_to_tensor=True)
    torch.testing.assert_close(after, before, atol=1e-5, rtol=0)
    assert (projected - before).abs().max() > 0.01


def test_what_is_there_is_not_overwritten_without_asking(corpus, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="exists and is not empty; choose another --output-dir, or pass --overwrite"):
        distill.main(command(corpus, out))
    assert (out / "thesis.tex").exists()
    distill.main(command(corpus, out, "--overwrite", "--max-steps", "1"))
    assert (out / "modules.json").exists() and not (out / "thesis.tex").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--languages", "it,xx-"], "no row has language 'xx-'"),
        (["--languages", "Italian"], "unknown language 'Italian'"),
        (["--eval-rows", "60"], "hold out at most half"),
        (["--resume-from-checkpoint"], "no unfinished run to resume"),
        (["--corpus", "none.jsonl"], "no such corpus file"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(corpus, tmp_path, more, message):
    with pytest.raises(ValueError, match=message):
        distill.main(command(corpus, tmp_path / "out", *more))
    assert list(tmp_path.iterdir()) == []


def test_an_image_that_breaks_on_the_way_stops_with_its_row(corpus, tmp_path):
    shutil.copytree(corpus.parent, tmp_path / "corpus")
    for image in (tmp_path / "corpus" / "images").iterdir():
        image.write_bytes(image.read_bytes()[:200])  # the header is whole, the pixels are not
    arguments = command(tmp_path / "corpus" / "parallel.jsonl", tmp_path / "out", "--eval-rows", "0")
    with pytest.raises(ValueError, match=r"row \d+/picture/.*cannot be read"):
        distill.main(arguments)
    assert not (tmp_path / "out").exists()


def test_the_image_backend_is_decided_by_the_folder_not_by_what_is_installed(trained, monkeypatch):
    chosen = []
    original = image_processing_auto._resolve_backend
    monkeypatch.setattr(image_processing_auto, "is_torchvision_available", lambda: True)
    monkeypatch.setattr(
        image_processing_auto, "_resolve_backend", lambda *args: chosen.append(original(*args)) or chosen[-1]
    )
    SentenceTransformer(str(trained))
    assert chosen == ["pil"]
    assert original(None, None, "SiglipImageProcessor") == "torchvision"  # what it would have been


def test_lora_presets_name_the_families_there_are():
    with pytest.raises(ValueError, match="no LoRA preset for 'bert'; there is one for phi3_v"):
        lora_config("bert")
    assert lora_config("llava", rank=4, dora=True).use_dora
