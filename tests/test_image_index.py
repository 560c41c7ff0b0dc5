"""An index follows its folder of images: what is new is embedded, and nothing else."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from datetime import date, datetime
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

pytest.importorskip("lancedb", reason='needs pip install "xvlm2vec-st[search]"')

from photos import DIM, SPACE, Toy, empty_index, photo, pixels, rows, write_photos

from mmmeb_tasks.mini import TEACHER
from recipes.image_search import indexing, reading, store, tables
from recipes.image_search.indexing import build_index, update
from recipes.image_search.options import parse_index_args
from recipes.image_search.reading import read_ahead, read_photo, small_jpeg
from recipes.image_search.scan import FileState, Problem, find_files
from recipes.image_search.store import ImageIndex, table_schema

ROOT = Path(__file__).parents[1]
PATIENCE = 600  # seconds
# `index` in a process of its own, with small transactions, so that a kill falls between some.
CHILD = """\
import sys
sys.path[:0] = [{tests!r}, {root!r}]
import photos
from recipes.image_search import indexing
from recipes.image_search.options import parse_index_args
indexing.ROWS_AT_ONCE = {rows_at_once}
if {toy}:
    indexing.load_index_model = lambda *args, **kwargs: (photos.Toy(seconds=0.02), photos.SPACE)
