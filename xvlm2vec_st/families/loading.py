"""Load a raw LVLM checkpoint as the modules that embed with it."""

import json
import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerBase
from transformers.image_processing_backends import TorchvisionBackend
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES, processor_class_from_name
from transformers.processing_utils import ProcessorMixin
from transformers.utils import is_accelerate_available, is_torchvision_available
from transformers.utils import logging as transformers_logging

from xvlm2vec_st.families.dtypes import exact_dtype
from xvlm2vec_st.families.published import PUBLISHED, recognise
from xvlm2vec_st.families.templates import build_template, read_template

logger = logging.getLogger(__name__)

# Loggers of transformers whose warnings are tables: see `without_load_report`.
REPORTS = ("modeling_utils", "distributed.tensor_parallel", "integrations.tensor_parallel")


def embedder_modules(
    base: str,
    *,
    template: str | Path | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    processor_kwargs: Mapping[str, Any] | None = None,
    config_kwargs: Mapping[str, Any] | None = None,
    adapter: str | None = None,
    exact: bool = False,
) -> list[nn.Module]:
    """Load a raw checkpoint as Transformer (with its chat template), last-token Pooling and Normalize.

    Args:
        base: folder or Hub id of an LVLM checkpoint, not of an adapter.
        template: file or name of a chat template; default: that of the published embedder, if `base` or `adapter` is
            recognised as one (see `families.published`), else the family's.
        model_kwargs: as for sentence-transformers' `Transformer`; so are the other two.
        processor_kwargs: see `model_kwargs`.
        config_kwargs: see `model_kwargs`.
        adapter: folder or Hub id of an adapter that will be added.
        exact: load in the smallest dtype that holds the files' weights without rounding.

    Raises:
        ValueError: the family has no template; the tokenizer does not append the token that the embedder pools;
            weights are truncated, missing or of another shape.
    """
    config = AutoConfig.from_pretrained(base, **{"trust_remote_code": False, **(config_kwargs or {})})
    text = (processor_kwargs or {}).get("chat_template")
    if text is not None and template is not None:
        raise ValueError("template and processor_kwargs['chat_template'] are both given; pass one")
    if text is None:
        template = default_template(base, adapter, config.model_type) if template is None else template
        text = read_template(template)
    backend = image_backend(config.model_type)
    with without_load_report():
        check_index(base)
        with without_bar(base):
            check_weights(base, **(model_kwargs or {}))
        body = Transformer(
            base,
            model_kwargs={**(model_kwargs or {}), **({"dtype": exact_dtype(base)} if exact else {})},
            processor_kwargs={"backend": backend, **(processor_kwargs or {}), "chat_template": text},
            config_kwargs=dict(config_kwargs or {}),
        )
    if "message" not in body.modalities or body.module_output_name != "token_embeddings":
        raise ValueError(
            f"{base}: this {config.model_type} accepts {body.modalities} and returns "
            f"{body.module_output_name}; a model with a chat template and token states is needed"
        )
    if str(template) in PUBLISHED:
        check_pooled(body, str(template))
    return [body, Pooling(body.get_embedding_dimension(), "lasttoken"), Normalize()]


def default_template(base: str, adapter: str | None, family: str) -> str:
    """The template of a published embedder, else the family's; logs which, because a wrong one costs points.

    Raises:
        ValueError: there is neither.
    """
    name = recognise([base, adapter or ""], family)
    if name is None:
        build_template(family)
        logger.info(
            "%s is not an embedder that is known here. It gets the layout of VLM2Vec: each image on a line, then the "
            "text. Pass template= if it was trained with another one: a Jinja file, or one of %s",
            base,
            ", ".join(PUBLISHED),
        )
    else:
        logger.info("%s is %s, with the layout of %s", base, name, PUBLISHED[name].source)
    return name or family


def check_pooled(body: Transformer, name: str) -> None:
    """Check that the tokenizer appends the token that a published embedder pools.

    Raises:
        ValueError: the row ends with another token.
    """
    expected, tokenizer = PUBLISHED[name].token, cast(PreTrainedTokenizerBase, body.tokenizer)
    ids = body.preprocess([{"text": "a"}])["input_ids"][0].tolist() if expected else []
    if expected and ids[-1] != tokenizer.convert_tokens_to_ids(expected):
        raise ValueError(
            f"template {name} pools {expected}, which this tokenizer does not append (a row ends with "
            f"{tokenizer.convert_ids_to_tokens(ids[-1])!r}); use the checkpoint's own tokenizer files"
        )


@contextmanager
def without_load_report() -> Iterator[None]:
    """Silence two tables of weights that transformers logs.

    One lists weights that do not fit. The language model's head never fits, and everything else is an error
    here. The other lists the layers that tensor parallelism does not split. transformers 5.23 logs it if the first
    table's logger has a level (modeling_utils.py, `verify_tp_plan`), as here.
    """
    reports = [logging.getLogger(f"transformers.{name}") for name in REPORTS]
    levels = [report.level for report in reports]
    for report in reports:
        report.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for report, level in zip(reports, levels, strict=True):
            report.setLevel(level)


