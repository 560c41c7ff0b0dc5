"""Where the targets come from: a frozen English model, or the student with its adapter off."""

from typing import Protocol

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from xvlm2vec_st.states import token_states


class Teacher(Protocol):
    """What a loss asks of a teacher."""

    model: SentenceTransformer

    def states(self, features: dict) -> dict[str, Tensor]:
        """Token states of English features, on the features' device, without gradients."""


class FrozenTeacher:
    """A model that only looks: in eval mode, without gradients, and no module of any loss.

    It is deliberately not an `nn.Module`: the trainer hands every trainable parameter of the loss
    to the optimizer, and moves and wraps its children.
    """

    def __init__(self, model: SentenceTransformer) -> None:
        self.model = model.eval().requires_grad_(False)

    @torch.no_grad()
    def states(self, features: dict) -> dict[str, Tensor]:
        """Token states of English features, on the features' device."""
        device = features["input_ids"].device
        if self.model.device != device:
            self.model.to(device)
        return token_states(self.model, features)


class AdapterTeacher:
    """The student itself with its adapter off: the model that it started from, in no memory of its own.

    Raises:
        ValueError: the student has no adapter, or learns more than its adapter.
    """

    def __init__(self, student: SentenceTransformer) -> None:
        learning = [name for name, p in student.named_parameters() if p.requires_grad]
        if not learning or any("lora_" not in name for name in learning):
            raise ValueError(
                "the student is its own teacher only where it learns an adapter and nothing else; add one "
                f"(student.add_adapter(lora_config(…))) or pass a teacher; learning now: {learning[:3]}"
            )
        self.model = student

    @torch.no_grad()
    def states(self, features: dict) -> dict[str, Tensor]:
        """Token states of English features, without the adapter and its dropout."""
        inner, training = self.model[0].model, self.model.training
        inner.disable_adapters()
        self.model.eval()
        try:
            return token_states(self.model, features)
        finally:
            self.model.train(training)
            inner.enable_adapters()
