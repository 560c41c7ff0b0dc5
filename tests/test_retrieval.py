"""MMMEB tasks through mteb: known scores, no influence of order, nothing lost silently."""

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mteb
import numpy as np
import pytest
import torch
from datasets import Dataset, Image
from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.types import PromptType
from PIL import Image as PILImage
from toys import ALL, CANDIDATES, CONCEPTS, Constant, Inverted, Random, Toy, write_line, write_mini

from mmmeb_tasks.data.contents import OUTSIDE
from mmmeb_tasks.data.layout import KINDS, LAYOUTS, BenchmarkRow, Kind, data_file, read_rows
from mmmeb_tasks.instructions import render_query, render_target, task_prompt
from mmmeb_tasks.mini.tasks import (
    MINI_TASKS,
    MiniI2TRanking,
    MiniT2IRanking,
    MiniVQARanking,
    evaluate_mini,
)
from mmmeb_tasks.mini.write import QUERIES
from mmmeb_tasks.models.encoder import MMMEBEncoder
from mmmeb_tasks.retrieval import content_id, split_data


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with all kinds and languages: 12 queries, 6 candidates each."""
    return write_mini(tmp_path_factory.mktemp("mini"))


def numbers(scores: dict[str, dict[str, float]]) -> list[float]:
    """The scores, after a look that every language and kind is there."""
    assert [*scores] == [*ALL] and all(set(of) == set(KINDS) for of in scores.values())
    return [score for of in scores.values() for score in of.values()]


def test_a_perfect_encoder_scores_1_everywhere(root: Path) -> None:
    assert set(numbers(evaluate_mini(Toy(), data_root=root, show_progress=False))) == {1.0}


def test_an_inverted_encoder_scores_0_everywhere(root: Path) -> None:
    scores = evaluate_mini(Inverted(Toy()), data_root=root, show_progress=False)
    assert set(numbers(scores)) == {0.0}


def test_a_random_encoder_scores_one_in_so_many_candidates(root: Path) -> None:
    scores = evaluate_mini(Random(), data_root=root, languages=["en", "de"], show_progress=False)
    drawn = [score for of in scores.values() for score in of.values()]
    assert np.mean(drawn) == pytest.approx(1 / CANDIDATES, abs=0.1)  # of 120: three deviations


def unpad_rows(root: Path, kind: Kind, lang: str = "en") -> list[BenchmarkRow]:
    """All rows of one file."""
    return list(read_rows(root, "mini", lang, 100, kind))


@pytest.mark.parametrize("model", [Random(), Constant()], ids=["random", "constant"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_place_of_the_gold_changes_nothing(root: Path, kind: Kind, model: Toy) -> None:
    """The file has the gold first; here it moves to the end, the corpus is turned round."""
    task = next(task for task in MINI_TASKS if task.metadata.kind == kind)

    def scores(move: bool) -> dict:
        split = split_data(unpad_rows(root, kind), kind)
        if move:
            for query, gold in split["relevant_docs"].items():
                others = [id for id in split["top_ranked"][query] if id not in gold]
                split["top_ranked"][query] = [*others[::-1], *gold]
            split["corpus"] = split["corpus"].select(range(len(split["corpus"]))[::-1])
        return run(task(), "en", split, MMMEBEncoder(model, show_progress=False))

    assert scores(move=True) == pytest.approx(scores(move=False), nan_ok=True)


def run(task: AbsTaskRetrieval, lang: str, split: dict, model: AbsEncoder) -> dict:
    """All metrics of a task and language, on data given here."""
    task.dataset, task.data_loaded = {lang: {"test": split}}, True
    task.hf_subsets = [lang]
    results = mteb.evaluate(model, task, cache=None, show_progress_bar=False)
    scores = results.task_results[0].scores["test"][0]
    return {name: value for name, value in scores.items() if isinstance(value, float)}


def test_the_order_in_the_file_is_not_in_the_data(root: Path) -> None:
    rows = unpad_rows(root, "i2t")
    turned = [replace(row, candidates=row.candidates[:1] + row.candidates[:0:-1]) for row in rows]
    assert turned[0].candidates != rows[0].candidates
    one, two = split_data(rows, "i2t"), split_data(turned, "i2t")
    assert one["top_ranked"] == two["top_ranked"]
    assert one["corpus"]["id"][:] == two["corpus"]["id"][:] == sorted(one["corpus"]["id"])
    firsts = [ids[0] in one["relevant_docs"][query] for query, ids in one["top_ranked"].items()]
    assert not all(firsts)


def test_a_copy_of_the_gold_is_the_gold(tmp_path: Path) -> None:
    for name, colour in (("gold", "red"), ("copy", "red"), ("other", "blue")):
        PILImage.new("RGB", (2, 2), colour).save(tmp_path / f"{name}.png")
    paths = tuple(tmp_path / f"{name}.png" for name in ("gold", "other", "copy"))
    split = split_data([BenchmarkRow(1, "a", None, "red", paths)], "t2i")
    assert split["relevant_docs"] == {"1:a": {content_id(paths[2]): 1}}
    assert len(split["top_ranked"]["1:a"]) == len(split["corpus"]) == 2
    texts = split_data([BenchmarkRow(1, "a", paths[0], None, ("red", "blue", "red"))], "i2t")
    assert len(texts["top_ranked"]["1:a"]) == 2
    assert content_id("red") in texts["relevant_docs"]["1:a"]


def test_ties_are_broken_by_hash(root: Path) -> None:
    """All scores equal: the candidate of the greatest hash wins, gold or not."""
    for kind in ("i2t", "vg"):
        split = split_data(unpad_rows(root, kind), kind)
        gold = split["relevant_docs"]
        wins = [max(ids) in gold[query] for query, ids in split["top_ranked"].items()]
        scores = evaluate_mini(Constant(), data_root=root, tasks=[kind], languages=["en"], show_progress=False)
        assert scores["en"][kind] == pytest.approx(np.mean(wins), abs=1e-5)
        assert 0 < sum(wins) < len(wins)


def test_null_rows_are_skipped_and_repeated_ids_are_not(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [write_line("vqa", "en", 1), write_line("vqa", "en", 2), write_line("vqa", "en", 2)]
    lines[0]["question"] = None
    (tmp_path / "datasets").mkdir()
    (tmp_path / "mini_images").symlink_to(root / "mini_images")
    monkeypatch.setenv(OUTSIDE, "1")
    file = data_file(tmp_path, "mini", "en", 100, "vqa")
    file.write_text("\n".join(map(json.dumps, lines)))
    task = MiniVQARanking(data_root=tmp_path).filter_languages(None, hf_subsets=["en"])
    task.load_data()
    assert task.dataset["en"]["test"]["queries"]["id"][:] == ["2:q2", "3:q2"]


def test_a_file_without_a_query_is_refused() -> None:
    with pytest.raises(ValueError, match="no i2t row with a query"):
        split_data([], "i2t")


def test_one_query_with_one_candidate_is_scored(root: Path) -> None:
    row = unpad_rows(root, "i2t")[3]
    split = split_data([replace(row, candidates=row.candidates[:1])], "i2t")
    assert run(MiniI2TRanking(), "en", split, MMMEBEncoder(Toy()))["main_score"] == 1


class Plain(AbsEncoder):
    """mteb's usual way: batch after batch, images decode_line by the loader, nothing kept."""

    def __init__(self, kind: Kind, model: Toy) -> None:
        self.kind, self.model = kind, model
        empty = ModelMeta.create_empty()
        self.mteb_model_meta = empty.model_copy(update={"modalities": ["text", "image"]})

    def encode(
        self,
        inputs: Iterator[dict],
        *,
        task_metadata: TaskMetadata,
        hf_subset: str,
        prompt_type: PromptType,
        **kwargs: object,
    ) -> np.ndarray:
        """One call of the model a batch."""
        render = render_query if prompt_type == PromptType.query else render_target
        batches = []
        for batch in inputs:
            size = len(next(iter(batch.values())))
            texts = batch.get("text", [None] * size)
            items = [{"text": render(self.kind, hf_subset, text)} for text in texts]
            for item, image in zip(items, batch.get("image", []), strict=False):
                item["image"] = image
            batches.append(self.model.encode(items))
        return np.concatenate(batches).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_metrics_equal_a_plain_mteb_run(root: Path, kind: Kind) -> None:
    """The same file by mteb's own class: candidates in the file's order, names as ids."""
    layout, lines = LAYOUTS[kind], []
    for line in data_file(root, "mini", "it", 100, kind).read_text().splitlines():
        lines.append(json.loads(line))
    names = sorted({name for line in lines for name in line[layout.candidates]})

    def column(names: list[str], images: bool) -> dict[str, list[str]]:
        paths = [str(root / f"mini_images/{name}.jpg") for name in names]
        return {"image": paths} if images else {"text": names}

    def table(**columns: list[str]) -> Dataset:
        data = Dataset.from_dict(columns)
        return data.cast_column("image", Image()) if "image" in columns else data

    queries = {"id": [line["id"] for line in lines]}
    if layout.image:
        queries |= column([line[layout.image] for line in lines], True)
    if layout.text:
        queries |= column([line[layout.text] for line in lines], False)
    plain = {
        "queries": table(**queries),
        "corpus": table(id=names, **column(names, layout.images)),
        "relevant_docs": {line["id"]: {line[layout.candidates][0]: 1} for line in lines},
        "top_ranked": {line["id"]: line[layout.candidates] for line in lines},
    }
    ours = next(task for task in MINI_TASKS if task.metadata.kind == kind)
    fields = ours.metadata.model_dump(exclude={"kind"})

    class Stock(AbsTaskRetrieval):
        metadata = TaskMetadata(**fields)
        k_values = (1, 5, 10)

    expected = run(Stock(), "it", plain, Plain(kind, Random()))
    encoder = MMMEBEncoder(Random(), show_progress=False)
    found = run(ours(), "it", split_data(unpad_rows(root, kind, "it"), kind), encoder)
    assert found == pytest.approx(expected, nan_ok=True, abs=1e-6)
    assert 0 < expected["ndcg_at_10"] < 1
    assert found["accuracy"] == found["precision_at_1"] == found["hit_rate_at_1"]
    assert found["accuracy"] == found["main_score"]


