"""The store of `index`: build time, disk, memory, query time and recall, at a million vectors.

    python -m recipes.experiments.bench_search --rows 50000                        # a minute, 0.3 GB of disk
    python -m recipes.experiments.bench_search --document docs/performance.md      # 1,000,000 x 1,024: 5 GB of disk
    python -m recipes.experiments.bench_search --rows 20000 --qdrant               # Qdrant's local mode as well

The vectors are random and clustered, as embeddings are: one cluster per 100 rows, each row its centre and as much
noise, so that rows of a cluster have a cosine of about 0.5. Among vectors without clusters, no row is much nearer
than the next, and recall would say nothing. A query is a row and half as much noise. Exact answers come from numpy.
There are no thumbnails. Memory is what a step holds above what the process held before: LanceDB reads the vectors
from disk, and Qdrant's local mode keeps them in memory. That stores each point in a transaction of its own, and
warns from 20,000 points on that it is not made for more.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xvlm2vec_st.utils.folders import expanded

from ..image_search.store import ImageIndex, Row, Space
from ..shared.command import parser_of, run
from ..shared.markup import markdown_table
from .measure import keep_table, process_peak_of

BLOCK = 10_000  # rows made and stored at once
ROWS_PER_CLUSTER = 100
TOP = 10
GB, MS = 10**9, 1e3
HEADER = ("store", "rows x numbers", "build, s", "disk, GB", "memory to build, GB", "memory to query, GB")
HEADER += ("p50, ms", "p95, ms", f"recall@{TOP}")

Search = Callable[[np.ndarray], list[int]]


@dataclass(frozen=True)
class Vectors:
    """Clustered random unit vectors, made anew each time in blocks, so that they take no memory."""

    rows: int
    dim: int

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """(number of the first row, vectors (rows, dim) in fp32) of each block."""
        centres = unit(np.random.default_rng(0).normal(size=(max(self.rows // ROWS_PER_CLUSTER, 1), self.dim)))
        for start in range(0, self.rows, BLOCK):
            rng = np.random.default_rng([1, start])
            count = min(BLOCK, self.rows - start)
            noise = unit(rng.normal(size=(count, self.dim)))
            yield start, unit(centres[rng.integers(len(centres), size=count)] + noise).astype(np.float32)

    def queries(self, count: int) -> np.ndarray:
        """Rows from everywhere, and noise (count, dim)."""
        rng = np.random.default_rng(2)
        chosen = np.sort(rng.choice(self.rows, min(count, self.rows), replace=False))
        rows = [
            block[chosen[(chosen >= start) & (chosen < start + len(block))] - start] for start, block in self.blocks()
        ]
        points = np.concatenate(rows)
        return unit(points + unit(rng.normal(size=points.shape)) / 2).astype(np.float32)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length 1.

    >>> unit(np.array([[3.0, 4.0]])).tolist()
    [[0.6, 0.8]]
    """
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def exact(vectors: Vectors, queries: np.ndarray) -> list[set[int]]:
    """The numbers of the rows that are nearest to each query."""
    scores, numbers = np.zeros((len(queries), 0), np.float32), np.zeros((len(queries), 0), np.int64)
    for start, block in vectors.blocks():
        scores = np.hstack([scores, queries @ block.T])
        numbers = np.hstack([numbers, np.tile(np.arange(start, start + len(block)), (len(queries), 1))])
        best = np.argsort(-scores, axis=1)[:, :TOP]
        scores, numbers = np.take_along_axis(scores, best, 1), np.take_along_axis(numbers, best, 1)
    return [set(row) for row in numbers.tolist()]


def lance_index(folder: Path, vectors: Vectors) -> ImageIndex:
    """The vectors as `index` stores them."""
    space = Space("random", None, "", "", vectors.dim)
    index = ImageIndex.create(folder, space, folder)
    for start, block in vectors.blocks():
        names = [f"{start + number:08}" for number in range(len(block))]
        index.add([Row(name, 0, 0, name, 1, 1, b"", row) for name, row in zip(names, block, strict=True)])
    index.compact()
    return index


def lance_search(index: ImageIndex) -> Search:
    """Queries as `search` makes them."""
    return lambda query: [int(match.path) for match in index.search(query, TOP)]


