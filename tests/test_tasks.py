"""MMMEB over all 29 files of the published layout, filled with rows of known answers."""

from pathlib import Path

import mteb
import numpy as np
import pytest
from mteb.cache import ResultCache
from mteb.types import PromptType
from toys import CANDIDATES, Inverted, Random, Toy, write_published

from mmmeb_tasks.benchmark import MMMEB, MMMEBMini, benchmarks
from mmmeb_tasks.encoder import MMMEBEncoder
from mmmeb_tasks.files import LAYOUTS
from mmmeb_tasks.published import TASKS, files, published
from mmmeb_tasks.tasks import MMMEB_TASKS, PublishedTask, XTD10I2TRanking


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


def test_the_benchmarks_hold_the_tasks() -> None:
    full, mini = benchmarks()
    assert (full.name, mini.name) == ("MMMEB", "MMMEBMini")
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
    assert metadata.get_modalities(PromptType.document) == ["image" if layout.pictures else "text"]
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
