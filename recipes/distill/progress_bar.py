"""The progress bar of a training run."""

from typing import Any

import transformers
from transformers.trainer_callback import PrinterCallback, ProgressCallback

ACCURACY = "_mean_accuracy"  # of sentence-transformers' TranslationEvaluator, by language


class LossBar(ProgressCallback):
    """Updates and the last loss in one bar, where transformers' own writes a dictionary per log entry.

    An evaluation is a line: the accuracy of each language's retrieval among the held-out rows.
    """

    def on_train_begin(
        self,
        args: transformers.TrainingArguments,
        state: transformers.TrainerState,
        control: transformers.TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Name the bar."""
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description("distilling")

    def on_log(
        self,
        args: transformers.TrainingArguments,
        state: transformers.TrainerState,
        control: transformers.TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the loss beside the bar, and a line for an evaluation."""
        if self.training_bar is None or not logs:
            return
        if "loss" in logs:
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.3g}")
        scores = {
            name.removeprefix("eval_").removesuffix(ACCURACY): value
            for name, value in logs.items()
            if name.startswith("eval_") and name.endswith(ACCURACY)
        }
        if scores:
            listed = ", ".join(f"{language} {value:.2f}" for language, value in scores.items())
            self.training_bar.write(f"update {state.global_step}, accuracy among held-out rows: {listed}")


def show_loss_bar(trainer: transformers.Trainer) -> None:
    """Put `LossBar` where transformers' own bar is."""
    if not trainer.args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(LossBar())
