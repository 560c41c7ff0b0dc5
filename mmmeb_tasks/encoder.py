"""The mteb encoder for sentence-transformers models: exact MMMEB texts, together with pictures."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from datasets import Dataset, Image
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ScoringFunction
from mteb.types import BatchedInput, EncodeKwargs, PromptType
from numpy.typing import NDArray
from PIL.Image import Image as Picture
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modality_types import Modality
from sentence_transformers.base.modules import Module
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from mmmeb_tasks.files import Kind
from mmmeb_tasks.instructions import STYLES, Style, render_query, render_target
from mmmeb_tasks.retrieval import MMMEBMetadata

# Pictures are decoded for so many batches at once: enough for sentence-transformers to sort by
# length, few enough for memory (512 pictures of 640 x 480 take 0.5 GB).
BATCHES_A_BLOCK = 8


@dataclass(frozen=True, slots=True)
class Item:
    """What one row gives the model: a text, a picture (path or bytes, and their hash), or both."""

    text: str | None = None
    picture: str | None = None
    source: Path | bytes | None = None

    @property
    def key(self) -> tuple[str | None, str | None]:
        """Equal for items that give the model the same."""
        return self.picture, self.text


class MMMEBEncoder(AbsEncoder):
    """A sentence-transformers model as mteb encoder.

    On MMMEB tasks each row is the exact text of its kind, language and side, with its picture;
    other tasks go through as they are. What was encoded once is kept, so one encoder stands for
    one state of the weights: after more training, make a new one.

    Args:
        model: the model; its own prompts are not used, MMMEB's texts hold the instruction.
        name: name in results; the folder or Hub name by default.
        style: how texts end, one of `STYLES`.
        batch_size: rows a forward pass; `None`: what mteb says (32 when nobody asked).
        show_progress: a bar while encoding, unless mteb's `show_progress_bar` is off.

    Raises:
        ValueError: an unknown style.
    """

    mteb_model_meta: ModelMeta

    def __init__(
        self,
        model: SentenceTransformer,
        *,
        name: str | None = None,
        style: Style = "plain",
        batch_size: int | None = 64,
        show_progress: bool = True,
    ) -> None:
        """Wrap the model and name its state."""
        if style not in STYLES:
            raise ValueError(f"unknown style {style!r}; known: {', '.join(STYLES)}")
        self.model = model
        self.style = style
        self.batch_size = batch_size
        self.show_progress = show_progress
        self.mteb_model_meta = model_meta(model, name=name, style=style)
        self._vectors: dict[tuple[str | None, str | None], NDArray[np.float32]] = {}

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
        """Embeddings of all rows, (rows, dimensions), float32, as the model gives them.

        Raises:
            ValueError: rows hold what the model does not take; an unknown language; a picture that
                cannot be read; a `precision` other than float32.
        """
        if kwargs.get("precision") not in (None, "float32"):
            raise ValueError(f"precision {kwargs['precision']!r}: scores are of float32 only")
        kind = task_metadata.kind if isinstance(task_metadata, MMMEBMetadata) else None
        # The rows themselves: the loader's batches would decode pictures that are encoded already.
        rows = inputs.dataset
        if not isinstance(rows, Dataset):  # mteb's pair classification has a torch dataset
            rows = Dataset.from_list([rows[i] for i in range(len(rows))])  # type: ignore[arg-type]
        items = [*read_items(rows, kind, hf_subset, prompt_type, self.style)]
        refuse_unsupported(self.model, items, task_metadata.name)
        new = {item.key: item for item in items if item.key not in self._vectors}
        batch_size = self.batch_size or kwargs.get("batch_size", 32)
        show = self.show_progress and kwargs.get("show_progress_bar", True)
        label = f"{task_metadata.name} {hf_subset} {prompt_type.value if prompt_type else ''}"
        with tqdm(total=len(new), desc=label, disable=not show, leave=False) as progress:
            for block in _blocks([*new.values()], batch_size * BATCHES_A_BLOCK):
                vectors = self._embed(block, batch_size)
                self._vectors.update(zip((item.key for item in block), vectors, strict=True))
                progress.update(len(block))
        return np.stack([self._vectors[item.key] for item in items])

    def _embed(self, items: Sequence[Item], batch_size: int) -> NDArray[np.float32]:
        vectors = self.model.encode(
            [model_input(item) for item in items],
            prompt="",  # not None, which stands for the model's default prompt
            batch_size=batch_size,
            show_progress_bar=False,
            convert_to_numpy=True,
        )
        return np.asarray(vectors, dtype=np.float32)


def read_items(
    rows: Dataset, kind: Kind | None, lang: str, prompt_type: PromptType | None, style: Style
) -> Iterator[Item]:
    """Rows of mteb as what the model gets; `kind` is None for tasks that are not of MMMEB."""
    # mteb strips a document's text and keeps the original as "body".
    text = "body" if kind and "body" in rows.column_names else "text"
    texts = rows[text][:] if text in rows.column_names else [None] * len(rows)
    pictures: Sequence[dict | None] = [None] * len(rows)
    if "image" in rows.column_names:
        pictures = rows.cast_column("image", Image(decode=False))["image"][:]
    render = render_query if prompt_type == PromptType.query else render_target
    for text, picture in zip(texts, pictures, strict=True):
        rendered = render(kind, lang, text, style=style) if kind else text
        if picture is None:
            yield Item(rendered)
            continue
        source = picture["bytes"] or Path(picture["path"])
        data = source.read_bytes() if isinstance(source, Path) else source
        yield Item(rendered, sha256(data).hexdigest(), source)


def model_input(item: Item) -> str | dict[str, str | Picture]:
    """An item as sentence-transformers takes it; the picture is RGB.

    Raises:
        ValueError: the picture cannot be read.

    >>> model_input(Item("a dog"))
    'a dog'
    """
    if item.source is None:
        return item.text or ""
    data, path = item.source, None
    if isinstance(item.source, Path):
        data, path = item.source.read_bytes(), str(item.source)
    try:
        # The host's reading (it turns pictures upright), so that all models see the same pixels.
        picture = Image().decode_example({"bytes": data, "path": path}).convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"picture {path or '(in the data)'} cannot be read: {error}") from error
    return {"image": picture} if item.text is None else {"image": picture, "text": item.text}


def refuse_unsupported(model: SentenceTransformer, items: Sequence[Item], task: str) -> None:
    """Raise where the model would not get all that the rows hold.

    Raises:
        ValueError: rows have a picture, or a picture with a text, and the model does not take it.
    """
    for image, text in {(item.picture is not None, item.text is not None) for item in items}:
        modality: Modality = ("image", "text") if image and text else "image" if image else "text"
        if not model.supports(modality):
            needs = modality if isinstance(modality, str) else " with ".join(modality)
            raise ValueError(
                f"{task} has rows of {needs}, but the model takes {model.modalities}; nothing is "
                f"left out silently, so it cannot be scored on {task}"
            )


def model_meta(model: SentenceTransformer, *, name: str | None, style: Style) -> ModelMeta:
    """What mteb files results under: name, a revision made from the weights, and modalities."""
    name = name or model_name(model)
    return ModelMeta.create_empty(
        overwrites={
            "name": name if "/" in name else f"local/{name}",
            "revision": model_revision(model),
            "modalities": [m for m in ("text", "image") if model.supports(m)],
            "embed_dim": model.get_embedding_dimension(),
            "similarity_fn_name": ScoringFunction.COSINE,
            "framework": ["Sentence Transformers", "PyTorch"],
            "use_instructions": True,
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
    """A hash of the weights and of the settings of every module (pooling, pictures, template).

    Made from the model in memory and not from files: weights may have changed since loading, and
    two states of one folder must not share a result. 1 GB of weights takes about a second.
    """
    digest = sha256()
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


def _blocks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
