"""Load parallel corpora: one JSON object per line, with an English text, its translations and its image.

    {"id": "MSCOCO_i2t/17/qry", "image": "images/17.jpg", "en": "Find an …", "it": "Trova …"}

`image` may be null, and languages may be missing. Texts hold no image token: the chat template writes it. All
translations of a text stand in one row, because they share its image.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow
from datasets import Dataset, Features, Value
from tqdm import tqdm

from xvlm2vec_st.data.corpus import (
    SOURCE,
    ParallelRow,
    blocks,
    check_languages,
    read_parallel,
)
from xvlm2vec_st.data.corpus_checks import CorpusChecks, check_present, corpus_files
from xvlm2vec_st.data.image_checks import check_image_files, is_first_process
from xvlm2vec_st.data.row_cache import cached_rows
from xvlm2vec_st.images.archives import resolve_image_root
from xvlm2vec_st.images.paths import image_place

ROWS = 1000  # of a table: as many as `datasets` writes at a time
# Names that pathlib leaves as they are: no part of them is empty or begins with a point. On Windows it turns slashes.
PLAIN_NAME = re.compile(r"[^./\\:][^/\\:]*" + (r"(?:/[^./\\:][^/\\:]*)*" if os.sep == "/" else ""))


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
        check_images: open every image once, without decoding it, in the first process of a run; not again while
            corpus and images are the same: see `image_notes`. The rows come from the datasets cache where possible.
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

    def tables() -> Iterator[pyarrow.Table]:
        checks = CorpusChecks(languages)
        with tqdm(desc=f"reading {paths[0].name}", unit=" rows", disable=not show_progress) as bar:
            for file in paths:
                for rows in blocks(read_parallel(file, languages), ROWS):
                    checks.add(rows, file)
                    yield row_table(rows, languages, root or file.parent)
                    bar.update(len(rows))
        checks.finish(paths)

    features = Features({name: Value("string") for name in ("id", "image", SOURCE, *languages)})
    data = cached_rows(paths, [repr(root and str(root)), *languages], features, tables)
    if check_images and is_first_process():
        check_image_files(data, paths, images=images, outside_images=outside_images, show_progress=show_progress)
    return data


def row_table(rows: Sequence[ParallelRow], languages: Sequence[str], root: str | Path) -> pyarrow.Table:
    """Rows as a table of texts: id, image (absolute), en, and one column per language.

    >>> row_table([ParallelRow("7", "a.png", "dog", {"it": "cane"})], ["it"], Path("/c")).to_pylist()
    [{'id': '7', 'image': '/c/a.png', 'en': 'dog', 'it': 'cane'}]
    """
    places = image_places({row.image for row in rows if row.image is not None}, root)
    columns: dict[str, list[str | None]] = {
        "id": [row.id for row in rows],
        "image": [row.image and places[row.image] for row in rows],
        SOURCE: [row.english for row in rows],
        **{code: [row.translations.get(code) for row in rows] for code in languages},
    }
    return pyarrow.table(columns, schema=pyarrow.schema([(name, pyarrow.string()) for name in columns]))


def image_places(names: Iterable[str], root: str | Path) -> dict[str, str]:
    """`{name: image_place(name, root)}`, without a `Path` per name, which takes longer than to parse a row.

    >>> image_places(["a/1.png", "../2.png"], Path("/c"))
    {'a/1.png': '/c/a/1.png', '../2.png': '/c/../2.png'}
    """
    before = image_place("x", root).removesuffix("x")
    return {name: before + name if PLAIN_NAME.fullmatch(name) else image_place(name, root) for name in names}


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
