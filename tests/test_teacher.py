"""Who may teach: any family, a text model, another width; the student itself, in no memory."""

import pytest
import tiny
import torch
from sentence_transformers import SentenceTransformer as Stock
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from torch.nn.functional import normalize
from transformers import BertConfig, BertModel

from mmmeb_tasks.mini import TEACHER
from mmmeb_tasks.mini.write import write_corpus
from recipes.experiments.measure import peak_of
from xvlm2vec_st import MultilingualDistillationLoss, SentenceTransformer, load_parallel, lora_config
from xvlm2vec_st.data.collator import ParallelCollator
from xvlm2vec_st.distillation.states import add_projection

LANGUAGES = ("it", "de")
SMALL = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
SMALL |= {"intermediate_size": 48}
TEXTS = [{"id": str(n), "image": None, "en": f"text {n}", "it": f"testo {n}", "de": f"Satz {n}"} for n in range(4)]
GROUPS = ("texts_", "en_text_", "en_image_", "translated_text_", "translated_image_")


def embedder(family="llava"):
    return SentenceTransformer(str(tiny.embedder(family)))


def groups(loss, rows, shared=True):
    collate = ParallelCollator(loss.model.preprocess, languages=LANGUAGES, shared=shared, inputs=loss.needs_inputs)
    batch = collate(rows)
    split = [{k.removeprefix(g): v for k, v in batch.items() if k.startswith(g)} for g in GROUPS]
    return [group for group in split if group]


@pytest.fixture
def imaged(tmp_path):
    tiny.random_image().save(tmp_path / "p.png")
    return [TEXTS[0], TEXTS[1] | {"image": str(tmp_path / "p.png")}, TEXTS[2]]


@pytest.mark.parametrize("shared", [False, True])
def test_a_teacher_of_another_family_is_shown_the_inputs_themselves(imaged, shared):
    teacher = embedder("phi3_v")
    loss = MultilingualDistillationLoss(embedder("llava"), teacher)
    assert loss.needs_inputs
    given = [{"image": row["image"], "text": row["en"]} if row["image"] else row["en"] for row in imaged]
    expected = teacher.encode(given, convert_to_tensor=True)
    found = {}
    for features in groups(loss, imaged, shared):
        if "inputs" in features:
            source = features["language"] == 0
            target = loss.teacher.targets(features, source if shared else None)["sentence"]
            found |= dict(zip(features["row"][source].tolist(), target, strict=True))
    for row, target in found.items():
        torch.testing.assert_close(normalize(target, dim=0), expected[row], atol=1e-5, rtol=0)
    assert sorted(found) == [0, 1, 2]
    parts = loss(groups(loss, imaged, shared))
    assert all(part.item() > 0.01 for part in parts.values())


