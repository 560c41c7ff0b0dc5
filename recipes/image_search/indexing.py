"""Bring an index up to date with its folder of images."""

import argparse
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from xvlm2vec_st import SentenceTransformer
from xvlm2vec_st.utils.folders import Destination
from xvlm2vec_st.utils.texts import one_line

from .models import load_index_model
from .reading import Photo, read_ahead, read_photo, register_heif
from .scan import Problem, find_files
from .store import ImageIndex, Row, Space
from .tables import TABLE, find_table, is_url

AHEAD = 4  # files that are read and decoded while the model computes
ROWS_AT_ONCE = 256  # in a transaction; a kill loses fewer embeddings, and a batch


@dataclass
class Report:
    """What a run did.

    Args:
        images: files in the index.
        embedded: images that the model embedded.
        copied: new files whose content was embedded before.
        removed: files that are gone.
        problems: files that are not indexed.
    """

    images: int = 0
    embedded: int = 0
    copied: int = 0
    removed: int = 0
    problems: list[Problem] = field(default_factory=list)

    def lines(self) -> list[str]:
        """A line for each problem, and one with the numbers.

        >>> Report(images=3, embedded=2, copied=1, problems=[Problem("a.jpg", "the file is empty")]).lines()
        ['a.jpg: the file is empty', '3 images: 2 embedded, 1 copied, 0 removed; 1 not indexed']
        """
        counts = f"{self.images} images: {self.embedded} embedded, {self.copied} copied, {self.removed} removed"
        problems = [one_line(f"{path}: {reason}") for path, reason in sorted(self.problems)]
        return [*problems, f"{counts}; {len(problems)} not indexed"]


def build_index(args: argparse.Namespace) -> Report:
    """Make an index, or bring it up to date, as the command line says.

    Raises:
        ValueError: IMAGES is not a folder; OUT is something else, of another model or folder, or in use.
    """
    if not args.images.is_dir():
        raise ValueError(f"{args.images} is not a folder; pass the folder of images")
    with hold(args.out):
        if not args.overwrite and find_table(args.out) is not None:
            ImageIndex.open(args.out)  # another format is refused before the model loads
        model, space = load_index_model(
            args.model, prompt=args.prompt, revision=args.revision, dtype=args.dtype, device=args.device
        )
        index = open_or_create(args, space)
        report = update(index, model, args.batch_size)
    print("\n".join(report.lines()))
    return report


def hold(out: str) -> AbstractContextManager[Any]:
    """Lock a folder against a second run; behind a URL there is no lock.

    Raises:
        ValueError: another run holds it; it is a file, or a folder of something else.
    """
    if is_url(out):
        return nullcontext()
    place = Destination(out)
    place.check_kind()
    names = [path.name for path in place.out.iterdir() if not path.name.startswith(".")] if place.out.is_dir() else []
    if names and f"{TABLE}.lance" not in names:  # lancedb 0.34 adds a file of its own
        raise ValueError(f"{out} holds something else than an index; choose another --out")
    return place.hold()


def open_or_create(args: argparse.Namespace, space: Space) -> ImageIndex:
    """The index of --out, made if there is none.

    Raises:
        ValueError: it is of another model, instruction or folder.
    """
    root = args.images.resolve()
    if args.overwrite or find_table(args.out) is None:
        return ImageIndex.create(args.out, space, root)
    index = ImageIndex.open(args.out)
    differences = [
        ("model", index.space.model, args.model, index.space.fingerprint != space.fingerprint),
        ("--prompt", index.space.prompt, args.prompt, args.prompt not in (None, index.space.prompt)),
        ("folder", index.root, root, index.root != root),
    ]
    for what, old, new, differs in differences:
        if differs:
            raise ValueError(
                f"{args.out} was made with the {what} {str(old)!r}, not {str(new)!r}; choose another --out, or pass "
                "--overwrite to begin it anew"
            )
    return index


