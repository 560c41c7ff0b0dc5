"""A drop-in for sentence-transformers' class that knows what a raw LVLM checkpoint needs."""

from pathlib import Path
from typing import Any

import sentence_transformers
from sentence_transformers.sentence_transformer.modules import Transformer
from torch import nn
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.utils import find_adapter_config_file

from xvlm2vec_st.families import embedder_modules, pin_backend
from xvlm2vec_st.templates import FILES


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
            an adapter's folder.

    Example::

        model = SentenceTransformer("llava-hf/llava-1.5-7b-hf")
        model.encode([{"image": "dog.jpg", "text": "Represent the image"}, "A dog"])
    """

    def __init__(
        self, model_name_or_path: str | None = None, *, template: str | Path | None = None, **kwargs: Any
    ) -> None:
        self.template = template
        super().__init__(model_name_or_path, **kwargs)

    def save(self, path: str, *args: Any, **kwargs: Any) -> None:
        """The host's `save`, and which code resizes pictures: see `pin_backend`."""
        super().save(path, *args, **kwargs)
        if len(self) and isinstance(self[0], Transformer):
            pin_backend(Path(path), self[0])

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
