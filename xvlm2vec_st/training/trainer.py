"""The trainer: sentence-transformers' trainer on parallel rows, in one process or many, sharded or not."""

import json
import shutil
import time
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.base.modules import Module
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.trainer_utils import TrainOutput

from xvlm2vec_st.data.batch_sampler import TokenBudgetBatches
from xvlm2vec_st.data.collator import ParallelCollator
from xvlm2vec_st.data.corpus import SOURCE
from xvlm2vec_st.data.preprocessor import Preprocessor
from xvlm2vec_st.data.stream import ParallelStream, SkippingCollator
from xvlm2vec_st.families.table import VISION
from xvlm2vec_st.training.callbacks import ApplyNewIntervals, SetSamplerEpoch, StopOnSignal
from xvlm2vec_st.training.checkpoints import write_manifest
from xvlm2vec_st.training.checks import check_arguments, not_finite_error, warn_of_lost_updates
from xvlm2vec_st.training.evaluation import memory_hint
from xvlm2vec_st.training.fsdp import load_states_into, meta_copy, prepare_plugin, shard_on_cpu
from xvlm2vec_st.utils.finite import not_finite
from xvlm2vec_st.utils.modules import transformer_of


class DistillationTrainer(SentenceTransformerTrainer):
    """`SentenceTransformerTrainer` over the rows of `load_parallel` or of a `ParallelStream`.

    The batch size counts rows. A row holds one English text and up to `len(languages)` translations. If the loss
    shares prefixes, what the texts of a row have in common is computed once.

    It runs under `accelerate launch` with DDP or FSDP2. In several processes, a batch is one forward in each
    process, whatever it holds, so that no process waits for another. SIGTERM and SIGINT end the run after the
    current update, with a checkpoint.

    Args:
        model: the student.
        args: training arguments of sentence-transformers.
        train_dataset: rows of `load_parallel`, or a `ParallelStream`.
        loss: a `MultilingualDistillationLoss`.
        languages: columns of the translations.
        image_size: resize images to squares of this many pixels; None: keep their size.
        batches: which rows form a batch, for example `TokenBudgetBatches`.
        **kwargs: all other arguments of the base class, for example `evaluator` and `callbacks`.

    Attributes:
        stop: its `signal` is the signal that ended the run early, or None.

    Raises:
        ValueError: FSDP settings that cannot work (`prepare_plugin`); arguments of the base class that this class
            does not accept (`check_arguments`). While training: the loss is not a number; a text is longer than
            the model's limit.

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
        self._unsharded: SentenceTransformer | None = model
        warn_of_lost_updates(model)
        arguments = signature(SentenceTransformerTrainer).bind_partial(model, *args, **kwargs).arguments
        loss = arguments.get("loss")
        check_arguments(arguments, languages)
        collator = ParallelCollator(
            Preprocessor(model),
            languages=tuple(languages),
            shared=getattr(loss, "shares_prefix", False),
            inputs=getattr(loss, "needs_inputs", False),
            image_size=image_size,
            limit=transformer_of(model).max_seq_length,
            tokenizer=model.tokenizer,
        )
        kwargs.setdefault("data_collator", collator)
        # sentence-transformers' card cannot draw widget examples from rows with empty cells.
        model.model_card_data.generate_widget_examples = False
        model.model_card_data.widget = model.model_card_data.widget or [{"text": "red apple"}]
        super().__init__(model, *args, **kwargs)
        for callback in (self.stop, SetSamplerEpoch(), ApplyNewIntervals(self._reset_statistics)):
            self.add_callback(callback)
        if self.args.world_size > 1 and isinstance(self.data_collator, ParallelCollator):
            self.data_collator.shared = True
            trains_vision = any(p.requires_grad and VISION.search(n) for n, p in model.named_parameters())
            self.data_collator.stand_in = self.is_fsdp_enabled and trains_vision
        self._reset_statistics()

    # ---- Several processes ----

    def create_accelerator_and_postprocess(self) -> None:
        """Create the accelerator; under FSDP, keep a meta copy of the model for saving."""
        super().create_accelerator_and_postprocess()
        shard_on_cpu(self.accelerator, self.args)
        self.is_fsdp_enabled = getattr(self.accelerator.state, "fsdp_plugin", None) is not None
        if self.is_fsdp_enabled and self._unsharded is not None:
            prepare_plugin(self.accelerator.state.fsdp_plugin, self._unsharded)
            self._meta_copy = meta_copy(self._unsharded)
            # accelerate 1.15 shards the last child whose class name holds "Norm" separately. Normalize has no
            # weights, and cannot be sharded. This name makes accelerate look into the first module instead.
            self._unsharded.base_model_prefix = "0"  # type: ignore[assignment]  # mypy: a submodule
        self._unsharded = None

    def whole_model(self) -> SentenceTransformer | None:
        """The model with all its weights on rank 0, None on the other ranks; every rank must call this."""
        if not self.is_fsdp_enabled:
            return self.accelerator.unwrap_model(self.model) if self.args.should_save else None
        states = self.accelerator.get_state_dict(self.model)
        return load_states_into(self._meta_copy, states) if self.args.should_save else None

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Save from rank 0. Under FSDP, save the gathered `state_dict`, which the base class ignores."""
        if not self.args.should_save:
            return
        if state_dict is None:
            return super()._save(output_dir)
        sharded, self.model = self.model, load_states_into(self._meta_copy, state_dict)
        try:
            super()._save(output_dir)
        finally:
            self.model = sharded

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save a checkpoint, and write its manifest when all ranks have finished."""
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save and folder.exists():  # left by a killed run
            shutil.rmtree(folder)
        self.check_weights()
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            write_manifest(folder)

    def check_weights(self) -> None:
        """Check that all weights are numbers; every rank must call this.

        Raises:
            ValueError: a weight is NaN or infinite, on any rank.
        """
        names = list(not_finite(self.model.state_dict().items()))
        count = torch.tensor(len(names), device=self.args.device)
        if int(self.accelerator.reduce(count, reduction="sum")):
            raise ValueError(
                f"after update {self.state.global_step} weights of the student are not numbers "
                f"({names[0] if names else 'on another rank'}), and are not saved; lower learning_rate, or the "
                "rate of the optimizer's other groups"
            )

    def _load_from_checkpoint(self, checkpoint_path: str, model: nn.Module | None = None) -> None:
        """Resume. peft loads adapters, because sentence-transformers' loader drops DoRA's magnitudes."""
        if self.is_fsdp_enabled:
            return transformers.Trainer._load_from_checkpoint(self, checkpoint_path, model or self.model)
        adapter = Path(checkpoint_path) / "adapter_model.safetensors"
        if not adapter.is_file():
            return super()._load_from_checkpoint(checkpoint_path)
        states = {key.removeprefix("base_model.model."): value for key, value in load_file(adapter).items()}
        result: Any = set_peft_model_state_dict(self.model[0].model, states)
        if result.unexpected_keys:
            raise ValueError(f"{adapter}: unexpected keys: {result.unexpected_keys}")
        saved = json.loads((Path(checkpoint_path) / "modules.json").read_text("utf-8"))
        for module, entry in zip(self.model, saved, strict=True):
            if entry["path"] and module.state_dict():  # a projection, which is trained with the adapter
                loaded = cast(Module, type(module)).load(str(checkpoint_path), subfolder=entry["path"])
                module.load_state_dict(loaded.state_dict())

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Add the callback without its statistics of columns, which fail on the first empty cell."""
        datasets, self.train_dataset, self.eval_dataset = (self.train_dataset, self.eval_dataset), None, None
        super().add_model_card_callback(default_args_dict)
        self.train_dataset, self.eval_dataset = datasets

    # ---- Rows ----

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train; a signal stops after an update, and a stream continues where it was stopped."""
        if isinstance(self.train_dataset, ParallelStream) and isinstance(resume_from_checkpoint, str):
            state = transformers.TrainerState.load_from_json(f"{resume_from_checkpoint}/trainer_state.json")
            steps = self.args.gradient_accumulation_steps
            self.train_dataset.skipped_batches = state.global_step * steps
        with self.stop:
            return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def get_batch_sampler(self, *args: Any, **kwargs: Any) -> Any:
        """Return `batches` if it is set. The training argument for it would be stored in every checkpoint."""
        return self.batches or super().get_batch_sampler(*args, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        """Build the loader; a `ParallelStream` distributes its rows to the processes itself."""
        size = self._train_batch_size
        if not isinstance(self.train_dataset, ParallelStream):
            # `auto_find_batch_size` lowers the trainer's batch size. sentence-transformers 6.2 reads the arguments'.
            requested = self.args.per_device_train_batch_size
            self.args.per_device_train_batch_size = size // max(1, self.args.n_gpu)
            try:
                return super().get_train_dataloader()
            finally:
                self.args.per_device_train_batch_size = requested
        self.train_dataset.assign_rank(size, self.args.process_index, self.args.world_size)
        return DataLoader(
            self.train_dataset,
            batch_size=size,
            collate_fn=SkippingCollator(self.data_collator),
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )

    # ---- Steps ----

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Run a step; an out-of-memory error says what to lower."""
        with memory_hint(
            f"in update {self.state.global_step + 1}, {self._train_batch_size} rows per batch; lower "
            "per_device_train_batch_size (and raise gradient_accumulation_steps), tokens_per_batch or image_size, "
            "or use gradient_checkpointing or a LoRA"
        ):
            return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Compute the loss, check it, and collect the statistics of the log."""
        ids = inputs.pop("ids", None)
        tokens = sum(value.sum() for key, value in inputs.items() if key.endswith("attention_mask"))
        result = super().compute_loss(cast(SentenceTransformer, model), inputs, return_outputs, num_items_in_batch)
        if not torch.isfinite(result[0] if isinstance(result, tuple) else result):
            raise not_finite_error(self.loss, self.model, self.state.global_step + 1, ids)
        if model.training:
            self._counts[0] += len(ids or ())
            self._counts[1] += tokens
            for _, language, error in getattr(self.loss, "watched", []):
                self._errors.index_add_(1, language, torch.stack((error, torch.ones_like(error))).double())
        return result

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with each language's error, rows and tokens per second, and the hours left."""
        if "loss" in logs:
            logs = logs | self._statistics()
        super().log(logs, start_time)

    def _statistics(self) -> dict[str, float]:
        totals = self.accelerator.reduce(self._errors, reduction="sum")
        rows, tokens = self.accelerator.reduce(self._counts, reduction="sum").tolist()
        errors = {
            f"error_{code}": round((total / count).item(), 6)
            for code, total, count in zip(self.languages, *totals, strict=True)
            if count
        }
        seconds = time.perf_counter() - self._start_time
        updates = self.state.global_step - self._start_step
        left = (self.state.max_steps - self.state.global_step) * seconds / max(updates, 1)
        self._reset_statistics()
        speed = {"rows_per_second": rows / seconds, "tokens_per_second": tokens / seconds}
        return errors | {key: round(value, 2) for key, value in (speed | {"hours_left": left / 3600}).items()}

    def _reset_statistics(self) -> None:
        device = self.args.device
        self._errors = torch.zeros(2, len(self.languages), dtype=torch.float64, device=device)
        self._counts = torch.zeros(2, dtype=torch.float64, device=device)
        self._start_time, self._start_step = time.perf_counter(), self.state.global_step
