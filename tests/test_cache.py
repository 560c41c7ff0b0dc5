"""Teacher targets on disk: bits, keys, several processes, kills, full disks."""

import multiprocessing
import os
import resource
import shutil
import signal

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from xvlm2vec_st import MultilingualDistillationLoss, SentenceTransformer, lora_config
from xvlm2vec_st.data.collator import ParallelCollator
from xvlm2vec_st.distillation.fingerprint import fingerprint, preprocessing_signature
from xvlm2vec_st.distillation.teacher_cache import TargetStore, input_key
from xvlm2vec_st.distillation.teachers import AdapterTeacher, FrozenTeacher

LANGUAGES = ("it", "de")
KEYS = [bytes([n]) * 16 for n in range(9)]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    found = []
    for number in range(6):
        image = None
        if number % 3:
            image = str(folder / f"{number}.png")
            tiny.random_image(number).save(image)
        found.append({"id": str(number), "image": image, "en": f"text {number}", "it": f"t{number}", "de": "d"})
    return found


@pytest.fixture(autouse=True)
def count_forwards(monkeypatch):
    """Count the forwards of each live teacher."""
    for kind in (FrozenTeacher, AdapterTeacher):
        original = kind.states

        def states(self, features, original=original):
            self.forwards = getattr(self, "forwards", 0) + 1
            return original(self, features)

        monkeypatch.setattr(kind, "states", states)


def forwards(loss):
    """How often the live teacher ran."""
    return getattr(loss.teacher.live, "forwards", 0)


def student_and(teacher="llava"):
    return SentenceTransformer(str(tiny.embedder("llava"))), SentenceTransformer(str(tiny.embedder(teacher)))


def batch(loss, rows):
    collate = ParallelCollator(loss.model.preprocess, languages=LANGUAGES, shared=True, inputs=loss.needs_inputs)
    return {key.removeprefix("texts_"): value for key, value in collate(rows).items()}


def targets(loss, rows):
    features = batch(loss, rows)
    return loss.teacher.targets(features, features["language"] == 0)


@pytest.mark.parametrize("image_part", [False, True])
def test_targets_are_the_live_ones_bit_by_bit_and_later_cost_nothing(rows, tmp_path, image_part):
    live = MultilingualDistillationLoss(*student_and(), image_part=image_part)
    expected = targets(live, rows)
    kept = MultilingualDistillationLoss(*student_and(), image_part=image_part, cache=tmp_path)
    first, second = targets(kept, rows), targets(kept, rows)
    assert forwards(kept) == 1
    assert first.keys() == expected.keys() and len(first) == 1 + image_part
    for name in first:
        assert torch.equal(first[name], expected[name]) and torch.equal(second[name], expected[name])
        assert expected[name].abs().max() > 0
    again = MultilingualDistillationLoss(*student_and(), image_part=image_part, cache=tmp_path)
    backwards = targets(again, rows[::-1])  # a second run, reordered
    assert forwards(again) == 0
    assert all(torch.equal(backwards[name].flip(0), expected[name]) for name in expected)


def test_the_loss_itself_is_the_same(rows, tmp_path):
    live = MultilingualDistillationLoss(*student_and())
    kept = MultilingualDistillationLoss(*student_and(), cache=tmp_path)
    expected = {name: part.item() for name, part in live([batch(live, rows)]).items()}
    for _ in range(2):
        assert {name: part.item() for name, part in kept([batch(kept, rows)]).items()} == expected
    assert forwards(kept) == 1 and expected["translated"] > 0


def test_a_student_that_is_its_own_teacher_shares_the_base_models_targets(rows, tmp_path):
    kept = MultilingualDistillationLoss(*student_and(), cache=tmp_path)
    expected = targets(kept, rows)
    student = SentenceTransformer(str(tiny.embedder("llava")))
    student.add_adapter(lora_config("llava", rank=2))
    own = MultilingualDistillationLoss(student, cache=tmp_path)
    assert torch.equal(targets(own, rows)["sentence"], expected["sentence"]) and forwards(own) == 0
    targets(own, [rows[0] | {"en": "another text"}])
    assert forwards(own) == 1


def test_a_changed_text_image_template_processor_or_teacher_misses(rows, tmp_path):
    def teacher_runs(rows, change=lambda model: None):
        student, teacher = student_and()
        for model in (student, teacher):
            change(model)
        loss = MultilingualDistillationLoss(student, teacher, cache=tmp_path)
        targets(loss, rows)
        return forwards(loss)

    def template(model):
        model[0].processor.chat_template += "\n"

    def pixels(model):
        model[0].processor.image_processor.image_mean = [0.1, 0.2, 0.3]

    def weight(model):
        with torch.no_grad():
            next(model.parameters()).view(-1)[0] += 1e-3

    assert teacher_runs(rows) == 1 and teacher_runs(rows) == 0
    assert teacher_runs([*rows[:-1], rows[-1] | {"en": "text 5."}]) == 1
    moved = tmp_path / "elsewhere.png"
    Image.open(rows[1]["image"]).save(moved)
    assert teacher_runs([rows[1] | {"image": str(moved)}]) == 0, "the same pixels in another file"
    changed = Image.open(rows[1]["image"])
    changed.putpixel((0, 0), (1, 2, 3))
    changed.save(moved)
    assert teacher_runs([rows[1] | {"image": str(moved)}]) == 1
    for change in (template, pixels, weight):
        assert teacher_runs(rows, change) == 1, change.__name__


