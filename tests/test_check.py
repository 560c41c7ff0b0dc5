"""The checker: a whole folder is whole, and each way to be wrong is found, counted and shown."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from toys import CANDIDATES, CONCEPTS, write_published

from mmmeb_tasks.__main__ import main
from mmmeb_tasks.data import check as check_module
from mmmeb_tasks.data import layout as published
from mmmeb_tasks.data.check import Report, check

FILE = "maxm_v1_en_100_formatted_vqa.jsonl"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The published layout in small, and a table that expects as much."""
    table = [replace(row, queries=(CONCEPTS, CONCEPTS), candidates=(CANDIDATES, CANDIDATES)) for row in published.TASKS]
    monkeypatch.setattr(published, "TASKS", tuple(table))
    return write_published(tmp_path / "data")


def report(data: Path, **kwargs: bool) -> Report:
    """What is found in the file that was changed; the others are whole."""
    reports = {r.path.name: r for r in check(data, **kwargs)}
    assert len(reports) == 29
    assert not [r for name, r in reports.items() if r.findings and name != FILE]
    return reports[FILE]


def change(data: Path, number: int = 3, **fields: object) -> None:
    """Change fields of one line of the file."""
    path = data / "datasets" / FILE
    lines = path.read_text().splitlines()
    lines[number] = json.dumps(json.loads(lines[number]) | fields)
    path.write_text("\n".join(lines) + "\n")


def test_a_whole_folder_is_whole(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(data)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 30 and printed[-1] == "all files are as published"
    assert f"ok    {FILE}: 12 queries, 6 candidates" in printed


def test_the_published_counts_are_compared(tmp_path: Path) -> None:
    found = {r.path.name: r for r in check(write_published(tmp_path / "data"))}
    xm = found["xm_de_1000_formatted_t2i.jsonl"].findings
    assert xm["not the published number of queries"] == ["12, published: 3600"]
    assert xm["not the published number of candidates a query"] == ["6, published: 1000"]
    label = found["imagenet-1k-val_it_1000_formatted_c.jsonl"].findings
    assert label["not the published number of candidates a query"] == ["6, published: 627 to 632"]
    assert not found["flickr30k_entities_fr_1000_formatted_vg.jsonl"].findings  # at most 1,000


@pytest.mark.parametrize(
    ("fields", "finding", "where"),
    [
        ({"answers": []}, "candidates without gold", "line 4"),
        ({"answers": [" ", "a", "b", "c", "d", "e"]}, "candidates without gold", "first candidate is ' '"),
        ({"answers": list("abcdee")}, "repeated candidates", "line 4: 'e'"),
        ({"answers": list("abcdea")}, "the gold stands among the others, too", "line 4: 'a'"),
        ({"answers": ["a"]}, "candidates without a wrong one", "line 4"),
        ({"answers": ["a"]}, "not the published number of candidates a query", "1 to 6, published: 6"),
        ({"img": "99"}, "missing images", "image '99' is not at"),
        ({"id": "q5"}, "repeated ids", "'q5' 2 times"),
        ({"question": 7}, "unreadable lines", "needs a string"),
    ],
)
def test_a_broken_rule_is_reported(data: Path, fields: dict[str, object], finding: str, where: str) -> None:
    change(data, **fields)
    found = report(data).findings
    assert where in found[finding][0] and len(found[finding]) == 1


def test_a_line_cut_in_half_is_reported(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = data / "datasets" / FILE
    path.write_bytes(path.read_bytes()[:-40])
    found = report(data).findings
    assert "line 12" in found["unreadable lines"][0] and "is not JSON" in found["unreadable lines"][0]
    assert found["not the published number of queries"] == ["11, published: 12"]
    assert main(["check", str(data)]) == 1
    assert "1 files are not as published" in capsys.readouterr().out


def test_an_invalid_image_is_reported_if_images_are_opened(data: Path) -> None:
    (data / "maxm_v1_images" / "3.jpg").write_text("no image")
    reports = [r for r in check(data) if r.findings]
    assert [r.path.name for r in reports] == [FILE]  # opened once, reported where it comes first
    assert "cannot identify image" in reports[0].findings["images that cannot be read"][0]
    assert not report(data, images=False).findings


def test_an_image_that_is_too_large_is_reported(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow refuses twice as many
    Image.new("RGB", (20, 20)).save(data / "maxm_v1_images" / "3.jpg", "PNG")
    reports = [r for r in check(data) if r.findings]
    found = reports[0].findings["images that cannot be read"]
    assert [r.path.name for r in reports] == [FILE] and "3.jpg" in found[0] and "exceeds limit" in found[0]


def test_null_rows_are_counted_and_no_fault(data: Path) -> None:
    change(data, question=None)
    found = report(data)
    assert (found.queries, found.skipped, found.findings) == (11, 1, {})
    assert "1 null rows skipped" in str(found)


def test_a_file_without_rows_and_a_missing_one_are_reported(data: Path) -> None:
    (data / "datasets" / FILE).write_text("")
    assert "no row with a query" in report(data).findings
    (data / "datasets" / FILE).unlink()
    assert "no such file" in report(data).findings


def test_many_places_are_counted_and_the_first_shown() -> None:
    found = Report("T", Path("f.jsonl"))
    for number in range(9):
        found.add("missing images", f"line {number}")
    assert "missing images (9): line 0; line 1; line 2 and 6 more" in str(found)
    assert str(found).startswith("WRONG f.jsonl")


def test_a_missing_folder_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path / "none")]) == 1
    assert "is not a folder" in capsys.readouterr().err
    assert check_module.SHOWN == 3
