"""The published data: MMEB-train by subset, and the authors' parallel file."""

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download

from xvlm2vec_st.data.corpus import ParallelRow, check_id, shorten, without_image_tokens
from xvlm2vec_st.images.archives import image_exists
from xvlm2vec_st.images.paths import check_inside, image_place
from xvlm2vec_st.utils.texts import fault_of, is_blank

from .names import SUBSETS
from .readers import parquet_records

MMEB = "TIGER-Lab/MMEB-train"
MMEB_REVISION = "0c3f4b828d347c4e8508339f99530f6c820061fd"
SIDES = {
    "qry": ("qry", "qry_image_path"),
    "pos": ("pos_text", "pos_image_path"),
    "neg": ("neg_text", "neg_image_path"),
}
IMAGE_TOKEN = "<|image_1|>"


def check_subsets(subsets: Sequence[str]) -> None:
    """Refuse unknown subsets.

    Raises:
        ValueError: an unknown name, with the nearest ones.

    >>> check_subsets(["MSCOCO_i2t"])
    """
    for name in subsets:
        if name not in SUBSETS:
            close = difflib.get_close_matches(name, SUBSETS, n=3, cutoff=0.3)
            raise ValueError(f"unknown subset {name!r}; {', '.join(close or SUBSETS)}")


def download_mmeb(subsets: Sequence[str]) -> Path:
    """MMEB-train's tables of some subsets, from the Hub's cache or the Hub; not its images.

    Raises:
        ValueError: they are not in the cache, and the Hub does not give them.
    """
    patterns = [f"{subset}/*.parquet" for subset in subsets]
    try:
        return Path(
            snapshot_download(
                MMEB,
                repo_type="dataset",
                revision=MMEB_REVISION,
                allow_patterns=patterns,
                # huggingface_hub 1.33 asks for the list of files when it is offline.
                local_files_only=constants.HF_HUB_OFFLINE,
            )
        )
    except OSError as error:  # what the Hub's client raises, offline mode among it
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{', '.join(subsets)} of {MMEB} are not in the cache, and could not be downloaded from the Hub ({cause}); "
            "allow the download (unset HF_HUB_OFFLINE), or pass --mmeb-data with a copy"
        ) from error


