"""Where the targets come from: a frozen English model."""

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from xvlm2vec_st.states import token_states


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
