"""Streams: order, dealing, position; images in archives."""

import io
import json
import shutil
import tarfile
import zipfile
from itertools import islice

import processes
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import tiny
from PIL import Image
from torch.utils.data import DataLoader

from mmmeb_tasks.mini.write import write_corpus
from recipes.distill import command as distill
from xvlm2vec_st import DistillationTrainer, load_parallel
from xvlm2vec_st.data.row_images import open_row_image
from xvlm2vec_st.data.stream import ParallelStream
from xvlm2vec_st.images import archives as archives_module

FIRST, SECOND = 7, 12


@pytest.fixture
def shards(tmp_path):
    """Two files, 19 rows."""
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path, numbers in zip(paths, (range(FIRST), range(FIRST, FIRST + SECOND)), strict=True):
        lines = [json.dumps({"id": str(n), "en": f"e{n}", "it": f"i{n}"}) + "\n" for n in numbers]
        path.write_text("\n".join(lines))  # blank lines between
    return paths


def ids(rows):
    return [row and row["id"] for row in rows]


def test_an_epoch_has_every_row_once_in_an_order_of_its_own(shards):
    stream = ParallelStream(shards, ["it"], buffer=5)
    assert stream.rows == 19
    both = ids(islice(stream, 38))
    first, second = both[:19], both[19:]
    assert sorted(first, key=int) == sorted(second, key=int) == [str(n) for n in range(19)]
    assert first != second and first != sorted(first, key=int)
    assert ids(islice(ParallelStream(shards, ["it"], buffer=5), 38)) == both
    assert ids(islice(ParallelStream(shards, ["it"], buffer=5, seed=1), 38)) != both


def test_a_row_is_that_of_load_parallel(shards):
    stream = ParallelStream(shards[:1], ["it"])
    loaded = {row["id"]: row for row in load_parallel(shards[0], ["it"], show_progress=False)}
    assert all(row == loaded[row["id"]] for row in islice(stream, FIRST))


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_and_workers_get_batches_in_turn(shards, workers):
    whole = ids(islice(ParallelStream(shards, ["it"]), 36))
    for process in range(2):
        stream = ParallelStream(shards, ["it"])
        stream.assign_rank(3, process, 2)
        loader = DataLoader(stream, 3, collate_fn=ids, num_workers=workers)
        batches = list(islice(loader, 6))
        assert batches == [whole[start : start + 3] for start in range(3 * process, 36, 6)]


def test_what_was_seen_is_passed_over_without_being_parsed(shards):
    stream = ParallelStream(shards, ["it"])
    whole = ids(islice(stream, 19))
    text = shards[0].read_text().replace(f'"e{[n for n in whole[:8] if int(n) < FIRST][0]}"', "oops")
    shards[0].write_text(text)
    stream.assign_rank(4, 0, 1)
    stream.skipped_batches = 2
    assert ids(islice(stream, 19)) == [None] * 8 + whole[8:19]
    with pytest.raises(ValueError, match=r"a.jsonl, line \d+: not JSON"):
        list(islice(ParallelStream(shards, ["it"]), 19))


def test_no_file_no_rows(tmp_path):
    with pytest.raises(ValueError, match="none.jsonl: no such corpus file"):
        ParallelStream([tmp_path / "none.jsonl"], ["it"])
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="empty.jsonl: no rows"):
        ParallelStream([tmp_path / "empty.jsonl"], ["it"])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = write_corpus(tmp_path_factory.mktemp("stream") / "corpus", ["en", "it", "de"], scenes=12)
    return folder / "parallel.jsonl"


def packed(folder, kind, out):
    """The images of a corpus' folder in an archive."""
    files = sorted(path for path in (folder / "images").iterdir())
    names = [f"images/{path.name}" for path in files]
    path = out / f"images.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, file in zip(names, files, strict=True):
                archive.write(file, name)
    elif kind == "tar":
        with tarfile.open(path, "w") as archive:
            for name, file in zip(names, files, strict=True):
                archive.add(file, f"./{name}")
    else:
        table = {"path": names, "bytes": [file.read_bytes() for file in files]}
        if kind == "nested.parquet":
            pairs = zip(*table.values(), strict=True)
            table = {"image": [{"path": name, "bytes": data} for name, data in pairs]}
        parquet.write_table(pa.table(table), path, row_group_size=3)
    return path


