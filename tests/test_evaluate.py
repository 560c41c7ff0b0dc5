"""The report recipe: from its command line to its files, and its statistics."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from toys import Toy, write_published

from mmmeb_tasks.data.layout import published
from mmmeb_tasks.mini import TEACHER
from mmmeb_tasks.mini.write import write_benchmark
from mmmeb_tasks.models.encoder import MMMEBEncoder
from mmmeb_tasks.tasks import XTD10I2TRanking
from recipes.evaluate import command as evaluate
from recipes.evaluate import models
from recipes.evaluate.comparison import Cell, difference, gap, interval, markdown
from recipes.evaluate.queries_page import telling


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two models, and MMMEBMini with few queries."""
    place = tmp_path_factory.mktemp("evaluate")
    write_benchmark(place / "data", ["en", "it", "es", "fr", "de"], queries=100)
    for kind in ("i2t", "c"):
        for language in ("en", "it"):
            path = place / "data" / "datasets" / f"mini_{language}_100_formatted_{kind}.jsonl"
            path.write_text("\n".join(path.read_text("utf-8").splitlines()[:20]) + "\n", "utf-8")
    for name in ("one", "two"):
        shutil.copytree(TEACHER, place / name)
    weights = load_file(place / "two" / "model.safetensors")
    for name in [n for n in weights if "embed_tokens" in n]:
        weights[name] = weights[name].flip(0).contiguous()
    save_file(weights, place / "two" / "model.safetensors", {"format": "pt"})
    return place


ARGUMENTS = ["--tasks", "MiniI2TRanking", "MiniClassification", "--languages", "eng", "ita"]


