"""Killed, stopped, cut in half: a resumed run ends in the bits of an unbroken one.

XVLM2VEC_KILLS=10 python -m pytest tests/test_resume.py     # ten kills in a row; one by default
"""

import json
import os
import random
import shutil
import signal
import time

import processes
import pytest
import tiny
from safetensors.torch import load_file

from mmmeb_tasks.mini.write import write_corpus
from recipes.distill import command as distill
from xvlm2vec_st import DistillationTrainer

KILLS = int(os.environ.get("XVLM2VEC_KILLS", "1"))
STEPS = 8


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = write_corpus(tmp_path_factory.mktemp("resume") / "corpus", ["en", "it", "de"], scenes=10)
    return folder / "parallel.jsonl"


def command(corpus, out, *more):
    base = ["--student", str(tiny.embedder("llava")), "--corpus", str(corpus), "--languages", "it,de"]
    # Five batches an epoch: a resumed run crosses into the second one.
    short = [
        "--per-device-train-batch-size",
        "4",
        "--max-steps",
        str(STEPS),
        "--learning-rate",
        "1e-3",
        "--eval-rows",
        "0",
    ]
    return [*base, *short, "--save-steps", "1", "--output-dir", str(out), "--report-to", "none", *more]


def weights(out):
    return (out / "model.safetensors").read_bytes()


def finish(argv):
    child = processes.apart(distill.main, argv)
    child.join(processes.PATIENCE)
    assert child.exitcode == 0


@pytest.fixture(scope="module")
def unbroken(corpus, tmp_path_factory):
    """(weights, seconds)."""
    out, start = tmp_path_factory.mktemp("unbroken") / "out", time.monotonic()
    finish(command(corpus, out))
    before = load_file(tiny.embedder("llava") / "model.safetensors")
    after = load_file(out / "model.safetensors")
    assert any((before[key] - after[key]).abs().max() > 1e-3 for key in before)
    return weights(out), time.monotonic() - start


@pytest.mark.parametrize("kill", range(KILLS))
def test_killed_at_any_time(kill, corpus, unbroken, tmp_path):
    expected, seconds = unbroken
    out, work = tmp_path / "out", tmp_path / "out.partial"
    argv, rng, killed = command(corpus, out), random.Random(f"{time.time_ns()}/{kill}"), 0
    while not out.exists():
        go_on = ["--resume-from-checkpoint"] if (work / "arguments.json").is_file() else ["--overwrite"]
        child = processes.apart(distill.main, [*argv, *go_on])
        child.join(rng.uniform(0.2, 0.9) * seconds if killed < 2 else processes.PATIENCE)
        if child.exitcode is None and killed < 2:
            child.kill()
            child.join()
            killed += 1
        assert child.exitcode in (0, -signal.SIGKILL)
        if out.exists() and not killed:  # done before its end came: once more, with less time
            shutil.rmtree(out)
            seconds /= 2
    assert killed and weights(out) == expected
    assert not work.exists()


def stopping(argv, number, at):
    """Run, and get a signal in update `at`."""
    original = DistillationTrainer.training_step

    def step(self, *args, **kwargs):
        if self.state.global_step == at:
            os.kill(os.getpid(), number)
        return original(self, *args, **kwargs)

    DistillationTrainer.training_step = step
    try:
        distill.main(argv)
    except SystemExit as stopped:
        os._exit(stopped.code)


def test_a_signal_ends_the_update_and_saves(corpus, unbroken, tmp_path):
    out = tmp_path / "out"
    argv = command(corpus, out, "--save-steps", "100")
    child = processes.apart(stopping, argv, signal.SIGINT, 5)
    child.join(processes.PATIENCE)
    assert child.exitcode == 128 + signal.SIGINT and not out.exists()
    assert [path.name for path in (tmp_path / "out.partial").glob("checkpoint-*")] == ["checkpoint-6"]
    finish([*argv, "--resume-from-checkpoint"])
    assert weights(out) == unbroken[0]


def test_a_checkpoint_cut_in_half_is_passed_over_with_a_line(corpus, unbroken, tmp_path, caplog):
    out = tmp_path / "out"
    child = processes.apart(stopping, command(corpus, out), signal.SIGTERM, 5)
    child.join(processes.PATIENCE)
    assert child.exitcode == 128 + signal.SIGTERM
    work = tmp_path / "out.partial"
    assert sorted(path.name for path in work.glob("checkpoint-*")) == ["checkpoint-5", "checkpoint-6"]
    optimizer = work / "checkpoint-6" / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[: optimizer.stat().st_size // 2])
    whole = shutil.copytree(work, tmp_path / "copy")
    finish([*command(corpus, out), "--resume-from-checkpoint"])
    assert weights(out) == unbroken[0]
    assert distill.last_whole_checkpoint(whole) == whole / "checkpoint-5"
    assert "checkpoint-6 is skipped: optimizer.pt has" in caplog.text


def test_without_a_whole_checkpoint_a_resumed_run_starts_anew(corpus, unbroken, tmp_path):
    out = tmp_path / "out"
    child = processes.apart(stopping, command(corpus, out), signal.SIGTERM, 0)
    child.join(processes.PATIENCE)
    arguments = tmp_path / "out.partial" / "arguments.json"
    told = arguments.read_text()
    arguments.write_text(json.dumps(json.loads(told) | {"processes": 8}))
    with pytest.raises(ValueError, match=r"started with other arguments \(processes 8 -> 1\)"):
        distill.main([*command(corpus, out), "--resume-from-checkpoint"])
    arguments.write_text(told)
    (tmp_path / "out.partial" / "checkpoint-1" / "whole.json").unlink()
    finish([*command(corpus, out), "--resume-from-checkpoint"])
    assert weights(out) == unbroken[0]
