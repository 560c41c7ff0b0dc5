"""Every kind of source gives the same rows; what is bad is named; MMEB's 21 layouts go through."""

import csv
import json
import shutil

import huggingface_hub
import polib
import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset, Features, Image, Value
from PIL import Image as Images

from recipes.translate import command as translate
from recipes.translate.dictionary import Dictionary
from recipes.translate.languages import language
from recipes.translate.mmeb import MMEB_REVISION, SUBSETS, download_mmeb
from recipes.translate.sources import Options, read_sources
from xvlm2vec_st.data.corpus import read_parallel

RECORDS = [
    {"id": "a", "image": "1.png", "en": "a dog, brown", "it": "un cane, marrone"},
    {"id": "b", "image": None, "en": 'two\n"lines"', "it": None},
]


@pytest.fixture
def folder(tmp_path):
    Images.new("RGB", (4, 4)).save(tmp_path / "1.png")
    return tmp_path


def write_jsonl(path):
    path.write_text("".join(json.dumps(record) + "\n\n" for record in RECORDS), "utf-8")


def write_csv(path):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, RECORDS[0])
        writer.writeheader()
        writer.writerows(RECORDS)


def write_tsv(path):
    """Cells as they are: quotes are text, and a cell is a line at most."""
    lines = ["\t".join(RECORDS[0]), *("\t".join(text or "" for text in r.values()) for r in RECORDS)]
    path.write_text("".join(line.replace("\n", " ") + "\n" for line in lines), "utf-8")


def write_parquet(path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), path)


WRITERS = {".jsonl": write_jsonl, ".csv": write_csv, ".tsv": write_tsv, ".parquet": write_parquet}


@pytest.mark.parametrize("suffix", WRITERS)
def test_files_of_every_kind_give_the_same_rows(folder, suffix):
    path = folder / f"corpus{suffix}"
    WRITERS[suffix](path)
    first, second = read_sources([str(path)], Options(languages=["it"]))
    assert (first.id, first.image, first.english) == ("a", str(folder / "1.png"), "a dog, brown")
    assert first.translations == {"it": "un cane, marrone"}
    text = 'two "lines"' if suffix == ".tsv" else 'two\n"lines"'
    assert (second.id, second.image, second.english) == ("b", None, text)
    assert second.translations == {}


def test_columns_may_have_other_names_and_several_sources_keep_their_ids_apart(folder):
    for name in ("x.jsonl", "y.jsonl"):
        (folder / name).write_text('{"key": 7, "caption": "a dog", "file": "1.png"}\n')
    columns = {"id": "key", "en": "caption", "image": "file"}
    rows = read_sources([str(folder / "x.jsonl"), str(folder / "y.jsonl")], Options(columns=columns))
    assert [(row.id, row.english) for row in rows] == [("x/7", "a dog"), ("y/7", "a dog")]
    assert rows[0].image == str(folder / "1.png")


def test_sources_of_one_name_differ_by_their_folders(folder):
    for name in ("a/train.jsonl", "b/train.jsonl", "b/test.csv"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("id,en\n1,dog\n" if "csv" in name else '{"id": 1, "en": "dog"}\n')
    names = ("a/train.jsonl", "b/train.jsonl", "b/test.csv")
    rows = read_sources([str(folder / name) for name in names], Options())
    assert [row.id for row in rows] == ["a/train/1", "b/train/1", "test/1"]
    with pytest.raises(ValueError, match="test.csv: id .* twice"):
        read_sources([str(folder / "b/test.csv")] * 2, Options())


def test_quotes_in_tsv_are_text_and_eat_no_rows(folder):
    path = folder / "x.tsv"
    path.write_text('id\ten\n1\t"Stop" sign\n2\t"5 inch TV\n3\tcat\n')
    rows = read_sources([str(path)], Options())
    assert [row.english for row in rows] == ['"Stop" sign', '"5 inch TV', "cat"]


def test_a_dataset_with_images_in_it(folder):
    features = Features({"en": Value("string"), "image": Image()})
    data = {"en": ["a dog", "a cat"], "image": [str(folder / "1.png"), None]}
    Dataset.from_dict(data, features=features).save_to_disk(folder / "saved")
    options = Options(image_output=folder / "images")
    dog, cat = read_sources([f"hf:{folder / 'saved'}"], options)
    assert Images.open(dog.image).size == (4, 4) and cat.image is None
    assert (dog.id, cat.id) == ("1", "2")


def test_coco_captions(folder):
    data = {
        "images": [{"id": 9, "file_name": "1.png"}],
        "annotations": [
            {"id": 1, "image_id": 9, "caption": "A dog. "},
            {"id": 2, "image_id": 9, "caption": "x"},
        ],
    }
    path = folder / "captions.json"
    path.write_text(json.dumps(data))
    rows = read_sources([str(path)], Options())
    assert [(r.id, r.image, r.english) for r in rows][0] == ("1", str(folder / "1.png"), "A dog.")
    data["annotations"][1]["image_id"] = 8
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match="annotation 2: no image 8"):
        read_sources([str(path)], Options())


