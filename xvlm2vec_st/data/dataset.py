"""Parallel corpora: one JSON object a line, an English text with its translations and its image.

    {"id": "MSCOCO_i2t/17/qry", "image": "images/17.jpg", "en": "Find an …", "it": "Trova …"}

`image` may be null, a language may be missing. Texts hold no image token: the chat template places
the image. All translations of a text stand in one row because they share its image.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features, Value
from PIL import Image
from sentence_transformers.base.data_collator import BaseDataCollator
from tqdm import tqdm

from xvlm2vec_st.data.corpus import (
    SOURCE,
    ParallelRow,
    check_languages,
    lines_of,
    parse_row,
    read_files,
    read_parallel,
    row_of,
)
from xvlm2vec_st.data.corpus_checks import Tally, check_present, corpus_files
from xvlm2vec_st.encoding.inputs import text_input
from xvlm2vec_st.images.archives import image_file, images_place
from xvlm2vec_st.images.opening import check_regular, image_errors
from xvlm2vec_st.images.opening import open_image as open_pixels
from xvlm2vec_st.images.opening import upright_size as file_size
from xvlm2vec_st.images.paths import check_inside, image_place
from xvlm2vec_st.utils.texts import printable

__all__ = [
    "ParallelCollator",
    "ParallelRow",
    "check_languages",
    "load_parallel",
    "open_image",
    "parse_row",
    "read_parallel",
]


def load_parallel(
    path: str | Path | Sequence[str | Path],
    languages: Sequence[str],
    *,
    images: str | Path | None = None,
    outside_images: bool = False,
    show_progress: bool = True,
) -> Dataset:
    """A corpus of one file or several as a memory-mapped `datasets.Dataset`, checked in one pass.

    Columns: `id`, `image` (absolute path or None), `en`, and each of `languages` (text or None).
    Images are found under `images`, a folder or a zip, tar or parquet file (default: a file's own
    folder), and opened, not yet decoded: every time, also where the rows come from the datasets cache.

    Rows name no image outside of it, by `..`, an absolute path or a link, unless `outside_images` allows it.

    Raises:
        ValueError: a bad line, an id in two rows, a language twice or unknown to all files, a
            missing, unreadable or outside image or archive, no rows. The message names file, line, value.
    """
    paths = corpus_files([path] if isinstance(path, str | Path) else path)
    check_languages(languages)
    place = images_place(images)
    columns = [SOURCE, *languages]
    check_present(paths, languages)
    contents = tuple(map(digest_of, paths))

    def rows(contents: tuple) -> Iterator[dict[str, str | None]]:
        """`contents` are part of the cache's key: an edited file is read anew."""
        tally = Tally(languages)
        with tqdm(desc=f"reading {paths[0].name}", unit=" rows", disable=not show_progress) as bar:
            for file, row in read_files(paths, languages):
                tally.add(row, file)
                image = None if row.image is None else image_place(row.image, place or file.parent)
                texts = dict.fromkeys(languages) | {SOURCE: row.english} | row.translations
                yield {"id": row.id, "image": image, **texts}
                bar.update()
        tally.check(paths)

    features = Features({name: Value("string") for name in ("id", "image", *columns)})
    try:
        data = Dataset.from_generator(rows, features=features, gen_kwargs={"contents": contents})
    except Exception as error:  # datasets wraps what a generator raises
        cause = error.__cause__
        if isinstance(cause, ValueError):
            raise cause from None
        raise
    roots = None if outside_images else [os.path.realpath(place or file.parent) for file in paths]
    check_images(data, paths, roots, show_progress=show_progress)
    return data


