"""The index of a folder of images: a LanceDB table with one row per file, in a folder or behind a URL."""

import json
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from lancedb.index import IvfSq

from .conditions import any_state, inside_root, one_of, where
from .scan import FileState
from .tables import TABLE, connect, find_table, is_missing_file, lance_errors

FORMAT = 1
METADATA = b"xvlm2vec_st"  # the key of the table's schema metadata that holds format, space and root
# Below, each query compares all vectors and is exact: 0.2 s at 50,000 x 1,024 on one busy core, by
# `recipes/experiments/bench_search.py`.
EXACT_ROWS = 100_000
PROBES, REFINE = 32, 20  # partitions that a query looks into; candidates per result that are compared in full
DELETED_AT_ONCE = 1000  # rows named in one condition
TRIES = 5  # of a query whose version of the table another run deletes

Made = TypeVar("Made")


@dataclass(frozen=True)
class Match:
    """An image that a query found.

    Args:
        path: relative to the index's image root, with `/`.
        score: cosine of query and image.
        width: in pixels, upright.
        height: in pixels, upright.
        modified: when the file was last changed.
        content: SHA-256 of the file in hex; the key of its thumbnail.
    """

    path: str
    score: float
    width: int
    height: int
    modified: datetime
    content: str


@dataclass(frozen=True)
class Space:
    """The identity of an embedding space.

    Args:
        model: folder or Hub id of the model that made it.
        revision: commit of a model on the Hub.
        fingerprint: of weights, preprocessing, template and pooling, in hex.
        prompt: the instruction that images are embedded with.
        dim: width of a vector.
    """

    model: str
    revision: str | None
    fingerprint: str
    prompt: str
    dim: int


@dataclass(frozen=True)
class Row:
    """A file in the index: its state, what it shows, and its embedding (dim,)."""

    path: str
    size: int
    mtime_ns: int
    content: str
    width: int
    height: int
    thumbnail: bytes
    vector: np.ndarray


