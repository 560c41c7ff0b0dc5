"""Collate corpus rows to the feature groups of the loss."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from sentence_transformers.base.data_collator import BaseDataCollator

from xvlm2vec_st.data.corpus import SOURCE
from xvlm2vec_st.data.dataset import check_columns
from xvlm2vec_st.data.row_images import open_row_image
from xvlm2vec_st.encoding.inputs import text_input


@dataclass(frozen=True)
class RowText:
    """One text of a row as an input of `encode`, with the row's image if it has one.

    Attributes:
        row: place of the row in the batch; -1: no row.
        language: 0 for English, else 1 + the place in the collator's languages.
        input: a text, or a dict of text and image.
    """

    row: int
    language: int
    input: Any


@dataclass
class ParallelCollator(BaseDataCollator):
    """Turn rows of `load_parallel` into features for `MultilingualDistillationLoss`.

    With `shared`, for a model that shares prefixes or a run in several processes, there is one group `texts_*`:
    the features that `model.preprocess` returns for all texts of all rows, `row` (which row of the batch a text
    belongs to) and `language` (0: English, else 1 + the place in `languages`).

    Otherwise there are up to four groups: `en_text_*` and `en_image_*` (English without and with an image),
    `translated_text_*` and `translated_image_*`. So texts without an image are not padded to the length of an
    image. Each group holds `row`, `language` and `side` ("en" or "translated").

    `ids` lists the rows' ids. An image is decoded once per row, for all its languages.

    Attributes:
        languages: columns of the translations.
        shared: whether all texts form one group.
        inputs: add the English inputs to their groups, for a teacher that preprocesses or caches them.
        image_size: resize every image to squares of this many pixels; None: keep the size.
        stand_in: with `shared`: add a blank image in a text of row -1 to batches without an image.
        limit: maximum tokens per text; None: any number.
        tokenizer: the model's, to tell a text that is as long as the limit from a truncated one.

    Raises:
        ValueError: a text is longer than `limit`. sentence-transformers would truncate it silently, and the
            last token of a truncated text is another one.
    """

    languages: Sequence[str] = ()
    shared: bool = False
    inputs: bool = False
    image_size: int | None = None
    stand_in: bool = False
    limit: int | None = None
    tokenizer: Any = None

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate a list of rows; empty groups are left out."""
        groups: dict[str, list[RowText]] = {}
        for row in features:
            check_columns(list(row), self.languages)
        texts = list(iter_texts(features, (SOURCE, *self.languages), self.image_size))
        if self.stand_in and self.shared and all(isinstance(text.input, str) for text in texts):
            blank = Image.new("RGB", (32, 32))
            texts.append(RowText(-1, 0, {"image": blank, "text": features[0][SOURCE]}))
        for text in texts:
            kind = "text" if isinstance(text.input, str) else "image"
            side = "translated" if text.language else SOURCE
            groups.setdefault("texts" if self.shared else f"{side}_{kind}", []).append(text)
        ids = [row["id"] for row in features]
        batch: dict[str, Any] = {"ids": ids}
        for group, members in groups.items():
            collated = collate_group(group.split("_")[0], members, self.preprocess_fn, self.inputs)
            if self.limit is not None:
                self._check_lengths(collated, members, ids, self.limit)
            batch |= {f"{group}_{key}": value for key, value in collated.items()}
        return batch

    def _check_lengths(self, features: dict[str, Any], texts: list[RowText], ids: list[str], limit: int) -> None:
        full = features["attention_mask"].sum(-1) >= limit
        for place in full.nonzero().flatten().tolist():
            text = texts[place]
            if self._length(text.input) <= limit:
                continue
            name = (SOURCE, *self.languages)[text.language]
            name += " text" if isinstance(text.input, str) else " text with its image"
            raise ValueError(
                f"row {ids[text.row]}: its {name} has more than the {limit} tokens of the model's "
                "max_seq_length; shorten it, raise max_seq_length, or remove the row"
            )

    def _length(self, item: Any) -> int:
        """Number of tokens of an input without truncation."""
        if isinstance(item, str):
            return len(self.tokenizer(item, truncation=False)["input_ids"])
        settings = {"text": {"truncation": False}}
        return self.preprocess_fn([text_input(item)], processing_kwargs=settings)["input_ids"].shape[1]


def iter_texts(
    rows: list[dict[str, Any]], languages: Sequence[str], image_size: int | None = None
) -> Iterator[RowText]:
    """Yield the texts of a batch's rows, in the order of `languages`."""
    for number, row in enumerate(rows):
        image = None if row["image"] is None else open_row_image(row["image"], row["id"], decode=True)
        if image is not None and image_size is not None:
            image = image.resize((image_size, image_size))
        for language, code in enumerate(languages):
            if row[code] is not None:
                yield RowText(number, language, row[code] if image is None else {"image": image, "text": row[code]})


def collate_group(group: str, texts: list[RowText], preprocess: Callable, inputs: bool = False) -> dict[str, Any]:
    """Preprocess the texts of a group, and add its bookkeeping: see `ParallelCollator`."""
    features = {
        **preprocess([text_input(text.input) for text in texts]),
        "row": torch.tensor([text.row for text in texts]),
        "language": torch.tensor([text.language for text in texts]),
    }
    if inputs and group != "translated":
        features["inputs"] = [text.input for text in texts if text.language == 0 and text.row >= 0]
    return features if group == "texts" else features | {"side": group}