indexing.build_index(parse_index_args({argv!r}))
"""


def words(images, out, *more):
    return [str(images), "--model", str(TEACHER), "--out", str(out), "--batch-size", "8", *more]


@pytest.fixture
def toy(monkeypatch):
    """`index` loads the toy instead of a model."""
    model = Toy()
    monkeypatch.setattr(indexing, "load_index_model", lambda *args, **kwargs: (model, SPACE))
    return model


def killed_while_indexing(images, out, rows_at_once, is_toy):
    """(rows that a killed run has left, what a second run was told meanwhile)."""
    argv = words(images, out)
    code = CHILD.format(tests=str(ROOT / "tests"), root=str(ROOT), rows_at_once=rows_at_once, toy=is_toy, argv=argv)
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    wanted = random.randint(1, len(find_files(images)[0]) * 2 // 3)
    until = time.monotonic() + PATIENCE
    try:
        while (table := tables.find_table(out)) is None or table.count_rows() < wanted:
            assert child.poll() is None, child.stderr.read().decode()[-2000:]
            assert time.monotonic() < until, "it hangs"
            time.sleep(0.01)
        with pytest.raises(ValueError) as refused:
            build_index(parse_index_args(argv))
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stderr.close()
    return len(ImageIndex.open(out)), str(refused.value)


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_kill_resume_add_remove_and_change(count, tmp_path, monkeypatch):
    is_toy = count < 1000
    images, out = tmp_path / "images", tmp_path / "index"
    write_photos(images, range(count))
    if is_toy:
        monkeypatch.setattr(indexing, "load_index_model", lambda *args, **kwargs: (Toy(), SPACE))
    rows_at_once = 16 if is_toy else 256
    monkeypatch.setattr(indexing, "ROWS_AT_ONCE", rows_at_once)

    # A second run is refused while the first one is there; after a kill, the next one goes on.
    left, message = killed_while_indexing(images, out, rows_at_once, is_toy)
    assert 0 < left < count
    assert "another run is writing it" in message and "wait for its end" in message
    report = build_index(parse_index_args(words(images, out)))
    assert (report.images, report.embedded, report.problems) == (count, count - left, [])
    whole = build_index(parse_index_args(words(images, tmp_path / "whole")))
    assert whole.embedded == count
    assert rows(ImageIndex.open(out)) == rows(ImageIndex.open(tmp_path / "whole"))
    assert not out.with_name("index.partial.lock").exists()

    # Only what is new or changed is opened and embedded.
    opened = []
    monkeypatch.setattr(
        indexing, "read_photo", lambda root, state, known: opened.append(state.path) or read_photo(root, state, known)
    )
    write_photos(images, range(count, count + 100))
    for number in range(50):
        photo(images, number).unlink()
    for number in range(50, 60):
        Image.new("RGB", (number, 9), (number, 90, 200)).save(photo(images, number))
    report = build_index(parse_index_args(words(images, out)))
    touched = [*range(50, 60), *range(count, count + 100)]
    assert sorted(opened) == [photo(Path(), number).as_posix() for number in touched]
    assert (report.embedded, report.copied, report.removed, report.images) == (110, 0, 50, count + 50)
    monkeypatch.setattr(indexing, "read_photo", read_photo)
    build_index(parse_index_args(words(images, tmp_path / "again")))
    found, expected = rows(ImageIndex.open(out)), rows(ImageIndex.open(tmp_path / "again"))
    vectors = [np.array([row.pop("vector") for row in table]) for table in (found, expected)]
    assert found == expected and len(found) == count + 50
    np.testing.assert_allclose(*vectors, atol=1e-6)  # batches of other images round otherwise


def test_the_end_of_a_run_leaves_one_version_and_few_files(tmp_path, monkeypatch):
    monkeypatch.setattr(indexing, "ROWS_AT_ONCE", 2)
    write_photos(tmp_path / "images", range(20))
    index = empty_index(tmp_path / "index", tmp_path / "images")
    for _ in range(2):
        update(index, Toy(), batch_size=2)
        write_photos(tmp_path / "images", range(20, 24))
    assert len(index.table.list_versions()) == 1 and len(index) == 24
    data = sum(path.stat().st_size for path in (tmp_path / "index").rglob("*.lance") if path.is_file())
    stored = sum(len(row["thumbnail"]) + 4 * DIM for row in rows(index))
    assert data < 1.5 * stored, "nothing is there twice"


def test_nothing_to_do_opens_nothing(toy, tmp_path, monkeypatch):
    write_photos(tmp_path / "images", range(5))
    build_index(parse_index_args(words(tmp_path / "images", tmp_path / "index")))
    before = rows(ImageIndex.open(tmp_path / "index"))
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} is opened"))
    report = build_index(parse_index_args(words(tmp_path / "images", tmp_path / "index")))
    assert (report.images, report.embedded, toy.embedded) == (5, 0, 5)
    assert rows(ImageIndex.open(tmp_path / "index")) == before


def test_copies_moved_swapped_and_touched_files_keep_their_embedding(tmp_path):
    images = tmp_path / "images"
    write_photos(images, range(6))
    index, model = empty_index(tmp_path / "index", images), Toy()
    update(index, model)
    first = {row["path"]: row for row in rows(index)}
    names = [photo(images, number) for number in range(6)]
    shutil.copy(names[0], images / "copy.png")
    names[1].rename(images / "moved.png")
    os.utime(names[2], ns=(5, 5))
    swapped = names[3].read_bytes(), names[4].read_bytes()
    names[3].write_bytes(swapped[1])
    names[4].write_bytes(swapped[0])
    report = update(index, model)
    assert (report.embedded, report.copied, report.removed, model.embedded) == (0, 5, 1, 6)
    found = {row["path"]: row for row in rows(index)}
    of = {"copy.png": 0, "moved.png": 1, "000/00002.png": 2, "000/00003.png": 4, "000/00004.png": 3}
    of |= {"000/00000.png": 0, "000/00005.png": 5}
    assert found.keys() == of.keys()
    for path, number in of.items():
        original = first[f"000/{number:05}.png"]
        for name in ("content", "vector", "thumbnail", "width"):
            assert found[path][name] == original[name], (path, name)
    assert found["000/00002.png"]["mtime_ns"] == 5


def test_copies_within_a_run_are_embedded_once(tmp_path, monkeypatch):
    monkeypatch.setattr(indexing, "ROWS_AT_ONCE", 3)
    images = tmp_path / "images"
    write_photos(images, range(7))
    for number in range(7):
        shutil.copy(photo(images, number), images / f"copy{number}.png")
    index, model = empty_index(tmp_path / "index", images), Toy()
    report = update(index, model, batch_size=2)
    assert (report.embedded, report.copied, model.embedded, len(index)) == (7, 7, 7, 14)
    assert len({tuple(row["vector"]) for row in rows(index)}) == 7


def test_an_image_that_the_model_refuses_is_listed_with_its_copies(tmp_path):
    images = tmp_path / "images"
    write_photos(images, range(5))
    Image.new("RGB", (77, 5), "red").save(images / "wide.png")
    shutil.copy(images / "wide.png", images / "wide too.png")
    index = empty_index(tmp_path / "index", images)
    report = update(index, Toy(refused=77), batch_size=4)
    assert (report.embedded, len(index)) == (5, 5)
    assert sorted(report.problems) == [
        Problem("wide too.png", "row 0: too wide"),
        Problem("wide.png", "row 0: too wide"),
    ]


def test_an_embedding_that_is_not_a_number_is_not_stored(tmp_path, monkeypatch):
    write_photos(tmp_path / "images", range(2))
    index, model = empty_index(tmp_path / "index", tmp_path / "images"), Toy()
    monkeypatch.setattr(model, "encode_document", lambda items, **options: np.full((len(items), DIM), np.nan))
    report = update(index, model)
    assert len(index) == 0 and {reason for _, reason in report.problems} == {
        "its embedding is not a number; pass --dtype fp32 or bf16"
    }


# ---- Files of all kinds ----


def write_odd_files(images):
    """Files that work, with the size that the index has of each."""
    (images / "a b").mkdir(parents=True)
    Image.new("RGB", (8, 6), "red").save(images / "a b" / "ünï çödé 🍎 'quoted' 100%.png")
    frames = [Image.new("P", (9, 5), color) for color in (1, 2)]
    frames[0].save(images / "moving.gif", save_all=True, append_images=frames[1:])
    Image.new("CMYK", (7, 5), (0, 255, 255, 0)).save(images / "print.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: turned by 90 degrees
    Image.new("RGB", (10, 4), "blue").save(images / "turned.JPG", exif=exif)
    (images / "link.png").symlink_to("print.jpg")
    return {
        "a b/ünï çödé 🍎 'quoted' 100%.png": (8, 6),
        "moving.gif": (9, 5),
        "print.jpg": (7, 5),
        "turned.JPG": (4, 10),
        "link.png": (7, 5),
    }


def write_bad_files(images, outside):
    """Files that do not work, with a part of each one's line."""
    write_photos(outside, range(1))
    (images / "empty.png").touch()
    Image.new("1", (20_000, 10_000)).save(images / "huge.png")
    (images / "notes.jpg").write_text("not an image")
    whole = (outside / "000" / "00000.png").read_bytes()
    (images / "cut.png").write_bytes(whole[: len(whole) // 2])
    (images / "loop").symlink_to("loop")
    (images / "circle").symlink_to(".", target_is_directory=True)
    (images / "elsewhere.png").symlink_to(outside / "000" / "00000.png")
    (images / "gone.png").symlink_to("nowhere.png")
    os.mkfifo(images / "pipe.png")
    (images / "half.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (images / os.fsdecode(b"latin\xe9.png")).write_bytes(whole)
    return {
        "empty.png": "the file is empty",
        "huge.png": "200000000 pixels",
        "notes.jpg": "is not an image, or one that is damaged",
        "cut.png": "",
        "loop": "Too many levels of symbolic links",
        "circle": "is a link to a folder, which is not followed",
        "elsewhere.png": "is a link to a file outside the folder, which is not followed",
        "gone.png": "No such file or directory",
        "pipe.png": "is not a regular file",
        "half.heic": "" if find_spec("pillow_heif") else "pip install pillow-heif",
        os.fsdecode(b"latin\xe9.png"): "its name is not UTF-8; rename it",
    }


def test_files_of_all_kinds_are_indexed_or_have_their_line(toy, tmp_path, capsys):
    images, outside = tmp_path / "images", tmp_path / "outside"
    sizes = write_odd_files(images)
    lines = write_bad_files(images, outside)
    (images / ".hidden.png").write_bytes(b"")
    (images / "readme.txt").write_text("no image by its name")
    report = build_index(parse_index_args(words(images, tmp_path / "index")))
    index = ImageIndex.open(tmp_path / "index")
    assert {row["path"]: (row["width"], row["height"]) for row in rows(index)} == sizes
    assert toy.embedded == 4  # the link has its target's content
    reasons = dict(report.problems)
    assert reasons.keys() == lines.keys()
    for path, part in lines.items():
        assert part in reasons[path] and reasons[path].strip(), (path, reasons[path])
    assert "raise PIL.Image.MAX_IMAGE_PIXELS" in reasons["huge.png"] and "object at 0x" not in str(reasons)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(lines) + 1 and "empty.png: the file is empty" in printed
    assert printed[-1] == f"5 images: 4 embedded, 1 copied, 0 removed; {len(lines)} not indexed"
    # The first frame, and colours as they are printed.
    by_path = {row["path"]: row["vector"] for row in rows(index)}
    with Image.open(images / "moving.gif") as first:
        np.testing.assert_allclose(by_path["moving.gif"], pixels(first), atol=1e-6)
    assert np.argmax(by_path["print.jpg"][:3]) == 0, "no black and magenta is red"


def test_a_heic_is_opened_where_pillow_heif_is_installed(tmp_path):
    heif = pytest.importorskip("pillow_heif", reason="needs pillow-heif")
    heif.register_heif_opener()
    (tmp_path / "images").mkdir()
    Image.new("RGB", (64, 32), "green").save(tmp_path / "images" / "phone.HEIC", format="HEIF")
    index = empty_index(tmp_path / "index", tmp_path / "images")
    report = update(index, Toy())
    assert (report.embedded, report.problems) == (1, []) and rows(index)[0]["width"] == 64


def test_a_heic_without_pillow_heif_says_what_to_install(monkeypatch):
    monkeypatch.setattr(reading, "find_spec", lambda name: None)
    error = ValueError("cannot read an image")
    error.__cause__ = UnidentifiedImageError("cannot identify image file <_io.BytesIO object at 0x7f>")
    assert reading.reason(error, "a/phone.HEIC") == "HEIC images need pillow-heif; pip install pillow-heif"
    assert reading.reason(error, "a/phone.png") == "is not an image, or one that is damaged"
    reading.register_heif()  # changes nothing


def test_a_file_that_goes_while_indexing_has_its_line(tmp_path):
    assert read_photo(tmp_path, FileState("gone.png", 1, 1), ()) == Problem("gone.png", "No such file or directory")


def test_a_broken_file_leaves_the_index_and_a_mended_one_comes_back(tmp_path):
    images = tmp_path / "images"
    write_photos(images, range(3))
    index, model = empty_index(tmp_path / "index", images), Toy()
    update(index, model)
    whole = photo(images, 1).read_bytes()
    photo(images, 1).write_bytes(b"broken")
    report = update(index, model)
    assert [problem.path for problem in report.problems] == ["000/00001.png"] and len(index) == 2
    photo(images, 1).write_bytes(whole)
    update(index, model)
    assert len(index) == 3 and model.embedded == 4


def test_thumbnails_are_small_upright_jpegs(tmp_path):
    large = small_jpeg(Image.new("RGB", (1024, 512), "red"))
    small = small_jpeg(Image.new("RGB", (8, 6), "red"))
    found = []
    for data in (large, small):
        (tmp_path / "a.jpg").write_bytes(data)
        with Image.open(tmp_path / "a.jpg") as image:
            found.append((image.format, image.size))
    assert found == [("JPEG", (256, 128)), ("JPEG", (8, 6))]


def test_reading_ahead_keeps_the_order_and_its_bound():
    running = []

    def work(number):
        running.append(number)
        return number

    results = read_ahead(work, iter(range(50)), 3)
    assert next(results) == 0 and len(running) <= 4
    assert list(results) == list(range(1, 50))


# ---- What an index refuses ----


def test_another_model_prompt_or_folder_is_refused_unless_the_index_begins_anew(toy, tmp_path, monkeypatch):
    write_photos(tmp_path / "images", range(3))
    write_photos(tmp_path / "others", range(2))
    out = tmp_path / "index"
    build_index(parse_index_args(words(tmp_path / "images", out)))
    before = rows(ImageIndex.open(out))
    with pytest.raises(ValueError, match="was made with the folder .*images', not .*others'; choose another --out"):
        build_index(parse_index_args(words(tmp_path / "others", out)))
    with pytest.raises(ValueError, match="was made with the --prompt '', not 'Look'"):
        build_index(parse_index_args(words(tmp_path / "images", out, "--prompt", "Look")))
    other = store.Space("other", None, "aa" * 16, "", DIM)
    monkeypatch.setattr(indexing, "load_index_model", lambda *args, **kwargs: (toy, other))
    with pytest.raises(ValueError, match=r"was made with the model 'toy', not '.*teacher'.* pass --overwrite"):
        build_index(parse_index_args(words(tmp_path / "images", out)))
    assert rows(ImageIndex.open(out)) == before
    build_index(parse_index_args(words(tmp_path / "others", out, "--overwrite")))
    index = ImageIndex.open(out)
    assert (len(index), index.space, index.root) == (2, other, tmp_path / "others")


def test_out_must_be_an_index_or_new(toy, tmp_path):
    write_photos(tmp_path / "images", range(1))
    with pytest.raises(ValueError, match="holds something else than an index; choose another --out"):
        build_index(parse_index_args(words(tmp_path / "images", tmp_path / "images")))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a file; choose another --out"):
        build_index(parse_index_args(words(tmp_path / "images", tmp_path / "file")))
    with pytest.raises(ValueError, match="is not a folder; pass the folder of images"):
        build_index(parse_index_args(words(tmp_path / "none", tmp_path / "index")))
    assert toy.embedded == 0 and not (tmp_path / "index").exists()
    # A run that was killed before the table was there.
    (tmp_path / "begun" / "images.lance" / "data").mkdir(parents=True)
    assert build_index(parse_index_args(words(tmp_path / "images", tmp_path / "begun"))).images == 1


def test_a_folder_that_has_lost_all_images_does_not_empty_the_index(toy, tmp_path):
    images, out = tmp_path / "images", tmp_path / "index"
    write_photos(images, range(3))
    build_index(parse_index_args(words(images, out)))
    (out / ".DS_Store").touch()
    images.rename(tmp_path / "elsewhere")
    images.mkdir()
    with pytest.raises(ValueError, match="images has no images any more; mount its disk, or delete the index"):
        build_index(parse_index_args(words(images, out)))
    assert len(ImageIndex.open(out)) == 3


def test_an_empty_folder_gives_an_empty_index(toy, tmp_path):
    (tmp_path / "images").mkdir()
    assert build_index(parse_index_args(words(tmp_path / "images", tmp_path / "index"))).images == 0
    assert ImageIndex.open(tmp_path / "index").search(np.ones(DIM)) == []


def test_what_is_not_an_index_is_refused_and_not_made(tmp_path):
    with pytest.raises(ValueError, match="none is not an index; make it: xvlm2vec index IMAGES"):
        ImageIndex.open(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with pytest.raises(ValueError, match="is not an index"):
        ImageIndex.open(tmp_path)
    with pytest.raises(ValueError, match="No object store provider found for scheme: 'nosuch'"):
        ImageIndex.open("nosuch://bucket/index")


def test_a_server_that_refuses_is_one_line(monkeypatch):
    def refuse(place):
        raise RuntimeError("lance error: no region for bucket 'b'\nat aws.rs")

    monkeypatch.setattr(tables, "connect", refuse)
    message = "s3://b/i cannot be opened: lance error: no region for bucket 'b'; check address and credentials$"
    with pytest.raises(ValueError, match=message):
        ImageIndex.open("s3://b/i")


def test_an_index_of_another_format_is_refused(toy, tmp_path, monkeypatch):
    write_photos(tmp_path / "images", range(1))
    monkeypatch.setattr(store, "FORMAT", 99)
    build_index(parse_index_args(words(tmp_path / "images", tmp_path / "index")))
    monkeypatch.undo()
    with pytest.raises(ValueError, match="has the format 99, and this version reads 1; index the images again"):
        ImageIndex.open(tmp_path / "index")
    tables.connect(tmp_path / "other").create_table("images", schema=table_schema(SPACE, tmp_path).remove_metadata())
    with pytest.raises(ValueError, match="has the format of another program"):
        ImageIndex.open(tmp_path / "other")


# ---- Queries ----


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """40 images in three folders, one changed per day of May 2024."""
    folder = tmp_path_factory.mktemp("queries")
    images = folder / "images"
    write_photos(images, range(30))
    for number, name in enumerate(["it's 100%_a", "its 100%_a", "it's 100%_ab"]):
        (images / name).mkdir()
        shutil.copy(photo(images, number), images / name / "photo.png")
    for number in range(30):
        noon = datetime(2024, 5, number + 1, 12).timestamp()
        os.utime(photo(images, number), (noon, noon))
    made = empty_index(folder / "index", images)
    update(made, Toy())
    return ImageIndex.open(folder / "index")


def test_an_image_is_found_by_its_own_vector(index):
    assert len(index) == 33 and index.space == SPACE
    for number in range(3, 30):
        with Image.open(photo(index.root, number)) as image:
            best, second, *_ = index.search(pixels(image))
        assert best.path == f"000/{number:05}.png" and best.score == pytest.approx(1, abs=1e-6)
        assert second.score < 0.9 and (best.width, best.height) == (32, 32)
        assert best.modified.astimezone().date() == date(2024, 5, number + 1)


def test_scores_are_cosines_best_first_and_equal_ones_by_path(index):
    query = np.random.default_rng(0).normal(size=DIM)
    matches = index.search(query, limit=33)
    stored = {row["path"]: np.array(row["vector"]) for row in rows(index)}
    expected = {path: vector @ query / np.linalg.norm(query) for path, vector in stored.items()}
    assert [match.path for match in matches] == sorted(stored, key=lambda path: (-round(expected[path], 5), path))
    for match in matches:
        assert match.score == pytest.approx(expected[match.path], abs=1e-6)
    assert index.search(query, limit=4) == matches[:4] and len(index.search(query)) == 20


def test_filters_by_folder_and_day(index):
    query = np.ones(DIM)

    def found(**filters):
        return {match.path for match in index.search(query, 100, **filters)}

    assert found(folder="it's 100%_a") == {"it's 100%_a/photo.png"} == found(folder="./it's 100%_a/")
    assert len(found(folder="000")) == 30 and len(found(folder=".")) == 33 == len(found(folder="/"))
    assert found(folder="00") == set() == found(folder="x' OR '1'='1")
    assert found(since=date(2024, 5, 29), until=date(2024, 5, 30)) == {"000/00028.png", "000/00029.png"}
    assert len(found(until=date(2024, 5, 3), folder="000")) == 3
    assert len(found(since=date(2024, 6, 1))) == 3, "the copies, made now"


def test_queries_of_another_width_are_refused(index):
    with pytest.raises(ValueError, match=r"the query has the shape \(3,\); this index holds \(48,\)"):
        index.search(np.ones(3))
    with pytest.raises(ValueError, match="limit is 0; pass 1 or more"):
        index.search(np.ones(DIM), 0)


def test_thumbnails_are_found_by_content(index):
    match = index.search(np.ones(DIM), 1)[0]
    assert index.thumbnail(match.content).startswith(b"\xff\xd8")
    for content in ("00", "' OR '1'='1"):
        with pytest.raises(ValueError, match="an image has left the index since it was found; search again"):
            index.thumbnail(content)


def test_a_url_is_the_same_index(toy, tmp_path):
    write_photos(tmp_path / "images", range(3))
    url = f"file://{tmp_path}/index"
    assert build_index(parse_index_args(words(tmp_path / "images", url))).embedded == 3
    write_photos(tmp_path / "images", range(3, 5))
    assert build_index(parse_index_args(words(tmp_path / "images", url))).embedded == 2
    assert rows(ImageIndex.open(url)) == rows(ImageIndex.open(tmp_path / "index")) and toy.embedded == 5


def test_an_open_index_sees_what_is_added(tmp_path):
    write_photos(tmp_path / "images", range(3))
    made = empty_index(tmp_path / "index", tmp_path / "images")
    update(made, Toy())
    reader = ImageIndex.open(tmp_path / "index")
    Image.new("RGB", (32, 32), "red").save(tmp_path / "images" / "red.png")
    update(made, Toy())
    with Image.open(tmp_path / "images" / "red.png") as image:
        assert reader.search(pixels(image))[0].path == "red.png"


def test_many_rows_get_an_approximate_index_that_later_rows_join(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "EXACT_ROWS", 300)
    write_photos(tmp_path / "images", range(299))
    index = empty_index(tmp_path / "index", tmp_path / "images")
    update(index, Toy(), batch_size=64)
    assert not list(index.table.list_indices())
    write_photos(tmp_path / "images", range(299, 330))
    update(index, Toy(), batch_size=64)
    update(index, Toy())
    [made] = index.table.list_indices()
    assert index.table.index_stats(made.name).num_unindexed_rows == 0
    for number in range(0, 330, 30):
        with Image.open(photo(tmp_path / "images", number)) as image:
            best = index.search(pixels(image))[0]
        assert best.path == photo(Path(), number).as_posix() and best.score == pytest.approx(1, abs=1e-6)
