"""Rows that are parsed together are those that are parsed one by one; what the cache holds of them."""

import codecs
import gzip
import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
from datasets import Dataset, Features, Value

from xvlm2vec_st import load_parallel
from xvlm2vec_st.data import row_cache
from xvlm2vec_st.data.corpus import BLOCK, ParallelRow, iter_lines, parse_good_lines, parse_line, read_parallel
from xvlm2vec_st.data.dataset import ROWS, image_places
from xvlm2vec_st.images.paths import image_place

CODES = ["it", "de"]
GOOD = {"id": "x", "image": "a/1.png", "en": "a dog", "it": "un cane", "de": "ein Hund"}
# Lines that a quick look may take for others than they are. `{n}` is the row's number.
GOOD_LINES = [
    '{"id": {n}, "en": "a number as id"}',
    '  {"id": "{n}", "en": "white space around"}\t \r',
    '{"id": "{n}", "image": null, "en": "null", "it": null}',
    '{"id": "{n}", "en": "\\u0061 \\ud83d\\ude00 escaped"}',
    '{"id": "{n}", "en": "\\"quoted\\" \\\\ \\n lines \\n"}',
    '{"id": "{n}", "en": "¿…"}',
    '{"id": "{n}", "en": "…", "it": "¡"}',
    '{"id": "{n}", "en": "\u1160a", "it": "filler and letter"}',
    '{"id": "{n}", "en": "unused", "x": [1, {"y": NaN, "z": -Infinity}], "w": "\\ud800", "v": "<image>"}',
    '{"id": "{n}", "image": "<image>.png", "en": "the name of an image is no text"}',
    '{"id": "{n}", "en": "a < b", "it": "x <image"}',
    '{"id": "{n}", "en": "a\u2028b \u0085 c\u000bd"}'.replace("\u000b", "\\u000b"),
]
BAD_LINES = [
    "{",
    "[]",
    "7",
    '{"id": "{n}", "en": "a"} {"id": "b", "en": "b"}',
    '{"id": "{n}", "en": "a"},',
    '{"id": "{n}", "en": "a", "en": "b"}',
    '{"id": "{n}", "en": "a", "x": {"y": 1, "y": 2}}',
    '{"id": "{n}", "en": "a \\"b\\" c", "x": 1, "x": null}',
    '{"id": "{n}", "en": "a", "x": ["\\\\"], "x": "\\u0022"}',
    '{"id": "{n}", "en": "a\tb"}',
    '{"id": "{n}", "en": "\\ud800"}',
    '{"id": "{n}", "en": "a", "it": "\\udc00 b"}',
    '{"id": "{n}", "en": "a\\u0000b"}',
    '{"id": "a\\u0000{n}", "en": "a"}',
    '{"id": "\\u0000", "image": "b", "en": "a"}',
    '{"id": "{n}", "en": ""}',
    '{"id": "{n}", "en": " \\u200b\\t"}',
    '{"id": "{n}", "en": "\u3164"}',
    '{"id": "{n}", "en": "a", "it": "\u2800"}',
    '{"id": "{n}", "image": "", "en": "a"}',
    '{"id": "{n}", "image": 0, "en": "a"}',
    '{"id": "{n}", "image": false, "en": "a"}',
    '{"id": "", "en": "a"}',
    '{"id": null, "en": "a"}',
    '{"id": true, "en": "a"}',
    '{"id": 1.0, "en": "a"}',
    '{"id": "{n}", "en": 1}',
    '{"id": "{n}", "en": ["a"]}',
    '{"id": "{n}", "it": "a"}',
    '{"id": "{n}", "en": "a", "it": 0}',
    '{"id": "{n}", "en": "a <|image_12|> b"}',
    '{"id": "{n}", "en": "a", "it": "\\u003cimage>"}',
    '{"id": ' + "9" * 5000 + ', "en": "a"}',
    '{"id": "{n}", "en": "a", "x": ' + "[" * 100_000 + "}",
    '\ufeff{"id": "{n}", "en": "a"}',
]
RAW = [b'{"id": "r", "en": "a\xff"}', b'{"id": "r", "en": "\xed\xa0\x80"}', b'{"id": "r", "en": "a", "x": "\xc3"}']


def filled(line: str, number: int) -> bytes:
    return line.replace("{n}", str(number)).encode("utf-8", "surrogatepass")


def one_by_one(path: Path) -> Iterator[ParallelRow]:
    """What `read_parallel` gave before it took lines together."""
    for number, line in iter_lines(path):
        yield parse_line(path, number, line, CODES)


