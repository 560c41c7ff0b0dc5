"""What results are filed under: a model's name, and a revision that is a hash of its weights."""

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import torch
from mteb.models import ModelMeta
from mteb.models.model_meta import ScoringFunction
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Module

from mmmeb_tasks.instructions import Style


def model_meta(
    model: SentenceTransformer, *, name: str | None, style: Style = "plain", instructions: bool = True
) -> ModelMeta:
    """What mteb files results under: name, a hash of the weights as revision, and modalities."""
    name = name or model_name(model)
    return ModelMeta.create_empty(
        overwrites={
            "name": name if "/" in name else f"local/{name}",
            "revision": model_revision(model),
            "modalities": [m for m in ("text", "image") if model.supports(m)],
            "embed_dim": model.get_embedding_dimension(),
            "similarity_fn_name": ScoringFunction.COSINE,
            "framework": ["Sentence Transformers", "PyTorch"],
            "use_instructions": instructions,
            # Styles have other scores, so they have other result files.
            "experiment_kwargs": None if style == "plain" else {"style": style},
        }
    )


def model_name(model: SentenceTransformer) -> str:
    """The Hub name the model was loaded from, or `local/` and its folder's or class's name."""
    origin = getattr(getattr(model[0], "config", None), "name_or_path", "")
    if origin and not Path(origin).exists():
        return origin
    return f"local/{Path(origin).resolve().name if origin else type(model).__name__}"


def model_revision(model: SentenceTransformer) -> str:
    """A hash of the weights, the prompts and the settings of every module (pooling, images, template).

    Made from the model in memory and not from files: weights may have changed since loading, and
    two states of one folder must not share a result. 1 GB of weights takes about a second.
    """
    digest = sha256(json.dumps([model.prompts, model.default_prompt_name], sort_keys=True).encode())
    for module in model:
        digest.update("\n".join(_settings(module)).encode())
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()[:40]


def _settings(module: torch.nn.Module) -> Iterator[str]:
    """What decides a module's output beside its weights."""
    if isinstance(module, Module):
        yield json.dumps(module.get_config_dict(), sort_keys=True, default=str)
    if processor := getattr(module, "processor", None):
        yield str(getattr(processor, "chat_template", None))
        if hasattr(processor, "to_json_string"):  # a tokenizer has none
            yield processor.to_json_string()


class OwnMeta(ModelMeta):
    """A description of a model that reads images without torchvision.

    mteb demands its extra "image" (torchvision) of every model that takes images, before loading.
    """

    def _resolve_extras_groups(self) -> list[str]:
        return [*(self.extra_requirements_groups or ())]
