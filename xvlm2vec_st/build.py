"""From an LVLM checkpoint, perhaps with an adapter, to a sentence-transformers folder."""

import os
import re
import shutil
from collections.abc import Collection
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

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
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Transformer
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import find_adapter_config_file

from xvlm2vec_st.families import embedder_modules, pin_backend, refuse_misfits
from xvlm2vec_st.save import save_embedder

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

# How adapters' module names become those of the headless model that embeds, the first that fits best.
LAYOUTS = (
    ("^", ""),  # trained on the headless model, or, for phi3_v, on any
    (r"^model\.", ""),  # on the class with the language model head
    (r"^language_model\.model\.", "language_model."),  # the same for LLaVA, before transformers 4.52
    (r"^model\.(?=layers\.)", "language_model."),  # the same for Qwen-VL, before transformers 4.52
)

CARD = """---
library_name: sentence-transformers
pipeline_tag: feature-extraction
tags: [sentence-transformers, sentence-similarity, feature-extraction, multimodal]
{front}---
# {title}

Made from {made_from}. Texts, images, or both, to a vector of {dim} dimensions: the state of the last token,
normalised.
{rest}
```python
{needs}from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{title}")
model.encode(["a text", {{"image": "picture.jpg", "text": "a text about it"}}])
```

{versions}.
"""


