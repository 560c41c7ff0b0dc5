"""The options of `recipes.distill`, from the command line and from a file."""

import argparse
import dataclasses
import hashlib
import io
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformerTrainingArguments

from xvlm2vec_st.building.builder import check_folder
from xvlm2vec_st.utils.folders import expanded
from xvlm2vec_st.utils.peft_version import check_peft

from ..shared import command
from ..shared.command import codes
from .config_file import config_words

FLAG = argparse.BooleanOptionalAction
# What says how a run is started, not what it is.
OF_THE_START = ("config", "out", "resume", "overwrite", "start")
# What names a model: a folder, or a Hub id.
MODELS = ("student", "teacher", "adapter")
# What may be another when a run goes on, for no weight depends on it; and texts, for rows are mended.
MAY_CHANGE = ("cache", "workers", "logging_steps", "save_steps", "report_to", "gradient_checkpointing")
MAY_CHANGE += ("corpus_digests",)
# What does nothing without another option.
NEEDS = {"dora": "lora", "keep_adapter": "lora", "temperature": "similarity"}
TEMPERATURE = 0.05


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """All options, by theme."""
    parser = command.parser_of(description, allow_abbrev=False)
    parser.add_argument(
        "--config", type=expanded, help="a YAML file of options, which the command line overrides"
    )
    models(parser.add_argument_group("models").add_argument)
    corpus(parser.add_argument_group("corpus").add_argument)
    method(parser.add_argument_group("method").add_argument)
    training(parser.add_argument_group("training").add_argument)
    parser.set_defaults(start=None)
    return parser


def models(add: Any) -> None:
    """What learns from what."""
    folder = {"type": os.path.expanduser}
    add(
        "--student",
        required=True,
        **folder,
        help="the English embedder to start from: folder or Hub id, raw or built",
    )
    add("--adapter", **folder, help="LoRA or DoRA to merge into the student first: folder or Hub id")
    add("--num-crops", type=int, help="phi3_v: tiles an image at most, beside the whole")
    add("--teacher", **folder, help="where targets come from; default: the student's start, as in the paper")
    add(
        "--projection",
        action=FLAG,
        default=False,
        help="a teacher of another width or pooling: learn a layer to its space",
    )
    add("--cache", type=expanded, help="a folder that keeps the teacher's targets, for later epochs and runs")
    add("--out", type=expanded, required=True, help="the new folder")
    add("--overwrite", action="store_true", help="replace OUT, and drop an unfinished run")
    add("--resume", action="store_true", help="go on with the unfinished run in OUT.partial")


def corpus(add: Any) -> None:
    """What is learnt from."""
    add(
        "--corpus",
        type=expanded,
        nargs="+",
        required=True,
        help="JSON lines: id, image, en, a column a language",
    )
    add("--languages", nargs="+", required=True, metavar="LANGUAGE", help="as in it,es,fr,de, or it es fr de")
    add(
        "--images",
        type=expanded,
        help="folder, zip, tar or parquet of the images; default: the corpus' folder",
    )
    add(
        "--outside-images",
        action=FLAG,
        default=False,
        help="take rows' images that lie outside that folder, by '..', an absolute path or a link",
    )
    add("--image-size", type=int, help="pixels of both sides in training; default: images as they are")
    add(
        "--stream",
        action=FLAG,
        default=False,
        help="read the corpus as it goes: larger than memory; needs --steps or --epochs",
    )
    add("--eval-rows", type=int, default=200, help="rows held out for the evaluation; 0: none")
    add("--eval-corpus", type=expanded, help="a file of held-out rows, instead of --eval-rows")


def method(add: Any) -> None:
    """What is asked of the student."""
    add("--variant", choices=("main", "image"), default="main", help="METHOD's L, or L' with image parts")
    add("--form", choices=("mse", "cosine"), default="mse", help="of the error; the paper's is mse")
    add("--english-weight", type=float, default=0.5, help="of the English; the translations have the rest")
    add("--similarity", type=float, default=0.0, help="weight of the batch's similarities as a further term")
    add("--temperature", type=float, help=f"of --similarity; default: {TEMPERATURE}")
    add("--dims", default="", help="Matryoshka: leading dimensions, as in 3072,512,128")
    add(
        "--lora", type=int, metavar="RANK", help="train a LoRA on the language model; default: all but vision"
    )
    add("--dora", action=FLAG, default=False, help="with --lora: weight-decomposed")
    add(
        "--keep-adapter", action=FLAG, default=False, help="with --lora: save the adapter, not merged weights"
    )
    add(
        "--train-vision",
        action=FLAG,
        default=False,
        help="train the vision tower and projector too, or adapt them",
    )


def training(add: Any) -> None:
    """How the weights get there."""
    add("--batch-size", type=int, default=32, help="rows a step and device; lower it when memory runs out")
    add(
        "--tokens-per-batch", type=int, help="at most so many tokens a step and device; --batch-size rows too"
    )
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
    add("--weight-decay", type=float, default=0.0)
    add("--max-grad-norm", type=float, default=0.3)
    add(
        "--bf16",
        action=FLAG,
        default=False,
        help="autocast; weights that learn, and the loss, are fp32 all the same",
    )
    add("--gradient-checkpointing", action=FLAG, default=False, help="less memory, a third more time")
    add("--workers", type=int, default=0, help="processes that open images, a device")
    add("--eval-steps", type=int, default=0, help="updates between evaluations; 0: at the end only")
    add(
        "--best",
        action=FLAG,
        default=False,
        help="keep the evaluated checkpoint with the best mean over the languages",
    )
    add("--save-steps", type=int, default=500, help="updates between checkpoints")
    add("--logging-steps", type=int, default=20)
    add("--report-to", default=watcher(), help="tensorboard, wandb, …; default: tensorboard where installed")
    add("--seed", type=int, default=0)


