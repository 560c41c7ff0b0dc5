"""Parallel corpora: one JSON object a line, an English text with its translations and its picture.

    {"id": "MSCOCO_i2t/17/qry", "image": "images/17.jpg", "en": "Find an …", "it": "Trova …"}

`image` may be null, a language may be missing. Texts hold no image token: the chat template places
the picture. All translations of a text stand in one row because they share its picture.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features, Value
from PIL import Image
from sentence_transformers.base.data_collator import BaseDataCollator
from tqdm import tqdm

SOURCE = "en"


@dataclass(frozen=True)
class ParallelRow:
    """One English text, its translations `{language: text}`, its picture's path or None."""

    id: str
    image: str | None
    english: str
    translations: dict[str, str] = field(default_factory=dict)


def parse_row(line: str, number: int, languages: Sequence[str]) -> ParallelRow:
    """One corpus line as a row with the asked `languages`, as far as it has them.

    Raises:
        ValueError: no JSON object, no id, no English, an empty text; names line and value.

    >>> parse_row('{"id": "7", "image": null, "en": "dog", "it": "cane"}', 1, ["it", "de"])
    ParallelRow(id='7', image=None, english='dog', translations={'it': 'cane'})
    """
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number}: no JSON ({error}): {line[:80]!r}") from error
    if not isinstance(record, dict):
        raise ValueError(
            f"line {number}: a JSON object is needed, got {type(record).__name__}: {line[:80]!r}"
        )
    where = f"line {number}, id {record.get('id')!r}"
    if not isinstance(record.get("id"), str | int):
        raise ValueError(f"{where}: 'id' must be a text or a number")
    if not isinstance(record.get("image"), str | None):
        raise ValueError(f"{where}: 'image' must be a path or null, got {record['image']!r}")
    if record.get(SOURCE) is None:
        raise ValueError(f"{where}: no English text ('{SOURCE}'); every row needs one")
    texts = {lang: record[lang] for lang in (SOURCE, *languages) if record.get(lang) is not None}
    for lang, text in texts.items():
        if not isinstance(text, str) or not text.strip():
            raise ValueError(
                f"{where}: the {lang!r} text is {text!r}; give a text, or leave the language out"
            )
    return ParallelRow(str(record["id"]), record.get("image"), texts.pop(SOURCE), texts)


def read_parallel(path: str | Path, languages: Sequence[str]) -> Iterator[ParallelRow]:
    """Yield the rows of a corpus file one at a time; blank lines are passed over.

    Raises:
        ValueError: as `parse_row`, with the file's name before it.
    """
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield parse_row(line.strip(), number, languages)
                except ValueError as error:
                    raise ValueError(f"{path}, {error}") from error


def load_parallel(
    path: str | Path,
    languages: Sequence[str],
    *,
    images: str | Path | None = None,
    show_progress: bool = True,
) -> Dataset:
    """A corpus file as a memory-mapped `datasets.Dataset`, checked in one pass.

    Columns: `id`, `image` (absolute path or None), `en`, and each of `languages` (text or None).
    Pictures are found under `images` (default: the file's folder) and opened, not yet decoded.

    Raises:
        ValueError: a bad line, a language twice or unknown to the whole file, a missing or
            unreadable picture, an empty file. The message names file, line, and value.
    """
    path = Path(path)
    check_languages(languages)
    if not path.is_file():
        raise ValueError(f"{path}: no such corpus file")
    root = Path(images) if images is not None else path.parent
    columns = [SOURCE, *languages]
    stat = path.stat()

    def rows(size: int, changed: int) -> Iterator[dict[str, str | None]]:
        """`size` and `changed` are part of the cache's key: an edited file is read anew."""
        seen: set[str] = set()
        empty = True
        with tqdm(desc=f"reading {path.name}", unit=" rows", disable=not show_progress) as bar:
            for row in read_parallel(path, languages):
                image = None
                if row.image is not None:
                    image = str(root / row.image)
                    if image not in seen:
                        open_image(image, row.id).close()
                        seen.add(image)
                texts = dict.fromkeys(languages) | {SOURCE: row.english} | row.translations
                yield {"id": row.id, "image": image, **texts}
                bar.update()
                empty = False
        if empty:
            raise ValueError(f"{path}: no rows")

    features = Features({name: Value("string") for name in ("id", "image", *columns)})
    try:
        data = Dataset.from_generator(
            rows, features=features, gen_kwargs={"size": stat.st_size, "changed": stat.st_mtime_ns}
        )
    except Exception as error:  # datasets wraps what a generator raises
        cause = error.__cause__
        if isinstance(cause, ValueError):
            raise cause from None
        raise
    for language in languages:
        if data.data.column(language).null_count == len(data):
            raise ValueError(f"{path}: no row has language {language!r}; ask for one that is there")
    return data


