"""Parallel corpora: reading, refusing, collating."""

import codecs
import json
import re
import shutil
from itertools import islice

import datasets
import pytest
import tiny
import torch
from PIL import ExifTags, Image

from xvlm2vec_st import SentenceTransformer, load_parallel
from xvlm2vec_st.data import collator as collator_module
from xvlm2vec_st.data.collator import ParallelCollator
from xvlm2vec_st.data.corpus import check_languages, parse_row, read_parallel
from xvlm2vec_st.data.row_images import open_row_image, row_image_size
from xvlm2vec_st.data.stream import ParallelStream
from xvlm2vec_st.distillation.teacher_cache import input_key

GOOD = [
    {"id": "a", "image": "p/one.png", "en": "dog", "it": "cane", "de": "Hund"},
    {"id": "b", "image": None, "en": "a cat", "it": "un gatto"},
    {"id": 3, "en": "red apple", "de": "roter Apfel"},
]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "p").mkdir()
    Image.new("RGB", (20, 10), "red").save(tmp_path / "p" / "one.png")
    return tmp_path


def corpus(folder, rows):
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path = folder / "parallel.jsonl"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def test_rows_become_columns_and_missing_languages_none(folder):
    data = load_parallel(corpus(folder, GOOD), ["it", "de"])
    assert data.column_names == ["id", "image", "en", "it", "de"]
    assert data[0] == {"id": "a", "image": str(folder / "p/one.png"), "en": "dog", "it": "cane", "de": "Hund"}
    assert data["de"][:] == ["Hund", None, "roter Apfel"] and data["image"][1] is None


def test_an_edited_corpus_is_read_anew(folder):
    path = corpus(folder, GOOD)
    assert len(load_parallel(path, ["it"])) == 3
    corpus(folder, [*GOOD, {"id": "d", "en": "sun", "it": "sole"}])
    assert load_parallel(path, ["it"])["it"][-1] == "sole"


def test_the_rows_of_each_content_lie_in_a_folder_that_may_be_deleted(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    path = corpus(folder, GOOD)
    for _ in range(2):
        load_parallel(path, ["it"])
    stored = tmp_path / "cache" / "xvlm2vec_corpus"
    assert len(list(stored.iterdir())) == 1
    path = corpus(folder, GOOD[:2])
    load_parallel(path, ["it"])
    assert len(list(stored.iterdir())) == 2  # an open run may still map the older rows
    shutil.rmtree(stored)
    assert load_parallel(path, ["it"])["it"][:] == ["cane", "un gatto"]


def test_reading_is_lazy(folder):
    rows = read_parallel(corpus(folder, [*GOOD, "no json"]), ["it"])
    assert next(rows).english == "dog"  # the bad last line is not read yet


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{half", r"parallel.jsonl, line 2: not JSON \(.*\): '\{half'"),
        ('["list"]', "line 2: a JSON object is needed, got list"),
        ('{"en": "dog"}', "line 2, id None: 'id' must be a text or a number"),
        ('{"id": "x", "it": "cane"}', r"line 2, id 'x': no English text \('en'\)"),
        ('{"id": "x", "en": null, "it": "cane"}', "line 2, id 'x': no English"),
        ('{"id": "x", "en": " ", "it": "cane"}', "line 2, id 'x': the 'en' text is ' '"),
        (
            '{"id": "x", "en": "dog", "it": ""}',
            "line 2, id 'x': the 'it' text is ''; .* leave the language out",
        ),
        ('{"id": "x", "en": "dog", "it": ["cane"]}', r"line 2, id 'x': the 'it' text is \['cane'\]"),
        ('{"id": "x", "en": "dog", "image": 7}', "line 2, id 'x': 'image' must be a path or null, got 7"),
        (
            '{"id": "x", "en": "dog", "it": "c", "image": "no.png"}',
            "parallel.jsonl, line 2, row x: image .*no.png not found; pass images=",
        ),
    ],
)
def test_a_bad_line_is_named(folder, line, message):
    path = corpus(folder, [GOOD[0], line])
    with pytest.raises(ValueError, match=message):
        load_parallel(path, ["it"])


def test_an_image_that_went_since_the_last_time_is_missed(folder):
    path = corpus(folder, GOOD)
    assert load_parallel(path, ["it"])["image"][0]
    (folder / "p" / "one.png").unlink()
    with pytest.raises(ValueError, match="parallel.jsonl, line 1, row a: image .*one.png not found"):
        load_parallel(path, ["it"])


@pytest.mark.parametrize("images", [None, "."])
def test_images_of_a_corpus_named_from_here_have_absolute_paths(folder, monkeypatch, images):
    corpus(folder, GOOD)
    monkeypatch.chdir(folder)
    rows = [load_parallel("parallel.jsonl", ["it"], images=images)[0]]
    rows += islice(ParallelStream(["parallel.jsonl"], ["it"], images=images), 3)
    assert {row["image"] for row in rows if row["id"] == "a"} == {str(folder / "p/one.png")}