class ImageIndex:
    """A table of images and their embeddings, and the space that they are in.

    Args:
        table: LanceDB's.
        space: of the vectors.
        root: the folder that paths are relative to.
        place: folder or URL of the index.

    Example::

        index = ImageIndex.open("photos.index")
        index.search(embed_query(model, "mela rossa"), limit=5)
    """

    def __init__(self, table: Any, space: Space, root: Path, place: str | Path) -> None:
        self.table, self.space, self.root, self.place = table, space, root, place
        self.opened = table.schema.metadata

    @classmethod
    def open(cls, place: str | Path) -> "ImageIndex":
        """Open an index: a folder, or a URL that LanceDB takes (`s3://bucket/photos`).

        Raises:
            ValueError: there is no index, or it is of another format.
        """
        table = find_table(place)
        if table is None:
            raise ValueError(f"{place} is not an index; make it: xvlm2vec index IMAGES --model MODEL --out {place}")
        content = json.loads((table.schema.metadata or {}).get(METADATA, b"{}"))
        if content.get("format") != FORMAT:
            raise ValueError(
                f"{place} has the format {content.get('format', 'of another program')}, and this version reads "
                f"{FORMAT}; index the images again, into another --out or with --overwrite"
            )
        return cls(table, Space(**content["space"]), Path(content["root"]), place)

    @classmethod
    def create(cls, place: str | Path, space: Space, root: Path) -> "ImageIndex":
        """Make an empty index; one that is there is replaced, in one step."""
        mode = "create" if find_table(place) is None else "overwrite"
        with lance_errors(place):
            table = connect(place).create_table(TABLE, schema=table_schema(space, root), mode=mode)
        return cls(table, space, root, place)

    def __len__(self) -> int:
        return self.table.count_rows()

    # ---- Queries ----

    def search(
        self,
        vector: np.ndarray,
        limit: int = 20,
        *,
        folder: str | None = None,
        since: date | None = None,
        until: date | None = None,
    ) -> list[Match]:
        """The images nearest to a query, best first; of equal ones the first by path.

        Args:
            vector: (dim,), normalised or not.
            limit: at most so many.
            folder: only images below this folder of the root; its whole path will do.
            since: only files last changed on this day or later, in local time.
            until: only files last changed on this day or before.

        Raises:
            ValueError: the vector has another width; `limit` is below 1; see `latest`.
        """
        if vector.shape != (self.space.dim,):
            raise ValueError(f"the query has the shape {vector.shape}; this index holds ({self.space.dim},)")
        if limit < 1:
            raise ValueError(f"limit is {limit}; pass 1 or more")
        if folder:
            folder = inside_root(folder, self.root)
        condition = where(folder, since, until)
        shown = ["path", "width", "height", "mtime_ns", "content", "_distance"]

        def read() -> list[dict[str, Any]]:
            query = self.table.search(vector.astype(np.float32), vector_column_name="vector").distance_type("cosine")
            # Without an approximate index, these change nothing. Where a condition leaves too few rows in the nearest
            # partitions, a query goes on to the others.
            query = query.maximum_nprobes(0).minimum_nprobes(PROBES).refine_factor(REFINE)
            if condition:
                query = query.where(condition)
            # LanceDB takes memory for REFINE times the limit at once, however few rows there are.
            return query.select(shown).limit(min(limit, max(len(self), 1))).to_list()

        matches = map(match_of, self.latest(read))
        return sorted(matches, key=lambda match: (-match.score, match.path))

    def thumbnail(self, content: str) -> bytes:
        """The small JPEG of an image, upright.

        Raises:
            ValueError: the index has no image of that content; see `latest`.
        """
        condition = one_of("content", [content])
        rows = self.latest(lambda: self.table.search().where(condition).select(["thumbnail"]).limit(1).to_list())
        if not rows:
            raise ValueError("an image has left the index since it was found; search again")
        return rows[0]["thumbnail"]

    def latest(self, read: Callable[[], Made]) -> Made:
        """What `read` finds in the newest version of the table; again if a run of `index` deletes that meanwhile.

        Raises:
            ValueError: the index was begun anew since it was opened, or cannot be read.
        """
        with lance_errors(self.place):
            for left in reversed(range(TRIES)):
                try:
                    self.table.checkout_latest()
                    if self.table.schema.metadata != self.opened:
                        raise ValueError(f"{self.place} was begun anew since it was opened; start this command again")
                    return read()
                except RuntimeError as error:
                    if not left or not is_missing_file(error):
                        raise
        raise AssertionError("the last try returns or raises")

    # ---- Changes ----

    def files(self) -> dict[FileState, str]:
        """State and content of each file in the index."""
        columns = ["path", "size", "mtime_ns", "content"]
        rows = self.table.search().select(columns).to_arrow()
        values = zip(*(rows[name].to_pylist() for name in columns), strict=True)
        return {FileState(*state): content for *state, content in values}

    def rows_of(self, contents: Collection[str]) -> dict[str, Row]:
        """A row for each of these contents, where there is one."""
        if not contents:
            return {}
        rows = self.table.search().where(one_of("content", contents)).to_list()
        return {row["content"]: Row(**row | {"vector": np.array(row["vector"], np.float32)}) for row in rows}

    def add(self, rows: Sequence[Row]) -> None:
        """Append rows in one transaction."""
        schema = self.table.schema
        vectors = np.concatenate([row.vector for row in rows]).astype(np.float32)
        columns = {name: [getattr(row, name) for row in rows] for name in schema.names if name != "vector"}
        columns["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(vectors), self.space.dim)
        with lance_errors(self.place):
            self.table.add(pa.table(columns, schema=schema))

    def remove(self, files: Sequence[FileState]) -> None:
        """Delete the rows of files in these states."""
        with lance_errors(self.place):
            for start in range(0, len(files), DELETED_AT_ONCE):
                self.table.delete(any_state(files[start : start + DELETED_AT_ONCE]))

    def tidy(self) -> None:
        """Compact the table, and index its vectors approximately if there are many."""
        with lance_errors(self.place):
            self.compact()
            if len(self) >= EXACT_ROWS and not list(self.table.list_indices()):
                self.approximate()

    def compact(self) -> None:
        """Merge small files, let new rows join an approximate index, and delete old versions."""
        with warnings.catch_warnings():
            # It warns of readers of an older version; ours take the latest for each query. Kept, it is all there twice.
            warnings.simplefilter("ignore", UserWarning)
            self.table.optimize(cleanup_older_than=timedelta(0))

    def approximate(self) -> None:
        """Make queries compare few of the vectors: an inverted file of 8-bit numbers, and the best ones in full.

        8 bits are as near as product quantisation, and made in a fiftieth of its time.
        """
        self.table.create_index("vector", config=IvfSq(distance_type="cosine"))


def table_schema(space: Space, root: Path) -> pa.Schema:
    """The columns; the metadata says which format, space and folder they are of."""
    content = {"format": FORMAT, "space": asdict(space), "root": str(root)}
    fields = {
        "path": pa.string(),
        "size": pa.int64(),
        "mtime_ns": pa.int64(),
        "content": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "thumbnail": pa.binary(),
        "vector": pa.list_(pa.float32(), space.dim),
    }
    return pa.schema(fields.items(), metadata={METADATA: json.dumps(content).encode()})


def match_of(row: Mapping[str, Any]) -> Match:
    """A result of LanceDB as a match."""
    modified = datetime.fromtimestamp(row["mtime_ns"] / 1e9, UTC)
    return Match(row["path"], 1 - row["_distance"], row["width"], row["height"], modified, row["content"])
