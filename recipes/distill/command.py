"""Distil an English embedder into other languages (xVLM2Vec).

    python -m recipes.distill --student teacher/ --corpus parallel.jsonl --languages it,es --out xvlm2vec
    python -m recipes.distill … --lora 16           # adapt the language model only, merged at the end
    python -m recipes.distill … --resume            # go on after a stop, from the last checkpoint
    python -m recipes.distill --config recipes/configs/xvlm2vec.yaml --corpus … --out …    # as published
    accelerate launch --config_file recipes/configs/fsdp2_phi3_v.yaml -m recipes.distill …  # many GPUs

The student starts as a copy of the frozen teacher. Until all is done the work lies in OUT.partial;
OUT appears whole, a folder that stock sentence-transformers loads. SIGTERM or Ctrl-C ends a run after
the update at hand, with a checkpoint.
"""

import argparse
import json
import logging
import shutil
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from sentence_transformers import SentenceTransformerTrainingArguments
from transformers import set_seed

from xvlm2vec_st import (
    DistillationTrainer,
    MultilingualDistillationLoss,
    SentenceTransformer,
    load_parallel,
    lora_config,
)
from xvlm2vec_st.data.batch_sampler import TokenBudgetBatches, row_costs
from xvlm2vec_st.data.stream import ParallelStream
from xvlm2vec_st.training.checkpoints import last_whole_checkpoint
from xvlm2vec_st.training.evaluation import parallel_evaluator
from xvlm2vec_st.training.trainer import VISION
from xvlm2vec_st.utils.folders import NOTE, Destination, remove

from ..shared.command import codes
from ..shared.muon import Muon
from . import options as distill_options
from .card import save_with_card, scores
from .options import settings, training_arguments
from .progress_bar import show_loss_bar
from .start import begin, check_folders, destination, nothing_left, start_of


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options: see `recipes.distill.options`."""
    return distill_options.parse(argv, sys.argv[1:], __doc__)


def main(argv: Sequence[str] | None = None) -> Path:
    """Train as the command line says; returns the finished folder."""
    args = parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    place = destination(args)
    arguments = training_arguments(args, place.work)
    # One run at a time: the first process holds OUT.
    with place.hold() if arguments.process_index == 0 else nullcontext():
        run_in(place, args, arguments)
    return args.out


def run_in(
    place: Destination, args: argparse.Namespace, arguments: SentenceTransformerTrainingArguments
) -> None:
    """The run, from its checks to its result, in OUT.partial."""
    work = place.work
    options: dict[str, Any] = {}
    with arguments.main_process_first(local=False):
        ended = args.resume and place.ended is not None
        if arguments.process_index == 0 and not ended:
            options = settings(args, arguments.world_size)
            check_folders(args, work, options)
    if args.resume and not (work / NOTE).is_file():
        # Killed when OUT was in place already: only the first process knows it by `ended`.
        if ended:
            print(f"saved: {args.out}; nothing was left to do")
        return

    # 1. Corpus and models: what is wrong shows here, and leaves nothing.
    with nothing_left(work, arguments.process_index):
        trainer, types = made(args, work, arguments)
        if arguments.process_index == 0:
            begin(work, options)
    show_loss_bar(trainer)

    # 2. Train, in OUT.partial.
    train(trainer, work, resume=args.resume)

    # 3. Save, then move into place in one step.
    save(trainer, args, place, types)


def made(
    args: argparse.Namespace, work: Path, arguments: SentenceTransformerTrainingArguments
) -> tuple[DistillationTrainer, set[torch.dtype]]:
    """The trainer, ready to start, and the types that the student's weights had."""
    languages = codes([args.languages])
    with arguments.main_process_first():
        train_rows, held_out = rows(args, languages)
    set_seed(args.seed)
    args.start = start_of(args, work, arguments)
    student = SentenceTransformer(args.start)
    types = prepare(student, args)
    # A student that learns an adapter only is its own teacher, with the adapter off.
    own = args.lora and not args.teacher
    teacher = None if own else SentenceTransformer(args.teacher or args.start)
    loss = loss_of(student, teacher, args)
    evaluator = None
    if held_out is not None:
        evaluator = parallel_evaluator(held_out, languages, teacher or student, batch_size=args.batch_size)
    trainer = DistillationTrainer(
        student,
        arguments,
        train_dataset=train_rows,
        loss=loss,
        evaluator=evaluator,
        languages=languages,
        image_size=args.image_size,
        batches=ordered(arguments, args, train_rows, languages, loss),
        # The host makes AdamW and, in any case, the schedule.
        optimizers=(muon(student, args), None),
    )
    return trainer, types


