"""From an LVLM checkpoint, perhaps with an adapter, to a sentence-transformers folder."""

import math
import os
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import safe_open
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Transformer
from sentence_transformers.util import is_sentence_transformer_model
from torch import nn
from transformers import AutoConfig
from transformers.utils import find_adapter_config_file, is_peft_available

from xvlm2vec_st.building.trial import check_encodes
from xvlm2vec_st.families import templates
from xvlm2vec_st.families.loading import embedder_modules, pin_backend, without_bar, without_load_report
from xvlm2vec_st.families.template_limits import check_limits
from xvlm2vec_st.utils.folders import Destination, expanded, read_object
from xvlm2vec_st.utils.peft_version import check_peft

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

CARD = """---
library_name: sentence-transformers
pipeline_tag: feature-extraction
tags: [sentence-transformers, sentence-similarity, feature-extraction, multimodal]
{front}---
# {title}

Made from {made_from}. Texts, images, or both, to a vector of {dim} dimensions{pooled}
{rest}
```python
{needs}from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{title}")
model.encode(["a text", {{"image": "image.jpg", "text": "a text about it"}}])
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
        base: an LVLM checkpoint or an adapter's, folder or Hub id. What a sentence-transformers folder
            declares stays: its modules, prompts and template.
        out: the new folder.
        adapter: LoRA or DoRA, folder or Hub id; merged in fp32 (4 bytes a parameter of memory).
        keep_adapter: store the adapter, not the merged weights; the base is then loaded from where
            it lies now.
        num_crops: for phi3_v, tiles an image at most.
        dtype: `bf16`, `fp16` or `fp32`; default: the checkpoint's.
        template: a Jinja chat template's file, or a name of `templates.FILES`; default: the family's.
        overwrite: replace `out`.

    Raises:
        ValueError: `out` is not empty; weights or adapter do not fit; an argument is out of range
            or not for this family; what was built cannot encode a text, an image, or both.
    """
    out, base = expanded(out), os.path.expanduser(base)
    adapter = None if adapter is None else os.path.expanduser(adapter)
    place = Destination(out, overwrite=overwrite, command="build", option="OUT")
    check_arguments(base, place.out, dtype=dtype, num_crops=num_crops)
    settings = {"base": base, "adapter": adapter, "keep_adapter": keep_adapter, "num_crops": num_crops}
    settings |= {"dtype": dtype, "template": None if template is None else str(template)}
    with place.hold():
        local = [(name, path) for name, path in (("BASE", base), ("--adapter", adapter)) if is_folder(path)]
        if place.begin(settings, local):
            return out
        try:
            build_in(place, **settings)
        except BaseException:
            place.abandon()
            raise
    return out


def is_folder(name: str | None) -> bool:
    """Whether a model's name is that of a folder which is there."""
    return name is not None and os.path.isdir(name)


def build_in(
    place: Destination,
    *,
    base: str,
    adapter: str | None,
    keep_adapter: bool,
    num_crops: int | None,
    dtype: str | None,
    template: str | Path | None,
) -> None:
    """Build in the work folder, and move the result into place: see `build`."""
    base, adapter = base_and_adapter(base, adapter)
    check_adapter_choice(adapter, keep=keep_adapter, dtype=dtype)
    if Path(base).is_dir():
        base = str(Path(base).resolve())  # a kept adapter names it
    load_dtype = torch.float32 if adapter and not keep_adapter else DTYPES.get(dtype or "", "auto")
    if template is not None and str(template) not in templates.FILES:
        check_limits(templates.read_template(template), str(template))
    embedder = is_sentence_transformer_model(base)
    if embedder:
        model = load_embedder(base, load_dtype, template=template, keep_adapter=keep_adapter)
    else:
        modules = embedder_modules(base, template=template, model_kwargs={"dtype": load_dtype})
        model = SentenceTransformer(modules=modules, device="cpu")
    body = model[0]
    if embedder and template is None and body.processor.chat_template:
        check_limits(body.processor.chat_template, base)
    if num_crops is not None:
        set_num_crops(body, num_crops)
    if adapter:
        from xvlm2vec_st.building.adapters import keep, merge  # peft, which a checkpoint alone does not need

        body.model = keep(body.model, adapter) if keep_adapter else merge(body.model, adapter)
    if adapter and not keep_adapter:
        cast(body.model, DTYPES[dtype] if dtype else stored_dtype(base))
    card = model_card(model, place.out.name, base, adapter, kept=keep_adapter, embedder=embedder)
    write_folder(model, card, place, base)


def load_embedder(
    base: str, dtype: torch.dtype | str, *, template: str | Path | None, keep_adapter: bool
) -> SentenceTransformer:
    """A folder that sentence-transformers loads already, with all that its modules.json declares.

    Pooling, further modules, prompts and the chat template stay; `template` replaces the last.

    Raises:
        ValueError: an adapter to keep, which would name another base than the folder's weights; a model
            that does not take an image together with a text.
    """
    if keep_adapter:
        raise ValueError(
            f"--keep-adapter: {base} is a sentence-transformers folder already; merge the adapter (leave "
            "--keep-adapter out), or pass the raw checkpoint as BASE"
        )
    with without_load_report(), without_bar(base):
        model = SentenceTransformer(base, device="cpu", model_kwargs={"dtype": dtype})
    if not model.supports(("image", "text")):
        raise ValueError(
            f"{base}: a sentence-transformers folder that takes {model.modalities}; a model that takes an "
            "image together with a text is needed"
        )
    if template is not None:
        model[0].processor.chat_template = templates.read_template(template)
    return model


