"""`encode` preprocesses the next batch in a thread: the same embeddings and errors, one batch ahead at most."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import datasets
import numpy as np
import pytest
import tiny
import torch
from datasets import Dataset
from PIL import Image

from xvlm2vec_st import SentenceTransformer
from xvlm2vec_st.encoding import open_images, prefetch
from xvlm2vec_st.encoding.inputs import InputError
from xvlm2vec_st.encoding.open_images import OpenImages
from xvlm2vec_st.encoding.prefetch import Prefetch, has_spare_core

THREAD = "preprocess"


@pytest.fixture(autouse=True)
def spare_core(monkeypatch):
    monkeypatch.setattr(prefetch, "has_spare_core", lambda device: True)


@pytest.fixture(scope="module")
def model():
    return SentenceTransformer(str(tiny.embedder("llava")), device="cpu")


@pytest.fixture
def folder(tmp_path):
    """Five images, one of them with a transparent colour, one gray."""
    for number in range(5):
        image = tiny.random_image(number, width=40 + number)
        image = image.convert("L") if number == 3 else image
        image.save(tmp_path / f"{number}.png", **({"transparency": (1, 2, 3)} if number == 2 else {}))
    return tmp_path


def mixed(folder):
    """Images as paths, objects and arrays; shared by rows and alone; texts of equal and of different lengths."""
    paths = [str(folder / f"{number}.png") for number in range(5)]
    objects = [Image.open(path) for path in paths]
    rows = [{"image": image, "text": text} for image in (*paths, *objects) for text in ("a", "b", "cc")]
    rows += [{"image": np.asarray(objects[0]), "text": "c"}, {"image": [paths[1], objects[2]], "text": "two"}, paths[4]]
    rows += [objects[1], "a text", "another", "x" * 30]
    return [rows[number] for number in np.random.default_rng(0).permutation(len(rows))]


def watched(model, monkeypatch):
    """The threads that the model's batches are preprocessed in, in order."""
    threads = []
    preprocess = model[0].preprocess

    def note(*args, **kwargs):
        threads.append(threading.current_thread().name)
        return preprocess(*args, **kwargs)

    monkeypatch.setattr(model[0], "preprocess", note)
    return threads


def without_thread(monkeypatch):
    monkeypatch.setattr(Prefetch, "features", lambda self, inputs, preprocess: preprocess(inputs))


@pytest.mark.parametrize("batch_size", [3, 64])
@pytest.mark.parametrize("options", [{}, {"prompt": "Find: "}, {"output_value": "token_embeddings"}])
def test_the_same_bits_as_without_the_thread(model, folder, batch_size, options, monkeypatch):
    inputs = mixed(folder)
    with monkeypatch.context() as patch:
        threads = watched(model, patch)
        found = model.encode(inputs, batch_size=batch_size, **options)
    assert len(threads) >= len(inputs) / batch_size
    assert [THREAD in name for name in threads] == [False] + [True] * (len(threads) - 1)
    without_thread(monkeypatch)
    expected = model.encode(inputs, batch_size=batch_size, **options)
    assert len(found) == len(expected) == len(inputs)
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(found, expected, strict=True))
    assert len({np.asarray(each).tobytes() for each in found}) > 15, "most rows are different"


def test_an_image_of_several_batches_is_opened_and_hashed_once(model, folder, monkeypatch):
    counts = {"open_image": [], "image_key": []}
    for name, seen in counts.items():
        original = getattr(open_images, name)

        def count(source, seen=seen, original=original):
            seen.append(source if isinstance(source, str) else id(source))
            return original(source)

        monkeypatch.setattr(open_images, name, count)
    path, image, alone = str(folder / "0.png"), tiny.random_image(7), tiny.random_image(8)
    inputs = [{"image": each, "text": f"text {n}"} for each in (path, image) for n in range(9)] + [alone]
    model.encode(inputs, batch_size=4)
    assert sorted(map(str, counts["open_image"])) == sorted(map(str, (path, id(image), id(alone))))
    assert len(counts["image_key"]) == 3, "two objects and one opened file"


