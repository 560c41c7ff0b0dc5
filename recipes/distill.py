"""Distil an English embedder into other languages (xVLM2Vec).

    python -m recipes.distill --student teacher/ --corpus parallel.jsonl --languages it,es --out xvlm2vec
    python -m recipes.distill … --lora 16           # adapt the language model only, merged at the end
    python -m recipes.distill … --resume            # go on after a stop, from the last checkpoint

The student starts as a copy of the frozen teacher. Until all is done the work lies in OUT.partial;
OUT appears whole, a folder that stock sentence-transformers loads.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset
from peft import PeftModel
from sentence_transformers import SentenceTransformerTrainingArguments
from transformers import set_seed
from transformers.trainer_utils import get_last_checkpoint

from recipes.muon import Muon
from xvlm2vec_st import (
    DistillationTrainer,
    MultilingualDistillationLoss,
    SentenceTransformer,
    load_parallel,
    lora_config,
)
from xvlm2vec_st.save import save_embedder
from xvlm2vec_st.trainer import parallel_evaluator

# Parts of the student that stay as they are when all its parameters are trained.
VISION = ("vision_tower", "multi_modal_projector")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, by theme."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument_group("models").add_argument
    add("--student", required=True, help="the English embedder to start from: folder or Hub id")
    add("--teacher", help="where targets come from; default: the student's start, as in the paper")
    add("--out", type=Path, required=True, help="the new folder")
    add("--overwrite", action="store_true", help="replace OUT, and drop an unfinished run")
    add("--resume", action="store_true", help="go on with the unfinished run in OUT.partial")
    add = parser.add_argument_group("corpus").add_argument
    add("--corpus", type=Path, required=True, help="JSON lines: id, image, en, and a column a language")
    add("--languages", required=True, help="as in it,es,fr,de")
    add("--images", type=Path, help="the folder of the rows' pictures; default: the corpus' own")
    add("--eval-rows", type=int, default=200, help="rows held out for the evaluation; 0: none")
    add = parser.add_argument_group("method").add_argument
    add(
        "--variant",
        choices=("main", "image"),
        default="main",
        help="the loss: METHOD's L, or L' with image parts",
    )
    add(
        "--lora", type=int, metavar="RANK", help="train a LoRA on the language model; default: all but vision"
    )
    add("--dora", action="store_true", help="with --lora: weight-decomposed")
    add(
        "--train-vision", action="store_true", help="without --lora: train the vision tower and projector too"
    )
    add = parser.add_argument_group("training").add_argument
    add("--batch-size", type=int, default=32, help="rows a step and device; lower it when memory runs out")
    add(
        "--accumulation",
        type=int,
        default=1,
        help="steps a weight update; raise it as the batch gets smaller",
    )
    add("--epochs", type=float, default=1.0)
    add("--steps", type=int, default=-1, help="weight updates; overrides --epochs")
    add("--learning-rate", type=float, default=1e-5)
    add("--muon", type=float, metavar="RATE", help="Muon at this rate for hidden matrices, Adam for the rest")
    add("--warmup", type=int, default=0, help="updates until the full learning rate; cosine decay after")
    add("--max-grad-norm", type=float, default=0.3)
    add("--bf16", action="store_true", help="autocast; the loss is fp32 all the same")
    add("--gradient-checkpointing", action="store_true", help="less memory, a third more time")
    add("--eval-steps", type=int, default=0, help="updates between evaluations; 0: at the end only")
    add("--save-steps", type=int, default=500, help="updates between checkpoints")
    add("--logging-steps", type=int, default=20)
    add("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> Path:
    """Train as the command line says; returns the finished folder."""
    args = parse_args(argv)
    work = args.out.with_name(args.out.name + ".partial")
    check_folders(args, work)
    languages = [code.strip() for code in args.languages.split(",") if code.strip()]

    # 1. Corpus and models: everything that can be wrong shows before anything is written.
    data = load_parallel(args.corpus, languages, images=args.images)
    set_seed(args.seed)
    student = SentenceTransformer(args.student)
    prepare(student, args)
    # A student that learns an adapter only is its own teacher, with the adapter off.
    own = args.lora and not args.teacher
    teacher = None if own else SentenceTransformer(args.teacher or args.student)
    loss = MultilingualDistillationLoss(student, teacher, image_part=args.variant == "image")
    train_rows, held_out = split(data, args.eval_rows, args.seed)
    evaluator = parallel_evaluator(held_out, languages, teacher or student) if held_out is not None else None

    # 2. Train, in OUT.partial.
    work.mkdir(parents=True, exist_ok=True)
    (work / "arguments.json").write_text(json.dumps(settings(args), indent=2) + "\n")
    trainer = DistillationTrainer(
        student,
        training_arguments(args, work, evaluate=evaluator is not None),
        train_dataset=train_rows,
        loss=loss,
        evaluator=evaluator,
        languages=languages,
        # The host makes AdamW and, in any case, the schedule.
        optimizers=(muon(student, args), None),
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(work)) if args.resume else None)
    if evaluator is not None:
        trainer.evaluate()

    # 3. Save, then move into place in one step.
    final = work / "final"
    save_embedder(merged(student, args, work), final)
    (final / "training_log.json").write_text(json.dumps(trainer.state.log_history, indent=1) + "\n")
    if args.out.exists():
        shutil.rmtree(args.out)
    final.rename(args.out)
    shutil.rmtree(work)
    return args.out


def check_folders(args: argparse.Namespace, work: Path) -> None:
    """Refuse to overwrite what is finished or unfinished, and clear it where that is asked for.

    Raises:
        ValueError: OUT is not empty; an unfinished run lies there; nothing, or another run, to resume.
    """
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())) and not args.overwrite:
        raise ValueError(f"{args.out} exists and is not empty; choose another --out, or pass --overwrite")
    if args.resume:
        if not (work / "arguments.json").is_file():
            raise ValueError(f"{work}: no unfinished run to resume; leave --resume out")
        before, now = json.loads((work / "arguments.json").read_text()), settings(args)
        if changed := [key for key in now if now[key] != before.get(key)]:
            told = ", ".join(f"{key} {before.get(key)!r} -> {now[key]!r}" for key in changed)
            raise ValueError(f"{work} was started with other arguments ({told}); resume with the same")
    elif work.exists():
        if not args.overwrite:
            raise ValueError(
                f"{work} holds an unfinished run; pass --resume to go on, --overwrite to drop it"
            )
        shutil.rmtree(work)


def settings(args: argparse.Namespace) -> dict[str, object]:
    """The arguments that make a run what it is, as JSON takes them."""
    return {
        key: str(value) if isinstance(value, Path) else value
        for key, value in vars(args).items()
        if key not in ("resume", "overwrite")
    }


def prepare(student: SentenceTransformer, args: argparse.Namespace) -> None:
    """Decide which parameters learn."""
    if args.lora:
        student.add_adapter(
            lora_config(student[0].config.model_type, rank=args.lora, alpha=2 * args.lora, dora=args.dora)
        )
    elif not args.train_vision:
        for name, parameter in student.named_parameters():
            if any(part in name for part in VISION):
                parameter.requires_grad_(False)


def muon(student: SentenceTransformer, args: argparse.Namespace) -> Muon | None:
    """The optimizer that --muon asks for."""
    return Muon(student.named_parameters(), args.muon, args.learning_rate) if args.muon else None


def merged(student: SentenceTransformer, args: argparse.Namespace, work: Path) -> SentenceTransformer:
    """The student with its adapter, if it has one, merged into the weights."""
    if not args.lora:
        return student
    student[0].model.save_pretrained(work / "adapter")
    whole = SentenceTransformer(args.student)
    whole[0].model = PeftModel.from_pretrained(whole[0].model, str(work / "adapter")).merge_and_unload()
    return whole


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


def training_arguments(
    args: argparse.Namespace, work: Path, *, evaluate: bool
) -> SentenceTransformerTrainingArguments:
    """The host's training arguments."""
    return SentenceTransformerTrainingArguments(
        output_dir=str(work),
        num_train_epochs=args.epochs,
        max_steps=args.steps,
        per_device_train_batch_size=args.batch_size,
        gradient_accumulation_steps=args.accumulation,
        learning_rate=args.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=args.warmup,
        weight_decay=0.0,
        max_grad_norm=args.max_grad_norm,
        bf16=args.bf16,
        # Named only when wanted: newer hosts call it activation_checkpointing and warn.
        **({"gradient_checkpointing": True} if args.gradient_checkpointing else {}),
        eval_strategy="steps" if evaluate and args.eval_steps else "no",
        eval_steps=args.eval_steps or None,
        save_steps=args.save_steps,
        save_total_limit=2,
        logging_steps=args.logging_steps,
        seed=args.seed,
        report_to="none",
    )


if __name__ == "__main__":
    main()
