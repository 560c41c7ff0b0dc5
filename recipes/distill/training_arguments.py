"""sentence-transformers' training arguments, with the defaults of `distill`."""

import dataclasses
from dataclasses import dataclass

import torch
from sentence_transformers import SentenceTransformerTrainingArguments

from .options import TrainingDefaults


@dataclass
class DistillTrainingArguments(TrainingDefaults, SentenceTransformerTrainingArguments):
    """sentence-transformers' training arguments, with the paper's defaults.

    `output_dir` is the finished folder; checkpoints lie in OUTPUT_DIR.partial until then.
    """

    def __post_init__(self) -> None:
        if self.eval_steps and str(getattr(self.eval_strategy, "value", self.eval_strategy)) == "no":
            self.eval_strategy = "steps"
        if self.load_best_model_at_end and self.metric_for_best_model is None:
            self.metric_for_best_model, self.greater_is_better = "sequential_score", True
        # The reentrant kind breaks on frozen inputs. transformers 5.23 renamed the two options.
        names = {each.name for each in dataclasses.fields(SentenceTransformerTrainingArguments)}
        if self.gradient_checkpointing and "activation_checkpointing" in names:
            self.activation_checkpointing, self.gradient_checkpointing = True, None
        for name in ("activation_checkpointing", "gradient_checkpointing"):
            if getattr(self, name, None) and getattr(self, f"{name}_kwargs") is None:
                setattr(self, f"{name}_kwargs", {"use_reentrant": False})
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        super().__post_init__()