def qdrant_client(folder: Path, vectors: Vectors) -> Any:
    """The vectors in Qdrant's local mode."""
    from qdrant_client import QdrantClient
    from qdrant_client.models import Batch, Distance, VectorParams

    client = QdrantClient(path=str(folder))
    client.create_collection("images", vectors_config=VectorParams(size=vectors.dim, distance=Distance.COSINE))
    for start, block in vectors.blocks():
        client.upsert("images", Batch(ids=[*range(start, start + len(block))], vectors=block.tolist()))
    return client


def qdrant_search(client: Any) -> Search:
    """Queries of Qdrant."""
    return lambda query: [point.id for point in client.query_points("images", query=query.tolist(), limit=TOP).points]


def timed(build: Callable[[], Any]) -> tuple[Any, float, int]:
    """(what a call returns, seconds, bytes that it held)."""
    kept: list[Any] = []
    start = time.perf_counter()
    peak = held(lambda: kept.append(build()))
    return kept[0], time.perf_counter() - start, peak


def held(call: Callable[[], object]) -> int:
    """Bytes that a call holds above what was held before; 0 where the system does not say."""
    peak = process_peak_of(call)
    if peak is None:  # then it has not run
        call()
    return peak or 0


def figures(search: Search, queries: np.ndarray, nearest: Sequence[set[int]]) -> list[str]:
    """Memory, p50, p95 and recall of queries, one after another, after one that opens the files."""
    search(queries[0])
    seconds: list[float] = []
    hits: list[float] = []

    def ask() -> None:
        for query, right in zip(queries, nearest, strict=True):
            start = time.perf_counter()
            answer = search(query)
            seconds.append(time.perf_counter() - start)
            hits.append(len(right & set(answer)) / len(right))

    peak = held(ask)
    p50, p95 = np.percentile(seconds, [50, 95]) * MS
    return [f"{peak / GB:.2f}", f"{p50:.1f}", f"{p95:.1f}", f"{np.mean(hits):.3f}"]


def disk_gb(folder: Path) -> str:
    """Size of a folder's files."""
    return f"{sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()) / GB:.2f}"


def measure(folder: Path, args: argparse.Namespace) -> Iterator[list[str]]:
    """The rows of the table."""
    vectors = Vectors(args.rows, args.dim)
    queries = vectors.queries(args.queries)
    nearest, size = exact(vectors, queries), f"{args.rows:,} x {args.dim:,}"

    index, seconds, peak = timed(lambda: lance_index(folder / "lance", vectors))
    row = ["LanceDB, exact", size, f"{seconds:.0f}", disk_gb(folder / "lance"), f"{peak / GB:.2f}"]
    yield row + figures(lance_search(index), queries, nearest)

    _, more, peak = timed(index.approximate)
    row = ["LanceDB, IVF_SQ", size, f"{seconds + more:.0f}", disk_gb(folder / "lance"), f"{peak / GB:.2f}"]
    yield row + figures(lance_search(index), queries, nearest)

    if args.qdrant:
        client, seconds, peak = timed(lambda: qdrant_client(folder / "qdrant", vectors))
        row = ["Qdrant, local mode", size, f"{seconds:.0f}", disk_gb(folder / "qdrant"), f"{peak / GB:.2f}"]
        yield row + figures(qdrant_search(client), queries, nearest)
        client.close()


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="vectors")
    parser.add_argument("--dim", type=int, default=1024, help="numbers of a vector")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--qdrant", action="store_true", help="measure Qdrant's local mode too; needs qdrant-client")
    parser.add_argument("--folder", type=expanded, help="where the files lie while it runs; default: the system's")
    parser.add_argument("--document", type=Path, help="the document to write the table to")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> list[list[str]]:
    """Measure and print; write the table to a document if asked to. Returns the table's rows."""
    args = parse(argv)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        table_rows = list(measure(Path(folder), args))
    table = markdown_table(HEADER, table_rows)
    print(table)
    section = "bench_search qdrant" if args.qdrant else "bench_search"
    keep_table(args.document, "bench_search", argv, table, section=section)
    return table_rows


if __name__ == "__main__":
    run(main)
