"""Train the mini world's English-only embedder: a 3 M parameter LLaVA, contrastive, two CPU cores.

    python -m recipes.experiments.mini_teacher --out mini-teacher                             # about 8 minutes
    python -m recipes.experiments.mini_teacher --out /tmp/t --tower-steps 2 --steps 4         # a smoke test

The architecture is transformers' own (SigLIP tower, two-layer projector, Llama decoder), so stock
sentence-transformers loads the result. First the tower learns things (see `mini_tower`); then, with
the tower frozen, the rest learns English queries and targets of the five MMMEB kinds by contrast.
Scenes are drawn afresh at every step, over pairs of concepts that the test scenes do not have.
"""

import argparse
import json
import platform
import random
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from tqdm import trange
from transformers import get_cosine_schedule_with_warmup

from mmmeb_tasks.instructions import render_query, render_target
from mmmeb_tasks.mini.scenes import Scene, crop, draw, pair_scene, split_pairs
from mmmeb_tasks.mini.tasks import evaluate_mini
from mmmeb_tasks.mini.world import World, load_world
from xvlm2vec_st.building.builder import save_embedder
from xvlm2vec_st.utils.folders import Destination, expanded, remove

from ...shared.command import parser_of
from ...shared.markup import markdown_table
from ...shared.muon import Muon
from .model import build_model
from .tower import train_tower

LIBRARIES = ("torch", "transformers", "sentence-transformers", "tokenizers", "mteb", "pillow")
CARD = """---
license: apache-2.0
language: en
library_name: sentence-transformers
tags: [sentence-transformers, sentence-similarity, feature-extraction, multimodal]
---
# The mini world's English-only embedder

A LLaVA of {parameters} M parameters (SigLIP tower, Llama decoder; last-token pooling), trained contrastively
on English texts and scenes of the mini world, from random weights. It is the frozen teacher of the demo, and
good for nothing else.

    {command}

{minutes} minutes on two CPU cores. {versions}. Stored in fp16, computed in fp32.

MMMEBMini (300 queries a task and language, 100 candidates each, unseen pairs of things; chance is 1 %):

{table}

Images in training and test: Noto Color Emoji (Apache-2.0). Names: Unicode CLDR (Unicode-3.0).
"""

# Names first (all else stays at chance without them), then all kinds, by share of the steps.
NAMES_FIRST = 0.05
MIX = {"i2t": 0.18, "t2i": 0.17, "c": 0.06, "vqa": 0.43, "vg": 0.16}
# Inverse temperature, first and last step: at 50 from the start, training stays at chance.
SCALE = (20.0, 50.0)


