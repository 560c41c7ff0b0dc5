"""A text is a text, data stay in their folder, limits hold: what a corpus from elsewhere cannot do."""

import gzip
import io
import json
import os
import re
import signal
import socket
import tarfile
import zipfile
from itertools import islice

import pyarrow
import pyarrow.parquet
import pytest
from fuzz import HangError
from PIL import Image

from mmmeb_tasks.mini import TEACHER
from recipes.shared import command
from recipes.translate import command as translate
from recipes.translate.checks import CHECKS, refusal, similarities
from recipes.translate.fields import join_fields, split_text
from recipes.translate.placeholders import mask, pieces, unmask
from recipes.translate.repair import repair
from recipes.translate.report import _cell
from recipes.translate.sources import Options, read_sources
from recipes.translate.translation_memory import read_memory
from recipes.translate.translators import Seq2Seq, set_source
from xvlm2vec_st import SentenceTransformer, load_parallel
from xvlm2vec_st.data.collator import ParallelCollator
from xvlm2vec_st.data.corpus import parse_row
from xvlm2vec_st.data.row_images import open_row_image
from xvlm2vec_st.data.stream import ParallelStream
from xvlm2vec_st.distillation.teacher_cache import CachedTeacher
from xvlm2vec_st.distillation.teachers import FrozenTeacher
from xvlm2vec_st.training.evaluation import parallel_evaluator

ADDRESSES = [
    "http://127.0.0.1:9/a.png",
    "https://x.test/a.jpg?b=c",
    "https://youtu.be/x",
    "data:image/png;base64,AA",
]


@pytest.fixture(scope="module")
def model():
    return SentenceTransformer(str(TEACHER))


@pytest.fixture
def no_network(monkeypatch):
    def refused(*args, **kwargs):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "create_connection", refused)


def png(color="red"):
    out = io.BytesIO()
    Image.new("RGB", (8, 6), color).save(out, "PNG")
    return out.getvalue()


def corpus(folder, *rows):
    path = folder / "c.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path, **options):
    return load_parallel(path, ["it"], show_progress=False, **options)


@pytest.mark.parametrize("shared", [True, False])
def test_a_text_that_is_an_address_or_a_path_is_a_text(model, no_network, tmp_path, monkeypatch, shared):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dog.png").write_bytes(png())
    texts = [*ADDRESSES, str(tmp_path / "dog.png"), "dog.png"]
    rows = [{"id": str(n), "image": None, "en": text, "it": text} for n, text in enumerate(texts)]
    batch = ParallelCollator(model.preprocess, languages=("it",), shared=shared)(rows)
    assert not [key for key in batch if "pixel" in key]
    (ids, *_) = [value for key, value in batch.items() if key.endswith("input_ids")]
    plain = model.preprocess([{"text": text} for text in texts])["input_ids"]
    assert ids.shape[1] == plain.shape[1] and len({tuple(row) for row in ids.tolist()}) == len(texts)


def test_an_ordinary_text_has_the_features_that_a_str_has(model):
    row = {"id": "1", "image": None, "en": "a dog", "it": "un cane"}
    batch = ParallelCollator(model.preprocess, languages=("it",), shared=True)([row])
    assert batch["texts_input_ids"].tolist() == model.preprocess(["a dog", "un cane"])["input_ids"].tolist()


def test_evaluation_and_the_teachers_cache_read_addresses_as_texts(model, no_network, tmp_path):
    rows = [{"id": str(n), "en": text, "it": f"{text}?a.png"} for n, text in enumerate(ADDRESSES)]
    held_out = read(corpus(tmp_path, *rows))
    assert parallel_evaluator(held_out, ["it"], model)(model)["english_cosine"] == pytest.approx(1, abs=1e-5)
    assert similarities(model, [(ADDRESSES[0], ADDRESSES[0])]) == [pytest.approx(1, abs=1e-5)]
    collate = ParallelCollator(model.preprocess, languages=("it",), shared=True, inputs=True)
    batch = {k.removeprefix("texts_"): v for k, v in collate([dict(row) for row in held_out]).items()}
    teacher = FrozenTeacher(model)
    teacher.needs_inputs = True
    cached = CachedTeacher(teacher, tmp_path / "cache").targets(batch, batch["language"] == 0)
    assert cached["sentence"].shape[0] == len(ADDRESSES)