def outcome(rows: Iterator[ParallelRow]) -> tuple[list[ParallelRow], str]:
    """(the rows before an error, the error)."""
    read: list[ParallelRow] = []
    try:
        for row in rows:
            read.append(row)
    except ValueError as error:
        return read, f"{type(error).__name__}: {error}"
    return read, "no error"


def good_lines(count: int) -> list[bytes]:
    return [json.dumps({**GOOD, "id": f"row {n}"}, ensure_ascii=n % 2 == 0).encode() for n in range(count)]


@pytest.mark.parametrize("line", GOOD_LINES)
def test_odd_lines_that_are_good(tmp_path: Path, line: str) -> None:
    lines = good_lines(2 * BLOCK)
    lines[BLOCK + 7] = filled(line, 5)
    path = tmp_path / "c.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n\n")
    rows, error = outcome(read_parallel(path, CODES))
    assert (rows, error) == outcome(one_by_one(path)) and error == "no error" and len(rows) == 2 * BLOCK


@pytest.mark.parametrize("line", [*map(filled, BAD_LINES, [5] * len(BAD_LINES)), *RAW])
@pytest.mark.parametrize("place", [0, BLOCK + 7])
def test_a_bad_line_has_the_error_that_it_has_alone_after_the_rows_before_it(
    tmp_path: Path, line: bytes, place: int
) -> None:
    lines = good_lines(2 * BLOCK)
    lines[place] = line
    path = tmp_path / "c.jsonl"
    path.write_bytes(b"\n".join(lines))
    rows, error = outcome(read_parallel(path, CODES))
    assert (rows, error) == outcome(one_by_one(path))
    if place or not line.startswith(codecs.BOM_UTF8):
        assert error.startswith("ValueError") and len(rows) == place
    assert parse_good_lines([line], CODES) is None


def test_good_lines_are_parsed_together() -> None:
    """Else the comparisons above would compare a thing with itself."""
    assert parse_good_lines([line + b"\n" for line in good_lines(BLOCK)], CODES) == [
        ParallelRow(f"row {n}", "a/1.png", "a dog", {"it": "un cane", "de": "ein Hund"}) for n in range(BLOCK)
    ]
    assert parse_good_lines([b'{"id": 7, "en": "a", "it": null}'], ["en", "it"]) == [ParallelRow("7", None, "a", {})]


def test_two_lines_do_not_make_up_for_each_other() -> None:
    torn = [b'{"id": "a", "en": "a", "x": [{}\n', b"{}]}\n", b'{"id": "b", "en": "b"},{"id": "c", "en": "c"}\n']
    assert parse_good_lines(torn, CODES) is None


def test_lines_of_random_parts(tmp_path: Path) -> None:
    rng = random.Random(0)
    parts = ['"id"', '"en"', '"it"', ":", ",", "{", "}", "null", '"a"', '""', "7", "[", "]", " ", "\\", '"', "\n"]
    seen = set()
    path = tmp_path / "c.jsonl"
    for _ in range(400):
        line = "".join(rng.choices(parts, k=rng.randint(1, 6)))
        whole = [
            '{"id": "z", "en": "b"}',
            '{"id": 1, "en": "a"' + (f', "it": {line}' if rng.random() < 0.5 else line) + "}",
        ]
        path.write_text("\n".join(whole[:: rng.choice((1, -1))]))
        found = outcome(read_parallel(path, CODES))
        assert found == outcome(one_by_one(path)), whole
        seen.add(found[1].split(":")[0])
    assert seen == {"no error", "ValueError"}