def stored_dtype(base: str) -> torch.dtype:
    """The type that most of a checkpoint's weights have in its files, or that its configuration says.

    The configuration of a published Qwen3-VL names it for the language model alone.
    """
    counts: Counter[str] = Counter()
    for file in sorted(Path(base).glob("*.safetensors")) if Path(base).is_dir() else ():
        with safe_open(file, "pt") as weights:
            for key in weights.keys():  # noqa: SIM118 - not a mapping
                part = weights.get_slice(key)
                counts[part.get_dtype()] += math.prod(part.get_shape())
    names = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
    if counts:
        return names.get(counts.most_common(1)[0][0], torch.float32)
    config = AutoConfig.from_pretrained(base, trust_remote_code=False)
    return config.dtype or config.get_text_config().dtype or torch.float32


def check_arguments(base: str | Path, out: Path, *, dtype: str | None, num_crops: int | None) -> None:
    """Refuse what can be seen without loading anything.

    Raises:
        ValueError: see `build`.
    """
    if Path(base).resolve() == out.resolve():
        raise ValueError(f"OUT is BASE ({out}); choose another OUT")
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; pass one of {', '.join(DTYPES)}")
    if num_crops is not None and num_crops < 1:
        raise ValueError(f"num_crops is {num_crops}; pass 1 or more (4 and 16 are published)")


def check_adapter_choice(adapter: str | None, *, keep: bool, dtype: str | None) -> None:
    """Refuse to keep an adapter that is not there or with another dtype, and one that peft cannot serve.

    Raises:
        ValueError: see `build`.
    """
    if keep and not adapter:
        raise ValueError("--keep-adapter without an adapter; pass --adapter PATH, or leave it out")
    if keep:
        check_peft("--keep-adapter")
    elif adapter and not is_peft_available():
        raise ValueError(f"the adapter {adapter} needs peft; pip install peft")
    if keep and dtype:
        raise ValueError(
            f"dtype {dtype} with --keep-adapter: the weights stay in the base's files; leave one out"
        )


def check_folder(name: str | None) -> None:
    """Refuse a model's name that can only be a folder's, where there is none: the Hub would be asked for it.

    Raises:
        ValueError: no such folder.

    >>> check_folder("TIGER-Lab/VLM2Vec-LoRA")
    """
    if name is None or os.path.isdir(name):  # pathlib's raises for a name that is too long
        return
    if name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") > 1:
        raise ValueError(f"{name}: no such folder; a name on the Hub is OWNER/NAME")


def base_and_adapter(base: str, adapter: str | None) -> tuple[str, str | None]:
    """Where `base` is itself an adapter: the base that it names, and it.

    Raises:
        ValueError: no such folder; two adapters, or an adapter that names no base.
    """
    check_folder(base)
    file = find_adapter_config_file(base)
    if file is None:
        return base, adapter
    named = read_object(file, "download the adapter again").get("base_model_name_or_path")
    if adapter is not None or not named:
        raise ValueError(
            f"{base} is an adapter (of {named or 'a base that it does not name'}); pass the base as BASE, "
            f"and --adapter {base}"
        )
    return named, base


def set_num_crops(body: Transformer, num_crops: int) -> None:
    """Tiles an image at most, stored with the processor.

    Raises:
        ValueError: the family's images are not tiled by a number.
    """
    images = body.processor.image_processor
    if not hasattr(images, "num_crops"):
        raise ValueError(f"num_crops is for phi3_v; a {body.config.model_type} has none, leave it out")
    images.num_crops = num_crops


def cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Parameters to `dtype`; buffers, rotary frequencies among them, stay as they are."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def model_card(
    model: SentenceTransformer,
    title: str,
    base: str,
    adapter: str | None,
    *,
    kept: bool,
    embedder: bool = False,
) -> str:
    """README.md of the folder; local folders by their last name only."""
    names = [name for name in (base, adapter) if name]
    said = [f"`{Path(name).resolve().name if Path(name).exists() else name}`" for name in names]
    made_from = said[0] + (f" with the adapter {said[1]}, {'kept' if kept else 'merged'}" if adapter else "")
    phi3v = model[0].config.model_type == "phi3_v"
    rest = "\nThe chat template in this folder is part of the model: images, each on a line, then the text."
    if kept:
        rest += "\nThe weights are the base's: it must stay where adapter_config.json says."
    return CARD.format(
        front="" if Path(base).exists() else f"base_model: {base}\n",
        title=title,
        made_from=made_from,
        dim=model.get_embedding_dimension(),
        pooled="." if embedder else ": the state of the last token,\nnormalised.",
        rest=rest + "\n",
        needs="import xvlm2vec_st  # Phi-3.5-vision, which transformers lacks\n" if phi3v else "",
        versions=", ".join(f"{lib} {version(lib)}" for lib in ("sentence-transformers", "transformers")),
    )


def write_folder(model: SentenceTransformer, card: str, place: Destination, base: str) -> None:
    """Save in the work folder, try it, then move it into place: OUT is whole, or as it was.

    Raises:
        ValueError: as `check_encodes`.
    """
    model.save(str(place.draft))
    pin_backend(place.draft, model[0])
    (place.draft / "README.md").write_text(card, "utf-8")
    # After saving: encoding leaves its padding and truncation in the tokenizer.
    check_encodes(model, base)
    place.finish(place.draft)
