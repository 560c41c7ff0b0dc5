"""Two versions of the source are compared on each workload, and must give equal results."""

import importlib
import importlib.util
import inspect

import pytest

from recipes.experiments import bench_versions
from recipes.experiments.bench_versions import ROOT, Run, columns, compare, main, parse_sizes
from recipes.experiments.workload_process import digest_of

WORKLOAD = '''"""A toy."""
from pathlib import Path
TITLE = "a toy"
SIZES = {"bytes": 8}


def prepare(folder, *, bytes):
    (folder / "input").write_text("x" * bytes)


def run(folder):
    import toy

    return toy.NAME + (folder / "input").read_text()
'''


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A workload of a toy library, whose old version lies in a folder of its own."""
    file = tmp_path / "toy_workload.py"
    file.write_text(WORKLOAD)
    specification = importlib.util.spec_from_file_location("toy_workload", file)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    monkeypatch.setattr(bench_versions, "load", lambda name: module)
    monkeypatch.setattr(bench_versions, "ROOT", tmp_path / "new")
    for version in ("old", "new"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "toy.py").write_text("NAME = 'same'")
    return tmp_path


def test_a_row_has_both_versions(toy):
    row = compare("toy", toy / "old", repeats=1)
    assert row[0] == "a toy" and float(row[3]) > 0


def test_different_results_are_refused(toy):
    (toy / "old" / "toy.py").write_text("NAME = 'other'")
    with pytest.raises(ValueError, match="results differ: otherxxxxxxxx, samexxxxxxxx"):
        compare("toy", toy / "old", repeats=1)


def test_a_failed_run_shows_its_error(toy):
    (toy / "old" / "toy.py").write_text("raise OSError('the disk is full')")
    with pytest.raises(RuntimeError, match="the disk is full"):
        compare("toy", toy / "old", repeats=1)


def test_the_median_of_several_runs_counts():
    runs = [Run(seconds, 10**8, "") for seconds in (1.0, 2.0, 90.0)]
    assert columns({"before": runs, "after": runs[:1]})[:3] == ["2.00", "1.00", "2.0"]


def test_a_folder_without_the_source_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not a checkout"):
        main([str(tmp_path)])


def test_an_unknown_workload_is_refused():
    with pytest.raises(ValueError, match="--only nothing: unknown"):
        main([str(ROOT), "--only", "nothing"])


SMALL = {
    "build_merge": {"width": 32, "layers": 1},
    "check_images": {"images": 4},
    "encode_distinct_images": {"images": 2, "side": 64},
    "encode_repeated_images": {"images": 2, "side": 64},
    "load_parallel": {"rows": 200},
    "mmmeb_task": {"queries": 5, "candidates": 20, "texts": 30},
    "repair_points": {"characters": 200},
    "translate_none": {"scenes": 5},
}


@pytest.mark.parametrize("name", bench_versions.names())
def test_a_workload_gives_the_same_result_twice(name, tmp_path, monkeypatch):
    workload = importlib.import_module(f"recipes.experiments.workloads.{name}")
    sizes = SMALL.get(name, {})
    assert set(sizes) == set(workload.SIZES) == set(inspect.signature(workload.prepare).parameters) - {"folder"}
    workload.prepare(tmp_path, **sizes)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    digest = digest_of(workload, workload.run(tmp_path))
    assert digest and digest_of(workload, workload.run(tmp_path)) == digest


@pytest.mark.parametrize("pair", ["queries", "queries=", "=5", "queries=-1", "queries=many"])
def test_a_bad_size_is_refused(pair):
    with pytest.raises(ValueError, match="write a name and a whole number, as in queries=50000"):
        parse_sizes([pair])


def test_an_unknown_size_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--sizes rows: mmmeb_task has queries, candidates, texts"):
        compare("mmmeb_task", tmp_path, repeats=1, sizes={"rows": 3})
