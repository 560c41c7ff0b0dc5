"""Queries by one model over the candidates of another: as calculated by hand, filed apart, refused if unfit."""

import csv
import json
import shutil
import sys
from pathlib import Path

import mteb
import numpy as np
import pytest
from mteb.models.model_meta import ScoringFunction
from PIL import Image as PILImage
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from toys import ALL, CONCEPTS, Random, Toy, write_mini

from mmmeb_tasks.data.layout import Kind, data_file, read_rows
from mmmeb_tasks.instructions import render_query, render_target
from mmmeb_tasks.mini import TEACHER
from mmmeb_tasks.mini.tasks import MiniI2TRanking, MiniT2IRanking, evaluate_mini
from mmmeb_tasks.mini.write import write_benchmark
from mmmeb_tasks.models.baselines import TwoTowers
from mmmeb_tasks.models.encoder import MMMEBEncoder
from mmmeb_tasks.models.inputs import content_id
from mmmeb_tasks.models.local_folders import load_folder
from mmmeb_tasks.models.model_meta import OwnMeta
from mmmeb_tasks.models.two_models import TwoModels, take_candidates
from recipes.evaluate import command as evaluate
from recipes.evaluate import models

# 1. Two small models of one width, as folders, and few queries.


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two models and MMMEBMini; the second model's words are moved a little."""
    place = tmp_path_factory.mktemp("index")
    write_benchmark(place / "data", queries=12)
    for name in ("student", "teacher"):
        shutil.copytree(TEACHER, place / name)
    weights = load_file(place / "student" / "model.safetensors")
    rng = np.random.default_rng(0)
    for name in [n for n in weights if "embed_tokens" in n]:
        moved = weights[name] * (1 + 1.2 * weights[name].new_tensor(rng.standard_normal(weights[name].shape)))
        weights[name] = moved.contiguous()
    save_file(weights, place / "student" / "model.safetensors", {"format": "pt"})
    return place


@pytest.fixture(scope="module")
def both(place: Path) -> tuple[SentenceTransformer, SentenceTransformer]:
    """The two models."""
    return SentenceTransformer(str(place / "student")), SentenceTransformer(str(place / "teacher"))


def by_hand(
    queries: SentenceTransformer, candidates: SentenceTransformer, data: Path, kind: Kind, lang: str, index: str
) -> float:
    """P@1 of one file: encode queries with the one, candidates of language `index` with the other, take the nearest."""

    def vector(model: SentenceTransformer, image: Path | None, text: str) -> np.ndarray:
        item = text if image is None else {"image": PILImage.open(image).convert("RGB"), "text": text}
        return model.encode(item, prompt="", normalize_embeddings=True, show_progress_bar=False)

    rows = {row.id: row for row in read_rows(data, "mini", index, 100, kind)}
    kept: dict[str | Path, np.ndarray] = {}
    hits = []
    for row in read_rows(data, "mini", lang, 100, kind):
        query, scores = vector(queries, row.image, render_query(kind, lang, row.text)), {}
        for content in rows[row.id].candidates:
            image, text = (content, None) if isinstance(content, Path) else (None, content)
            if content not in kept:
                kept[content] = vector(candidates, image, render_target(kind, index, text))
            scores[content] = (float(query @ kept[content]), content_id(content))
        hits.append(max(scores, key=lambda content: scores[content]) == rows[row.id].candidates[0])
    return float(np.mean(hits))


@pytest.mark.parametrize(("kind", "index"), [("t2i", None), ("t2i", "en"), ("c", None), ("c", "en"), ("vqa", "en")])
def test_scores_over_an_index_are_those_computed_by_hand(place: Path, both: tuple, kind: Kind, index: str | None):
    student, teacher = both
    words = {"languages": ["en", "it"], "tasks": [kind], "data_root": place / "data", "show_progress": False}
    found = evaluate_mini(student, index=teacher, index_language=index, **words)
    for lang in ("en", "it"):
        expected = by_hand(student, teacher, place / "data", kind, lang, index or lang)
        assert found[lang][kind] == pytest.approx(expected, abs=1e-5)
    assert found not in [evaluate_mini(model, **words) for model in both]