@pytest.fixture
def text_model(tmp_path):
    """BERT with mean pooling, 32 wide, over the tiny tokenizer."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertModel(BertConfig(**SMALL))
    model.save_pretrained(tmp_path / "bert")
    tiny.tokenizer().save_pretrained(tmp_path / "bert")
    body = Transformer(str(tmp_path / "bert"))
    return Stock(modules=[body, Pooling(32, "mean"), Normalize()])


def test_a_text_model_teaches_text_only_rows_and_says_which_row_it_cannot(text_model, imaged):
    loss = MultilingualDistillationLoss(embedder(), text_model, projection=True)
    (features,) = groups(loss, TEXTS)
    target = loss.teacher.targets(features, features["language"] == 0)["sentence"]
    expected = text_model.encode([row["en"] for row in TEXTS], convert_to_tensor=True)
    torch.testing.assert_close(normalize(target, dim=-1), expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="row 1 of the batch has an image, and the teacher embeds"):
        loss(groups(loss, imaged))


def test_a_text_model_learns_from_a_text_model(text_model, tmp_path):
    text_model.save(str(tmp_path / "saved"))
    student = SentenceTransformer(str(tmp_path / "saved"))
    loss = MultilingualDistillationLoss(student, text_model)
    assert not loss.needs_inputs and not loss.shares_prefix
    parts = loss(groups(loss, TEXTS, shared=False))
    assert parts["english"].item() == 0 and parts["translated"].item() > 0


def test_another_width_or_pooling_needs_a_projection_which_is_saved_and_stock(tmp_path):
    narrow, wide = embedder(), Stock(str(TEACHER))
    with pytest.raises(ValueError, match=r"32 dimensions and the teacher 192.*projection=True"):
        MultilingualDistillationLoss(narrow, wide)
    loss = MultilingualDistillationLoss(narrow, wide, projection=True)
    (features,) = groups(loss, TEXTS)
    sum(loss([features]).values()).backward()
    assert narrow[2].linear.weight.grad.abs().sum() > 0
    narrow.save(str(tmp_path / "out"))
    before = narrow.encode("a", convert_to_tensor=True)
    after = Stock(str(tmp_path / "out")).encode("a", convert_to_tensor=True)
    torch.testing.assert_close(after, before, atol=1e-6, rtol=0)
    assert before.shape == (192,)


def test_a_projection_keeps_distances():
    student = embedder()
    before = student.encode(["a", "b"], convert_to_tensor=True)
    add_projection(student, 192)
    after = student.encode(["a", "b"], convert_to_tensor=True)
    assert (after[0] @ after[1]).item() == pytest.approx((before[0] @ before[1]).item(), abs=1e-5)


def test_the_image_variant_needs_a_teacher_that_reads_as_the_student_does():
    with pytest.raises(ValueError, match="image_part=True needs a teacher with the student's preprocessing"):
        MultilingualDistillationLoss(embedder("llava"), embedder("phi3_v"), image_part=True)


def test_normalised_targets_with_a_squared_error_warn_once_and_cosine_does_not():
    states = {"row": torch.arange(2), "sentence": torch.eye(2, 32)}
    for form, times in (("mse", 1), ("cosine", 0)):
        loss = MultilingualDistillationLoss(embedder(), embedder(), distance_metric=form)
        with pytest.warns(UserWarning) as told:
            import warnings

            warnings.warn("one at least", UserWarning, stacklevel=1)
            for _ in range(2):
                loss.compute_loss_from_states([states], [], [states])
        assert sum("1/32" in str(w.message) for w in told) == times


def test_english_weight_and_similarity_are_parts_of_the_sum():
    student, teacher = embedder(), embedder()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.05 * torch.ones_like(parameter))
    loss = MultilingualDistillationLoss(student, teacher)
    (features,) = groups(loss, TEXTS)
    plain = loss([features])
    tilted = MultilingualDistillationLoss(student, teacher, english_weight=0.25, similarity_weight=2.0)
    parts = tilted([features])
    assert parts["english"].item() == pytest.approx(plain["english"].item() / 2)
    assert parts["translated"].item() == pytest.approx(plain["translated"].item() * 1.5)
    assert set(parts) == {"english", "translated", "english_similarity", "translated_similarity"}
    assert all(part.item() > 0 for part in parts.values())
    narrow = MultilingualDistillationLoss(student, teacher, matryoshka_dims=[32, 8])([features])
    assert narrow["english"].item() != pytest.approx(plain["english"].item())


def test_the_student_as_its_own_teacher_takes_no_memory_and_a_copy_takes_a_model():
    student = SentenceTransformer(str(TEACHER))
    student.add_adapter(lora_config("llava", rank=2))
    size = sum(p.numel() * p.element_size() for p in student.parameters())
    kept = []
    own = peak_of(lambda: kept.append(MultilingualDistillationLoss(student)))
    copy = peak_of(lambda: kept.append(MultilingualDistillationLoss(student, SentenceTransformer(str(TEACHER)))))
    if own is None:
        pytest.skip("this system does not tell a process's memory")
    assert own < 0.25 * size and copy > 0.75 * size


@tiny.every_family
def test_twenty_steps_of_the_preset_lower_the_error_in_every_language(family, tmp_path):
    corpus = write_corpus(tmp_path / "corpus", ["en", *LANGUAGES], scenes=3) / "parallel.jsonl"
    rows = [dict(row) for row in load_parallel(corpus, LANGUAGES, show_progress=False)]
    rows = [next(row for row in rows if bool(row["image"]) is shown) for shown in (True, False)]
    rows = [row | {code: row[code][:30] for code in ("en", *LANGUAGES)} for row in rows]
    student = embedder(family)
    student.add_adapter(lora_config(family, rank=4, alpha=8))
    loss = MultilingualDistillationLoss(student)
    (features,) = groups(loss, rows)
    optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], 5e-3)
    heard = []
    for _ in range(20):
        optimizer.zero_grad()
        sum(loss([features]).values()).backward()
        optimizer.step()
        _, (_, language, error) = loss.watched
        heard.append([error[language == number].mean().item() for number in (1, 2)])
    for first, last in zip(heard[0], heard[-1], strict=True):
        assert last < 0.9 * first


@tiny.every_family
def test_vision_is_adapted_by_asking(family):
    student = embedder(family)
    student.add_adapter(lora_config(family, rank=2, vision=True))
    names = [n for n, _ in student.named_parameters() if "lora_A" in n]
    seeing = [n for n in names if "vis" in n]
    assert len(seeing) >= 2 * 4 and len(names) > len(seeing)
    assert not any(part in n for n in names for part in ("projector", "merger", "connector", "img_projection"))