def watcher() -> str:
    """TensorBoard where it is installed."""
    return "tensorboard" if find_spec("tensorboard") or find_spec("tensorboardX") else "none"


def parse(argv: Sequence[str] | None, words: Sequence[str], description: str | None) -> argparse.Namespace:
    """The options of a command line; `words` is what it is when `argv` is None.

    Raises:
        ValueError: as `config_words` and `check`.
    """
    given = list(words if argv is None else argv)
    parser = parser_of(description)
    known = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    known.add_argument("--config", type=expanded)
    config = known.parse_known_args(given)[0].config
    args = parser.parse_args([*(config_words(config, parser) if config else []), *given])
    args.languages = ",".join(codes(args.languages))
    check(args)
    args.temperature = TEMPERATURE if args.temperature is None else args.temperature
    return args


def check(args: argparse.Namespace) -> None:
    """Refuse options that would do nothing, or another thing than they say.

    Raises:
        ValueError: an option without the one that it is for; --keep-adapter of a start
            that is built for this run alone; a model's folder that is not there; --lora with versions of
            transformers and peft that do not work together.
    """
    if args.lora:
        check_peft("--lora")
    for name in MODELS:
        check_folder(getattr(args, name))
    if args.muon == 0:
        raise ValueError(f"--muon {args.muon}: pass a rate above 0, or leave it out")
    for name, other in NEEDS.items():
        if getattr(args, name) not in (None, False) and not getattr(args, other):
            raise ValueError(
                f"{dashed(name)} does nothing without {dashed(other)}; pass that too, or leave it out"
            )
    if args.eval_steps and not (args.eval_rows or args.eval_corpus):
        raise ValueError(
            f"--eval-steps {args.eval_steps} with --eval-rows 0: no rows to evaluate on; hold some out, pass "
            "--eval-corpus FILE, or --eval-steps 0"
        )
    if args.keep_adapter and (args.adapter or args.num_crops):
        raise ValueError(
            "--keep-adapter: a kept adapter names the folder that it is for, and --adapter and --num-crops "
            "make one that goes when the run ends; build it first (python -m xvlm2vec_st build STUDENT START "
            "--adapter …), and pass --student START"
        )


def dashed(name: str) -> str:
    """An option as on the command line.

    >>> dashed("keep_adapter")
    '--keep-adapter'
    """
    return "--" + name.replace("_", "-")


def settings(args: argparse.Namespace, processes: int) -> dict[str, Any]:
    """The options and rows that make a run what it is, as JSON takes them; a path in one spelling."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(each) for each in value]
        return str(value.resolve()) if isinstance(value, Path) else value

    told = {key: plain(value) for key, value in vars(args).items() if key not in OF_THE_START}
    told |= {key: str(Path(told[key]).resolve()) for key in MODELS if told[key] and Path(told[key]).is_dir()}
    files = [*args.corpus, *([args.eval_corpus] if args.eval_corpus else [])]
    rows, digests = zip(*map(contents, files), strict=True)
    return told | {"processes": processes, "corpus_rows": [*rows], "corpus_digests": [*digests]}


def contents(path: Path) -> tuple[int, str]:
    """(rows, digest) of a corpus file; of one that is missing, which is told later, nothing.

    The number of rows decides their order in training; texts may be mended in between.
    """
    rows, digest = 0, hashlib.blake2b(digest_size=16)
    with path.open("rb") if path.is_file() else io.BytesIO() as file:
        for line in file:
            digest.update(line)
            rows += not line.isspace()
    return rows, digest.hexdigest()


def training_arguments(args: argparse.Namespace, work: Path) -> SentenceTransformerTrainingArguments:
    """The host's training arguments."""
    evaluate = bool(args.eval_steps and (args.eval_rows or args.eval_corpus))
    more: dict[str, Any] = {}
    if args.gradient_checkpointing:
        names = {field.name for field in dataclasses.fields(SentenceTransformerTrainingArguments)}
        name = "activation_checkpointing"  # newer hosts call it so, and warn of the older name
        name = name if name in names else "gradient_checkpointing"
        more = {name: True, f"{name}_kwargs": {"use_reentrant": False}}
    if args.best:
        if not evaluate or args.save_steps % args.eval_steps:
            raise ValueError(
                f"--best needs --eval-steps that divide --save-steps {args.save_steps}, got {args.eval_steps}"
            )
        more |= {"load_best_model_at_end": True, "metric_for_best_model": "sequential_score"}
        more |= {"greater_is_better": True}
    return SentenceTransformerTrainingArguments(
        output_dir=str(work),
        num_train_epochs=args.epochs,
        max_steps=args.steps,
        per_device_train_batch_size=args.batch_size,
        gradient_accumulation_steps=args.accumulation,
        learning_rate=args.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=args.warmup,
        weight_decay=args.weight_decay,
        max_grad_norm=args.max_grad_norm,
        bf16=args.bf16,
        dataloader_num_workers=args.workers,
        eval_strategy="steps" if evaluate else "no",
        eval_steps=args.eval_steps or None,
        save_steps=args.save_steps,
        save_total_limit=2,
        logging_steps=args.logging_steps,
        seed=args.seed,
        report_to=args.report_to,
        disable_tqdm=False,  # else transformers takes the bar away where its warnings are off
        use_cpu=not torch.accelerator.is_available(),
        **more,
    )