# Human parallel text.

PO = """
msgid ""
msgstr "Language: it\\nContent-Type: text/plain; charset=UTF-8\\nPlural-Forms: nplurals=2; plural=n != 1;\\n"

msgid "open the file"
msgstr "apri il file"

#, fuzzy
msgid "close"
msgstr "aperto"

msgid "%d dog"
msgid_plural "%d dogs"
msgstr[0] "%d cane"
msgstr[1] "%d cani"

msgid "not yet"
msgstr ""

#~ msgid "gone"
#~ msgstr "andato"
"""


@pytest.mark.parametrize("suffix", [".po", ".mo"])
def test_gettext_catalogues(folder, suffix):
    path = folder / f"messages{suffix}"
    catalogue = polib.pofile(PO)
    catalogue.save(str(path)) if suffix == ".po" else catalogue.save_as_mofile(str(path))
    rows = read_sources([str(path)], Options(languages=["it", "de"]))
    said = {row.english: row.translations for row in rows}
    assert said == {"open the file": {"it": "apri il file"}, "%d dog": {"it": "%d cane"}}
    with pytest.raises(ValueError, match="its language .it. is none of de"):
        read_sources([str(path)], Options(languages=["de"]))


def test_a_language_with_one_form_says_with_it_what_english_says_of_many(folder):
    path = folder / "ja.po"
    path.write_text(
        'msgid ""\nmsgstr "Language: ja\\nContent-Type: text/plain; charset=UTF-8\\n"\n\n'
        'msgid "%d dog"\nmsgid_plural "%d dogs"\nmsgstr[0] "%d 匹の犬"\n'
    )
    (row,) = read_sources([str(path)], Options(languages=["ja"]))
    assert (row.english, row.translations) == ("%d dogs", {"ja": "%d 匹の犬"})


def test_tmx(folder):
    path = folder / "memory.tmx"
    path.write_text(
        '<tmx version="1.4"><header srclang="en"/><body>'
        '<tu><tuv xml:lang="en-US"><seg>press <bpt i="1">&lt;b&gt;</bpt>OK<ept i="1"/></seg></tuv>'
        '<tuv xml:lang="it"><seg>premi OK</seg></tuv><tuv xml:lang="pt-BR"><seg>pressione OK</seg></tuv></tu>'
        '<tu><tuv xml:lang="fr"><seg>sans anglais</seg></tuv></tu></body></tmx>'
    )
    (row,) = read_sources([str(path)], Options(languages=["it", "pt"]))
    assert (row.english, row.translations) == ("press OK", {"it": "premi OK", "pt": "pressione OK"})
    path.write_text("<tmx><body>")
    with pytest.raises(ValueError, match="memory.tmx: no TMX file"):
        read_sources([str(path)], Options(languages=["it"]))