def build(
    base: str | Path,
    out: str | Path,
    *,
    adapter: str | Path | None = None,
    keep_adapter: bool = False,
    num_crops: int | None = None,
    dtype: str | None = None,
    template: str | Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Write `base` as a folder that sentence-transformers loads; nothing half-written stays.

    Args:
        base: an LVLM checkpoint or an adapter's, folder or Hub id.
        out: the new folder.
        adapter: LoRA or DoRA, folder or Hub id; merged in fp32 (4 bytes a parameter of memory).
        keep_adapter: store the adapter, not the merged weights; the base is then loaded from where
            it lies now.
        num_crops: for phi3_v, tiles a picture at most.
        dtype: `bf16`, `fp16` or `fp32`; default: the checkpoint's.
        template: a Jinja chat template's file, or a name of `templates.FILES`; default: the family's.
        overwrite: replace `out`.

    Raises:
        ValueError: `out` is not empty; weights or adapter do not fit; an argument is out of range
            or not for this family.
    """
    out = Path(out)
    check_arguments(base, out, dtype=dtype, num_crops=num_crops, overwrite=overwrite)
    base, adapter = base_and_adapter(str(base), None if adapter is None else str(adapter))
    check_adapter_choice(adapter, keep=keep_adapter, dtype=dtype)
    if Path(base).is_dir():
        base = str(Path(base).resolve())  # a kept adapter names it
    load_dtype = torch.float32 if adapter and not keep_adapter else DTYPES.get(dtype or "", "auto")
    modules = embedder_modules(base, template=template, model_kwargs={"dtype": load_dtype})
    body = modules[0]
    if num_crops is not None:
        set_num_crops(body, num_crops)
    if adapter:
        body.model = keep(body.model, adapter) if keep_adapter else merge(body.model, adapter)
    if adapter and not keep_adapter:
        cast(body.model, DTYPES[dtype] if dtype else AutoConfig.from_pretrained(base).dtype or torch.float32)
    model = SentenceTransformer(modules=modules, device="cpu")
    card = model_card(model, out.name, base, adapter, kept=keep_adapter)
    write_folder(model, card, out)
    return out


def check_arguments(
    base: str | Path, out: Path, *, dtype: str | None, num_crops: int | None, overwrite: bool
) -> None:
    """Refuse what can be seen without loading anything.

    Raises:
        ValueError: see `build`.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not overwrite:
        raise ValueError(f"{out} exists and is not empty; choose another OUT, or pass --overwrite")
    if Path(base).resolve() == out.resolve():
        raise ValueError(f"OUT is BASE ({out}); choose another OUT")
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; pass one of {', '.join(DTYPES)}")
    if num_crops is not None and num_crops < 1:
        raise ValueError(f"num_crops is {num_crops}; pass 1 or more (4 and 16 are published)")


def check_adapter_choice(adapter: str | None, *, keep: bool, dtype: str | None) -> None:
    """Refuse to keep an adapter that is not there, or with another dtype than the base's.

    Raises:
        ValueError: see `build`.
    """
    if keep and not adapter:
        raise ValueError("--keep-adapter without an adapter; pass --adapter PATH, or leave it out")
    if keep and dtype:
        raise ValueError(
            f"dtype {dtype} with --keep-adapter: the weights stay in the base's files; leave one out"
        )


def base_and_adapter(base: str, adapter: str | None) -> tuple[str, str | None]:
    """Where `base` is itself an adapter: the base that it names, and it.

    Raises:
        ValueError: two adapters, or an adapter that names no base.
    """
    if find_adapter_config_file(base) is None:
        return base, adapter
    named = PeftConfig.from_pretrained(base).base_model_name_or_path
    if adapter is not None or not named:
        raise ValueError(
            f"{base} is an adapter (of {named or 'a base that it does not name'}); pass the base as BASE, "
            f"and --adapter {base}"
        )
    return named, base


def set_num_crops(body: Transformer, num_crops: int) -> None:
    """Tiles a picture at most, stored with the processor.

    Raises:
        ValueError: the family's pictures are not tiled by a number.
    """
    images = body.processor.image_processor
    if not hasattr(images, "num_crops"):
        raise ValueError(f"num_crops is for phi3_v; a {body.config.model_type} has none, leave it out")
    images.num_crops = num_crops


@dataclass(frozen=True)
class Adapter:
    """LoRA or DoRA weights by the names of the model that they are for, without peft's prefix."""

    config: LoraConfig
    weights: dict[str, Tensor]


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
    refuse_misfits(f"the adapter {name}", {"unexpected": [k for k in weights if module_of(k) not in modules]})
    holders = {module_of(key) for key in weights if ".lora_" in key}
    named = {key for key, module in modules.items() if isinstance(module, nn.Linear) and targets(config, key)}
    return Adapter(
        replace(
            config,
            task_type=None,  # else peft wants a model that generates
            target_modules=holders | named,
            exclude_modules=None,
            layers_to_transform=None,
            layers_pattern=None,
            rank_pattern={re.sub(*layout, key): value for key, value in config.rank_pattern.items()},
            alpha_pattern={re.sub(*layout, key): value for key, value in config.alpha_pattern.items()},
        ),
        weights,
    )


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
    model.add_adapter(adapter.config)
    put(adapter, name, model)
    return model


def cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Parameters to `dtype`; buffers, rotary frequencies among them, stay as they are."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def model_card(model: SentenceTransformer, title: str, base: str, adapter: str | None, *, kept: bool) -> str:
    """README.md of the folder; local folders by their last name only."""
    names = [name for name in (base, adapter) if name]
    said = [f"`{Path(name).resolve().name if Path(name).exists() else name}`" for name in names]
    made_from = said[0] + (f" with the adapter {said[1]}, {'kept' if kept else 'merged'}" if adapter else "")
    phi3v = model[0].config.model_type == "phi3_v"
    rest = "\nThe chat template in this folder is part of the model: pictures, each on a line, then the text."
    if kept:
        rest += "\nThe weights are the base's: it must stay where adapter_config.json says."
    return CARD.format(
        front="" if Path(base).exists() else f"base_model: {base}\n",
        title=title,
        made_from=made_from,
        dim=model.get_embedding_dimension(),
        rest=rest + "\n",
        needs="import xvlm2vec_st  # Phi-3.5-vision, which transformers lacks\n" if phi3v else "",
        versions=", ".join(f"{lib} {version(lib)}" for lib in ("sentence-transformers", "transformers")),
    )


def write_folder(model: SentenceTransformer, card: str, out: Path) -> None:
    """Save into a hidden folder beside `out`, then rename it: `out` is whole, or as it was."""
    work = out.with_name(f".{out.name}.{os.getpid()}.partial")
    old = work.with_suffix(".old")
    try:
        save_embedder(model, work)
        pin_backend(work, model[0])
        (work / "README.md").write_text(card, "utf-8")
        if out.exists():
            out.rename(old)
        work.rename(out)
    finally:
        if old.exists() and not out.exists():
            old.rename(out)
        shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