@pytest.fixture(scope="module")
def report(place: Path) -> Path:
    """The report of two models in two styles."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMMEB_MINI_DATA", str(place / "data"))
        patch.chdir(place)
        return evaluate.main(["./one", "./two", *ARGUMENTS, "--styles", "plain,punct", "--out", str(place / "out")])


def rows(path: Path) -> list[dict[str, str]]:
    """A CSV file."""
    with path.open(encoding="utf-8") as file:
        return [*csv.DictReader(file)]


def test_the_table_of_scores_has_every_cell_with_its_interval(report: Path) -> None:
    scores = rows(report / "scores.csv")
    assert len(scores) == 2 * 2 * 2 * 2  # models, styles, tasks, languages
    for row in scores:
        low, mean, high = (float(row[name]) for name in ("low", "p1", "high"))
        assert 0 <= low <= mean <= high <= 1 and row["queries"] == "20"
        assert float(row["p5"]) == pytest.approx(float(row["r5"]) / 5, abs=1e-6)
        assert mean == float(row["r1"]) <= float(row["r5"]) <= float(row["r10"])
    text = (report / "scores.md").read_text("utf-8")
    assert "| ./one (plain): P@1, % | en | it |" in text and "| gap to English, points | it |" in text
    assert "| spread over styles, points | en | it |" in text and "[" in text


def test_every_query_has_its_rank_and_pairs_compare_the_same_queries(report: Path) -> None:
    queries = rows(report / "queries.csv")
    assert len(queries) == 16 * 20
    names = ("model", "style", "task", "language")
    scores = {tuple(row[name] for name in names): row for row in rows(report / "scores.csv")}
    hits: dict[tuple, list[bool]] = {}
    for row in queries:
        assert row["rank"] == "" or 1 <= int(row["rank"]) <= 10
        key = tuple(row[name] for name in names)
        hits.setdefault(key, []).append(row["rank"] == "1")
    assert all(np.mean(of) == pytest.approx(float(scores[key]["p1"]), abs=1e-6) for key, of in hits.items())
    pairs = rows(report / "pairs.csv")
    assert len(pairs) == 2 * 2 * 2
    for pair in pairs:
        key = (pair["style"], pair["task"], pair["language"])
        one, two = (np.mean(hits[pair[model], *key]) for model in ("model", "other"))
        assert float(pair["difference"]) == pytest.approx(one - two, abs=1e-6)
        assert float(pair["low"]) <= float(pair["difference"]) <= float(pair["high"])


def test_the_chart_and_the_page_of_queries_open(report: Path) -> None:
    assert min(Image.open(report / "languages.png").size) > 300
    page = (report / "queries.html").read_text("utf-8")
    sources = {*re.findall(r'src="([^"]+)"', page)}
    assert sources and all(Image.open(report / source).size for source in sources)
    assert page.count("<h1>") == 2 and "<section>" in page and 'class="wrong"' in page


def test_the_same_command_runs_nothing_again_and_goes_on_where_it_was_cut(
    place: Path, report: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMMEB_MINI_DATA", str(place / "data"))
    monkeypatch.chdir(place)
    again, asked = ["./one", *ARGUMENTS, "--out", str(report)], []
    embed = MMMEBEncoder.embed

    def counting(self, items, *, task, **kwargs):
        asked.append(task)
        return embed(self, items, task=task, **kwargs)

    monkeypatch.setattr(MMMEBEncoder, "embed", counting)
    before = (report / "queries.csv").read_text("utf-8")
    evaluate.main(again)
    assert asked == []
    result = next((report / "results").glob("local__one/*/MiniClassification.json"))
    result.write_text(result.read_text()[:50])
    predictions = next((report / "predictions").glob("local__one*plain/MiniI2TRanking_predictions.json"))
    predictions.write_text(predictions.read_text()[:50])
    evaluate.main(again)
    assert {task.split()[0] for task in asked} == {"MiniClassification", "MiniI2TRanking"}
    after = rows(report / "queries.csv")
    assert after == [r for r in csv.DictReader(before.splitlines()) if (r["model"], r["style"]) == ("./one", "plain")]


def test_names_are_checked_before_anything_is_loaded(tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "out")]
    with pytest.raises(ValueError, match="unknown task 'MMMEBMiny'; nearest: MMMEBMini"):
        evaluate.main(["./x", "--tasks", "MMMEBMiny", *out])
    with pytest.raises(ValueError, match="unknown language 'itt'; did you mean ita"):
        evaluate.main(["./x", "--tasks", "MMMEBMini", "--languages", "en", "itt", *out])
    with pytest.raises(ValueError, match="unknown style 'loud'; known: plain, punct, newline"):
        evaluate.main(["./x", "--tasks", "MMMEBMini", "--styles", "plain,loud", *out])
    with pytest.raises(ValueError, match="no model in x"):
        evaluate.main(["./x", "--tasks", "MMMEBMini", *out])
    assert not (tmp_path / "out").exists()
    assert evaluate.parse_args(["./x", "--languages", "it", "deu"]).languages == ["ita", "deu"]


def test_a_model_that_loses_images_is_refused_before_another_is_scored(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = place / "texts"
    texts.mkdir()
    (texts / "modules.json").write_text("[]")
    (texts / "sentence_bert_config.json").write_text('{"modality_config": {"text": {}}}')
    monkeypatch.chdir(place)
    monkeypatch.setattr(models, "load_folder", lambda *a, **k: pytest.fail("a model was loaded"))
    with pytest.raises(ValueError, match="MiniI2TRanking has image and text, but local/texts takes text"):
        evaluate.main(["./one", "./texts", *ARGUMENTS, "--out", "refused"])
    assert not (place / "refused").exists()


def test_a_model_of_the_hub_is_loaded_before_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = MMMEBEncoder(Toy(), name="me/both", show_progress=False)
    said = encoder.mteb_model_meta.model_copy(update={"modalities": ["text"]})
    monkeypatch.setattr(models, "runs", lambda *args: iter([evaluate.Run("me/both", "plain", encoder)]))
    evaluate.refuse_half("me/both", said, [XTD10I2TRanking()], ["plain"], None)
    encoder.mteb_model_meta = said
    with pytest.raises(ValueError, match="XTD10I2TRanking has image and text, but me/both takes text"):
        evaluate.refuse_half("me/both", said, [XTD10I2TRanking()], ["plain"], None)


def test_other_rows_are_scored_anew_and_the_same_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows change places under their ids, so that old predictions and new golds do not meet."""
    data, asked = write_published(tmp_path / "data"), []
    encode = Toy.encode

    def counting(self, inputs: list, **kwargs: object) -> np.ndarray:
        asked.append(len(inputs))
        return encode(self, inputs, **kwargs)

    monkeypatch.setattr(Toy, "encode", counting)

    def hits() -> list[bool]:
        run = evaluate.Run("toy", "plain", MMMEBEncoder(Toy(), name="toy", show_progress=False))
        task = XTD10I2TRanking(data_root=data).filter_languages(["ita"])
        task.load_data()
        return evaluate.score(run, task, tmp_path / "out", batch_size=8)[0].hits.tolist()

    assert all(hits()) and asked
    asked.clear()
    assert all(hits()) and not asked
    path = published("XTD10I2TRanking").file(data, "it")
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    turned = [row | {"id": other["id"]} for row, other in zip(rows[::-1], rows, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in turned), "utf-8")
    assert all(hits()) and asked
    kept = {path.name for path in (tmp_path / "out").rglob("*.other")}
    assert kept == {"XTD10I2TRanking.json.other", "XTD10I2TRanking_predictions.json.other"}


