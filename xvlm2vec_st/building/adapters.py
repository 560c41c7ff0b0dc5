"""LoRA and DoRA adapters of the language model: read, renamed, merged into a model or kept beside it."""

import re
from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel

from xvlm2vec_st.families.loading import refuse_misfits

# How adapters' module names become those of the headless model that embeds, the first that fits best.
LAYOUTS = (
    ("^", ""),  # trained on the headless model, or, for phi3_v, on any
    (r"^model\.", ""),  # on the class with the language model head
    (r"^language_model\.model\.", "language_model."),  # the same for LLaVA, before transformers 4.52
    (r"^model\.(?=layers\.)", "language_model."),  # the same for Qwen-VL, before transformers 4.52
)


@dataclass(frozen=True)
class Adapter:
    """LoRA or DoRA weights by the names of the model that they are for, without peft's prefix.

    `base`: parameters of the model itself that were trained or stored with it: biases (peft's `bias`), and
    the embeddings where they have a LoRA of their own.
    """

    config: LoraConfig
    weights: dict[str, Tensor]
    base: dict[str, Tensor]


def module_of(key: str) -> str:
    """The module that an adapter's key is for.

    >>> module_of("layers.0.q_proj.lora_A.weight"), module_of("norm.weight")
    ('layers.0.q_proj', 'norm')
    """
    return key.split(".lora_")[0] if ".lora_" in key else key.rpartition(".")[0]


def fitting_layout(keys: Collection[str], modules: Collection[str]) -> tuple[str, str]:
    """The rule of `LAYOUTS` under which the most keys find their module.

    >>> fitting_layout(["model.layers.0.lora_A.weight"], {"layers.0"})
    ('^model\\\\.', '')
    """

    def misfits(layout: tuple[str, str]) -> int:
        return sum(module_of(re.sub(*layout, key)) not in modules for key in keys)

    return min(LAYOUTS, key=misfits)


def read_adapter(name: str, model: nn.Module) -> Adapter:
    """Read an adapter and rename its keys for `model`; what is for the head is left out.

    Raises:
        ValueError: it is neither LoRA nor DoRA, its file is cut short, or keys fit nothing.
    """
    config = PeftConfig.from_pretrained(name)
    if not isinstance(config, LoraConfig):
        raise ValueError(f"the adapter {name} is {config.peft_type}; only LORA (and DoRA) can be built in")
    for setting in ("trainable_token_indices", "target_parameters", "layer_replication"):
        if getattr(config, setting, None):
            raise ValueError(
                f"the adapter {name} has {setting}, which cannot be built in; merge it with peft, and build "
                "the merged checkpoint"
            )
    try:
        read = load_peft_weights(name, device="cpu")
    except SafetensorError as error:
        raise ValueError(
            f"the adapter {name} cannot be read ({error}): it is cut short; download it again"
        ) from error
    weights = {key.removeprefix("base_model.model."): value for key, value in read.items()}
    weights = {key: value for key, value in weights.items() if "lm_head" not in key.split(".")}
    modules = dict(model.named_modules())
    layout = fitting_layout(weights, modules)
    weights = {re.sub(*layout, key): value for key, value in weights.items()}
    own = {key for key in weights if ".base_layer." in key}
    if config.bias != "none":
        own |= {key for key in weights if key.endswith(".bias") and ".lora_" not in key}
    base = {key.replace(".base_layer.", "."): weights.pop(key) for key in own}
    refuse_misfits(f"the adapter {name}", {"unexpected": [k for k in base if module_of(k) not in modules]})
    refuse_misfits(f"the adapter {name}", {"unexpected": [k for k in weights if module_of(k) not in modules]})
    holders = {module_of(key) for key in weights if ".lora_" in key}
    named = {key for key, module in modules.items() if isinstance(module, nn.Linear) and targets(config, key)}
    return Adapter(
        replace(
            config,
            task_type=None,  # else peft wants a model that generates
            bias="none",  # they are among the base's own parameters
            target_modules=holders | named,
            exclude_modules=None,
            layers_to_transform=None,
            layers_pattern=None,
            rank_pattern={re.sub(*layout, key): value for key, value in config.rank_pattern.items()},
            alpha_pattern={re.sub(*layout, key): value for key, value in config.alpha_pattern.items()},
        ),
        weights,
        base,
    )


