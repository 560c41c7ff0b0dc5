"""The benchmark of the store, at tiny size."""

import sys

import numpy as np
import pytest

pytest.importorskip("lancedb", reason='needs pip install "xvlm2vec-st[search]"')

from recipes.experiments import bench_search
from recipes.experiments.bench_search import Vectors, exact, held, timed, unit

MARKS = "# P\n\n<!-- bench_search -->\n<!-- /bench_search -->\nrest\n"


def test_a_tiny_store_is_measured(tmp_path, capsys):
    document = tmp_path / "performance.md"
    document.write_text(MARKS)
    words = ["--rows", "600", "--dim", "32", "--queries", "5", "--folder", str(tmp_path), "--document", str(document)]
    rows = bench_search.main(words)
    assert [row[0] for row in rows] == ["LanceDB, exact", "LanceDB, IVF_SQ"]
    assert rows[0][-1] == "1.000" and float(rows[1][-1]) > 0.8
    for row in rows:
        assert row[1] == "600 x 32" and 0 < float(row[-3]) <= float(row[-2])
    assert f"| {' | '.join(rows[1])} |" in document.read_text() and document.read_text().endswith("rest\n")
    assert [path.name for path in tmp_path.iterdir()] == ["performance.md"]


def test_qdrant_gives_the_same_answers(tmp_path):
    pytest.importorskip("qdrant_client", reason="needs qdrant-client")
    words = ["--rows", "300", "--dim", "16", "--queries", "3", "--folder", str(tmp_path), "--qdrant"]
    rows = bench_search.main(words)
    assert [row[0] for row in rows][2:] == ["Qdrant, local mode"] and rows[2][-1] == "1.000"


def test_vectors_are_clustered_unit_vectors_the_same_each_time(monkeypatch):
    monkeypatch.setattr(bench_search, "BLOCK", 300)
    vectors = Vectors(1000, 64)
    blocks = dict(vectors.blocks())
    assert list(blocks) == [0, 300, 600, 900] and blocks[900].shape == (100, 64)
    whole = np.concatenate([*blocks.values()])
    assert whole.dtype == np.float32 and np.allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-6)
    assert (np.concatenate([block for _, block in vectors.blocks()]) == whole).all()
    cosines = np.sort(whole @ whole.T, axis=1)
    assert 0.3 < cosines[:, -50:-1].mean() < 0.7 and abs(cosines[:, :500].mean()) < 0.2, "clusters of a hundred"
    queries = vectors.queries(7)
    assert queries.shape == (7, 64) and ((queries @ whole.T).max(axis=1) > 0.8).all()
    assert exact(vectors, queries) == [set(np.argsort(-(whole @ query))[:10].tolist()) for query in queries]


def test_a_step_runs_once_where_the_system_does_not_say_what_it_holds(monkeypatch):
    monkeypatch.setattr(bench_search, "process_peak_of", lambda run: None)
    calls = []
    assert held(lambda: calls.append(1)) == 0 and calls == [1]
    assert timed(lambda: "made")[0] == "made"


def test_memory_counts(monkeypatch):
    if sys.platform != "linux":
        pytest.skip("needs /proc")
    assert held(lambda: np.ones(4_000_000)) >= 25_000_000
    assert unit(np.ones((2, 4))).tolist() == [[0.5] * 4] * 2
