"""MMMEB over all 29 files of the published layout, filled with rows of known answers."""

import json
import shutil
from argparse import Namespace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import mteb
import numpy as np
import pytest
from mteb.cache import ResultCache
from mteb.results import TaskResult
from mteb.types import PromptType
from toys import CANDIDATES, Inverted, Random, Toy, write_published

from mmmeb_tasks.benchmark import MMMEB, MMMEBMini, benchmarks
from mmmeb_tasks.data.layout import LAYOUTS, TASKS, files, published
from mmmeb_tasks.models.encoder import MMMEBEncoder
from mmmeb_tasks.plugin import cli
from mmmeb_tasks.tasks import MMMEB_TASKS, PublishedTask, XTD10I2TRanking
from recipes.evaluate.comparison import Cell, markdown


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published layout, synthetic."""
    return write_published(tmp_path_factory.mktemp("mmmeb") / "data")


@pytest.fixture(autouse=True)
def environment(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data are where `MMMEB_DATA` says."""
    monkeypatch.setenv("MMMEB_DATA", str(data))
    monkeypatch.setenv("MTEB_CACHE", str(tmp_path / "mteb"))


def scores(task: object, model: object) -> dict[tuple[str, str], float]:
    """(task, language) -> P@1."""
    results = mteb.evaluate(model, task, cache=None, co2_tracker=False, show_progress_bar=False)
    found = {}
    for result in results.task_results:
        for entry in result.scores["test"]:
            for name, value in entry.items():
                if name in {row.task for row in TASKS}:
                    found[name, entry["hf_subset"]] = value
    return found


def test_the_layout_has_29_files(data: Path) -> None:
    assert len({path for _, _, path in files(data)}) == len([*data.glob("datasets/*.jsonl")]) == 29


def test_a_perfect_encoder_scores_1_and_an_inverted_one_0_on_every_task_and_language() -> None:
    perfect = scores(MMMEB(), MMMEBEncoder(Toy(), show_progress=False))
    assert [*perfect] and {*perfect} == {(row.task, lang) for row in TASKS for lang in row.languages}
    assert {*perfect.values()} == {1.0}
    assert {*scores(MMMEB(), Inverted(Toy(), show_progress=False)).values()} == {0.0}


def test_a_random_encoder_scores_one_in_so_many_candidates() -> None:
    drawn = scores(MMMEB().filter_languages(["fra"]), MMMEBEncoder(Random(), show_progress=False))
    # 7 files of 12 queries: the deviation is 0.04.
    assert len(drawn) == 7 and np.mean([*drawn.values()]) == pytest.approx(1 / CANDIDATES, abs=0.12)


def test_the_aggregate_keeps_languages_and_tasks_and_obeys_l(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path / "results")
    encoder = MMMEBEncoder(Toy(), show_progress=False)

    def run(languages: list[str] | None) -> dict[str, dict]:
        task = mteb.get_tasks(tasks=["MMMEB"], languages=languages)
        results = mteb.evaluate(encoder, task, cache=cache, co2_tracker=False, show_progress_bar=False)
        assert results.task_results[0].get_score() == 1.0
        return {entry["hf_subset"]: entry for entry in results.task_results[0].scores["test"]}

    some = run(["ita", "deu"])
    assert [*some] == ["it", "de"]
    assert {name for name in some["it"] if name in {row.task for row in TASKS}} == {
        row.task for row in TASKS if "it" in row.languages
    }
    every = run(["deu", "fra"])  # what was there is kept, the rest is added
    assert {*every} == {"it", "fr", "de"}
    assert every["fr"]["MaXMRanking"] == every["fr"]["accuracy"] == 1.0
    assert every["it"]["languages"] == ["ita-Latn"]
    assert MMMEB().hf_subsets == ["en", "it", "es", "fr", "de"]  # a filter stays with its instance
    assert len(MMMEB().tasks) == 7


def test_the_mean_of_a_language_is_over_its_tasks() -> None:
    aggregate = MMMEB().filter_languages(["ita"])
    results = [_result("XTD10I2TRanking", 0.5), _result("XM3600I2TRanking", 1.0)]
    assert aggregate.task_results_to_scores(results)["test"]["it"]["accuracy"] == 0.75


def _result(name: str, score: float) -> object:
    class Result:
        task_name = name
        scores = {"test": [{"hf_subset": "it", "main_score": score}, {"hf_subset": "fr", "main_score": 0.0}]}

    return Result()


