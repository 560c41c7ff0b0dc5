"""A text of a corpus or a benchmark is embedded as text, also where it is an address or a path."""

import http.server
import threading

import numpy as np
import pytest
import tiny
from datasets import Dataset
from PIL import Image

from mmmeb_tasks.encoder import MMMEBEncoder
from mmmeb_tasks.items import Item, model_input
from xvlm2vec_st import MultilingualDistillationLoss, SentenceTransformer
from xvlm2vec_st.evaluation import parallel_evaluator
from xvlm2vec_st.parallel import ParallelCollator


class Handler(http.server.BaseHTTPRequestHandler):
    """Counts requests and answers with an image."""

    def do_GET(self):
        self.server.asked.append(self.path)
        self.send_response(200)
        self.end_headers()
        Image.new("RGB", (8, 8)).save(self.wfile, "PNG")

    def log_message(self, *args):
        """Nothing."""


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.asked = []
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture(scope="module")
def model():
    return SentenceTransformer(str(tiny.embedder("llava")), device="cpu")


@pytest.fixture(params=["address", "path", "data", "video"])
def text(request, server, tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    (tmp_path / "clip.mp4").write_bytes(b"")
    return {
        "address": f"http://127.0.0.1:{server.server_port}/beacon.png",
        "path": str(tmp_path / "red.png"),
        "data": "data:image/png;base64,iVBORw0KGgo=",
        "video": str(tmp_path / "clip.mp4"),
    }[request.param]


def as_words(model, text):
    return model.encode([{"text": text}])[0]


def test_in_a_batch_of_training(model, text, server):
    row = {"id": "1", "image": None, "en": text, "it": text}
    for shared in (True, False):
        batch = ParallelCollator(model.preprocess, languages=("it",), shared=shared)([row])
        assert not [key for key in batch if "pixel" in key]
    assert not server.asked


def test_of_a_teacher_that_reads_for_itself(model, text, server, tmp_path):
    loss = MultilingualDistillationLoss(
        model, SentenceTransformer(str(tiny.embedder("llava")), device="cpu"), cache=tmp_path
    )
    loss.teacher.live.needs_given = True
    row = {"id": "1", "image": None, "en": text, "it": "mela"}
    batch = ParallelCollator(model.preprocess, languages=("it",), given=True)([row])
    english = {key.removeprefix("en_text_"): value for key, value in batch.items() if key.startswith("en_")}
    target = loss.teacher.targets(english)["sentence"][0].numpy()
    target = target / np.linalg.norm(target)
    assert np.abs(target - as_words(model, text)).max() < 1e-5
    assert not server.asked


def test_among_held_out_rows(model, text, server):
    rows = Dataset.from_list(
        [{"id": "1", "image": None, "en": text, "it": text}, {"id": "2", "image": None, "en": "a", "it": "b"}]
    )
    scores = parallel_evaluator(rows, ["it"], model)(model)
    assert scores["english_cosine"] == pytest.approx(1)
    assert not server.asked


def test_in_a_benchmark(model, text, server):
    vectors = MMMEBEncoder(model, show_progress=False).embed([Item(text), Item("a dog")], task="a task")
    assert np.abs(vectors[0] - as_words(model, text)).max() < 1e-5
    assert model_input(Item("a dog")) == "a dog"
    assert not server.asked


def test_encode_of_users_reads_a_path_as_sentence_transformers_does(model, tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    path = str(tmp_path / "red.png")
    assert np.abs(model.encode([path])[0] - as_words(model, path)).max() > 1e-3


def test_one_english_text_with_two_translations_counts_both_as_right(model):
    rows = [
        {"id": str(n), "image": None, "en": en, "it": it}
        for n, (en, it) in enumerate([("a dog", "a dog"), ("a dog", "the dog"), ("a cat", "a cat")])
    ]

    class Perfect:
        """Says of every translation what it says of its English."""

        model_card_data = model.model_card_data

        def encode(self, inputs, **kwargs):
            plain = [text if isinstance(text, str) else text["text"] for text in inputs]
            return model.encode([text.replace("the dog", "a dog") for text in plain], **kwargs)

    scores = parallel_evaluator(Dataset.from_list(rows), ["it"], model)(Perfect())
    assert scores["it_mean_accuracy"] == 1


def test_training_and_evaluation_leave_a_default_prompt_out_alike(model):
    prompted = SentenceTransformer(
        str(tiny.embedder("llava")), device="cpu", prompts={"query": "find: "}, default_prompt_name="query"
    )
    rows = Dataset.from_list([{"id": "1", "image": None, "en": "a dog", "it": "un cane"}])
    assert np.abs(prompted.encode("a dog") - model.encode("a dog")).max() > 1e-4
    scores = parallel_evaluator(rows, ["it"], prompted)(model)
    assert scores["english_cosine"] == pytest.approx(1, abs=1e-6)