def check_languages(languages: Sequence[str]) -> None:
    """Refuse an empty choice, English, doubles, and codes that are no language's.

    >>> check_languages(["it", "pt-BR"])
    """
    if not languages:
        raise ValueError("no languages asked for; name at least one, as in it,es,fr,de")
    if len(set(languages)) != len(languages):
        raise ValueError(f"a language is asked for twice: {', '.join(languages)}")
    for code in languages:
        head = code.split("-")[0].split("_")[0]
        if code == SOURCE:
            raise ValueError("English is the source of every row; ask for the other languages only")
        if not (head.isascii() and head.isalpha() and head.islower() and 2 <= len(head) <= 3):
            raise ValueError(f"unknown language {code!r}; use codes such as it, pt, pt-BR, zh-Hant")


def open_image(path: str, row: str, *, decode: bool = False) -> Image.Image:
    """Open a row's picture; with `decode`, load it as RGB.

    Raises:
        ValueError: no such file, or no picture, with the row's id and the path.
    """
    try:
        picture = Image.open(path)
        return picture.convert("RGB") if decode else picture
    except FileNotFoundError:
        raise ValueError(
            f"row {row}: image {path} not found; pass --images with the folder it is in"
        ) from None
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"row {row}: image {path} cannot be read: {error}") from error


@dataclass
class ParallelCollator(BaseDataCollator):
    """Rows of `load_parallel` → features for `MultilingualDistillationLoss`.

    With `shared`, for a model that shares prefixes: one group `texts_*`, with the features that
    `model.preprocess` gives for all texts of all rows, `row` (which row of the batch a text belongs
    to) and `language` (0: English, else 1 + the place in `languages`).

    Otherwise four groups at most: `en_text_*` and `en_image_*` (English, without and with a picture),
    `translated_text_*` and `translated_image_*`, so that texts alone are not padded to the length of
    pictures; each holds `row` and `side` ("en" or "translated").

    A picture is decoded once a row, whatever the number of languages.
    """

    languages: Sequence[str] = ()
    shared: bool = False

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Collate a list of rows; groups without an item are left out."""
        groups: dict[str, list[Item]] = {}
        for item in items_of(features, (SOURCE, *self.languages)):
            kind = "text" if isinstance(item.given, str) else "image"
            side = "translated" if item.language else SOURCE
            groups.setdefault("texts" if self.shared else f"{side}_{kind}", []).append(item)
        return {
            f"{group}_{key}": value
            for group, items in groups.items()
            for key, value in collate_group(group.split("_")[0], items, self.preprocess_fn).items()
        }


@dataclass(frozen=True)
class Item:
    """One text of a row, as `encode` takes it, with its picture if there is one."""

    row: int
    language: int
    given: Any


def items_of(rows: list[dict[str, Any]], languages: Sequence[str]) -> Iterator[Item]:
    """The texts of a batch's rows, English first."""
    for number, row in enumerate(rows):
        picture = None if row["image"] is None else open_image(row["image"], row["id"], decode=True)
        for language, code in enumerate(languages):
            if row[code] is not None:
                given = row[code] if picture is None else {"image": picture, "text": row[code]}
                yield Item(number, language, given)


def collate_group(group: str, items: list[Item], preprocess: Callable) -> dict[str, Any]:
    """Preprocessed items, and what they are: see `ParallelCollator`."""
    features = {**preprocess([item.given for item in items]), "row": torch.tensor([i.row for i in items])}
    if group == "texts":
        return features | {"language": torch.tensor([item.language for item in items])}
    return features | {"side": group}
