"""The mini world: its bundle, its scenes, the files it writes."""

import json
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image, ImageChops
from sentence_transformers import SentenceTransformer

from mmmeb_tasks.data.layout import KINDS, data_file, read_rows
from mmmeb_tasks.mini import TEACHER, scenes, write
from mmmeb_tasks.mini import bundle as build
from mmmeb_tasks.mini.phrases import PHRASES, RELATIONS, phrases
from mmmeb_tasks.mini.tasks import MINI_TASKS_11, evaluate_mini
from mmmeb_tasks.mini.world import ELEVEN, LANGUAGES, load_world


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    return write.write_benchmark(tmp_path_factory.mktemp("mini") / "data")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mini") / "corpus"
    return write.write_corpus(folder, ["en", "it", "pt", "fi"], scenes=200)


def test_bundle_is_small_licensed_and_speaks_our_languages():
    assert build.BUNDLE.stat().st_size <= 3e6
    world = load_world()
    assert 150 <= len(world.concepts) <= 300
    assert all(len(c.names["en"].split()) <= 2 for c in world.concepts)
    for language in LANGUAGES:
        names = [c.names[language].casefold() for c in world.concepts]
        assert all(names) and len(set(names)) == len(names)
    assert "48.2.0" in world.sources["names"] and "2.042" in world.sources["pictures"]
    for licence in ("LICENSE-Unicode-3.0.txt", "LICENSE-Apache-2.0.txt", "README.md"):
        assert (build.BUNDLE.parent / licence).is_file()
    with zipfile.ZipFile(build.BUNDLE) as bundle:
        assert len(json.loads(bundle.read("world.json"))["concepts"][0]["names"]) > 100


def test_unknown_language_names_those_there_are():
    with pytest.raises(ValueError, match=r"no names in \['xx'\]; it has af, .*zu"):
        load_world(["en", "xx"])


def test_train_and_test_scenes_share_no_pair():
    world = load_world()
    train = {frozenset(pair) for pair in scenes.split_pairs(len(world.concepts))[0]}
    test = {frozenset((s.subject, s.other)) for s in scenes.test_scenes(world, 600)}
    assert len(train) > 3000 and len(test) == 300
    assert not train & test
    # single concepts are shared: nothing in the test is an image of a thing never seen
    assert {c for pair in test for c in pair} <= {c for pair in train for c in pair}


def test_corpus_and_benchmark_share_no_caption(benchmark, corpus):
    rows = [json.loads(line) for line in (corpus / "parallel.jsonl").read_text("utf-8").splitlines()]
    learnt = {row["en"] for row in rows if row["id"].endswith("/caption")}
    asked = {row.text for row in read_rows(benchmark, "mini", "en", 100, "t2i")}
    assert len(asked) == 300 and len(learnt) > 60 and not asked & learnt


def test_a_scene_is_drawn_the_same_every_time_and_its_twin_differs():
    world = load_world()
    scene = scenes.test_scenes(world, 2)[0]
    again, twin = scenes.draw(scene, world), scenes.draw(scene.swapped(), world)
    assert ImageChops.difference(scenes.draw(scene, world), again).getbbox() is None
    assert ImageChops.difference(again, twin).getbbox() is not None
    assert again.size == (96, 96) and again.mode == "RGB"


def test_caption_question_and_answer_say_what_is_drawn():
    world = load_world(["en", "de"])
    dog = next(i for i, c in enumerate(world.concepts) if c.names["en"] == "dog")
    cat = next(i for i, c in enumerate(world.concepts) if c.names["en"] == "cat")
    scene = scenes.Scene(dog, cat, "left", seed=3)
    assert scene.caption(world, "en") == "dog to the left of cat"
    assert scene.question(world, "de") == "was ist links von Katze?" and scene.answer == dog
    flipped = scenes.Scene(dog, cat, "left", flipped=True, seed=3)
    assert flipped.caption(world, "en") == scene.caption(world, "en")
    assert flipped.question(world, "en") == "what is to the right of dog?" and flipped.answer == cat
    (left, _, right, _), (other_left, *_) = scenes.boxes(scene)
    assert left < right <= other_left  # the dog really stands on the left
    assert scene.swapped().caption(world, "en") == "cat to the left of dog"


