"""A result's folder: what the user owns stays, one run at a time, whole or absent after a kill anywhere."""

import os
import subprocess
import sys
import time
from pathlib import Path

import processes
import pytest
from kills import contents, killed_before

from mmmeb_tasks.data import download as mmmeb_data
from mmmeb_tasks.mini import write
from recipes import demo
from recipes.add_language import command as add_language
from recipes.distill.parser import parse_arguments
from recipes.evaluate import command as evaluate
from recipes.translate import command as translate
from xvlm2vec_st.utils.folders import Destination, FileDestination, destination, moves

NEW = {"model": b"new", "1_Pooling/config.json": b"{}"}


def produce(out, meanwhile=lambda: None, settings=None, **options):
    """A small program that writes a folder of two files."""
    place = Destination(out, command="test", **options)
    with place.hold():
        if not place.begin(settings or {}):
            (place.draft / "1_Pooling").mkdir(parents=True)
            for name, data in NEW.items():
                (place.draft / name).write_bytes(data)
            meanwhile()
            place.finish(place.draft)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("atomic", [True, False])
@pytest.mark.parametrize("old", [False, True])
def test_killed_before_any_step_the_folder_is_the_old_or_the_new_one(tmp_path, monkeypatch, old, atomic):
    if not atomic:
        monkeypatch.setattr(destination, "exchange", lambda one, two: False)
    elif old and not moves.exchange(*twins(tmp_path / "probe")):
        pytest.skip("this disk cannot swap two folders")
    step, killed = 0, True
    while killed:
        root = tmp_path / str(step)
        root.mkdir()
        if old:
            (root / "out").mkdir()
            (root / "out" / "model").write_bytes(b"old")
        before = {"model": b"old"} if old else {}
        killed = killed_before(step, lambda root=root: produce(root / "out", overwrite=old))
        between = contents(root / "out") if (root / "out").exists() else None
        assert between in (before, NEW) or (between is None and not (old and atomic))
        assert not [name for name in names(root) if name.startswith(".")], "hidden"
        with Destination(root / "out", command="test", overwrite=old).hold():
            held = contents(root / "out") if (root / "out").exists() else None
            assert held in ((before, NEW) if old else (None, NEW))
        if held != NEW:
            produce(root / "out", overwrite=old)
        assert contents(root / "out") == NEW and names(root) == ["out"]
        step += 1
    assert step > 12


def twins(folder):
    """Two folders, for a look at what the disk can do."""
    for name in ("one", "two"):
        (folder / name).mkdir(parents=True)
    return folder / "one", folder / "two"