def test_autocast_is_part_of_the_key(rows, tmp_path):
    kept = MultilingualDistillationLoss(*student_and(), cache=tmp_path)
    exact = targets(kept, rows)["sentence"]
    with torch.autocast("cpu", torch.bfloat16):
        rough = targets(kept, rows)["sentence"]
    assert forwards(kept) == 2 and not torch.equal(exact, rough)


def test_a_fingerprint_does_not_change_with_use(rows):
    model, other = student_and()
    before, reads = fingerprint(model), preprocessing_signature(model)
    model.encode(["a", "a longer text than that"])
    assert fingerprint(model) == before == fingerprint(other) and preprocessing_signature(model) == reads
    assert preprocessing_signature(SentenceTransformer(str(tiny.embedder("llava_next")))) != reads


def moved_and_loaded(folder):
    """The fingerprint in a process of its own, which knows another folder."""
    shutil.copytree(tiny.embedder("llava_next"), folder)
    return fingerprint(SentenceTransformer(str(folder)))


def test_a_fingerprint_has_the_settings_of_the_model_and_not_its_place(tmp_path):
    def loaded(**config):
        return SentenceTransformer(str(tiny.embedder("llava_next")), config_kwargs=config)

    model, layer = loaded(), loaded(vision_feature_layer=-1)
    item = {"image": tiny.random_image(), "text": "a"}
    assert not np.allclose(model.encode(item), layer.encode(item))
    epsilon = loaded()
    epsilon[0].model.config.text_config.rms_norm_eps = 1e-3
    found = [fingerprint(each) for each in (model, layer, epsilon)]
    assert len(set(found)) == 3
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(moved_and_loaded, (tmp_path / "moved",)) == found[0]
    assert fingerprint(loaded(attn_implementation="eager")) == found[0]


def test_what_cannot_be_keyed_is_refused():
    with pytest.raises(ValueError, match="more than one text and images"):
        input_key({"content": "a", "text": "b"})


def values(*numbers):
    return np.stack([np.full(5, n, np.float32) for n in numbers])


def test_a_store_reads_what_others_write(tmp_path):
    one, two = TargetStore(tmp_path, 5), TargetStore(tmp_path, 5)
    one.put(KEYS[:2], values(0, 1))
    two.put(KEYS[2:3], values(2))
    assert two.get(KEYS[0]) is None
    two.refresh()
    assert [two.get(key)[0] for key in KEYS[:3]] == [0, 1, 2]
    assert len(list(tmp_path.iterdir())) == 2, "a file a writer"


def test_a_record_cut_short_or_damaged_is_as_if_it_had_never_been(tmp_path):
    store = TargetStore(tmp_path, 5)
    store.put(KEYS[:3], values(0, 1, 2))
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    assert [TargetStore(tmp_path, 5).get(key) is None for key in KEYS[:3]] == [False, False, True]
    damaged = bytearray(whole)
    damaged[len(whole) // 3 + 20] ^= 1
    path.write_bytes(bytes(damaged))
    reader = TargetStore(tmp_path, 5)
    assert [reader.get(key) is None for key in KEYS[:3]] == [False, True, False]
    reader.put(KEYS[1:2], values(1))
    assert reader.get(KEYS[1])[0] == 1


def write_on(folder, first, ready):
    """Write for ever, five targets at a time."""
    store = TargetStore(folder, 700)
    for number in range(first, first + 10**6, 5):
        keys = [(number + n).to_bytes(16, "little") for n in range(5)]
        store.put(keys, np.stack([np.full(700, number + n, np.float32) for n in range(5)]))
        if number - first == 50:
            ready.set()


def test_two_processes_write_at_once_and_are_killed(tmp_path):
    fork = multiprocessing.get_context("fork")  # they touch files only
    ready = [fork.Event(), fork.Event()]
    writers = [
        fork.Process(target=write_on, args=(tmp_path, first, event), daemon=True)
        for first, event in zip((0, 10**6), ready, strict=True)
    ]
    for writer in writers:
        writer.start()
    assert all(event.wait(300) for event in ready)  # a busy machine
    for writer in writers:
        writer.kill()
        writer.join()
        assert writer.exitcode == -signal.SIGKILL
    store = TargetStore(tmp_path, 700)
    for first in (0, 10**6):
        found = [store.get((first + n).to_bytes(16, "little")) for n in range(55)]
        assert all((value == first + n).all() for n, value in enumerate(found))


def test_a_full_disk_ends_with_a_line_and_what_was_there_is_kept(tmp_path):
    store = TargetStore(tmp_path, 5)
    store.put(KEYS[:2], values(0, 1))
    (path,) = tmp_path.iterdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:  # the kernel takes half of the record, then refuses
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, hard))
        with pytest.raises(ValueError, match="cannot grow .*; free space.* its 2 targets are kept"):
            store.put(KEYS[2:4], values(2, 3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert path.stat().st_size == 2 * store.record
    store.put(KEYS[2:3], values(2))  # there is room again
    assert [TargetStore(tmp_path, 5).get(key)[0] for key in KEYS[:3]] == [0, 1, 2]
    assert os.listdir(tmp_path) == [path.name]


def test_a_cache_that_cannot_be_written_says_so_in_one_line(tmp_path):
    store = TargetStore(tmp_path / "cache", 4)
    store.put([bytes(16)], np.ones((1, 4), np.float32))
    shutil.rmtree(tmp_path / "cache")  # as a folder that is read-only, which root could write all the same
    fresh = TargetStore(tmp_path / "cache", 4)
    shutil.rmtree(tmp_path / "cache")
    for one in (store, fresh):
        with pytest.raises(ValueError, match=r"cannot grow \(No such file or directory\); free space"):
            one.put([bytes(16)], np.ones((1, 4), np.float32))
