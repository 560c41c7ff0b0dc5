"""The first updates of a student with a larger vocabulary: only the embeddings of its new tokens learn."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from xvlm2vec_st import DistillationTrainer, SentenceTransformer
from xvlm2vec_st.building.vocabulary import token_tables


class NewTokensFirst(TrainerCallback):
    """In the first updates, train the embeddings of new tokens alone.

    All other gradients are zeroed before they are added up, so that clipping measures what learns. Before the
    update they are dropped, and weight decay is off, so that no optimizer moves another parameter or another
    token's row: its momenta stay zero. Nothing is kept between updates, so a resumed run goes on where it was.

    Args:
        student: the model that learns.
        ids: the rows of the new tokens.
        updates: how many updates this lasts.
    """

    def __init__(self, student: SentenceTransformer, ids: Sequence[int], updates: int) -> None:
        self.student, self.ids, self.updates = student, torch.tensor(ids), updates
        self.tables = {id(table) for table in token_tables(student[0].model)}
        self._hooks: list[Any] = []
        self._decays: list[float] = []

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin or end, by the number of updates that are done."""
        if state.global_step < self.updates and not self._hooks:
            learning = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
            self._hooks = [parameter.register_hook(self._mask(parameter)) for parameter in learning]
        elif state.global_step >= self.updates:
            self.end()

    def _mask(self, parameter: Tensor) -> Callable[[Tensor], Tensor]:
        def new_rows(gradient: Tensor) -> Tensor:
            ids = self.ids.to(gradient.device)
            return torch.zeros_like(gradient).index_copy_(0, ids, gradient[ids])

        return new_rows if id(parameter) in self.tables else torch.zeros_like

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Take from the optimizer what must not move."""
        if self._hooks:
            for parameter in self.student.parameters():
                if id(parameter) not in self.tables:
                    parameter.grad = None
            self._decays = [group.get("weight_decay", 0) for group in optimizer.param_groups]
            for group in optimizer.param_groups:
                group["weight_decay"] = 0

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Give the optimizer its weight decay back, before a checkpoint stores it."""
        for group, decay in zip(optimizer.param_groups, self._decays, strict=False):
            group["weight_decay"] = decay
        self._decays = []

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End, also where the run was shorter."""
        self.end()

    def end(self) -> None:
        """Let all parameters learn."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


def start_with_new_tokens(
    trainer: DistillationTrainer, student: SentenceTransformer, ids: Sequence[int], updates: int
) -> None:
    """Train the rows `ids` of the embeddings alone in the first updates: see `NewTokensFirst`.

    Raises:
        ValueError: the student is sharded: its rows lie in several processes.
    """
    if trainer.is_fsdp_enabled:
        raise ValueError(
            f"--embedding-steps {updates} in shards (FSDP): rows of the embeddings lie in several processes; use one "
            "copy per process (DDP), or leave --embedding-steps out"
        )
    trainer.add_callback(NewTokensFirst(student, ids, updates))