def batch_scenes(kind: str, world: World, pairs: Sequence, size: int, rng: random.Random) -> list[Scene]:
    """Scenes of one batch, no two with the same target, so that every other target is truly wrong.

    For i2t and t2i each stands beside its swapped twin: nothing else teaches left from right.
    """
    if kind == "c":
        chosen = rng.sample(range(len(world.concepts)), min(size, len(world.concepts)))
        return [Scene(concept, seed=rng.getrandbits(30)) for concept in chosen]
    if kind in ("i2t", "t2i"):
        scenes = [pair_scene(pair, rng) for pair in rng.sample(pairs, size // 2)]
        return [twin for scene in scenes for twin in (scene, scene.swapped())]
    scenes = [pair_scene(pair, rng) for pair in rng.sample(pairs, size)]
    return list({scene.answer: scene for scene in scenes}.values())


def columns(kind: str, world: World, scenes: Sequence[Scene]) -> list[list]:
    """Queries, targets and, for vqa, a hard negative each: the thing that the question names."""
    images = [draw(scene, world) for scene in scenes]

    def with_images(texts: Sequence[str]) -> list[dict]:
        return [{"image": p, "text": t} for p, t in zip(images, texts, strict=True)]

    if kind in ("i2t", "t2i", "c"):
        captions = [scene.caption(world, "en") for scene in scenes]
        if kind == "t2i":
            targets = with_images([render_target(kind, "en")] * len(scenes))
            return [[render_query(kind, "en", text) for text in captions], targets]
        queries = with_images([render_query(kind, "en")] * len(scenes))
        return [queries, [render_target(kind, "en", text) for text in captions]]
    names = [world.name(scene.answer, "en") for scene in scenes]
    if kind == "vqa":
        queries = with_images([render_query(kind, "en", s.question(world, "en")) for s in scenes])
        others = [world.name(scene.asked, "en") for scene in scenes]
        return [queries, *([render_target(kind, "en", name) for name in side] for side in (names, others))]
    crops = [{"image": crop(s, world, s.answer), "text": render_target(kind, "en")} for s in scenes]
    return [with_images([render_query(kind, "en", name) for name in names]), crops]


def train(model: SentenceTransformer, world: World, args: argparse.Namespace) -> float:
    """Contrastive training in place; returns the seconds it took."""
    start, seen = time.time(), {}
    rng = random.Random(args.seed)
    pairs, _ = split_pairs(len(world.concepts))
    rates = args.muon_learning_rate, args.learning_rate
    right = train_tower(model, world, pairs, steps=args.tower_steps, rates=rates)
    print(f"patches classified correctly: {right:.2f}")
    model[0].model.vision_tower.requires_grad_(False)
    loss = MultipleNegativesRankingLoss(
        model, directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction"
    )
    # With AdamW for all parameters, 1,200 steps gave 38 % on i2t.
    optimizer = Muon(model.named_parameters(), *rates)
    schedule = get_cosine_schedule_with_warmup(optimizer, args.steps // 50, args.steps)
    model.train()
    for step in (bar := trange(args.steps, desc="contrastive training")):
        done = step / args.steps
        loss.scale = SCALE[0] + (SCALE[1] - SCALE[0]) * done
        kind = "c" if done < NAMES_FIRST else rng.choices(list(MIX), list(MIX.values()))[0]
        batch = columns(kind, world, batch_scenes(kind, world, pairs, args.batch_size, rng))
        value = loss([model.preprocess(column) for column in batch], None)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        seen[kind] = 0.9 * seen.get(kind, value.item()) + 0.1 * value.item()
        bar.set_postfix({k: f"{v:.2f}" for k, v in seen.items()})
    model.eval()
    return time.time() - start


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = parser_of(__doc__)
    parser.add_argument("--out", type=expanded, required=True)
    parser.add_argument("--tower-steps", type=int, default=750, help="of the first stage")
    parser.add_argument("--steps", type=int, default=370, help="of the second stage")
    parser.add_argument("--batch-size", type=int, default=96, help="pairs a step")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of embeddings and norms")
    parser.add_argument("--muon-learning-rate", type=float, default=0.02, help="of all other matrices")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    place = Destination(args.out, command="recipes.experiments.mini_teacher")
    with place.hold():
        place.check()
        if place.check_work():  # what a stopped run left
            remove(place.work)
        place.begin({})
        make(args, place.draft)
        place.finish(place.draft)
    print(f"saved: {args.out}")


def make(args: argparse.Namespace, folder: Path) -> None:
    """Train the embedder, and write it with its card into a folder."""
    transformers.set_seed(args.seed)
    world = load_world()
    model = build_model(world, folder)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {len(model.tokenizer)} tokens")
    seconds = train(model, world, args)
    # fp16 on disk halves the bundle; config.json says float32, so it is computed in fp32 everywhere.
    save_embedder(model.half(), folder)
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}, indent=2) + "\n")
    print(f"{args.steps} steps in {seconds / 60:.1f} minutes; scoring")
    scores = evaluate_mini(SentenceTransformer(str(folder)))
    card = folder / "README.md"
    card.write_text(card_of(args, sum(p.numel() for p in model.parameters()), seconds, scores), "utf-8")


def card_of(args: argparse.Namespace, parameters: int, seconds: float, scores: dict[str, dict[str, float]]) -> str:
    """The model card: the command behind these weights, and their scores."""
    kinds = list(scores["en"])
    rows = [[language, *(f"{100 * values[kind]:.1f}" for kind in kinds)] for language, values in scores.items()]
    options = {key: value for key, value in vars(args).items() if key != "out"}
    flags = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in options.items())
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    return CARD.format(
        command=f"python -m recipes.experiments.mini_teacher --out mini-teacher {flags}",
        parameters=f"{parameters / 1e6:.2f}",
        minutes=f"{seconds / 60:.1f}",
        versions=f"Python {platform.python_version()}, {versions}",
        table=markdown_table(["P@1, %", *kinds], rows),
    )
