"""The six defects of the published corpus (arXiv 2503.09313), each a check that the old code fails."""

import re

import pytest

from recipes.translate.checks import refusal
from recipes.translate.dictionary import Dictionary
from recipes.translate.fields import fields_of, join_fields
from recipes.translate.merge import merge
from recipes.translate.misaligned import mismatch
from recipes.translate.mmeb import SUBSETS, mmeb_rows
from recipes.translate.repair import repair, strip_artefact
from recipes.translate.schedule import plan, wanted_fields, work_through
from recipes.translate.sources import sample
from recipes.translate.translation_memory import Memory
from xvlm2vec_st.data.corpus import ParallelRow


def fails(check, old):
    """Whether the check can tell: the published behaviour does not pass it."""
    with pytest.raises((AssertionError, IndexError, KeyError)):
        check(old)
    return True


# 1. The subset was what stands before the first "_" of a file name.


def check_rows_are_joined_by_subset_and_id(subset_of):
    english = {subset: f"English of {subset}" for subset in ("MSCOCO", "MSCOCO_i2t", "MSCOCO_t2i")}
    for subset in ("MSCOCO_i2t", "MSCOCO_t2i", "VisualNews_i2t"):
        assert english.get(subset_of(f"{subset}_10000.jsonl", subset), "") == english.get(subset, "")


def test_defect_1_translations_are_never_joined_with_another_subsets_english(tmp_path):
    assert fails(check_rows_are_joined_by_subset_and_id, lambda file, subset: file.split("_")[0])
    check_rows_are_joined_by_subset_and_id(lambda file, subset: subset)
    rows = []
    for subset in ("MSCOCO", "MSCOCO_i2t", "MSCOCO_t2i", "VisualNews_i2t", "VisualNews_t2i"):
        own = {"qry": f"text of {subset} row", "pos_text": ""}
        rows += mmeb_rows(7, own, subset, tmp_path)[0]
    assert len({row.id for row in rows}) == 5
    table = {row.english: row.english.replace("text of", "testo di") for row in rows}
    memory = translated(rows, {"it": table}, tmp_path)
    kept = merge(rows, ["it"], memory, skip=["copy", "language"]).kept
    assert len(kept) == 5
    for row in kept:
        subset = row.id.split("/")[0]
        assert row.english == f"text of {subset} row" and row.translations["it"] == f"testo di {subset} row"


@pytest.mark.parametrize(
    ("english", "translation"),
    [
        (  # MSCOCO_i2t beside MSCOCO, as in the published corpus
            'Select the portion of the image that isolates the object labeled as "dog".',
            "Trova una didascalia che descriva l'immagine quotidiana data.",
        ),
        (
            'Select the portion of the image that isolates the object labeled as "dog".',
            "Trovami un'immagine quotidiana che corrisponda alla didascalia: un cane corre.",
        ),
        ("Represent the given cropped image of the object.", "Rappresenta l'immagine data."),
        ("Find a caption for the news in the given photo.", "Rappresenta l'immagine data."),
    ],
)
def test_defect_1_is_found_in_what_others_published(english, translation):
    assert mismatch(english, translation, "it")
    assert refusal(english, translation, "it")[0] == "pairing"


# 2. Question and answer were glued, and split again by the translated words.


def old_glue(question, answer, translate, words):
    glued = translate(f"Question: {question} Answer: {answer}")
    return tuple(part.strip() for part in re.split("|".join(words), glued)[1:])


WORDS = {"fr": ("Question:", "Réponse:"), "de": ("Frage:", "Antwort")}
SAID = {
    "fr": {"what is it?": "qu'est-ce que c'est ?", "answers": "réponses"},
    "de": {"what is it?": "was ist das?", "answers": "Antworten"},
}
GLUED = {
    "fr": "Question : qu'est-ce que c'est ? Réponse : réponses",  # French puts a blank before ":"
    "de": "Frage: was ist das? Antwort: Antworten",
}


def check_fields_survive(pair_of):
    for code in ("fr", "de"):
        assert pair_of(code) == tuple(SAID[code].values())


def test_defect_2_fields_are_translated_one_by_one():
    question, answer = "what is it?", "answers"
    assert fails(check_fields_survive, lambda code: old_glue(question, answer, lambda _: GLUED[code], WORDS[code]))
    check_fields_survive(lambda code: tuple(join_fields(text, code, SAID[code].get) for text in (question, answer)))


def test_defect_2_no_word_of_the_content_is_deleted_and_labels_stay():
    text = "Question: what is it?\nAnswer: answers"
    assert fields_of(text, "de") == ["Question", "what is it?", "Answer", "answers"]
    said = SAID["de"] | {"Question": "Frage", "Answer": "Antwort"}
    assert join_fields(text, "de", said.get) == "Frage: was ist das?\nAntwort: Antworten"


# 3. After an exception columns drifted apart.


def translated(rows, tables, folder, translator=None):
    translator = translator or Dictionary(tables)
    wanted = {code: list(fields) for code, fields in wanted_fields(rows, list(tables)).items()}
    batches, _ = plan(wanted, translator, 6)
    memory = Memory(folder / "work")
    work_through(batches, translator, memory, batch_tokens=6, show_progress=False)
    return memory.known


ROWS = [ParallelRow(f"s/{i}", None, f"row {i} word", {}) for i in range(12)]
TABLE = {"it": {row.english: row.english.replace("word", "parola") for row in ROWS}}