@pytest.mark.parametrize("token", ["<image>", "<|image_12|>", "<|image_pad|>", "<|vision_start|>"])
@pytest.mark.parametrize("language", ["en", "it"])
def test_an_image_token_in_a_text_is_refused(folder, token, language):
    bad = {"id": "x", "en": "dog", "it": "cane"} | {language: f"{token}\na text"}
    path = corpus(folder, [GOOD[0], bad])
    message = rf"parallel.jsonl, line 2, id 'x': the '{language}' text holds the image token '{re.escape(token)}'"
    for read in (lambda: load_parallel(path, ["it"]), lambda: ParallelStream([path], ["it"])):
        with pytest.raises(ValueError, match=message + "; remove it, because the chat template writes it"):
            read()


def test_a_byte_order_mark_is_passed_over_and_other_encodings_are_named(folder):
    path = corpus(folder, GOOD)
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    assert len(load_parallel(path, ["it"])) == 3
    assert {row["id"] for row in islice(ParallelStream([path], ["it"]), 3)} == {"a", "b", "3"}
    path.write_bytes(json.dumps(GOOD[0]).encode() + b'\n{"id": "x", "en": "caf\xe9", "it": "c"}\n')
    for read in (lambda: load_parallel(path, ["it"]), lambda: ParallelStream([path], ["it"])):
        with pytest.raises(ValueError, match="line 2: not UTF-8 .byte 0xe9 at column 23.; .* iconv .*parallel.jsonl"):
            read()


def test_an_image_is_as_upright_as_by_its_path(tmp_path):
    path = str(tmp_path / "turned.jpg")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.linear_gradient("L").resize((40, 20)).save(path, exif=exif)
    image = open_row_image(path, "x", decode=True)
    assert image.size == (20, 40) == row_image_size(path, "x")
    assert input_key({"image": image, "text": "a"}) == input_key({"image": path, "text": "a"})


def test_an_image_that_is_none_is_named(folder):
    (folder / "p" / "text.png").write_text("not an image")
    path = corpus(folder, [{"id": "x", "image": "p/text.png", "en": "dog", "it": "cane"}])
    with pytest.raises(ValueError, match="row x: image .*text.png cannot be read"):
        load_parallel(path, ["it"])


def test_an_image_cut_in_half_is_named_when_it_is_decoded(folder):
    image = folder / "p" / "cut.png"
    Image.effect_noise((64, 64), 50).save(image)
    image.write_bytes(image.read_bytes()[:1000])
    path = corpus(folder, [{"id": "x", "image": "p/cut.png", "en": "dog", "it": "cane"}])
    data = load_parallel(path, ["it"])
    with pytest.raises(ValueError, match="row x: image .*cut.png cannot be read: .*truncated"):
        ParallelCollator(fake_preprocess, languages=["it"])([data[0]])


@pytest.mark.parametrize(
    ("languages", "message"),
    [
        ([], "languages is empty"),
        (["it", "it"], "listed twice: it, it"),
        (["en"], "English is the source"),
        (["Italian"], "unknown language 'Italian'"),
        (["i"], "unknown language 'i'"),
        (["it", "id"], "'id' is the row's id; write Indonesian as 'ind'"),
        (["pt"], "no row has language 'pt'"),
    ],
)
def test_bad_languages_are_refused(folder, languages, message):
    with pytest.raises(ValueError, match=message):
        load_parallel(corpus(folder, GOOD), languages)


def test_regions_and_scripts_are_languages():
    check_languages(["pt-BR", "zh-Hant", "yue", "sr_Latn", "ind"])


def test_no_file_and_no_rows(tmp_path):
    with pytest.raises(ValueError, match="no such corpus file"):
        load_parallel(tmp_path / "none.jsonl", ["it"])
    with pytest.raises(ValueError, match="no rows"):
        load_parallel(corpus(tmp_path, ["", " "]), ["it"])


