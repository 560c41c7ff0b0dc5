"""Distil an English embedder into other languages (xVLM2Vec).

    xvlm2vec distill --student teacher/ --corpus parallel.jsonl --languages it es --output-dir xvlm2vec
    xvlm2vec distill … --lora-rank 16                      # adapt the language model only, merged at the end
    xvlm2vec distill … --resume-from-checkpoint true       # continue after a stop, from the last checkpoint
    xvlm2vec distill --config recipes/configs/xvlm2vec.yaml --corpus … --output-dir …     # as published
    accelerate launch --config_file recipes/configs/fsdp2.yaml -m recipes.distill …       # several GPUs

The student starts as a copy of the frozen teacher. All options of SentenceTransformerTrainingArguments are
accepted, with dashes or underscores. Checkpoints lie in OUTPUT_DIR.partial until the run has finished; then
OUTPUT_DIR appears, complete, a folder that sentence-transformers loads. SIGTERM or Ctrl-C ends a run after the
current update, with a checkpoint.
"""

import copy
import json
import logging
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
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
from xvlm2vec_st.families.table import VISION
from xvlm2vec_st.training.checkpoints import last_whole_checkpoint
from xvlm2vec_st.training.evaluation import parallel_evaluator
from xvlm2vec_st.utils.folders import NOTE, Destination, remove, write_note

from ..shared.muon import Muon
from .card import save_with_card, score_summary
from .options import TEMPERATURE, DistillArguments, check_pair, run_settings
from .parser import parse_arguments
from .progress_bar import show_loss_bar
from .start import build_start, check_folders, remove_unstarted, run_destination


def main(argv: Sequence[str] | None = None) -> Path:
    """Train as the command line says; returns the finished folder."""
    return distill(*parse_arguments(argv, __doc__))


def distill(arguments: DistillArguments, training: SentenceTransformerTrainingArguments) -> Path:
    """Train a student, and write it to `training.output_dir`.

    Args:
        arguments: models, corpus and method.
        training: any of sentence-transformers' training arguments. `DistillTrainingArguments` has the paper's
            defaults. `resume_from_checkpoint="true"` continues the unfinished run in OUTPUT_DIR.partial.

    Returns:
        The finished folder.

    Raises:
        ValueError: an option, the corpus or a model is invalid; `output_dir` cannot be filled.
        SystemExit: a signal stopped the run, after a checkpoint.

    Example::

        distill(
            DistillArguments(student="teacher", corpus=["parallel.jsonl"], languages=["it", "es"]),
            DistillTrainingArguments(output_dir="xvlm2vec", max_steps=1000),
        )
    """
    check_pair(arguments, training)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    place = run_destination(training.output_dir, arguments)
    training = copy.copy(training)
    training.output_dir = str(place.work)
    run = Run(arguments, training, place)
    # One run at a time: the first process holds the lock.
    with place.hold() if training.process_index == 0 else nullcontext():
        run.start()
    return place.named