@pytest.mark.parametrize("kind", ["zip", "tar", "parquet", "nested.parquet"])
def test_images_in_an_archive_are_those_of_the_folder(kind, corpus, tmp_path):
    archive = packed(corpus.parent, kind, tmp_path)
    rows = [row for row in load_parallel(corpus, ["it"], show_progress=False) if row["image"]]
    inside = [row for row in load_parallel(corpus, ["it"], images=archive, show_progress=False) if row["image"]]
    assert len(rows) == len(inside) > 3
    for one, two in zip(rows, inside, strict=True):
        assert two["image"].startswith(str(archive))
        images = [open_row_image(row["image"], row["id"], decode=True) for row in (one, two)]
        assert images[0].tobytes() == images[1].tobytes()


def test_an_image_that_is_in_no_archive_is_named(corpus, tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "PNG")
    with zipfile.ZipFile(tmp_path / "few.zip", "w") as archive:
        archive.writestr("images/other.png", buffer.getvalue())
    with pytest.raises(ValueError, match=r"row .*: image .*few.zip::images/.* not found; pass images="):
        load_parallel(corpus, ["it"], images=tmp_path / "few.zip")
    parquet.write_table(pa.table({"name": ["a"]}), tmp_path / "odd.parquet")
    with pytest.raises(ValueError, match=r"columns \['name'\]; images are a column 'image'"):
        archives_module.Parquet(str(tmp_path / "odd.parquet"))


def flipped(content, name):
    """A byte changed: in the first image's data, or, for a tar, in the second one's header."""
    place = content.index(b"images/", content.index(b"images/") + 7) if name.endswith(".tar") else 200
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize("kind", ["zip", "tar", "parquet"])
def test_a_damaged_archive_is_named(kind, corpus, tmp_path):
    whole = packed(corpus.parent, kind, tmp_path).read_bytes()
    path = tmp_path / f"bad.{kind}"
    damages = [whole[: len(whole) // 2], b"no archive at all" * 99]
    for content in damages if kind == "parquet" else [*damages, flipped(whole, path.name)]:
        path.write_bytes(content)
        archives_module.archive.cache_clear()
        with pytest.raises(ValueError, match=rf"row .*: image .*bad.{kind}::images/.* is damaged .*pack it again"):
            load_parallel(corpus, ["it"], images=path, show_progress=False)


def command(corpus, out, *more):
    base = ["--student", str(tiny.embedder("llava")), "--corpus", str(corpus), "--languages", "it,de"]
    short = [
        "--per-device-train-batch-size",
        "4",
        "--max-steps",
        "8",
        "--learning-rate",
        "1e-3",
        "--eval-rows",
        "0",
        "--stream",
    ]
    return [*base, *short, "--save-steps", "3", "--output-dir", str(out), *more]


def run(argv, stop_after=None):
    """In a forked process: seconds are few, threads are one."""
    original = DistillationTrainer.training_step

    def step(self, *args, **kwargs):
        if self.state.global_step == stop_after:
            import os

            os._exit(7)
        return original(self, *args, **kwargs)

    DistillationTrainer.training_step = step
    distill.main(argv)


def finished(*given):
    child = processes.apart(run, *given)
    child.join(processes.PATIENCE)
    return child.exitcode


def test_a_stream_is_resumed_where_it_was_left(corpus, tmp_path):
    archive = packed(corpus.parent, "zip", tmp_path)
    source = shutil.copy(corpus, tmp_path / "alone.jsonl")  # no images beside it
    for out, stops in (("unbroken", [None]), ("broken", [7, None])):
        for stop in stops:
            resume = ["--resume-from-checkpoint"] if (tmp_path / f"{out}.partial").exists() else []
            argv = command(source, tmp_path / out, "--images", str(archive), *resume)
            assert finished(argv, stop) == (7 if stop else 0)
    one, two = ((tmp_path / out / "model.safetensors").read_bytes() for out in ("unbroken", "broken"))
    assert one == two != (tiny.embedder("llava") / "model.safetensors").read_bytes()


def test_a_stream_says_what_it_cannot_do(corpus, tmp_path):
    with pytest.raises(ValueError, match="--stream reads its rows while training: pass --eval-corpus"):
        distill.main(command(corpus, tmp_path / "out", "--eval-rows", "5"))
    with pytest.raises(ValueError, match="--tokens-per-batch sorts rows beforehand; with --stream"):
        distill.main(command(corpus, tmp_path / "out", "--tokens-per-batch", "500"))
    assert not (tmp_path / "out.partial").exists()
