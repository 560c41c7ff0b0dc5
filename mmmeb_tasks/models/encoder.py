"""The mteb encoder for sentence-transformers models: exact MMMEB texts, together with images."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, Unpack, cast

import numpy as np
from datasets import Dataset
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import ModelMeta, SentenceTransformerEncoderWrapper
from mteb.models.abs_encoder import AbsEncoder
from mteb.types import BatchedInput, EncodeKwargs, PromptType
from numpy.typing import NDArray
from PIL.Image import Image as PILImage
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modality_types import Modality
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from mmmeb_tasks.instructions import STYLES, Style
from mmmeb_tasks.metadata import MMMEBMetadata
from mmmeb_tasks.models.inputs import Key, ModelInput, blocks, model_input, neighbours, read_items, unit
from mmmeb_tasks.models.model_meta import model_meta
from mmmeb_tasks.utils.texts import PlainTexts

# Texts go to sentence-transformers in so many batches at once, to be sorted by length.
BATCHES_A_BLOCK = 8


class MMMEBEncoder(AbsEncoder):
    """A sentence-transformers model as mteb encoder.

    On MMMEB tasks each row is the exact text of its kind, language and side, with its image; a
    model that takes no image together with a text (CLIP) gets the bare content instead, and for
    a row of both the sum of the two unit vectors. What was encoded once is kept, so one encoder
    stands for one state of the weights: after more training, make a new one. Other tasks are encoded
    as mteb does it, with the model's own prompts.

    Args:
        model: the model; its own prompts are not used on MMMEB, whose texts hold the instruction.
        name: name in results; the folder or Hub name by default.
        style: how texts end, one of `STYLES`.
        batch_size: rows a forward pass; `None`: what mteb says (32 when nobody asked).
        show_progress: a bar while encoding, unless mteb's `show_progress_bar` is off.
        instructions: whether texts hold instructions; `None`: if the model takes an image together
            with a text.

    Raises:
        ValueError: an unknown style; a style for a model without instructions.
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
        instructions: bool | None = None,
    ) -> None:
        """Wrap the model and name its state."""
        if style not in STYLES:
            raise ValueError(f"unknown style {style!r}; known: {', '.join(STYLES)}")
        if instructions is None:
            instructions = model.supports(("image", "text")) or not model.supports("image")
        if not instructions and style != "plain":
            raise ValueError(f"style {style!r} has no meaning for a model without instructions; leave it out")
        self.model = model
        self.style = style if instructions else None
        self.batch_size = batch_size
        self.show_progress = show_progress
        self.mteb_model_meta = model_meta(model, name=name, style=style, instructions=instructions)
        self._vectors: dict[Key, NDArray[np.float32]] = {}

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
            ValueError: rows hold what the model does not take; an unknown language; an image that
                cannot be read; a `precision` other than float32.
        """
        rows: Any = inputs.dataset
        both = {"image", "text"} <= {*rows.features}
        if not isinstance(task_metadata, MMMEBMetadata) and not (both and self.style is None):
            text, image = ("" if column in rows.features else None for column in ("text", "image"))
            refuse_unsupported(self.model, [ModelInput(text, image)], task_metadata.name)
            kwargs["batch_size"] = self.batch_size or kwargs.get("batch_size", 32)
            plain: Any = PlainTexts(inputs, self.model.modalities)
            vectors = self._as_mteb.encode(
                plain,
                task_metadata=task_metadata,
                hf_split=hf_split,
                hf_subset=hf_subset,
                prompt_type=prompt_type,
                **kwargs,
            )
            return cast(NDArray[np.float32], vectors)
        # The rows themselves: the loader's batches would decode images that are encoded already.
        items = self.read(rows, task_metadata, hf_subset, prompt_type)
        return self.embed(items, task=f"{task_metadata.name} {hf_subset}", **kwargs)

    @cached_property
    def _as_mteb(self) -> SentenceTransformerEncoderWrapper:
        """How mteb encodes, which reads prompts by the task's name, its type and the side."""
        wrapper = SentenceTransformerEncoderWrapper(self.model)
        wrapper.mteb_model_meta = self.mteb_model_meta  # mteb's own leaves out images
        return wrapper

    def read(
        self, rows: Dataset, task_metadata: TaskMetadata, lang: str, prompt_type: PromptType | None
    ) -> list[ModelInput]:
        """Rows as what the model gets."""
        kind = task_metadata.kind if isinstance(task_metadata, MMMEBMetadata) else None
        return read_items(rows, kind, lang, prompt_type, self.style)

    def embed(
        self,
        items: Sequence[ModelInput],
        *,
        task: str,
        ahead: Iterable[ModelInput] = (),
        **kwargs: Unpack[EncodeKwargs],
    ) -> NDArray[np.float32]:
        """Vectors of items, (items, dimensions); each distinct one is encoded once.

        Args:
            items: what to embed.
            task: its name, for the bar and for messages.
            ahead: items that will be asked for later; those that share an image with an item are
                encoded beside it.
            **kwargs: mteb's; `batch_size`, `show_progress_bar` and `precision` are read.

        Raises:
            ValueError: as `encode`.
        """
        if kwargs.get("precision") not in (None, "float32"):
            raise ValueError(f"precision {kwargs['precision']!r}: scores are of float32 only")
        both = [item for item in items if item.image and item.text is not None]
        if self.style is None and both:
            return self._sums(items, both, task=task, **kwargs)
        refuse_unsupported(self.model, items, task.split()[0])
        new = [item for item in neighbours([*items, *ahead]) if item.key not in self._vectors]
        batch_size = self.batch_size or kwargs.get("batch_size", 32)
        show = self.show_progress and kwargs.get("show_progress_bar", True)
        with tqdm(total=len(new), desc=task, disable=not show, leave=False) as progress:
            for block in blocks(new, batch_size, BATCHES_A_BLOCK):
                vectors = self._embed(block, batch_size)
                self._vectors.update(zip((item.key for item in block), vectors, strict=True))
                progress.update(len(block))
        return np.stack([self._vectors[item.key] for item in items])

    def _sums(self, items: Sequence[ModelInput], both: Sequence[ModelInput], **kwargs: Any) -> NDArray[np.float32]:
        """Unit vector of the image plus unit vector of the text, for rows that have both."""
        images = self.embed([ModelInput(None, item.image, item.source) for item in both], **kwargs)
        texts = self.embed([ModelInput(item.text) for item in both], **kwargs)
        keys = [item.key for item in both]
        vectors = dict(zip(keys, unit(images) + unit(texts), strict=True))
        if rest := [item for item in items if item.key not in vectors]:
            keys = [item.key for item in rest]
            vectors |= zip(keys, self.embed(rest, **kwargs), strict=True)
        return np.stack([vectors[item.key] for item in items])

    def _embed(self, items: Sequence[ModelInput], batch_size: int) -> NDArray[np.float32]:
        images: dict[str | None, PILImage] = {}  # decoded once for the rows that share one
        modalities = self.model.modalities
        vectors = self.model.encode(
            [model_input(item, images, modalities) for item in items],
            prompt="",  # not None, which stands for the model's default prompt
            batch_size=batch_size,
            show_progress_bar=False,
            convert_to_numpy=True,
        )
        return np.asarray(vectors, dtype=np.float32)


def refuse_unsupported(model: SentenceTransformer, items: Sequence[ModelInput], task: str) -> None:
    """Raise where the model would not get all that the rows hold.

    Raises:
        ValueError: rows have an image, or an image with a text, and the model does not take it.
    """
    for image, text in {(item.image is not None, item.text is not None) for item in items}:
        modality: Modality = ("image", "text") if image and text else "image" if image else "text"
        if not model.supports(modality):
            needs = modality if isinstance(modality, str) else " with ".join(modality)
            raise ValueError(
                f"{task} has rows of {needs}, but the model takes {model.modalities}; nothing is "
                f"left out silently, so it cannot be scored on {task}"
            )
