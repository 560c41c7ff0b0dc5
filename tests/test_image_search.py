"""From a folder of images to answers: `index` and `search` with a real model, and which models may query an index."""

import base64
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

pytest.importorskip("lancedb", reason='needs pip install "xvlm2vec-st[search]"')

from photos import rows

from mmmeb_tasks.mini import TEACHER
from mmmeb_tasks.mini.scenes import Scene, draw
from mmmeb_tasks.mini.world import load_world
from mmmeb_tasks.mini.write import write_corpus
from recipes import __main__ as xvlm2vec
from recipes.distill import command as distill
from recipes.distill.card import save_with_card
from recipes.image_search import extras, models
from recipes.image_search import index as index_command
from recipes.image_search import search as search_command
from recipes.image_search.indexing import build_index
from recipes.image_search.models import load_query_model
from recipes.image_search.options import parse_index_args, parse_search_args
from recipes.image_search.prompts import IMAGE, TEXT, image_prompt, text_prompt
from recipes.image_search.queries import embed_query
from recipes.image_search.results_page import results_page
from recipes.image_search.searching import search
from recipes.image_search.spaces import check_space
from recipes.image_search.store import ImageIndex
from xvlm2vec_st import SentenceTransformer, build, lora_config
from xvlm2vec_st.building.model_card import CardTeacher, front_matter, read_teachers
from xvlm2vec_st.distillation.fingerprint import fingerprint

ROOT = Path(__file__).parents[1]
EVIL = "<img src=x onerror=alert(1)>.png"
NAMES = ("apple.png", "dog & bone/dog.png", "kiwi.png", EVIL)
CONCEPTS = (65, 0, 70, 20)  # of the mini world


@pytest.fixture(scope="module")
def world():
    return load_world()


@pytest.fixture(scope="module")
def place(tmp_path_factory, world):
    """The index of four images, and a file that is not one."""
    folder = tmp_path_factory.mktemp("search")
    images = folder / "images"
    (images / "dog & bone").mkdir(parents=True)
    for name, concept in zip(NAMES, CONCEPTS, strict=True):
        draw(Scene(concept), world).save(images / name)
    (images / "broken.jpg").write_bytes(b"no")
    report = build_index(parse_index_args([str(images), "--model", str(TEACHER), "--out", str(folder / "index")]))
    assert (report.embedded, report.problems[0].path) == (4, "broken.jpg")
    return folder / "index"


@pytest.fixture(scope="module")
def model():
    return SentenceTransformer(str(TEACHER))


def find(place, *words):
    return search(parse_search_args([str(place), *map(str, words)]))


def word(world, concept):
    return world.concepts[concept].names["en"]


# ---- Answers ----


def test_a_text_finds_its_image(place, world, capsys):
    for name, concept in zip(NAMES, CONCEPTS, strict=True):
        matches = find(place, word(world, concept))
        assert [matches[0].path, len(matches)] == [name, 4], word(world, concept)
        lines = capsys.readouterr().out.splitlines()
        assert lines == [f"{match.score:.4f}  {match.path}" for match in matches]


def test_an_image_finds_itself_and_a_text_beside_it_counts(place, world, tmp_path):
    draw(Scene(65), world).save(tmp_path / "query.png")
    best = find(place, "--image", tmp_path / "query.png")[0]
    assert best.path == "apple.png" and best.score == pytest.approx(1, abs=1e-5)
    alone = [match.score for match in find(place, "--image", tmp_path / "query.png")]
    both = [match.score for match in find(place, "dog", "--image", tmp_path / "query.png")]
    assert both != alone and len(both) == 4


def test_filters_and_limit(place, capsys):
    assert [match.path for match in find(place, "dog", "--folder", "dog & bone")] == ["dog & bone/dog.png"]
    assert len(find(place, "dog", "--limit", "2")) == 2
    capsys.readouterr()
    assert find(place, "dog", "--until", "1999-12-31") == []
    printed = capsys.readouterr()
    reason = f"no image of {place} matches --until 1999-12-31; --folder is a folder below {place.parent / 'images'}"
    assert (printed.out, printed.err.splitlines()[-1]) == ("", reason)


