"""Compute the last layer for the pooled tokens only.

In the last layer, a token reads the keys and values of the others, and nothing else of them. So if the last token is
pooled, the queries, the attention's output projection and the feed-forward part of all other tokens are never read.
They are a fifth of the language model's work with 4 layers, and a fortieth with 32. The states of the other tokens are
meaningless then, so this is done only where nothing reads them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper

from xvlm2vec_st.utils.modules import find_language_layers

# Modules of a layer that treat each token alone, and whose results only the token itself reads.
FEED_FORWARD = ("mlp", "feed_forward")
ATTENTION = ("q_proj", "o_proj", "out_proj")
PREPARED = "_computes_kept_tokens"  # our mark on a module
# Fewer tokens take as long as one: the processor reads the same weights for them.
FEWEST = 64


@dataclass(frozen=True)
class Kept:
    """The tokens that the running forward keeps.

    Attributes:
        places: their places in the flattened batch.
        shape: of the batch, (rows, tokens).
        running: the module that runs on the kept tokens now. Within it, no other one takes tokens away: after
            `add_adapter`, a layer that was prepared lies within another one.
    """

    places: Tensor
    shape: torch.Size
    running: list[nn.Module] = field(default_factory=list)


# Whether this thread's forwards serve a pooling of the last token, and the tokens that the running one keeps.
# Threads can share a model, so each has its own values.
POOLED_ONLY: ContextVar[bool] = ContextVar("POOLED_ONLY", default=False)
KEPT: ContextVar[Kept | None] = ContextVar("KEPT", default=None)


@contextmanager
def pooled_tokens_only(model: Any, wanted: bool = True) -> Iterator[None]:
    """Within it, forwards of a model that pools the last token may skip the other tokens' last states.

    Args:
        model: a sentence-transformers model, or its wrapper (DDP).
        wanted: False: all states, whatever the model pools.

    Example::

        with pooled_tokens_only(model):
            embeddings = model(features)["sentence_embedding"]
    """
    token = POOLED_ONLY.set(wanted and pools_last_token(getattr(model, "module", model)))
    try:
        yield
    finally:
        POOLED_ONLY.reset(token)


def pools_last_token(model: Any) -> bool:
    """Whether the second module of a sentence-transformers model pools the last token, and nothing else."""
    return len(model) > 1 and isinstance(model[1], Pooling) and model[1].pooling_mode in ("lasttoken", ("lasttoken",))


def last_tokens(attention_mask: Tensor) -> Tensor:
    """The last real token of each row, on either padding side: (rows, tokens), bool.

    >>> last_tokens(torch.tensor([[0, 1, 1], [1, 1, 0]])).int().tolist()
    [[0, 0, 1], [0, 1, 0]]
    """
    real = attention_mask.bool()
    return real & (real.flip(-1).cumsum(-1).flip(-1) == 1)


@contextmanager
def last_layer_for(model: nn.Module, kept: Tensor | None) -> Iterator[None]:
    """Within it, the last layer of the language model computes the kept tokens only.

    Args:
        model: the transformers model.
        kept: (rows, tokens) bool, in the layout in which the model runs; None: all tokens. Below `FEWEST` tokens
            it makes no difference.
    """
    # Models of the ONNX and OpenVINO backends are not an nn.Module.
    narrow = kept is not None and kept.numel() >= FEWEST and isinstance(model, nn.Module)
    layers = find_language_layers(model) if narrow else None
    if kept is None or layers is None or is_recomputed(layers[-1]):
        yield
        return
    for module in token_modules(layers[-1]):
        prepare(module)
    places = kept.flatten().nonzero().flatten()
    if not len(places):  # a prefix whose rows all go on; experts cannot compute zero tokens
        places = torch.zeros(1, dtype=torch.long, device=kept.device)
    token = KEPT.set(Kept(places, kept.shape))
    try:
        yield
    finally:
        KEPT.reset(token)


def is_recomputed(layer: nn.Module) -> bool:
    """Whether the layer runs again in the backward pass, which comes after `last_layer_for` has ended."""
    return isinstance(layer, CheckpointWrapper) or (layer.training and getattr(layer, "gradient_checkpointing", False))


def token_modules(layer: nn.Module) -> list[nn.Module]:
    """The modules of a decoder layer that can run on the kept tokens alone; none in an unknown kind of layer."""
    chosen = []
    for name, child in layer.named_children():
        if name in FEED_FORWARD:
            chosen.append(child)
        else:
            chosen += [module for inner, module in child.named_children() if inner in ATTENTION]
    return chosen


def prepare(module: nn.Module) -> None:
    """Register the hooks, once. They do nothing outside of `last_layer_for`."""
    if not getattr(module, PREPARED, False):
        module.register_forward_pre_hook(take_kept)
        module.register_forward_hook(put_back)
        setattr(module, PREPARED, True)


def take_kept(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Pass the kept tokens on: (rows, tokens, dim) -> (1, kept, dim)."""
    kept = KEPT.get()
    if kept is None or kept.running or torch.compiler.is_compiling():
        return None
    kept.running.append(module)
    return (inputs[0].flatten(0, 1).index_select(0, kept.places).unsqueeze(0), *inputs[1:])


def put_back(module: nn.Module, _: tuple[Any, ...], output: Any) -> Any:
    """Put the kept tokens' results back, with zeros for the others: (1, kept, dim) -> (rows, tokens, dim)."""
    kept = KEPT.get()
    if kept is None or kept.running != [module]:
        return None
    kept.running.clear()
    first = output if isinstance(output, Tensor) else output[0]
    whole = first.new_zeros(kept.shape.numel(), first.shape[-1]).index_copy(0, kept.places, first.flatten(0, -2))
    whole = whole.unflatten(0, kept.shape)
    return whole if isinstance(output, Tensor) else (whole, *output[1:])
