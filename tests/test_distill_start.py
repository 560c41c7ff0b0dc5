"""How a run begins, ends, and goes on after a kill at either place; nothing here trains long."""

import shutil
from pathlib import Path

import pytest
import tiny
from sentence_transformers import SentenceTransformer

from mmmeb_tasks.mini.write import write_corpus
from recipes.distill import command as distill
from recipes.distill.options import run_settings
from recipes.distill.parser import parse_arguments
from recipes.distill.start import check_folders, is_early_file, run_destination
from xvlm2vec_st.utils.folders import write_note

# Where the decoder lies in a headless model: phi3_v's comes last.
DECODER = ("language_model.", "text_model.", "model.layers.", "model.embed_tokens.", "model.norm.")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = write_corpus(tmp_path_factory.mktemp("start") / "corpus", ["en", "it", "de"], scenes=4)
    return folder / "parallel.jsonl"


def command(corpus, out, *more, student="a"):
    base = ["--student", student, "--corpus", corpus, "--languages", "it,de", "--output-dir", out]
    short = ["--per-device-train-batch-size", "2", "--max-steps", "1", "--learning-rate", "1e-3", "--eval-rows", "0"]
    return [str(word) for word in (*base, *short, "--report-to", "none", *more)]


@tiny.every_family
@pytest.mark.parametrize("more", [[], ["--lora-rank", "2"], ["--train-vision"]], ids=str)
def test_only_the_language_model_learns_by_default(family, more, tmp_path):
    """LLaVA-NeXT's `image_newline` is no part of it: a batch without an image does not reach it."""
    student = SentenceTransformer(str(tiny.embedder(family)))
    arguments, _ = parse_arguments(command("c", tmp_path / "o", *more), None)
    distill.set_trainable(student, arguments, bf16=False)
    learns = [name for name, p in student[0].model.named_parameters() if p.requires_grad]
    others = [name for name in learns if not name.startswith(DECODER)]
    assert len(learns) > len(others)
    assert bool(others) is ("--train-vision" in more), others


def test_what_is_refused_leaves_no_start_and_a_killed_start_is_built_again(corpus, tmp_path):
    argv = command(corpus, tmp_path / "out", "--num-crops", "2", student=tiny.checkpoint("phi3_v"))
    with pytest.raises(ValueError, match="matryoshka_dims"):
        distill.main([*argv, "--matryoshka-dims", "4000"])
    assert list(tmp_path.iterdir()) == []
    work = tmp_path / "out.partial"
    for name in ("start", ".start.7.partial"):
        (work / name).mkdir(parents=True)
        (work / name / "config.json").write_text('{"mod')
    with pytest.raises(ValueError, match="no unfinished run to resume; leave --resume-from-checkpoint out"):
        distill.main([*argv, "--resume-from-checkpoint"])
    out = distill.main(argv)
    assert SentenceTransformer(str(out))[0].processor.image_processor.num_crops == 2
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_run_did_not_write_is_left_alone(corpus, tmp_path):
    args, training = parse_arguments(command(corpus, tmp_path / "out"), None)
    work = tmp_path / "out.partial"
    (work / "start").mkdir(parents=True)
    (work / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="holds an unfinished run"):
        check_folders(run_destination(training.output_dir, args), args, run_settings(args, training), resume=False)
    assert (work / "thesis.tex").is_file() and not is_early_file("thesis.tex")


def test_a_run_killed_while_it_moves_its_folder_into_place_is_resumed(corpus, tmp_path, monkeypatch):
    argv = command(corpus, tmp_path / "out", "--save-steps", "1", student=tiny.embedder("llava"))
    argv += ["--report-to", "tensorboard"]
    rename = Path.rename

    def killed(path, target):
        if path.name == "final":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        distill.main(argv)
    monkeypatch.setattr(Path, "rename", rename)
    work = tmp_path / "out.partial"
    events = {path.name for path in work.rglob("events.*")}
    (work / "final" / "half-written").write_text("")
    out = distill.main([*argv, "--resume-from-checkpoint"])
    assert events and events <= {path.name for path in out.glob("runs/*/events.*")}, "a log is lost"
    assert not (out / "half-written").exists() and not work.exists()


@pytest.fixture
def begun(corpus, tmp_path):
    """(the corpus, the command line, OUT.partial) of a run that is under way."""
    copy = Path(shutil.copytree(corpus.parent, tmp_path / "corpus")) / corpus.name
    argv, work = command(copy, tmp_path / "out"), tmp_path / "out.partial"
    write_note(work, run_settings(*parse_arguments(argv, None)))
    return copy, argv, work


def resumed(argv, work, *more):
    args, training = parse_arguments([*argv, "--resume-from-checkpoint", *more], None)
    place = run_destination(training.output_dir, args)
    check_folders(place, args, run_settings(args, training), resume=True)


def test_a_resumed_run_may_change_what_no_weight_depends_on(begun):
    _, argv, work = begun
    resumed(argv, work, "--cache", "elsewhere", "--dataloader-num-workers", "2", "--logging-steps", "1")
    resumed(argv, work, "--save-steps", "7", "--report-to", "wandb", "--gradient-checkpointing")
    with pytest.raises(
        ValueError, match=r"\(per_device_train_batch_size 2 -> 1\); resume with the same ones, or start again"
    ):
        resumed(argv, work, "--per-device-train-batch-size", "1")


def test_another_spelling_of_a_path_is_the_same_run(corpus, tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    work = tmp_path / "out.partial"
    monkeypatch.chdir(tmp_path)
    write_note(work, run_settings(*parse_arguments(command(corpus, tmp_path / "out"), None)))
    folder, file = f"{tmp_path}/a/../a", corpus.parent / ".." / corpus.parent.name / corpus.name
    resumed(command(file, "out", student=folder), work)
    resumed(command(corpus, "out", student="./a/"), work)
    with pytest.raises(ValueError, match="student '.*/a' -> 'b'"):
        resumed(command(corpus, "out", student="b"), work)


def test_a_corpus_edited_in_between_is_noticed(begun, caplog):
    corpus, argv, work = begun
    resumed(argv, work)
    assert not caplog.messages
    lines = corpus.read_text().splitlines(keepends=True)
    corpus.write_text("".join([lines[0].replace('"it": "', '"it": "Ecco '), *lines[1:]]))
    resumed(argv, work)
    assert ["the corpus was edited" in message for message in caplog.messages] == [True]
    corpus.write_text("".join(lines[1:]))
    with pytest.raises(ValueError, match=rf"corpus_rows \[{len(lines)}\] -> \[{len(lines) - 1}\]"):
        resumed(argv, work)
