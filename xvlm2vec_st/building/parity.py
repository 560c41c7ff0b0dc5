"""Compare a model with reference values that the model's own code gave: ids, image tokens, pooled token, embeddings.

The reference is a JSON file, beside the images that it names:

    {"model": "…", "rows": [{"text": "a dog", "image": "dog.png", "prompt": null, "input_ids": [1, …],
                             "pooled": 12, "embedding": [0.1, …]}]}

`text`, `image` and `prompt` are the input, and may be null; `image` may be a list. `input_ids` are those of the row
alone, without padding, after the processor has put in the image tokens. `pooled` is the position of the pooled token;
negative ids stand for image tokens that the reference numbers differently. `docs/parity.md` has a recorder.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from xvlm2vec_st.utils.modules import transformer_of

REQUIRED = ("input_ids", "pooled", "embedding")


@dataclass(frozen=True)
class Parity:
    """What a row has in common with its reference.

    Attributes:
        row: number of the row in the reference.
        ids: None if the token ids are equal, else the first difference.
        images: None if image tokens stand at the same positions, else how they differ.
        pooled: None if the same token is pooled, else which are.
        cosine: cosine of the two embeddings.
    """

    row: int
    ids: str | None
    images: str | None
    pooled: str | None
    cosine: float

    def agrees(self, tolerance: float) -> bool:
        """Whether everything is equal, and the embeddings up to `1 - cosine <= tolerance`."""
        return not (self.ids or self.images or self.pooled) and 1 - self.cosine <= tolerance


def read_reference(file: str | Path) -> list[dict[str, Any]]:
    """The rows of a reference file, with paths of images made absolute.

    Raises:
        ValueError: the file is missing or is not a reference; a row lacks a value; an image is missing.
    """
    path = Path(file)
    try:
        rows = json.loads(path.read_text("utf-8"))["rows"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path} is not a reference ({type(error).__name__}: {error}); it is JSON: {{"rows": [{{…}}]}}'
        ) from error
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path} has no rows; record at least one")
    return [checked_row(path, number, row) for number, row in enumerate(rows)]


def checked_row(path: Path, number: int, row: Any) -> dict[str, Any]:
    """One row of a reference, with absolute paths.

    Raises:
        ValueError: a value is missing; an image is missing.
    """
    missing = [name for name in REQUIRED if not isinstance(row, dict) or row.get(name) is None]
    if missing:
        raise ValueError(f"{path}, row {number}: {', '.join(missing)} missing; record the row again")
    images = row.get("image")
    images = [images] if isinstance(images, str) else images or []
    for image in images:
        if not (path.parent / image).is_file():
            raise ValueError(f"{path}, row {number}: no image {image} beside the reference; copy it there")
    return row | {"image": [str(path.parent / image) for image in images]}


def check_parity(model: SentenceTransformer, rows: list[dict[str, Any]]) -> list[Parity]:
    """Compare a model with the rows of a reference.

    Args:
        model: the built model.
        rows: see `read_reference`.

    Example::

        check_parity(SentenceTransformer("./model"), read_reference("reference.json"))[0].cosine
    """
    return [compare(model, number, row) for number, row in enumerate(rows)]


@torch.no_grad()
def compare(model: SentenceTransformer, number: int, row: dict[str, Any]) -> Parity:
    """Embed one row, and compare it."""
    item = {"image": row["image"] if len(row["image"]) > 1 else row["image"][0]} if row["image"] else {}
    item |= {"text": row["text"]} if row.get("text") else {}
    features = model.preprocess([item], prompt=row.get("prompt"))
    real = features["attention_mask"][0].bool()
    ids = features["input_ids"][0][real].tolist()
    is_image = image_positions(model, features)[real].tolist()
    expected = [int(value) for value in row["input_ids"]]
    vector = model.encode([item], prompt=row.get("prompt") or "", convert_to_numpy=True, show_progress_bar=False)[0]
    reference = np.asarray(row["embedding"], dtype=np.float64)
    if vector.shape != reference.shape:
        raise ValueError(
            f"row {number}: the model has {len(vector)} dimensions and the reference {len(reference)}; build the "
            "checkpoint that the reference was recorded with"
        )
    norm = np.linalg.norm(vector) * np.linalg.norm(reference)
    return Parity(
        number,
        first_difference(model, ids, expected, is_image),
        image_difference(ids, is_image, expected),
        pooled_difference(model, ids, expected, int(row["pooled"]) % len(expected)),
        float(vector.astype(np.float64) @ reference / norm),
    )


def image_positions(model: SentenceTransformer, features: dict[str, Any]) -> Tensor:
    """Which tokens of the first row are image tokens, (tokens,) bool."""
    if "mm_token_type_ids" in features:
        return cast(Tensor, features["mm_token_type_ids"][0] == 1)
    number = image_id(model)
    return torch.isin(features["input_ids"][0], torch.tensor([] if number is None else [number]))


def image_id(model: SentenceTransformer) -> int | None:
    """The id of an image token; None if the model has none."""
    config = transformer_of(model).config
    return getattr(config, "image_token_id", None) or getattr(config, "image_token_index", None)


def first_difference(model: SentenceTransformer, ids: list[int], expected: list[int], image: list[bool]) -> str | None:
    """The first token that differs, in words."""
    if len(ids) != len(expected):
        return (
            f"{len(ids)} tokens, and {len(expected)} in the reference; the last are {shown(model, ids[-4:])}, and "
            f"{shown(model, expected[-4:])}"
        )
    for place, (first, second) in enumerate(zip(ids, expected, strict=True)):
        if first != second and not (second < 0 and image[place]):
            return f"token {place} is {shown(model, [first])}, and {shown(model, [second])} in the reference"
    return None


def image_difference(ids: list[int], image: list[bool], expected: list[int]) -> str | None:
    """How the positions of image tokens differ, in words."""
    own = [place for place, each in enumerate(image) if each]
    numbers = {ids[place] for place in own}
    theirs = [place for place, each in enumerate(expected) if each < 0 or each in numbers]
    if own == theirs:
        return None
    return f"{len(own)} image tokens from {own[:1]} on, and {len(theirs)} from {theirs[:1]} on in the reference"


def pooled_difference(model: SentenceTransformer, ids: list[int], expected: list[int], pooled: int) -> str | None:
    """Which tokens are pooled, in words; the model pools its last."""
    if ids[-1] == expected[pooled] and len(ids) - 1 == pooled:
        return None
    return (
        f"token {len(ids) - 1}, {shown(model, ids[-1:])}, is pooled, and {pooled}, "
        f"{shown(model, expected[pooled : pooled + 1])}, in the reference"
    )


def shown(model: SentenceTransformer, ids: list[int]) -> str:
    """Tokens as text, for messages."""
    return repr("".join(model.tokenizer.decode([i]) if i >= 0 else "<image>" for i in ids))