@dataclass
class Run:
    """One training run: its options, and the folder that it fills."""

    arguments: DistillArguments
    training: SentenceTransformerTrainingArguments
    place: Destination
    start_model: str = ""

    @property
    def resumes(self) -> bool:
        """Whether the run continues an unfinished one."""
        return str(self.training.resume_from_checkpoint).lower() not in ("none", "false")

    def start(self) -> None:
        """Check, train and save."""
        settings: dict[str, Any] = {}
        is_first, work = self.training.process_index == 0, self.place.work
        with self.training.main_process_first(local=False):
            ended = self.resumes and self.place.ended is not None
            if is_first and not ended:
                settings = run_settings(self.arguments, self.training)
                check_folders(self.place, self.arguments, settings, resume=self.resumes)
        if self.resumes and not (work / NOTE).is_file():
            # The run was killed when its result was in place already; only the first process knows.
            if ended:
                print(f"saved: {self.place.named}; nothing was left to do")
            return

        # 1. Load the corpus and the models. An error here leaves no files.
        with remove_unstarted(work, self.training.process_index):
            trainer, dtypes = self.build_trainer()
            if is_first:
                write_note(work, settings)
        show_loss_bar(trainer)

        # 2. Train in OUT.partial.
        self.train(trainer)

        # 3. Save, then move the folder into place in one step.
        self.save(trainer, dtypes)

    def build_trainer(self) -> tuple[DistillationTrainer, set[torch.dtype]]:
        """The trainer, ready to start, and the dtypes that the student's weights had."""
        arguments, training = self.arguments, self.training
        with training.main_process_first():
            train_rows, held_out = load_rows(arguments, training)
        set_seed(training.seed)
        self.start_model = build_start(arguments, self.place.work, training)
        student = SentenceTransformer(self.start_model)
        dtypes = set_trainable(student, arguments, bf16=training.bf16)
        # A student that learns an adapter only is its own teacher, with the adapter disabled.
        own_teacher = arguments.lora_rank and not arguments.teacher
        teacher = None if own_teacher else SentenceTransformer(arguments.teacher or self.start_model)
        loss = build_loss(student, teacher, arguments)
        evaluator = None
        if held_out is not None:
            evaluator = parallel_evaluator(
                held_out,
                arguments.languages,
                teacher or student,
                batch_size=training.per_device_train_batch_size,
            )
        optimizer = None
        if arguments.muon_learning_rate:
            optimizer = Muon(student.named_parameters(), arguments.muon_learning_rate, training.learning_rate)
        trainer = DistillationTrainer(
            student,
            training,
            train_dataset=train_rows,
            loss=loss,
            evaluator=evaluator,
            languages=arguments.languages,
            image_size=arguments.image_size,
            batches=build_batch_sampler(arguments, training, train_rows, loss),
            # transformers builds AdamW where there is no optimizer, and always the schedule.
            optimizers=(optimizer, None),
        )
        return trainer, dtypes

    def train(self, trainer: DistillationTrainer) -> None:
        """Train to the end, from a checkpoint if the run resumes, and evaluate.

        Raises:
            SystemExit: a signal stopped the run, after a checkpoint.
        """
        checkpoint = None
        if self.resumes:
            requested = str(self.training.resume_from_checkpoint)
            last = last_whole_checkpoint(self.place.work)
            checkpoint = (str(last) if last else None) if requested.lower() == "true" else requested
        trainer.train(resume_from_checkpoint=checkpoint)
        if trainer.stop.signal is not None:
            print(
                f"stopped by {trainer.stop.signal.name} after update {trainer.state.global_step}; to continue: "
                "--resume-from-checkpoint true"
            )
            raise SystemExit(128 + trainer.stop.signal)
        trainer.check_weights()
        if trainer.evaluator is not None:
            trainer.evaluate()

    def save(self, trainer: DistillationTrainer, dtypes: set[torch.dtype]) -> None:
        """Save in OUT.partial, and move the folder into place; a run that is killed here can be resumed."""
        whole = trainer.whole_model()
        if whole is not None:
            arguments, work, draft = self.arguments, self.place.work, self.place.draft
            remove(draft)  # left by a killed run
            student = self.finalize(whole, dtypes)
            save_with_card(student, draft, arguments.student, arguments.languages)
            log = json.dumps(trainer.state.log_history, indent=1)
            (draft / "training_log.json").write_text(log + "\n")
            if (work / "runs").is_dir():  # TensorBoard's logs, where transformers writes them
                shutil.copytree(work / "runs", draft / "runs")
            self.place.finish(draft)
            print(f"saved: {self.place.named}{score_summary(trainer, arguments.languages)}")
        trainer.accelerator.wait_for_everyone()

    def finalize(self, student: SentenceTransformer, dtypes: set[torch.dtype]) -> SentenceTransformer:
        """Merge the adapter unless it is kept, and cast the weights back to their dtype."""
        if self.arguments.keep_adapter:
            return student
        if self.arguments.lora_rank:
            merge_adapter(student, self.start_model, self.place.work)
        return student.to(next(iter(dtypes))) if len(dtypes) == 1 else student


def load_rows(
    arguments: DistillArguments, training: SentenceTransformerTrainingArguments
) -> tuple[Dataset | ParallelStream, Dataset | None]:
    """(training rows, held-out rows or None).

    Raises:
        ValueError: see `load_parallel` and `ParallelStream`; more than half of the corpus is held out;
            rows are held out of a stream.
    """
    # Rank 0 alone opens the images: on a shared disk, every file would be opened once per process.
    options = {
        "images": arguments.images,
        "outside_images": arguments.outside_images,
        "check_images": arguments.check_images and training.process_index == 0,
    }
    languages, held_out = arguments.languages, None
    if arguments.eval_corpus:
        held_out = load_parallel(arguments.eval_corpus, languages, **options)
    if arguments.stream:
        if arguments.eval_rows and not arguments.eval_corpus:
            raise ValueError("--stream reads its rows while training: pass --eval-corpus FILE, or --eval-rows 0")
        del options["check_images"]
        return ParallelStream(arguments.corpus, languages, seed=training.seed, **options), held_out
    data = load_parallel(arguments.corpus, languages, **options)
    return (data, held_out) if arguments.eval_corpus else split_rows(data, arguments.eval_rows, training.seed)