@pytest.mark.parametrize("count", [0, 3, 10_000])
def test_bad_scene_counts_are_refused(count):
    with pytest.raises(ValueError, match=f"count {count}: an even number from 2 to"):
        scenes.test_scenes(load_world(), count)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_file_has_300_queries_of_100_candidates(benchmark, kind, language):
    rows = list(read_rows(benchmark, "mini", language, 100, kind))
    assert len(rows) == 300
    assert all(len(set(row.candidates)) == 100 for row in rows)


def test_hard_candidates_are_among_them(benchmark):
    world = load_world(["en"])
    tested = scenes.test_scenes(world, 300)
    captions = {s.caption(world, "en"): s for s in tested}
    sharing = []
    for row, scene in zip(read_rows(benchmark, "mini", "en", 100, "i2t"), tested, strict=True):
        own = {scene.subject, scene.other}
        shared = Counter(len(own & {s.subject, s.other}) for s in map(captions.__getitem__, row.candidates))
        assert shared[2] == 2  # the gold and its swapped twin
        assert row.candidates[0] == scene.caption(world, "en")
        sharing.append(shared[1])
    assert sum(sharing) / len(sharing) > 4  # and scenes with one of the two


def test_candidates_do_not_depend_on_the_language(benchmark):
    def images(language):
        return [row.candidates for row in read_rows(benchmark, "mini", language, 100, "t2i")]

    assert images("en") == images("fr")


def test_no_other_crop_of_the_named_thing_is_a_candidate(benchmark):
    world = load_world(["en"])
    tested = scenes.test_scenes(world, 300)
    for row in read_rows(benchmark, "mini", "en", 100, "vg"):
        shown = []
        for path in map(Path, row.candidates):
            _, scene, place = path.stem.split("_")
            concept = (tested[int(scene)].subject, tested[int(scene)].other)[int(place)]
            shown.append(world.name(concept, "en"))
        assert shown[0] == row.text and row.text not in shown[1:]


def test_corpus_rows_hold_every_language_and_their_images(corpus):
    rows = [json.loads(line) for line in (corpus / "parallel.jsonl").read_text("utf-8").splitlines()]
    assert len(rows) == 400 and len({row["id"] for row in rows}) == 400
    assert sum(row["image"] is not None for row in rows) == 200
    kinds = Counter(row["id"].split("/")[-1] for row in rows if row["image"])
    assert set(kinds) == {"c", "i2t", "t2i", "vqa", "vg", "crop"}
    for row in rows:
        assert all(row[language] for language in ("en", "it", "pt", "fi"))
        assert row["image"] is None or Image.open(corpus / row["image"]).size[0] > 0
    # Portuguese has phrases and no instructions of the paper; Finnish has CLDR names only
    with_image = next(row for row in rows if row["id"].endswith("/vqa"))
    assert with_image["pt"].startswith("Represent the given image") and "o que há" in with_image["pt"]
    assert any("⬅" in row["fi"] for row in rows)


def test_polish_and_russian_name_both_places():
    assert phrases("ru").caption["left"].format(a="собака", b="кот") == "слева собака, справа кот"
    assert phrases("ru").question["right"].format(b="кот") == "слева кот, что справа?"
    assert phrases("pl").caption["below"].format(a="pies", b="kot") == "na dole pies, na górze kot"


def test_eleven_languages_are_written_and_scored(tmp_path):
    data = write.write_benchmark(tmp_path / "data", ["en", "ru", "ja"], queries=2)
    scores = evaluate_mini(SentenceTransformer(str(TEACHER)), languages=["en", "ru", "ja"], data_root=data)
    assert list(scores) == ["en", "ru", "ja"] and all(len(tasks) == 5 for tasks in scores.values())
    assert [task.metadata.name[-2:] for task in MINI_TASKS_11] == ["11"] * 5
    assert {*MINI_TASKS_11[0].metadata.eval_langs} == {*ELEVEN} == {*PHRASES}


def test_phrases_have_every_relation_and_slot():
    for language in [*PHRASES, "any other"]:
        said = phrases(language)
        for relation in RELATIONS:
            assert "{a}" in said.caption[relation] and "{b}" in said.caption[relation]
            assert "{b}" in said.question[relation]
        assert len(set(said.caption.values())) == 4