def loss_of(
    student: SentenceTransformer, teacher: SentenceTransformer | None, args: argparse.Namespace
) -> MultilingualDistillationLoss:
    """The loss that the options ask for."""
    return MultilingualDistillationLoss(
        student,
        teacher,
        image_part=args.variant == "image",
        form=args.form,
        english_weight=args.english_weight,
        similarity=args.similarity,
        temperature=args.temperature,
        dims=[int(d) for d in args.dims.split(",") if d.strip()],
        cache=args.cache,
        projection=args.projection,
    )


def train(trainer: DistillationTrainer, work: Path, *, resume: bool) -> None:
    """To the end, from the last checkpoint on if there is one to resume, and score what was learnt.

    Raises:
        SystemExit: a signal stopped it, with a checkpoint.
    """
    last = last_whole_checkpoint(work) if resume else None
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    if trainer.stop.signal is not None:
        print(
            f"stopped by {trainer.stop.signal.name} after update {trainer.state.global_step}; go on: --resume"
        )
        raise SystemExit(128 + trainer.stop.signal)
    trainer.check_weights()
    if trainer.evaluator is not None:
        trainer.evaluate()


def save(
    trainer: DistillationTrainer, args: argparse.Namespace, place: Destination, types: set[torch.dtype]
) -> None:
    """Save in OUT.partial, and move the folder into place in one step; a run killed here can be resumed."""
    whole = trainer.whole_model()
    if whole is not None:
        work = place.work
        remove(place.draft)  # what a killed run left
        save_with_card(finished(whole, args, work, types), place.draft, args.student, codes([args.languages]))
        (place.draft / "training_log.json").write_text(json.dumps(trainer.state.log_history, indent=1) + "\n")
        if (work / "runs").is_dir():  # TensorBoard's, where transformers writes; a resumed run adds to them
            shutil.copytree(work / "runs", place.draft / "runs")
        place.finish(place.draft)
        print(f"saved: {args.out}{scores(trainer, codes([args.languages]))}")
    trainer.accelerator.wait_for_everyone()


def rows(args: argparse.Namespace, languages: list[str]) -> tuple[Dataset | ParallelStream, Dataset | None]:
    """(training rows, held-out rows or None).

    Raises:
        ValueError: as `load_parallel` and `ParallelStream`; more held out than half of the corpus, or
            rows to hold out of a stream.
    """
    options = {"images": args.images, "outside_images": args.outside_images}
    if args.eval_corpus:
        held_out = load_parallel(args.eval_corpus, languages, **options)
    if args.stream:
        if args.eval_rows and not args.eval_corpus:
            raise ValueError("--stream sees its rows as it goes: pass --eval-corpus FILE, or --eval-rows 0")
        stream = ParallelStream(args.corpus, languages, seed=args.seed, **options)
        return stream, held_out if args.eval_corpus else None
    data = load_parallel(args.corpus, languages, **options)
    return (data, held_out) if args.eval_corpus else split(data, args.eval_rows, args.seed)