def test_the_table_the_report_and_the_aggregate_have_one_overall_score() -> None:
    """Languages have other tasks, so the order of the means matters: 66.7 over cells, 75 over tasks."""
    scores = {"XTD10I2TRanking": {"it": 0.0, "fr": 1.0}, "MaXMRanking": {"fr": 1.0}}
    aggregate = MMMEB().filter_languages(["ita", "fra"])
    results = [
        SimpleNamespace(
            task_name=name,
            scores={"test": [{"hf_subset": lang, "main_score": score} for lang, score in of.items()]},
        )
        for name, of in scores.items()
    ]
    entries = aggregate.task_results_to_scores(results)
    assert TaskResult.from_task_results(aggregate, entries, 0).get_score() == 0.5
    assert cli.table(scores, title="m").endswith("| 50.0 |")
    cells = [
        Cell("m", "plain", name, lang, {"1:a": 1 if score else 2}, {})
        for name, of in scores.items()
        for lang, score in of.items()
    ]
    assert "| m (plain) | 0.0 | 100.0 | 50.0 |" in markdown(cells)


def test_the_benchmarks_hold_the_tasks() -> None:
    full, mini, eleven = benchmarks()
    assert (full.name, mini.name, eleven.name) == ("MMMEB", "MMMEBMini", "MMMEBMini11")
    assert len(eleven.tasks) == 5 and all(len(task.metadata.eval_langs) == 11 for task in eleven.tasks)
    assert [task.metadata.name for task in full.tasks] == [row.task for row in TASKS]
    assert len(mini.tasks) == len(MMMEBMini().tasks) == 5


@pytest.mark.parametrize("task", MMMEB_TASKS)
def test_metadata_is_complete(task: type[PublishedTask]) -> None:
    metadata, row = task.metadata, published(task.__name__)
    assert metadata.is_filled() and metadata.name == task.__name__
    metadata._validate_metadata()
    assert metadata.bibtex_citation.count("@") == 2 and metadata.license and metadata.domains
    layout = LAYOUTS[metadata.kind]
    query = [name for name in ("image", "text") if getattr(layout, name)]
    assert metadata.get_modalities(PromptType.query) == query
    assert metadata.get_modalities(PromptType.document) == ["image" if layout.images else "text"]
    assert metadata.hf_subsets == [*row.languages] and metadata.main_score == "accuracy"
    assert (task.source, task.maximum) == (row.dataset, row.maximum)
    assert task.k_values == (1, 5, 10)


@pytest.mark.parametrize("aggregate", [MMMEB, MMMEBMini])
def test_metadata_of_the_aggregates_is_complete(aggregate: type[MMMEB]) -> None:
    metadata = aggregate.metadata
    assert metadata.category is None  # that of tasks which differ in it, by mteb's own rule
    assert metadata.model_copy(update={"category": "it2it"}).is_filled()
    assert metadata.name == aggregate.__name__
    assert {*metadata.modalities} == {"image", "text"}