def test_moses(folder):
    (folder / "news.en").write_text("a dog\n\na cat\n")
    (folder / "news.it").write_text("un cane\nvuoto\nun gatto\n")
    rows = read_sources([str(folder / "news.en")], Options(languages=["it", "de"]))
    assert [(row.id, row.english, row.translations["it"]) for row in rows] == [
        ("1", "a dog", "un cane"),
        ("3", "a cat", "un gatto"),
    ]
    (folder / "news.it").write_text("un cane\n")
    with pytest.raises(ValueError, match=r"different numbers of lines \(en 3, it 1\)"):
        read_sources([str(folder / "news.en")], Options(languages=["it"]))


def test_human_text_becomes_a_corpus_without_a_translator(folder):
    out = folder / "names.jsonl"
    translate.main(["--corpus", "cldr", "--languages", "pt", "zh", "--translator", "none", "--out", str(out)])
    rows = list(read_parallel(out, ["pt", "zh"]))
    assert len(rows) == 179
    assert {"en": rows[0].english, **rows[0].translations} == {"en": "dog", "pt": "cachorro", "zh": "狗"}
    assert not (folder / "names.jsonl.work").exists()


def test_image_tokens_do_not_reach_a_corpus(folder):
    rows = [{"id": "a", "en": "<image>\na dog", "it": "<|image_1|> un cane"}, {"id": "b", "en": "<image>\n"}]
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:1]))
    (row,) = read_sources([str(folder / "own.jsonl")], Options(languages=["it"]))
    assert (row.english, row.translations) == ("a dog", {"it": "un cane"})
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="own.jsonl: id 'b': no English beside the image token"):
        read_sources([str(folder / "own.jsonl")], Options(languages=["it"]))


def test_indonesian_has_a_code_that_is_no_key_of_a_row(folder):
    command = ["--corpus", "cldr", "--translator", "cldr", "--out", str(folder / "out.jsonl"), "--languages"]
    with pytest.raises(ValueError, match="'id' is the row's id; write Indonesian as 'ind'"):
        translate.main([*command, "id"])
    with pytest.raises(ValueError, match="'id' is the row's id; write Indonesian as 'ind'"):
        language("id")
    translate.main([*command, "ind"])
    assert next(read_parallel(folder / "out.jsonl", ["ind"])).translations == {"ind": "anjing"}


# The authors' file.


def authors_file(folder, records):
    path = folder / "authors.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_the_authors_file_is_read_and_its_suspicious_pairs_are_counted(folder, capsys):
    token = "<|image_1|>\n"
    good = {
        "id": "MSCOCO_i2t_0",
        "text_en": token + "Find an image caption describing the given everyday image.\n",
        "text_lang": token + "Trova una didascalia che descriva l'immagine di tutti i giorni.\n",
        "img_en": "1.png",
        "img_lang": "1.png",
    }
    wrong = good | {
        "id": "MSCOCO_0",
        "text_en": token + 'Select the portion of the image that isolates the object labeled as "dog".\n',
    }
    other = good | {"id": "MSCOCO_i2t_1", "img_lang": "2.png"}
    path = authors_file(folder, [good, wrong, wrong | {"id": "MSCOCO_1"}, other])
    out = folder / "out.jsonl"
    translate.main(["--corpus", str(path), "--languages", "it", "--translator", "none", "--out", str(out)])
    (row,) = read_parallel(out, ["it"])
    assert row.id == "MSCOCO_i2t_0#1" and row.image == "1.png"
    assert row.english == good["text_en"].removeprefix(token)
    report = (folder / "out.report.md").read_text("utf-8")
    assert "| pairing | 2 | 0 |" in report and "MSCOCO_1#3" in report
    assert "| image | 0 | 1 |" in report and "img_en is '1.png' and img_lang '2.png'" in report


def test_the_source_language_is_required(folder):
    path = authors_file(folder, [{"id": "1", "text_en": "a dog", "text_lang": "un cane"}])
    with pytest.raises(ValueError, match="line 1, id '1': the language of text_lang is unknown; pass --source"):
        read_sources([str(path)], Options(languages=["it", "de"]))
    (row,) = read_sources([str(path)], Options(languages=["it", "de"], source_language="it"))
    assert row.translations == {"it": "un cane"}