def test_a_folder_that_exists_is_left_alone_and_a_broken_write_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "old").mkdir()
    with pytest.raises(ValueError, match="exists"):
        write.write_benchmark(tmp_path / "old")

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(write, "_write_lines", stop)
    for make in (write.write_benchmark, lambda out: write.write_corpus(out, scenes=2)):
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "new")
        assert not (tmp_path / "new").exists()


def test_fewer_queries_than_candidates_are_the_first_of_a_hundred(tmp_path):
    few = write.write_benchmark(str(tmp_path / "few"), ["en"], queries=15)
    hundred = write.write_benchmark(tmp_path / "hundred", ["en"], queries=100)
    for kind in ("i2t", "t2i", "c", "vqa", "vg"):
        lines = data_file(few, "mini", "en", 100, kind).read_text("utf-8").splitlines()
        assert len(lines) == 15
        assert lines == data_file(hundred, "mini", "en", 100, kind).read_text("utf-8").splitlines()[:15]
    with pytest.raises(ValueError, match="queries is 0; pass 1 or more"):
        write.write_benchmark(tmp_path / "none", queries=0)


def test_the_cache_is_written_once_and_named_by_content(tmp_path, monkeypatch):
    monkeypatch.setenv("MMMEB_CACHE", str(tmp_path / "cache"))
    folder = write.ensure_mini(["en"])
    assert data_file(folder, "mini", "en", 100, "i2t").is_file()
    stamp = folder.stat().st_mtime_ns
    assert write.ensure_mini(["en"]) == folder and folder.stat().st_mtime_ns == stamp
    left = folder.with_name(f"{folder.name}.partial.lock")
    left.write_text("xvlm2vec_st run: process 1 on here\n")  # killed between the last move and the unlock
    assert write.ensure_mini(["en"]) == folder and folder.stat().st_mtime_ns == stamp and not left.exists()
    assert write.ensure_mini(["en", "it"]) != folder
    changed = tmp_path / "scenes.py"
    changed.write_text("another way to draw")
    with monkeypatch.context() as patch:
        patch.setattr(write, "SOURCES", (*write.SOURCES[:-1], changed))
        patch.setattr(write, "write_benchmark", lambda out, languages: out.mkdir() or out)
        elsewhere = write.ensure_mini(["en"])
    assert elsewhere != folder  # an older world is never read
    elsewhere.rmdir()
    assert sorted((tmp_path / "cache").iterdir()) == sorted([folder, write.ensure_mini(["en", "it"])])


def cldr_package(folder: Path, names: dict[str, str]) -> Path:
    for locale, suffix in names.items():
        path = folder / "annotations" / locale / "annotations.json"
        path.parent.mkdir(parents=True)
        table = {c: {"tts": [f"name {i}{suffix}"]} for i, c in enumerate(build.CONCEPTS)}
        path.write_text(json.dumps({"annotations": {"annotations": table}}), "utf-8")
    (folder / "annotations" / "en-XX").mkdir()
    (folder / "annotations" / "en-XX" / "annotations.json").write_text('{"annotations": {}}')
    return folder


def test_the_builder_takes_the_locales_that_name_everything(tmp_path):
    package = cldr_package(tmp_path, {"en": "", "qq": " q"})
    assert list(build.choose_locales(package, ())) == ["en", "qq"]
    assert list(build.choose_locales(package, ("qq",))) == ["qq"]
    with pytest.raises(ValueError, match=r"locales \['en-XX'\] lack a name"):
        build.choose_locales(package, ("en-XX",))
    with pytest.raises(ValueError, match="locale 'zz' is not in .*; it has: en, en-XX, qq"):
        build.choose_locales(package, ("zz",))


def test_indonesian_is_no_id(tmp_path):
    with pytest.raises(ValueError, match="'id' is the row's id; write Indonesian as 'ind'"):
        write.write_corpus(tmp_path / "out", ["en", "id"], scenes=1)
    path = write.write_corpus(tmp_path / "out", ["en", "ind"], scenes=1) / "parallel.jsonl"
    row = json.loads(path.read_text("utf-8").splitlines()[0])
    assert row["id"].startswith("0/") and row["ind"] not in (row["id"], row["en"])