def test_results_of_other_rows_are_set_aside_and_those_of_the_same_are_not(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, folder = ResultCache(tmp_path / "results"), shutil.copytree(data, tmp_path / "repaired")
    encoder = MMMEBEncoder(Toy(), name="toy", show_progress=False)

    def aside() -> set[str]:
        parts = cli.expand_aggregates([MMMEB()])
        return {path.name for task in parts for path in cli.set_aside(cache, task, "local/toy")}

    def run() -> dict[str, object]:
        task = MMMEB().filter_languages(["ita"])
        results = mteb.evaluate(encoder, task, cache=cache, co2_tracker=False, show_progress_bar=False)
        return results.task_results[0].scores["test"][0]

    first = run()
    assert first["main_score"] == 1.0 and aside() == set()
    monkeypatch.setenv("MMMEB_DATA", str(folder))
    assert aside() == set()  # another folder, the same rows
    path = published("XTD10I2TRanking").file(folder, "it")
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    lines = [json.dumps(row | {"captions": row["captions"][::-1]}) for row in rows]  # another gold
    path.write_text("\n".join(lines) + "\n", "utf-8")
    assert aside() == {"MMMEB.json.other", "XTD10I2TRanking.json.other"}
    assert "XTD10I2TRanking.json is of other data; kept as" in capsys.readouterr().err
    second = run()
    assert (second["XTD10I2TRanking"], second["main_score"]) == (0.0, 0.8) and aside() == set()
    part = cache.load_task_result("XTD10I2TRanking", encoder.mteb_model_meta).scores["test"][0]
    assert part["data_folder"] == "repaired" and part["data_sha256"] == sha256(path.read_bytes()).hexdigest()
    path.unlink()
    assert aside() == set()  # without the rows nothing could be made again


def test_the_command_sets_results_of_other_rows_aside_before_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = {"hf_subset": "it", "languages": ["ita-Latn"], "main_score": 1.0, "data_sha256": "other"}
    result = TaskResult.from_task_results(XTD10I2TRanking, {"test": {"it": entry}}, 0)
    path = ResultCache(tmp_path).get_task_result_path("XTD10I2TRanking", "me/model", "r")
    path.parent.mkdir(parents=True)
    asked = {"model": "me/model", "tasks": ["XTD10I2TRanking"], "output_folder": tmp_path}
    args = Namespace(benchmarks=None, languages=None, eval_splits=None, model_revision="r", **asked)
    there = []
    for _ in range(2):
        result.to_disk(path)
        cli.wrap_run(lambda args: there.append(path.exists()))(args)
    assert there == [False, False]
    result.to_disk(path)
    monkeypatch.setenv("MMMEB_DATA", str(tmp_path))
    with pytest.raises(SystemExit, match="mteb run: MMMEB_DATA is .*no datasets"):
        cli.wrap_run(lambda args: there.append(True))(args)
    assert len(there) == 2


def test_without_data_the_command_says_so_in_one_line_and_other_errors_are_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"model": "me/model", "tasks": ["XTD10I2TRanking"], "output_folder": tmp_path}
    args = Namespace(benchmarks=None, languages=None, eval_splits=None, model_revision="r", **asked)

    def fails(args: Namespace) -> None:
        raise ValueError("of the model")

    monkeypatch.setenv("MMMEB_DATA", str(tmp_path / "none"))
    with pytest.raises(SystemExit, match="^mteb run: MMMEB_DATA is .*no datasets"):
        cli.wrap_run(lambda args: XTD10I2TRanking().load_data())(args)
    monkeypatch.setenv("MMMEB_DATA", str(write_published(tmp_path / "data")))
    next((tmp_path / "data" / "datasets").glob("xtd_en_*_i2t.jsonl")).write_text("{\n")
    with pytest.raises(SystemExit, match="^mteb run: .*xtd_en.* line 1: .*is not JSON"):
        cli.wrap_run(lambda args: XTD10I2TRanking().load_data())(args)
    with pytest.raises(ValueError, match="of the model"):
        cli.wrap_run(fails)(args)


@pytest.mark.parametrize(
    ("names", "languages", "expected"),
    [
        (["MMMEBMini", "STS17"], ["ara", "eng"], {"MMMEBMini": ["en"]}),
        (["MMMEBMini", "STS17"], ["ara"], {}),
        (["MaXMRanking", "XTD10I2TRanking"], ["ita"], {"XTD10I2TRanking": ["it"]}),
        (["MaXMRanking"], ["ita"], "no data in ita: MaXMRanking has eng .en., fra .fr."),
        (["MMMEBMini"], ["ara"], "unknown language 'ara'"),
        (["MMMEBMini", "STS17"], ["xxx"], "unknown language 'xxx'.*STS17 has ara, deu, eng"),
    ],
)
def test_a_language_is_refused_only_where_no_task_has_it(
    names: list[str], languages: list[str], expected: dict[str, list[str]] | str
) -> None:
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            cli.mmmeb_tasks_among(names, languages)
    else:
        assert {task.metadata.name: task.hf_subsets for task in cli.mmmeb_tasks_among(names, languages)} == expected


def test_an_interrupted_run_goes_on_with_the_next_language(tmp_path: Path) -> None:
    cache, asked = ResultCache(tmp_path), []

    class Stopping(Toy):
        limit = 2

        def encode(self, inputs: list, **kwargs: object) -> np.ndarray:
            asked.extend(item for item in inputs if isinstance(item, str))
            if sum("name 1" in item and "it " in item for item in asked) > self.limit:
                raise KeyboardInterrupt
            return super().encode(inputs, **kwargs)

    def run() -> object:
        encoder = MMMEBEncoder(Stopping(), show_progress=False)
        return mteb.evaluate(encoder, XTD10I2TRanking(), cache=cache, co2_tracker=False)

    Stopping.limit = 0
    with pytest.raises(KeyboardInterrupt):
        run()
    saved = cache.load_task_result("XTD10I2TRanking", MMMEBEncoder(Stopping()).mteb_model_meta)
    assert [entry["hf_subset"] for entry in saved.scores["test"]] == ["en"]
    Stopping.limit = 1000
    asked.clear()
    result = run().task_results[0]
    assert {entry["hf_subset"] for entry in result.scores["test"]} == {"en", "it", "es", "fr", "de"}
    assert not any(text.startswith("en ") for text in asked)