NAMES = ["../secret.png", "p/../../secret.png", "{outside}/secret.png", "link.png", "folder/secret.png"]


@pytest.fixture
def inside(tmp_path):
    """A data folder with links that lead out of it, and what lies outside."""
    (tmp_path / "data" / "p").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(png())
    (tmp_path / "data" / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "data" / "folder").symlink_to(tmp_path)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("secret.png", png())
    return tmp_path / "data"


@pytest.mark.parametrize("name", [*NAMES, "../all.zip::secret.png"])
def test_images_of_rows_stay_in_their_folder_unless_it_is_allowed(inside, name):
    name = name.format(outside=inside.parent)
    path = corpus(inside, {"id": "a", "image": name, "en": "x", "it": "y"})
    for take in (read, lambda path: next(iter(ParallelStream([path], ["it"])))):
        with pytest.raises(ValueError, match=r"c.jsonl, line 1, .*a.* lies outside .*outside_images=True"):
            take(path)
    with pytest.raises(ValueError, match=r"c.jsonl, line 1, id 'a': .* lies outside"):
        read_sources([str(path)], Options(languages=["it"]))
    (row,) = read(path, outside_images=True)
    assert open_row_image(row["image"], "a", decode=True).size == (8, 6)
    assert len(read_sources([str(path)], Options(languages=["it"], outside_images=True))) == 1


def test_a_folder_of_images_that_is_a_link_is_the_folder_it_leads_to(inside):
    (inside.parent / "elsewhere").symlink_to(inside)
    (inside / "p" / "a.png").write_bytes(png())
    path = corpus(inside, {"id": "a", "image": "p/a.png", "en": "x", "it": "y"})
    assert len(read(path, images=inside.parent / "elsewhere")) == 1
    assert len(read(inside.parent / "elsewhere" / path.name)) == 1


def tar(path, *members):
    with tarfile.open(path, "w") as archive:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            if kind == tarfile.REGTYPE:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                info.linkname = content
                archive.addfile(info)


def test_links_in_a_tar_are_the_members_they_lead_to(tmp_path):
    tar(
        tmp_path / "a.tar",
        ("./p/one.png", tarfile.REGTYPE, png()),
        ("p/hard.png", tarfile.LNKTYPE, "./p/one.png"),
        ("p/soft.png", tarfile.SYMTYPE, "hard.png"),
        ("p/out.png", tarfile.SYMTYPE, "/etc/hostname"),
    )
    rows = [{"id": name, "image": f"p/{name}.png", "en": name, "it": name} for name in ("one", "hard", "soft", "out")]
    assert len(read(corpus(tmp_path, *rows[:3]), images=tmp_path / "a.tar")) == 3
    with pytest.raises(ValueError, match="line 1, row out: image .*out.png not found"):
        read(corpus(tmp_path, rows[3]), images=tmp_path / "a.tar")


def shared_name(path):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning):
            archive.writestr("a.png", png())
            archive.writestr("a.png", png("blue"))
    elif path.suffix == ".tar":
        tar(path, ("a.png", tarfile.REGTYPE, png()), ("./a.png", tarfile.REGTYPE, png("blue")))
    else:
        table = {"path": ["a.png", "a.png"], "bytes": [png(), png("blue")]}
        pyarrow.parquet.write_table(pyarrow.table(table), path)


