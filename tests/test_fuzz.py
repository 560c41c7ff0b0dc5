"""Malformed input of every reader ends in a result or in one line that names the place; nothing stays.

XVLM2VEC_FUZZ=5000 python -m pytest -m slow tests/test_fuzz.py    # inputs a reader; 1,000 by default
"""

import contextlib
import gzip
import io
import json
import os
import random
import shutil
import struct
import tarfile
import zipfile
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import yaml
from fuzz import HangError, changed_bytes, changed_value, changed_words, leftovers, watched
from PIL import Image

from mmmeb_tasks.__main__ import main as mmmeb_main
from mmmeb_tasks.data.check import check
from mmmeb_tasks.data.layout import LAYOUTS, files, read_rows
from recipes import demo
from recipes.add_language import command as add_language
from recipes.add_language.work import drop_outdated_work
from recipes.distill import options as distill_options
from recipes.distill.parser import parse_arguments
from recipes.evaluate import command as evaluate
from recipes.translate import command as translate
from recipes.translate.sources import Options, read_sources
from recipes.translate.translation_memory import check_run, read_memory
from xvlm2vec_st import load_parallel
from xvlm2vec_st.data.row_images import open_row_image
from xvlm2vec_st.data.stream import ParallelStream
from xvlm2vec_st.utils.folders import Destination

MANY = int(os.environ.get("XVLM2VEC_FUZZ", "1000"))
ROWS = [
    {"id": "a", "image": "one.png", "en": "a dog", "it": "un cane"},
    {"id": "b", "image": None, "en": "two cats", "it": "due gatti"},
    {"id": 3, "en": "a red apple", "it": "una mela rossa"},
]
AUTHORS = [
    {
        "id": "1",
        "text_en": "<|image_1|>\na dog",
        "text_lang": "un cane",
        "img_en": "one.png",
        "img_lang": "one.png",
    },
    {"id": "2", "text_en": "a cat", "text_lang": "un gatto", "img_en": None, "img_lang": None},
]
COCO = {
    "images": [{"id": 1, "file_name": "one.png"}, {"id": 2, "file_name": "one.png"}],
    "annotations": [
        {"id": 1, "image_id": 1, "caption": "A dog."},
        {"id": 2, "image_id": 2, "caption": "A cat."},
    ],
}
TMX = """<?xml version="1.0" encoding="UTF-8"?>
<tmx version="1.4"><header srclang="en"/><body>
<tu><tuv xml:lang="en"><seg>a <ph>x</ph>dog</seg></tuv>
<tuv xml:lang="it"><seg>un <hi>cane</hi></seg></tuv></tu>
<tu><tuv lang="EN-us"><seg>a cat</seg></tuv><tuv lang="it"><seg>un gatto</seg></tuv></tu></body></tmx>
"""
PO = """msgid ""
msgstr "Language: it\\n"

msgid "a dog"
msgstr "un cane"

msgid "one cat"
msgid_plural "%d cats"
msgstr[0] "un gatto"
msgstr[1] "%d gatti"
"""


def jsonl(rows: list[Any]) -> bytes:
    """Lines of JSON."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def mo() -> bytes:
    """A catalogue of gettext's binary kind."""
    pairs = [(b"", b"Language: it\n"), (b"a dog", b"un cane")]
    texts, tables = b"", [[], []]
    for side in (0, 1):
        for pair in pairs:
            tables[side].append((len(pair[side]), 28 + 16 * len(pairs) + len(texts)))
            texts += pair[side] + b"\0"
    table = b"".join(struct.pack("<II", *entry) for side in tables for entry in side)
    return struct.pack("<7I", 0x950412DE, 0, 2, 28, 28 + 16, 0, 28 + 32) + table + texts


def parquet(table: dict[str, list]) -> bytes:
    """A parquet file's bytes."""
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(table), out)
    return out.getvalue()


def png() -> bytes:
    """A small image's bytes."""
    out = io.BytesIO()
    Image.new("RGB", (4, 3), "red").save(out, "PNG")
    return out.getvalue()


def zipped() -> bytes:
    """A zip file of an image."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("one.png", png())
    return out.getvalue()


def tarred() -> bytes:
    """A tar file of an image and a link to it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("one.png")
        info.size = len(png())
        archive.addfile(info, io.BytesIO(png()))
        link = tarfile.TarInfo("two.png")
        link.type, link.linkname = tarfile.LNKTYPE, "one.png"
        archive.addfile(link)
    return out.getvalue()


def sources(path: Path, columns: dict[str, str] | None = None) -> object:
    """The rows of a source as `recipes.translate` reads them."""
    options = Options(languages=["it"], columns=columns or {}, image_output=path.parent / "images")
    return read_sources([str(path)], options)