def test_the_recipe_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        evaluate.main(["--help"])
    assert stopped.value.code == 0 and "--styles" in capsys.readouterr().out


def cell(language: str, ranks: list[int | None], *, task: str = "T", model: str = "m", style: str = "plain") -> Cell:
    """A cell with the ranks of queries a, b, c, ..."""
    names = [f"{n + 1}:{chr(97 + n)}" for n in range(len(ranks))]
    return Cell("m", style, task, language, dict(zip(names, ranks, strict=True)), dict.fromkeys(names, "x"))


def test_the_binomial_interval_is_the_bootstrap_over_queries() -> None:
    rng = np.random.default_rng(0)
    hits = rng.random(200) < 0.3
    drawn = [rng.choice(hits, 200).mean() for _ in range(4000)]
    assert interval(hits, 4000, rng) == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.012)


def test_the_interval_of_a_difference_is_of_the_pairs() -> None:
    rng = np.random.default_rng(0)
    one, two = rng.random(300) < 0.6, rng.random(300) < 0.5
    resampled = rng.integers(0, 300, (4000, 300))
    drawn = one[resampled].mean(1) - two[resampled].mean(1)
    mean, low, high = difference(one, two, 4000, rng)
    assert mean == pytest.approx(one.mean() - two.mean())
    assert (low, high) == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.012)
    assert difference(one, one, 100, rng) == (0.0, 0.0, 0.0)  # pairs: no spread where there is none
    with pytest.raises(ValueError, match="300 and 4 queries"):
        difference(one, two[:4], 10, rng)


def test_the_gap_to_english_is_over_the_tasks_that_both_have() -> None:
    cells = [cell("en", [1, 1]), cell("it", [1, 2]), cell("en", [2, 2], task="English only")]
    assert gap(cells, "it") == -0.5
    assert gap(cells, "fr") is None
    assert "| m (plain) | -50.0 |" in markdown(cells)


def test_the_spread_is_over_styles_within_a_task() -> None:
    cells = [cell("en", [1, 1]), cell("en", [1, 2], style="punct")]
    assert "| spread over styles, points | en |\n|---|---|\n| m | 50.0 |" in markdown(cells)
    assert "spread" not in markdown(cells[:1])


def test_the_hardest_and_the_most_language_dependent_queries() -> None:
    cells = [cell("en", [1, 1, None, 5]), cell("it", [1, None, None, 5])]
    hardest, dependent = telling(cells)
    assert hardest == [("T", "c"), ("T", "d"), ("T", "b")]
    assert dependent == [("T", "b")]
