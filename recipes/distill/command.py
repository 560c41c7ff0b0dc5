"""Train a student: start, checkpoints, end.

The command line is in `__main__` and `options`.
"""

import copy
import json
import logging
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformerTrainingArguments
from transformers import set_seed

from xvlm2vec_st import DistillationTrainer, SentenceTransformer
from xvlm2vec_st.building.model_card import CardTeacher
from xvlm2vec_st.building.vocabulary import LIST as NEW_TOKENS
from xvlm2vec_st.building.vocabulary import new_token_ids
from xvlm2vec_st.training.checkpoints import last_whole_checkpoint
from xvlm2vec_st.training.evaluation import parallel_evaluator
from xvlm2vec_st.utils.folders import NOTE, Destination, remove, write_note

from ..shared.muon import Muon
from .card import card_teachers, save_with_card, score_summary
from .new_tokens import start_with_new_tokens
from .options import DistillArguments, check_pair, run_settings
from .parser import parse_arguments
from .progress_bar import show_loss_bar
from .rows import build_batch_sampler, load_rows
from .start import build_start, check_folders, extend_start, remove_unstarted, run_destination
from .student import build_loss, merge_adapter, set_trainable


def main(argv: Sequence[str] | None = None) -> Path:
    """Train as the command line says; returns the finished folder."""
    return distill(*parse_arguments(argv))


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
    teachers: list[CardTeacher] = field(default_factory=list)

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
        train_rows, held_out = load_rows(arguments, training)
        first = build_start(arguments, self.place.work, training)
        self.start_model = extend_start(arguments, first, self.place.work, training)
        set_seed(training.seed)  # after what a resumed run does not do again
        student = SentenceTransformer(self.start_model)
        # A student that learns an adapter only is its own teacher, with the adapter disabled.
        own_teacher = arguments.lora_rank and not arguments.teacher
        if own_teacher:
            self.name_teacher(student, first)  # before it has the adapter, and another dtype
        dtypes = set_trainable(student, arguments, bf16=training.bf16)
        teacher = None
        if not own_teacher:
            teacher = SentenceTransformer(arguments.teacher or first)
            self.name_teacher(teacher, first)
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
        if arguments.embedding_steps:
            start_with_new_tokens(trainer, student, new_token_ids(self.start_model), arguments.embedding_steps)
        return trainer, dtypes

    def name_teacher(self, teacher: SentenceTransformer, first: str) -> None:
        """Note which models the student's card will name; the first process writes it."""
        if self.training.process_index == 0:
            given = self.arguments.teacher
            self.teachers = card_teachers(teacher, given or self.arguments.student, given or first)

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
            save_with_card(student, draft, arguments.student, arguments.languages, self.teachers)
            log = json.dumps(trainer.state.log_history, indent=1)
            (draft / "training_log.json").write_text(log + "\n")
            if arguments.new_tokens:
                shutil.copy(Path(self.start_model) / NEW_TOKENS, draft)
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