def test_a_damaged_end_comes_after_the_rows_and_errors_before_it(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    packed = gzip.compress(b"\n".join(good_lines(BLOCK // 2)) + b"\n" + os.urandom(50_000).hex().encode())
    path.write_bytes(packed[:-20])
    rows, error = outcome(read_parallel(path, CODES))
    assert len(rows) == BLOCK // 2 and "damaged gzip" in error
    packed = gzip.compress(
        b"\n".join([*good_lines(3), b"{", *good_lines(3)]) + b"\n" + os.urandom(50_000).hex().encode()
    )
    path.write_bytes(packed[:-20])
    rows, error = outcome(read_parallel(path, CODES))
    assert len(rows) == 3 and "line 4: not JSON" in error


def test_the_dataset_is_that_of_rows_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    lines = good_lines(ROWS + 5) + [filled(line, n) for n, line in enumerate(GOOD_LINES)]
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    paths[0].write_bytes(b"\n".join(lines))
    paths[1].write_bytes(b'{"id": "last", "image": "/abs//x.png", "en": "e"}')
    features = Features({name: Value("string") for name in ("id", "image", "en", *CODES)})

    def rows() -> Iterator[dict]:
        for path in paths:
            for row in one_by_one(path):
                image = None if row.image is None else image_place(row.image, path.parent)
                yield {"id": row.id, "image": image, "en": row.english, **dict.fromkeys(CODES), **row.translations}

    plain = Dataset.from_generator(rows, features=features, cache_dir=str(tmp_path / "plain"))
    ours = load_parallel(paths, CODES, check_images=False, show_progress=False)
    assert ours.features == plain.features and len(ours) == ROWS + 5 + len(GOOD_LINES) + 1
    assert ours.data.table.equals(plain.data.table) and ours.data.table.schema == plain.data.table.schema
    assert ours.split == plain.split and ours.column_names == plain.column_names


@pytest.mark.parametrize("root", [Path("/c"), Path("/"), Path("."), Path("a.zip"), "b/", "x.tar"])
def test_places_of_images_are_pathlibs(root: str | Path) -> None:
    names = [
        "1.png",
        "a/1.png",
        "a//1.png",
        "./1.png",
        "a/./b",
        "a/../b",
        "/x/1.png",
        "a/",
        "a b/ü.png",
        ".hidden",
        "x",
    ]
    names += ["a/.b/c", "a.b/c", "a\\b", "c:x", "a\nb", "~/x", "...", "a/...", "//x"]
    assert image_places(names, root) == {name: image_place(name, root) for name in names}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(row_cache, "_open", {})
    return tmp_path / "cache" / row_cache.NAME


def write(path: Path, *texts: str) -> Path:
    path.write_text("".join(json.dumps({"id": n, "en": t, "it": t, "de": t}) + "\n" for n, t in enumerate(texts)))
    return path


def leave() -> None:
    """What the end of a process does."""
    while row_cache._open:
        os.close(row_cache._open.popitem()[1])


def test_a_replaced_version_of_a_corpus_is_deleted_when_nobody_has_it_open(tmp_path: Path, cache: Path) -> None:
    path, other = write(tmp_path / "c.jsonl", "a"), write(tmp_path / "other.jsonl", "b")
    for codes in (["it"], ["de"]):
        load_parallel(path, codes, show_progress=False)
    load_parallel(other, ["it"], show_progress=False)
    old = load_parallel(path, ["it"], show_progress=False)
    assert len(list(cache.iterdir())) == 3
    write(path, "a", "c")
    assert load_parallel(path, ["it"], show_progress=False)["en"][:] == ["a", "c"]
    assert len(list(cache.iterdir())) == 4 and old["en"][:] == ["a"]  # an open run may open its older rows again
    leave()
    write(path, "d")
    assert load_parallel(path, ["it"], show_progress=False)["en"][:] == ["d"]
    assert len(list(cache.iterdir())) == 2 and len(list(cache.parent.glob("*.lock"))) == 2
    assert load_parallel(other, ["it"], show_progress=False)["en"][:] == ["b"]
    leave()


def test_rows_come_from_the_cache_until_it_is_deleted(tmp_path: Path, cache: Path, capsys) -> None:
    path = write(tmp_path / "c.jsonl", "a")
    seen = []
    for _ in range(3):
        load_parallel(path, ["it"])
        seen.append("reading c.jsonl" in capsys.readouterr().err)
    shutil.rmtree(cache)
    assert load_parallel(path, ["it"], show_progress=False)["it"][:] == ["a"]
    assert seen == [True, False, False] and len(row_cache._open) == 2
    leave()


def test_a_bad_corpus_leaves_no_rows(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "c.jsonl", "a")
    path.write_text(path.read_text() + "{\n")
    for _ in range(2):
        with pytest.raises(ValueError, match="line 2: not JSON"):
            load_parallel(path, ["it"], show_progress=False)
    assert not [*cache.rglob("*.arrow")]
    leave()


def test_a_folder_that_cannot_be_deleted_stays(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "c.jsonl", "a")
    load_parallel(path, ["it"], show_progress=False)
    leave()

    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(row_cache, "remove", refuse)
    write(path, "b")
    assert load_parallel(path, ["it"], show_progress=False)["it"][:] == ["b"]
    assert len(list(cache.iterdir())) == 2
    leave()
