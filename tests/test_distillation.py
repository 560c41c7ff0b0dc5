"""The loss: closed-form values, gradients, refusals."""

import copy

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from transformers import set_seed

from mmmeb_tasks.mini.write import write_corpus
from xvlm2vec_st import MultilingualDistillationLoss, load_parallel
from xvlm2vec_st.data.collator import ParallelCollator
from xvlm2vec_st.distillation.loss_terms import distillation_parts


def test_hand_computed_parts():
    english = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    target = torch.tensor([[1.0, 2.0, 0.0], [0.0, 3.0, 0.0]])
    translated = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 3.0]])
    parts = distillation_parts(english, translated, target, torch.tensor([0, 1]))
    assert parts["english"].item() == pytest.approx((9 + 9) / 6)
    # row 0: (0, 4, 0); row 1: (0, 9, 9)
    assert parts["translated"].item() == pytest.approx((4 + 18) / 6)


def test_a_row_counts_as_often_as_it_has_translations():
    """The paper's batch is of pairs: English beside each translation."""
    english, target = torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1)
    translated, row = torch.tensor([[1.0], [1.0], [3.0]]), torch.tensor([0, 0, 1])
    parts = distillation_parts(english, translated, target, row)
    pairs = torch.tensor([1.0, 1.0, 2.0]).square()  # row 0 twice, row 1 once
    assert parts["english"].item() == pytest.approx(pairs.mean().item())
    assert parts["translated"].item() == pytest.approx((1 + 1 + 9) / 3)


def test_rows_without_a_translation_keep_their_english():
    parts = distillation_parts(torch.ones(2, 3), torch.zeros(0, 3), torch.zeros(2, 3), torch.tensor([]).long())
    assert set(parts) == {"english"} and parts["english"].item() == 1.0


def test_bf16_states_are_compared_in_fp32():
    x = torch.full((2, 4), 256.0)
    parts = distillation_parts(x.bfloat16(), x.bfloat16(), x + 1, torch.tensor([0, 1]))
    assert parts["english"].dtype == torch.float32 and parts["english"].item() == 1.0


@pytest.fixture(scope="module")
def batch_of(teacher, tmp_path_factory):
    folder = write_corpus(tmp_path_factory.mktemp("loss") / "corpus", ["en", "it", "de"], scenes=8)
    data = load_parallel(folder / "parallel.jsonl", ["it", "de"], show_progress=False)

    def make(rows=range(12), languages=("it", "de"), **changes):
        return groups(ParallelCollator(teacher.preprocess, languages=languages)([data[i] | changes for i in rows]))

    return make


def groups(batch):
    """Split collated features by group, as the trainer does."""
    names = [f"{side}_{kind}_" for side in ("en", "translated") for kind in ("text", "image")]
    split = [{k[len(name) :]: v for k, v in batch.items() if k.startswith(name)} for name in names]
    return [features for features in split if features]


@pytest.fixture
def student(teacher):
    return copy.deepcopy(teacher).requires_grad_(True)


def shaken(model, seed=0):
    """The model with noise on its weights."""
    set_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("image_part", [False, True])
def test_teacher_equals_student_gives_zero_in_the_english_parts(teacher, student, batch_of, image_part):
    english_twice = [f | {"side": side} for f in groups_of_side(batch_of(), "en") for side in ("en", "translated")]
    parts = MultilingualDistillationLoss(student, teacher, image_part=image_part)(english_twice)
    expected = {"english", "translated"} | ({"english_image_part", "translated_image_part"} if image_part else set())
    assert set(parts) == expected
    assert all(value.item() == 0.0 for value in parts.values())


def groups_of_side(features, side):
    return [f for f in features if f["side"] == side]


class Plus(torch.nn.Module):
    """Adds one to every state."""

    def forward(self, features):
        return features | {"token_embeddings": features["token_embeddings"] + 1.0}


def test_student_is_teacher_plus_one(teacher, student, batch_of):
    """Every unweighted part is one: the weighted ones are a quarter each, and the loss is one."""
    english_twice = [f | {"side": side} for f in groups_of_side(batch_of(), "en") for side in ("en", "translated")]
    loss = MultilingualDistillationLoss(student, teacher, image_part=True)
    loss.model = torch.nn.Sequential(student[0], Plus(), student[1], student[2])
    parts = loss(english_twice)
    assert [round(value.item(), 4) for value in parts.values()] == [0.25] * 4
    loss.image_part = False
    assert [round(value.item(), 4) for value in loss(english_twice).values()] == [0.5] * 2


