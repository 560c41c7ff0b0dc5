"""Build a sentence-transformers folder from an LVLM checkpoint and an optional adapter."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Transformer
from sentence_transformers.util import is_sentence_transformer_model
from transformers import PreTrainedModel
from transformers.utils import find_adapter_config_file, is_peft_available

from xvlm2vec_st.building.model_card import build_model_card
from xvlm2vec_st.building.trial import check_encodes
from xvlm2vec_st.building.vocabulary import Request, extend_model, request_extension
from xvlm2vec_st.families.dtypes import DTYPES, exact_dtype, stored_dtype
from xvlm2vec_st.families.loading import embedder_modules, pin_backend, without_bar, without_load_report
from xvlm2vec_st.families.template_limits import check_limits
from xvlm2vec_st.families.templates import NAMES, read_template
from xvlm2vec_st.utils.finite import check_weights_finite
from xvlm2vec_st.utils.folders import Destination, expanded, read_object
from xvlm2vec_st.utils.hub_names import check_folder
from xvlm2vec_st.utils.modules import transformer_of
from xvlm2vec_st.utils.peft_version import check_peft


def build(
    base: str | Path,
    out: str | Path,
    *,
    adapter: str | Path | None = None,
    keep_adapter: bool = False,
    num_crops: int | None = None,
    dtype: str | None = None,
    template: str | Path | None = None,
    extend_vocabulary: Sequence[str | Path] = (),
    new_tokens: int | None = None,
    languages: Sequence[str] = (),
    join_ascii: bool = False,
    overwrite: bool = False,
) -> Path:
    """Build a folder that sentence-transformers loads. An interrupted build leaves nothing behind.

    Args:
        base: folder or Hub id of an LVLM checkpoint, of a sentence-transformers model (its modules, prompts and
            template are kept), or of an adapter that names its base.
        out: the new folder.
        adapter: folder or Hub id of a LoRA or DoRA. It is merged in fp32, one layer at a time.
        keep_adapter: store the adapter instead of merged weights; the base is then loaded from its present place.
        num_crops: Phi-3.5-vision: maximum tiles per image, plus the global view.
        dtype: `bf16`, `fp16` or `fp32` of the stored weights; default: the checkpoint's.
        template: file of a Jinja chat template, or a name of `templates.NAMES`; default: that of the published
            embedder, if `base` or `adapter` is recognised as one, else the family's.
        extend_vocabulary: parallel corpus files, from which `new_tokens` tokens at most are chosen for `languages`,
            added, and listed in `out`/new_tokens.json: see `vocabulary.extend_model`.
        join_ascii: let new tokens hold ASCII letters alone.
        overwrite: replace `out`.

    Returns:
        The folder `out`.

    Raises:
        ValueError: `out` is not empty; weights or adapter do not fit; an argument is out of range or not for this
            family; the built model cannot encode a text, an image, or both.

    Example::

        build("microsoft/Phi-3.5-vision-instruct", "teacher", adapter="TIGER-Lab/VLM2Vec-LoRA")
    """
    out, base = expanded(out), os.path.expanduser(base)
    adapter = None if adapter is None else os.path.expanduser(adapter)
    place = Destination(out, overwrite=overwrite, command="build", option="out")
    check_arguments(base, place.out, dtype=dtype, num_crops=num_crops)
    settings = {"base": base, "adapter": adapter, "keep_adapter": keep_adapter, "num_crops": num_crops}
    settings |= {"dtype": dtype, "template": None if template is None else str(template)}
    request = request_extension(
        extend_vocabulary, new_tokens, languages, join_ascii=join_ascii, keep_adapter=keep_adapter
    )
    settings |= request.settings() if request else {}
    with place.hold():
        local = [(name, path) for name, path in (("base", base), ("adapter", adapter)) if path and os.path.isdir(path)]
        local += [("extend_vocabulary", str(path)) for path in (request.files if request else ())]
        if place.begin(settings, local):
            return out
        try:
            build_in(
                place,
                base=base,
                adapter=adapter,
                keep_adapter=keep_adapter,
                num_crops=num_crops,
                dtype=dtype,
                template=template,
                request=request,
            )
        except BaseException:
            place.abandon()
            raise
    return out


def build_in(
    place: Destination,
    *,
    base: str,
    adapter: str | None,
    keep_adapter: bool,
    num_crops: int | None,
    dtype: str | None,
    template: str | Path | None,
    request: Request | None,
) -> None:
    """Build in the work folder, and move the result into place: see `build`."""
    base, adapter = base_and_adapter(base, adapter)
    check_adapter_choice(adapter, keep=keep_adapter, dtype=dtype)
    if Path(base).is_dir():
        base = str(Path(base).resolve())  # a kept adapter stores this path
    if template is not None and str(template) not in NAMES:
        check_limits(read_template(template), str(template))
    embedder = is_sentence_transformer_model(base)
    merges = bool(adapter) and not keep_adapter
    load_dtype = DTYPES.get(dtype or "", "auto")
    if embedder:
        if merges:
            load_dtype = exact_dtype(base) if Path(base).is_dir() else torch.float32
        model = load_embedder(base, load_dtype, template=template, keep_adapter=keep_adapter)
    else:
        model_kwargs = {"dtype": load_dtype}
        modules = embedder_modules(base, template=template, model_kwargs=model_kwargs, adapter=adapter, exact=merges)
        model = SentenceTransformer(modules=modules, device="cpu")
    body = transformer_of(model)
    if embedder and template is None and body.processor.chat_template:
        check_limits(body.processor.chat_template, base)
    if num_crops is not None:
        set_num_crops(body, num_crops)
    if adapter:
        body.model = with_adapter(body.model, adapter, base, keep=keep_adapter, dtype=dtype)
    if request:
        extend_model(model, **request._asdict()).write(place.draft)
    card = build_model_card(model, place.out.name, base, adapter, kept=keep_adapter, embedder=embedder)
    write_folder(model, card, place, base)


def with_adapter(model: PreTrainedModel, adapter: str, base: str, *, keep: bool, dtype: str | None) -> PreTrainedModel:
    """The model with the adapter attached, or merged and in its final dtype.

    Raises:
        ValueError: see `attach_adapter` and `merge_adapter`.
    """
    # They import peft, which a checkpoint without an adapter does not need.
    if keep:
        from xvlm2vec_st.building.adapters import attach_adapter

        return attach_adapter(model, adapter)
    from xvlm2vec_st.building.merging import merge_adapter

    return merge_adapter(model, adapter, DTYPES[dtype] if dtype else stored_dtype(base))


def load_embedder(
    base: str, dtype: torch.dtype | str, *, template: str | Path | None, keep_adapter: bool
) -> SentenceTransformer:
    """Load a sentence-transformers folder, with everything that its modules.json declares.

    Pooling, further modules, prompts and the chat template are kept; `template` replaces the chat template.

    Raises:
        ValueError: `keep_adapter` is set: the adapter would name a base with other weights; the model does not
            accept an image together with a text.
    """
    if keep_adapter:
        raise ValueError(
            f"keep_adapter: {base} is a sentence-transformers folder already; merge the adapter "
            "(keep_adapter=False), or pass the raw checkpoint as base"
        )
    with without_load_report(), without_bar(base):
        model = SentenceTransformer(base, device="cpu", model_kwargs={"dtype": dtype})
    if not model.supports(("image", "text")):
        raise ValueError(
            f"{base}: this sentence-transformers model accepts {model.modalities}; a model that accepts an image "
            "together with a text is needed"
        )
    if template is not None:
        transformer_of(model).processor.chat_template = read_template(template)
    return model


def check_arguments(base: str | Path, out: Path, *, dtype: str | None, num_crops: int | None) -> None:
    """Check arguments without loading anything.

    Raises:
        ValueError: see `build`.
    """
    if Path(base).resolve() == out.resolve():
        raise ValueError(f"out is base ({out}); choose another out")
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; pass one of {', '.join(DTYPES)}")
    if num_crops is not None and num_crops < 1:
        raise ValueError(f"num_crops is {num_crops}; pass 1 or more (4 and 16 are published)")


def check_adapter_choice(adapter: str | None, *, keep: bool, dtype: str | None) -> None:
    """Check `keep_adapter` against the other arguments, and that peft is usable.

    Raises:
        ValueError: see `build`.
    """
    if keep and not adapter:
        raise ValueError("keep_adapter without an adapter; pass adapter=, or keep_adapter=False")
    if keep:
        check_peft("keep_adapter")
    elif adapter and not is_peft_available():
        raise ValueError(f"the adapter {adapter} needs peft; pip install peft")
    if keep and dtype:
        raise ValueError(
            f"dtype {dtype} with keep_adapter: the weights stay in the base's files; pass only one of them"
        )


def base_and_adapter(base: str, adapter: str | None) -> tuple[str, str | None]:
    """(base, adapter); if `base` is an adapter, the base that it names.

    Raises:
        ValueError: the folder does not exist; there are two adapters, or an adapter that names no base.
    """
    check_folder(base)
    file = find_adapter_config_file(base)
    if file is None:
        return base, adapter
    named = read_object(file, "download the adapter again").get("base_model_name_or_path")
    if adapter is not None or not named:
        raise ValueError(
            f"{base} is an adapter (of {named or 'a base that it does not name'}); pass that base as base, and "
            f"adapter={base!r}"
        )
    return named, base


def set_num_crops(body: Transformer, num_crops: int) -> None:
    """Set the maximum number of tiles per image, which is stored with the processor.

    Raises:
        ValueError: the family has no such setting.
    """
    image_processor = body.processor.image_processor
    if not hasattr(image_processor, "num_crops"):
        raise ValueError(f"num_crops is for phi3_v, and this is a {body.config.model_type}; leave it out")
    image_processor.num_crops = num_crops


def write_folder(model: SentenceTransformer, card: str, place: Destination, base: str) -> None:
    """Save in the work folder, try the model, then move it into place.

    Raises:
        ValueError: see `check_encodes`.
    """
    model.save(str(place.draft))
    pin_backend(place.draft, transformer_of(model))
    (place.draft / "README.md").write_text(card, "utf-8")
    # After saving, because encoding stores its padding and truncation in the tokenizer.
    check_encodes(model, base)
    place.finish(place.draft)


def save_embedder(model: SentenceTransformer, folder: str | Path) -> None:
    """Save a model with its image backend, so that it gives the same embeddings on every machine.

    Raises:
        ValueError: weights are not numbers.
    """
    check_weights_finite(model, f"{folder} is not saved", "lower the learning rate, or repair the checkpoint")
    model.save(str(folder))
    pin_backend(Path(folder), transformer_of(model))
