"""Check the images of a corpus: one process opens each once, in threads, and notes that all of them can be opened."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import TypeVar

import torch
from datasets import Dataset
from PIL import Image
from tqdm import tqdm

from xvlm2vec_st.data.corpus import blocks, iter_lines, parse_line
from xvlm2vec_st.data.image_notes import ImageNote
from xvlm2vec_st.data.row_images import open_row_image
from xvlm2vec_st.images.archives import resolve_image_root
from xvlm2vec_st.images.paths import check_inside, split_place
from xvlm2vec_st.utils.texts import printable

THREADS = 16  # they wait for the disk
SLICE = 256  # images that a thread takes at a time
PART = 10_000  # rows that are read at a time
# An archive's reader is one file with one position and, for parquet, one row group.
READER = threading.Lock()
Images = Sequence[tuple[str, str]]  # (row, place)
Result = TypeVar("Result")


class BadImage(ValueError):
    """The image of a row cannot be used."""

    def __init__(self, row: str, reason: str) -> None:
        super().__init__(reason)
        self.row = row


def is_first_process() -> bool:
    """Whether this is the first process of a run, or the only one.

    Before torch's process group exists, the variables of `torchrun` and `accelerate launch` tell.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank() == 0
    return "LOCAL_RANK" not in os.environ or os.environ.get("RANK", "0") == "0"


def check_image_files(
    data: Dataset,
    paths: Sequence[Path],
    *,
    images: str | Path | None = None,
    outside_images: bool = False,
    show_progress: bool = True,
) -> None:
    """Open each image of a corpus once, without decoding it; not again while nothing has changed.

    See `image_notes` for what counts as a change, and where it is noted.

    Args:
        data: the rows, with absolute places of images.
        paths: the corpus files, absolute.
        images: see `load_parallel`.
        outside_images: see `load_parallel`.
        show_progress: show a progress bar.

    Raises:
        ValueError: the first image, in the order of the corpus, that is missing, unreadable or outside; with the
            row's file and line.
    """
    root = resolve_image_root(images)
    roots = None if outside_images else [*dict.fromkeys(os.path.realpath(root or file.parent) for file in paths)]
    note, bars = ImageNote(paths, root), {"total": len(data), "unit": " rows", "disable": not show_progress}
    with tqdm(desc="comparing images", delay=1, **bars) as bar:
        states = in_threads(data, lambda part: [note.state(place) for _, place in part], bar)
        state = note.state_of_all(states, roots)
    if note.holds(state):
        return
    # Pillow 13 finds out about its formats on the first file that needs it; a thread that comes meanwhile is told that
    # no format fits (Image.py, `open`: init() returns False).
    Image.init()
    try:
        with tqdm(desc="opening images", **bars) as bar:
            for _ in in_threads(data, lambda part: open_images(part, roots), bar):
                pass
    except BadImage as bad:
        raise ValueError(f"{find_line(bad.row, paths)}, {bad}") from bad
    note.write(state)


def in_threads(data: Dataset, work: Callable[[Images], Result], bar: tqdm) -> Iterator[Result]:
    """What `work` returns for slices of a corpus' distinct images, in the order of the corpus.

    The error of the first slice that has one is raised.
    """
    seen: set[str] = set()
    with ThreadPoolExecutor(THREADS) as threads:
        for part in data.select_columns(["id", "image"]).iter(PART):
            rows: dict[str, str] = {}
            for row, image in zip(part["id"], part["image"], strict=True):
                if image is not None and image not in seen:
                    rows.setdefault(image, row)
            seen |= rows.keys()
            yield from threads.map(work, blocks(((row, image) for image, row in rows.items()), SLICE))
            bar.update(len(part["id"]))


def open_images(part: Images, roots: list[str] | None) -> None:
    """Open images one after the other.

    Raises:
        BadImage: see `open_row_image` and `check_inside`.
    """
    for row, place in part:
        try:
            if roots is not None:
                check_row_inside(place, row, roots)
            with nullcontext() if split_place(place)[1] is None else READER:
                open_row_image(place, row).close()
        except ValueError as error:
            raise BadImage(row, str(error)) from error


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