@pytest.mark.parametrize("image_part", [False, True])
def test_the_loss_equals_the_published_loop_over_pairs(teacher, student, batch_of, image_part):
    """Plainly written out: three forwards a pair, one row at a time, no padding, no grouping."""
    shaken(student)
    features = batch_of(languages=("it",))
    got = MultilingualDistillationLoss(student, teacher, image_part=image_part)(features)
    collated = {f["side"] + ("_image" if "pixel_values" in f else ""): f for f in features}
    english, translated, image_english, image_translated = [], [], [], []
    for kind in ("", "_image"):
        ours, theirs = collated[f"en{kind}"], collated[f"translated{kind}"]
        assert torch.equal(ours["row"], theirs["row"])
        for i in range(len(ours["row"])):
            target, image_target = plain(teacher, ours, i)
            state, image_state = plain(student, ours, i)
            other, image_other = plain(student, theirs, i)
            english.append((state - target).square().mean())
            translated.append((other - target).square().mean())
            image_english.append((image_state - image_target).square().mean())
            image_translated.append((image_other - image_target).square().mean())
    terms = [english, translated] + ([image_english, image_translated] if image_part else [])
    for value, expected in zip(got.values(), terms, strict=True):
        assert value.item() == pytest.approx(torch.stack(expected).mean().item() / len(terms), rel=1e-4)
        assert value.item() > 0
    if image_part:  # attention is causal and the image comes first: the text cannot change it
        assert got["english_image_part"].item() == pytest.approx(got["translated_image_part"].item(), rel=1e-5)


def plain(model, features, i):
    """(last state, mean state up to the image's end) of row i alone."""
    real = int(features["attention_mask"][i].sum())
    inputs = {"input_ids": features["input_ids"][i : i + 1, :real]}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if "pixel_values" in features:
        inputs["pixel_values"] = features["pixel_values"][i : i + 1]
    with torch.no_grad():
        states = model[0].model(**inputs).last_hidden_state[0]
    ids = inputs["input_ids"][0].tolist()
    marks = (model[0].config.image_token_id, model.tokenizer.bos_token_id)
    end = max(t for t, token in enumerate(ids) if token in marks)
    return states[-1], states[: end + 1].mean(0)


def test_gradients_reach_the_student_and_only_the_student(teacher, student, batch_of):
    loss = MultilingualDistillationLoss(shaken(student), teacher)
    sum(loss(batch_of()).values()).backward()
    learnt = [p for p in student.parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert len(learnt) > 60
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


def test_the_teacher_is_in_no_optimizer(teacher, student):
    loss = MultilingualDistillationLoss(student, teacher)
    held = {id(p) for p in loss.parameters()}
    assert held == {id(p) for p in student.parameters()}
    assert not held & {id(p) for p in teacher.parameters()}
    assert "teacher" not in dict(loss.named_modules())


def test_the_order_and_grouping_of_rows_do_not_matter(teacher, student, batch_of):
    loss = MultilingualDistillationLoss(shaken(student), teacher)
    forward, backward = loss(batch_of(range(12))), loss(batch_of(range(11, -1, -1)))
    for name in forward:
        assert forward[name].item() == pytest.approx(backward[name].item(), rel=1e-5)


def test_missing_languages_and_missing_images(teacher, student, batch_of):
    loss = MultilingualDistillationLoss(shaken(student), teacher)
    assert set(loss(batch_of(it=None, de=None))) == {"english"}
    texts_only = loss(batch_of(image=None))
    assert set(texts_only) == {"english", "translated"}
    partly = loss(batch_of(de=None))
    only_italian = loss(batch_of(languages=("it",)))
    assert partly["translated"].item() == pytest.approx(only_italian["translated"].item(), rel=1e-6)


def test_features_are_left_as_they_were(teacher, student, batch_of):
    features = batch_of()
    before = [{k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in f.items()} for f in features]
    MultilingualDistillationLoss(student, teacher)(features)
    for now, then in zip(features, before, strict=True):
        assert now.keys() == then.keys()
        assert all(torch.equal(now[k], v) for k, v in then.items() if isinstance(v, torch.Tensor))


def test_one_object_cannot_be_both(teacher):
    with pytest.raises(ValueError, match="student and teacher are the same object"):
        MultilingualDistillationLoss(teacher, teacher)


def test_another_width_is_refused(teacher, student):
    wide = SentenceTransformer(modules=[copy.deepcopy(teacher[0]), Pooling(256, "lasttoken"), Normalize()])
    with pytest.raises(ValueError, match="the student has 192 dimensions and the teacher 256"):
        MultilingualDistillationLoss(student, wide)


def test_another_pooling_is_refused(teacher, student):
    mean = SentenceTransformer(modules=[copy.deepcopy(teacher[0]), Pooling(192, "mean"), Normalize()])
    with pytest.raises(ValueError, match="the student pools by 'lasttoken' and the teacher by 'mean'"):
        MultilingualDistillationLoss(student, mean)
