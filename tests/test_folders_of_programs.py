"""Every program that writes a result: what appears at its place stays, and what it did not write, too."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
from kills import contents

from mmmeb_tasks.data import download as mmmeb_data
from mmmeb_tasks.mini import write
from mmmeb_tasks.mini.write import write_corpus
from recipes import demo
from recipes.add_language import command as add_language
from recipes.add_language.work import keep_corpus
from recipes.distill import command as distill
from recipes.evaluate import command as evaluate
from recipes.experiments import text_embedder
from recipes.experiments.mini_teacher import command as mini_teacher
from recipes.translate import command as translate
from recipes.translate.dictionary import mini_dictionary
from xvlm2vec_st import build
from xvlm2vec_st.building import builder as checkpoint
from xvlm2vec_st.utils.folders import Destination

THESIS = {"thesis.txt": b"three years of work"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Eight rows in English and Italian."""
    folder = write_corpus(tmp_path_factory.mktemp("folders") / "corpus", ["en", "it"], scenes=4)
    return folder / "parallel.jsonl"


def write_model(arguments, training):
    """Replaces `distill`: writes the folder that it would write."""
    out = Path(training.output_dir)
    out.mkdir(parents=True)
    (out / "model").write_text("trained")
    return out


# Each: (module to patch, {name: replacement}, the program, where a user's work lies while it runs).


def of_demo(patch, corpus, hook):
    # The demo imports most of them when it runs.
    patch.setattr("sentence_transformers.SentenceTransformer", lambda *args: None)
    for name in ("languages_chart", "contact_sheet"):
        patch.setattr(f"recipes.shared.report.{name}", lambda *args: None)
    patch.setattr(demo, "write_benchmark", lambda out, **kwargs: out)
    patch.setattr(demo, "write_corpus", lambda out, **kwargs: out)
    patch.setattr(demo, "search_images", lambda student: None)
    patch.setattr("recipes.shared.report.score_table", lambda *args: "")
    patch.setattr("mmmeb_tasks.mini.tasks.evaluate_mini", lambda *args, **kwargs: hook() or {})
    patch.setattr(distill, "distill", write_model)
    return lambda out, *more: demo.main(["--out", str(out), *more])


def of_add_language(patch, corpus, hook):
    patch.setattr(add_language, "SentenceTransformer", lambda *args: None)
    patch.setattr(add_language, "hold_out", lambda path, **kwargs: (path, path))
    patch.setattr(add_language, "score", lambda *args: hook() or {})
    patch.setattr(add_language, "distill", write_model)
    words = ["a", "pt", "--corpus", str(corpus), "--translator", "cldr"]
    return lambda out, *more: add_language.main([*words, "--out", str(out), *more])


def of_text_embedder(patch, corpus, hook):
    patch.setattr(text_embedder, "SentenceTransformer", lambda *args: None)
    patch.setattr(text_embedder, "recall", lambda *args: hook() or dict.fromkeys(text_embedder.LANGUAGES, 0.5))
    patch.setattr(text_embedder, "distill", write_model)
    return lambda out, *more: text_embedder.main(["--model", str(corpus.parent), "--out", str(out), *more])


def of_mini_teacher(patch, corpus, hook):
    def make(args, folder):
        hook()
        folder.mkdir()
        (folder / "model").write_text("trained")

    patch.setattr(mini_teacher, "make", make)
    return lambda out: mini_teacher.main(["--out", str(out)])


def of_distill(patch, corpus, hook):
    real = distill.save_with_card
    patch.setattr(distill, "save_with_card", lambda *args: hook() or real(*args))
    words = ["--student", str(tiny.embedder("llava")), "--corpus", str(corpus), "--languages", "it"]
    words += ["--per-device-train-batch-size", "4", "--max-steps", "1", "--eval-rows", "0", "--report-to", "none"]
    return lambda out, *more: distill.main([*words, "--output-dir", str(out), *more])


def of_build(patch, corpus, hook):
    real = checkpoint.pin_backend
    patch.setattr(checkpoint, "pin_backend", lambda *args: hook() or real(*args))
    return lambda out, **more: build(tiny.checkpoint("llava"), out, **more)


def of_mini_corpus(patch, corpus, hook):
    real = write._write_lines
    patch.setattr(write, "_write_lines", lambda *args: hook() or real(*args))
    return lambda out: write_corpus(out, ["en"], scenes=2)