class Failing(Dictionary):
    """Breaks down once, in the middle."""

    left = 3

    def translate(self, texts, code):
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("CUDA out of memory")
        return super().translate(texts, code)


def old_columns(translator):
    english, said = [], []
    for start in range(0, len(ROWS), 2):
        batch = [row.english for row in ROWS[start : start + 2]]
        english += batch
        try:
            said += translator.translate(batch, "it")
        except RuntimeError:
            pass
    return dict(zip(english, said, strict=False))


def check_every_result_is_its_own_rows(said):
    assert said and all(said[english] == TABLE["it"][english] for english in said)


def test_defect_3_every_result_carries_its_key(tmp_path):
    assert fails(check_every_result_is_its_own_rows, old_columns(Failing(TABLE)))
    failing = Failing(TABLE)
    with pytest.raises(RuntimeError, match="out of memory"):
        translated(ROWS, TABLE, tmp_path, failing)
    kept = Memory(tmp_path / "work").known
    check_every_result_is_its_own_rows({text: said for (_, text), said in kept.items()})
    assert 0 < len(kept) < len(ROWS)
    known = translated(ROWS, TABLE, tmp_path, failing)
    check_every_result_is_its_own_rows({text: said for (_, text), said in known.items()})
    assert len(known) == len(ROWS)


# 4. Repair appended, knew ASCII only, emptied one character, failed on a line break, lost inner ones.

ASCII = ".,;:!?"


def old_repair(english, translation, code):
    r = english.removesuffix("\n")
    if r[-1] not in ASCII and translation[-1] in ASCII:
        translation = translation[:-1]
    if r[-1] in ASCII and translation[-1] != r[-1]:
        translation += r[-1]
    return " ".join(translation.split("\n")) + ("\n" if english.endswith("\n") else "")


@pytest.mark.parametrize(
    ("english", "translation", "code", "wanted"),
    [
        ("What is this?", "Was ist das.", "de", "Was ist das?"),
        ("A dog.", "一只狗。", "zh", "一只狗。"),
        ("A dog", "一只狗。", "zh", "一只狗"),
        ("Is it a dog?", "هل هو كلب؟", "ar", "هل هو كلب؟"),
        ("A dog.", "एक कुत्ता", "hi", "एक कुत्ता।"),
        ("x", "!", "de", "!"),
        ("\n", "\n", "de", "\n"),
        ("one\ntwo", "uno\ndue", "it", "uno\ndue"),
    ],
)
def test_defect_4_ends_are_replaced_in_any_script(english, translation, code, wanted):
    def check(mend):
        assert mend(english, translation, code) == wanted

    assert fails(check, old_repair)
    check(repair)


def test_defect_4_inner_line_breaks_are_kept():
    text = "Q:what is it\nA:a dog\n\nQ:big?"
    said = {"what is it": "cos'è", "a dog": "un cane", "big?": "grande?"}
    assert join_fields(text, "it", said.get) == "Q:cos'è\nA:un cane\n\nQ:grande?"
    assert refusal("one\ntwo", "uno due", "it")[0] == "newline"


# 5. The clean-up of "#300000 - " was never called; VisDial was never translated.


def test_defect_5_the_artefact_is_cut_wherever_a_translation_is_joined(tmp_path):
    rows = [
        ParallelRow("s/1", None, "A dog runs. ", {}),
        ParallelRow("s/2", None, "Q: a cat?\nA: no cat", {}),
    ]
    said = {
        "A dog runs.": "#300000 - Un cane corre.",
        "a cat?": "#300000 - un gatto?",
        "no cat": "nessun gatto",
    }

    def check(clean):
        assert clean("A dog runs.", said["A dog runs."]) == "Un cane corre."

    assert fails(check, lambda english, translation: translation)
    check(strip_artefact)
    merged = merge(rows, ["it"], {("it", text): t for text, t in said.items()})
    assert [row.translations["it"] for row in merged.kept] == [
        "Un cane corre. ",
        "Q: un gatto?\nA: nessun gatto",
    ]
    assert refusal("a dog", "un #300000 - cane", "it") == ("artefact", "#300000 - ")


def test_defect_5_visdial_is_a_subset_like_the_others(tmp_path):
    assert "VisDial" in SUBSETS and len(SUBSETS) == 21
    dialogue = (
        "Represent the given dialogue about an image, which is used for image retrieval: Q:is it day\nA:yes it is\n"
    )
    (row,), wrong = mmeb_rows(0, {"qry": dialogue, "pos_text": ""}, "VisDial", tmp_path)
    assert not wrong
    fields = fields_of(row.english, "it")
    assert fields[:2] == ["is it day", "yes it is"] and fields[2].startswith("Represent the given dialogue")


# 6. The first n rows instead of a sample.


def check_rows_come_from_everywhere(draw):
    drawn = draw(range(10_000), 100)
    assert drawn == draw(range(10_000), 100) == sorted(drawn)
    assert max(drawn) > 9_000 and 4_000 < sum(drawn) / 100 < 6_000


def test_defect_6_rows_are_a_seeded_sample():
    assert fails(check_rows_come_from_everywhere, lambda rows, n: list(rows)[:n])
    check_rows_come_from_everywhere(lambda rows, n: sample(rows, n, "0/OK-VQA"))
    assert sample(range(1000), 10, "0") != sample(range(1000), 10, "1")