def prepare(student: SentenceTransformer, args: argparse.Namespace) -> set[torch.dtype]:
    """Decide which parameters learn, in fp32; returns the types that they had.

    At a rate of 1e-5 an update is lost in the 8 bits of bf16.
    """
    types = {p.dtype for p in student.parameters()}
    if args.keep_adapter and args.dora and student[0].config.model_type != "phi3_v":
        raise ValueError(
            "--keep-adapter --dora: transformers drops the magnitudes of DoRA when it loads a "
            f"{student[0].config.model_type} with an adapter; leave --keep-adapter out"
        )
    if args.lora:
        student.add_adapter(
            lora_config(
                student[0].config.model_type,
                rank=args.lora,
                alpha=2 * args.lora,
                dora=args.dora,
                vision=args.train_vision,
            )
        )
    elif not args.train_vision:
        for name, parameter in student.named_parameters():
            if VISION.search(name):
                parameter.requires_grad_(False)
    if types != {torch.float32}:
        for parameter in student.parameters():
            if parameter.requires_grad or not args.bf16:
                parameter.data = parameter.data.float()
    return types


def ordered(
    arguments: SentenceTransformerTrainingArguments,
    args: argparse.Namespace,
    train_rows: Dataset | ParallelStream,
    languages: list[str],
    loss: MultilingualDistillationLoss,
) -> TokenBudgetBatches | None:
    """The batches of --tokens-per-batch, if it is given; sets the number of updates for a stream.

    Raises:
        ValueError: fewer rows than an update needs; --tokens-per-batch for a stream.
    """
    an_update = args.batch_size * args.accumulation * arguments.world_size
    if isinstance(train_rows, ParallelStream):
        if args.tokens_per_batch:
            raise ValueError("--tokens-per-batch sorts rows beforehand; a stream takes --batch-size alone")
        if args.steps < 0:
            arguments.max_steps = max(round(args.epochs * train_rows.rows / an_update), 1)
        return None
    if len(train_rows) < an_update and args.accumulation * arguments.world_size > 1:
        raise ValueError(
            f"an update takes {args.batch_size} rows x --accumulation {args.accumulation} x "
            f"{arguments.world_size} processes, and {len(train_rows)} rows are there; lower one of them"
        )
    if not args.tokens_per_batch:
        return None
    shared = loss.shares_prefix
    costs = row_costs(train_rows, languages, loss.model, image_size=args.image_size, shared=shared)
    budget = args.tokens_per_batch
    return TokenBudgetBatches(train_rows["id"], costs, budget=budget, most=args.batch_size, seed=args.seed)


def muon(student: SentenceTransformer, args: argparse.Namespace) -> Muon | None:
    """The optimizer that --muon asks for."""
    return Muon(student.named_parameters(), args.muon, args.learning_rate) if args.muon else None


def finished(
    student: SentenceTransformer, args: argparse.Namespace, work: Path, types: set[torch.dtype]
) -> SentenceTransformer:
    """What is saved: adapters merged unless they are kept, weights in the type that they came in."""
    whole = student if args.keep_adapter else merged(student, args, work)
    return whole.to(next(iter(types))) if len(types) == 1 and not args.keep_adapter else whole


def merged(student: SentenceTransformer, args: argparse.Namespace, work: Path) -> SentenceTransformer:
    """The student with its adapter, if it has one, merged into the weights; the same object."""
    if not args.lora:
        return student
    student[0].model.save_pretrained(work / "adapter")
    start = SentenceTransformer(args.start or args.student)
    if any(p.dtype != torch.float32 for p in start.parameters()):
        start.float()  # a merge in bf16 loses what was learnt
    whole = PeftModel.from_pretrained(start[0].model, str(work / "adapter")).merge_and_unload()
    student[0].model = whole.to(student.device)
    return student


def split(data: Dataset, held_out: int, seed: int) -> tuple[Dataset, Dataset | None]:
    """(training rows, held-out rows or None).

    Raises:
        ValueError: when more is held out than half of the corpus.
    """
    if not held_out:
        return data, None
    if not 0 < held_out <= len(data) // 2:
        raise ValueError(
            f"--eval-rows {held_out}: the corpus has {len(data)} rows; hold out at most half, or 0"
        )
    parts = data.train_test_split(test_size=held_out, seed=seed)
    return parts["train"], parts["test"]
