"""Load parallel corpora: one JSON object per line, with an English text, its translations and its image.

    {"id": "MSCOCO_i2t/17/qry", "image": "images/17.jpg", "en": "Find an …", "it": "Trova …"}

`image` may be null, and languages may be missing. Texts hold no image token: the chat template writes it. All
translations of a text stand in one row, because they share its image.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from datasets import Dataset, Features, Value
from tqdm import tqdm

from xvlm2vec_st.data.corpus import SOURCE, check_languages, iter_lines, parse_line, read_files
from xvlm2vec_st.data.corpus_checks import CorpusChecks, check_present, corpus_files
from xvlm2vec_st.data.row_images import open_row_image
from xvlm2vec_st.images.archives import resolve_image_root
from xvlm2vec_st.images.paths import check_inside, image_place
from xvlm2vec_st.utils.files import file_sha256
from xvlm2vec_st.utils.texts import printable


def load_parallel(
    path: str | Path | Sequence[str | Path],
    languages: Sequence[str],
    *,
    images: str | Path | None = None,
    outside_images: bool = False,
    check_images: bool = True,
    show_progress: bool = True,
) -> Dataset:
    """Load one or several corpus files as a memory-mapped `datasets.Dataset`, checked in one pass.

    Args:
        path: JSON Lines files, plain or gzip.
        languages: the translations to load.
        images: folder, zip, tar or parquet file of the images; default: the folder of each corpus file.
        outside_images: allow image paths that leave this folder by `..`, an absolute path or a link.
        check_images: open every image once, without decoding it. The rows come from the datasets cache where
            possible; the images are opened every time.
        show_progress: show progress bars.

    Returns:
        Columns `id`, `image` (absolute path or None), `en`, and one per language (text or None).

    Raises:
        ValueError: an invalid line; an id in two rows; a language that is listed twice or that no row has; an
            image or archive that is missing, unreadable or outside; no rows. The message names file, line and
            value.

    Example::

        corpus = load_parallel("corpus/parallel.jsonl", ["it", "es"])
    """
    paths = corpus_files([path] if isinstance(path, str | Path) else path)
    check_languages(languages)
    root = resolve_image_root(images)
    check_present(paths, languages)
    contents = tuple(map(file_sha256, paths))

    def rows(contents: tuple[str, ...]) -> Iterator[dict[str, str | None]]:
        """`contents` is part of the cache key: an edited file is read again."""
        checks = CorpusChecks(languages)
        with tqdm(desc=f"reading {paths[0].name}", unit=" rows", disable=not show_progress) as bar:
            for file, row in read_files(paths, languages):
                checks.add(row, file)
                image = None if row.image is None else image_place(row.image, root or file.parent)
                texts = dict.fromkeys(languages) | {SOURCE: row.english} | row.translations
                yield {"id": row.id, "image": image, **texts}
                bar.update()
        checks.finish(paths)

    features = Features({name: Value("string") for name in ("id", "image", SOURCE, *languages)})
    try:
        data = Dataset.from_generator(rows, features=features, gen_kwargs={"contents": contents})
    except Exception as error:  # datasets wraps what a generator raises
        cause = error.__cause__
        if isinstance(cause, ValueError):
            raise cause from None
        raise
    roots = None if outside_images else [os.path.realpath(root or file.parent) for file in paths]
    if check_images:
        open_images(data, paths, roots, show_progress=show_progress)
    return data


def open_images(data: Dataset, paths: Sequence[Path], roots: list[str] | None, *, show_progress: bool) -> None:
    """Open each image of a corpus once.

    Args:
        data: the rows.
        paths: the corpus files, for messages.
        roots: folders and archives that images must lie in; None: anywhere.
        show_progress: show a progress bar.

    Raises:
        ValueError: see `open_row_image` and `check_inside`; with the row's file and line.
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
                        open_row_image(image, row).close()
                    except ValueError as error:
                        raise ValueError(f"{find_line(row, paths)}, {error}") from error
                    seen.add(image)
            bar.update(len(part["id"]))


def find_line(row: str, paths: Sequence[Path]) -> str:
    """The file and line of a row's id."""
    lines = ((path, number, line) for path in paths for number, line in iter_lines(path))
    return next(f"{p}, line {n}" for p, n, line in lines if parse_line(p, n, line, ()).id == row)


def check_row_inside(image: str, row: str, roots: list[str]) -> None:
    """Call `check_inside`, and add the row's id to its message."""
    try:
        check_inside(image, roots)
    except ValueError as error:
        raise ValueError(f"row {printable(row)}: {error}") from error


def check_columns(columns: Sequence[str], languages: Sequence[str]) -> None:
    """Check that rows have all columns that training reads.

    Raises:
        ValueError: a column is missing; the message lists the columns.

    >>> check_columns(["id", "image", "en", "it"], ["it"])
    """
    for name in ("id", "image", SOURCE, *languages):
        if name not in columns:
            kind = "language" if name in languages else "column"
            raise ValueError(
                f"the rows have no {kind} {name!r}, only {', '.join(columns)}; load them with "
                "load_parallel(…, languages) for the languages that are trained"
            )
