"""Scores of held-out rows: those of the host's evaluators, in little memory."""

import re
import zipfile
from collections import Counter

import pytest
import tiny
import torch
from datasets import Dataset
from sentence_transformers.sentence_transformer.evaluation import MSEEvaluator, TranslationEvaluator
from sentence_transformers.util import pairwise_cos_sim

from xvlm2vec_st import SentenceTransformer
from xvlm2vec_st.data import collator
from xvlm2vec_st.data.row_images import open_row_image
from xvlm2vec_st.training.evaluation import parallel_evaluator
from xvlm2vec_st.utils.failures import reason

LANGUAGES = ("it", "de")


def model(family="llava"):
    return SentenceTransformer(str(tiny.embedder(family)))


@pytest.fixture(scope="module", params=["folder", "zip"])
def rows(request, tmp_path_factory):
    """Eight rows, two of three with an image; rows 1 and 7 are the same but for their files."""
    folder = tmp_path_factory.mktemp("held")
    found = []
    for number in range(8):
        file = None
        if number % 3:
            file = folder / f"{number}.png"
            tiny.random_image(number % 6).save(file)
        text = {"en": f"text {number % 6}", "it": f"t{number % 6}", "de": "ein" if number % 2 else None}
        found.append({"id": str(number), "image": file and str(file), **text})
    if request.param == "zip":
        with zipfile.ZipFile(folder / "all.zip", "w") as archive:
            for file in folder.glob("*.png"):
                archive.write(file, file.name)
        for row in found:
            row["image"] = row["image"] and f"{folder}/all.zip::{row['id']}.png"
    return Dataset.from_list(found)


def by_hand(rows, student, teacher):
    """The host's evaluators over all inputs with their images, one at a time."""

    def given(row, language):
        if row["image"] is None:
            return row[language]
        return {"image": open_row_image(row["image"], row["id"], decode=True), "text": row[language]}

    scores, options = {}, {"batch_size": 1}
    for language in LANGUAGES:
        chosen = [row for row in rows if row[language] is not None]
        sides = [[given(row, code) for row in chosen] for code in ("en", language)]
        scores |= TranslationEvaluator(*sides, name=language, **options)(student)
    english = [given(row, "en") for row in rows]
    drift = MSEEvaluator(english, english, teacher_model=teacher, name="english", **options)(student)
    vectors = [model.encode(english, **options) for model in (student, teacher)]
    drift["english_cosine"] = float(pairwise_cos_sim(*vectors).mean())
    mean = sum(scores[f"{language}_mean_accuracy"] for language in LANGUAGES) / 2
    return scores | drift | {"sequential_score": mean}


def watched(evaluated, monkeypatch):
    """How many inputs each forward had."""
    sizes, original = [], evaluated[0].forward
    monkeypatch.setattr(evaluated[0], "forward", lambda f, **k: sizes.append(len(f["input_ids"])) or original(f, **k))
    return sizes


def test_scores_are_those_of_sentence_transformers_in_small_batches(rows, monkeypatch):
    student, teacher = model(), model()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1.02)
    expected = by_hand(rows, student, teacher)
    assert 0 < expected["it_mean_accuracy"] and expected["english_negative_mse"] < 0
    opened = Counter()
    monkeypatch.setattr(collator, "open_row_image", lambda *a, **k: opened.update(a[1]) or open_row_image(*a, **k))
    sizes = watched(teacher, monkeypatch)
    evaluator = parallel_evaluator(rows, LANGUAGES, teacher, batch_size=3)
    images = {row["id"] for row in rows if row["image"]}
    assert set(opened) == images and set(opened.values()) == {1}
    assert max(sizes) <= 3 and sum(sizes) == 8
    sizes = watched(student, monkeypatch)
    assert evaluator(student) == pytest.approx(expected, abs=1e-5)
    assert set(opened) == images and set(opened.values()) == {2}, "once a row"
    assert max(sizes) <= 3 and sum(sizes) == 8 + 8 + 4, "each text once"


def test_out_of_memory_says_what_to_lower(rows, monkeypatch):
    student = model()
    evaluator = parallel_evaluator(rows, LANGUAGES, model(), batch_size=5)
    monkeypatch.setattr(student[0], "forward", lambda *a, **k: torch.empty(2**55))
    with pytest.raises(RuntimeError) as caught:
        evaluator(student)
    assert re.fullmatch(
        "out of memory .*; while held-out rows were scored, 5 texts per batch; lower per_device_train.*",
        reason(caught.value),
    )
    monkeypatch.setattr(student[0], "forward", lambda *a, **k: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="size") as caught:
        evaluator(student)
    assert not getattr(caught.value, "__notes__", ())
