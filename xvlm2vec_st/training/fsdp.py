"""FSDP2 for sentence-transformers models: on CPUs too, and saved as a whole."""

import copy
import os

import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from transformers import TrainingArguments

from xvlm2vec_st.utils.modules import language_layers


def fsdp_requested() -> bool:
    """Whether `accelerate launch` or the training arguments request FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def shard_on_cpu(accelerator: Accelerator, args: TrainingArguments) -> None:
    """Make accelerate use FSDP2 on CPUs, where it silently falls back to DDP.

    FSDP2 itself runs on CPUs over gloo, but accelerate 1.15 leaves its plugin out of the state there. After this
    call, accelerate's own FSDP2 code runs, as on GPUs.
    """
    if fsdp_requested() and accelerator.state.distributed_type == DistributedType.MULTI_CPU:
        plugin = FullyShardedDataParallelPlugin(**(args.fsdp_plugin_args or {}))
        accelerator.state.fsdp_plugin = plugin
        # All instances of a state share these dictionaries.
        accelerator.state.distributed_type = DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def prepare_plugin(plugin: FullyShardedDataParallelPlugin, model: SentenceTransformer) -> None:
    """Check the FSDP settings, and read the decoder's layer class off the model.

    Only the decoder's layers are wrapped: a batch without images runs no vision block, and the other ranks would
    wait for a wrapped one.

    Raises:
        ValueError: FSDP1, which cannot mix frozen and trained parameters; loading on one process only, which
            leaves the teachers of the other processes empty.
    """
    if plugin.fsdp_version != 2:
        raise ValueError(
            "fsdp_version 1 cannot mix frozen and trained weights; set fsdp_version: 2 in the accelerate configuration"
        )
    if plugin.cpu_ram_efficient_loading:
        raise ValueError(
            "fsdp_cpu_ram_efficient_loading: true leaves the teacher empty in all processes but one; set it to false"
        )
    if not plugin.transformer_cls_names_to_wrap:
        plugin.transformer_cls_names_to_wrap = [decoder_layer_class(model)]


def decoder_layer_class(model: SentenceTransformer) -> str:
    """The class name of the language model's layers.

    Raises:
        ValueError: the model has no list of layers.
    """
    try:
        return type(language_layers(model)[0]).__name__
    except ValueError as error:
        raise ValueError(f"{error}; set fsdp_transformer_layer_cls_to_wrap in the accelerate configuration") from None


def meta_copy(model: SentenceTransformer) -> SentenceTransformer:
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


def load_states_into(model: SentenceTransformer, states: dict[str, Tensor]) -> SentenceTransformer:
    """Load states into a meta copy, in the dtypes that it had; returns the same object."""
    dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    model.load_state_dict({name: value.to(dtypes[name]) for name, value in states.items()}, assign=True)
    return model