@pytest.mark.parametrize("note", [b"", b"\xff", b"[]", b"{", b'{"rows.jsonl": 1}', b"null"])
def test_a_damaged_note_of_a_move_stops_no_run_and_moves_nothing(tmp_path, note):
    for name in ("folder.partial", "rows.jsonl.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "moving.json").write_bytes(note)
    (tmp_path / "rows.jsonl").write_text("old")
    with Destination(tmp_path / "folder", command="test").hold() as place:
        assert not place.waiting()
    with FileDestination(tmp_path / "rows.jsonl", command="test").hold() as place:
        assert place.ended is None
    assert (tmp_path / "rows.jsonl").read_text() == "old"


def test_the_same_command_after_a_kill_in_the_last_step_has_nothing_to_do(tmp_path):
    def never():
        raise AssertionError("written twice")

    ended = 0
    for step in range(100):
        root = tmp_path / str(step)
        if not killed_before(step, lambda root=root: produce(root / "out")):
            break
        if (root / "out").exists() and (root / "out.partial" / "arguments.json").exists():
            produce(root / "out", never)
            assert contents(root / "out") == NEW and names(root) == ["out"]
            ended += 1
    assert ended


def write_files(root, *, overwrite=False, meanwhile=lambda: None):
    """A small program that writes a file and a report beside it."""
    place = FileDestination(root / "out.jsonl", suffix=".work", overwrite=overwrite)
    targets = [root / "out.report.md", root / "out.jsonl"]
    with place.hold():
        place.check_files(targets)
        place.check_work("results", "moving*")
        place.drafts.mkdir(parents=True, exist_ok=True)
        for target in targets:
            (place.drafts / target.name).write_text("new")
        meanwhile()
        place.finish_files(targets)


@pytest.mark.parametrize("old", [False, True])
def test_killed_before_any_step_files_are_the_old_or_the_new_ones(tmp_path, old):
    new, step, killed = {"out.jsonl": b"new", "out.report.md": b"new"}, 0, True
    while killed:
        root = tmp_path / str(step)
        root.mkdir()
        for name in new if old else ():
            (root / name).write_text("old")
        killed = killed_before(step, lambda root=root: write_files(root, overwrite=old))
        for name in new:
            there = (root / name).read_bytes() if (root / name).exists() else None
            assert there == b"new" or there == (b"old" if old else None)
        with FileDestination(root / "out.jsonl", suffix=".work").hold():
            pass
        if contents(root) != new:
            write_files(root, overwrite=old)
        assert contents(root) == new
        step += 1
    assert step > 8


# What the user owns.


def taken_by(kind, out):
    """Something of the user's at `out`: (what it holds, to be compared later)."""
    if kind == "folder":
        out.mkdir()
        (out / "thesis.txt").write_text("three years of work")
    elif kind == "file":
        out.write_text("three years of work")
    elif kind == "link":
        elsewhere = out.with_name("elsewhere")
        elsewhere.mkdir()
        (elsewhere / "thesis.txt").write_text("three years of work")
        out.symlink_to(elsewhere)
    else:
        out.symlink_to(out.with_name("missing"))


KINDS = ("folder", "file", "link", "dangling link")


@pytest.mark.parametrize("kind", KINDS)
def test_what_appears_at_out_meanwhile_stays_and_the_same_command_finishes_later(tmp_path, kind):
    out = tmp_path / "out"
    message = f"^{out} appeared while this ran, and is left as it is; the result is whole in {out}.partial/final"
    with pytest.raises(ValueError, match=message):
        produce(out, lambda: taken_by(kind, out))
    assert os.path.lexists(out) and contents(tmp_path / "out.partial" / "final") == NEW
    mine = {name: data for name, data in contents(tmp_path).items() if not name.startswith("out.partial")}
    assert mine
    with pytest.raises(ValueError, match="not empty|is a file|which is missing"):
        produce(out)
    assert mine.items() <= contents(tmp_path).items()
    out.rename(tmp_path / "moved away")
    with pytest.raises(ValueError, match="is the finished result of an earlier run; move it away"):
        produce(out, settings={"another": "run"})
    produce(out, lambda: pytest.fail("written twice"))
    assert contents(out) == NEW and not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_appear_meanwhile_stay(tmp_path, kind):
    for name in ("out.report.md", "out.jsonl"):
        root = tmp_path / name
        root.mkdir()
        with pytest.raises(ValueError, match=f"{name} appeared while this ran, .* is whole in .*/results/{name}"):
            write_files(root, meanwhile=lambda root=root, name=name: taken_by(kind, root / name))
        mine = {key: data for key, data in contents(root).items() if ".work" not in key}
        assert mine and b"new" not in mine.values()
        (root / name).rename(root / "moved away")
        write_files(root)
        assert (root / name).read_text() == "new" and not (root / "out.jsonl.work").exists()


@pytest.mark.parametrize(
    ("put", "message"),
    [
        (lambda out: (out.mkdir(), (out / "a").touch()), "exists and is not empty"),
        (lambda out: out.touch(), "is a file; choose another --out"),
        (lambda out: out.symlink_to("nowhere"), "is a link to nowhere, which is missing"),
        (lambda out: out.symlink_to("/proc"), "is a mount point, and cannot be replaced|cannot be written"),
        (lambda out: out.with_name("out.partial").touch(), "out.partial is a file; move it away"),
        (lambda out: taken_by("folder", out.with_name("out.partial")), "an unfinished run of something else"),
        (lambda out: out.with_name("out.partial").symlink_to("."), "out.partial is a link; move it away"),
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_cannot_be_filled_is_refused_at_the_start_and_nothing_is_touched(tmp_path, put, message, overwrite):
    put(tmp_path / "out")
    before = contents(tmp_path)
    if overwrite and message == "exists and is not empty":
        pytest.skip("--overwrite replaces that")
    with pytest.raises(ValueError, match=message):
        produce(tmp_path / "out", lambda: pytest.fail("begun"), overwrite=overwrite)
    assert contents(tmp_path) == before


def test_a_folder_that_cannot_be_written_is_refused_at_the_start(tmp_path, monkeypatch):
    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ValueError, match=r"a/out cannot be written \(Permission denied\); choose another"):
        produce(tmp_path / "a" / "out")
    assert names(tmp_path) == []


def test_an_empty_folder_and_one_behind_a_link_are_filled(tmp_path):
    for name in ("empty", "real"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("real")
    produce(tmp_path / "empty")
    produce(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and names(tmp_path) == ["empty", "link", "real"]
    assert contents(tmp_path / "real") == contents(tmp_path / "empty") == NEW


def test_what_overwriting_replaces_stays_until_the_result_is_whole(tmp_path):
    taken_by("folder", tmp_path / "out")

    def fail():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        produce(tmp_path / "out", fail, overwrite=True)
    assert contents(tmp_path / "out") == {"thesis.txt": b"three years of work"}
    produce(tmp_path / "out", overwrite=True)
    assert contents(tmp_path / "out") == NEW and names(tmp_path) == ["out"]


@pytest.mark.parametrize("place", ["out", "out/deep", "out.partial/corpus"])
def test_what_a_run_reads_may_not_lie_in_what_it_replaces(tmp_path, place):
    place = tmp_path / place
    place.mkdir(parents=True)
    with pytest.raises(ValueError, match=f"--corpus {place} lies in .*, which the run replaces"):
        Destination(tmp_path / "out", overwrite=True).check([("--corpus", place)])


def test_home_is_expanded_and_a_user_who_is_not_there_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    produce("~/m")
    assert names(tmp_path) == ["m"]
    with pytest.raises(ValueError, match="^~nobody-here/m: no such user; write ./~nobody-here/m"):
        produce("~nobody-here/m")
    assert names(tmp_path) == ["m"]


MODEL = ["--student", "~/a", "--corpus", "~/c", "--languages", "it"]


@pytest.mark.parametrize(
    ("recipe", "words", "options"),
    [
        (demo, [], ("out",)),
        (add_language, ["~/a", "pt", "--mini", "5"], ("out", "model")),
        (translate, ["--corpus", "~/c", "--languages", "it", "--images=~/i"], ("out", "images")),
        (evaluate, ["~/a"], ("out",)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_recipe_expands_home(tmp_path, monkeypatch, recipe, words, options):
    """`--out=~/m` is not expanded by the shell."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a").mkdir()
    args = recipe.parse_args([*words, "--out=~/m"])
    assert all(str(getattr(args, name)).startswith(str(tmp_path)) for name in options)


def test_distill_expands_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a").mkdir()
    words = [*MODEL, "--teacher=~/a", "--cache=~/k", "--output-dir=~/m"]
    arguments, training = parse_arguments(words, None)
    paths = [arguments.student, arguments.teacher, arguments.cache, training.output_dir, *arguments.corpus]
    assert all(path.startswith(str(tmp_path)) for path in paths)


# One run at a time.


def test_a_second_run_into_one_folder_ends_with_one_line(tmp_path):
    with Destination(tmp_path / "out").hold():
        for out in (tmp_path / "out", tmp_path / "a" / ".." / "out"):
            with pytest.raises(ValueError, match=r"out: another run is writing it \(process \d+ on .+\); wait"):
                produce(out)
    assert names(tmp_path) == []
    produce(tmp_path / "out")


def test_a_killed_run_holds_nothing_though_its_child_lives_on(tmp_path):
    script = (
        "import os, time\n"
        "from mmmeb_tasks.utils.folders import Destination\n"
        f"with Destination({str(tmp_path / 'out')!r}).hold():\n"
        "    child = os.fork()\n"
        "    if not child: print(os.getpid(), flush=True)\n"
        "    time.sleep(60)\n"
    )
    run = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    child = int(run.stdout.readline())
    try:
        with pytest.raises(ValueError, match=f"process {run.pid} on"):
            produce(tmp_path / "out")
        run.kill()
        run.wait()
        produce(tmp_path / "out")
        assert names(tmp_path) == ["out"]
    finally:
        os.kill(child, 9)


def test_a_lock_that_is_the_users_file_is_left_alone(tmp_path):
    (tmp_path / "out.partial.lock").write_text("my own")
    with pytest.raises(ValueError, match="out.partial.lock is not the lock of a run; move it away"):
        produce(tmp_path / "out")
    assert contents(tmp_path) == {"out.partial.lock": b"my own"}


def test_parts_of_one_work_share_it_and_shut_out_the_whole(tmp_path):
    one, two = Destination(tmp_path / "out"), Destination(tmp_path / "out")
    with one.hold(shared=True), two.hold(shared=True), pytest.raises(ValueError, match="another run"):
        produce(tmp_path / "out")
    assert names(tmp_path) == []


def test_a_second_process_waits_for_the_mini_world_and_takes_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MMMEB_CACHE", str(tmp_path))
    real = write.write_benchmark

    def slow(*args):
        time.sleep(1)
        return real(*args, queries=100)

    monkeypatch.setattr(write, "write_benchmark", slow)
    child = processes.apart(write.ensure_mini, ["en"])
    while not names(tmp_path):
        time.sleep(0.01)
    monkeypatch.setattr(write, "write_benchmark", lambda *args: pytest.fail("written twice"))
    folder = write.ensure_mini(["en"])
    child.join()
    assert names(tmp_path) == [folder.name] and not folder.name.endswith(".partial")


def test_the_benchmarks_data_are_moved_by_the_same_code():
    """Loaded without the package around it, which would import torch."""
    script = "import sys, mmmeb_tasks.utils.folders; print('torch' in sys.modules, mmmeb_tasks.utils.folders.__file__)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", script],
        capture_output=True,
        text=True,
        cwd=Path(write.__file__).parents[2],
    )
    assert done.stdout.startswith("False"), done.stderr
    assert mmmeb_data.Destination is write.Destination
