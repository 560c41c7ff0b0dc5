"""The loss over shared prefixes against the loss row by row: parts and every gradient."""

import pytest
import tiny
import torch

from mmmeb_tasks.mini.write import write_corpus
from xvlm2vec_st import (
    DistillationTrainer,
    MultilingualDistillationLoss,
    SentenceTransformer,
    load_parallel,
    lora_config,
)
from xvlm2vec_st.data.collator import ParallelCollator

LANGUAGES = ("it", "de", "fr")
GROUPS = ("en_text_", "en_image_", "translated_text_", "translated_image_", "texts_")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Text-only and image rows, two rows of one image, one without all translations, one without any."""
    folder = write_corpus(tmp_path_factory.mktemp("shared") / "corpus", ["en", *LANGUAGES], scenes=5)
    data = [dict(row) for row in load_parallel(folder / "parallel.jsonl", LANGUAGES, show_progress=False)]
    data[1] |= {"it": None}
    data[3] |= dict.fromkeys(LANGUAGES)
    data[5] |= {"image": data[7]["image"]}
    assert {row["image"] is None for row in data} == {True, False}
    return data


def shaken(folder, seed):
    model = tiny.double(SentenceTransformer(str(folder)))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model


def parts_and_gradients(loss, rows, *, shared):
    batch = ParallelCollator(loss.model.preprocess, languages=LANGUAGES, shared=shared)(rows)
    groups = [{k.removeprefix(g): v for k, v in batch.items() if k.startswith(g)} for g in GROUPS]
    assert any("image_group" in group for group in groups if group) or not shared
    loss.zero_grad()
    parts = loss([group for group in groups if group])
    sum(parts.values()).backward()
    gradients = {n: p.grad.clone() for n, p in loss.named_parameters() if p.grad is not None}
    return {name: part.item() for name, part in parts.items()}, gradients


def assert_same(loss, rows, tolerance=1e-9):
    expected, plain = parts_and_gradients(loss, rows, shared=False)
    found, shared = parts_and_gradients(loss, rows, shared=True)
    # Parts are taken in fp32; the states before them, and the gradients, in fp64.
    assert found == pytest.approx(expected, rel=max(tolerance, 1e-6)) and all(value > 0 for value in found.values())
    assert plain.keys() == shared.keys()
    assert sum(gradient.abs().sum() > 0 for gradient in plain.values()) > 10
    for name, gradient in plain.items():
        # A gradient that is zero but for rounding is measured against the rest.
        scale = max(gradient.norm(), 1e-6 * max(g.norm() for g in plain.values()))
        assert (gradient - shared[name]).norm() <= max(tolerance, 1e-6) * scale, name


@pytest.mark.parametrize("image_part", [False, True])
def test_mini_world(teacher, rows, image_part, tmp_path):
    teacher.save(str(tmp_path / "t"))
    student, frozen = shaken(tmp_path / "t", 1), SentenceTransformer(str(tmp_path / "t")).double()
    assert_same(MultilingualDistillationLoss(student, frozen, image_part=image_part), rows)


@tiny.every_family
def test_every_family(family, rows):
    folder = tiny.embedder(family)
    small = [row | {code: row[code] and row[code][:40] for code in ("en", *LANGUAGES)} for row in rows[:8]]
    loss = MultilingualDistillationLoss(shaken(folder, 1), tiny.double(SentenceTransformer(str(folder))))
    assert loss.shares_prefix
    assert_same(loss, small, 1e-5 if family in tiny.FP32 else 1e-9)


@pytest.mark.parametrize("family", ["llava", "phi3_v", "idefics3"])
@pytest.mark.parametrize("route", ["packed", "branched"])
def test_added_terms(family, route, rows):
    folder = tiny.embedder(family)
    small = [row | {code: row[code] and row[code][:40] for code in ("en", *LANGUAGES)} for row in rows[:8]]
    student, teacher = shaken(folder, 1), tiny.double(SentenceTransformer(str(folder)))
    student[0].sharing = teacher[0].sharing = route
    loss = MultilingualDistillationLoss(student, teacher, middle_layer=1, contrastive_weight=0.5, similarity_weight=0.5)
    assert_same(loss, small, 1e-5 if family in tiny.FP32 else 1e-9)


def test_with_gradient_checkpointing(rows):
    folder = tiny.embedder("llava")
    student = shaken(folder, 1)
    loss = MultilingualDistillationLoss(student, SentenceTransformer(str(folder)).double())
    _, plain = parts_and_gradients(loss, rows, shared=True)
    student.gradient_checkpointing_enable({"use_reentrant": False})
    student.train()
    assert student[0].model.is_gradient_checkpointing
    _, checkpointed = parts_and_gradients(loss, rows, shared=True)
    assert any(gradient.abs().sum() > 0 for gradient in plain.values())
    for name, gradient in plain.items():
        assert torch.allclose(gradient, checkpointed[name], rtol=1e-9, atol=1e-12), name


def test_with_an_adapter(rows):
    folder = tiny.embedder("llava")
    student = SentenceTransformer(str(folder))
    student.add_adapter(lora_config("llava", rank=4, alpha=8))
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    student.double()
    assert_same(MultilingualDistillationLoss(student, SentenceTransformer(str(folder)).double()), rows)


def test_in_bf16_autocast_the_errors_are_fp32(rows):
    folder = tiny.embedder("llava")
    student = shaken(folder, 1).float()
    loss = MultilingualDistillationLoss(student, SentenceTransformer(str(folder)))
    exact, _ = parts_and_gradients(loss, rows, shared=True)
    with torch.autocast("cpu", torch.bfloat16):
        rough, _ = parts_and_gradients(loss, rows, shared=True)
    assert rough == pytest.approx(exact, rel=0.1) and rough != exact


def test_the_teacher_computes_english_only(rows, monkeypatch):
    folder = tiny.embedder("llava")
    teacher = SentenceTransformer(str(folder))
    loss = MultilingualDistillationLoss(shaken(folder, 1).float(), teacher)
    tokens = {}
    for name, model in (("teacher", teacher), ("student", loss.model)):
        run = model[0].model.language_model.forward

        def forward(*args, run=run, name=name, **kwargs):
            tokens[name] = kwargs["inputs_embeds"].shape[:2].numel()
            return run(*args, **kwargs)

        monkeypatch.setattr(model[0].model.language_model, "forward", forward)
    parts_and_gradients(loss, rows, shared=True)
    assert 0 < tokens["teacher"] < 0.5 * tokens["student"]


def test_texts_alone(rows):
    folder = tiny.embedder("llava")
    loss = MultilingualDistillationLoss(shaken(folder, 1), SentenceTransformer(str(folder)).double())
    texts = [row | {"image": None} for row in rows]
    batch = ParallelCollator(loss.model.preprocess, languages=LANGUAGES, shared=True)(texts)
    assert not any("pixel" in key for key in batch)
    plain, _ = parts_and_gradients(loss, texts, shared=False)
    groups = {key.removeprefix("texts_"): value for key, value in batch.items()}
    assert {k: v.item() for k, v in loss([groups]).items()} == pytest.approx(plain, rel=1e-6)


def test_the_trainer_shares_where_student_and_teacher_do(teacher, rows, tmp_path):
    import sentence_transformers
    from datasets import Dataset

    teacher.save(str(tmp_path / "t"))
    stock = sentence_transformers.SentenceTransformer(str(tmp_path / "t"))
    ours = [SentenceTransformer(str(tmp_path / "t")) for _ in range(2)]
    for student, frozen, shared in ((ours[0], ours[1], True), (ours[0], stock, False)):
        loss = MultilingualDistillationLoss(student, frozen)
        arguments = sentence_transformers.SentenceTransformerTrainingArguments(
            str(tmp_path / "runs"), report_to="none", use_cpu=True
        )
        trainer = DistillationTrainer(
            student, arguments, train_dataset=Dataset.from_list(rows), loss=loss, languages=LANGUAGES
        )
        assert trainer.data_collator.shared is shared