def update(index: ImageIndex, model: SentenceTransformer, batch_size: int = 16) -> Report:
    """Embed new and changed files of the index's folder, and take out those that are gone.

    Rows are only added until the end, so that a run that was killed loses nothing: the next one sees what is there.
    Rows of a folder that cannot be listed stay: their files may be there.

    Raises:
        ValueError: no image is left.
    """
    register_heif()
    # Pillow 13 finds out about its formats on the first file that needs it; a thread that comes meanwhile is told that
    # no format fits.
    Image.init()
    files, problems = find_files(index.root)
    current, stored = set(files), index.files()
    if stored and not files:
        raise ValueError(f"{index.root} has no images any more; mount its disk, or delete the index")
    new = [file for file in files if file not in stored]
    additions = Additions(index, model, batch_size, known=set(stored.values()), report=Report(problems=problems))
    read = partial(read_photo, index.root, known=additions.known)
    for photo in tqdm(read_ahead(read, new, AHEAD), total=len(new), desc="indexing", unit=" images", disable=None):
        additions.take(photo)
    additions.embed()
    additions.commit()
    unlisted = tuple(problem.path for problem in problems if problem.path.endswith("/"))
    gone = [state for state in stored if state not in current and not state.path.startswith(unlisted)]
    index.remove(gone)
    index.tidy()
    report = additions.report
    report.images = len(index)
    report.removed = len({state.path for state in gone} - {file.path for file in files})
    return report


@dataclass
class Additions:
    """Photos on their way into an index: those that wait for a full batch, and rows that wait for a transaction.

    A transaction ends where a batch does, so that a run after a kill forms the same batches, unless the model has
    refused an image.
    """

    index: ImageIndex
    model: SentenceTransformer
    batch_size: int
    known: set[str]
    report: Report
    waiting: list[Photo] = field(default_factory=list)
    copies: list[Photo] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    def take(self, photo: Photo | Problem) -> None:
        """Take the next file."""
        if isinstance(photo, Problem):
            self.report.problems.append(photo)
        elif photo.content in self.known:
            self.copies.append(Photo(photo.state, photo.content))
        else:
            self.known.add(photo.content)
            self.waiting.append(photo)
        if len(self.waiting) == self.batch_size:
            self.embed()
        if not self.waiting and len(self.rows) + len(self.copies) >= ROWS_AT_ONCE:
            self.commit()

    def embed(self) -> None:
        """Embed the photos that wait; one that the model refuses becomes a problem."""
        photos, self.waiting = self.waiting, []
        try:
            self.keep(photos)
        except ValueError:
            for photo in photos:
                self.keep_or_refuse(photo)

    def keep_or_refuse(self, photo: Photo) -> None:
        """Embed one photo; note why if that fails."""
        try:
            self.keep([photo])
        except ValueError as error:
            self.refused[photo.content] = " ".join(str(error).split())
            self.report.problems.append(Problem(photo.state.path, self.refused[photo.content]))

    def keep(self, photos: Sequence[Photo]) -> None:
        """Embed photos, and make their rows.

        Raises:
            ValueError: the model cannot embed one of them.
        """
        if photos:
            self.rows += map(row_of, photos, embed_images(self.model, photos, self.index.space.prompt))
            self.report.embedded += len(photos)

    def commit(self) -> None:
        """Append the rows to the index. Copies get the embedding of their content."""
        known = {row.content: row for row in self.rows}
        known |= self.index.rows_of({photo.content for photo in self.copies} - known.keys())
        for photo in self.copies:
            if photo.content in self.refused:
                self.report.problems.append(Problem(photo.state.path, self.refused[photo.content]))
            else:
                self.rows.append(replace(known[photo.content], **photo.state._asdict()))
                self.report.copied += 1
        if self.rows:
            self.index.add(self.rows)
        self.rows, self.copies = [], []


def embed_images(model: SentenceTransformer, photos: Sequence[Photo], prompt: str) -> np.ndarray:
    """Normalised embeddings (photos, dim) in fp32.

    Raises:
        ValueError: the model refuses an image, or an embedding is not a number.
    """
    items = [{"image": photo.image} for photo in photos]
    vectors = model.encode_document(
        items, prompt=prompt, batch_size=len(items), normalize_embeddings=True, show_progress_bar=False
    )
    if not np.isfinite(vectors).all():
        raise ValueError("its embedding is not a number; pass --dtype fp32 or bf16")
    return np.asarray(vectors, np.float32)


def row_of(photo: Photo, vector: np.ndarray) -> Row:
    """A photo's row in the index."""
    width, height = photo.image.size
    return Row(*photo.state, photo.content, width, height, photo.thumbnail, vector)
