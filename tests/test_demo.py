"""The demo from its command line to its report; shortened by arguments, not by other code."""

import contextlib
import io
import json
import os
import re
import signal
import sys

import processes
import pytest
from PIL import Image

from mmmeb_tasks.mini import TEACHER
from mmmeb_tasks.mini.world import load_world
from recipes import demo
from recipes.image_search.models import load_query_model
from recipes.image_search.queries import embed_query
from recipes.image_search.store import ImageIndex
from recipes.shared.report import score_table

TASKS = {"t2i", "c"}
SHORT = ["--steps", "4", "--batch-size", "8", "--scenes", "100", "--queries", "20", "--eval-rows", "20"]
SHORT += ["--tasks", *sorted(TASKS)]
LANGUAGES = ["en", "it", "es", "fr", "de"]


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """(the finished folder, what was printed)."""
    folder = tmp_path_factory.mktemp("demo")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        demo.main(["--out", str(folder / "xvlm2vec"), *SHORT])
    return folder / "xvlm2vec", printed.getvalue()


def test_every_step_says_what_it_does_and_the_table_is_printed(shown):
    folder, printed = shown
    for step in range(1, 8):
        assert f"\n{step}/7  " in "\n" + printed
    scores = json.loads((folder / "report" / "scores.json").read_text())
    assert score_table(scores["teacher"], scores["student"], scores["student_on_teacher_index"]) in printed
    assert printed.rstrip().splitlines()[-3].strip() == "from sentence_transformers import SentenceTransformer"


def test_the_scores_have_every_task_language_and_library(shown):
    scores = json.loads((shown[0] / "report" / "scores.json").read_text())
    for side in ("teacher", "student", "student_on_teacher_index"):
        assert list(scores[side]) == LANGUAGES
        assert all(set(tasks) == TASKS for tasks in scores[side].values())
        assert all(0 <= value <= 1 for tasks in scores[side].values() for value in tasks.values())
    assert scores["teacher"] != scores["student"] != scores["student_on_teacher_index"] != scores["teacher"]
    assert {"score_teacher", "distil", "score_student", "score_index"} <= set(scores["seconds"])
    assert {"torch", "mteb", "transformers", "python"} <= set(scores["versions"])


def test_the_report_has_images_and_a_page_that_opens_from_its_folder(shown):
    report = shown[0] / "report"
    for name in ("languages.png", "contact.png"):
        assert min(Image.open(report / name).size) > 300
    page = (report / "contact.html").read_text("utf-8")
    sources = re.findall(r'src="([^"]+)"', page)
    assert len(sources) == len(LANGUAGES) * 2 * 5
    assert all((report / source).is_file() for source in sources)
    assert page.count("<h2>") == len(LANGUAGES)


def test_nothing_but_the_result_is_left(shown):
    assert [path.name for path in shown[0].parent.iterdir()] == ["xvlm2vec"]


def test_a_finished_folder_is_not_overwritten_without_asking(shown):
    with pytest.raises(ValueError, match="exists and is not empty; choose another --out, or pass --overwrite"):
        demo.main(["--out", str(shown[0])])


def run(argv, printed):
    """The demo, until a signal comes."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with open(printed, "w", buffering=1) as sys.stdout:
        demo.main(argv)


@pytest.mark.parametrize("step", [pytest.param("2/7", marks=pytest.mark.slow), "3/7"])
def test_ctrl_c_leaves_nothing_that_looks_finished(tmp_path, step):
    reading, printed = os.pipe()
    child = processes.apart(run, ["--out", str(tmp_path / "xvlm2vec"), *SHORT], printed)
    os.close(printed)
    with open(reading) as lines:
        assert any(line.startswith(step) for line in lines)
        os.kill(child.pid, signal.SIGINT)
        lines.read()
    child.join(processes.PATIENCE)
    assert child.exitcode != 0
    assert not (tmp_path / "xvlm2vec").exists()


def test_a_run_that_was_killed_in_the_search_ends_with_it(tmp_path, monkeypatch, capsys):
    def run_in(place, args):
        (place.work / "model").mkdir()
        place.finish(place.work / "model")

    def killed(out):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run_in", run_in)
    monkeypatch.setattr(demo, "search_images", killed)
    with pytest.raises(KeyboardInterrupt):
        demo.main(["--out", str(tmp_path / "xvlm2vec"), *SHORT])
    searched = []
    monkeypatch.setattr(demo, "search_images", searched.append)
    assert demo.main(["--out", str(tmp_path / "xvlm2vec"), *SHORT]) == tmp_path / "xvlm2vec"
    assert searched == [tmp_path / "xvlm2vec"] and capsys.readouterr().out == f"Done: {searched[0]}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["xvlm2vec"]


def test_table_cells_are_before_after_and_difference():
    table = score_table({"en": {"c": 0.5}, "it": {"c": 0.01}}, {"en": {"c": 0.5}, "it": {"c": 0.48}})
    assert table.splitlines()[-1] == "| c | 50.0 → 50.0 (+0.0) | 1.0 → 48.0 (+47.0) |"


def test_a_score_over_the_index_is_a_third_figure():
    table = score_table({"en": {"c": 0.5}}, {"en": {"c": 0.5}}, {"en": {"c": 0.475}})
    assert table.splitlines()[0] == "| P@1, %: teacher → student · student on the teacher's index | en |"
    assert table.splitlines()[-1] == "| c | 50.0 → 50.0 (+0.0) · 47.5 |"


def test_the_student_searches_what_the_teacher_indexed(shown):
    folder, printed = shown
    index = ImageIndex.open(folder / "index")
    assert len(index) == len(list((folder / "images").glob("*.png"))) == len(load_world(["en"]).concepts)
    assert index.space.model == str(TEACHER)
    query = embed_query(load_query_model(index.space, str(folder)), "rainbow")
    assert index.search(query, limit=1)[0].path == "rainbow.png"
    found = re.findall(r"(teacher|student): the image of a name comes first: en ([\d.]+) %  it ([\d.]+) %", printed)
    assert [name for name, _, _ in found] == ["teacher", "student"]
    assert 70 < float(found[0][1]) <= 100 and float(found[0][2]) < 30  # the teacher knows English only
