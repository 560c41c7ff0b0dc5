"""The routes of a batch whose rows share images: packed rows, branches of a cache, or the vision tower alone.

Each function takes the features of `LVLM.preprocess` and returns token states, (rows, tokens, dim). They equal those
of the plain route, row by row.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from xvlm2vec_st.encoding.branching import BranchPlan, branch_chunks, plan_branches, take
from xvlm2vec_st.encoding.packing import (
    Plan,
    attention_mask,
    images_of_groups,
    mark_slots,
    pack,
    plan_rows,
    repeat_per_stretch,
    states_at,
    unpack,
)
from xvlm2vec_st.encoding.prefix_cache import branch_cache, build_prefix_cache
from xvlm2vec_st.encoding.token_rows import TYPES

# A packed row's mask has width x width entries: 64 MiB of fp32 at this width.
LONGEST_STRETCH = 4096
# Tokens of the branches that run at once, their prefixes included: it bounds memory.
BRANCH_TOKENS = 1 << 17
# Per-token values beside `input_ids`.
PER_TOKEN = ("attention_mask", *TYPES)
# Per-row values of a batch that shares; all other tensors belong to its images.
PER_ROW = ("input_ids", *PER_TOKEN, "image_group", "shared_tokens")
# Which tokens will be pooled: (rows, tokens), bool. Without it, all states are wanted.
POOLED = "pooled_tokens"

Features = dict[str, Any]
# From features to token states, by sentence-transformers' own forward.
Forward = Callable[[Features], Tensor]


def packed_states(model: Any, features: Features, forward: Forward, pad: int) -> Tensor:
    """Run prefixes and branches in packed rows, under a mask of their own: see `encoding.packing`.

    Args:
        model: the transformers model.
        features: features of rows that share.
        forward: the plain forward.
        pad: id of the padding token.
    """
    plan = packed_plan(model.config.get_text_config(), features)
    packed = {key: value for key, value in features.items() if key not in (*PER_ROW, POOLED)}
    packed["input_ids"] = pack(plan, features["input_ids"], pad)
    packed |= {key: pack(plan, features[key]) for key in PER_TOKEN[1:] if key in features}
    packed["position_ids"] = pack(plan, positions(model, features))
    packed["attention_mask"] = attention_mask(plan, cast(torch.dtype, model.dtype))
    if POOLED in features:
        marked = mark_slots(plan.slot, features[POOLED], plan.stretch.numel())
        packed[POOLED] = marked.view(plan.stretch.shape)
    counts = image_tokens(model.config, features)
    return unpack(plan, forward(encode_images(model, packed, plan.groups, counts)))


def branched_states(model: Any, features: Features, forward: Forward, pad: int) -> Tensor:
    """Run the prefixes once, with a cache, and the branches on top of it: see `encoding.branching`.

    Args:
        model: the transformers model.
        features: features of rows that share.
        forward: the plain forward.
        pad: id of the padding token.
    """
    plan = plan_branches(features["attention_mask"], features["image_group"], features["shared_tokens"])
    places = positions(model, features)
    cache = build_prefix_cache(model.config.get_text_config())
    in_prefix, in_branch = pooled_places(plan, features)
    with checkpoint_with_cache(model):
        first = {key: value for key, value in features.items() if key not in (*PER_ROW, POOLED)}
        first |= token_features(features, places, plan.prefix, pad) | in_prefix
        first |= {"past_key_values": cache, "use_cache": False}
        states = [forward(first).flatten(0, 1)]
        for chunk in branch_chunks(plan, BRANCH_TOKENS):
            given = branch_features(features, places, plan, chunk, pad, cache)
            given |= {key: value[chunk] for key, value in in_branch.items()}
            states.append(forward(given).flatten(0, 1))
    return states_at(plan.slot, torch.cat(states))


def vision_states(model: Any, features: Features, forward: Forward) -> Tensor:
    """Run the vision tower once per set of images, and the language model on every row.

    Args:
        model: the transformers model.
        features: features of rows that share.
        forward: the plain forward.
    """
    rows = {key: value for key, value in features.items() if key not in ("image_group", "shared_tokens")}
    if hasattr(model, "get_rope_index"):
        rows["position_ids"] = positions(model, features)
    groups = tuple(group for group in features["image_group"].tolist() if group >= 0)
    return forward(encode_images(model, rows, groups, image_tokens(model.config, features)))


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 has sharded the model. Its processes must then run each layer equally often.

    The number of branched forwards depends on a process' rows; one that ran fewer would leave the others waiting.
    """
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def packed_plan(text: PreTrainedConfig, features: Features) -> Plan:
    """Plan how a batch is packed. `text` is the configuration of the language model."""
    return plan_rows(
        features["attention_mask"],
        features["image_group"],
        features["shared_tokens"],
        limit=min(text.max_position_embeddings, LONGEST_STRETCH),
        boundary=getattr(text, "original_max_position_embeddings", None),
    )


