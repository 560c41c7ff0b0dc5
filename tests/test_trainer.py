"""What the trainer tells, and how it stops on bad rows."""

from types import SimpleNamespace

import pytest
import tiny
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainingArguments
from transformers import TrainerCallback

from xvlm2vec_st import DistillationTrainer, MultilingualDistillationLoss, SentenceTransformer, lora_config
from xvlm2vec_st.building.builder import save_embedder
from xvlm2vec_st.data.batch_sampler import TokenBudgetBatches, row_costs
from xvlm2vec_st.distillation.teachers import FrozenTeacher
from xvlm2vec_st.training.checkpoints import find_damage, last_whole_checkpoint, write_manifest

LANGUAGES = ("it", "de")


def rows(count=8, **changes):
    texts = [{"en": f"text {n}", "it": f"testo {n}", "de": f"ein Satz {n}"} for n in range(count)]
    return [{"id": f"row-{n}", "image": None, **text, **changes} for n, text in enumerate(texts)]


def embedder():
    return SentenceTransformer(str(tiny.embedder("llava")))


def trainer(tmp_path, data, student=None, loss=None, **options):
    student = student or embedder()
    settings = {"per_device_train_batch_size": 4, "max_steps": 2, "logging_steps": 1, "learning_rate": 1e-3}
    arguments = SentenceTransformerTrainingArguments(
        str(tmp_path / "runs"), report_to="none", use_cpu=True, **settings | options
    )
    return DistillationTrainer(
        student,
        arguments,
        train_dataset=Dataset.from_list(data),
        loss=loss or MultilingualDistillationLoss(student, embedder()),
        languages=LANGUAGES,
    )


def test_every_language_rows_tokens_and_time_are_logged(tmp_path):
    run = trainer(tmp_path, rows())
    run.train()
    steps = [entry for entry in run.state.log_history if "loss" in entry]
    assert len(steps) == 2
    for entry in steps:
        assert {"error_en", "error_it", "error_de"} <= entry.keys()
        mean = (entry["error_it"] + entry["error_de"]) / 2
        assert entry["translated"] == pytest.approx(mean / 2, abs=1e-4) and mean > 0
        assert entry["tokens_per_second"] > 10 * entry["rows_per_second"] > 0
    assert steps[0]["hours_left"] >= 0 == steps[1]["hours_left"]


def test_a_loss_that_is_not_a_number_stops_with_the_rows_ids(tmp_path):
    student = embedder()
    with torch.no_grad():  # a byte that one row has
        student[0].model.get_input_embeddings().weight[student.tokenizer("§")["input_ids"][-1]] = float("nan")
    data = rows()
    data[5]["de"] = "ein § Satz"
    with pytest.raises(
        ValueError, match=r"the loss of update \d is not a number; rows: row-5; weights of the student are"
    ):
        trainer(tmp_path, data, student).train()


def test_a_teacher_with_nan_targets_is_named_and_no_target_is_kept(tmp_path):
    teacher = embedder()
    with torch.no_grad():
        teacher[0].model.get_input_embeddings().weight.fill_(float("nan"))
    for cache in (None, tmp_path / "cache"):
        student = embedder()
        loss = MultilingualDistillationLoss(student, teacher, cache=cache)
        with pytest.raises(ValueError, match="^the teacher: weights are not numbers .* use another teacher"):
            trainer(tmp_path, rows(), student, loss=loss).train()
    assert not [path for path in (tmp_path / "cache").rglob("*.targets") if path.stat().st_size]


def test_weights_that_are_not_numbers_are_not_saved(tmp_path):
    student = embedder()
    run = trainer(tmp_path, rows(), student)
    with torch.no_grad():
        list(student.parameters())[-1].view(-1)[0] = float("inf")
    for save in (run.check_weights, lambda: run._save_checkpoint(run.model, None)):
        with pytest.raises(ValueError, match="after update 0 weights of the student are not numbers"):
            save()
    assert not list(tmp_path.rglob("*.safetensors"))
    with pytest.raises(ValueError, match="is not saved: weights are not numbers"):
        save_embedder(student, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": "query: "}, "prompts are not applied in distillation"),
        ({"loss": {"a": None}}, "loss is a dict; pass one"),
        ({"train_dataset": {"a": None}}, "train_dataset is a dict; pass rows of load_parallel"),
        ({"languages": ["it", "xx"]}, "the rows have no language 'xx', only .*load them with load_parallel"),
    ],
)
def test_what_the_base_trainer_takes_and_this_one_does_not_is_refused_by_name(tmp_path, changes, message):
    student = embedder()
    settings = {"loss": MultilingualDistillationLoss(student, embedder()), "languages": ["it", "de"]}
    arguments = SentenceTransformerTrainingArguments(
        str(tmp_path), report_to="none", use_cpu=True, prompts=changes.pop("prompts", None)
    )
    given = {"args": arguments, "train_dataset": Dataset.from_list(rows()), **settings, **changes}
    with pytest.raises(ValueError, match=message):
        DistillationTrainer(student, **given)


