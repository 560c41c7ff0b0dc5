"""What a row gives a model: a text, a picture, or both; and which rows give the same."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from datasets import Dataset, Image
from mteb.types import PromptType
from PIL.Image import Image as Picture

from mmmeb_tasks.files import Kind
from mmmeb_tasks.instructions import Style, render_label, render_query, render_target
from mmmeb_tasks.texts import GUESSED, as_text, printable

Key = tuple[str | None, str | None]


@dataclass(frozen=True, slots=True)
class Item:
    """What one row gives the model: a text, a picture (path or bytes, and their hash), or both."""

    text: str | None = None
    picture: str | None = None
    source: Path | bytes | None = None

    @property
    def key(self) -> Key:
        """Equal for items that give the model the same."""
        return self.picture, self.text


def file_id(path: Path) -> str:
    """The SHA-256 of a file's bytes; it is read again only after it has changed."""
    facts = path.stat()
    return _file_hash(path, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=1 << 17)  # MMMEB has about 10,000 pictures
def _file_hash(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def content_id(content: str | Path) -> str:
    """What identifies a candidate: the SHA-256 of its text, or of its picture's bytes.

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
) -> list[Item]:
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
    pictures: Sequence[dict | None] = [None] * len(rows)
    if "image" in rows.column_names:
        pictures = rows.cast_column("image", Image(decode=False))["image"][:]

    def rendered(text: str | None) -> str | None:
        if kind is None:
            return text
        if style is None:
            label = kind == "c" and prompt_type == PromptType.document and text is not None
            return render_label(lang, text) if label else text
        render = render_query if prompt_type == PromptType.query else render_target
        return render(kind, lang, text, style=style)

    return [_item(rendered(text), picture) for text, picture in zip(texts, pictures, strict=True)]


def _item(text: str | None, picture: dict | None) -> Item:
    if picture is None:
        return Item(text)
    if picture["bytes"]:
        return Item(text, sha256(picture["bytes"]).hexdigest(), picture["bytes"])
    return Item(text, file_id(Path(picture["path"])), Path(picture["path"]))


def neighbours(items: Sequence[Item]) -> list[Item]:
    """Distinct items; those that share a picture stand together, in the order of first appearance.

    >>> [i.text for i in neighbours([Item("a", "1"), Item("b", "2"), Item("c", "1"), Item("a", "1")])]
    ['a', 'c', 'b']
    """
    of_picture: dict[str | None, dict[Key, Item]] = {}
    for item in items:
        of_picture.setdefault(item.picture, {}).setdefault(item.key, item)
    return [item for group in of_picture.values() for item in group.values()]


def blocks(items: Sequence[Item], batch_size: int, batches: int) -> Iterator[list[Item]]:
    """Items as they go to the model: text-only ones first, many batches at once.

    sentence-transformers sorts what it gets by length. That helps texts, which are cut into blocks
    of `batches` batches; it would tear rows of one picture apart, so a block of pictures is one
    batch, and a picture's rows are in one batch as long as they fit.

    >>> items = [Item("a", "1"), Item("b"), Item("c", "2"), Item("d", "2"), Item("e", "3")]
    >>> [[i.text for i in block] for block in blocks(items, 2, 8)]
    [['b'], ['a'], ['c', 'd'], ['e']]
    """
    texts = [item for item in items if item.picture is None]
    for start in range(0, len(texts), batch_size * batches):
        yield texts[start : start + batch_size * batches]
    of_picture: dict[str, list[Item]] = {}
    for item in items:
        if item.picture is not None:
            of_picture.setdefault(item.picture, []).append(item)
    batch: list[Item] = []
    for group in of_picture.values():
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
    item: Item, decoded: dict[str | None, Picture] | None = None, modalities: Iterable[Any] = GUESSED
) -> str | dict[str, Any]:
    """An item as sentence-transformers takes it; the picture is RGB.

    Args:
        item: what to give.
        decoded: pictures that were read before, by their hash; what is read is added.
        modalities: what the model takes.

    Raises:
        ValueError: the picture cannot be read.

    >>> model_input(Item("a dog"))
    'a dog'
    """
    if item.source is None:
        return as_text(item.text or "", modalities)
    decoded = {} if decoded is None else decoded
    if item.picture not in decoded:
        decoded[item.picture] = _read(item.source)
    picture = decoded[item.picture]
    return {"image": picture} if item.text is None else {"image": picture, "text": item.text}


def _read(source: Path | bytes) -> Picture:
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
        raise ValueError(f"picture {shown} cannot be read: {printable(error)}") from error