def shards(folder, *files):
    """A file a list of rows."""
    paths = [folder / f"{number}.jsonl" for number in range(len(files))]
    for path, rows in zip(paths, files, strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return paths


@pytest.mark.parametrize("read", [load_parallel, ParallelStream])
def test_several_files_are_one_corpus(folder, read):
    """Each id once in all of them, each language somewhere: one file a language is a corpus."""
    italian, german = [{"id": "a", "en": "dog", "it": "cane"}], [{"id": "b", "en": "cat", "de": "Katze"}]
    paths = shards(folder, italian, german)
    rows = read(paths, ["it", "de"])
    assert sorted(row["id"] for row in islice(rows, 2)) == ["a", "b"]
    with pytest.raises(ValueError, match="0.jsonl, .*1.jsonl: no row has language 'pt'"):
        read(paths, ["it", "pt"])
    with pytest.raises(ValueError, match="1.jsonl: id 'a' stands in two rows of the corpus"):
        read(shards(folder, italian, italian), ["it"])
    with pytest.raises(ValueError, match="0.jsonl: id 'a' stands in two rows of the corpus"):
        read(shards(folder, italian * 2), ["it"])
    with pytest.raises(ValueError, match="0.jsonl, .*2.jsonl and 1 more: no rows"):
        read(shards(folder, [], [], [], []), ["it"])
    with pytest.raises(ValueError, match="no corpus files"):
        read([], ["it"])


@pytest.mark.parametrize("read", [load_parallel, lambda path, *a, **k: ParallelStream([path], *a, **k)])
def test_images_in_what_is_not_read_are_refused(folder, read):
    with pytest.raises(ValueError, match=r"all.tar.gz: neither a folder nor a file of .zip, .tar, .parquet"):
        read(corpus(folder, GOOD), ["it"], images=folder / "all.tar.gz")


def test_a_number_is_an_id():
    assert parse_row('{"id": 3, "en": "dog"}', 1, ["it"]).id == "3"


def fake_preprocess(inputs):
    """One feature: how long each input's text is."""
    texts = [item if isinstance(item, str) else item["text"] for item in inputs]
    return {"input_ids": torch.tensor([len(text) for text in texts])}


def test_collator_groups_by_side_and_image(folder):
    data = load_parallel(corpus(folder, GOOD), ["it", "de"])
    batch = ParallelCollator(fake_preprocess, languages=["it", "de"])(list(data))
    got = {key: value.tolist() if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
    assert got == {
        "ids": ["a", "b", "3"],
        "en_image_input_ids": [3],
        "en_image_language": [0],
        "en_image_row": [0],
        "en_image_side": "en",
        "translated_image_input_ids": [4, 4],
        "translated_image_row": [0, 0],
        "translated_image_language": [1, 2],
        "translated_image_side": "translated",
        "en_text_input_ids": [5, 9],
        "en_text_row": [1, 2],
        "en_text_language": [0, 0],
        "en_text_side": "en",
        "translated_text_input_ids": [8, 11],
        "translated_text_row": [1, 2],
        "translated_text_language": [1, 2],
        "translated_text_side": "translated",
    }


def test_a_batch_without_images_gets_a_stand_in_if_requested(folder):
    data = load_parallel(corpus(folder, GOOD), ["it", "de"])
    options = {"languages": ["it", "de"], "shared": True, "stand_in": True, "inputs": True}
    collate = ParallelCollator(fake_preprocess, **options)
    with_image, without = collate([data[0], data[1]]), collate([data[1], data[2]])
    assert with_image["texts_row"].tolist() == [0, 0, 0, 1, 1]
    assert without["texts_row"].tolist() == [0, 0, 1, 1, -1]
    assert without["texts_inputs"] == ["a cat", "red apple"], "the stand-in has no target"


def test_images_are_resized_if_requested(folder):
    data = load_parallel(corpus(folder, GOOD[:1]), ["it"])
    collate = ParallelCollator(fake_preprocess, languages=["it"], inputs=True, image_size=7)
    assert collate([data[0]])["en_image_inputs"][0]["image"].size == (7, 7)


def test_an_image_is_decoded_once_for_all_its_languages(folder, monkeypatch):
    seen, decode_line = [], []
    original = collator_module.open_row_image

    def counting(path, row, *, decode=False):
        decode_line.append((path, decode))
        return original(path, row, decode=decode)

    def looking(inputs):
        seen.extend(item["image"] for item in inputs if isinstance(item, dict))
        return fake_preprocess(inputs)

    data = load_parallel(corpus(folder, GOOD[:1]), ["it", "de"])
    monkeypatch.setattr(collator_module, "open_row_image", counting)
    ParallelCollator(looking, languages=["it", "de"])([data[0]])
    assert len(decode_line) == 1 and decode_line[0][1]
    assert len(seen) == 3 and all(image is seen[0] for image in seen)
    assert seen[0].mode == "RGB"


@pytest.mark.parametrize("shared", [True, False])
def test_a_row_with_its_image_may_be_as_long_as_the_model_takes(folder, shared):
    model = SentenceTransformer(str(tiny.embedder("llava")))
    row = {"id": "r", "image": str(folder / "p" / "one.png"), "en": "red apple", "it": None}
    given = {"image": Image.open(row["image"]), "text": row["en"]}
    length = model.preprocess([given])["input_ids"].shape[1]
    model[0].max_seq_length = length
    options = {"languages": ["it"], "shared": shared, "limit": length, "tokenizer": model.tokenizer}
    collate = ParallelCollator(model.preprocess, **options)
    (ids,) = (value for key, value in collate([row]).items() if key.endswith("input_ids"))
    assert ids.shape == (1, length)
    with pytest.raises(ValueError, match=f"row r: its en text with its image has more than the {length} tokens"):
        collate([row | {"en": "red apples"}])
