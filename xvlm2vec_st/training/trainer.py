"""The host's trainer on parallel rows: one process or many, sharded or not, nothing lost."""

import json
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from torch import Tensor
from torch.utils.data import DataLoader

from xvlm2vec_st.data.batch_sampler import TokenBudgetBatches
from xvlm2vec_st.data.dataset import SOURCE, ParallelCollator, check_columns
from xvlm2vec_st.data.preprocessor import Preprocessor
from xvlm2vec_st.data.stream import ParallelStream
from xvlm2vec_st.training.callbacks import StopOnSignal
from xvlm2vec_st.training.checkpoints import seal
from xvlm2vec_st.training.evaluation import enough_memory, parallel_evaluator  # noqa: F401 - its old place
from xvlm2vec_st.training.fsdp import check_plugin, filled, hollow, shard_on_cpu
from xvlm2vec_st.training.precision import warn_of_lost_updates
from xvlm2vec_st.utils.finite import check_targets, not_finite

# Names of parameters that a text alone does not reach.
VISION = re.compile(r"vision|visual|connector|projector|img_|image_newline")


class DistillationTrainer(SentenceTransformerTrainer):
    """`SentenceTransformerTrainer` over the rows of `load_parallel` or of a `ParallelStream`.

    Takes what its base takes, and `languages`: which columns are translations; `image_size`: pixels to
    which images are resized; `batches`: which rows go together. The batch size counts rows; a row
    holds one English text and up to `len(languages)` translations. Where the loss
    (given by name) shares prefixes, what a row's texts have in common is computed once.

    Runs under `accelerate launch` with DDP or FSDP2. In several processes a batch is one forward in
    each, whatever it holds, so that none waits for another. SIGTERM and SIGINT end the run after the
    update at hand, with a checkpoint.

    Attributes:
        stop: its `signal` says what ended the run early.

    Raises:
        ValueError: settings of FSDP that cannot work (`check_plugin`); arguments of the base class that
            this one does not take (`check_arguments`). While training: a loss that is not a number, a row
            longer than the model, a device out of memory.

    Example::

        loss = MultilingualDistillationLoss(student, teacher)
        trainer = DistillationTrainer(student, args, train_dataset=corpus, loss=loss, languages=["it"])
        trainer.train()
    """

    def __init__(
        self,
        model: SentenceTransformer,
        *args: Any,
        languages: Sequence[str],
        image_size: int | None = None,
        batches: TokenBudgetBatches | None = None,
        **kwargs: Any,
    ) -> None:
        self.languages = (SOURCE, *languages)
        self.stop = StopOnSignal()
        self.batches = batches
        self._unsharded = model
        warn_of_lost_updates(model)
        given = signature(SentenceTransformerTrainer).bind_partial(model, *args, **kwargs).arguments
        loss = given.get("loss")
        check_arguments(given, languages)
        collator = ParallelCollator(
            Preprocessor(model),
            languages=tuple(languages),
            shared=getattr(loss, "shares_prefix", False),
            given=getattr(loss, "needs_given", False),
            image_size=image_size,
            limit=model[0].max_seq_length,
            tokenizer=model.tokenizer,
        )
        kwargs.setdefault("data_collator", collator)
        # The card's callback cannot draw widget examples from rows with empty cells.
        model.model_card_data.generate_widget_examples = False
        model.model_card_data.widget = model.model_card_data.widget or [{"text": "red apple"}]
        super().__init__(model, *args, **kwargs)
        self.add_callback(self.stop)
        self.add_callback(TellSamplersTheEpoch())
        self.add_callback(StartsAfterResume(self._reset_watch))
        if self.args.world_size > 1 and isinstance(self.data_collator, ParallelCollator):
            self.data_collator.shared = True
            learns_vision = any(p.requires_grad and VISION.search(n) for n, p in model.named_parameters())
            self.data_collator.stand_in = self.is_fsdp_enabled and learns_vision
        self._reset_watch()

    # ---- Several processes ----

    def create_accelerator_and_postprocess(self) -> None:
        """The host's, with FSDP2 on CPUs too, and a hollow copy to save a sharded model by."""
        super().create_accelerator_and_postprocess()
        shard_on_cpu(self.accelerator, self.args)
        self.is_fsdp_enabled = getattr(self.accelerator.state, "fsdp_plugin", None) is not None
        if self.is_fsdp_enabled:
            check_plugin(self.accelerator.state.fsdp_plugin)
            self._hollow = hollow(self._unsharded)
            # accelerate shards the last child whose type says Norm by itself; the host's Normalize, which
            # has no weights, cannot be. It is told to look among the children of the first module.
            self._unsharded.base_model_prefix = "0"
        del self._unsharded

    def whole_model(self) -> SentenceTransformer | None:
        """The model with all its weights in the first process, None in the others; all must ask."""
        if not self.is_fsdp_enabled:
            return self.accelerator.unwrap_model(self.model) if self.args.should_save else None
        states = self.accelerator.get_state_dict(self.model)
        return filled(self._hollow, states) if self.args.should_save else None

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """The host's, in one process; a gathered state, which it ignores, is saved."""
        if not self.args.should_save:
            return
        if state_dict is None:
            return super()._save(output_dir)
        sharded, self.model = self.model, filled(self._hollow, state_dict)
        try:
            super()._save(output_dir)
        finally:
            self.model = sharded

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """The host's, sealed when all processes have written."""
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save and folder.exists():  # what a killed run left
            shutil.rmtree(folder)
        self.check_weights()
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            seal(folder)

    def check_weights(self) -> None:
        """Refuse to save weights that are not numbers; all processes must ask.

        Raises:
            ValueError: some are not, in any process.
        """
        names = list(not_finite(self.model.state_dict().items()))
        count = torch.tensor(len(names), device=self.args.device)
        if int(self.accelerator.reduce(count, reduction="sum")):
            raise ValueError(
                f"after update {self.state.global_step} the student's weights are not numbers "
                f"({names[0] if names else 'in another process'}), and are not saved; lower --learning-rate "
                "or --muon"
            )

    def _load_from_checkpoint(self, checkpoint_path: str, model: Any = None) -> None:
        """Resume; an adapter is put back by peft, for the host's own loader drops DoRA's magnitudes."""
        if self.is_fsdp_enabled:
            return transformers.Trainer._load_from_checkpoint(self, checkpoint_path, model or self.model)
        adapter = Path(checkpoint_path) / "adapter_model.safetensors"
        if not adapter.is_file():
            return super()._load_from_checkpoint(checkpoint_path)
        left = set_peft_model_state_dict(self.model[0].model, load_adapter_states(adapter))
        if left.unexpected_keys:
            raise ValueError(f"{adapter}: keys that fit nothing: {left.unexpected_keys}")
        saved = json.loads((Path(checkpoint_path) / "modules.json").read_text("utf-8"))
        for module, place in zip(self.model, saved, strict=True):
            if place["path"] and module.state_dict():  # a projection, which learns beside the adapter
                loaded = type(module).load(str(checkpoint_path), subfolder=place["path"])
                module.load_state_dict(loaded.state_dict())

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """The host's, without its statistics of columns: they fail on the first empty cell."""
        kept, self.train_dataset, self.eval_dataset = (self.train_dataset, self.eval_dataset), None, None
        super().add_model_card_callback(default_args_dict)
        self.train_dataset, self.eval_dataset = kept

    # ---- Rows ----

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """The host's, stopped by signals after an update, and a stream where it was left."""
        if isinstance(self.train_dataset, ParallelStream) and isinstance(resume_from_checkpoint, str):
            state = transformers.TrainerState.load_from_json(f"{resume_from_checkpoint}/trainer_state.json")
            self.train_dataset.passed_over = state.global_step * self.args.gradient_accumulation_steps
        with self.stop:
            return super().train(resume_from_checkpoint, **kwargs)

    def get_batch_sampler(self, *args: Any, **kwargs: Any) -> Any:
        """The host's, or the batches that were given; its argument for them goes into every checkpoint."""
        return self.batches or super().get_batch_sampler(*args, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        """The host's; a stream, which it does not know, deals its rows to processes by itself."""
        if not isinstance(self.train_dataset, ParallelStream):
            return super().get_train_dataloader()
        size = self.args.train_batch_size
        self.train_dataset.deal(size, self.args.process_index, self.args.world_size)
        return DataLoader(
            self.train_dataset,
            batch_size=size,
            collate_fn=self.train_dataset.collating(self.data_collator),
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )

    # ---- Steps ----

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """The host's; a device out of memory is told in words of this package."""
        with enough_memory(
            f"in update {self.state.global_step + 1}, {self.args.train_batch_size} rows a batch; lower "
            "--batch-size (and raise --accumulation), --tokens-per-batch or --image-size, or take "
            "--gradient-checkpointing or --lora"
        ):
            return super().training_step(*args, **kwargs)

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The host's; a loss that is no number stops the run with its rows."""
        ids = inputs.pop("ids", None)
        tokens = sum(value.sum() for key, value in inputs.items() if key.endswith("attention_mask"))
        result = super().compute_loss(model, inputs, *args, **kwargs)
        watched = getattr(self.loss, "watched", [])
        if not torch.isfinite(result[0] if isinstance(result, tuple) else result):
            targets = getattr(self.loss, "targets", None)
            if targets is not None:
                check_targets(self.loss.teacher.model, targets)
            rows = sorted({int(r) for row, _, error in watched for r in row[~error.isfinite()]})
            named = [ids[row] for row in rows] if ids and rows else ids
            cause = "look at their texts and images, lower --learning-rate, or train without --bf16"
            if names := list(not_finite(self.model.state_dict().items())):
                cause = (
                    f"the student's weights are not numbers ({names[0]}); lower --learning-rate or --muon, "
                    "and go on from an earlier checkpoint"
                )
            raise ValueError(
                f"the loss of update {self.state.global_step + 1} is not a number; rows: "
                f"{', '.join(named or '?')}; {cause}"
            )
        if model.training:
            self._tally[0] += len(ids or ())
            self._tally[1] += tokens
            for _, language, error in watched:
                self._heard.index_add_(1, language, torch.stack((error, torch.ones_like(error))).double())
        return result

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The host's, with each language's error, rows and tokens a second, and hours left."""
        if "loss" in logs:
            logs = logs | self._progress()
        super().log(logs, start_time)

    def _progress(self) -> dict[str, float]:
        heard = self.accelerator.reduce(self._heard, reduction="sum")
        rows, tokens = self.accelerator.reduce(self._tally, reduction="sum").tolist()
        errors = {
            f"error_{code}": round((total / count).item(), 6)
            for code, total, count in zip(self.languages, *heard, strict=True)
            if count
        }
        seconds = time.perf_counter() - self._since
        updates = self.state.global_step - self._from
        left = (self.state.max_steps - self.state.global_step) * seconds / max(updates, 1)
        self._reset_watch()
        pace = {"rows_per_second": rows / seconds, "tokens_per_second": tokens / seconds}
        return errors | {
            name: round(value, 2) for name, value in (pace | {"hours_left": left / 3600}).items()
        }

    def _reset_watch(self) -> None:
        device = self.args.device
        self._heard = torch.zeros(2, len(self.languages), dtype=torch.float64, device=device)
        self._tally = torch.zeros(2, dtype=torch.float64, device=device)
        self._since, self._from = time.perf_counter(), self.state.global_step


def check_arguments(given: Mapping[str, Any], languages: Sequence[str]) -> None:
    """Refuse what the base trainer takes and this one would leave aside.

    Args:
        given: arguments of the trainer, by name.
        languages: of the translations that rows need.

    Raises:
        ValueError: prompts; several losses; rows of another kind; a column that is missing.
    """
    if getattr(given.get("args"), "prompts", None):
        raise ValueError("prompts are not applied in distillation; write them into the corpus' texts")
    if isinstance(given.get("loss"), dict):
        raise ValueError("loss is a dict; pass one MultilingualDistillationLoss, for all rows")
    for name in ("train_dataset", "eval_dataset"):
        rows = given.get(name)
        if rows is None or isinstance(rows, ParallelStream):
            continue
        if not isinstance(rows, Dataset):
            raise ValueError(
                f"{name} is a {type(rows).__name__}; pass rows of load_parallel, or a ParallelStream"
            )
        check_columns(rows.column_names, languages)


class StartsAfterResume(transformers.TrainerCallback):
    """What begins with training, when the state of a resumed run is there.

    The host takes its steps between logs and checkpoints from that state; those now asked for count.
    """

    def __init__(self, reset_watch: Callable[[], None]) -> None:
        self.reset_watch = reset_watch

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before the first update."""
        state.compute_steps(args, state.max_steps)
        self.reset_watch()


class TellSamplersTheEpoch(transformers.TrainerCallback):
    """Every sampler of the loader learns the epoch, in a resumed run of several processes too.

    There the host looks for samplers two wrappers deep, and a third one hides them: the rows of a later
    epoch would come in the order of the first.
    """

    def on_epoch_begin(
        self, args: Any, state: Any, control: Any, train_dataloader: Any, **kwargs: Any
    ) -> None:
        """Before the host's own attempt."""
        wrapped = [train_dataloader]
        while wrapped:
            sampler = wrapped.pop()
            if sampler is not train_dataloader and hasattr(sampler, "set_epoch"):
                sampler.set_epoch(int(state.epoch or 0))
            inner = (getattr(sampler, name, None) for name in ("batch_sampler", "sampler"))
            wrapped += [found for found in inner if found is not None]


def load_adapter_states(path: Path) -> dict[str, Tensor]:
    """An adapter file's tensors, named as the model's own modules are (without peft's prefix)."""
    return {key.removeprefix("base_model.model."): value for key, value in load_file(path).items()}
