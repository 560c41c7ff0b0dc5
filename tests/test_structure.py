"""ARCHITECTURE.md holds: import directions, no circles, files that exist, sizes."""

import re

import pytest
import structure
from structure import PACKAGES, ROOT, counts, find_circle, import_graph, room_graph

DOCUMENT = (ROOT / "ARCHITECTURE.md").read_text("utf-8")


def documented_directions(package: str) -> dict[str, set[str]]:
    """The lines `name → a, b` below the heading of a package."""
    section = DOCUMENT.split(f"### {package}\n")[1].split("\n#")[0]
    lines = re.findall(r"^    (\w+) → (.+)$", section, re.MULTILINE)
    return {name: set(re.findall(r"\w+", targets)) for name, targets in lines}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_import_circle_between_modules_or_rooms(package):
    graph = import_graph(package)
    assert sum(map(len, graph.values())) > 10, "imports are seen"
    assert find_circle(graph) == [] == find_circle(room_graph(package))


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_in_the_documented_directions(package):
    documented = documented_directions(package)
    assert documented == {room: targets for room, targets in room_graph(package).items() if targets}


def test_every_file_that_the_document_names_exists():
    paths = re.findall(r"`((?:xvlm2vec_st|mmmeb_tasks|recipes|tests|docs)/[\w./-]+)`", DOCUMENT)
    assert len(paths) > 20
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_answers_name_functions_that_exist():
    answers = re.findall(r"^\| .+ \| `([\w/]+\.py)`, `(\w+)`", DOCUMENT, re.MULTILINE)
    assert len(answers) == 9
    for path, name in answers:
        assert re.search(rf"^\s*(def|class) {name}\b", (ROOT / path).read_text("utf-8"), re.MULTILINE), (path, name)


def test_the_counts_keep_to_their_bounds():
    found = counts()
    assert found["names at the top of xvlm2vec_st"] <= 14
    assert found["names at the top of mmmeb_tasks"] <= 14
    assert found["names at the top of recipes"] <= 11
    assert found["tables of families"] == found["chat templates"] == found["FSDP configurations"] == 1
    assert found["lines of the longest file"] <= 300 and found["median lines of a body"] <= 8


def test_a_circle_is_seen(tmp_path, monkeypatch):
    package = tmp_path / "loop"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("from .b import y\n")
    (package / "b.py").write_text("def f():\n    import loop.a\n")
    monkeypatch.setattr(structure, "ROOT", tmp_path)
    assert set(find_circle(import_graph("loop"))) == {"loop.a", "loop.b"}
