"""The images of a corpus: opened once, by one process, and again where something changed."""

import json
import os
import shutil
import threading
import zipfile
from pathlib import Path

import pytest
import torch
from datasets import config, disable_caching, enable_caching
from PIL import Image
from processes import together

from recipes.distill import rows as rows_module
from recipes.distill.options import DistillArguments
from recipes.distill.rows import check_once, load_rows
from recipes.distill.training_arguments import DistillTrainingArguments
from xvlm2vec_st import load_parallel
from xvlm2vec_st.data import image_checks, row_images

COUNT = 12


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """Rows with images, one of them in two rows, and one without; their cache is empty."""
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "images").mkdir()
    for number in range(COUNT):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / "images" / f"{number}.png")
    names = [f"images/{number}.png" for number in range(COUNT)] + [None, "images/3.png"]
    file = tmp_path / "parallel.jsonl"
    lines = [{"id": f"r{n}", "image": name, "en": "dog", "it": "cane"} for n, name in enumerate(names)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture
def opened(monkeypatch):
    """The names of the images that are opened."""
    names = []
    whole = row_images.image_file

    def noting(place):
        names.append(Path(place).name)
        return whole(place)

    monkeypatch.setattr(row_images, "image_file", noting)
    return names


def load(corpus, **options):
    return load_parallel(corpus, ["it"], show_progress=False, **options)


ALL = sorted(f"{number}.png" for number in range(COUNT))


def test_the_second_start_opens_none(corpus, opened):
    load(corpus)
    assert sorted(opened) == ALL, "each once"
    opened.clear()
    load(corpus)
    assert opened == []
    (note,) = (Path(config.HF_DATASETS_CACHE) / "xvlm2vec_images").iterdir()
    assert json.loads(note.read_text())["images"] == COUNT


def test_texts_may_change(corpus, opened):
    load(corpus)
    opened.clear()
    corpus.write_text(corpus.read_text().replace("cane", "gatto"))
    assert load(corpus)["it"][0] == "gatto" and opened == []


def touch_twice(path):
    """Another content, of the same size and with the same time of change."""
    facts, content = path.stat(), path.read_bytes()
    path.write_bytes(content[:-1] + b"?")
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def replace_by_older(path):
    """As `cp -p` and `mv` of another file do."""
    facts, other = path.stat(), path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    other.replace(path)


def move_folder(path):
    """The folder becomes a link to where it was moved; its files are as before."""
    moved = path.parent.with_name("moved")
    path.parent.rename(moved)
    (moved.parent / "images").symlink_to(moved)


@pytest.mark.parametrize("change", [touch_twice, replace_by_older, move_folder])
def test_what_is_replaced_is_opened_again(corpus, opened, change):
    load(corpus)
    opened.clear()
    change(corpus.parent / "images" / "7.png")
    load(corpus)
    assert sorted(opened) == ALL
    opened.clear()
    load(corpus)
    assert opened == []


def damage(path):
    path.write_bytes(b"x" * path.stat().st_size)


def point_outside(path):
    outside = path.parents[2] / f"outside-{path.parents[1].name}.png"
    path.rename(outside)
    path.symlink_to(outside)


BAD = [(Path.unlink, "not found"), (damage, "cannot be read"), (point_outside, "lies outside")]


@pytest.mark.parametrize(("change", "message"), BAD)
@pytest.mark.parametrize("noted", [False, True])
def test_a_bad_image_is_named_by_its_first_row_every_time(corpus, change, message, noted):
    if noted:
        load(corpus)
    for number in (9, 3, 10):
        change(corpus.parent / "images" / f"{number}.png")
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"parallel.jsonl, line 4, row r3: image \S+3.png .*{message}"):
            load(corpus)


def test_an_image_that_was_mended_is_found(corpus):
    image = corpus.parent / "images" / "5.png"
    content = image.read_bytes()
    image.unlink()
    with pytest.raises(ValueError, match="row r5"):
        load(corpus)
    image.write_bytes(content)
    load(corpus)