def test_a_vector_is_that_of_plain_sentence_transformers(place, model):
    index = ImageIndex.open(place)
    stored = {row["path"]: row["vector"] for row in rows(index)}
    images = [{"image": str(index.root / name)} for name in NAMES]
    expected = model.encode(images, prompt=IMAGE, normalize_embeddings=True)
    np.testing.assert_allclose([stored[name] for name in NAMES], expected, atol=1e-6)
    query = embed_query(model, "red apple")
    assert query.dtype == np.float32 and query.shape == (index.space.dim,)
    np.testing.assert_allclose(query, model.encode(TEXT + "red apple", normalize_embeddings=True), atol=1e-6)


def test_a_query_takes_an_open_image_a_file_and_a_prompt(place, model):
    path = ImageIndex.open(place).root / "apple.png"
    with Image.open(path) as image:
        by_object = embed_query(model, None, image)
    np.testing.assert_allclose(by_object, embed_query(model, None, path), atol=1e-6)
    np.testing.assert_allclose(by_object, embed_query(model, " ", str(path), alone=IMAGE), atol=1e-6)
    changed = embed_query(model, None, path, alone="")
    assert np.abs(changed - by_object).max() > 1e-3
    np.testing.assert_allclose(changed, embed_query(model, None, path, prompt=""), atol=1e-6)


def test_a_models_own_prompts_come_first(model):
    own = SentenceTransformer(str(TEACHER))
    assert (
        (image_prompt(own), text_prompt(own))
        == (IMAGE, TEXT)
        == (
            "Represent the given image",
            "Find me an everyday image that matches the given caption: ",
        )
    )
    own.prompts |= {"document": "Image: ", "query": "Wanted: "}
    assert (image_prompt(own), text_prompt(own)) == ("Image: ", "Wanted: ")
    expected = model.encode("Wanted: dog", normalize_embeddings=True)
    np.testing.assert_allclose(embed_query(own, "dog"), expected, atol=1e-6)


class Plain:
    """A model that takes texts or images, never both, and has no prompts."""

    prompts: ClassVar = {}
    modalities: ClassVar = ["text", "image"]

    def supports(self, kinds):
        return kinds in self.modalities


def test_a_model_of_another_kind_gets_no_instruction_and_refuses_what_it_does_not_take(place, monkeypatch):
    assert image_prompt(Plain()) == "" == text_prompt(Plain())
    path = ImageIndex.open(place).root / "apple.png"
    with pytest.raises(ValueError, match="the model does not take image and text as a query; it takes text, image"):
        embed_query(Plain(), "dog", path)
    text_only = Plain()
    text_only.modalities = ["text"]
    monkeypatch.setattr(models, "SentenceTransformer", lambda *args, **kwargs: text_only)
    with pytest.raises(ValueError, match="owner/name does not take images; it takes text"):
        models.load_index_model("owner/name")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the query is empty; pass a TEXT, --image FILE, or both"),
        (["  "], "the query is empty; pass a text, an image, or both"),
        (["a\ud83d"], r"the query holds half a character .* at column 2"),
        (["--image", "none.png"], "none.png: no such image; pass a file"),
        (["--image", __file__], "cannot read an image from .*test_image_search.py"),
        (["dog", "--model", "./none"], "./none: no such folder"),
        (["dog", "--html", "/proc"], "--html /proc is a folder; pass a file"),
        (["dog", "--html", "none/a.html"], "--html none/a.html: there is no folder none; make it"),
    ],
)
def test_bad_queries(place, words, message):
    with pytest.raises(ValueError, match=message):
        find(place, *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["i", "dog", "--since", "May"], "'May' is not a date; write 2024-05-31"),
        (["i", "dog", "--limit", "0"], "--limit 0: pass 1 or more"),
        (
            ["i", "dog", "--since", "2024-06-01", "--until", "2024-05-31"],
            "--since 2024-06-01 is after --until 2024-05-31",
        ),
    ],
)
def test_bad_options(words, message, capsys):
    with pytest.raises((SystemExit, ValueError)) as refused:
        parse_search_args(words)
    assert message in capsys.readouterr().err + str(refused.value)


# ---- The page ----


