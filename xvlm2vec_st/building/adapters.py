"""LoRA and DoRA adapters of the language model: configure, read, rename, load or keep them."""

import re
from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from transformers import PreTrainedModel

from xvlm2vec_st.families.loading import refuse_misfits
from xvlm2vec_st.families.table import FAMILIES
from xvlm2vec_st.utils.modules import transformer_of
from xvlm2vec_st.utils.peft_version import check_peft

# Rules that turn an adapter's module names into those of the headless model; the first best fit is used.
LAYOUTS = (
    ("^", ""),  # trained on the headless model, or, for phi3_v, on any model
    (r"^model\.", ""),  # on the class with the language model head
    (r"^language_model\.model\.", "language_model."),  # the same for LLaVA, before transformers 4.52
    (r"^model\.(?=layers\.)", "language_model."),  # the same for Qwen-VL, before transformers 4.52
)


def lora_config(
    family: str | SentenceTransformer,
    *,
    rank: int = 16,
    alpha: int = 32,
    dropout: float = 0.0,
    dora: bool = False,
    vision: bool = False,
) -> LoraConfig:
    """A peft configuration for every linear layer of a language model.

    Args:
        family: the model; or the `config.model_type` of one of `families.table`.
        rank: rank of the update; it is scaled by `alpha / rank`.
        alpha: see `rank`.
        dropout: dropout on the adapter's input.
        dora: weight-decomposed LoRA, as in VLM2Vec's adapters.
        vision: adapt the linear layers of the vision tower's blocks too.

    Returns:
        A `peft.LoraConfig`, for `SentenceTransformer.add_adapter`.

    Raises:
        ValueError: the family has no preset, and no model is given to find the layers in; `vision` for a family without
            a preset; the installed transformers and peft do not work together.

    >>> lora_config("llava", rank=8).r
    8
    """
    check_peft("lora_config")
    name = family if isinstance(family, str) else str(transformer_of(family).config.model_type)
    targets: str | list[str]
    if name in FAMILIES:
        entry = FAMILIES[name]
        # Patterns of whole module names: `q_proj` alone would also match the vision tower.
        targets = f"({entry.lora})|({entry.vision_lora})" if vision else entry.lora
    elif isinstance(family, str) or vision:
        raise ValueError(
            f"no LoRA preset for {name!r}{' with vision' if vision else ''}; there is one for {', '.join(FAMILIES)}. "
            "Pass the model, to adapt its language model, or build a peft.LoraConfig with your own target_modules"
        )
    else:
        targets = language_model_linears(transformer_of(family).model)
    return LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, use_dora=dora, target_modules=targets)


def language_model_linears(model: nn.Module) -> list[str]:
    """The names of the linear layers in the language model's blocks, found by their class.

    Raises:
        ValueError: the model has no language model, or no linear layer in its blocks.
    """
    assert isinstance(model, PreTrainedModel)
    decoder = model.get_decoder()
    prefix = next((name for name, module in model.named_modules() if module is decoder and name), None)
    blocks = re.compile(rf"{re.escape(prefix or '')}\.(layers|blocks|h)\.\d+\.")
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and blocks.match(name)]
    if prefix is None or not names:
        raise ValueError(
            f"a {model.config.model_type} has no language model whose layers could be found; build a peft.LoraConfig "
            "with your own target_modules"
        )
    return names


@dataclass(frozen=True)
class Adapter:
    """LoRA or DoRA weights under the module names of a model, without peft's prefix.

    Attributes:
        config: peft's configuration.
        weights: the adapter's weights.
        base: parameters of the model itself that were trained or stored with the adapter: biases (peft's `bias`),
            and embeddings that have a LoRA.
    """

    config: LoraConfig
    weights: dict[str, Tensor]
    base: dict[str, Tensor]


def module_of(key: str) -> str:
    """The module that a key of an adapter belongs to.

    >>> module_of("layers.0.q_proj.lora_A.weight"), module_of("norm.weight")
    ('layers.0.q_proj', 'norm')
    """
    return key.split(".lora_")[0] if ".lora_" in key else key.rpartition(".")[0]


def fitting_layout(keys: Collection[str], modules: Collection[str]) -> tuple[str, str]:
    """The rule of `LAYOUTS` under which most keys match a module.

    >>> fitting_layout(["model.layers.0.lora_A.weight"], {"layers.0"})
    ('^model\\\\.', '')
    """

    def misfits(layout: tuple[str, str]) -> int:
        return sum(module_of(re.sub(*layout, key)) not in modules for key in keys)

    return min(LAYOUTS, key=misfits)


