"""`SentenceTransformer` for LVLMs: raw checkpoints load correctly, and inputs with the same image share work."""

import json
import logging
from contextvars import ContextVar
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import numpy as np
import sentence_transformers
import torch
from sentence_transformers.sentence_transformer.modules import Transformer
from sentence_transformers.util import quantize_embeddings
from sentence_transformers.util.decorators import deprecated_kwargs
from torch import nn
from tqdm import tqdm
from transformers import AutoConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.utils import find_adapter_config_file, output_capturing

from xvlm2vec_st.encoding.batches import images_in, plan_batches, text_length
from xvlm2vec_st.encoding.inputs import InputError
from xvlm2vec_st.encoding.last_layer import pooled_tokens_only
from xvlm2vec_st.encoding.open_images import OpenImages
from xvlm2vec_st.encoding.prefetch import Prefetch, Preprocess
from xvlm2vec_st.families.loading import embedder_modules, pin_backend
from xvlm2vec_st.families.templates import PLACEHOLDERS
from xvlm2vec_st.lvlm import LVLM
from xvlm2vec_st.utils.peft_version import check_peft

logger = logging.getLogger(__name__)

# The `encode` call that runs in this thread: its model and its batches.
RUNNING: ContextVar[tuple[Any, Prefetch] | None] = ContextVar("RUNNING", default=None)
HOOKS_INSTALLED = "_output_capturing_hooks_installed"  # transformers' mark on a model