def mmeb_records(data: Path, subset: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(row number, record) of a subset, from `data/SUBSET/*.parquet`, of several splits the original one.

    Raises:
        ValueError: no table of the subset.
    """
    files = sorted((data / subset).glob("*.parquet"))
    files = [file for file in files if file.name.startswith("original")] or files
    if not files:
        raise ValueError(f"{data / subset}: no parquet file; pass --mmeb-data with a copy of {MMEB}")
    number = 0
    for file in files:
        for record in parquet_records(file):
            yield number, record
            number += 1


def mmeb_rows(
    number: int, record: Mapping[str, Any], subset: str, images: Path, outside: bool = False
) -> tuple[list[ParallelRow], list[tuple[str, str, str]]]:
    """(a row for each side that has a text, (id, what is wrong, text) of the others).

    A side has an image if and only if its text has the image token and its path is not empty; one
    without the other is refused.

    >>> record = {"qry": "<|image_1|>\\nWhat is it?", "qry_image_path": "a.jpg", "pos_text": "dog"}
    >>> [(r.id, r.image, r.english) for r in mmeb_rows(7, record, "OK-VQA", Path("data"))[0]]
    [('OK-VQA/7/qry', 'data/a.jpg', 'What is it?'), ('OK-VQA/7/pos', None, 'dog')]
    """
    rows, wrong = [], []
    for side, (text_column, path_column) in SIDES.items():
        text, path = record.get(text_column), record.get(path_column)
        if text_column not in record and side != "neg":
            raise ValueError(f"{subset}, row {number}: no column {text_column!r}; it has {', '.join(record)}")
        row_id = f"{subset}/{number}/{side}"
        if not isinstance(text, str | None) or not isinstance(path, str | None):
            raise ValueError(
                f"{subset}, row {number}: {text_column} and {path_column} are texts or null; "
                f"got {shorten(text)}, {shorten(path)}"
            )
        english = without_image_tokens(text or "").lstrip()
        if is_blank(english):
            continue
        if fault := fault_of(english):
            raise ValueError(f"{subset}, row {number}: {text_column} {fault}")
        if bool(path) != (IMAGE_TOKEN in text):
            token = "an" if IMAGE_TOKEN in text else "no"
            wrong.append((row_id, f"{path_column} is {path!r}, the text has {token} image token", english))
        else:
            image = inside(path, images, f"{subset}, row {number}", outside=outside) if path else None
            rows.append(ParallelRow(row_id, image, english, {}))
    return rows, wrong


def check_images(subset: str, rows: Sequence[ParallelRow]) -> None:
    """Refuse a subset whose rows have images of which none is there.

    Raises:
        ValueError: that is so; with where the images come from.
    """
    images = [row.image for row in rows if row.image is not None]
    if images and not any(map(image_exists, images)):
        raise ValueError(
            f"{subset}: none of its {len(images):,} images is there, the first is {images[0]}; unpack "
            f"images_zip/*.zip of {MMEB} into FOLDER/images and pass --images FOLDER, or keep the rows "
            "all the same with --no-check-images"
        )


def inside(name: str, root: Path, where: str, *, outside: bool) -> str:
    """Where an image lies by its name in a row.

    Raises:
        ValueError: outside of `root`, unless `outside` allows it.
    """
    place = image_place(name, root)
    if not outside:
        try:
            check_inside(place, [os.path.realpath(root)])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    return place


def authors_row(
    record: Mapping[str, Any],
    number: int,
    root: Path,
    language: str | None,
    options: Any,
) -> ParallelRow | tuple[str, str, str]:
    """A record of the authors' file (`id, text_en, text_lang, img_en, img_lang`) as a row.

    Where the two sides have different images: (id, what is wrong, English text).

    Its language: a field `lang` or `language`, else `language`, else the only one asked for. Ids
    repeat from language to language, so the line's number is part of ours.

    Raises:
        ValueError: there is no English text, or the language is unknown.

    >>> record = {"id": "3", "text_en": "<|image_1|>\\na dog", "text_lang": "un cane", "img_en": "3.jpg"}
    >>> from recipes.translate.sources import Options
    >>> authors_row(record, 9, Path("data"), None, Options(languages=["it"]))
    ParallelRow(id='3#9', image='data/3.jpg', english='a dog', translations={'it': 'un cane'})
    """
    where = f"line {number}, id {shorten(record.get('id'))}"
    languages = options.languages
    code = record.get("lang") or record.get("language") or language
    code = code or (languages[0] if len(languages) == 1 else None)
    if not isinstance(code, str):
        raise ValueError(f"{where}: the language of text_lang is unknown; pass --source-language")
    for key in ("text_en", "text_lang", "img_en", "img_lang"):
        if not isinstance(record.get(key), str | None):
            raise ValueError(f"{where}: {key} is {shorten(record[key])}; a text or null is needed")
        if fault := fault_of(record.get(key) or ""):
            raise ValueError(f"{where}: {key} {fault}")
    english, translation = (without_image_tokens(record.get(key) or "").lstrip() for key in ("text_en", "text_lang"))
    if is_blank(english):
        raise ValueError(f"{where}: text_en is {shorten(record.get('text_en'))}; every row needs one")
    value = record.get("id", "")
    row_id = f"{value if value == '' else check_id(value, where)}#{number}"
    ours, theirs = record.get("img_en") or None, record.get("img_lang") or None
    if ours != theirs and theirs is not None:
        return row_id, f"img_en is {ours!r} and img_lang {theirs!r}; a row has one image", english
    image = None if ours is None else inside(ours, root, where, outside=options.outside_images)
    kept = code in languages and not is_blank(translation)
    return ParallelRow(row_id, image, english, {code: translation} if kept else {})
