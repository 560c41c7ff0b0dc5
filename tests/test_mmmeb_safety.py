"""MMMEB's data are not trusted: images stay in their folder, archives have limits, messages obey nobody."""

import csv
import html.parser
import io
import json
import os
import struct
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from mmmeb_tasks.data import download as data
from mmmeb_tasks.data.check import _image_fault, check
from mmmeb_tasks.data.contents import OUTSIDE
from mmmeb_tasks.data.download import unzip
from mmmeb_tasks.data.layout import files, read_rows
from mmmeb_tasks.models.inputs import ModelInput, model_input
from mmmeb_tasks.plugin.cli import table
from recipes.evaluate.command import write_csv
from recipes.evaluate.comparison import Cell, markdown, scores_chart
from recipes.evaluate.queries_page import _Page
from recipes.shared.report import _sheet_html


@pytest.fixture
def root(tmp_path):
    for folder in ("data/datasets", "data/d_images", "private"):
        (tmp_path / folder).mkdir(parents=True)
    Image.new("RGB", (4, 4), "green").save(tmp_path / "private" / "secret.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "data" / "d_images" / "1.png")
    return tmp_path / "data"


def first(root, **changes):
    row = {"id": "a", "img": "1.png", "classes": ["one", "two"]} | changes
    (root / "datasets" / "d_en_9_formatted_c.jsonl").write_text(json.dumps(row) + "\n")
    return next(iter(read_rows(root, "d", "en", 9, "c")))


@pytest.mark.parametrize("way", ["up", "absolute", "link to a file", "link to a folder"])
def test_an_image_lies_in_the_data_folder_unless_it_is_allowed(root, way, monkeypatch):
    secret = root.parent / "private" / "secret.png"
    (root / "d_images" / "link.png").symlink_to(secret)
    (root / "linked").symlink_to(secret.parent)
    name = {
        "up": "d_images/../../private/secret.png",
        "absolute": str(secret),
        "link to a file": "link.png",
        "link to a folder": "linked/secret.png",
    }[way]
    with pytest.raises(ValueError, match=f"line 1: image .* lies outside the data folder, .*{OUTSIDE}=1"):
        first(root, img=name)
    assert first(root).image == root / "d_images" / "1.png"
    monkeypatch.setenv(OUTSIDE, "1")
    assert first(root, img=name).image.samefile(secret)


def test_a_data_folder_behind_a_link_is_the_folder_it_leads_to(root, tmp_path):
    (tmp_path / "link").symlink_to(root)
    assert first(tmp_path / "link").image.is_file()


@pytest.mark.parametrize("value", ["", " ", "\u200b", True, None, [], {}, 1.5, "a\ud83d", "a\0"])
def test_an_id_is_a_text_that_shows_something_or_a_whole_number(root, value):
    with pytest.raises(ValueError, match="d_en_9_formatted_c.jsonl line 1: 'id' "):
        first(root, id=value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[" * 100_000, "the line is nested too deep"),
        ('{"id": "a", "img": "' + "n" * 3000 + '", "classes": ["a"]}', "cannot be looked for|is not at"),
        ('{"id": "a", "img": "1.png", "classes": ["a\\ud83d"]}', "holds half a character"),
    ],
    ids=["brackets", "long name", "half a character"],
)
def test_an_odd_line_is_named(root, line, message):
    (root / "datasets" / "d_en_9_formatted_c.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=f"c.jsonl line 1: .*({message})"):
        next(iter(read_rows(root, "d", "en", 9, "c")))


def test_terminal_escapes_of_rows_are_shown_not_obeyed(root):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        first(root, img="\x1b]0;owned\x07")
    assert "\x1b" not in str(error.value) and "\x07" not in str(error.value)
    _, _, path = next(files(root))
    path.write_text(json.dumps({"id": "\x1b[2J", "img": "\x1b]0;owned\x07", "\x9b31mfield": 1}) + "\n")
    report = str(next(check(root)))
    assert "line 1" in report
    assert not set(report) & {"\x1b", "\x07", "\x9b"}


def archive(folder, entries, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(folder / "images.zip", "w", compression) as out:
        for name, content in entries:
            out.writestr(name, content)
    return folder / "images.zip"


def test_an_archive_of_zeros_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    path = archive(tmp_path, [(f"xm_images/{n}.jpg", bytes(4_000_000)) for n in range(20)])
    with pytest.raises(ValueError, match=r"unpacks to 80,000,000, more than 20 times .*nothing was unpacked"):
        unzip(path, tmp_path / "out")
    monkeypatch.setattr(data, "RATIO", 10**9)
    monkeypatch.setattr(data, "LARGEST", 1_000_000)
    with pytest.raises(ValueError, match=r"'xm_images/0.jpg' of 4,000,000 bytes, at most 1,000,000"):
        unzip(path, tmp_path / "out")
    monkeypatch.setattr(data, "MOST", 19)
    with pytest.raises(ValueError, match="holds 20 entries, at most 19"):
        unzip(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["datasets/d.jsonl", "Datasets/x", "./datasets/x", "datasets"])
def test_an_archive_of_images_does_not_replace_the_rows(tmp_path, name):
    path = archive(tmp_path, [("xm_images/1.jpg", b"x"), (name, b"{}")])
    with pytest.raises(ValueError, match="would replace the rows; nothing was unpacked"):
        unzip(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_entry_that_is_larger_than_its_list_says_is_refused(tmp_path):
    path = archive(tmp_path, [("a.jpg", os.urandom(1000) * 3)], zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    place = content.rindex(b"PK\x01\x02") + 24  # the uncompressed size in the list
    content[place : place + 4] = (100).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(ValueError, match="images.zip"):
        unzip(path, tmp_path)
    assert not (tmp_path / "a.jpg").exists()


@pytest.mark.parametrize("damage", ["stream", "lzma", "file and folder", "twice", "encrypted"])
def test_a_damaged_archive_is_one_error_that_names_it(tmp_path, damage):
    entries = [("a.png", bytes(range(256)) * 9 + b"the red apple " * 200)]
    if damage == "file and folder":
        entries = [("a", b"x"), ("a/b", b"y")]
    if damage == "twice":
        entries = [("a", b"x"), ("./a", b"y")]
    path = archive(tmp_path, entries, zipfile.ZIP_LZMA if damage == "lzma" else zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    if damage in ("stream", "lzma"):
        content[45:75] = b"\xff" * 30
    if damage == "encrypted":
        for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            content[content.index(mark) + place] |= 1
    path.write_bytes(content)
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match=r"images\.zip"):
        unzip(path, tmp_path / "out")


class Tags(html.parser.HTMLParser):
    """Tags and attributes of a page."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found += [(tag, *attr) for attr in attrs] or [(tag, "", "")]


def test_a_page_shows_each_image_as_itself(tmp_path):
    (tmp_path / "images").mkdir()
    page, shown = _Page([], {}, tmp_path), []
    names = ("x/z/1.png", "y/z/1.png", "x/z/a#b?c%20.png", 'x/z/"onerror="a(1)" x=\'.png', "x/z/<b>.png")
    for number, name in enumerate(names):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(file, "PNG")
        ((tag, _, _), (_, attribute, source), *rest) = Tags(page.show({"image": {"path": str(file)}})).found
        assert (tag, attribute) == ("img", "src") and {name for _, name, _ in rest} == {"alt"}
        assert (tmp_path / source).read_bytes() == file.read_bytes()
        shown.append(source)
    assert len(set(shown)) == len(names)
    # Other data under an old name: the page shows the new image.
    Image.new("RGB", (4, 4), "blue").save(tmp_path / names[0])
    again = Tags(page.show({"image": {"path": str(tmp_path / names[0])}})).found[1][2]
    assert (tmp_path / again).read_bytes() == (tmp_path / names[0]).read_bytes()


def test_names_and_texts_are_escaped_on_the_contact_sheet(tmp_path):
    image = tmp_path / '"onerror="alert(1)" x=".png'
    Image.new("RGB", (4, 4)).save(image, "PNG")
    _sheet_html(
        {"en": "<script>alert(1)</script>"},
        {name: {"en": [(image, True)]} for name in ("teacher", "student")},
        tmp_path,
    )
    found = Tags((tmp_path / "contact.html").read_text("utf-8")).found
    assert not [attribute for _, attribute, _ in found if attribute.startswith("on")]
    assert not [tag for tag, _, _ in found if tag == "script"]
    sources = [value for tag, attribute, value in found if (tag, attribute) == ("img", "src")]
    assert len(sources) == 2 and all((tmp_path / source).is_file() for source in sources)


NAME = "_a|b ![x](http://h/x.png) <i> $\\frac$ \x1b[2J\u202e"


def test_a_models_name_is_shown_as_it_is_in_tables_and_the_chart(tmp_path):
    cells = [Cell(NAME, "plain", "T", lang, {"1:a": 1}, {"1:a": "d"}) for lang in ("en", "it")]
    for text in (markdown(cells), table({"T": {"en": 1.0}, "U": {"en": 0.5}}, title=NAME)):
        lines = [line for line in text.splitlines() if "frac" in line]
        assert lines
        for line in lines:
            assert "_a\\|b !\\[x\\](http&#58;//h/x.png) &lt;i&gt; $\\\\frac$ \\\\x1b\\[2J\\\\u202e" in line
    scores_chart(cells, tmp_path / "chart.png")
    with Image.open(tmp_path / "chart.png") as chart:
        assert chart.width > 100


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_a_spreadsheet_computes_nothing(tmp_path, start):
    write_csv(tmp_path / "a.csv", [{"model": f"{start}1+1\x1b", "difference": -0.5}])
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        ((model, difference),) = [*csv.reader(file)][1:]
    assert model.startswith("'") and "\x1b" not in model and difference == "-0.5"


def test_an_image_that_cannot_be_read_is_named_whatever_the_decoder_raises(root, monkeypatch):
    path = root / "d_images" / "1.png"

    def fail(*args, **kwargs):
        raise error

    for error in (RuntimeError("broken \x1b"), struct.error("short"), TypeError("bad tag"), KeyError("x")):
        with monkeypatch.context() as patched:
            patched.setattr("PIL.Image.open", fail)
            assert _image_fault(path) == str(error)
            with pytest.raises(ValueError, match="1.png cannot be read: ") as raised:
                model_input(ModelInput(None, "hash", path))
            assert "\x1b" not in str(raised.value)


@pytest.mark.parametrize("value", ["n" * 100_000, ["x" * 100_000], [[[]] * 1000], {"k" * 100_000: 1}, 7])
@pytest.mark.parametrize("field", ["id", "img", "classes"])
def test_a_message_is_short_however_long_the_value(root, field, value):
    if (field, type(value)) in (("id", int), ("id", str), ("classes", list)):
        value = [value, 1]
    with pytest.raises(ValueError, match="formatted_c.jsonl line 1: ") as raised:
        first(root, **{field: value})
    assert len(str(raised.value)) < 600


def test_the_command_ends_in_a_line_for_a_name_that_is_too_long(capsys):
    from mmmeb_tasks.__main__ import main

    assert main(["check", "n" * 3000]) == 1
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert isinstance(io.StringIO(printed).read(), str) and Path("n").name in printed