@pytest.mark.parametrize("kind", ["zip", "tar", "parquet"])
def test_an_image_name_of_several_members_is_refused(tmp_path, kind):
    shared_name(tmp_path / f"all.{kind}")
    path = corpus(tmp_path, {"id": "1", "image": "a.png", "en": "x", "it": "y"})
    with pytest.raises(ValueError, match=f"row 1: image .*all.{kind}: several members are named a.png"):
        read(path, images=tmp_path / f"all.{kind}")


def test_a_member_that_would_fill_the_memory_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(80 * 2**20))
    path = corpus(tmp_path, {"id": "1", "image": "a.png", "en": "x", "it": "y"})
    with pytest.raises(ValueError, match=r"row 1: .*a.png unpacks to 83,886,080 bytes from .*images are"):
        read(path, images=tmp_path / "b.zip")


def test_a_translated_corpus_of_an_archive_trains_with_it(tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.png", png())
    path = corpus(tmp_path, {"id": "1", "image": "a.png", "en": "a red dog", "it": "un cane rosso"})
    words = ["--languages", "it", "--translator", "none", "--out", str(tmp_path / "o" / "o.jsonl")]
    (tmp_path / "o").mkdir()
    out = translate.main(["--corpus", str(path), "--images", str(tmp_path / "x.zip"), *words])
    assert f"train with --images {tmp_path / 'x.zip'}" in capsys.readouterr().out
    assert len(read(out, images=tmp_path / "x.zip")) == 1


@pytest.mark.parametrize("content", [b"", b'{"id": "0", "en": "a", "it": "b"}\n', None])
def test_a_corpus_that_shrinks_under_a_stream_ends_it_with_one_line(tmp_path, content):
    path = corpus(tmp_path, *({"id": str(n), "en": f"a {n}", "it": f"b {n}"} for n in range(5)))
    rows = iter(ParallelStream([path], ["it"]))
    next(rows)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="c.jsonl.*(5 rows when .*, [01] now|cannot be read any more)"):
        list(islice(rows, 10))


def test_all_missing_languages_are_named_at_once(tmp_path):
    rows = ({"id": str(n), "en": "a", **{f"a{chr(97 + k)}": "b" for k in range(26)}} for n in range(500))
    path = corpus(tmp_path, *rows)
    many = [f"{a}{b}{c}" for a in map(chr, range(97, 123)) for b in "bcdfghklmn" for c in map(chr, range(97, 123))]
    for take in (load_parallel, lambda path, codes: ParallelStream([path], codes)):
        with pytest.raises(ValueError, match="no row has language 'aba', nor 6,759 others"):
            take(path, many)


@pytest.mark.parametrize("text", [" ", ".", '"', "\n", "1\n", "Q: a\n", "<|image_1", "« ", "a.", "#1"])
def test_a_long_text_ends(text):
    """In seconds of CPU time where quadratic code takes minutes; other work on the machine does not count."""
    long = f"a{text * (60_000 // len(text))}b"

    def stop(*_):
        raise HangError("more than 20 s of CPU time")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, 20)
    try:
        split_text(long), repair("A dog.", long, "it"), join_fields(long, "it", str), pieces(long)
        mask(long), unmask(long, []), [check(long, long, "it") for check in CHECKS.values()]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@pytest.mark.parametrize("value", ["", " ", "\u200b", "\0", True, None, [], {}, 1.5, "a\ud83d", "a\0b"])
def test_an_id_is_a_text_or_a_whole_number(value):
    with pytest.raises(ValueError, match="line 7, id .*: 'id' "):
        parse_row(json.dumps({"id": value, "en": "a", "it": "b"}), 7, ["it"])


@pytest.mark.parametrize("key", ["en", "it", "image"])
@pytest.mark.parametrize("value", ["\u200b", "\0", "\u2060 \ufeff", "a\ud83d", "\udc00", "a\0b"])
def test_a_text_shows_something_and_is_whole(tmp_path, key, value):
    path = corpus(tmp_path, {"id": "1", "en": "a", "it": "b"}, {"id": "x", "en": "a", "it": "b"} | {key: value})
    for take in (read, lambda path: ParallelStream([path], ["it"])):
        with pytest.raises(ValueError, match=f"c.jsonl, line 2, id 'x': (the )?'{key}'"):
            take(path)


