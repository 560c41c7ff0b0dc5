"""One run: train a variant in a world, and score it."""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xvlm2vec_st import SentenceTransformer

from ...distill.command import distill
from ...distill.options import DistillArguments, DistillTrainingArguments
from .operations import OperationCounter
from .records import Hits, Record, new_record
from .untrained import MAPS, with_map
from .variants import Stage, Variant
from .worlds import World, write_subset

BEFORE, CEILING = "before", "query translated perfectly"


def train_and_score(world: World, variant: Variant, seed: int, updates: int, work: Path) -> Record:
    """Train with a seed, score, and delete the model.

    Args:
        world: where.
        variant: how.
        seed: of the data order.
        updates: weight updates, of all stages together.
        work: folder for what the run writes; emptied afterwards.
    """
    settings = settings_of(world, variant)
    shutil.rmtree(work, ignore_errors=True)  # what a killed run left
    work.mkdir(parents=True)
    start, operations, began = world.start, 0, time.time()
    for number, stage in enumerate(variant.stages):
        steps = max(round(updates * stage.share), 1)
        with OperationCounter() as counter:
            start = str(distill(*arguments_of(world, stage, settings, start, seed, steps, work / str(number))))
        operations += counter.total
    seconds = round(time.time() - began, 1)
    hits = world.score(world.same_for_all(SentenceTransformer(start)))
    shutil.rmtree(work)
    return new_record(variant.name, seed, updates, hits, operations=operations, seconds=seconds, settings=settings)


def settings_of(world: World, variant: Variant) -> dict[str, Any]:
    """All settings of a variant in a world, as its record keeps them."""
    return {**world.settings, **variant.options_in(world.name)} | ({"dev": True} if world.dev else {})


def arguments_of(
    world: World, stage: Stage, settings: Mapping[str, Any], start: str, seed: int, steps: int, out: Path
) -> tuple[DistillArguments, DistillTrainingArguments]:
    """The arguments of `distill` for one stage."""
    corpus = world.corpus
    if stage.image_share is not None:
        corpus = write_subset(corpus, stage.image_share, out.with_name(f"{out.name}.jsonl"))
    options = {name: value for name, value in settings.items() if name in DistillArguments.__dataclass_fields__}
    own = {"distance_metric": "mse"} | options  # a variant changes the paper's loss
    rest = {name: value for name, value in settings.items() if name not in own and name not in ("warmup", "dev")}
    arguments = DistillArguments(
        student=start,
        teacher=world.start if start != world.start else None,
        corpus=[str(corpus)],
        images=str(world.corpus.parent) if world.has_images else None,
        languages=list(world.languages),
        check_images=False,
        eval_rows=0,
        **own,
    )
    training = DistillTrainingArguments(
        output_dir=str(out),
        max_steps=steps,
        warmup_steps=max(round(steps * settings["warmup"]), 1),
        max_grad_norm=1.0,
        report_to="none",
        seed=seed,
        **rest,
    )
    return arguments, training


def untrained_records(world: World) -> list[Record]:
    """The teacher as it is, the maps that need no training, and the ceiling: the query in English."""
    teacher = SentenceTransformer(world.start)
    before = world.score(world.same_for_all(teacher))
    hits: dict[str, Hits] = {
        BEFORE: before,
        CEILING: {(task, language): before[task, "en"] for task, language in before},
    }
    rows = world.fit_rows()
    embeddings = {code: world.embed(teacher, rows, code) for code in ("en", *world.languages)}
    for name, fit in MAPS.items():
        models = world.same_for_all(teacher)
        for code in world.languages:
            models[code] = with_map(teacher, *fit(embeddings[code], embeddings["en"]))
        hits[name] = world.score(models)
    return [
        new_record(name, 0, 0, own, operations=0, seconds=0.0, settings={"fit_rows": len(rows)})
        for name, own in hits.items()
    ]
