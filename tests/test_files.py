"""The published layout: names of files and images, fields, and every way a line can be wrong."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmmeb_tasks.data.contents import image_path
from mmmeb_tasks.data.layout import KINDS, LAYOUTS, BenchmarkRow, Kind, data_file, read_rows

GOOD: dict[Kind, dict[str, object]] = {
    "i2t": {"id": "a", "img": "1", "captions": ["one", "two"]},
    "t2i": {"id": "a", "text": "one", "images": ["1", "2.png"]},
    "vqa": {"id": 7, "img": "crops/3", "question": "what?", "answers": ["this"]},
    "vg": {"id": "a", "img": "1.jpg", "text": "one", "imgs": ["crops/3.jpg", "1"]},
    "c": {"id": "a", "img": "1", "classes": ["one", "two"]},
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root with three images and no rows."""
    for name in ("d_images/1.jpg", "d_images/2.png", "crops/3.jpg", "datasets/x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def rows(root: Path, kind: Kind, *lines: object) -> Iterator[BenchmarkRow]:
    """Rows of a file with these lines; a string is a line as it is."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    data_file(root, "d", "en", 9, kind).write_text("\n".join(texts) + "\n")
    return read_rows(root, "d", "en", 9, kind)


def test_every_kind_is_read_and_the_gold_is_the_first_candidate(root: Path) -> None:
    read = {kind: next(rows(root, kind, GOOD[kind])) for kind in KINDS}
    one, two, crop = root / "d_images/1.jpg", root / "d_images/2.png", root / "crops/3.jpg"
    assert read["i2t"] == BenchmarkRow(1, "a", one, None, ("one", "two"))
    assert read["t2i"] == BenchmarkRow(1, "a", None, "one", (one, two))
    assert read["vqa"] == BenchmarkRow(1, "7", crop, "what?", ("this",))
    assert read["vg"] == BenchmarkRow(1, "a", one, "one", (crop, one))
    assert read["c"] == BenchmarkRow(1, "a", one, None, ("one", "two"))


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("crops/3.png", "r/crops/3.png"),
        ("crops/3", "r/crops/3.jpg"),
        ("3", "r/d_images/3.jpg"),
        ("3.png", "r/d_images/3.png"),
    ],
)
def test_image_names(name: str, path: str) -> None:
    assert image_path(Path("r"), "d", name) == Path(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_null_query_leaves_the_row_out(root: Path, kind: Kind) -> None:
    fields = [field for field in (LAYOUTS[kind].image, LAYOUTS[kind].text) if field]
    lines = [GOOD[kind] | {field: None} for field in fields]
    assert [row.line for row in rows(root, kind, *lines, GOOD[kind])] == [len(fields) + 1]


def test_lines_are_read_lazily(root: Path) -> None:
    read = rows(root, "c", GOOD["c"], "no JSON")
    assert next(read).line == 1
    with pytest.raises(ValueError, match="line 2"):
        next(read)


@pytest.mark.parametrize(
    ("kind", "line", "message"),
    [
        ("c", '{"id": 1, "img": "1", "cla', "line 1: .* is not JSON"),
        ("c", "", "line 1: '' is not JSON"),
        ("c", "[1]", r"line 1: expected a JSON object, got \[1\]"),
        ("c", {"id": 1, "img": "1"}, "no field 'classes'; it has id, img, needs id, img, classes"),
        ("vg", {"img": "1", "text": "x", "imgs": ["1"]}, "no field 'id'"),
        ("c", GOOD["c"] | {"classes": []}, r"'classes' is \[\]; needs a list, the gold first"),
        ("c", GOOD["c"] | {"classes": "one"}, "'classes' is 'one'; needs a list"),
        ("c", GOOD["c"] | {"classes": ["one", None]}, "'classes' holds None; needs strings"),
        ("c", GOOD["c"] | {"img": 1}, "'img' is 1; needs a string, or null"),
        ("vqa", GOOD["vqa"] | {"question": ["x"]}, "'question' is .*; needs a string"),
        ("c", GOOD["c"] | {"img": "8"}, "image '8' is not at .*d_images/8.jpg"),
        ("t2i", GOOD["t2i"] | {"images": ["1", "q/8"]}, "image 'q/8' is not at .*q/8.jpg"),
    ],
    ids=[
        "cut in half",
        "empty line",
        "no object",
        "no candidates field",
        "no id",
        "no candidates",
        "candidates are no list",
        "null candidate",
        "image name is no string",
        "question is no string",
        "missing query image",
        "missing candidate image",
    ],
)
def test_a_bad_line_names_file_line_and_value(root: Path, kind: Kind, line: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"d_en_9_formatted_{kind}.jsonl line 1: ") as error:
        list(rows(root, kind, line))
    assert error.match(message)


def test_bytes_that_are_no_text_name_the_line(root: Path) -> None:
    data_file(root, "d", "en", 9, "c").write_bytes(b"\xff\xfe\xfa\n")
    with pytest.raises(ValueError, match="line 1: .* is not JSON"):
        list(read_rows(root, "d", "en", 9, "c"))


def test_a_missing_file_is_named_with_those_that_are_there(root: Path) -> None:
    rows(root, "c", GOOD["c"])
    with pytest.raises(ValueError, match="no file .*d_fr_9_formatted_c.jsonl; .*d_en_9_"):
        read_rows(root, "d", "fr", 9, "c")


def test_an_unknown_kind_names_the_known_ones(root: Path) -> None:
    with pytest.raises(ValueError, match="unknown kind 'i2i'; MMMEB has i2t, t2i, vqa, vg, c"):
        read_rows(root, "d", "en", 9, "i2i")  # type: ignore[arg-type]