def split_rows(data: Dataset, held_out: int, seed: int) -> tuple[Dataset, Dataset | None]:
    """(training rows, held-out rows or None).

    Raises:
        ValueError: more than half of the corpus is held out.
    """
    if not held_out:
        return data, None
    if not 0 < held_out <= len(data) // 2:
        raise ValueError(f"--eval-rows {held_out}: the corpus has {len(data)} rows; hold out at most half, or 0")
    parts = data.train_test_split(test_size=held_out, seed=seed)
    return parts["train"], parts["test"]


def set_trainable(student: SentenceTransformer, arguments: DistillArguments, *, bf16: bool) -> set[torch.dtype]:
    """Choose which parameters learn, in fp32; returns the dtypes that they had.

    bf16 has 8 bits of precision: updates at a learning rate of 1e-5 would be lost.
    """
    dtypes = {p.dtype for p in student.parameters()}
    family = student[0].config.model_type
    if arguments.keep_adapter and arguments.dora and family != "phi3_v":
        raise ValueError(
            f"--keep-adapter --dora: transformers drops the magnitudes of DoRA when it loads a {family} with "
            "an adapter; leave --keep-adapter out"
        )
    if rank := arguments.lora_rank:
        config = lora_config(
            family,
            rank=rank,
            alpha=arguments.lora_alpha or 2 * rank,
            dropout=arguments.lora_dropout,
            dora=arguments.dora,
            vision=arguments.train_vision,
        )
        student.add_adapter(config)
    elif not arguments.train_vision:
        for name, parameter in student.named_parameters():
            if VISION.search(name):
                parameter.requires_grad_(False)
    if dtypes != {torch.float32}:
        for parameter in student.parameters():
            if parameter.requires_grad or not bf16:
                parameter.data = parameter.data.float()
    return dtypes


def build_loss(
    student: SentenceTransformer, teacher: SentenceTransformer | None, arguments: DistillArguments
) -> MultilingualDistillationLoss:
    """The loss of the options."""
    return MultilingualDistillationLoss(
        student,
        teacher,
        image_part=arguments.image_part,
        distance_metric=arguments.distance_metric,
        english_weight=arguments.english_weight,
        similarity_weight=arguments.similarity_weight,
        temperature=TEMPERATURE if arguments.temperature is None else arguments.temperature,
        matryoshka_dims=arguments.matryoshka_dims,
        cache=arguments.cache,
        projection=arguments.projection,
    )


def build_batch_sampler(
    arguments: DistillArguments,
    training: SentenceTransformerTrainingArguments,
    rows: Dataset | ParallelStream,
    loss: MultilingualDistillationLoss,
) -> TokenBudgetBatches | None:
    """The batches of `tokens_per_batch`, if it is set. For a stream, set the number of updates.

    Raises:
        ValueError: the corpus has fewer rows than one update needs; `tokens_per_batch` with a stream.
    """
    batch_size, steps = training.per_device_train_batch_size, training.gradient_accumulation_steps
    rows_per_update = batch_size * steps * training.world_size
    if isinstance(rows, ParallelStream):
        if arguments.tokens_per_batch:
            raise ValueError(
                "--tokens-per-batch sorts rows beforehand; with --stream, set --per-device-train-batch-size"
            )
        if training.max_steps < 0:
            training.max_steps = max(round(training.num_train_epochs * rows.rows / rows_per_update), 1)
        return None
    if len(rows) < rows_per_update and steps * training.world_size > 1:
        raise ValueError(
            f"an update takes {batch_size} rows x --gradient-accumulation-steps {steps} x "
            f"{training.world_size} processes, and the corpus has {len(rows)} rows; lower one of them"
        )
    if not arguments.tokens_per_batch:
        return None
    costs = row_costs(rows, arguments.languages, loss.model, image_size=arguments.image_size, shared=loss.shares_prefix)
    return TokenBudgetBatches(
        rows["id"], costs, budget=arguments.tokens_per_batch, max_rows=batch_size, seed=training.seed
    )


def merge_adapter(student: SentenceTransformer, start: str, folder: Path) -> None:
    """Merge the student's adapter into the weights of its starting model, in fp32 and in place."""
    student[0].model.save_pretrained(folder / "adapter")
    base = SentenceTransformer(start)
    if any(p.dtype != torch.float32 for p in base.parameters()):
        base.float()  # a merge in bf16 loses what was learned
    whole = PeftModel.from_pretrained(base[0].model, str(folder / "adapter")).merge_and_unload()
    student[0].model = whole.to(student.device)
