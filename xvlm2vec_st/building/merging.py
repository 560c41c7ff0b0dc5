"""Merge an adapter into a model: layer by layer, each in fp32 while it is merged."""

import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any, cast

import torch
from peft import get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from xvlm2vec_st.building.adapters import Adapter, load_adapter_weights, read_adapter, set_base_parameters
from xvlm2vec_st.families.dtypes import cast_parameters


def merge_adapter(model: PreTrainedModel, name: str, dtype: torch.dtype) -> PreTrainedModel:
    """Merge an adapter into the model's weights.

    The result is bit by bit that of a model loaded and merged in fp32, and then cast. Above the weights, memory
    holds one layer in fp32 at a time.

    Args:
        model: the model, in a dtype that holds its weights without rounding.
        name: folder or Hub id of the adapter.
        dtype: of the merged weights.

    Raises:
        ValueError: see `read_adapter` and `load_adapter_weights`; merged weights are not numbers.

    Example::

        merge_adapter(AutoModel.from_pretrained("llava", dtype="auto"), "lora", torch.bfloat16)
    """
    adapter = read_adapter(name, model)
    widen_buffers(model)
    widen_replaced(model, adapter)
    set_base_parameters(adapter, name, model)
    wrapped = get_peft_model(model, adapter.config)
    load_adapter_weights(adapter, name, wrapped)
    merge_layers(wrapped, dtype)
    with warnings.catch_warnings():
        # peft 0.21 warns of each layer that is merged already; what it still does is to take its layers out.
        warnings.filterwarnings("ignore", "All adapters are already merged")
        merged = cast(PreTrainedModel, wrapped.merge_and_unload(safe_merge=True))
    cast_parameters(merged, dtype)
    for name in merged.config.sub_configs:
        if (part := getattr(merged.config, name)) is not None:
            part.dtype = dtype  # saving sets that of the whole
    return merged


def widen_buffers(model: nn.Module) -> None:
    """Cast the buffers that are saved to fp32, as if the model were loaded in it; they are small, and stay so."""
    saved = model.state_dict().keys()
    for name, buffer in model.named_buffers():
        if name in saved and buffer.is_floating_point():
            buffer.data = buffer.data.float()


def widen_replaced(model: nn.Module, adapter: Adapter) -> None:
    """Cast to fp32 what the adapter replaces as a whole: parameters of the base, and peft's `modules_to_save`."""
    parameters = dict(model.named_parameters())
    for key in adapter.base.keys() & parameters.keys():
        parameters[key].data = parameters[key].data.float()
    endings = tuple(adapter.config.modules_to_save or ())
    for name, module in model.named_modules():
        if endings and name.endswith(endings):
            module.float()


def merge_layers(wrapped: nn.Module, dtype: torch.dtype) -> None:
    """Merge every adapted layer: its weights are cast to fp32, merged by peft, and cast to `dtype`.

    Weights that several modules share stay in fp32: another adapted layer may add to them.
    """
    uses = Counter(id(parameter) for _, parameter in wrapped.named_parameters(remove_duplicate=False))
    for layer in adapted_layers(wrapped):
        before = {id(parameter): parameter.data for parameter in layer.parameters()}
        layer.float()
        layer.merge(safe_merge=True)
        for parameter in layer.get_base_layer().parameters():
            if uses[id(parameter)] == 1:
                narrow(parameter, before.get(id(parameter)), dtype)


def adapted_layers(wrapped: nn.Module) -> Iterator[Any]:
    """peft's layers, which are modules too, without those inside another one, which that one merges."""
    inside = "/"  # in no name
    for name, module in wrapped.named_modules():
        if isinstance(module, BaseTunerLayer) and not name.startswith(inside):
            inside = f"{name}."
            yield module


def narrow(parameter: nn.Parameter, before: torch.Tensor | None, dtype: torch.dtype) -> None:
    """Cast a merged parameter to `dtype`, in the memory that it had before if it fits there.

    safetensors maps a file into memory, and a new tensor would stand beside the file's pages. Written pages are the
    process's own (torch's `UntypedStorage.from_file`, not shared): the file does not change.
    """
    if before is not None and before.dtype == dtype and before.shape == parameter.shape:
        parameter.data = before.copy_(parameter.data)
    else:
        parameter.data = parameter.data.to(dtype)