# 2. Toys, whose pairs have known scores.


class Turned(Toy):
    """What a toy sees, turned round: right for itself, and never right for a toy."""

    def vector(self, number: int, read: str) -> np.ndarray:
        """The unit vector of the number, the other way."""
        return -super().vector(number, read)


class Words(Toy):
    """Takes texts only."""

    def __init__(self) -> None:
        super().__init__()
        self[0].modalities = ["text"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root for toys: all kinds and languages."""
    return write_mini(tmp_path_factory.mktemp("toys"))


def toy_towers(name: str, sign: int = 1) -> TwoTowers:
    """A model that is not of sentence-transformers and takes no instructions; -1: turned round."""

    def texts(items, size: int) -> np.ndarray:
        return np.stack([sign * np.eye(CONCEPTS)[int(text.split()[-1])] for text in items])

    def images(items, size: int) -> np.ndarray:
        return np.stack([sign * np.eye(CONCEPTS)[image.getpixel((0, 0))[0]] for image in items])

    towers = TwoTowers(texts, images)
    meta = {"name": f"toys/{name}", "revision": "1", "modalities": ["text", "image"], "use_instructions": False}
    towers.mteb_model_meta = OwnMeta.create_empty(overwrites=meta)
    return towers


def flat(scores: dict[str, dict[str, float]]) -> set[float]:
    """The scores."""
    return {score for of in scores.values() for score in of.values()}


@pytest.mark.parametrize("language", [None, "en"])
def test_queries_go_to_the_one_model_and_candidates_to_the_other(root: Path, language: str | None) -> None:
    words = {"data_root": root, "show_progress": False}
    same = evaluate_mini(Turned(), index=Turned(), index_language=language, **words)
    assert flat(same) == {1.0} and [*same] == [*ALL]
    other = evaluate_mini(Toy(), index=Turned(), index_language=language, **words)
    assert flat(other) == {0.0}


@pytest.mark.parametrize("language", [None, "en"])
def test_vectors_of_models_without_instructions_do_not_mix(root: Path, language: str | None) -> None:
    """A caption is a query of one task and a candidate of another; each model alone would keep one vector of it."""
    words = {"data_root": root, "tasks": ["t2i", "i2t", "c"], "show_progress": False}
    one, two = toy_towers("one"), toy_towers("two", -1)
    assert flat(evaluate_mini(one, **words)) == flat(evaluate_mini(two, **words)) == {1.0}
    assert flat(evaluate_mini(one, index=two, index_language=language, **words)) == {0.0}
    assert flat(evaluate_mini(one, index=one, index_language=language, **words)) == {1.0}


def test_a_model_of_texts_asks_an_index_of_images(root: Path) -> None:
    words = MMMEBEncoder(Words(), instructions=False, show_progress=False)
    assert words.mteb_model_meta.modalities == ["text"]
    scores = evaluate_mini(words, index=toy_towers("t"), tasks=["t2i"], data_root=root, show_progress=False)
    assert flat(scores) == {1.0}
    with pytest.raises(ValueError, match="queries of MiniI2TRanking have image, but local/Words takes text: the image"):
        evaluate_mini(words, index=toy_towers("t"), tasks=["i2t"], data_root=root, show_progress=False)


def test_an_index_in_one_language_is_encoded_once(root: Path) -> None:
    seen: list[str] = []

    class Counting(Toy):
        def read(self, item: str | dict) -> tuple[int, str]:
            number, read = super().read(item)
            seen.append(read)
            return number, read

    evaluate_mini(Toy(), index=Counting(), index_language="en", data_root=root, show_progress=False)
    assert len(seen) == len({*seen}) and not [read for read in seen if " it " in read or "données" in read]


def test_rows_of_another_language_are_matched_by_id(root: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(root, tmp_path / "data"))
    path = data_file(data, "mini", "it", 100, "i2t")
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[::-1]) + "\n")
    words = {"data_root": data, "tasks": ["i2t"], "languages": ["it"], "index_language": "en", "show_progress": False}
    assert evaluate_mini(Toy(), index=Toy(), **words) == {"it": {"i2t": 1.0}}
    path.write_text(path.read_text().replace('"q3"', '"lost"'))
    with pytest.raises(ValueError, match="MiniI2TRanking in it: row 'lost' has no rows of that id in en"):
        evaluate_mini(Toy(), index=Toy(), **words)
    task = MiniT2IRanking(data_root=data)
    with pytest.raises(ValueError, match="MiniT2IRanking has no index language 'xx'; it has en, it"):
        take_candidates(task, "xx")


# 3. Pairs that do not fit.


def test_pairs_that_do_not_fit_are_refused_with_both_names(root: Path) -> None:
    toy, wide = MMMEBEncoder(Toy(), name="toys/narrow"), MMMEBEncoder(Random(), name="toys/wide")
    words = {"data_root": root, "tasks": ["i2t"], "languages": ["en"], "show_progress": False}
    with pytest.raises(ValueError, match=r"toys/narrow has embeddings of 12 dimensions and toys/wide, .* of 16"):
        evaluate_mini(toy, index=wide, **words)
    for encoder, width in ((toy, 12), (wide, 16)):  # where both say it, no row is embedded
        encoder.mteb_model_meta = encoder.mteb_model_meta.model_copy(update={"embed_dim": width})
    with pytest.raises(ValueError, match=r"toys/narrow has embeddings of 12 dimensions and toys/wide, .* of 16"):
        TwoModels(toy, wide)
    with pytest.raises(ValueError, match="toys/narrow takes instructions and toys/bare takes no instructions"):
        evaluate_mini(toy, index=toy_towers("bare"), **words)
    late = toy_towers("late")
    late.mteb_model_meta = late.mteb_model_meta.model_copy(update={"similarity_fn_name": ScoringFunction.MAX_SIM})
    with pytest.raises(ValueError, match="toys/late ranks by itself or has many vectors per text"):
        TwoModels(toy_towers("bare"), late)
    with pytest.raises(ValueError, match="index_language 'en' needs a model that made the index; pass index=MODEL"):
        evaluate_mini(toy, index_language="en", **words)


def test_each_side_is_encoded_by_its_model_outside_mmmeb_too() -> None:
    pair = TwoModels(toy_towers("one"), toy_towers("two", -1))
    words = {"task_metadata": MiniI2TRanking.metadata, "hf_split": "test", "hf_subset": "en"}
    query, document = (
        pair.encode([{"text": ["3"]}], prompt_type=side, show_progress_bar=False, **words)
        for side in (mteb.types.PromptType.query, mteb.types.PromptType.document)
    )
    assert (query.argmax(), document.argmin()) == (3, 3)
    assert float(pair.similarity(query, document)[0, 0]) == -1 == float(pair.similarity_pairwise(query, document)[0])
    with pytest.raises(ValueError, match="does not tell queries from candidates, and toys/one on toys/two has a model"):
        pair.encode([{"text": ["3"]}], **words)


# 4. The recipe: rows, files, names, resuming.

ARGUMENTS = ["--tasks", "MiniT2IRanking", "MiniClassification", "--languages", "eng", "ita", "--resamples", "50"]


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place as working directory, with its data as MMMEBMini."""
    monkeypatch.setenv("MMMEB_MINI_DATA", str(place / "data"))
    monkeypatch.chdir(place)
    return place


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes every call of an encoder: task, language, side."""
    calls, embed = [], MMMEBEncoder.embed

    def noting(self, items, *, task, **kwargs):
        calls.append(task)
        return embed(self, items, task=task, **kwargs)

    monkeypatch.setattr(MMMEBEncoder, "embed", noting)
    return calls


def scores_of(out: Path) -> dict[tuple[str, ...], float]:
    """(model, style, task, language) -> P@1."""
    with (out / "scores.csv").open(encoding="utf-8") as file:
        return {
            tuple(row[name] for name in ("model", "style", "task", "language")): float(row["p1"])
            for row in csv.DictReader(file)
        }


def test_plain_runs_and_index_runs_share_a_folder_and_never_a_result(
    here: Path, both: tuple, asked: list[str], tmp_path: Path
) -> None:
    out = ["--out", str(tmp_path / "out")]
    over, over_english = ["./student", "--index", "./teacher"], ["--index-language", "en"]
    evaluate.main([*over, *ARGUMENTS, *out])
    first = scores_of(tmp_path / "out")
    assert {key[0] for key in first} == {"./student on ./teacher"} and len(first) == 4
    words = {"languages": ["en", "it"], "tasks": ["t2i", "c"], "data_root": here / "data", "show_progress": False}
    expected = evaluate_mini(both[0], index=both[1], **words)
    assert {(key[3], key[2]): score for key, score in first.items()} == {
        (lang, name): pytest.approx(expected[lang][kind], abs=1e-5)
        for lang in ("en", "it")
        for kind, name in (("t2i", "MiniT2IRanking"), ("c", "MiniClassification"))
    }

    asked.clear()
    evaluate.main(["./student", *ARGUMENTS, *out])
    plain = scores_of(tmp_path / "out")
    assert asked and {key[0] for key in plain} == {"./student"} and [*plain.values()] != [*first.values()]
    asked.clear()
    evaluate.main([*over, *over_english, *ARGUMENTS, *out])
    english = scores_of(tmp_path / "out")
    assert asked and {key[0] for key in english} == {"./student on ./teacher in en"}
    assert [*english.values()] != [*first.values()]

    asked.clear()
    for command, scores in ((over, first), (["./student"], plain), ([*over, *over_english], english)):
        evaluate.main([*command, *ARGUMENTS, *out])
        assert scores_of(tmp_path / "out") == scores
    assert asked == []  # everything was there, each at its own place
    revisions = [models.meta_of(name).revision for name in ("./student", "./teacher")]
    results = {path.parent.relative_to(tmp_path / "out" / "results") for path in tmp_path.rglob("MiniT2IRanking.json")}
    on = f"local__student_on_local__teacher/{'-on-'.join(revisions)}"
    assert {*map(str, results)} == {f"local__student/{revisions[0]}", on, f"{on}/experiments/index_language_en"}
    assert len([*(tmp_path / "out" / "predictions").iterdir()]) == 3


def test_a_stopped_index_run_goes_on_and_other_candidates_are_scored_anew(
    here: Path, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Path(shutil.copytree(here / "data", tmp_path / "data"))
    monkeypatch.setenv("MMMEB_MINI_DATA", str(data))
    command = ["./student", "--index", "./teacher", "--index-language", "eng", *ARGUMENTS[:3], "--languages", "ita"]
    command += ["--resamples", "50", "--out", str(tmp_path / "out")]
    evaluate.main(command)
    before = scores_of(tmp_path / "out")
    predictions = next((tmp_path / "out" / "predictions").glob("*/MiniT2IRanking_predictions.json"))
    predictions.write_text(predictions.read_text()[:50])
    asked.clear()
    evaluate.main(command)
    assert {task.split()[0] for task in asked} == {"MiniT2IRanking"} and scores_of(tmp_path / "out") == before

    path = data_file(data, "mini", "en", 100, "c")
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    wrong = [row | {"classes": row["classes"][1:] + row["classes"][:1]} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in wrong), "utf-8")
    asked.clear()
    evaluate.main(command)
    assert {task.split()[0] for task in asked} == {"MiniClassification"}
    after = scores_of(tmp_path / "out")
    key = ("./student on ./teacher in en", "plain", "MiniClassification", "it")
    assert after[key] != before[key] and after | {key: before[key]} == before


def register(monkeypatch: pytest.MonkeyPatch, name: str, load, **said: object) -> None:
    """Make a name known to mteb; `load(name)` gives the model."""

    def loader(name: str, revision: str | None = None, device: str | None = None, **kwargs: object):
        return load(name)

    meta = {"name": name, "revision": "7", "loader": loader, "modalities": ["text", "image"], **said}
    registry = sys.modules["mteb.models.get_model_meta"].MODEL_REGISTRY
    monkeypatch.setitem(registry, name, OwnMeta.create_empty(overwrites=meta))


def test_an_index_by_name_is_the_same_as_its_folder(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, "toys/teacher", lambda name: load_folder(name, "7", folder=str(here / "teacher")))
    one = ["--tasks", "MiniClassification", "--languages", "ita", "--styles", "plain,punct", "--resamples", "50"]
    evaluate.main(["./student", "--index", "./teacher", *one, "--out", str(tmp_path / "folder")])
    evaluate.main(["./student", "--index", "toys/teacher", *one, "--out", str(tmp_path / "name")])
    folder, name = scores_of(tmp_path / "folder"), scores_of(tmp_path / "name")
    assert [*folder.values()] == [*name.values()] and {key[1] for key in folder} == {"plain", "punct"}
    assert {key[0] for key in name} == {"./student on toys/teacher"}
    results = next((tmp_path / "name" / "results").iterdir())
    assert results.name == "local__student_on_toys__teacher"
    folders = [path.name for path in (tmp_path / "name" / "predictions").iterdir()]
    assert len(folders) == 2 and all("toys__teacher" in folder for folder in folders)


def test_the_recipe_refuses_before_it_scores(here: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "out")]
    register(monkeypatch, "toys/towers", toy_towers_by, use_instructions=False)
    monkeypatch.setattr(evaluate, "score", lambda *args, **kwargs: pytest.fail("a model was scored"))
    with pytest.raises(ValueError, match="local/student takes instructions and toys/towers takes no instructions"):
        evaluate.main(["./student", "--index", "toys/towers", *ARGUMENTS, *out])
    with pytest.raises(ValueError, match="toys/towers takes no instructions and local/teacher takes instructions"):
        evaluate.main(["./student", "toys/towers", "--index", "./teacher", *ARGUMENTS, *out])
    with pytest.raises(ValueError, match="--index-language en needs --index MODEL"):
        evaluate.main(["./student", "--index-language", "en", *ARGUMENTS, *out])
    with pytest.raises(ValueError, match="MiniT2IRanking has no --index-language xx; it has en, it"):
        evaluate.main(["./student", "--index", "./teacher", "--index-language", "xx", *ARGUMENTS, *out])
    with pytest.raises(ValueError, match="no model in nothing"):
        evaluate.main(["./student", "--index", "./nothing", *ARGUMENTS, *out])
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "modules.json").write_text("[]")
    (texts / "sentence_bert_config.json").write_text('{"modality_config": {"text": {}}}')
    with pytest.raises(ValueError, match="candidates of MiniT2IRanking have image, but local/texts takes text"):
        evaluate.main(["./student", "--index", str(texts), *ARGUMENTS, *out])
    with pytest.raises(ValueError, match="queries of MiniClassification have image, but local/texts takes text"):
        evaluate.main([str(texts), "--index", "./teacher", *ARGUMENTS, *out])
    assert not (tmp_path / "out").exists()


def toy_towers_by(name: str) -> TwoTowers:
    """Towers by a name of mteb."""
    return toy_towers(name.split("/")[1])


def test_two_long_names_have_a_folder() -> None:
    one, two = (toy_towers("n" * 90 + end) for end in "ab")
    folders = [models.Run("", None, TwoModels(*pair)).folder for pair in ((one, two), (two, one))]
    assert all(len(folder) < 200 and "__" in folder for folder in folders) and folders[0] != folders[1]
    short = models.Run("", None, TwoModels(toy_towers("a"), toy_towers("b"))).folder
    assert short == "toys__a_on_toys__b__1-on-1__bare"