PROGRAMS = {
    "demo": (of_demo, ".demo"),
    "add_language": (of_add_language, ".work"),
    "text_embedder": (of_text_embedder, ".rows"),
    "mini_teacher": (of_mini_teacher, ".partial"),
    "distill": (of_distill, ".partial"),
    "build": (of_build, ".partial"),
    "mini corpus": (of_mini_corpus, ".partial"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_appears_at_out_while_a_program_runs_stays(name, corpus, tmp_path, monkeypatch):
    make, suffix = PROGRAMS[name]
    out = tmp_path / "out"
    work = out.with_name(f"out{suffix}")

    def meanwhile():
        if not out.exists():
            out.mkdir()
            (out / "thesis.txt").write_text("three years of work")

    hooks = [meanwhile]
    program = make(monkeypatch, corpus, lambda: hooks[0]())
    with pytest.raises(ValueError, match=f"{out} appeared while this ran.*is whole in {work}/final: move it"):
        program(out)
    assert contents(out) == THESIS
    assert contents(work / "final").keys() >= {"model"} or any((work / "final").glob("*.json*"))
    whole = contents(work / "final")
    out.rename(tmp_path / "moved away")
    hooks[0] = lambda: None
    if name in ("distill", "build", "demo", "add_language"):  # the others take seconds, and begin anew
        program(out, *(["--resume-from-checkpoint"] if name == "distill" else []))
        same = {key for key in whole if not key.startswith("runs") and key != "README.md"}
        assert contents(out).keys() >= same and contents(tmp_path / "moved away") == THESIS
        assert sorted(p.name for p in tmp_path.iterdir() if "corpus" not in p.name) == ["moved away", "out"]


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_work_folder_that_a_program_did_not_write_stays(name, corpus, tmp_path, monkeypatch):
    make, suffix = PROGRAMS[name]
    program = make(monkeypatch, corpus, lambda: pytest.fail("begun"))
    mine = tmp_path / f"out{suffix}"
    mine.mkdir()
    (mine / "thesis.txt").write_text("three years of work")
    with pytest.raises(ValueError, match=r"holds an unfinished run of something else \('thesis.txt'"):
        program(tmp_path / "out")
    assert contents(tmp_path) == {f"out{suffix}/thesis.txt": THESIS["thesis.txt"]}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_second_start_ends_with_one_line(name, corpus, tmp_path, monkeypatch):
    make, _ = PROGRAMS[name]
    program = make(monkeypatch, corpus, lambda: pytest.fail("begun"))
    with Destination(tmp_path / "out").hold(), pytest.raises(ValueError, match="another run is writing it"):
        program(tmp_path / "out")
    if name == "distill":
        with Destination(tmp_path / "out").hold(), pytest.raises(ValueError, match="another run is writing"):
            program(tmp_path / "out", "--resume-from-checkpoint")
    assert not list(tmp_path.iterdir())


def translating(corpus, out, *more, translator=None):
    words = ["--corpus", str(corpus), "--languages", "pt", "--out", str(out), "--tokens-per-batch", "60", *more]
    return translate.main(words, translator or mini_dictionary(["pt"]))


@pytest.mark.parametrize("name", ["t.jsonl", "t.report.md", "t.report.html", "t.refused.jsonl"])
def test_files_that_appear_while_a_translation_runs_stay(corpus, tmp_path, monkeypatch, name):
    real = translate.work_through

    def meanwhile(*args, **kwargs):
        (tmp_path / name).write_text("mine")
        return real(*args, **kwargs)

    monkeypatch.setattr(translate, "work_through", meanwhile)
    with pytest.raises(ValueError, match=f"{name} appeared while this ran.* whole in .*t.jsonl.work/results"):
        translating(corpus, tmp_path / "t.jsonl")
    assert (tmp_path / name).read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir() if path.name != "t.jsonl.work"] == [name]
    monkeypatch.setattr(translate, "work_through", real)
    with pytest.raises(ValueError, match=f"{name} exists; choose another --out, or pass --overwrite"):
        translating(corpus, tmp_path / "t.jsonl")
    (tmp_path / name).rename(tmp_path / "mine")
    translating(corpus, tmp_path / "t.jsonl")
    assert (tmp_path / "mine").read_text() == "mine" and (tmp_path / "t.jsonl").is_file()
    assert not (tmp_path / "t.jsonl.work").exists()


def test_a_translation_is_locked_and_its_work_is_its_own(corpus, tmp_path):
    out = tmp_path / "t.jsonl"
    with Destination(out).hold(), pytest.raises(ValueError, match="another run is writing it"):
        translating(corpus, out)
    with Destination(out).hold(shared=True), pytest.raises(ValueError, match="another run is writing it"):
        translating(corpus, out)
    (tmp_path / "t.jsonl.work").mkdir()
    (tmp_path / "t.jsonl.work" / "thesis.txt").write_text("three years of work")
    with pytest.raises(ValueError, match="holds an unfinished run of something else"):
        translating(corpus, out, "--overwrite")
    assert contents(tmp_path) == {"t.jsonl.work/thesis.txt": THESIS["thesis.txt"]}
    with pytest.raises(ValueError, match="--corpus .* lies in .*, which the run replaces"):
        translating(corpus, corpus, "--overwrite")


def test_a_shard_runs_once_beside_other_shards(corpus, tmp_path):
    out = tmp_path / "t.jsonl"

    class Nested(type(mini_dictionary(["pt"]))):
        """Starts other runs while its own is under way."""

        def translate(self, texts, code):
            with pytest.raises(ValueError, match="shard-1: another run is writing it"):
                translating(corpus, out, "--shard", "1/2")
            with pytest.raises(ValueError, match="t.jsonl: another run is writing it"):
                translating(corpus, out)
            translating(corpus, out, "--shard", "2/2", translator=mini_dictionary(["pt"]))
            return super().translate(texts, code)

    translating(corpus, out, "--shard", "1/2", translator=Nested(mini_dictionary(["pt"]).tables, name="cldr"))
    translating(corpus, out)
    assert out.is_file() and not [path for path in tmp_path.iterdir() if "lock" in path.name]


def test_a_corpus_that_appears_beside_a_new_model_stays(tmp_path):
    work, folder = tmp_path / "m.work", tmp_path / "m.corpus"
    for place in (work, folder):
        place.mkdir()
        (place / "parallel.jsonl").write_text(place.name)
    with pytest.raises(ValueError, match="corpus/parallel.jsonl cannot be written .File exists.*move .*away"):
        keep_corpus(work / "parallel.jsonl", folder, replace=False)
    assert (folder / "parallel.jsonl").read_text() == "m.corpus"
    folder.rename(tmp_path / "mine")
    keep_corpus(work / "parallel.jsonl", folder, replace=False)
    keep_corpus(work / "parallel.jsonl", folder, replace=False)  # after a kill: nothing is left to do
    assert (folder / "parallel.jsonl").read_text() == "m.work"


@pytest.mark.parametrize("name", ["scores.csv", "queries.html", "images"])
def test_a_report_replaces_no_file_that_another_program_wrote(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=f"{name} exists, and no earlier report wrote it; choose"):
        evaluate.check_out(tmp_path)
    (tmp_path / "predictions" / "m__1__plain").mkdir(parents=True)
    (tmp_path / "predictions" / "m__1__plain" / "MiniI2TRanking_predictions.json").touch()
    evaluate.check_out(tmp_path)


def test_a_report_is_locked_and_goes_where_a_folder_can_be(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "mmmeb_tasks_among", lambda *args: [])
    monkeypatch.setattr(evaluate, "expand_aggregates", lambda tasks: [SimpleNamespace()])
    monkeypatch.setattr(evaluate, "MMMEBRetrieval", SimpleNamespace)
    monkeypatch.setattr(evaluate, "meta_of", lambda name: None)
    monkeypatch.setattr(evaluate, "refuse_half", lambda *args: None)
    monkeypatch.setattr(evaluate, "evaluated", lambda args, *more: json.dumps({}))
    words = ["m", "--out", str(tmp_path / "report")]
    with Destination(tmp_path / "report" / "evaluate").hold():
        with pytest.raises(ValueError, match="another run is writing it"):
            evaluate.main(words)
    evaluate.main(words)
    assert not list(tmp_path.iterdir())  # nothing was written
    (tmp_path / "report").symlink_to("missing")
    with pytest.raises(ValueError, match="is a link to missing, which is missing"):
        evaluate.main(words)
    (tmp_path / "report").unlink()
    (tmp_path / "report").touch()
    with pytest.raises(ValueError, match="report is a file"):
        evaluate.main(words)


def test_unpacked_data_leave_a_folder_that_appears_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setenv("MMMEB_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "data-0123456789ab"

    def unpack(partial, source):
        partial.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
        (folder / "thesis.txt").write_text("three years of work")

    monkeypatch.setattr(mmmeb_data, "files", lambda source: [])
    monkeypatch.setattr(mmmeb_data, "_unpack_into", unpack)
    with pytest.raises(ValueError, match="appeared while this ran, and is left as it is"):
        mmmeb_data.unpacked(tmp_path, revision="0123456789abcdef")
    assert contents(folder) == THESIS and os.listdir(folder.parent) != [folder.name]