def test_a_line_of_deep_brackets_of_endless_digits_or_a_key_twice_is_named(tmp_path):
    for line in ('{"id": ' + "[" * 5000, '{"id": ' + "9" * 5000 + "}", '{"id": "1", "en": "a", "en": "b"}'):
        (tmp_path / "c.jsonl").write_text(line)
        for take in (read, lambda path: read_sources([str(path)], Options(languages=["it"]))):
            with pytest.raises(ValueError, match=r"c.jsonl, line 1: not JSON \("):
                take(tmp_path / "c.jsonl")


def test_gzip_is_read_and_other_packings_and_encodings_are_named(tmp_path):
    text = b'{"id": "1", "en": "a dog", "it": "un cane"}\n'
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(text))
    assert read(tmp_path / "c.jsonl.gz")["it"] == ["un cane"]
    assert read_sources([str(tmp_path / "c.jsonl.gz")], Options(languages=["it"]))[0].english == "a dog"
    for name, data, message in (
        (
            "u.jsonl",
            text.decode().encode("utf-16"),
            "u.jsonl is UTF-16, not UTF-8; .* iconv -f utf-16 ",
        ),
        ("l.jsonl", text.decode().encode("utf-16-le"), "l.jsonl is UTF-16"),
        ("z.jsonl", b"PK\x03\x04rest", "z.jsonl is a zip file, not UTF-8; unpack it"),
        ("cut.gz", gzip.compress(text)[:-6], "cut.gz: a damaged gzip file"),
        (
            "bomb.gz",
            gzip.compress(bytes([32]) * 100 * 2**20, 1),
            "bomb.gz, line 1: unpacks to more than 200 times",
        ),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=message):
            read(tmp_path / name)


def test_an_edit_of_the_same_size_and_time_is_read(tmp_path):
    path = corpus(tmp_path, {"id": "1", "en": "a dog", "it": "cane"})
    stamp = path.stat().st_mtime_ns
    assert read(path)["it"] == ["cane"]
    corpus(tmp_path, {"id": "1", "en": "a dog", "it": "pane"})
    os.utime(path, ns=(stamp, stamp))
    assert read(path)["it"] == ["pane"]


def test_a_column_name_twice_is_refused_and_a_nested_one_is_reached(tmp_path):
    (tmp_path / "a.csv").write_text("id,en,it,it\n1,a,b,c\n")
    with pytest.raises(ValueError, match="a.csv, line 1: columns 3, 4 are all named 'it'"):
        read_sources([str(tmp_path / "a.csv")], Options(languages=["it"]))
    table = pyarrow.table({"translation": [{"en": "a dog", "it": "un cane"}]})
    pyarrow.parquet.write_table(table, tmp_path / "o.parquet")
    options = Options(languages=["it"], columns={"en": "translation.en", "it": "translation.it"})
    (row,) = read_sources([str(tmp_path / "o.parquet")], options)
    assert (row.english, row.translations) == ("a dog", {"it": "un cane"})


def test_a_column_that_is_missing_is_named(model, tmp_path):
    rows = read(corpus(tmp_path, {"id": "1", "en": "a", "it": "b"}))
    with pytest.raises(ValueError, match="the rows have no language 'de', only id, image, en, it"):
        ParallelCollator(model.preprocess, languages=("it", "de"))([rows[0]])
    with pytest.raises(ValueError, match="the rows have no language 'de'"):
        parallel_evaluator(rows, ["de"], model)
    with pytest.raises(ValueError, match="the rows have no column 'image'"):
        ParallelCollator(model.preprocess, languages=("it",))([{"id": "1", "en": "a", "it": "b"}])


