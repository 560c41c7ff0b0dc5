"""States after a middle layer of the language model, beside those of the last one, by any route."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense
from torch import Tensor, nn

from xvlm2vec_st.distillation.states import Features, token_states
from xvlm2vec_st.encoding.last_layer import pooled_tokens_only
from xvlm2vec_st.utils.modules import language_layers, transformer_of


def middle_states(model: Any, features: Features, layer: int | None, *, pooled_only: bool = False) -> dict[str, Tensor]:
    """Run the model: `token_embeddings` and, unless `layer` is None, `middle_embeddings` after that layer.

    The two travel side by side in one tensor of twice the width, so that every route puts both back to their rows.

    Args:
        model: a sentence-transformers model, or its wrapper (DDP).
        features: preprocessed features.
        layer: number of the layer, from 1.
        pooled_only: the last states of other tokens than the pooled ones are not needed.
    """
    with pooled_tokens_only(model, wanted=pooled_only):
        if layer is None:
            return token_states(model, features)
        with states_joined(getattr(model, "module", model), layer):
            states = token_states(model, features)
    last, middle = states["token_embeddings"].chunk(2, dim=-1)
    return states | {"token_embeddings": last, "middle_embeddings": middle}


@contextmanager
def states_joined(model: SentenceTransformer, layer: int) -> Iterator[None]:
    """Let the transformers model return the states of its last layer and of `layer`, concatenated.

    sentence-transformers 6.2 calls the model's `forward` directly, where hooks do not run, so it is replaced.
    """
    kept: list[Tensor] = []
    inner = transformer_of(model).model
    forward, replaced = inner.forward, vars(inner).get("forward")

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        kept.append(output if isinstance(output, Tensor) else output[0])

    @wraps(forward)
    def join(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.last_hidden_state = torch.cat((output.last_hidden_state, kept.pop()), dim=-1)
        return output

    hook = language_layers(model)[layer - 1].register_forward_hook(keep)
    inner.forward = join
    try:
        yield
    finally:
        hook.remove()
        del inner.forward
        if replaced is not None:
            inner.forward = replaced


def check_middle_layer(layer: int, *models: SentenceTransformer) -> None:
    """Check that the models have this layer, and a last one after it.

    Raises:
        ValueError: the layer is out of range; a model has a Dense layer, so that its middle states are of another
            width than its embeddings.
    """
    for model in models:
        count = len(language_layers(model))
        if not 0 < layer < count:
            raise ValueError(f"middle_layer is {layer}; pass 1 to {count - 1}: the language model has {count} layers")
        if any(isinstance(module, Dense) for module in model):
            raise ValueError("middle_layer needs models without a Dense layer; pass middle_layer=None")