class Greedy(MultilingualDistillationLoss):
    """Asks for more memory than there is."""

    def forward(self, *args, **kwargs):
        torch.empty(2**55)
        return super().forward(*args, **kwargs)


def test_out_of_memory_says_what_to_lower(tmp_path):
    student = embedder()
    run = trainer(tmp_path, rows(), student, Greedy(student, embedder()))
    with pytest.raises(RuntimeError) as error:
        run.train()
    assert "in update 1, 4 rows per batch; lower per_device_train_batch_size" in error.value.__notes__[0]


def test_other_runtime_errors_are_left_alone(tmp_path, monkeypatch):
    run = trainer(tmp_path, rows())
    monkeypatch.setattr(run.loss, "forward", lambda *a: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size|size"):
        run.train()


def test_a_row_longer_than_the_model_is_named_and_one_as_long_is_not(tmp_path):
    data = rows()
    student = embedder()
    student[0].max_seq_length = 24  # bytes, and `<s>`
    data[3]["it"] = "x" * 23
    trainer(tmp_path, data, student, num_train_epochs=1, max_steps=-1).train()
    data[3]["it"] = "x" * 24
    with pytest.raises(ValueError, match="row row-3: its it text has more than the 24 tokens"):
        trainer(tmp_path, data, student, num_train_epochs=1, max_steps=-1).train()


def test_an_accumulation_that_does_not_divide_takes_the_rest_as_a_smaller_update(tmp_path):
    """Five batches by two: three updates; the last one's loss is that of one batch, not of half of it."""
    run = trainer(
        tmp_path,
        rows(10),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=-1,
        num_train_epochs=1,
        learning_rate=0.0,
    )
    run.train()
    steps = [entry for entry in run.state.log_history if "loss" in entry]
    assert len(steps) == 3
    for entry in steps:
        assert entry["loss"] == pytest.approx(entry["english"] + entry["translated"], abs=2e-4)


def test_a_checkpoint_is_whole_when_it_says_so(tmp_path, caplog):
    for number in (2, 10, 9):
        folder = tmp_path / f"checkpoint-{number}"
        folder.mkdir()
        (folder / "weights").write_bytes(b"x" * 100)
        if number != 10:
            write_manifest(folder)
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-9"
    assert "checkpoint-10 is skipped: it was not finished" in caplog.text
    (tmp_path / "checkpoint-9" / "weights").write_bytes(b"x" * 50)
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert "checkpoint-9 is skipped: weights has 50 bytes of 100" in caplog.text
    written = (tmp_path / "checkpoint-2" / "whole.json").read_text()
    (tmp_path / "checkpoint-2" / "weights").write_bytes(b"x" * 99 + b"y")
    assert find_damage(tmp_path / "checkpoint-2") == "weights was changed"
    (tmp_path / "checkpoint-2" / "weights").write_bytes(b"x" * 100)
    for unreadable in ("[]", "{", '{"weights": {}}', '{"weights": ["a", "b"]}'):
        (tmp_path / "checkpoint-2" / "whole.json").write_text(unreadable)
        assert find_damage(tmp_path / "checkpoint-2") == "whole.json cannot be read"
    (tmp_path / "checkpoint-2" / "whole.json").write_text(written)
    assert find_damage(tmp_path / "checkpoint-2") is None
    (tmp_path / "checkpoint-2" / "weights").unlink()
    assert find_damage(tmp_path / "checkpoint-2") == "weights is missing"
    assert last_whole_checkpoint(tmp_path) is None


def test_the_trainer_takes_batches_of_so_many_tokens(tmp_path):
    data = rows(12)
    data[4]["it"] = "x" * 90
    model = embedder()
    costs = row_costs(Dataset.from_list(data), LANGUAGES, model, image_size=None, shared=True)
    run = trainer(tmp_path, data, max_steps=-1, num_train_epochs=2)
    ids = [row["id"] for row in data]
    run.batches = TokenBudgetBatches(ids, costs, budget=300, max_rows=4, seed=0)
    seen, original = [], run.compute_loss
    run.compute_loss = lambda m, inputs, *a, **k: seen.append(list(inputs["ids"])) or original(m, inputs, *a, **k)
    run.train()
    assert all(costs.total([ids.index(row) for row in batch]) <= 300 for batch in seen)
    epoch = len(seen) // 2
    assert sorted(sum(seen[:epoch], [])) == sorted(sum(seen[epoch:], [])) == sorted(ids)
    assert seen[:epoch] != seen[epoch:]


def test_a_second_epoch_and_a_second_run_ask_the_teacher_nothing(tmp_path, monkeypatch):
    calls, original, asked = [], FrozenTeacher.states, []
    monkeypatch.setattr(FrozenTeacher, "states", lambda self, f: calls.append(1) or original(self, f))
    for _ in range(2):
        student = embedder()
        loss = MultilingualDistillationLoss(student, embedder(), cache=tmp_path / "cache")
        trainer(tmp_path, rows(8), student, loss, max_steps=-1, num_train_epochs=2).train()
        asked.append(len(calls))
        calls.clear()
    assert asked == [2, 0], "two batches in the first epoch of the first run"


class StopAt(TrainerCallback):
    """Ends a run after an update, as a signal does."""

    def __init__(self, update):
        self.update = update

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == self.update


def begun(run, updates, folder):
    """Run so many updates, with a checkpoint after the last one; returns it."""
    run.add_callback(StopAt(updates))
    run.train()
    return str(folder / "runs" / f"checkpoint-{updates}")


def test_a_resumed_run_counts_its_own_updates_and_takes_new_intervals(tmp_path, monkeypatch):
    """Each update takes an hour: after the seventh of eight, one is left."""
    last = begun(trainer(tmp_path, rows(), max_steps=8, save_steps=6), 6, tmp_path)
    again = trainer(tmp_path, rows(), max_steps=8, save_steps=7, logging_steps=1)
    hours = SimpleNamespace(perf_counter=lambda: 3600.0 * again.state.global_step)
    monkeypatch.setattr("xvlm2vec_st.training.trainer.time", hours)
    again.train(resume_from_checkpoint=last)
    told = {entry["step"]: entry["hours_left"] for entry in again.state.log_history if "loss" in entry}
    assert (told[7], told[8]) == (1.0, 0.0)
    assert (tmp_path / "runs" / "checkpoint-7").is_dir(), "save_steps is the checkpoint's, not the run's"


def test_a_projection_beside_an_adapter_is_resumed(tmp_path):
    student, teacher = embedder(), embedder()
    teacher[1].pooling_mode = "mean"
    student.add_adapter(lora_config("llava", rank=2))
    options = {"max_steps": 2, "save_steps": 2}
    loss = MultilingualDistillationLoss(student, teacher, projection=True)
    last = begun(trainer(tmp_path, rows(), student, loss, **options), 2, tmp_path)
    learnt = {name: value.clone() for name, value in student.state_dict().items()}
    projection = [name for name in learnt if "linear.weight" in name]
    other = embedder()
    other.add_adapter(lora_config("llava", rank=2))
    loss = MultilingualDistillationLoss(other, teacher, projection=True)
    run = trainer(tmp_path, rows(), other, loss, **options)
    assert projection and not torch.equal(other.state_dict()[projection[0]], learnt[projection[0]])
    run._load_from_checkpoint(last)
    assert all(torch.equal(value, learnt[name]) for name, value in other.state_dict().items())


def test_a_student_in_bf16_is_warned_of(tmp_path, caplog):
    """Most updates of a rate of 1e-5 are lost in 8 bits."""
    for dtype, warned in ((torch.bfloat16, True), (torch.float32, False)):
        caplog.clear()
        folder = str(tiny.embedder("llava"))
        trainer(tmp_path, rows(), SentenceTransformer(folder, model_kwargs={"dtype": dtype}))
        assert ('model_kwargs={"dtype": "float32"}' in caplog.text) is warned


class EightTextsAtMost(MultilingualDistillationLoss):
    """Runs out of memory with more than eight texts, which more than two rows may have."""

    sizes: list[int] = []

    def forward(self, features, *args, **kwargs):
        size = max(len(value) for key, value in features[0].items() if key.endswith("input_ids"))
        self.sizes.append(size)
        if size > 8:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().forward(features, *args, **kwargs)


def test_auto_find_batch_size_lowers_the_batch_size(tmp_path, monkeypatch):
    monkeypatch.setattr(EightTextsAtMost, "sizes", [])
    student = embedder()
    run = trainer(tmp_path, rows(), student, EightTextsAtMost(student, embedder()), auto_find_batch_size=True)
    run.train()
    assert run.state.global_step == 2
    assert EightTextsAtMost.sizes[0] > 8 >= max(EightTextsAtMost.sizes[-2:])


def test_a_loss_passed_by_position_reaches_the_collator(tmp_path):
    student = embedder()
    loss = MultilingualDistillationLoss(student, embedder(), cache=tmp_path / "cache")
    arguments = SentenceTransformerTrainingArguments(
        str(tmp_path / "runs"), report_to="none", use_cpu=True, max_steps=1
    )
    run = DistillationTrainer(student, arguments, Dataset.from_list(rows()), None, loss, languages=LANGUAGES)
    assert (run.data_collator.shared, run.data_collator.inputs) == (loss.shares_prefix, True)
    run.train()