def digest_of(path: Path) -> str:
    """What tells one content of a file from another."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_images(
    data: Dataset, paths: Sequence[Path], roots: list[str] | None, *, show_progress: bool
) -> None:
    """Open each image of a corpus once.

    Args:
        data: the rows.
        paths: the corpus' files.
        roots: the folders and archives that images must lie in; None: anywhere.
        show_progress: whether a bar is shown.

    Raises:
        ValueError: as `open_image` and `check_inside`, with the row's file and line.
    """
    roots = roots and list(dict.fromkeys(roots))
    seen: set[str] = set()
    columns = data.select_columns(["id", "image"])
    with tqdm(desc="opening images", total=len(data), unit=" rows", disable=not show_progress) as bar:
        for part in columns.iter(10_000):
            for row, image in zip(part["id"], part["image"], strict=True):
                if image is not None and image not in seen:
                    try:
                        if roots is not None:
                            check_row_inside(image, row, roots)
                        open_image(image, row).close()
                    except ValueError as error:
                        raise ValueError(f"{line_of(row, paths)}, {error}") from error
                    seen.add(image)
            bar.update(len(part["id"]))


def line_of(row: str, paths: Sequence[Path]) -> str:
    """The file and line that a row's id stands in."""
    lines = ((path, number, line) for path in paths for number, line in lines_of(path))
    return next(f"{p}, line {n}" for p, n, line in lines if row_of(p, n, line, ()).id == row)


def check_row_inside(image: str, row: str, roots: list[str]) -> None:
    """As `check_inside`, with the row's id."""
    try:
        check_inside(image, roots)
    except ValueError as error:
        raise ValueError(f"row {printable(row)}: {error}") from error


def check_columns(columns: Sequence[str], languages: Sequence[str]) -> None:
    """Refuse rows without a column that training reads.

    Raises:
        ValueError: one that is missing, with what there is.

    >>> check_columns(["id", "image", "en", "it"], ["it"])
    """
    for name in ("id", "image", SOURCE, *languages):
        if name not in columns:
            kind = "language" if name in languages else "column"
            raise ValueError(
                f"the rows have no {kind} {name!r}, only {', '.join(columns)}; load them with "
                "load_parallel(…, languages) for the languages that are trained"
            )


def open_image(path: str, row: str, *, decode: bool = False) -> Image.Image:
    """Open a row's image; with `decode`, load it as RGB, upright.

    Raises:
        ValueError: no such file, or no image, with the row's id and the path.
    """
    try:
        file = image_file(path)
        if isinstance(file, str):
            os.stat(file)
            check_regular(file)
        if decode:
            return open_pixels(file).convert("RGB")
        with image_errors(path):
            return Image.open(file)
    except FileNotFoundError:
        raise ValueError(
            f"row {printable(row)}: image {printable(path)} not found; pass --images with the folder or "
            "archive it is in"
        ) from None
    except (OSError, ValueError) as error:
        raise ValueError(
            f"row {printable(row)}: image {printable(path)} cannot be read: {printable(error)}"
        ) from error


def upright_size(path: str, row: str) -> tuple[int, int]:
    """(width, height) of a row's image as `open_image` decodes it; only its head is read."""
    open_image(path, row).close()
    try:
        return file_size(image_file(path))
    except ValueError as error:
        raise ValueError(
            f"row {printable(row)}: image {printable(path)} cannot be read: {printable(error)}"
        ) from error


@dataclass(frozen=True)
class Item:
    """One text of a row, as `encode` takes it, with its image if there is one."""

    row: int
    language: int
    given: Any