def read_adapter(name: str, model: nn.Module) -> Adapter:
    """Read an adapter, and rename its keys for `model`. Weights of the head are left out.

    Raises:
        ValueError: it is neither LoRA nor DoRA; its file is truncated; keys match no module.
    """
    config = PeftConfig.from_pretrained(name)
    if not isinstance(config, LoraConfig):
        raise ValueError(f"the adapter {name} is {config.peft_type}; only LORA (and DoRA) is supported")
    for setting in ("trainable_token_indices", "target_parameters", "layer_replication"):
        if getattr(config, setting, None):
            raise ValueError(
                f"the adapter {name} has {setting}, which is not supported; merge it with peft, and build the "
                "merged checkpoint"
            )
    try:
        stored = load_peft_weights(name, device="cpu")
    except SafetensorError as error:
        raise ValueError(f"the adapter {name} cannot be read ({error}): it is truncated; download it again") from error
    weights = {key.removeprefix("base_model.model."): value for key, value in stored.items()}
    weights = {key: value for key, value in weights.items() if "lm_head" not in key.split(".")}
    modules = dict(model.named_modules())
    layout = fitting_layout(weights, modules)
    weights = {re.sub(*layout, key): value for key, value in weights.items()}
    base_keys = {key for key in weights if ".base_layer." in key}
    if config.bias != "none":
        base_keys |= {key for key in weights if key.endswith(".bias") and ".lora_" not in key}
    base = {key.replace(".base_layer.", "."): weights.pop(key) for key in base_keys}
    refuse_misfits(f"the adapter {name}", {"unexpected": [k for k in base if module_of(k) not in modules]})
    refuse_misfits(f"the adapter {name}", {"unexpected": [k for k in weights if module_of(k) not in modules]})
    adapted = {module_of(key) for key in weights if ".lora_" in key}
    targets = {key for key, module in modules.items() if isinstance(module, nn.Linear) and is_target(config, key)}
    return Adapter(
        replace(
            config,
            task_type=None,  # else peft expects a model that generates
            bias="none",  # biases are in `base`
            target_modules=sorted(adapted | targets),
            exclude_modules=None,
            layers_to_transform=None,
            layers_pattern=None,
            rank_pattern={re.sub(*layout, key): value for key, value in (config.rank_pattern or {}).items()},
            alpha_pattern={re.sub(*layout, key): value for key, value in (config.alpha_pattern or {}).items()},
        ),
        weights,
        base,
    )


def set_base_parameters(adapter: Adapter, name: str, model: nn.Module) -> None:
    """Copy the adapter's base parameters into the model.

    Raises:
        ValueError: the model has no such parameter, or one of another shape.
    """
    parameters = dict(model.named_parameters())
    differ = {
        f"{key} {list(value.shape)} not {list(parameters[key].shape)}"
        for key, value in adapter.base.items()
        if key in parameters and parameters[key].shape != value.shape
    }
    refuse_misfits(
        f"the adapter {name}",
        {"unexpected": adapter.base.keys() - parameters.keys(), "of another shape": differ},
    )
    with torch.no_grad():
        for key, value in adapter.base.items():
            parameters[key].copy_(value)


def is_target(config: LoraConfig, module: str) -> bool:
    """Whether the adapter applies to a module, named with or without the `model.` of models with a head."""
    return any(bool(check_target_module_exists(config, prefix + module)) for prefix in ("", "model."))


def load_adapter_weights(adapter: Adapter, name: str, model: nn.Module) -> None:
    """Load the adapter's weights into a model that has an untrained adapter of the same configuration.

    Raises:
        ValueError: keys match no layer; layers get no weights; the rank differs.
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
    # transformers and peft rename keys while loading; a weight that is lost would stay at its initial value.
    lost = [key for key, value in adapter.weights.items() if not torch.equal(after[key], value.to(after[key]))]
    refuse_misfits(f"the adapter {name}", {"not loaded by peft": lost})


def adapter_states(model: nn.Module) -> dict[str, Tensor]:
    """The model's adapter weights, without peft's prefix."""
    states = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {key.removeprefix("base_model.model."): value for key, value in states.items()}


def attach_adapter(model: PreTrainedModel, name: str) -> PreTrainedModel:
    """Attach an adapter to the model; it is saved beside the weights, as an adapter of the base.

    Raises:
        ValueError: see `read_adapter` and `load_adapter_weights`; DoRA on a family whose magnitudes transformers
            drops; the adapter holds base parameters.
    """
    adapter = read_adapter(name, model)
    if adapter.config.use_dora and model.config.model_type != "phi3_v":
        raise ValueError(
            f"the adapter {name} is DoRA, whose magnitudes transformers drops when it loads a "
            f"{model.config.model_type} with an adapter; pass keep_adapter=False"
        )
    if adapter.base:
        raise ValueError(
            f"the adapter {name} holds {len(adapter.base)} parameters of the base ({min(adapter.base)}), which a "
            "kept adapter cannot change; pass keep_adapter=False"
        )
    model.add_adapter(adapter.config)
    load_adapter_weights(adapter, name, model)
    return model
