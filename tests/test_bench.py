"""The benchmark recipes at a size for tests: they run, and both routes give one result."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from recipes.experiments import bench_distill, bench_encode
from recipes.experiments.bench_model import GEOMETRIES
from recipes.experiments.measure import costs, operations, replace_section


def test_costs_count_what_a_call_does():
    square, big = torch.ones(64, 64), torch.ones(2048, 2048)
    found = costs(
        {"one": lambda: square @ square, "two": lambda: (square @ square) @ square, "held": lambda: big + 1},
        repeats=1,
    )
    assert found["two"].flops == 2 * found["one"].flops == 2 * 2 * 64**3
    assert found["held"].peak is None or found["held"].peak >= 0.9 * big.nbytes


def test_attention_counts():
    states, mask = torch.ones(1, 2, 10, 4), torch.zeros(1, 1, 10, 10)
    found = operations(lambda: scaled_dot_product_attention(states, states, states, attn_mask=mask))
    assert found == 2 * 2 * 2 * 10 * 10 * 4  # two products, two heads, 10 x 10 pairs, 4 values each


def test_a_section_is_replaced_and_the_rest_kept(tmp_path):
    document = tmp_path / "d.md"
    document.write_text("a\n<!-- x -->\nold\n<!-- /x -->\nb\n")
    replace_section(document, "x", "new")
    assert document.read_text() == "a\n<!-- x -->\nnew\n<!-- /x -->\nb\n"
    with pytest.raises(ValueError, match="no section between <!-- y -->"):
        replace_section(document, "y", "new")
    assert "new" in document.read_text()


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """Half the width and a quarter of the layers of `tiny`; 757 tokens an image all the same."""
    smaller = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1}
    monkeypatch.setitem(GEOMETRIES, "tiny", GEOMETRIES["tiny"] | smaller)


def test_encoding(monkeypatch, tmp_path):
    document = tmp_path / "d.md"
    document.write_text("<!-- bench_encode tiny -->\n<!-- /bench_encode tiny -->\n")
    monkeypatch.setattr(bench_encode, "CASES", {"3 texts per image": (1, 3, 0, 1), "texts alone": (0, 0, 3, 1)})
    images, branched, texts = bench_encode.main(["--repeats", "1", "--document", str(document)])
    assert float(images[4]) > 2, "fewer operations: one image of 757 tokens, not three"
    assert float(branched[4]) > 2 and branched[0] == "3 texts per image, branched"
    assert float(texts[4]) > 2, "fewer operations: the only layer computes one token of each text"
    assert max(float(row[-1]) for row in (images, branched, texts)) < 1e-5
    assert "| 3 texts per image, packed |" in document.read_text()


@pytest.mark.slow
def test_distillation(monkeypatch):
    monkeypatch.setattr(bench_distill, "LANGUAGES", ("it", "de"))
    routes = {row[0]: row for row in bench_distill.main(["--rows", "1", "--repeats", "1"])}
    assert float(routes["published"][4]) > 3 and float(routes["MSELoss"][4]) > 2
    assert all(float(routes[name][-1]) < 1e-4 for name in ("shared", "branched", "adapter"))
    assert float(routes["shared, cached targets"][-1]) < 1e-4
    assert float(routes["shared, cached targets"][4]) < 1