def stream(path: Path) -> None:
    """A stream's first rows."""
    rows = iter(ParallelStream([path], ["it"], buffer=2))
    for _ in range(3):
        next(rows)


def images_in(path: Path) -> None:
    """A corpus whose image lies in an archive."""
    corpus = path.with_name("corpus.jsonl")
    corpus.write_bytes(jsonl(ROWS[:1]))
    row = ParallelStream([corpus], ["it"], images=path).parse(corpus, 1, jsonl(ROWS[:1]))
    open_row_image(row["image"], row["id"], decode=True)


def mmmeb_file(kind: str) -> Callable[[Path], object]:
    """A reader of MMMEB's rows of a kind."""

    def read(path: Path) -> object:
        target = path.parent / "datasets" / f"mini_en_100_formatted_{kind}.jsonl"
        target.write_bytes(path.read_bytes())
        return list(read_rows(path.parent, "mini", "en", 100, kind))

    return read


def checked(path: Path) -> object:
    """`mmmeb_tasks check` of the first file."""
    _, _, target = next(files(path.parent))
    target.write_bytes(path.read_bytes())
    return str(next(check(path.parent)))


def mmmeb_rows(kind: str) -> list[dict[str, object]]:
    """Rows of a kind as published."""
    layout = LAYOUTS[kind]
    row: dict[str, object] = {"id": "1"}
    row |= {layout.image: "one.png"} if layout.image else {}
    row |= {layout.text: "a dog"} if layout.text else {}
    return [row | {layout.candidates: ["one.png", "one.png"] if layout.images else ["a", "b"]}] * 2


def configuration(path: Path) -> object:
    """A YAML file of options."""
    return parse_arguments(["--config", str(path)], None)


@dataclass
class Reader:
    """What is read, and by what.

    Args:
        name: the file's.
        valid: a good file: bytes, or rows, or one JSON value, of which the values are changed too.
        read: takes the file.
        share: of the number of inputs; less for a reader that takes long.
        places: what a message may name instead of the file.
    """

    name: str
    valid: Any
    read: Callable[[Path], object]
    share: float = 1.0
    places: tuple[str, ...] = ()


def loaded(path: Path) -> object:
    """A corpus as training reads it."""
    return load_parallel(path, ["it"], show_progress=False)


SETTINGS = {"translator": "opus", "corpus it": "a1b2", "beams": 4}


def work_of_a_translation(path: Path) -> object:
    """What `recipes.translate` reads of its unfinished work."""
    return check_run(path.parent, SETTINGS)


def unfinished_work(path: Path) -> object:
    """What every recipe reads of the unfinished work that it finds."""
    out = path.parents[1] / "out"
    work = out.with_name("out.partial")
    work.mkdir(exist_ok=True)
    shutil.copy(path, work)
    drop_outdated_work(work, Namespace(**SETTINGS, overwrite=False, out=out))
    shutil.copy(path, work)
    return Destination(out).check_work()


READERS = {
    "run.json": Reader("run.json", SETTINGS, work_of_a_translation, 1.0, ("was started with other settings",)),
    "arguments.json": Reader("arguments.json", SETTINGS, unfinished_work, 1.0, ("out.partial",)),
    "load_parallel": Reader("corpus.jsonl", ROWS, loaded, 0.25),
    "stream": Reader("corpus.jsonl", ROWS, stream),
    "stream, gzip": Reader("corpus.jsonl", gzip.compress(jsonl(ROWS), mtime=0), stream),
    "source, ours": Reader("corpus.jsonl", ROWS, sources),
    "source, authors": Reader("corpus.jsonl", AUTHORS, sources),
    "source, columns": Reader(
        "corpus.jsonl",
        [{"key": 1, "t": {"en": "a dog", "it": "un cane"}, "file": "one.png"}],
        lambda path: sources(path, {"en": "t.en", "it": "t.it", "image": "file", "id": "key"}),
    ),
    "source, COCO": Reader("captions.json", COCO, sources),
    "source, CSV": Reader("rows.csv", b'id,en,it,image\n1,"a dog",un cane,one.png\n2,a cat,un gatto,\n', sources),
    "source, TSV": Reader("rows.tsv", b"id\ten\tit\n1\ta dog\tun cane\n2\ta cat\tun gatto\n", sources),
    "source, po": Reader("it.po", PO.encode(), sources),
    "source, mo": Reader("it.mo", mo(), sources),
    "source, TMX": Reader("memory.tmx", TMX.encode(), sources),
    "source, Moses": Reader("news.en", b"a dog\na cat\n", sources),
    "source, parquet": Reader(
        "rows.parquet",
        parquet({"id": ["1"], "en": ["a dog"], "it": ["un cane"], "image": [{"path": "x.html", "bytes": png()}]}),
        sources,
    ),
    "memory": Reader("shard-1-of-1.jsonl", [{"to": "it", "texts": [["dog", "cane"]]}], lambda p: read_memory([p])),
    "zip": Reader("all.zip", zipped(), images_in),
    "tar": Reader("all.tar", tarred(), images_in),
    "parquet": Reader("all.parquet", parquet({"path": ["one.png"], "bytes": [png()]}), images_in),
    "YAML": Reader(
        "run.yaml",
        yaml.safe_dump(
            {"student": "m", "corpus": ["c"], "languages": ["it"], "output_dir": "o", "max_steps": 3}
        ).encode(),
        configuration,
        0.5,
        ("--", "argument"),
    ),
    "check": Reader("rows.jsonl", mmmeb_rows("i2t"), checked, 0.5, ("datasets", "line")),
    **{
        f"MMMEB, {kind}": Reader("rows.jsonl", mmmeb_rows(kind), mmmeb_file(kind), 0.5, (f"_{kind}.jsonl",))
        for kind in LAYOUTS
    },
}