def positions(model: Any, features: Features) -> Tensor:
    """Positions of a batch's tokens: (rows, tokens), or (3, rows, tokens) for families with M-RoPE."""
    mask = features["attention_mask"]
    if not hasattr(model, "get_rope_index"):
        return (mask.cumsum(-1) - 1).clamp(min=0)
    grids = features["image_grid_thw"].split(images_of_groups(features))
    row_grids = [grids[group] for group in features["image_group"].tolist() if group >= 0]
    given = {"image_grid_thw": torch.cat(row_grids), "mm_token_type_ids": features.get("mm_token_type_ids")}
    known = signature(model.get_rope_index).parameters
    given = {key: value for key, value in given.items() if key in known}
    return cast(Tensor, model.get_rope_index(features["input_ids"], attention_mask=mask, **given)[0])


def image_tokens(config: PreTrainedConfig, features: Features) -> list[int]:
    """The number of image tokens of each group of rows."""
    if "mm_token_type_ids" in features:
        of_images = features["mm_token_type_ids"] == 1
    else:
        image = getattr(config, "image_token_id", None)
        of_images = features["input_ids"] == (config.image_token_index if image is None else image)
    counts = of_images.sum(-1).tolist()
    by_group = dict(zip(features["image_group"].tolist(), counts, strict=True))
    return [count for group, count in sorted(by_group.items()) if group >= 0]


def encode_images(model: Any, features: Features, groups: tuple[int, ...], counts: list[int]) -> Features:
    """The features with encoded images instead of pixels, one set per entry of `groups`: see `repeat_per_stretch`."""
    images = image_tensors(model, features)
    encoded = model.get_image_features(**images, return_dict=True)
    rest = {key: value for key, value in features.items() if key not in images}
    return rest | {"mm_encoder_outputs": {"image": repeat_per_stretch(encoded, groups, counts)}}


def image_tensors(model: Any, features: Features) -> Features:
    """The tensors that the vision tower takes."""
    parameters = signature(model.get_image_features).parameters
    return {key: features[key] for key in parameters if isinstance(features.get(key), Tensor)}


def token_features(features: Features, places: Tensor, chosen: Tensor, pad: int) -> Features:
    """Ids, types, positions and mask of the tokens at `chosen`."""
    taken = {key: take(features[key], chosen) for key in PER_TOKEN[1:] if key in features}
    taken |= {"input_ids": take(features["input_ids"], chosen, pad), "position_ids": take(places, chosen)}
    return taken | {"attention_mask": (chosen >= 0).long()}


def pooled_places(plan: BranchPlan, features: Features) -> tuple[Features, Features]:
    """Which tokens of the prefixes, and which of the branches, will be pooled; nothing where all are wanted."""
    if POOLED not in features:
        return {}, {}
    sizes = plan.prefix.numel(), plan.branch.numel()
    prefix, branch = mark_slots(plan.slot, features[POOLED], sum(sizes)).split(sizes)
    return {POOLED: prefix.view(plan.prefix.shape)}, {POOLED: branch.view(plan.branch.shape)}


def branch_features(
    features: Features, places: Tensor, plan: BranchPlan, chunk: slice, pad: int, prefixes: Any
) -> Features:
    """The features of some branches. Their mask covers the prefix too: (branches, prefix + branch tokens)."""
    owner = plan.owner[chunk]
    taken = token_features(features, places, plan.branch[chunk], pad)
    taken["attention_mask"] = torch.cat(((plan.prefix[owner] >= 0).long(), taken["attention_mask"]), dim=-1)
    cache = {"past_key_values": branch_cache(prefixes, owner), "use_cache": False}
    return {"modality": features.get("modality", "text")} | taken | cache


@contextmanager
def checkpoint_with_cache(model: nn.Module) -> Iterator[None]:
    """Let gradient checkpointing keep the cache.

    transformers 5.23 drops a cache from a checkpointed layer (modeling_layers.py), because its own cache layers grow
    when a layer is computed again; ours do not. The cache's states are no arguments of the layer, so that gradients
    reach them only without `use_reentrant`.
    """
    layers: list[Any] = [
        module
        for module in model.modules()
        if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing
    ]
    before = [(layer, layer._gradient_checkpointing_func) for layer in layers]
    for layer in layers:
        layer._can_checkpoint_with_cache = True
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
    try:
        yield
    finally:
        for layer, function in before:
            del layer._can_checkpoint_with_cache
            layer._gradient_checkpointing_func = function
