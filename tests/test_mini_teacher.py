"""The bundled English embedder, and the recipe that made it."""

import json
import random

import pytest
import torch
from sentence_transformers import SentenceTransformer

from mmmeb_tasks.mini import TEACHER
from mmmeb_tasks.mini.scenes import Scene, boxes
from mmmeb_tasks.mini.tasks import evaluate_mini
from mmmeb_tasks.mini.world import load_world
from mmmeb_tasks.mini.write import write_benchmark
from recipes.experiments.mini_teacher import command as mini_teacher
from recipes.experiments.mini_teacher.model import build_model, build_tokenizer
from recipes.experiments.mini_teacher.tower import patch_labels, train_tower

LANGUAGES = ["en", "it", "es", "fr", "de"]


def test_the_bundle_is_small_stock_and_has_a_card():
    files = [path for path in TEACHER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8e6
    modules = json.loads((TEACHER / "modules.json").read_text())
    assert all(module["type"].startswith("sentence_transformers.") for module in modules)
    assert json.loads((TEACHER / "config.json").read_text())["model_type"] == "llava"
    card = (TEACHER / "README.md").read_text()
    assert "python -m recipes.experiments.mini_teacher" in card and "torch 2" in card and "| en |" in card


def test_its_tokenizer_is_the_one_the_recipe_makes():
    bundled = json.loads((TEACHER / "tokenizer.json").read_text())
    assert json.loads(build_tokenizer(load_world()).backend_tokenizer.to_str())["model"] == bundled["model"]


def test_the_teacher_knows_english_and_no_other_language(teacher, tmp_path):
    data = write_benchmark(tmp_path / "data")
    scores = evaluate_mini(teacher, languages=["en", "it", "fr"], data_root=data, tasks=["i2t", "t2i"])
    mean = {language: (tasks["i2t"] + tasks["t2i"]) / 2 for language, tasks in scores.items()}
    assert 0.75 <= mean.pop("en") <= 0.97
    assert all(value <= 0.15 for value in mean.values()), mean


def test_any_script_has_tokens(teacher):
    tokenizer = teacher.tokenizer
    for text in ["りんご", "яблоко", "🍎"]:
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_a_prompt_stands_after_the_image_and_before_the_text(teacher):
    message = [
        {"role": "system", "content": [{"type": "text", "text": "Find: "}]},
        {"role": "user", "content": [{"type": "text", "text": "dog"}, {"type": "image", "image": None}]},
    ]
    assert teacher[0].processor.apply_chat_template(message, tokenize=False) == "<image>\nFind: dog"
    assert teacher[0].processor.apply_chat_template([{"role": "user", "content": "dog"}], tokenize=False) == "dog"


@pytest.mark.parametrize("kind", list(mini_teacher.MIX))
def test_no_two_targets_of_a_batch_are_the_same(kind):
    world, rng = load_world(), random.Random(0)
    train, _ = mini_teacher.split_pairs(len(world.concepts))
    scenes = mini_teacher.batch_scenes(kind, world, train, 64, rng)
    columns = mini_teacher.columns(kind, world, scenes)
    assert len({len(column) for column in columns}) == 1
    said = [scene.caption(world, "en") for scene in scenes]
    targets = said if kind in ("i2t", "t2i", "c") else [scene.answer for scene in scenes]
    assert len(set(targets)) == len(targets) == len(columns[0]) >= 32
    if kind != "c":
        pairs = {tuple(sorted((scene.subject, scene.other))) for scene in scenes}
        assert pairs <= set(train)


def test_patches_are_labelled_by_what_stands_at_their_centre():
    scene = Scene(3, 7, "left", seed=5)
    labels = patch_labels(scene, 8, 99).view(8, 8)
    shown = boxes(scene)
    assert set(labels.unique().tolist()) == {3, 7, 99}
    for concept, (left, top, right, bottom) in zip((3, 7), shown, strict=True):
        found = (labels == concept).nonzero() * 12 + 6  # patches of 12 pixels
        assert found[:, 1].min() >= left and found[:, 1].max() < right
        assert found[:, 0].min() >= top and found[:, 0].max() < bottom
    assert set(patch_labels(Scene(3, seed=5), 8, 99).tolist()) == {3, 99}


def test_the_tower_learns_and_its_head_is_thrown_away(tmp_path):
    world = load_world()
    model = build_model(world, tmp_path / "m")
    before = {name: p.clone() for name, p in model.named_parameters()}
    pairs, _ = mini_teacher.split_pairs(len(world.concepts))
    train_tower(model, world, pairs, steps=2, rates=(0.02, 0.003))
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed and all("vision_tower" in name for name in changed)
    assert before.keys() == dict(model.named_parameters()).keys()


def test_the_recipe_trains_saves_and_writes_a_card(tmp_path, monkeypatch):
    scores = {language: {"i2t": 0.5} for language in LANGUAGES}
    seen = []
    monkeypatch.setattr(mini_teacher, "evaluate_mini", lambda model: seen.append(model) or scores)
    arguments = ["--tower-steps", "2", "--steps", "3", "--batch-size", "8"]
    mini_teacher.main(["--out", str(tmp_path / "one"), *arguments])
    mini_teacher.main(["--out", str(tmp_path / "two"), *arguments])
    one, two = (SentenceTransformer(str(tmp_path / name)).state_dict() for name in ("one", "two"))
    assert all(torch.equal(one[key], two[key]) for key in one)  # the same seed, the same weights
    assert seen[0][0].model.dtype == torch.float32
    card = (tmp_path / "one" / "README.md").read_text()
    assert "--tower-steps 2 --steps 3 --batch-size 8" in card and "| en | 50.0 |" in card