@pytest.mark.parametrize("batch", [1, 5])
def test_the_first_bad_row_is_named_whichever_thread_finds_one_first(corpus, monkeypatch, batch):
    monkeypatch.setattr(image_checks, "SLICE", batch)
    (corpus.parent / "images" / "2.png").write_bytes(b"no image")
    (corpus.parent / "images" / "11.png").unlink()
    later = threading.Event()
    whole = image_checks.open_row_image

    def late(place, row):
        if row == "r2":
            assert later.wait(20), "no other thread came to a bad image"
        try:
            return whole(place, row)
        finally:
            if row == "r11":
                later.set()

    monkeypatch.setattr(image_checks, "open_row_image", late)
    with pytest.raises(ValueError, match=r"line 3, row r2: image \S+2.png cannot be read"):
        load(corpus)


def test_rows_beyond_one_part_are_opened(corpus, opened, monkeypatch):
    monkeypatch.setattr(image_checks, "PART", 5)
    load(corpus)
    assert sorted(opened) == ALL


def test_another_folder_of_images_is_another_note(corpus, opened):
    load(corpus)
    opened.clear()
    shutil.copytree(corpus.parent, corpus.parent.parent / f"{corpus.parent.name}-copy")
    copy = corpus.parent.parent / f"{corpus.parent.name}-copy"
    load(corpus, images=copy)
    assert sorted(opened) == ALL
    opened.clear()
    load(corpus, images=copy)
    load(corpus)
    assert opened == []


def test_images_that_may_lie_outside_are_checked_when_they_may_not(corpus):
    point_outside(corpus.parent / "images" / "6.png")
    load(corpus, outside_images=True)
    with pytest.raises(ValueError, match="row r6: image .* lies outside"):
        load(corpus)


@pytest.mark.parametrize("name", ["all.zip", "all.parquet"])
def test_a_changed_archive_is_opened_again(corpus, opened, name):
    pack(corpus.parent, name, range(COUNT))
    load(corpus, images=corpus.parent / name)
    assert len(opened) == COUNT
    opened.clear()
    load(corpus, images=corpus.parent / name)
    assert opened == []
    pack(corpus.parent, name, range(COUNT - 1))
    with pytest.raises(ValueError, match="line 12, row r11: image .*11.png not found"):
        load(corpus, images=corpus.parent / name)


def pack(folder, name, numbers):
    files = [folder / "images" / f"{number}.png" for number in numbers]
    if name.endswith(".zip"):
        with zipfile.ZipFile(folder / name, "w") as archive:
            for file in files:
                archive.write(file, f"images/{file.name}")
        return
    import pyarrow
    import pyarrow.parquet

    columns = {"path": [f"images/{file.name}" for file in files], "bytes": [file.read_bytes() for file in files]}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / name, row_group_size=3)


def test_many_threads_read_one_archive_right(corpus, monkeypatch):
    """A parquet reader keeps one row group; a thread that changes it must not give another its image."""
    monkeypatch.setattr(image_checks, "SLICE", 1)
    pack(corpus.parent, "all.parquet", range(COUNT))
    busy, most = [], []
    whole = image_checks.open_row_image

    def counting(place, row):
        busy.append(row)
        most.append(len(busy))
        try:
            return whole(place, row)
        finally:
            busy.remove(row)

    monkeypatch.setattr(image_checks, "open_row_image", counting)
    load(corpus, images=corpus.parent / "all.parquet")
    assert most == [1] * COUNT


def test_a_note_that_is_damaged_is_none(corpus, opened):
    load(corpus)
    (note,) = (Path(config.HF_DATASETS_CACHE) / "xvlm2vec_images").iterdir()
    note.write_bytes(note.read_bytes()[:-5] + b"\xff")
    opened.clear()
    load(corpus)
    assert sorted(opened) == ALL


