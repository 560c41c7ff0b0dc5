"""FSDP2 of a sentence-transformers model: on CPUs too, and saved whole."""

import copy
import os

import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from transformers import TrainingArguments


def asks_for_sharding() -> bool:
    """Whether `accelerate launch` or the training arguments ask for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def shard_on_cpu(accelerator: Accelerator, args: TrainingArguments) -> None:
    """Have accelerate shard where it would replicate without a word: on CPUs, which it knows DDP for only.

    FSDP2 itself runs on CPUs over gloo; accelerate leaves its plugin out of the state there. From here on
    its own FSDP2 code runs, the same as on GPUs.
    """
    if asks_for_sharding() and accelerator.state.distributed_type == DistributedType.MULTI_CPU:
        plugin = FullyShardedDataParallelPlugin(**(args.fsdp_plugin_args or {}))
        accelerator.state.fsdp_plugin = plugin
        # The two states are dictionaries that all their instances share.
        accelerator.state.distributed_type = DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def check_plugin(plugin: FullyShardedDataParallelPlugin) -> None:
    """Refuse settings of FSDP under which a distillation would go wrong.

    Raises:
        ValueError: FSDP1, which cannot mix frozen and trained parameters; loading on one process
            only, which leaves the teachers of the others empty.
    """
    if plugin.fsdp_version != 2:
        raise ValueError(
            "fsdp_version 1 cannot mix frozen and trained weights; set fsdp_version: 2, as in "
            "recipes/configs/fsdp2_*.yaml"
        )
    if plugin.cpu_ram_efficient_loading:
        raise ValueError(
            "fsdp_cpu_ram_efficient_loading: true leaves the teacher empty in all processes but one; "
            "set it false"
        )


def hollow(model: SentenceTransformer) -> SentenceTransformer:
    """A copy with the same modules, whose parameters and saved buffers take no memory."""
    saved = set(model.state_dict())
    memo: dict[int, object] = {}
    for parameter in model.parameters():
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for name, buffer in model.named_buffers():
        if name in saved:
            memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo)


def filled(model: SentenceTransformer, states: dict[str, Tensor]) -> SentenceTransformer:
    """A hollow model with these states, in the types it had; the same object."""
    types = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    model.load_state_dict({name: value.to(types[name]) for name, value in states.items()}, assign=True)
    return model