# Bad input.


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "x.jsonl",
            b'{"id": 1, "en": "caf\xe9"}\n',
            r"x.jsonl, line 1: not UTF-8 \(byte 0xe9 at column 21\)",
        ),
        (
            "x.csv",
            b"id,text\n1,a dog\n",
            "no column 'en' for 'en'; it has id, text; pass --columns en=NAME",
        ),
        ("x.csv", b"id,en\n1,a dog\n2,\n", "row 2: the English text is ''"),
        ("x.csv", b'id,en\n1,dog\n2,"a cat\n3,horse\n', r"x.csv, line 3: unexpected end of data"),
        ("x.csv", b'id,en\n1,dog\n2,"a" cat\n', "x.csv, line 3: ',' expected after '\"'"),
        ("x.csv", b"id,en\n1,a dog, brown\n", "x.csv, line 2: more cells than the head"),
        ("x.csv", "id,en\n1,d\xf6g\n".encode("latin1"), "x.csv, line 2: not UTF-8.*iconv"),
        ("x.jsonl", b'{"id": 1, "en": "a"}\n{"id": 1, "en": "b"}\n', "id '1' twice"),
        ("x.jsonl", b'{"id": 1, "en": "' + b"x" * 2_000_000, "x.jsonl, line 1.*not JSON.{1,200}$"),
        ("x.parquet", b"PAR", "x.parquet, no parquet file"),
        (
            "x.json",
            b'{"images": []}',
            "COCO captions have 'images' and 'annotations'; 'annotations' is missing",
        ),
        ("x.doc", b"", "x.doc: unknown kind of source; known: .jsonl"),
        ("x.jsonl", b"\n", "no rows"),
        ("x.mo", b"nothing", "x.mo: no gettext catalogue"),
    ],
)
def test_bad_input_is_named(folder, name, content, message):
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"(?s){message}") as error:
        read_sources([str(folder / name)], Options(languages=["it"]))
    assert len(str(error.value)) < 400


# MMEB-train: layouts of all subsets. (query, its image?, target, its image?, negative?)

T, P = "<|image_1|>\n", True
VQA = (
    T + "Represent the given image with the following question: what is {n}?\n",
    P,
    "thing {n}",
    False,
    False,
)
CLASS = (T + "Represent the given image for classification.\n", P, "class {n}", False, False)
CAPTION = "Find me an everyday image that matches the given caption: scene {n}."
GIVEN = T + "Represent the given image.\n"
LAYOUTS = {
    "A-OKVQA": VQA,
    "CIFAR_100": CLASS,
    "CIRR": (
        T + "Given an image, find a similar everyday image with the described changes: less {n}.\n",
        P,
        GIVEN,
        P,
        P,
    ),
    "FashionIQ": (
        T + "Find an image to match the fashion image and style note: red {n}.\n",
        P,
        GIVEN,
        P,
        False,
    ),
    "ImageNet-A": CLASS,
    "ImageNet-R": CLASS,
    "ImageNet_1K": CLASS,
    "MSCOCO": (
        T + 'Select the portion of the image that isolates the object labeled as "thing {n}".\n',
        P,
        T + "Represent the given cropped image of the object.\n",
        P,
        False,
    ),
    "MSCOCO_i2t": (
        T + "Find an image caption describing the given everyday image.\n",
        P,
        "scene {n}.",
        False,
        P,
    ),
    "MSCOCO_t2i": (CAPTION, False, GIVEN, P, P),
    "N24News": (
        T + "Represent the given news image with the following caption for domain classification: news {n}.\n",
        P,
        "Sport",
        False,
        False,
    ),
    "NIGHTS": (
        T + "Find a day-to-day image that looks similar to the provided image.\n",
        P,
        T + "Represent the given day-to-day image.\n",
        P,
        P,
    ),
    "OK-VQA": VQA,
    "SUN397": (T + "Identify the scene shown in the image.\n", P, "scene {n}", False, False),
    "VOC2007": (T + "Identify the object shown in the image.\n", P, "thing {n}", False, False),
    "VisDial": (
        "Represent the given dialogue about an image, which is used for image retrieval: Q:day {n}\nA:yes\n",
        False,
        GIVEN,
        P,
        False,
    ),
    "Visual7W": VQA,
    "Visual7W-pointing": (
        T + 'Select the portion of the image that answers the question "which is {n}?".\n',
        P,
        T + "Represent the given cropped image of the object.\n",
        P,
        P,
    ),
    "VisualNews_i2t": (T + "Find a caption for the news in the given photo.\n", P, "news {n}.", False, False),
    "VisualNews_t2i": ("Retrieve an image of this news caption. news {n}.", False, GIVEN, P, False),
    "WebQA": (
        "Find a Wikipedia image that answers this question: which {n}?",
        False,
        T + "Represent the given Wikipedia image with related text information: page {n}.\n",
        P,
        False,
    ),
}
ROWS = 3


