"""The index of a folder of images: a LanceDB table with one row per file, in a folder or behind a URL."""

import json
import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.index import IvfSq

from xvlm2vec_st.utils.failures import first_line

from .conditions import any_state, one_of, where
from .scan import FileState

FORMAT = 1
TABLE = "images"
METADATA = b"xvlm2vec_st"  # the key of the table's schema metadata that holds format, space and root
# Below, each query compares all vectors and is exact: 0.2 s at 50,000 x 1,024 on one busy core, by
# `recipes/experiments/bench_search.py`.
EXACT_ROWS = 100_000
PROBES, REFINE = 32, 20  # partitions that a query looks into; candidates per result that are compared in full
DELETED_AT_ONCE = 1000  # rows named in one condition


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

    Example::

        index = ImageIndex.open("photos.index")
        index.search(embed_query(model, "mela rossa"), limit=5)
    """

    def __init__(self, table: Any, space: Space, root: Path) -> None:
        self.table, self.space, self.root = table, space, root

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
        return cls(table, Space(**content["space"]), Path(content["root"]))

    @classmethod
    def create(cls, place: str | Path, space: Space, root: Path) -> "ImageIndex":
        """Make an empty index; one that is there is replaced, in one step."""
        mode = "create" if find_table(place) is None else "overwrite"
        return cls(connect(place).create_table(TABLE, schema=table_schema(space, root), mode=mode), space, root)

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
            folder: only images below this folder of the root.
            since: only files last changed on this day or later, in local time.
            until: only files last changed on this day or before.

        Raises:
            ValueError: the vector has another width; `limit` is below 1.
        """
        if vector.shape != (self.space.dim,):
            raise ValueError(f"the query has the shape {vector.shape}; this index holds ({self.space.dim},)")
        if limit < 1:
            raise ValueError(f"limit is {limit}; pass 1 or more")
        self.table.checkout_latest()
        query = self.table.search(vector.astype(np.float32), vector_column_name="vector").distance_type("cosine")
        query = query.nprobes(PROBES).refine_factor(REFINE)  # without an approximate index, they change nothing
        if condition := where(folder, since, until):
            query = query.where(condition)
        shown = ["path", "width", "height", "mtime_ns", "content", "_distance"]
        matches = [match_of(row) for row in query.select(shown).limit(limit).to_list()]
        return sorted(matches, key=lambda match: (-match.score, match.path))

    def thumbnail(self, content: str) -> bytes:
        """The small JPEG of an image, upright.

        Raises:
            KeyError: the index has no image of that content.
        """
        self.table.checkout_latest()
        found = self.table.search().where(one_of("content", [content])).select(["thumbnail"]).limit(1).to_list()
        if not found:
            raise KeyError(content)
        return found[0]["thumbnail"]

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
        self.table.add(pa.table(columns, schema=schema))

    def remove(self, files: Sequence[FileState]) -> None:
        """Delete the rows of files in these states."""
        for start in range(0, len(files), DELETED_AT_ONCE):
            self.table.delete(any_state(files[start : start + DELETED_AT_ONCE]))

    def tidy(self) -> None:
        """Compact the table, and index its vectors approximately if there are many."""
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


def connect(place: str | Path) -> Any:
    """LanceDB's connection to a folder or a URL."""
    return lancedb.connect(place if is_url(place) else os.path.abspath(place))


def find_table(place: str | Path) -> Any:
    """The table of an index; None if there is none. Makes no folder.

    Raises:
        ValueError: a server refuses, or the URL is of a kind that LanceDB does not know.
    """
    if not is_url(place) and not Path(place).is_dir():
        return None
    try:
        return connect(place).open_table(TABLE)
    except ValueError as error:
        if "was not found" in str(error):
            return None
        raise
    except RuntimeError as error:  # of the object store
        raise ValueError(f"{place} cannot be opened: {first_line(error)}; check address and credentials") from error


def is_url(place: str | Path) -> bool:
    """Whether an index lies behind a URL.

    >>> is_url("s3://bucket/photos"), is_url("photos.index")
    (True, False)
    """
    return "://" in str(place)


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
