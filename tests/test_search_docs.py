"""docs/search.md is true: its commands are there, and its snippets give the embeddings of the index."""

import re
import shutil
from importlib.util import find_spec
from inspect import signature
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lancedb", reason='needs pip install "xvlm2vec-st[search]"')

from mmmeb_tasks.mini import TEACHER
from mmmeb_tasks.mini.scenes import Scene, draw
from mmmeb_tasks.mini.world import load_world
from recipes.image_search.indexing import build_index
from recipes.image_search.options import parse_index_args, parse_search_args
from recipes.image_search.prompts import IMAGE, TEXT
from recipes.image_search.queries import embed_query
from recipes.image_search.store import EXACT_ROWS, ImageIndex
from xvlm2vec_st import SentenceTransformer
from xvlm2vec_st.building.model_card import read_teachers
from xvlm2vec_st.distillation.fingerprint import fingerprint

DOCUMENT = (Path(__file__).parents[1] / "docs" / "search.md").read_text("utf-8")
NEEDS = {"LangChain": "langchain_core", "LlamaIndex": "llama_index", "Another vector database": "qdrant_client"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what the snippets name: a model, photos and their index."""
    folder, world = tmp_path_factory.mktemp("docs"), load_world()
    (folder / "photos").mkdir()
    for name, concept in (("apple", 65), ("dog", 0)):
        draw(Scene(concept), world).save(folder / "photos" / f"{name}.png")
    shutil.copytree(TEACHER, folder / "xvlm2vec")
    words = [str(folder / "photos"), "--model", str(folder / "xvlm2vec"), "--out", str(folder / "photos.index")]
    build_index(parse_index_args(words))
    return folder


def snippets(title):
    section = DOCUMENT.split(f"### {title}\n")[1].split("\n### ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


def test_every_section_with_python_is_known():
    assert set(re.findall(r"^### (.+)$", DOCUMENT, re.MULTILINE)) == NEEDS.keys()
    assert DOCUMENT.count("```python") == sum(len(snippets(title)) for title in NEEDS) == 5


@pytest.mark.parametrize("title", NEEDS)
def test_a_snippet_finds_the_image_and_gives_the_embeddings_of_the_index(title, place, monkeypatch, capsys):
    if not find_spec(NEEDS[title]):
        pytest.skip(f"needs {NEEDS[title]}")
    monkeypatch.chdir(place)
    names = {}
    for code in snippets(title):
        # The bundled model knows English only.
        exec(compile(code.replace("mela rossa", "red apple"), title, "exec"), names)
    assert capsys.readouterr().out.splitlines()[-1].endswith("apple.png")
    index, model = ImageIndex.open("photos.index"), SentenceTransformer("xvlm2vec")
    apple = index.table.search().where("path = 'apple.png'").to_list()[0]["vector"]
    query = embed_query(model, "red apple")
    if title == "LangChain":
        adapter = names["XVLM2Vec"]("xvlm2vec")
        found = adapter.embed_documents(["photos/apple.png"])[0], adapter.embed_query("red apple")
    elif title == "LlamaIndex":
        adapter = names["XVLM2VecEmbedding"](model_name="xvlm2vec")
        found = adapter.get_text_embedding("photos/apple.png"), adapter.get_query_embedding("red apple")
    else:
        found = names["client"].retrieve("images", [0, 1], with_vectors=True)
        paths = [point.payload["path"] for point in found]
        found = found[paths.index("apple.png")].vector, names["query"]
    np.testing.assert_allclose(found, [apple, query], atol=1e-5)


def test_the_form_of_a_card_is_read(tmp_path):
    block = re.search(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)[1]
    (tmp_path / "README.md").write_text(f"---\n{block}---\n")
    [teacher] = read_teachers(str(tmp_path))
    assert teacher.name == "english-embedder" and re.fullmatch("[0-9a-f]{32}", teacher.fingerprint)
    assert "adapters" in signature(fingerprint).parameters


def test_adapters_are_short():
    for title in ("LangChain", "LlamaIndex"):
        assert len([line for line in snippets(title)[0].splitlines() if line]) <= 15


def test_the_commands_parse():
    lines = re.findall(r"^xvlm2vec (index|search) (.+)$", DOCUMENT, re.MULTILINE)
    assert len(lines) == 6
    for command, rest in lines:
        words = re.findall(r'"[^"]*"|\S+', rest)
        parse = parse_index_args if command == "index" else parse_search_args
        assert parse([word.strip('"') for word in words])


def test_the_options_and_numbers_are_those_of_the_code():
    search_help = "--folder --since --until --html --image".split()
    assert all(f"`{option}" in DOCUMENT or option in DOCUMENT for option in search_help)
    assert f"{EXACT_ROWS:,}" in DOCUMENT and f"`{IMAGE}`" in DOCUMENT and f"`{TEXT}`" in DOCUMENT