def test_the_prompt_is_the_languages_and_goes_away(root: Path) -> None:
    """HOSTS, trap 4: a task's prompt has no language dimension."""
    seen: dict[str, dict] = {}

    class Seeing(Plain):
        def encode(self, inputs: Iterator[dict], **kwargs: object) -> np.ndarray:
            seen[kwargs["hf_subset"]] = kwargs["task_metadata"].prompt
            return super().encode(inputs, **kwargs)

    task = MiniT2IRanking(data_root=root)
    mteb.evaluate(Seeing("t2i", Toy()), task, cache=None, show_progress_bar=False)
    assert seen == {lang: task_prompt("t2i", lang) for lang in ALL}
    assert task.metadata.prompt is None is MiniT2IRanking.metadata.prompt


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_would_lose_the_image_is_refused(root: Path, kind: Kind) -> None:
    """HOSTS, trap 1: mteb scores image+text queries of a text-only model on the text alone."""
    model = Plain(kind, Toy())
    model.mteb_model_meta = ModelMeta.create_empty(overwrites={"name": "me/blind"})
    assert model.mteb_model_meta.modalities == ["text"]
    with pytest.raises(ValueError, match="(?i)me/blind .*text"):
        evaluate_mini(model, data_root=root, tasks=[kind], show_progress=False)
    if kind == "vqa":
        with pytest.raises(ValueError, match="takes text: the image would be dropped"):
            evaluate_mini(model, data_root=root, tasks=[kind], show_progress=False)