@dataclass
class ParallelCollator(BaseDataCollator):
    """Rows of `load_parallel` → features for `MultilingualDistillationLoss`.

    With `shared`, for a model that shares prefixes, and for one that runs in several processes: one
    group `texts_*`, with the features that `model.preprocess` gives for all texts of all rows, `row`
    (which row of the batch a text belongs to) and `language` (0: English, else 1 + the place in
    `languages`).

    Otherwise four groups at most: `en_text_*` and `en_image_*` (English, without and with an image),
    `translated_text_*` and `translated_image_*`, so that texts alone are not padded to the length of
    images; each holds `row`, `language` and `side` ("en" or "translated").

    `ids` lists the rows' ids. An image is decoded once a row, whatever the number of languages.

    Attributes:
        given: whether groups with English texts hold the inputs themselves too, for a teacher that
            reads in its own way or keeps its targets.
        image_size: pixels to which both sides of every image are resized; None: as they are.
        stand_in: with `shared`: whether a batch without an image gets one in a text of row -1.
        limit: tokens that the model takes at most; None: any number.
        tokenizer: the model's, to tell a text that is as long as the limit from one that was cut.

    Raises:
        ValueError: a row longer than `limit`: the host would cut it without a word, and a last token
            that is not the last says something else.
    """

    languages: Sequence[str] = ()
    shared: bool = False
    given: bool = False
    image_size: int | None = None
    stand_in: bool = False
    limit: int | None = None
    tokenizer: Any = None

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate a list of rows; groups without an item are left out."""
        groups: dict[str, list[Item]] = {}
        for row in features:
            check_columns(list(row), self.languages)
        items = list(items_of(features, (SOURCE, *self.languages), self.image_size))
        if self.stand_in and self.shared and all(isinstance(item.given, str) for item in items):
            blank = Image.new("RGB", (32, 32))
            items.append(Item(-1, 0, {"image": blank, "text": features[0][SOURCE]}))
        for item in items:
            kind = "text" if isinstance(item.given, str) else "image"
            side = "translated" if item.language else SOURCE
            groups.setdefault("texts" if self.shared else f"{side}_{kind}", []).append(item)
        ids = [row["id"] for row in features]
        batch: dict[str, Any] = {"ids": ids}
        for group, members in groups.items():
            found = collate_group(group.split("_")[0], members, self.preprocess_fn, self.given)
            if self.limit is not None:
                self._check_lengths(found, members, ids)
            batch |= {f"{group}_{key}": value for key, value in found.items()}
        return batch

    def _check_lengths(self, features: dict[str, Any], items: list[Item], ids: list[str]) -> None:
        full = features["attention_mask"].sum(-1) >= self.limit
        for place in full.nonzero().flatten().tolist():
            item = items[place]
            alone = isinstance(item.given, str)
            if self._length(item.given) <= self.limit:
                continue
            what = (SOURCE, *self.languages)[item.language] + (" text" if alone else " text with its image")
            raise ValueError(
                f"row {ids[item.row]}: its {what} is longer than the {self.limit} tokens that the model "
                "takes; shorten it, raise max_seq_length, or leave the row out"
            )

    def _length(self, given: Any) -> int:
        """Tokens of an input that nothing is cut off."""
        if isinstance(given, str):
            return len(self.tokenizer(given, truncation=False)["input_ids"])
        whole = {"text": {"truncation": False}}
        return self.preprocess_fn([text_input(given)], processing_kwargs=whole)["input_ids"].shape[1]


def items_of(
    rows: list[dict[str, Any]], languages: Sequence[str], image_size: int | None = None
) -> Iterator[Item]:
    """The texts of a batch's rows, English first."""
    for number, row in enumerate(rows):
        image = None if row["image"] is None else open_image(row["image"], row["id"], decode=True)
        if image is not None and image_size is not None:
            image = image.resize((image_size, image_size))
        for language, code in enumerate(languages):
            if row[code] is not None:
                given = row[code] if image is None else {"image": image, "text": row[code]}
                yield Item(number, language, given)


def collate_group(group: str, items: list[Item], preprocess: Callable, given: bool = False) -> dict[str, Any]:
    """Preprocessed items, and what they are: see `ParallelCollator`."""
    features = {
        **preprocess([text_input(item.given) for item in items]),
        "row": torch.tensor([item.row for item in items]),
        "language": torch.tensor([item.language for item in items]),
    }
    if given and group != "translated":
        features["given"] = [item.given for item in items if item.language == 0 and item.row >= 0]
    return features if group == "texts" else features | {"side": group}
