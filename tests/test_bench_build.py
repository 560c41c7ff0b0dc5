"""The benchmark of merging, and its workloads, at tiny size."""

import ast
import io
import json
import subprocess
import sys
from contextlib import redirect_stdout
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch
from safetensors.torch import load_file

from recipes.experiments import bench_build
from recipes.experiments.bench_build import CHOICES, checkpoint_bytes, write_adapter, write_base
from recipes.experiments.workloads import build_merge, check_images

MARKS = "# P\n\n<!-- bench_build -->\n{}<!-- /bench_build -->\nrest\n"


def run_here(command: list[str], **options: object) -> subprocess.CompletedProcess:
    """`python -c CODE ARGUMENTS`, without the seconds that its imports take."""
    assert command[:3] == [sys.executable, "-c", bench_build.CHILD]
    written = io.StringIO()
    with redirect_stdout(written), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["-c", *command[3:]])
        exec(command[2], {})
    return subprocess.CompletedProcess(command, 0, written.getvalue(), "")


def test_a_tiny_merge_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_build.subprocess, "run", run_here)
    monkeypatch.setattr(bench_build, "SHARD", 100_000)
    sizes = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64, "vocab_size": 300}
    monkeypatch.setitem(CHOICES, "tiny", CHOICES["tiny"] | sizes)
    document = tmp_path / "performance.md"
    document.write_text(MARKS.format(""))
    row = bench_build.main(["--folder", str(tmp_path), "--document", str(document)])
    assert row[0] == "tiny" and float(row[3]) > float(row[2]) and float(row[4]) > 1 and float(row[5]) >= 0
    assert [path.name for path in tmp_path.iterdir()] == ["performance.md"]
    written = document.read_text()
    assert f"| {' | '.join(row)} |" in written and written.endswith("<!-- /bench_build -->\nrest\n")


def test_a_build_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_build, "CHILD", "raise OSError('the disk is full')")
    monkeypatch.setattr(bench_build, "write_adapter", lambda *args: None)
    with pytest.raises(RuntimeError, match="build ended with status 1\n(.|\n)*the disk is full"):
        bench_build.measure(tmp_path, "tiny")


def test_the_checkpoint_is_whole_and_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_build, "SHARD", 2_000_000)
    model = write_base(tmp_path / "base", CHOICES["tiny"])
    files = sorted((tmp_path / "base").glob("*.safetensors"))
    assert len(files) > 2
    index = json.loads((tmp_path / "base" / "model.safetensors.index.json").read_text())["weight_map"]
    found = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert found.keys() == index.keys() == model.state_dict().keys()
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert checkpoint_bytes(tmp_path / "base") > sum(tensor.nbytes for tensor in found.values())
    write_adapter(tmp_path / "adapter", model)
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(weights) == 3 * 4 * 4, "A, B and magnitude of four layers in each of four blocks"


def test_the_published_geometry_is_the_backbones(tmp_path: Path) -> None:
    assert CHOICES["phi3_v"] == {}


def test_a_merge_gives_the_digest_of_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    monkeypatch.setattr(build_merge, "shutil", SimpleNamespace(rmtree=kept.append))
    build_merge.prepare(tmp_path, width=64, layers=1)
    digest = build_merge.run(tmp_path)
    assert digest == sha256((tmp_path / "out" / "model.safetensors").read_bytes()).hexdigest()
    assert kept == [tmp_path / "out"], "the next run builds again"


def test_the_second_start_on_unchanged_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = datasets.config.HF_DATASETS_CACHE
    check_images.prepare(tmp_path, images=5)
    assert before == datasets.config.HF_DATASETS_CACHE
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", before)  # restored at the end
    assert check_images.run(tmp_path) == "ok"
    (tmp_path / "images" / "3.jpg").unlink()
    with pytest.raises(ValueError, match="line 4, row 3: image .* not found"):
        check_images.run(tmp_path)


@pytest.mark.parametrize("workload", [build_merge, check_images])
def test_a_workload_runs_where_the_recipes_are_older(workload) -> None:
    """It is loaded as a file; what it runs is the library alone."""
    tree = ast.parse(Path(workload.__file__).read_text())
    body = [node for node in tree.body if getattr(node, "name", "") != "prepare"]
    imported = {name for node in body for name in imported_names(node)}
    assert "xvlm2vec_st" in imported and not any(name.startswith("recipes") for name in imported)


def imported_names(tree: ast.AST) -> set[str]:
    """The modules that a piece of source imports."""
    nodes = list(ast.walk(tree))
    plain = {each.name for node in nodes if isinstance(node, ast.Import) for each in node.names}
    return plain | {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