def test_the_page_is_one_file_with_thumbnails(place, tmp_path):
    matches = find(place, "<script>alert(1)</script>", "--html", tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text("utf-8")
    assert "<script" not in page and "<img src=x" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page and "&lt;img src=x onerror=alert(1)&gt;.png" in page
    sources = re.findall(r'src="([^"]*)"', page)
    index = ImageIndex.open(place)
    assert len(sources) == 4 and "http" not in page
    for source, match in zip(sources, matches, strict=True):
        assert base64.b64decode(source.removeprefix("data:image/jpeg;base64,")) == index.thumbnail(match.content)
    assert page.count("dog &amp; bone/dog.png") == 2  # alt and caption


def test_a_page_without_results():
    assert results_page("a & b", [], lambda content: b"").endswith("<h1>a &amp; b</h1><ol></ol></html>\n")


# ---- Which models may query ----


def changed_copy(folder, *, teachers=(), card=None):
    """The teacher with other weights, and a card that names teachers."""
    shutil.copytree(TEACHER, folder)
    file = folder / "model.safetensors"
    weights = {name: weight + 0.01 for name, weight in load_file(file).items()}
    save_file(weights, file, {"format": "pt"})
    (folder / "README.md").write_text(card or f"---\ntags: [a]\n{front_matter(teachers)}---\n\n# A student\n")
    return folder


def test_a_student_may_query_its_teachers_index_and_another_model_may_not(place, model, tmp_path):
    own = CardTeacher("teacher", fingerprint(model))
    student = changed_copy(tmp_path / "student", teachers=[own])
    grandchild = changed_copy(tmp_path / "grandchild", teachers=[CardTeacher("it", "00"), own])
    stranger = changed_copy(tmp_path / "stranger", teachers=[CardTeacher("teacher", "00")])
    plain = changed_copy(tmp_path / "plain", card="# No metadata\n")
    for folder in (student, grandchild, TEACHER):
        assert len(find(place, "dog", "--model", folder)) == 4
    for folder in (stranger, plain):
        with pytest.raises(ValueError, match=rf"was made with {TEACHER}, and {folder} embeds into another space.*"):
            find(place, "dog", "--model", folder)
    broken = changed_copy(tmp_path / "broken", card="---\nteachers: [a, b]\n---\n")
    with pytest.raises(ValueError, match="its metadata cannot be read .*`teachers` is a list of name and fingerprint"):
        find(place, "dog", "--model", broken)


def test_an_index_without_its_model_says_what_to_pass(place, tmp_path):
    space = ImageIndex.open(place).space
    gone = type(space)(**vars(space) | {"model": str(tmp_path / "gone")})
    with pytest.raises(ValueError, match="was made with .*gone, which is gone; pass --model with its new place"):
        load_query_model(gone)
    assert load_query_model(gone, str(TEACHER)).get_embedding_dimension() == space.dim


def test_an_index_in_another_dtype_is_of_the_same_space(place, tmp_path):
    images = ImageIndex.open(place).root
    words = [str(images), "--model", str(TEACHER), "--out", str(tmp_path / "index"), "--dtype", "bf16"]
    build_index(parse_index_args(words))
    half, whole = ImageIndex.open(tmp_path / "index"), ImageIndex.open(place)
    assert half.space == whole.space
    vectors = [np.array([row["vector"] for row in rows(index)]) for index in (half, whole)]
    assert 1e-5 < np.abs(vectors[0] - vectors[1]).max() < 0.05


def test_a_fingerprint_counts_an_adapter_only_where_it_is_asked_to(model):
    before = fingerprint(model)
    assert fingerprint(model, adapters=True) == before
    adapted = SentenceTransformer(str(TEACHER))
    adapted.add_adapter(lora_config(adapted, rank=2))
    assert fingerprint(adapted) == before != fingerprint(adapted, adapters=True)


@pytest.fixture(scope="module")
def students(tmp_path_factory):
    """A student of the bundled teacher, and one of that student, whose adapter is kept."""
    folder = tmp_path_factory.mktemp("students")
    corpus = write_corpus(folder / "corpus", ["en", "it"], scenes=8) / "parallel.jsonl"
    short = ["--corpus", str(corpus), "--languages", "it", "--max-steps", "1", "--eval-rows", "0"]
    short += ["--per-device-train-batch-size", "4", "--report-to", "none", "--learning-rate", "1e-3"]
    first, second = folder / "first", folder / "second"
    distill.main(["--student", str(TEACHER), "--output-dir", str(first), *short])
    lora = ["--lora-rank", "2", "--keep-adapter"]
    distill.main(["--student", str(first), "--output-dir", str(second), *short, *lora])
    return first, second


def test_distill_names_the_teachers_in_the_card(students, place, model):
    first, second = students
    own = CardTeacher("teacher", fingerprint(model))
    student = SentenceTransformer(str(first))
    assert fingerprint(student) != own.fingerprint, "it has learned"
    assert read_teachers(str(first)) == [own]
    assert read_teachers(str(second)) == [CardTeacher("first", fingerprint(student)), own]
    for folder in students:
        assert len(find(place, "cane", "--model", folder)) == 4
    # The second one's adapter is part of it: the first's space is not simply its own.
    space = ImageIndex.open(place).space
    of_second = type(space)(
        **vars(space) | {"fingerprint": fingerprint(SentenceTransformer(str(second)), adapters=True)}
    )
    with pytest.raises(ValueError, match="embeds into another space"):
        check_space(of_second, student, str(first))


def test_the_card_is_otherwise_as_before(students, tmp_path):
    text = (students[0] / "README.md").read_text("utf-8")
    named = front_matter(read_teachers(str(students[0])))
    assert text.startswith("---\n" + named) and text.count(named) == 1
    save_with_card(SentenceTransformer(str(TEACHER)), tmp_path / "plain", str(TEACHER), ["it"])
    assert "teachers" not in (tmp_path / "plain" / "README.md").read_text("utf-8").split("---")[1]


def test_the_teachers_survive_saving_loading_and_building(students, tmp_path):
    expected = read_teachers(str(students[0]))
    assert expected
    SentenceTransformer(str(students[0])).save(str(tmp_path / "once"))
    SentenceTransformer(str(tmp_path / "once")).save(str(tmp_path / "twice"))
    assert read_teachers(str(tmp_path / "twice")) == expected
    build(students[0], tmp_path / "half", dtype="bf16")
    assert read_teachers(str(tmp_path / "half")) == expected
    build(TEACHER, tmp_path / "plain")
    assert read_teachers(str(tmp_path / "plain")) == []


def test_names_of_teachers_are_yaml(tmp_path):
    teachers = [CardTeacher("a: b # 'ü'", "0123"), CardTeacher("- x\ny", "1e5")]
    (tmp_path / "README.md").write_text(f"---\n{front_matter(teachers)}---\n", "utf-8")
    assert read_teachers(str(tmp_path)) == teachers
    (tmp_path / "README.md").write_text("---\nteachers: [\n---\n")
    with pytest.raises(ValueError, match=r"README.md: its metadata cannot be read"):
        read_teachers(str(tmp_path))


# ---- The commands ----


def test_help_and_refusals_import_no_large_library():
    code = (
        "import runpy, sys\n"
        "for name, status in (('index', 0), ('search', 0)):\n"
        "    sys.argv = [name, '--help']\n"
        "    try: runpy.run_module(f'recipes.image_search.{name}', run_name='__main__')\n"
        "    except SystemExit as end: assert end.code == status, end.code\n"
        "large = {'torch', 'lancedb', 'numpy', 'PIL', 'pyarrow', 'gradio', 'transformers'} & sys.modules.keys()\n"
        "assert not large, large\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert "IMAGES" in done.stdout and "--since" in done.stdout


@pytest.mark.parametrize(
    ("command", "words"), [(index_command, ["a", "--model", "m", "--out", "o"]), (search_command, ["a", "b"])]
)
def test_without_the_extra_a_command_says_what_to_install(command, words, monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["xvlm2vec", *words])
    with pytest.raises(ValueError, match=r'lancedb is not installed; pip install "xvlm2vec-st\[search\]"'):
        command.prepare()


def test_the_commands_are_subcommands(place, capsys, monkeypatch):
    assert "index" in xvlm2vec.usage() and "search" in xvlm2vec.usage()
    images = ImageIndex.open(place).root
    assert xvlm2vec.main(["index", str(images), "--model", str(TEACHER), "--out", str(place)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "4 images: 0 embedded, 0 copied, 0 removed; 1 not indexed"
    assert xvlm2vec.main(["search", str(place), "dog", "--limit", "1"]) == 0
    assert re.fullmatch(r"[01]\.\d{4}  .+\n", capsys.readouterr().out)
    with pytest.raises(SystemExit, match="2"):
        xvlm2vec.main(["search", str(place.parent), "dog"])
    assert capsys.readouterr().err.startswith("error: ")
