"""A drop-in for sentence-transformers' class that knows what a raw LVLM checkpoint needs."""

import json
import logging
from inspect import signature
from pathlib import Path
from typing import Any

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

from xvlm2vec_st.encoding.batches import batches_of, images_in
from xvlm2vec_st.encoding.inputs import InputError
from xvlm2vec_st.families.loading import embedder_modules, pin_backend
from xvlm2vec_st.families.templates import FILES
from xvlm2vec_st.lvlm import LVLM
from xvlm2vec_st.utils.peft_version import check_peft

logger = logging.getLogger(__name__)


class SentenceTransformer(sentence_transformers.SentenceTransformer):
    """`sentence_transformers.SentenceTransformer`, for checkpoints of any LVLM family too.

    A folder or Hub id with a `modules.json` loads as ever, Phi-3.5-vision among them. A raw LVLM
    checkpoint gets last-token pooling, normalisation and its family's chat template in memory,
    where the base class would take the mean of all tokens and the chat layout, without a word.
    What it saves holds native module types only.

    Args:
        model_name_or_path: folder or Hub id.
        template: for a raw checkpoint: a Jinja chat template's file, or a name of `templates.FILES`;
            default: the family's.
        **kwargs: for the base class.

    Raises:
        ValueError: a raw checkpoint of a family without a template, or with weights that do not fit;
            an adapter's folder; a folder that keeps an adapter, and versions of transformers and peft
            that do not work together.

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
            self[0].__class__ = LVLM  # no state of its own: the loaded module, another route

    def save(self, path: str, *args: Any, **kwargs: Any) -> None:
        """The host's `save`, and which code resizes images: see `pin_backend`."""
        super().save(path, *args, **kwargs)
        if len(self) and isinstance(self[0], Transformer):
            pin_backend(Path(path), self[0])
        if len(self) and isinstance(self[0], LVLM):
            name_native(Path(path) / "modules.json")

    @deprecated_kwargs(sentences="inputs")
    def encode(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The host's `encode`, with inputs of one image brought together; results in their order.

        `batch_size` counts inputs, as ever: a batch never holds more, and takes less memory where
        inputs share images.
        """
        call = signature(super().encode).bind(inputs, *args, **kwargs)
        call.apply_defaults()
        asked = call.arguments | call.arguments.pop("kwargs")
        if asked["batch_size"] < 1:
            raise ValueError(f"batch_size is {asked['batch_size']}; pass 1 or more")
        try:
            return self._encode(asked, *args, **kwargs)
        except InputError as error:
            raise error.among([inputs] if self.is_singular_input(inputs) else inputs) from error.__cause__

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As any module's, in a process that has made no model before."""
        super().__setstate__(state)
        register_captured_outputs(self)

    def start_multi_process_pool(self, target_devices: list[str] | None = None) -> dict[str, Any]:
        """As the base class's, for a model that has encoded before too."""
        drop_capturing_hooks(self)
        return super().start_multi_process_pool(target_devices)

    def _encode(self, asked: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        inputs = asked["inputs"]
        elsewhere = asked["pool"] is not None or isinstance(asked["device"], list)
        if elsewhere or self.is_singular_input(inputs) or len(inputs) <= asked["batch_size"]:
            return super().encode(inputs, *args, **kwargs)
        if not (isinstance(self[0], LVLM) and self[0].shares_prefix and any(map(images_in, inputs))):
            return super().encode(inputs, *args, **kwargs)
        return self._encode_batches(asked)

    def _encode_batches(self, asked: dict[str, Any]) -> Any:
        inputs, precision = asked.pop("inputs"), asked.pop("precision")
        bar = asked.pop("show_progress_bar")
        bar = logger.isEnabledFor(logging.INFO) if bar is None else bar
        batches = batches_of(inputs, asked["batch_size"])
        found: dict[int, Any] = {}
        for batch in tqdm(batches, desc="Batches", disable=not bar):
            done = super().encode([inputs[n] for n in batch], show_progress_bar=False, **asked)
            found |= dict(zip(batch, done, strict=True))
        rows = [found[number] for number in range(len(inputs))]
        if asked["output_value"] == "sentence_embedding":
            if precision and precision != "float32":
                rows = quantize_embeddings(rows, precision=precision)
            if asked["convert_to_tensor"]:
                return torch.stack(list(torch.as_tensor(rows) if isinstance(rows, np.ndarray) else rows))
            return np.stack(rows) if asked["convert_to_numpy"] else list(rows)
        return rows

    def _load_default_modules(
        self, model_name_or_path: str, **kwargs: Any
    ) -> tuple[list[nn.Module], dict[str, Any]]:
        """What a name without a `modules.json` becomes: the host's hook, for want of a public one."""
        hub = {key: kwargs.get(key) for key in ("token", "revision", "local_files_only")}
        hub["cache_dir"] = kwargs.get("cache_folder")
        if find_adapter_config_file(model_name_or_path, **hub) is not None:
            raise ValueError(
                f"{model_name_or_path} is an adapter; build a model with it first: "
                f"python -m xvlm2vec_st build {model_name_or_path} OUT"
            )
        hub["trust_remote_code"] = kwargs.get("trust_remote_code", False)
        each = {
            name: hub | (kwargs.get(name) or {})
            for name in ("model_kwargs", "processor_kwargs", "config_kwargs")
        }
        family = AutoConfig.from_pretrained(model_name_or_path, **each["config_kwargs"]).model_type
        known = family in FILES or family in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
        if self.template is None and not known:
            return super()._load_default_modules(model_name_or_path, **kwargs)
        return embedder_modules(model_name_or_path, template=self.template, **each), {}


def register_captured_outputs(model: nn.Module) -> None:
    """Say which states transformers can capture, which a model's `__init__` does and unpickling does not.

    transformers 5.23 and 5.24, modeling_utils.py.
    """
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            output_capturing._CAN_RECORD_REGISTRY[module] = module._can_record_outputs


def drop_capturing_hooks(model: nn.Module) -> None:
    """Remove the hooks that transformers adds in a first forward; the next one adds them again.

    They are local functions, which no process that is started anew can receive (transformers 5.23 and 5.24,
    utils/output_capturing.py, `install_output_capuring_hook`).
    """
    for module in model.modules():
        for key, hook in list(module._forward_hooks.items()):
            if getattr(hook, "__module__", "").endswith(".output_capturing"):
                del module._forward_hooks[key]
        if getattr(module, "_output_capturing_hooks_installed", False):
            module._output_capturing_hooks_installed = False


def name_native(modules: Path) -> None:
    """Write the native type for ours, so that stock sentence-transformers loads the folder."""
    entries = json.loads(modules.read_text("utf-8"))
    for entry in entries:
        if entry["type"] == f"{LVLM.__module__}.{LVLM.__name__}":
            entry["type"] = f"{Transformer.__module__}.{Transformer.__name__}"
    modules.write_text(json.dumps(entries, indent=2), "utf-8")
