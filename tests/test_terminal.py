"""What commands print: their own lines, a bar per step, a table."""

import logging
import re
from pathlib import Path

import fresh
import pytest
import tiny
from transformers import TrainerControl, TrainerState, TrainingArguments

from recipes.distill import progress_bar as bars
from xvlm2vec_st import build


def test_build_prints_its_folder_and_two_bars(tmp_path: Path) -> None:
    done = fresh.module("xvlm2vec_st", "build", str(tiny.checkpoint("llava")), str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'out'}\n"
    lines = [line for line in re.split(r"[\r\n]+", done.stderr) if line]
    # Loading and writing: a bar each, drawn again at its end.
    assert {line.partition(":")[0] for line in lines} == {"Loading weights", "Writing model shards"}, done.stderr
    assert sum("0%|" in line and "100%" not in line for line in lines) == 2


def test_no_table_of_layers_while_a_checkpoint_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.WARNING)  # a command in the same process has set it to ERROR
    logger.addHandler(handler)
    try:
        build(tiny.checkpoint("phi3_v"), tmp_path / "quiet")
        assert [record.getMessage() for record in records] == []
        # There is a table to keep off.
        monkeypatch.setattr("xvlm2vec_st.families.loading.REPORTS", ("modeling_utils",))
        build(tiny.checkpoint("phi3_v"), tmp_path / "loud")
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert any("not sharded" in record.getMessage() for record in records)


def test_a_run_shows_its_loss_and_accuracies_and_no_dictionary(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = TrainingArguments(str(tmp_path), report_to="none")
    state, control = TrainerState(max_steps=4, global_step=2), TrainerControl()
    bar = bars.LossBar()
    bar.on_train_begin(arguments, state, control)
    bar.on_log(arguments, state, control, logs={"loss": 0.123456, "learning_rate": 1e-3, "epoch": 1})
    accuracies = {"eval_it_mean_accuracy": 0.5, "eval_it_src2trg_accuracy": 0.4, "eval_de_mean_accuracy": 1.0}
    bar.on_log(arguments, state, control, logs=accuracies | {"eval_english_cosine": 0.9})
    bar.on_step_end(arguments, state, control)
    bar.training_bar.refresh()
    bar.on_train_end(arguments, state, control)
    printed = "".join(capsys.readouterr())
    assert "update 2, accuracy among held-out rows: it 0.50, de 1.00\n" in printed
    assert "loss=0.123" in printed
    assert "distilling" in printed
    assert "{" not in printed