def test_at_most_one_batch_ahead(model, folder, monkeypatch):
    opened, ahead = [], []
    original, forward = open_images.open_image, model[0].forward

    def note(source):
        opened.append(source)
        return original(source)

    def wait_and_run(features, **kwargs):
        while len(opened) < min(2 * len(ahead) + 4, 8):
            time.sleep(0.01)
        time.sleep(0.05)  # more would be opened now
        ahead.append(len(opened) - 2 * len(ahead))
        return forward(features, **kwargs)

    monkeypatch.setattr(open_images, "open_image", note)
    monkeypatch.setattr(model[0], "forward", wait_and_run)
    model.encode([{"image": tiny.random_image(number), "text": "a"} for number in range(8)], batch_size=2)
    assert ahead == [4, 4, 4, 2], "this batch and the next one"


@pytest.mark.parametrize("broken", [0, 3, 5])
def test_an_error_names_the_row_and_ends_the_thread(model, folder, broken, monkeypatch):
    rows = [{"image": str(folder / f"{number % 5}.png"), "text": f"{number}"} for number in range(6)]
    bad = folder / "bad.png"
    bad.write_bytes((folder / "1.png").read_bytes()[:60])
    rows[broken] = {"image": str(bad), "text": "x"}
    before = threading.active_count()
    with pytest.raises(InputError, match=rf"^row {broken}, image 1: cannot read an image from .*bad\.png") as found:
        model.encode(rows, batch_size=2)
    assert threading.active_count() == before
    without_thread(monkeypatch)
    with pytest.raises(InputError) as expected:
        model.encode(rows, batch_size=2)
    assert str(found.value) == str(expected.value)
    assert type(found.value.__cause__) is type(expected.value.__cause__)


def test_an_error_of_the_model_ends_the_thread(model, folder, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model[0], "forward", fail)
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="out of memory"):
        model.encode(mixed(folder), batch_size=2)
    assert threading.active_count() == before


def test_another_order_is_not_used_and_ends_the_prefetching(model, folder, monkeypatch):
    inputs = mixed(folder)
    expected = model.encode(inputs, batch_size=4)
    monkeypatch.setattr(model, "_sorted", lambda items: items[::-1])
    threads = watched(model, monkeypatch)
    assert np.array_equal(model.encode(inputs, batch_size=4), expected)
    assert [THREAD in name for name in threads] == [False, True] + [False] * (len(threads) - 2)
    assert len(threads) > 9


def test_images_that_are_made_anew_for_each_access(model, folder):
    paths = [str(folder / f"{number % 5}.png") for number in range(12)]
    column = Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image())["image"]
    assert column[0] is not column[0]
    found = model.encode(column, batch_size=3)
    assert np.array_equal(found, model.encode(list(column), batch_size=3))
    assert np.array_equal(found[:5], found[5:10]) and not np.allclose(found[0], found[1], atol=1e-3)


def test_two_calls_at_once(model, folder):
    inputs = [mixed(folder), mixed(folder)[::-1]]
    expected = [model.encode(each, batch_size=3) for each in inputs]
    others = [SentenceTransformer(str(tiny.embedder("llava")), device="cpu") for _ in inputs]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda other, each: other.encode(each, batch_size=3), others, inputs))
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_features_are_those_of_inference_mode(model, folder):
    tensors = model.encode(mixed(folder)[:8], batch_size=2, output_value=None)
    assert len(tensors) == 8 and all(row["input_ids"].is_inference() for row in tensors)
    assert not torch.is_inference_mode_enabled()


def test_without_a_spare_core_there_is_no_thread(model, folder, monkeypatch):
    inputs = mixed(folder)
    expected = model.encode(inputs, batch_size=4)
    monkeypatch.setattr(prefetch, "has_spare_core", has_spare_core)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 10_000)
    assert has_spare_core(torch.device("cuda")) and not has_spare_core(torch.device("cpu"))
    threads = watched(model, monkeypatch)
    assert np.array_equal(model.encode(inputs, batch_size=4), expected)
    assert len(threads) > 9 and not any(THREAD in name for name in threads)


def test_forgotten_images_leave_no_key_behind():
    images = OpenImages()
    red, blue = (Image.new("L", (2, 2), value) for value in (10, 200))
    key = images.key(images.open(red))
    number = id(images.open(red))
    images.keep([blue])
    assert images._opened == {} and number not in images._keys
    assert images.key(images.open(blue)) != key
    images.keep([blue])
    assert list(images._opened.values()) == [images.open(blue)]
