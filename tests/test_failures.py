"""What ends a command: one line for bad input and for the machine, a traceback for a fault of ours."""

import errno
import importlib
import io
import logging
import math
import pickle
import sys

import pytest
import torch
from datasets.exceptions import DatasetGenerationError
from safetensors import SafetensorError

from recipes.distill import command as distill
from recipes.shared import command
from recipes.shared.numbers import BOUNDS
from xvlm2vec_st.utils.failures import reason
from xvlm2vec_st.utils.folders import Destination

# distill's parser is transformers'; `test_startup.py` reads its help.
RUNNABLE = ["demo", "add_language.__main__", "evaluate.__main__", "translate.__main__"]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/o"), "/o: No space left on device; make room"),
        (PermissionError(errno.EACCES, "Permission denied", "/o"), "/o: Permission denied; check its perm"),
        (OSError(errno.EROFS, "Read-only file system"), "Read-only file system; choose a place"),
        (OSError(errno.EMFILE, "Too many open files", "/o"), "/o: Too many open files; raise the limit"),
        (OSError("many\nlines   of it"), "many lines of it"),
        (ModuleNotFoundError("No module named 'wandb'"), "No module named 'wandb'; install what is missing"),
        (MemoryError(), "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried\nmore"), "out of memory (CUDA out of memory."),
        (RuntimeError("Invalid device string: 'x'"), "Invalid device string: 'x'"),
        (
            pickle.UnpicklingError("Weights only load failed\nmore"),
            "a file holds objects that are not loaded for safety",
        ),
        (SafetensorError("header too small"), "a file of weights cannot be read or written: header too"),
        (DatasetGenerationError("An error occurred"), "the rows cannot be stored: An error occurred"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "a text cannot be read"),
    ],
)
def test_failures_of_the_machine_are_one_line_that_says_what_to_do(error, line, capsys, monkeypatch):
    def main():
        raise error

    monkeypatch.setattr(sys, "argv", ["recipe"])
    with pytest.raises(SystemExit) as end:
        command.run(main)
    printed = capsys.readouterr().err
    assert end.value.code == 2
    assert printed.startswith(f"error: {line}")
    assert printed.count("\n") == 1


def test_a_full_disk_is_reported_whatever_wraps_the_error():
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "/o/w")
        except OSError as error:
            raise RuntimeError("serialization failed") from error
    except RuntimeError as error:
        assert reason(error) == "/o/w: No space left on device; make room"


def test_a_fault_of_ours_beside_one_of_the_machine_keeps_its_traceback():
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "/o/w")
        except OSError:
            None.missing  # noqa: B018
    except AttributeError as error:
        assert reason(error) is None


def test_debug_shows_the_traceback_and_the_log(monkeypatch):
    def main():
        raise OSError("gone")

    monkeypatch.setattr(sys, "argv", ["recipe", "--debug"])
    called = []
    monkeypatch.setattr(command, "quiet_libraries", lambda: called.append(1))
    monkeypatch.setattr(logging, "basicConfig", lambda **kwargs: called.append(kwargs["level"]))
    with pytest.raises(OSError, match="gone"):
        command.run(main)
    assert called == [logging.INFO]


def test_what_is_kept_stands_in_the_line(tmp_path):
    place = Destination(tmp_path / "out", again="pass --resume")
    with pytest.raises(OSError, match="full") as failed, place.hold():
        place.begin({})
        raise OSError(errno.ENOSPC, "full")
    assert reason(failed.value).endswith(f"stays in {place.work}: mend that, then pass --resume")


def test_a_console_of_another_encoding_fails_nothing(monkeypatch):
    bytes_out = io.BytesIO()
    monkeypatch.setattr(sys, "argv", ["recipe"])
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(bytes_out, encoding="cp1252"))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding="cp1252"))
    command.run(lambda: sys.stdout.write("74.0 → 98.0 (ελ)"))
    sys.stdout.flush()
    assert b"74.0 \\u2192 98.0" in bytes_out.getvalue()


@pytest.mark.parametrize("name", RUNNABLE)
def test_every_recipe_takes_debug(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as end:
        command.run_prepared(importlib.import_module(f"recipes.{name}").prepare)
    assert end.value.code == 0
    assert "--debug" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(
            (f"--{name.replace('_', '-')}", "nan")
            for name in ("num_train_epochs", "learning_rate", "muon_learning_rate", "similarity_weight")
        ),
        *(
            (f"--{name.replace('_', '-')}", "inf")
            for name in ("num_train_epochs", "learning_rate", "muon_learning_rate", "weight_decay")
        ),
        ("--max-grad-norm", "nan"),
        ("--english-weight", "nan"),
        ("--weight-decay", "-1"),
        ("--learning-rate", "-1"),
        ("--learning-rate", "0"),
        ("--num-train-epochs", "0"),
        ("--num-train-epochs", "-1"),
        ("--eval-steps", "-1"),
        ("--eval-rows", "-5"),
        ("--dataloader-num-workers", "-1"),
        ("--dataloader-num-workers", str(10**20)),
        ("--warmup-steps", str(10**20)),
        ("--per-device-train-batch-size", str(10**20)),
        ("--image-size", str(10**20)),
        ("--seed", "-1"),
        ("--seed", str(2**32)),
        ("--temperature", "0"),
    ],
)
def test_numbers_that_no_run_can_use_are_refused_as_they_are_parsed(option, value, tmp_path):
    words = ["--student", "s", "--corpus", "c", "--languages", "it", "--output-dir", str(tmp_path / "o")]
    with pytest.raises(ValueError, match=f"{option} .*: pass .*, or leave it out"):
        distill.main([*words, option, value])
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", RUNNABLE)
def test_every_number_has_bounds_and_nan_is_in_none(name, monkeypatch):
    seen = []
    monkeypatch.setattr(command, "check_numbers", lambda args, parser: seen.append(parser) or sys.exit(0))
    monkeypatch.setattr(sys, "argv", [name])
    monkeypatch.setattr(command.Parser, "error", lambda self, message: seen.append(self) or sys.exit(0))
    with pytest.raises(SystemExit):
        command.run_prepared(importlib.import_module(f"recipes.{name}").prepare)
    numbers = [action.dest for action in seen[0]._actions if action.type in (int, float)]
    assert all(not BOUNDS[dest].hold(math.nan) for dest in numbers)


def test_a_demo_of_too_few_queries_is_refused_before_it_writes(tmp_path):
    from recipes import demo

    with pytest.raises(ValueError, match="--queries 0: pass 1 or more"):
        demo.main(["--out", str(tmp_path / "d"), "--queries", "0"])
    assert not any(tmp_path.iterdir())
