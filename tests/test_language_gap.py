"""The gap to English: distances and biases by hand, false friends, the report's files."""

import csv
import re
import shutil
import unicodedata
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from toys import CONCEPTS, Constant, Toy, write_mini

from mmmeb_tasks.data.layout import data_file, read_rows
from mmmeb_tasks.instructions import render_query, render_target
from mmmeb_tasks.mini import TEACHER
from mmmeb_tasks.mini.homographs import HOMOGRAPHS, homograph_task, homographs_of
from mmmeb_tasks.mini.scenes import Scene, draw
from mmmeb_tasks.mini.tasks import MiniT2IRanking
from mmmeb_tasks.mini.world import load_world
from mmmeb_tasks.mini.write import write_benchmark
from mmmeb_tasks.models.encoder import MMMEBEncoder
from mmmeb_tasks.models.two_models import TwoModels
from recipes.evaluate import command as evaluate
from recipes.evaluate.comparison import Cell
from recipes.evaluate.language_gap import (
    LanguageGap,
    confused_words,
    gap_markdown,
    gap_rows,
    language_bias,
    measure,
    same_meaning_distance,
)
from recipes.evaluate.models import Run


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root for toys: image search in all languages, 12 queries each."""
    return write_mini(tmp_path_factory.mktemp("toys"), ["t2i"])


def task_of(root: Path, *languages: str) -> MiniT2IRanking:
    """Image search in some languages, loaded."""
    task = MiniT2IRanking(data_root=root).filter_languages(None, hf_subsets=[*languages])
    task.load_data()
    return task


def run_of(model: SentenceTransformer, name: str = "toy") -> Run:
    """A model as the recipe has it."""
    return Run(name, "plain", MMMEBEncoder(model, name=name, show_progress=False))


# 1. Distances.


class Abroad(Toy):
    """Italian texts are a right angle away from their English, French ones the other way round."""

    def vector(self, number: int, read: str) -> np.ndarray:
        """Unit vectors in twice as many dimensions."""
        vector = np.zeros(2 * CONCEPTS)
        vector[number % CONCEPTS + CONCEPTS * ("it text" in read)] = -1 if "fr text" in read else 1
        return vector


def test_distance_and_bias_are_what_the_model_does_to_a_language(root: Path, tmp_path: Path) -> None:
    found = measure(run_of(Abroad()), [task_of(root, "en", "it", "fr", "de")], tmp_path, batch_size=8)
    assert [one.language for one in found] == ["it", "fr", "de"]
    assert [one.distance for one in found] == pytest.approx([1, 2, 0])
    # The mean of 12 unit vectors has length 12 ** -0.5; two English queries are 2 ** 0.5 apart.
    length, apart = CONCEPTS**-0.5, 2**0.5
    assert [one.bias for one in found] == pytest.approx([length * apart / apart, 2 * length / apart, 0])


def test_only_queries_that_both_languages_have_are_compared(root: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(root, tmp_path / "data"))
    path = data_file(data, "mini", "it", 100, "t2i")
    lines = path.read_text().splitlines()[::-1]
    lines[0], lines[1] = lines[0].replace('"q11"', '"other"'), lines[1].replace('"q10"', '"q0"')
    path.write_text("\n".join(lines) + "\n")  # turned round, one without English, one id twice
    [one] = measure(run_of(Toy()), [task_of(data, "en", "it")], tmp_path, batch_size=8)
    assert one.distance == pytest.approx(0, abs=1e-6) and one.bias == pytest.approx(0, abs=1e-6)
    path.write_text(path.read_text().replace('"q', '"r'))
    [one] = measure(run_of(Toy()), [task_of(data, "en", "it")], tmp_path, batch_size=8)
    assert (one.distance, one.bias) == (None, None)


def test_distance_and_bias_of_the_mini_teacher_are_those_computed_by_hand(
    teacher: SentenceTransformer, tmp_path: Path
) -> None:
    data = write_benchmark(tmp_path / "data", ["en", "it"], queries=12)
    [one] = measure(run_of(teacher), [task_of(data, "en", "it")], tmp_path, batch_size=8)
    english, italian = (
        teacher.encode([render_query("t2i", lang, row.text) for row in read_rows(data, "mini", lang, 100, "t2i")])
        for lang in ("en", "it")
    )
    assert one.distance == pytest.approx(1 - np.mean([a @ b for a, b in zip(english, italian, strict=True)]), abs=1e-5)
    pairs = [np.linalg.norm(english[a] - english[b]) for a in range(12) for b in range(12) if a != b]
    shift = np.linalg.norm(english.mean(0) - italian.mean(0))
    assert one.bias == pytest.approx(shift / np.mean(pairs), rel=0.02)  # drawn pairs, not all
    assert one.distance > 0.05 and one.bias > 0.05


def test_a_model_that_gives_one_vector_has_no_bias() -> None:
    ones = np.ones((4, 2), np.float32)
    assert language_bias(ones, ones) is None and language_bias(ones[:1], ones[:1]) is None
    assert same_meaning_distance(np.eye(3), -np.eye(3)) == 2


# 2. False friends.


class Reader(Toy):
    """Knows each drawing of the mini world, and reads a word as what it means, or as the English word."""

    def __init__(self, english: bool) -> None:
        super().__init__()
        concepts = enumerate(load_world().concepts)
        self.seen = {draw(Scene(n), load_world()).convert("RGB").tobytes(): c.emoji for n, c in concepts}
        self.emoji = [*self.seen.values()]
        self.english = english

    def encode(self, inputs: list, **kwargs: object) -> np.ndarray:
        """The unit vector of a concept."""
        return np.stack([np.eye(len(self.emoji))[self.emoji.index(self.concept(item))] for item in inputs])

    def concept(self, item: str | dict) -> str:
        """The emoji of an image or a word."""
        if not isinstance(item, str):
            return self.seen[item["image"].tobytes()]
        word = next(word for word in HOMOGRAPHS if item.endswith(f": {word.word}"))
        return word.false_friend if self.english else word.meant


@pytest.mark.parametrize("language", ["it", "es", "fr", "de"])
def test_a_reader_of_english_is_deceived_by_every_false_friend(language: str) -> None:
    words = [word.word for word in homographs_of([language])]
    assert len(words) >= 5
    assert confused_words(run_of(Reader(english=True)), language, 8) == words
    assert confused_words(run_of(Reader(english=False)), language, 8) == []


def test_over_an_index_the_words_are_the_first_models_and_the_images_the_others() -> None:
    one, two = (MMMEBEncoder(Reader(english), show_progress=False) for english in (True, False))
    words = [word.word for word in homographs_of(["de"])]
    assert confused_words(Run("pair", "plain", TwoModels(one, two)), "de", 8) == words
    assert confused_words(Run("pair", "plain", TwoModels(two, one, index_language="en")), "de", 8) == []


def test_the_mini_teachers_false_friends_are_those_computed_by_hand(teacher: SentenceTransformer) -> None:
    world = load_world()
    places = {concept.emoji: number for number, concept in enumerate(world.concepts)}
    deceived = []
    for word in homographs_of(["it"]):
        query = teacher.encode(render_query("t2i", "it", word.word))
        items = [draw(Scene(places[emoji]), world).convert("RGB") for emoji in (word.meant, word.false_friend)]
        vectors = teacher.encode([{"image": image, "text": render_target("t2i", "it")} for image in items])
        if query @ vectors[0] < query @ vectors[1]:
            deceived.append(word.word)
    assert confused_words(run_of(teacher), "it", 8) == deceived


def test_the_words_are_of_concepts_that_the_mini_world_has(tmp_path: Path) -> None:
    emoji = {concept.emoji for concept in load_world().concepts}
    for word in HOMOGRAPHS:
        assert {word.meant, word.false_friend} <= emoji and word.meant != word.false_friend, word
    assert len({(word.language, word.word) for word in HOMOGRAPHS}) == len(HOMOGRAPHS)
    with pytest.raises(ValueError, match="no false friends of English are known in 'pt'; choose one of de, fr, it, es"):
        homograph_task("pt", tmp_path)


def folded(text: str) -> str:
    """Small letters without accents."""
    return "".join(c for c in unicodedata.normalize("NFD", text.casefold()) if not unicodedata.combining(c))


def test_every_name_of_the_world_that_looks_like_another_english_name_is_in_the_table() -> None:
    """Compared word by word; "téléphone" of a mobile phone is no false friend."""
    world = load_world()
    english = [
        (concept.emoji, word) for concept in world.concepts for word in re.findall(r"\w+", folded(concept.names["en"]))
    ]
    found = set()
    for concept in world.concepts:
        own = {word for emoji, word in english if emoji == concept.emoji}
        for language in ("it", "es", "fr", "de"):
            for word in re.findall(r"\w{4,}", folded(concept.names[language])):
                for emoji, other in english:
                    near = SequenceMatcher(None, word, other).ratio() >= 0.86
                    if emoji != concept.emoji and near and other not in own and len(other) >= 4:
                        found.add((language, concept.emoji, emoji))
    assert len(found) >= 7
    assert found - {(w.language, w.meant, w.false_friend) for w in HOMOGRAPHS} == {("fr", "📱", "☎")}


# 3. The report.


def test_what_is_measured_is_kept_until_the_data_change(root: Path, tmp_path: Path) -> None:
    data, asked = Path(shutil.copytree(root, tmp_path / "data")), []

    class Counting(Toy):
        def encode(self, inputs: list, **kwargs: object) -> np.ndarray:
            asked.extend(inputs)
            return super().encode(inputs, **kwargs)

    def again() -> LanguageGap:
        return measure(run_of(Counting()), [task_of(data, "en", "it")], tmp_path, batch_size=8)[0]

    first = again()
    assert asked
    asked.clear()
    assert again() == first and asked == []
    path = data_file(data, "mini", "it", 100, "t2i")
    path.write_text(path.read_text().replace("it text 3", "it text 4"))
    assert again().distance == pytest.approx(1 / 12) and first.distance == pytest.approx(0)
    [kept] = (tmp_path / "predictions").glob("*/language_gap.json")
    kept.write_text(kept.read_text()[:40])
    with pytest.raises(ValueError, match="language_gap.json .*delete it; the gap is then measured again"):
        again()


def test_the_recipe_writes_the_gap_of_each_language(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_benchmark(tmp_path / "data", ["en", "it", "de"], queries=10)
    shutil.copytree(TEACHER, tmp_path / "model")
    monkeypatch.setenv("MMMEB_MINI_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    words = ["--tasks", "MiniT2IRanking", "--resamples", "20", "--out", "out", "--languages", "en"]
    out = evaluate.main(["./model", *words, "it", "de"])
    with (out / "gap.csv").open(encoding="utf-8") as file:
        rows = {row["language"]: row for row in csv.DictReader(file)}
    with (out / "scores.csv").open(encoding="utf-8") as file:
        p1 = {row["language"]: float(row["p1"]) for row in csv.DictReader(file)}
    assert [*rows] == ["it", "de"]
    for language, row in rows.items():
        assert float(row["gap"]) == pytest.approx(p1[language] - p1["en"], abs=1e-6)
        assert float(row["distance"]) > 0 and float(row["bias"]) > 0
        words_of = [word for word in row["confused"].split(", ") if word]
        assert float(row["homographs"]) == pytest.approx(len(words_of) / int(row["words"]), abs=1e-6)
    text = (out / "gap.md").read_text("utf-8")
    assert text.count("| ./model (plain) |") == 4 and "| gap to English, points of P@1 | it | de |" in text
    evaluate.main(["./model", *words])
    assert (out / "gap.md").read_text("utf-8") == "No language but English was scored.\n"
    assert (out / "gap.csv").read_text("utf-8") == ""


def test_what_could_not_be_measured_is_a_dash() -> None:
    cells = [Cell("m", "plain", "T", "pt", {"1:a": 1}, {"1:a": "x"})]
    rows = gap_rows([LanguageGap("m", "plain", "it", None, None, 0, [])], cells)
    assert [rows[0][name] for name in ("gap", "distance", "bias", "homographs", "confused")] == ["", "", "", "", ""]
    cells = [Cell("m", "plain", "T", "it", {"1:a": 1}, {"1:a": "x"})]
    assert gap_markdown(rows, cells).count("| m (plain) | – |") == 4


def test_a_constant_model_has_a_distance_of_zero_and_no_bias(root: Path, tmp_path: Path) -> None:
    [one] = measure(run_of(Constant()), [task_of(root, "en", "it")], tmp_path, batch_size=8)
    assert one.distance == pytest.approx(0, abs=1e-6) and one.bias is None