def set_base(adapter: Adapter, name: str, model: nn.Module) -> None:
    """Give the model the parameters of its own that came with the adapter.

    Raises:
        ValueError: one that it does not have, or of another shape.
    """
    own = dict(model.named_parameters())
    differ = {
        f"{key} {list(value.shape)} not {list(own[key].shape)}"
        for key, value in adapter.base.items()
        if key in own and own[key].shape != value.shape
    }
    refuse_misfits(
        f"the adapter {name}", {"unexpected": adapter.base.keys() - own.keys(), "of another shape": differ}
    )
    with torch.no_grad():
        for key, value in adapter.base.items():
            own[key].copy_(value)


def targets(config: LoraConfig, module: str) -> bool:
    """Whether the adapter is for that module, named with or without the head's `model.`."""
    return any(bool(check_target_module_exists(config, prefix + module)) for prefix in ("", "model."))


def put(adapter: Adapter, name: str, model: nn.Module) -> None:
    """Give a model, adapted but not trained, the adapter's weights.

    Raises:
        ValueError: keys that fit nothing, layers that get none, another rank.
    """
    before = adapter_states(model)
    both = before.keys() & adapter.weights.keys()
    differ = [key for key in both if before[key].shape != adapter.weights[key].shape]
    refuse_misfits(
        f"the adapter {name}",
        {
            "missing": before.keys() - both,
            "unexpected": adapter.weights.keys() - both,
            "of another shape": {
                f"{key} {list(adapter.weights[key].shape)} not {list(before[key].shape)}" for key in differ
            },
        },
    )
    prefix = "base_model.model." if isinstance(model, PeftModel) else ""
    set_peft_model_state_dict(model, {prefix + key: value for key, value in adapter.weights.items()})
    after = adapter_states(model)
    # Hosts rename keys on the way in; a weight that did not arrive would stay at its start.
    lost = [
        key for key, value in adapter.weights.items() if not torch.equal(after[key], value.to(after[key]))
    ]
    refuse_misfits(f"the adapter {name}", {"not taken by peft": lost})


def adapter_states(model: nn.Module) -> dict[str, Tensor]:
    """The model's adapter weights, without peft's prefix."""
    states = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {key.removeprefix("base_model.model."): value for key, value in states.items()}


def merge(model: PreTrainedModel, name: str) -> PreTrainedModel:
    """The model with the adapter in its weights.

    Raises:
        ValueError: see `read_adapter` and `put`.
    """
    adapter = read_adapter(name, model)
    set_base(adapter, name, model)
    wrapped = get_peft_model(model, adapter.config)
    put(adapter, name, wrapped)
    return wrapped.merge_and_unload(safe_merge=True)


def keep(model: PreTrainedModel, name: str) -> PreTrainedModel:
    """The model with the adapter beside its weights, saved as an adapter of the base.

    Raises:
        ValueError: see `read_adapter` and `put`; DoRA on a family whose magnitudes stock loading drops.
    """
    adapter = read_adapter(name, model)
    if adapter.config.use_dora and model.config.model_type != "phi3_v":
        raise ValueError(
            f"the adapter {name} is DoRA, whose magnitudes transformers drops when it loads a "
            f"{model.config.model_type} with an adapter; leave --keep-adapter out"
        )
    if adapter.base:
        raise ValueError(
            f"the adapter {name} holds {len(adapter.base)} of the base's own parameters "
            f"({min(adapter.base)}), which a kept adapter cannot change; leave --keep-adapter out"
        )
    model.add_adapter(adapter.config)
    put(adapter, name, model)
    return model