class SentenceTransformer(sentence_transformers.SentenceTransformer):
    """`sentence_transformers.SentenceTransformer` that also loads raw LVLM checkpoints.

    A folder or Hub id with a `modules.json` loads as in the base class, Phi-3.5-vision included. A raw LVLM checkpoint
    gets last-token pooling, normalisation and its family's chat template. The base class would silently use mean
    pooling and the chat layout. Saved folders hold module types of sentence-transformers only.

    Args:
        model_name_or_path: folder or Hub id.
        template: for a raw checkpoint: file of a Jinja chat template, or a name of `templates.NAMES`; default: that of
            the published embedder, if the checkpoint is recognised as one, else the family's.
        **kwargs: arguments of the base class.

    Raises:
        ValueError: a raw checkpoint's family has no template, or its weights do not fit; the folder holds an adapter
            only; the folder keeps an adapter, and transformers and peft do not work together.

    Example::

        model = SentenceTransformer("llava-hf/llava-1.5-7b-hf")
        model.encode([{"image": "dog.jpg", "text": "Represent the image"}, "A dog"])
    """

    def __init__(
        self, model_name_or_path: str | None = None, *, template: str | Path | None = None, **kwargs: Any
    ) -> None:
        self.template = template
        folder = Path(model_name_or_path or "")
        if all((folder / name).is_file() for name in ("modules.json", "adapter_config.json")):
            check_peft(f"{folder} keeps an adapter")
        super().__init__(model_name_or_path, **kwargs)
        if len(self) and type(self[0]) is Transformer:
            self[0].__class__ = LVLM  # it has no state: the loaded module computes by another route

    def save(self, path: str, *args: Any, **kwargs: Any) -> None:
        """Save the model and its image backend: see `pin_backend`."""
        super().save(path, *args, **kwargs)
        if len(self) and isinstance(self[0], Transformer):
            pin_backend(Path(path), self[0])
        if len(self) and isinstance(self[0], LVLM):
            use_native_type(Path(path) / "modules.json")

    @deprecated_kwargs(sentences="inputs")
    def encode(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Encode inputs. Inputs with the same image share a batch; results keep the order of the inputs.

        A batch never exceeds `batch_size` inputs. It takes less memory if they share images.

        Returns:
            As the base class: (inputs, dim) by default.

        Raises:
            ValueError: an input cannot be embedded; `batch_size` is below 1. The message names the row.
        """
        call = signature(super().encode).bind(inputs, *args, **kwargs)
        call.apply_defaults()
        options = call.arguments | call.arguments.pop("kwargs")
        if options["batch_size"] < 1:
            raise ValueError(f"batch_size is {options['batch_size']}; pass 1 or more")
        try:
            with pooled_tokens_only(self, wanted=options["output_value"] == "sentence_embedding"):
                return self._encode(options, *args, **kwargs)
        except InputError as error:
            raise error.with_place_in([inputs] if self.is_singular_input(inputs) else inputs) from error.__cause__

    def preprocess(self, inputs: Any, prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Preprocess inputs as the base class does. Within `encode`, the next batch follows in a thread."""
        compute: Preprocess = partial(super().preprocess, prompt=prompt, **kwargs)
        running = RUNNING.get()
        if running is None or running[0] is not self:
            return compute(inputs)
        return running[1].features(inputs, compute)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled model, in a process that has built no model before."""
        super().__setstate__(state)
        register_captured_outputs(self)

    def start_multi_process_pool(
        self, target_devices: list[str] | None = None
    ) -> dict[Literal["input", "output", "processes"], Any]:
        """Start the pool, also for a model that has encoded before."""
        drop_capturing_hooks(self)
        return super().start_multi_process_pool(target_devices)

    def _encode(self, options: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        inputs = options["inputs"]
        in_pool = options["pool"] is not None or isinstance(options["device"], list)
        if in_pool or self.is_singular_input(inputs) or len(inputs) <= options["batch_size"]:
            return super().encode(inputs, *args, **kwargs)
        if not (isinstance(self[0], LVLM) and self[0].sharing.route != "plain" and any(map(images_in, inputs))):
            return super().encode(inputs, *args, **kwargs)
        return self._encode_batches(options)

    def _encode_batches(self, options: dict[str, Any]) -> Any:
        inputs, precision = options.pop("inputs"), options.pop("precision")
        bar = options.pop("show_progress_bar")
        bar = logger.isEnabledFor(logging.INFO) if bar is None else bar
        images = OpenImages(lasting=isinstance(inputs, list | tuple))
        batches = plan_batches(inputs, options["batch_size"], images)
        results: dict[int, Any] = {}
        device = torch.device(options["device"] or self.device)
        with Prefetch(inputs, batches, sort=self._sorted, images=images, device=device) as prefetch:
            token = RUNNING.set((self, prefetch))
            try:
                for batch, items in zip(tqdm(batches, desc="Batches", disable=not bar), prefetch, strict=True):
                    encoded = super().encode(items, show_progress_bar=False, **options)
                    results |= dict(zip(batch, encoded, strict=True))
            finally:
                RUNNING.reset(token)
        rows: Any = [results[number] for number in range(len(inputs))]
        if options["output_value"] == "sentence_embedding":
            if precision and precision != "float32":
                rows = quantize_embeddings(rows, precision=precision)
            if options["convert_to_tensor"]:
                return torch.stack(list(torch.as_tensor(rows) if isinstance(rows, np.ndarray) else rows))
            return np.stack(rows) if options["convert_to_numpy"] else list(rows)
        return rows

    def _sorted(self, inputs: list[Any]) -> list[Any]:
        """A batch in the order in which sentence-transformers preprocesses it."""
        # `_inference` of sentence-transformers 6.2 sorts so. If another release sorts otherwise, `Prefetch` stops.
        length = getattr(self, "_input_length", text_length)
        return [inputs[number] for number in np.argsort([-length(item) for item in inputs])]

    def _load_default_modules(self, model_name_or_path: str, *args: Any, **kwargs: Any) -> Any:
        """Load a name without a `modules.json`. sentence-transformers 6.2 has no public hook for this."""
        base = super()._load_default_modules
        kwargs = signature(base).bind(model_name_or_path, *args, **kwargs).arguments
        del kwargs["model_name_or_path"]
        hub: dict[str, Any] = {key: kwargs.get(key) for key in ("token", "revision", "local_files_only")}
        hub["cache_dir"] = kwargs.get("cache_folder")
        if find_adapter_config_file(model_name_or_path, **hub) is not None:
            raise ValueError(
                f"{model_name_or_path} is an adapter; build a model with it first: "
                f"xvlm2vec_st.build({model_name_or_path!r}, OUT), or xvlm2vec build {model_name_or_path} OUT"
            )
        hub["trust_remote_code"] = kwargs.get("trust_remote_code", False)
        each: dict[str, Any] = {
            name: hub | (kwargs.get(name) or {}) for name in ("model_kwargs", "processor_kwargs", "config_kwargs")
        }
        family = AutoConfig.from_pretrained(model_name_or_path, **each["config_kwargs"]).model_type
        known = family in PLACEHOLDERS or family in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
        if self.template is None and not known:
            return base(model_name_or_path, **kwargs)
        return embedder_modules(model_name_or_path, template=self.template, **each), {}


def register_captured_outputs(model: nn.Module) -> None:
    """Register which states transformers can capture: a model's `__init__` does so, and unpickling does not.

    transformers 5.23 and 5.24, modeling_utils.py.
    """
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            output_capturing._CAN_RECORD_REGISTRY[module] = module._can_record_outputs


def drop_capturing_hooks(model: nn.Module) -> None:
    """Remove the hooks that transformers adds in the first forward; the next forward adds them again.

    They are local functions, which cannot be pickled for another process (transformers 5.23 and 5.24,
    utils/output_capturing.py, `install_output_capuring_hook`).
    """
    for module in model.modules():
        for key, hook in list(module._forward_hooks.items()):
            if getattr(hook, "__module__", "").endswith(".output_capturing"):
                del module._forward_hooks[key]
        if getattr(module, HOOKS_INSTALLED, False):
            setattr(module, HOOKS_INSTALLED, False)


def use_native_type(modules: Path) -> None:
    """Replace our module type with sentence-transformers', so that it loads the folder without this package."""
    entries = json.loads(modules.read_text("utf-8"))
    for entry in entries:
        if entry["type"] == f"{LVLM.__module__}.{LVLM.__name__}":
            entry["type"] = f"{Transformer.__module__}.{Transformer.__name__}"
    modules.write_text(json.dumps(entries, indent=2), "utf-8")