def test_texts_reach_the_model_as_they_are_in_the_file(tmp_path: Path, root: Path) -> None:
    texts: list[str] = []

    class Seeing(Toy):
        def encode(self, inputs: list, **kwargs: object) -> np.ndarray:
            texts.extend(item for item in inputs if isinstance(item, str))
            return super().encode(inputs, **kwargs)

    rows = [replace(unpad_rows(root, "i2t")[0], candidates=(" name 0. ", "name 1\n", "name {x} 2"))]
    encoder = MMMEBEncoder(Seeing(), show_progress=False)
    run(MiniI2TRanking(), "en", split_data(rows, "i2t"), encoder)
    assert sorted(texts) == [" name 0. ", "name 1\n", "name {x} 2"]


def test_what_was_encoded_is_shared_by_tasks_and_languages(root: Path) -> None:
    calls: list[str] = []

    class Counting(Toy):
        def read(self, item: str | dict) -> tuple[int, str]:
            number, read = super().read(item)
            calls.append(read)
            return number, read

    evaluate_mini(Counting(), data_root=root, languages=["en", "fr"], show_progress=False)
    assert len(calls) == len(set(calls))
    assert "0 en name 3" in calls  # a caption, a class and an answer


def test_results_are_not_cached_and_random_numbers_go_on(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MTEB_CACHE", str(tmp_path))

    def draw(evaluate: bool) -> list[float]:
        random.seed(7), np.random.seed(7), torch.manual_seed(7)
        if evaluate:
            kwargs = {"tasks": ["c"], "languages": ["en"], "show_progress": False}
            assert evaluate_mini(Toy(), data_root=root, **kwargs) == {"en": {"c": 1.0}}
        return [random.random(), np.random.random(), torch.rand(1).item()]

    assert draw(evaluate=True) == draw(evaluate=False)
    assert not list(tmp_path.rglob("*.json"))


def test_languages_and_kinds_that_are_not_there_are_refused(root: Path) -> None:
    with pytest.raises(ValueError, match="'fi'; MMMEBMini has en, it, es, fr, de"):
        evaluate_mini(Toy(), data_root=root, languages=["en", "fi"])
    with pytest.raises(ValueError, match="unknown kind 'i2i'; MMMEB has i2t"):
        evaluate_mini(Toy(), data_root=root, tasks=["i2i"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="nothing to score"):
        evaluate_mini(Toy(), data_root=root, tasks=[])


def test_the_data_folder_comes_from_the_environment(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMMEB_MINI_DATA", str(root))
    scores = evaluate_mini(Toy(), tasks=["c"], languages=["de"], show_progress=False)
    assert scores == {"de": {"c": 1.0}}


@pytest.mark.parametrize("task", MINI_TASKS)
def test_metadata_is_complete(task: type[AbsTaskRetrieval]) -> None:
    metadata = task.metadata
    assert metadata.is_filled() and metadata.name == task.__name__
    metadata._validate_metadata()
    layout = LAYOUTS[metadata.kind]
    query = [name for name in ("image", "text") if getattr(layout, name)]
    assert metadata.get_modalities(PromptType.query) == query
    assert metadata.get_modalities(PromptType.document) == ["image" if layout.images else "text"]
    assert metadata.hf_subsets == [*ALL] and metadata.main_score == "accuracy"


@pytest.mark.parametrize("task", MINI_TASKS)
def test_statistics_of_the_bundled_tasks_are_in_the_package(task: type[AbsTaskRetrieval]) -> None:
    """Made by `python -m mmmeb_tasks statistics`; to be made again when the scenes change."""
    statistics = task.metadata.descriptive_stats["test"]
    assert statistics["num_queries"] == QUERIES * len(ALL)
    assert {*statistics["hf_subset_descriptive_stats"]} == {*ALL}
    candidates = statistics["top_ranked_statistics"]
    assert candidates["min_top_ranked_per_query"] == candidates["max_top_ranked_per_query"] == 100
    assert task.metadata.n_samples["test"] == statistics["num_samples"]


def test_statistics_are_written_to_the_cache_and_not_to_site_packages(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HOSTS, trap 7."""
    monkeypatch.setenv("MTEB_CACHE", str(tmp_path))

    class Own(MiniT2IRanking):
        metadata = MiniT2IRanking.metadata.model_copy(update={"name": "OwnT2IRanking"})

    statistics = Own(data_root=root).calculate_descriptive_statistics()
    assert statistics["test"]["num_queries"] == CONCEPTS * len(ALL)
    assert [path.name for path in tmp_path.rglob("*.json")] == ["OwnT2IRanking.json"]
    assert not list(Path(mteb.__file__).parent.rglob("OwnT2IRanking.json"))
