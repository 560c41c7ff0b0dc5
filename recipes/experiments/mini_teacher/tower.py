"""The first stage of the mini teacher: its tower learns which thing each patch of an image shows.

LVLMs start from a pretrained tower. Trained through the decoder alone for as long, this one named only
seven things in ten, and no question about things can be answered better than that.
"""

import random

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from tqdm import trange
from transformers import get_cosine_schedule_with_warmup

from mmmeb_tasks.mini.scenes import PIXELS, Pair, Scene, boxes, crop, draw, pair_scene
from mmmeb_tasks.mini.world import World

from ...shared.muon import Muon

BATCH = 128
# What images show: two things, one, or a part with one thing, as the benchmark's do.
SHOWN = {"pair": 3, "single": 1, "crop": 1}


def patch_labels(scene: Scene, side: int, nothing: int) -> Tensor:
    """The concept at the centre of each of side x side patches, row by row; `nothing` on the ground.

    >>> patch_labels(Scene(5, seed=0), 2, 9).shape
    torch.Size([4])
    """
    labels = torch.full((side, side), nothing)
    centres = (torch.arange(side) + 0.5) * PIXELS / side
    shown = [concept for concept in (scene.subject, scene.other) if concept is not None]
    for concept, (left, top, right, bottom) in zip(shown, boxes(scene), strict=True):
        across, down = (left <= centres) & (centres < right), (top <= centres) & (centres < bottom)
        labels[down[:, None] & across[None]] = concept
    return labels.flatten()


def train_tower(
    model: SentenceTransformer, world: World, pairs: list[Pair], *, steps: int, rates: tuple[float, float]
) -> float:
    """Train the vision tower in place; returns the share of patches that it classifies correctly at the end.

    `rates` are those of matrices and of all else. The head that names the concepts is thrown away.
    """
    tower, processor = model[0].model.vision_tower, model[0].processor.image_processor
    side = tower.config.image_size // tower.config.patch_size
    nothing = len(world.concepts)
    head = nn.Linear(tower.config.hidden_size, nothing + 1).to(tower.device)
    named = [*tower.named_parameters(), *((f"embed.{name}", p) for name, p in head.named_parameters())]
    optimizer = Muon(named, *rates)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    rng = random.Random(len(named))
    right = 0.0
    for _ in (bar := trange(steps, desc="the tower learns things")):
        images, labels = [], []
        for kind in rng.choices(list(SHOWN), list(SHOWN.values()), k=BATCH):
            scene = pair_scene(rng.choice(pairs), rng)
            if kind == "single":
                scene = Scene(scene.subject, seed=scene.seed)
            cut = kind == "crop"
            images.append(crop(scene, world, scene.subject) if cut else draw(scene, world))
            whole = torch.full((side * side,), scene.subject)
            labels.append(whole if cut else patch_labels(scene, side, nothing))
        pixels = processor(images=images, return_tensors="pt")["pixel_values"].to(tower.device)
        target = torch.cat(labels).to(tower.device)
        logits = head(tower(pixels).last_hidden_state).flatten(0, 1)
        loss = nn.functional.cross_entropy(logits, target)
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        things = target < nothing
        right = (logits.argmax(-1) == target)[things].float().mean().item()
        bar.set_postfix(loss=f"{loss.item():.2f}", right=f"{right:.2f}")
    return right