def test_a_corpus_is_no_memory(tmp_path):
    path = corpus(tmp_path, {"id": "1", "en": "a", "it": "b"})
    with pytest.raises(ValueError, match="c.jsonl, line 1: no batch of a translation memory .* --corpus"):
        read_memory([path])


def test_terminal_escapes_are_shown_not_obeyed(tmp_path, capsys):
    path = corpus(tmp_path, {"id": "\x1b]0;owned\x07", "image": "\x1b[31m.png", "en": "a", "it": "b"})

    def fail():
        raise ValueError("row \x1b[2J")

    with pytest.raises(ValueError, match=r"not found") as error:
        read(path)
    assert "\x1b" not in str(error.value) and "\\x1b[31m.png" in str(error.value)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        command.run(fail)
    assert capsys.readouterr().err == "error: row \\x1b[2J\n"


def test_the_markdown_report_shows_no_link_and_no_image():
    cell = _cell("![x](http://h/b.png) [c](javascript:a) www.x.org `c` \x1b[31m")
    assert not re.search(r"(?<!\\)\]", cell) and "http:" not in cell and "www." not in cell and "\x1b" not in cell


@pytest.mark.parametrize(
    ("english", "translation", "code"),
    [
        ("a dog named Max", "Maxという名前の犬", "ja"),
        ("a dog named Max", "Max라는 이름의 개", "ko"),
        ("a dog named Max", "一只叫Max的狗", "zh"),
        ("an iPhone15 on a desk", "桌子上的iPhone15手机", "zh"),
        ('a 15" screen and a 17" screen', 'uno schermo da 15" e uno schermo da 17"', "it"),
        ("Where is it? Here.", "Dov'è? Eccolo qui.", "it"),
        ("A dog. It runs fast.", "Un cane, corre veloce.", "it"),
    ],
)
def test_right_translations_are_kept(english, translation, code):
    assert refusal(english, translation, code) is None


def test_inches_go_to_the_translator_and_labels_do_not():
    assert mask('a 15" screen and a 17" screen') == ('a 15" screen and a 17" screen', [])
    assert mask('route 66 "STOP" 5"')[1] == ['"STOP"']


class Tokens:
    """A translator without a model: its languages' tokens."""

    def __init__(self, *codes, only=None):
        self.tokens, self.only, self.name = {code: f"<2{code}>" for code in codes}, only, "t"


@pytest.mark.parametrize(
    ("codes", "asked", "token"),
    [
        (["zh", "iw"], "he", "<2iw>"),
        (["zh_Hant", "zh"], "zh-Hant", "<2zh_Hant>"),
        (["zho_Hans", "zho_Hant"], "zh-Hant", "<2zho_Hant>"),
        (["zh_CN"], "zh", "<2zh_CN>"),
        (["pt"], "pt-BR", "<2pt>"),
        (["zh"], "zh-Hans", "<2zh>"),
        (["zh", "it"], "zh-Hant", None),
        (["zh_CN"], "zh-Hant", None),
        (["sr"], "sr-Latn", None),
    ],
)
def test_a_language_in_another_script_is_refused_and_another_code_of_it_accepted(codes, asked, token):
    if token is not None:
        assert Seq2Seq.token(Tokens(*codes), asked) == token
    else:
        with pytest.raises(ValueError, match=f"does not know language '{asked}'; (nearest|known): "):
            Seq2Seq.token(Tokens(*codes), asked)
    assert Seq2Seq.token(Tokens(only="jap"), "ja") is None


def test_the_source_is_english_whatever_the_tokenizer_was_saved_with():
    class Saved:
        src_lang = "ita_Latn"

        def get_vocab(self):
            return {"ita_Latn": 1, "eng_Latn": 2}

    tokenizer = Saved()
    set_source(tokenizer, "nllb")
    assert tokenizer.src_lang == "eng_Latn"