def test_no_note_without_a_cache(corpus, opened):
    disable_caching()
    try:
        load(corpus)
        assert not (Path(config.HF_DATASETS_CACHE) / "xvlm2vec_images").exists()
    finally:
        enable_caching()


def test_images_need_not_be_checked(corpus, opened):
    (corpus.parent / "images" / "4.png").unlink()
    assert len(load(corpus, check_images=False)) == COUNT + 2 and opened == []


@pytest.mark.parametrize(("rank", "count"), [("0", COUNT), ("1", 0)])
def test_the_launchers_variables_tell_who_is_first(corpus, opened, monkeypatch, rank, count):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("LOCAL_RANK", "0")  # the first process of its machine
    load(corpus)
    assert len(opened) == count


def count_opened(rank, corpus, out):
    """What each of two processes opens: (in the recipe, again, in `load_parallel`); or their error."""
    names, whole = [], row_images.image_file
    row_images.image_file = lambda place: names.append(place) or whole(place)
    training = DistillTrainingArguments(output_dir=out, report_to="none")
    arguments = DistillArguments(student=".", corpus=[str(corpus)], languages=["it"], eval_rows=4)
    try:
        assert training.world_size == torch.distributed.get_world_size() == 2
        counts = []
        for _ in range(2):
            train, held_out = load_rows(arguments, training)
            assert (len(train), len(held_out)) == (COUNT - 2, 4)
            counts.append(len(names))
        if rank == 0:
            shutil.rmtree(Path(config.HF_DATASETS_CACHE) / "xvlm2vec_images")
        torch.distributed.barrier()
        load(corpus)
        return [*counts, len(names)]
    except ValueError as error:
        return str(error)
    finally:
        row_images.image_file = whole


def test_the_first_of_two_processes_opens_the_images(corpus, tmp_path):
    assert together("ddp.yaml", count_opened, corpus, str(tmp_path / "out")) == [[COUNT, COUNT, 2 * COUNT], [0, 0, 0]]


def test_a_bad_image_ends_both_processes_with_one_error(corpus, tmp_path):
    (corpus.parent / "images" / "8.png").unlink()
    first, second = together("ddp.yaml", count_opened, corpus, str(tmp_path / "out"))
    assert first == second
    assert "parallel.jsonl, line 9, row r8: image" in first and "not found" in first


def test_any_failure_is_told_to_the_others(corpus, tmp_path, monkeypatch):
    """One that says nothing too: else they would go on."""
    training = DistillTrainingArguments(output_dir=str(tmp_path / "out"), report_to="none")
    arguments = DistillArguments(student=".", corpus=[str(corpus)], languages=["it"])
    loaded = [(load(corpus, check_images=False), [str(corpus)])]
    check_once(loaded, arguments, training)
    told = []

    def fail(*args, **options):
        raise MemoryError

    monkeypatch.setattr(rows_module, "check_image_files", fail)
    monkeypatch.setattr(rows_module, "broadcast_object_list", told.append)
    monkeypatch.setattr(DistillTrainingArguments, "world_size", 2)
    with pytest.raises(MemoryError):
        check_once(loaded, arguments, training)
    assert told == [["MemoryError"]]


def test_held_out_rows_are_checked_too(corpus, tmp_path):
    held_out = corpus.with_name("held-out.jsonl")
    held_out.write_text('{"id": "h", "image": "images/none.png", "en": "dog", "it": "cane"}\n')
    arguments = {"student": ".", "corpus": [str(corpus)], "languages": ["it"], "eval_corpus": str(held_out)}
    training = DistillTrainingArguments(output_dir=str(tmp_path / "out"), report_to="none")
    for more in ({}, {"stream": True}):
        with pytest.raises(ValueError, match="held-out.jsonl, line 1, row h: image .* not found"):
            load_rows(DistillArguments(**arguments, **more), training)
    rows, _ = load_rows(DistillArguments(**arguments, check_images=False), training)
    assert len(rows) == COUNT + 2
