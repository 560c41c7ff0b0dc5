"""What a row gives a model: a text, an image, or both; and which rows give the same."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Image
from mteb.types import PromptType
from numpy.typing import NDArray
from PIL.Image import Image as PILImage

from mmmeb_tasks.data.layout import Kind
from mmmeb_tasks.instructions import Style, render_label, render_query, render_target
from mmmeb_tasks.utils.texts import GUESSED, as_text, printable

Key = tuple[str | None, str | None]


@dataclass(frozen=True, slots=True)
class ModelInput:
    """What one row gives the model: a text, an image (path or bytes, and their hash), or both."""

    text: str | None = None
    image: str | None = None
    source: Path | bytes | None = None

    @property
    def key(self) -> Key:
        """Equal for items that give the model the same."""
        return self.image, self.text


def file_id(path: Path) -> str:
    """The SHA-256 of a file's bytes; it is read again only after it has changed."""
    facts = path.stat()
    return _file_hash(path, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=1 << 17)  # MMMEB has about 10,000 images
def _file_hash(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def content_id(content: str | Path) -> str:
    """What identifies a candidate: the SHA-256 of its text, or of its image's bytes.

    >>> content_id("dog") == content_id("dog") != content_id("cat")
    True
    """
    return file_id(content) if isinstance(content, Path) else sha256(content.encode()).hexdigest()


def read_items(
    rows: Dataset,
    kind: Kind | None,
    lang: str,
    prompt_type: PromptType | None,
    style: Style | None,
) -> list[ModelInput]:
    """Rows of mteb as what the model gets.

    Args:
        rows: with columns text, image, or both.
        kind: of MMMEB task, or None for tasks that are not of MMMEB: their texts stay as they are.
        lang: language of the rows.
        prompt_type: query or document.
        style: how texts of MMMEB end; None for a model without instructions: its texts are bare.
    """
    # mteb strips a document's text and keeps the original as "body".
    column = "body" if kind and "body" in rows.column_names else "text"
    texts = rows[column][:] if column in rows.column_names else [None] * len(rows)
    images: Sequence[dict | None] = [None] * len(rows)
    if "image" in rows.column_names:
        images = rows.cast_column("image", Image(decode=False))["image"][:]

    def rendered(text: str | None) -> str | None:
        if kind is None:
            return text
        if style is None:
            is_label = kind == "c" and prompt_type == PromptType.document
            return render_label(lang, text) if is_label and text is not None else text
        render = render_query if prompt_type == PromptType.query else render_target
        return render(kind, lang, text, style=style)

    return [_item(rendered(text), image) for text, image in zip(texts, images, strict=True)]


def _item(text: str | None, image: dict | None) -> ModelInput:
    if image is None:
        return ModelInput(text)
    if image["bytes"]:
        return ModelInput(text, sha256(image["bytes"]).hexdigest(), image["bytes"])
    return ModelInput(text, file_id(Path(image["path"])), Path(image["path"]))


def neighbours(items: Sequence[ModelInput]) -> list[ModelInput]:
    """Distinct items; those that share an image stand together, in the order of first appearance.

    >>> items = [ModelInput("a", "1"), ModelInput("b", "2"), ModelInput("c", "1"), ModelInput("a", "1")]
    >>> [item.text for item in neighbours(items)]
    ['a', 'c', 'b']
    """
    of_image: dict[str | None, dict[Key, ModelInput]] = {}
    for item in items:
        of_image.setdefault(item.image, {}).setdefault(item.key, item)
    return [item for group in of_image.values() for item in group.values()]


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of length 1.

    >>> unit(np.array([[3.0, 4.0]]))
    array([[0.6, 0.8]], dtype=float32)
    """
    vectors = np.asarray(vectors, dtype=np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def blocks(items: Sequence[ModelInput], batch_size: int, batches: int) -> Iterator[list[ModelInput]]:
    """Items as they go to the model: text-only ones first, many batches at once.

    sentence-transformers sorts what it gets by length. That helps texts, which are cut into blocks
    of `batches` batches; it would tear rows of one image apart, so a block of images is one
    batch, and an image's rows are in one batch as long as they fit.

    >>> pairs = [("a", "1"), ("b", None), ("c", "2"), ("d", "2"), ("e", "3")]
    >>> items = [ModelInput(text, image) for text, image in pairs]
    >>> [[i.text for i in block] for block in blocks(items, 2, 8)]
    [['b'], ['a'], ['c', 'd'], ['e']]
    """
    texts = [item for item in items if item.image is None]
    for start in range(0, len(texts), batch_size * batches):
        yield texts[start : start + batch_size * batches]
    of_image: dict[str, list[ModelInput]] = {}
    for item in items:
        if item.image is not None:
            of_image.setdefault(item.image, []).append(item)
    batch: list[ModelInput] = []
    for group in of_image.values():
        if batch and len(batch) + len(group) > batch_size:
            yield batch
            batch = []
        while len(group) > batch_size:
            yield group[:batch_size]
            group = group[batch_size:]
        batch += group
    if batch:
        yield batch


def model_input(
    item: ModelInput, decoded: dict[str | None, PILImage] | None = None, modalities: Iterable[Any] = GUESSED
) -> str | dict[str, Any]:
    """An item as sentence-transformers takes it; the image is RGB.

    Args:
        item: what to give.
        decoded: images that were read before, by their hash; what is read is added.
        modalities: what the model takes.

    Raises:
        ValueError: the image cannot be read.

    >>> model_input(ModelInput("a dog"))
    'a dog'
    """
    if item.source is None:
        return as_text(item.text or "", modalities)
    decoded = {} if decoded is None else decoded
    if item.image not in decoded:
        decoded[item.image] = _read(item.source)
    image = decoded[item.image]
    return {"image": image} if item.text is None else {"image": image, "text": item.text}


def _read(source: Path | bytes) -> PILImage:
    path = str(source) if isinstance(source, Path) else None
    try:
        data = source.read_bytes() if isinstance(source, Path) else source
        # mteb's own reading (it turns images upright), so that all models see the same pixels.
        return Image().decode_example({"bytes": data, "path": path}).convert("RGB")
    except MemoryError:
        raise
    except Exception as error:
        # Pillow's plugins raise OSError, SyntaxError, RuntimeError (AVIF), struct.error and others on a
        # damaged image.
        shown = printable(path or "(in the data)")
        raise ValueError(f"image {shown} cannot be read: {printable(error)}") from error