def mmeb_record(subset, n):
    query, query_image, target, target_image, negative = LAYOUTS[subset]
    paths = {side: f"images/{subset}/{side}_{n}.jpg" for side in ("qry", "pos", "neg")}
    return {
        "qry": query.format(n=n),
        "qry_image_path": paths["qry"] if query_image else "",
        "pos_text": target.format(n=n),
        "pos_image_path": paths["pos"] if target_image else "",
        "neg_text": target.format(n=n + 1) if negative else "",
        "neg_image_path": paths["neg"] if negative and target_image else "",
    }


@pytest.fixture
def mmeb(tmp_path):
    """A copy of MMEB-train in small, all 21 subsets, every image of its own colour."""
    colour = 0
    for subset in SUBSETS:
        records = [mmeb_record(subset, n) for n in range(ROWS)]
        (tmp_path / subset).mkdir()
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist(records), tmp_path / subset / "original-00000-of-00001.parquet"
        )
        for record in records:
            for key, path in record.items():
                if key.endswith("_path") and path:
                    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
                    Images.new("RGB", (2, 2), (colour % 256, colour // 256, 0)).save(tmp_path / path)
                    colour += 1
    return tmp_path


class Spelling(Dictionary):
    """Translates anything: into letters with a mark, numbers and marks kept."""

    def __init__(self):
        super().__init__({"it": {}})

    def translate(self, texts, code):
        return [text.replace("a", "à").replace("i", "ì").replace("e", "è").replace("o", "ò") for text in texts]


def test_all_21_layouts_of_mmeb_go_through(mmeb):
    assert set(LAYOUTS) == set(SUBSETS)
    out = mmeb / "out" / "parallel.jsonl"
    words = ["--mmeb", "all", "--mmeb-data", str(mmeb), "--languages", "it", "--out", str(out)]
    translate.main([*words, "--skip-check", "copy", "language"], Spelling())
    rows = {row.id: row for row in read_parallel(out, ["it"])}
    for subset, (query, query_image, _, target_image, negative) in LAYOUTS.items():
        for n in range(ROWS):
            record = mmeb_record(subset, n)
            qry, pos = rows[f"{subset}/{n}/qry"], rows[f"{subset}/{n}/pos"]
            assert qry.english == query.format(n=n).removeprefix(T)
            assert qry.translations["it"].endswith("\n") == qry.english.endswith("\n")
            images = {"qry": query_image, "pos": target_image, "neg": negative and target_image}
            for side, has in images.items():
                row = rows.get(f"{subset}/{n}/{side}")
                wanted = record[f"{side}_image_path"]
                assert (row.image if row else None) == (f"../{wanted}" if has else None), (subset, side)
            assert pos.english == record["pos_text"].removeprefix(T)
            assert (f"{subset}/{n}/neg" in rows) == negative
    report = (mmeb / "out" / "parallel.report.md").read_text("utf-8")
    assert all(f"| {subset} |" in report for subset in SUBSETS)


def test_a_row_without_its_image_is_refused_by_name(mmeb, capsys):
    (mmeb / "images" / "OK-VQA" / "qry_1.jpg").unlink()
    out = mmeb / "parallel.jsonl"
    words = ["--mmeb", "OK-VQA", "--mmeb-data", str(mmeb), "--languages", "it", "--out", str(out)]
    translate.main([*words, "--skip-check", "copy", "language"], Spelling())
    assert "refused: row OK-VQA/1/qry: " in capsys.readouterr().out
    refused = [json.loads(line) for line in (mmeb / "parallel.refused.jsonl").open()]
    assert [(r["id"], r["reason"]) for r in refused] == [("OK-VQA/1/qry", "image")]
    assert {row.id for row in read_parallel(out, ["it"])} == {
        f"OK-VQA/{n}/{side}" for n in range(3) for side in ("qry", "pos")
    } - {"OK-VQA/1/qry"}


def test_a_subset_without_any_image_stops_and_tells_where_they_are(mmeb):
    shutil.rmtree(mmeb / "images" / "OK-VQA")
    out = mmeb / "parallel.jsonl"
    words = ["--mmeb", "NIGHTS", "OK-VQA", "--mmeb-data", str(mmeb), "--languages", "it", "--out", str(out)]
    words += ["--skip-check", "copy", "language"]
    told = r"OK-VQA: none of its 3 images .*qry_0.jpg.* images_zip/.* --images FOLDER.* --no-check-images"
    with pytest.raises(ValueError, match=told):
        translate.main(words, Spelling())
    assert not out.exists()
    translate.main([*words, "--no-check-images"], Spelling())
    assert sum(row.image is not None for row in read_parallel(out, ["it"])) == 12
    (mmeb / "elsewhere").mkdir()
    with pytest.raises(ValueError, match="NIGHTS: none of its 9 images"):
        translate.main([*words, "--images", str(mmeb / "elsewhere"), "--overwrite"], Spelling())


def test_mmeb_offline_comes_from_the_cache_or_the_error_names_both_ways(mmeb, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(ValueError, match="OK-VQA.* HF_HUB_OFFLINE.* --mmeb-data"):
        download_mmeb(["OK-VQA"])
    cached = tmp_path / "hub" / "datasets--TIGER-Lab--MMEB-train" / "snapshots" / MMEB_REVISION
    shutil.copytree(mmeb / "OK-VQA", cached / "OK-VQA")
    assert len(MMEB_REVISION) == 40 and download_mmeb(["OK-VQA"]) == cached


def test_a_token_without_a_path_is_refused_and_unknown_subsets_name_the_nearest(mmeb):
    record = mmeb_record("OK-VQA", 0) | {"qry_image_path": ""}
    file = mmeb / "OK-VQA" / "original-00000-of-00001.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([record]), file)
    out = mmeb / "parallel.jsonl"
    words = ["--mmeb-data", str(mmeb), "--languages", "it", "--out", str(out)]
    translate.main(["--mmeb", "OK-VQA", *words, "--skip-check", "copy"], Spelling())
    (refused,) = [json.loads(line) for line in (mmeb / "parallel.refused.jsonl").open()]
    assert refused["detail"] == "qry_image_path is '', the text has an image token"
    with pytest.raises(ValueError, match="unknown subset 'MSCOCO_i2i'; .*MSCOCO_i2t"):
        translate.main(["--mmeb", "MSCOCO_i2i", *words, "--overwrite"])


def test_a_limit_draws_the_same_rows_of_a_subset_beside_any_others(mmeb):
    def ids(*subsets):
        out = mmeb / "parallel.jsonl"
        words = ["--mmeb", *subsets, "--mmeb-data", str(mmeb), "--languages", "it", "--out", str(out)]
        translate.main([*words, "--limit", "2", "--overwrite", "--skip-check", "copy", "language"], Spelling())
        return {row.id for row in read_parallel(out, ["it"]) if row.id.startswith("OK-VQA")}

    assert ids("OK-VQA") == ids("MSCOCO", "OK-VQA")
    assert len(ids("OK-VQA")) == 4  # two rows, query and target each