def inputs(reader: Reader, count: int, seed: str) -> list[bytes]:
    """Changed files."""
    rng = random.Random(seed)
    if isinstance(reader.valid, bytes):
        return [changed_bytes(rng, reader.valid) for _ in range(count)]
    found = []
    for _ in range(count):
        whole = isinstance(reader.valid, dict)
        if rng.random() < 0.3:
            data = json.dumps(reader.valid).encode() if whole else jsonl(reader.valid)
            found.append(changed_bytes(rng, data))
        else:
            value = changed_value(rng, reader.valid)
            found.append(jsonl(value) if isinstance(value, list) and not whole else json.dumps(value).encode())
    return found


def valid(reader: Reader) -> bytes:
    """The good file."""
    if isinstance(reader.valid, bytes):
        return reader.valid
    return jsonl(reader.valid) if isinstance(reader.valid, list) else json.dumps(reader.valid).encode()


def fuzz(name: str, folder: Path, count: int) -> None:
    """Read changed files, and collect what is wrong."""
    reader = READERS[name]
    (folder / "datasets").mkdir()
    for images in (folder, folder / "mini_images", folder / "xm_images"):
        images.mkdir(parents=True, exist_ok=True)
        (images / "one.png").write_bytes(png())
    (folder / "news.it").write_text("un cane\nun gatto\n")
    path = folder / reader.name
    path.write_bytes(valid(reader))
    reader.read(path)
    wrong: dict[str, bytes] = {}
    refused = 0
    for data in inputs(reader, max(1, round(count * reader.share)), name):
        path.write_bytes(data)
        try:
            with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                refused += watched(lambda: reader.read(path), (reader.name, *reader.places))
        except (AssertionError, HangError) as error:
            wrong.setdefault(str(error)[:90], data)
    left = leftovers(folder, {reader.name})
    assert not wrong, "\n".join(f"{error}: {data[:400]!r}" for error, data in wrong.items())
    assert not left
    assert refused or name == "check", "the inputs are too good"  # `check` reports what it finds


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    datasets.disable_progress_bars()
    yield tmp_path / "data"
    datasets.enable_progress_bars()


@pytest.mark.parametrize("name", READERS)
def test_a_malformed_file_ends_in_a_line_that_names_it(name, folder):
    fuzz(name, folder, 300)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_thousands_of_malformed_files_end_in_lines_that_name_them(name, folder):
    fuzz(name, folder, MANY)


PROGRAMS = {
    "distill": (lambda words: parse_arguments(words, None), distill_options),
    "translate": (translate.parse_args, translate),
    "evaluate": (evaluate.parse_args, evaluate),
    "demo": (demo.parse_args, demo),
    "add_language": (add_language.parse_args, add_language),
    "mmmeb_tasks": (lambda words: mmmeb_main(["check", *words]), None),
}


def options_of(program: str) -> list[str]:
    """The options that a program's help names."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        PROGRAMS[program][0](["--help"])
    return sorted({word.strip("[],") for word in out.getvalue().split() if word.strip("[],").startswith("--")})


def command_lines(program: str, folder: Path, count: int) -> None:
    """Parse changed command lines, and collect what is wrong."""
    rng, options, wrong = random.Random(program), options_of(program), {}
    assert len(options) > 1
    for _ in range(count):
        words = changed_words(rng, options)
        try:
            with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                watched(lambda words=words: PROGRAMS[program][0](words), "")
        except (AssertionError, HangError) as error:
            wrong.setdefault(str(error)[:90], words)
    assert not wrong, wrong
    assert not list(folder.iterdir())


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_malformed_command_line_ends_in_a_line(program, folder, monkeypatch):
    monkeypatch.chdir(folder)
    command_lines(program, folder, 300)


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_thousands_of_malformed_command_lines_end_in_lines(program, folder, monkeypatch):
    monkeypatch.chdir(folder)
    command_lines(program, folder, MANY)
