"""The baselines of the paper that mteb lacks, as models that run by name.

Each is a tower for texts and one for images in one space; a row of both is the sum of its two
unit vectors. SigLIP (`google/siglip-base-patch16-256-multilingual`) is mteb's own model and takes
both, too.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, Unpack

import numpy as np
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ScoringFunction
from mteb.types import BatchedInput, EncodeKwargs, PromptType
from numpy.typing import NDArray
from PIL.Image import Image as PILImage
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from mmmeb_tasks.models.inputs import unit
from mmmeb_tasks.models.model_meta import OwnMeta
from mmmeb_tasks.utils.texts import as_text

Texts = Callable[[Sequence[str], int], NDArray[np.float32]]
Images = Callable[[Sequence[PILImage], int], NDArray[np.float32]]


class TwoTowers(AbsEncoder):
    """A text tower and an image tower in one space, as mteb encoder.

    Args:
        texts: texts, batch size -> vectors (texts, dimensions).
        images: RGB images, batch size -> vectors (images, dimensions).
    """

    def __init__(self, texts: Texts, images: Images) -> None:
        """Take the towers."""
        self.texts, self.images = texts, images

    def encode(
        self,
        inputs: DataLoader[BatchedInput],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **kwargs: Unpack[EncodeKwargs],
    ) -> NDArray[np.float32]:
        """Vectors of all rows, (rows, dimensions), float32.

        Raises:
            ValueError: rows with neither text nor image.
        """
        size, parts = kwargs.get("batch_size", 32), []
        for batch in tqdm(inputs, desc=task_metadata.name, disable=not kwargs.get("show_progress_bar", True)):
            vectors = []
            if "text" in batch:
                vectors.append(unit(self.texts(batch["text"], size)))
            if "image" in batch:
                images = [image.convert("RGB") for image in batch["image"]]
                vectors.append(unit(self.images(images, size)))
            if not vectors:
                raise ValueError(f"{task_metadata.name}: rows have {', '.join(batch)}, neither text nor image")
            parts.append(sum(vectors))
        return np.concatenate(parts).astype(np.float32)


def multilingual_clip(name: str, revision: str | None = None, *, partner: str, **kwargs: Any) -> TwoTowers:
    """Two sentence-transformers models: texts by `name`, images by `partner`."""
    from sentence_transformers import SentenceTransformer

    device = kwargs.get("device")
    towers = (
        SentenceTransformer(name, revision=revision, device=device),
        SentenceTransformer(partner, device=device),
    )

    def tower(model: SentenceTransformer) -> Callable[[Sequence[Any], int], NDArray[np.float32]]:
        modalities = model.modalities

        def vectors(items: Sequence[Any], size: int) -> NDArray[np.float32]:
            plain = [as_text(i, modalities) if isinstance(i, str) else i for i in items]
            return model.encode(plain, batch_size=size, show_progress_bar=False)

        return vectors

    return TwoTowers(*map(tower, towers))


def m_clip(name: str, revision: str | None = None, *, image_tower: tuple[str, str], **kwargs: Any) -> TwoTowers:
    """M-CLIP: XLM-R, the mean over its tokens and a linear map for texts; OpenCLIP for images.

    Raises:
        ValueError: open_clip is not installed; weights that do not fit.
    """
    import torch

    try:
        import open_clip
    except ModuleNotFoundError as error:
        raise ValueError(f"{name} needs OpenCLIP for its images: pip install open_clip_torch") from error
    device = torch.device(kwargs.get("device") or ("cuda" if torch.cuda.is_available() else "cpu"))
    architecture, weights = image_tower
    vision, _, prepare = open_clip.create_model_and_transforms(architecture, pretrained=weights)
    vision = vision.to(device).eval()
    texts = _m_clip_texts(name, revision, device)

    def images(items: Sequence[PILImage], size: int) -> NDArray[np.float32]:
        with torch.inference_mode():
            pixels = torch.stack([prepare(image) for image in items]).to(device)
            return vision.encode_image(pixels).float().cpu().numpy()

    return TwoTowers(texts, images)


def _m_clip_texts(name: str, revision: str | None, device: Any) -> Texts:
    import torch
    from huggingface_hub import hf_hub_download
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    with open(hf_hub_download(name, "config.json", revision=revision), encoding="utf-8") as file:
        config = json.load(file)
    transformer = AutoModel.from_config(AutoConfig.from_pretrained(config["modelBase"]), add_pooling_layer=False)
    linear = torch.nn.Linear(config["transformerDimensions"], config["numDims"])
    model = torch.nn.ModuleDict({"transformer": transformer, "LinearTransformation": linear})
    path = hf_hub_download(name, "pytorch_model.bin", revision=revision)
    state = torch.load(path, map_location="cpu", weights_only=True)
    # Older transformers saved positions, and a pooling layer that the text tower does not use.
    lost = model.load_state_dict(state, strict=False).missing_keys
    if lost:
        raise ValueError(f"{path} has no weights for {lost[0]} and {len(lost) - 1} more")
    model = model.to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)

    def texts(items: Sequence[str], size: int) -> NDArray[np.float32]:
        with torch.inference_mode():
            inputs = tokenizer([*items], padding=True, truncation=True, return_tensors="pt").to(device)
            states = model["transformer"](**inputs).last_hidden_state
            mask = inputs["attention_mask"].unsqueeze(2)
            mean = (states * mask).sum(1) / mask.sum(1)
            return model["LinearTransformation"](mean).float().cpu().numpy()

    return texts


def _meta(name: str, loader: Callable[..., TwoTowers], embed_dim: int, **loader_kwargs: Any) -> ModelMeta:
    return OwnMeta.create_empty(
        overwrites={
            "name": name,
            "revision": "main",
            "loader": loader,
            "loader_kwargs": loader_kwargs,
            "modalities": ["text", "image"],
            "embed_dim": embed_dim,
            "open_weights": True,
            "similarity_fn_name": ScoringFunction.COSINE,
            "framework": ["PyTorch"],
            "reference": f"https://huggingface.co/{name}",
            "use_instructions": False,
        }
    )


BASELINES: tuple[ModelMeta, ...] = (
    _meta(
        "sentence-transformers/clip-ViT-B-32-multilingual-v1",
        multilingual_clip,
        512,
        partner="sentence-transformers/clip-ViT-B-32",
    ),
    _meta(
        "M-CLIP/XLM-Roberta-Large-Vit-B-16Plus",
        m_clip,
        640,
        image_tower=("ViT-B-16-plus-240", "laion400m_e32"),
    ),
)