@contextmanager
def without_bar(base: str) -> Iterator[None]:
    """Hide the progress bar for a local folder, which takes a moment. Downloads keep theirs."""
    if not (Path(base).is_dir() and transformers_logging.is_progress_bar_enabled()):
        yield
        return
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.enable_progress_bar()


def image_backend(family: str) -> str:
    """The image backend of a family's processor: "pil", or "torchvision" if only that works.

    transformers' processors with a video part need torchvision, and some image processors have no PIL version.

    Raises:
        ValueError: the processor needs torchvision, which is not installed.

    >>> image_backend("llava")
    'pil'
    """
    family = family.removesuffix("_thinker")  # the part of an omni model that reads; its processor is the whole model's
    name = PROCESSOR_MAPPING_NAMES.get(family)
    processor: Any = processor_class_from_name(name) if name else None
    dummy = getattr(processor, "is_dummy", False)  # transformers' stand-in for a class that it cannot load
    reads_videos = issubclass(processor or object, ProcessorMixin) and "video_processor" in processor.get_attributes()
    if not (dummy or reads_videos) and IMAGE_PROCESSOR_MAPPING_NAMES.get(family, {"pil": True}).get("pil"):
        return "pil"
    if not is_torchvision_available():
        what = "also reads videos" if reads_videos else "has no version for PIL"
        raise ValueError(
            f"{family}: transformers' processor {what}, and needs torchvision for it; pip install torchvision"
        )
    return "torchvision"


def check_index(base: str) -> None:
    """Refuse an index of weights that names files outside its folder.

    transformers opens every file that the index names. Links are not followed: the Hub's cache consists of links.

    Raises:
        ValueError: a file lies outside or is missing; the file is not an index.
    """
    for index in sorted(Path(base).glob("*.index.json")) if Path(base).is_dir() else ():
        try:
            names = {*json.loads(index.read_text("utf-8"))["weight_map"].values()}
            wrong = [name for name in names if Path(name).name != name or name in ("", ".", "..")]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{index} is not an index of weights ({type(error).__name__}: {error}); download it again"
            ) from error
        if wrong:
            raise ValueError(
                f"{index} names {min(wrong)!r}, which is not a file of its folder; download the model again"
            )
        if missing := sorted(name for name in names if not (Path(base) / name).is_file()):
            raise ValueError(f"{index} names {missing[0]!r}, which is missing; copy or download it again")


def check_weights(base: str, **model_kwargs: Any) -> None:
    """Compare a checkpoint's weights with its architecture.

    With accelerate, only names and shapes are loaded; else everything is loaded and dropped. transformers would
    initialise a layer without weights at random, and only log it.

    Raises:
        ValueError: a file is truncated; weights are missing or have another shape.
    """
    where = {"device_map": "meta"} if is_accelerate_available() else {}
    try:
        _, info = AutoModel.from_pretrained(
            base, **model_kwargs | where, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except SafetensorError as error:
        raise ValueError(
            f"a weight file of {base} cannot be read ({error}): it is truncated or damaged; copy or download it again"
        ) from error
    shapes = {f"{name} {list(has)} not {list(needs)}" for name, has, needs in info["mismatched_keys"]}
    refuse_misfits(f"the checkpoint {base}", {"missing": info["missing_keys"], "of another shape": shapes})


def refuse_misfits(what: str, kinds: Mapping[str, Collection[str]]) -> None:
    """Raise a ValueError that lists all keys that do not fit, if there are any.

    >>> refuse_misfits("the adapter a", {"unexpected": ["x", "y"]})
    Traceback (most recent call last):
    ...
    ValueError: the adapter a does not fit (unexpected: x, y); check that it is complete and belongs to this base
    """
    listed = "; ".join(f"{kind}: {', '.join(sorted(keys))}" for kind, keys in kinds.items() if keys)
    if listed:
        raise ValueError(f"{what} does not fit ({listed}); check that it is complete and belongs to this base")


def pin_backend(folder: Path, body: Transformer) -> None:
    """Store the image backend of `body`, so that sentence-transformers loads the folder with the same one.

    transformers resizes with torchvision if it is installed, and with PIL otherwise; pixels differ by up to 0.03.
    """
    images = getattr(body.processor, "image_processor", None)
    if images is None:
        return
    backend = "torchvision" if isinstance(images, TorchvisionBackend) else "pil"
    file = folder / "sentence_bert_config.json"
    settings = json.loads(file.read_text("utf-8"))
    settings["processor_kwargs"] = settings.get("processor_kwargs", {}) | {"backend": backend}
    file.write_text(json.dumps(settings, indent=4) + "\n", "utf-8")
