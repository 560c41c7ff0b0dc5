"""The README is true: its snippets run, its table is the measured one, its links lead somewhere."""

import json
import re
import shutil
from pathlib import Path

import pytest

from mmmeb_tasks.mini import TEACHER
from mmmeb_tasks.mini.scenes import Scene, draw
from mmmeb_tasks.mini.world import load_world
from mmmeb_tasks.mini.write import write_corpus
from recipes import demo
from recipes.distill import command as distill
from recipes.shared.report import score_table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with what the snippets name: two models, a corpus, two images."""
    world = load_world()
    for name in ("xvlm2vec", "english-embedder"):
        shutil.copytree(TEACHER, tmp_path / name)
    corpus = write_corpus(tmp_path / "corpus", ["en", "it", "de"], scenes=6)
    shutil.copytree(corpus / "images", tmp_path / "images")
    shutil.copy(corpus / "parallel.jsonl", tmp_path / "parallel.jsonl")
    draw(Scene(51), world).save(tmp_path / "apple.png")
    draw(Scene(0), world).save(tmp_path / "dog.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MMMEB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MTEB_CACHE", str(tmp_path / "mteb"))
    return tmp_path


def snippets():
    return re.findall(r"## (\w+)\n(?:(?!\n## ).)*?```python\n(.*?)```", README, re.DOTALL)


def test_there_are_three_snippets():
    assert [title for title, _ in snippets()] == ["Embed", "Train", "Benchmark"]


@pytest.mark.parametrize(("title", "code"), snippets(), ids=[title for title, _ in snippets()])
def test_a_snippet_runs(place, title, code, capsys):
    if title == "Embed":
        assert "xvlm2vec_st" not in code and "trust_remote_code" not in code
    exec(compile(code, f"README {title}", "exec"), {})
    printed = capsys.readouterr().out
    if title == "Embed":
        assert "torch.Size([2, 2])" in printed
    if title == "Train":
        assert (place / "multilingual-embedder" / "modules.json").is_file()
    if title == "Benchmark":
        assert 0 <= float(printed.split()[-1]) <= 1


def test_the_table_is_the_measured_one():
    scores = json.loads((ROOT / "docs" / "demo" / "scores.json").read_text())
    table = re.search(r"<!-- table: .*?-->\n(.*?)\n<!-- /table -->", README, re.DOTALL).group(1)
    assert table.strip() == score_table(scores["teacher"], scores["student"], scores["student_on_teacher_index"])


def test_the_measured_scores_are_what_the_project_promises():
    scores = json.loads((ROOT / "docs" / "demo" / "scores.json").read_text())
    before, after = scores["teacher"], scores["student"]
    for kind in ("i2t", "t2i"):
        assert abs(after["en"][kind] - before["en"][kind]) <= 0.01 + 1e-9  # one point
        for language in ("it", "es", "fr", "de"):
            assert before[language][kind] <= 0.15
            assert after[language][kind] >= 0.95 * before["en"][kind]
    assert sum(scores["seconds"].values()) <= 600


def test_the_english_index_stays_valid():
    """Queries in other languages score as well on the teacher's English candidates, as the README says."""
    scores = json.loads((ROOT / "docs" / "demo" / "scores.json").read_text())
    own, index = (
        100 * sum(sum(scores[side][code].values()) / 5 for code in ("it", "es", "fr", "de")) / 4
        for side in ("student", "student_on_teacher_index")
    )
    assert index >= own - 0.5
    words = " ".join(README.split())
    figures = re.search(r"on the teacher's own English embeddings: ([\d.]+) % .*?against ([\d.]+) % on its own", words)
    assert figures and figures.groups() == (f"{index:.1f}", f"{own:.1f}")


def test_every_link_leads_somewhere():
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert len(targets) >= 6
    assert all((ROOT / target).exists() for target in targets)


@pytest.mark.parametrize("recipe", [demo, distill])
def test_every_recipe_has_help(recipe, capsys):
    with pytest.raises(SystemExit) as stopped:
        recipe.main(["--help"])
    assert stopped.value.code == 0
    assert "--out" in capsys.readouterr().out


def test_the_commands_of_the_readme_are_in_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    for command in re.findall(r"^    make (\w+)$", README, re.MULTILINE):
        assert f"\n{command}:" in makefile
