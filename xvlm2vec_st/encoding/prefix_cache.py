"""Caches for the branched route: prefixes write them once, branches read them.

transformers' own cache layers keep the states of one sequence per row, copy linear-attention states in place, which
autograd refuses, and drop what lies outside a sliding window. The layers here keep everything, assign instead of
copying, and select the prefix of each branch while a layer runs, so that the repeated states of one layer are in
memory, not those of all layers.

Sources: transformers 5.23, cache_utils.py (`DynamicLayer`, `LinearAttentionLayer`).
"""

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.cache_utils import (
    DummyLayer,
    DynamicIndexedLayer,
    DynamicLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)


class PrefixAttention(DynamicLayer):
    """Keys and values of the prefixes, (prefixes, heads, tokens, dim), also beyond a sliding window."""

    def __init__(self, is_sliding: bool) -> None:
        super().__init__()
        self.is_sliding = is_sliding

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Assign the states; gradient checkpointing may compute them twice."""
        self.keys, self.values, self.is_initialized = key_states, value_states, True
        return key_states, value_states

    def get_seq_length(self) -> int:
        """0: a prefix starts its sequence, also when gradient checkpointing computes it again."""
        return 0


class BranchAttention(DynamicLayer):
    """The keys and values that each branch sees: those of its prefix, then its own. Keeps nothing."""

    def __init__(self, prefix: PrefixAttention, owner: Tensor) -> None:
        super().__init__()
        self.is_sliding, self.owner = prefix.is_sliding, owner
        self.keys, self.values, self.is_initialized = prefix.keys, prefix.values, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """(branches, heads, prefix tokens + branch tokens, dim), twice."""
        assert self.keys is not None and self.values is not None
        keys = torch.cat((self.keys.index_select(0, self.owner), key_states), dim=-2)
        return keys, torch.cat((self.values.index_select(0, self.owner), value_states), dim=-2)


class PrefixStates(LinearAttentionLayer):
    """Convolution and recurrent states at the end of each prefix."""

    def update_conv_state(
        self, conv_states: Tensor, state_idx: int = 0, conv_kernel_size: int | None = None, **kwargs: Any
    ) -> Tensor:
        """Keep the last `conv_kernel_size` states; returns all, padded to that size."""
        size = conv_states.shape[-1] if conv_kernel_size is None else conv_kernel_size
        padded = torch.nn.functional.pad(conv_states, (max(size - conv_states.shape[-1], 0), 0))
        self.conv_states[state_idx] = padded[..., -size:]
        return padded

    def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **kwargs: Any) -> Tensor:
        """Assign the states, without a copy."""
        self.recurrent_states[state_idx] = recurrent_states
        return recurrent_states


class BranchStates(LinearAttentionLayer):
    """The states at which each branch starts. Keeps nothing."""

    def __init__(self, prefix: PrefixStates, owner: Tensor) -> None:
        super().__init__(prefix.number_of_states)
        self.conv_states = {n: select(state, owner) for n, state in prefix.conv_states.items()}
        self.recurrent_states = {n: select(state, owner) for n, state in prefix.recurrent_states.items()}
        self.has_previous_state = dict.fromkeys(self.conv_states, True)
        self.record_past = True  # transformers has a shorter way for branches of one token, which copies in place

    def update_conv_state(
        self, conv_states: Tensor, state_idx: int = 0, conv_kernel_size: int | None = None, **kwargs: Any
    ) -> Tensor:
        """The prefix' last states, then the branch's."""
        before = self.conv_states[state_idx]
        return conv_states if before is None else torch.cat((before, conv_states), dim=-1)

    def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **kwargs: Any) -> Tensor:
        """Pass the states on."""
        return recurrent_states


def select(states: Tensor | None, owner: Tensor) -> Tensor | None:
    """The states of each branch's prefix; None stays None."""
    return None if states is None else states.index_select(0, owner)


def build_prefix_cache(text: PreTrainedConfig) -> Cache:
    """An empty cache for the prefixes of a language model.

    Raises:
        ValueError: a layer keeps states that cannot be handed to branches.

    >>> from transformers import LlamaConfig
    >>> len(build_prefix_cache(LlamaConfig(num_hidden_layers=2)))
    2
    """
    layers: list[Any] = []
    for layer in DynamicCache(config=text).layers:
        if isinstance(layer, DummyLayer):
            layers.append(layer)
        elif type(layer) is LinearAttentionLayer:
            layers.append(PrefixStates(layer.number_of_states))
        elif isinstance(layer, DynamicIndexedLayer | LinearAttentionCacheLayerMixin):
            raise ValueError(f"no prefix cache for a layer with a {type(layer).__name__}")
        else:
            layers.append(PrefixAttention(getattr(layer, "is_sliding", False)))
    if not any(isinstance(layer, PrefixAttention) for layer in layers):
        raise ValueError("no prefix cache for a language model without an attention layer")
    return Cache(layers=layers)


def branch_cache(prefixes: Cache, owner: Tensor) -> Cache:
    """The cache that branches read; `owner`, (branches,), is the prefix of each.

    It holds references to the states of `prefixes`: gradients reach them.
    """
    kinds: dict[type, Any] = {PrefixAttention: BranchAttention, PrefixStates: BranchStates}
    layers = [kinds[type(layer)](layer, owner) if type(layer) in kinds else layer for layer in prefixes.layers]
    return Cache(layers=layers)
