"""The backbone's benchmark, at tiny size, and its table."""

from pathlib import Path

import pytest
import torch

from recipes.experiments import bench_backbone
from recipes.experiments.bench_model import GEOMETRIES

MARKS = "# P\n\n<!-- bench_backbone -->\n{}<!-- /bench_backbone -->\nrest\n"
TINY = ["--geometry", "tiny", "--batch-sizes", "1", "--repeats", "1"]


def test_the_tiny_geometry_through_the_same_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1, "vocab_size": 30000}
    monkeypatch.setitem(GEOMETRIES, "tiny", GEOMETRIES["tiny"] | narrow)
    document = tmp_path / "performance.md"
    document.write_text(MARKS.format(""))
    rows = bench_backbone.main([*TINY, "--document", str(document)])
    assert [row[:3] for row in rows[:2]] == [["tiny", "sdpa", "1"], ["tiny", "eager", "1"]]
    for row in rows:
        tokens, encode, forward, weights, peak = row[3:]
        # <s>, the image, <s>, the newline after it and a token a byte
        assert int(tokens) == 1 + 757 + 1 + len("\n" + bench_backbone.TEXT)
        assert float(encode) > 0 and float(forward) > 0
        assert 0 < float(weights) < 0.1
        assert peak == "–" or float(peak) >= 0
    written = document.read_text()
    assert all(f"| {' | '.join(row)} |" in written for row in rows)
    assert "python -m recipes.experiments.bench_backbone --geometry tiny" in written
    assert f"torch {torch.__version__}" in written
    assert written.endswith("<!-- /bench_backbone -->\nrest\n")


def test_the_published_geometry_needs_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    document = tmp_path / "performance.md"
    document.write_text(MARKS.format("| phi3_v |\n"))
    with pytest.raises(ValueError, match="--geometry phi3_v needs a GPU; pass --geometry tiny"):
        bench_backbone.main(["--document", str(document)])
    assert document.read_text() == MARKS.format("| phi3_v |\n")


def test_published_geometry_is_the_official_one() -> None:
    from transformers import AutoModel

    from xvlm2vec_st.phi3v import Phi3VConfig

    with torch.device("meta"):
        model = AutoModel.from_config(Phi3VConfig(**GEOMETRIES["phi3_v"]))
    assert sum(each.numel() for each in model.parameters()) == 4_146_621_440 - 32064 * 3072
