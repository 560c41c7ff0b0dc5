"""A text of a corpus or a benchmark is embedded as text, also where it is an address or a path."""

import http.server
import threading

import mteb
import numpy as np
import pytest
import tiny
from datasets import Dataset, Features, Value
from datasets import Image as DatasetImage
from mteb._create_dataloaders import create_dataloader
from mteb.models import SentenceTransformerEncoderWrapper
from PIL import Image
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from test_models import tiny_clip
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from mmmeb_tasks.mini.tasks import MiniClassification
from mmmeb_tasks.models.baselines import multilingual_clip
from mmmeb_tasks.models.encoder import MMMEBEncoder
from mmmeb_tasks.models.inputs import ModelInput, model_input
from mmmeb_tasks.models.search import searcher
from xvlm2vec_st import MultilingualDistillationLoss, SentenceTransformer
from xvlm2vec_st.data.collator import ParallelCollator
from xvlm2vec_st.training.evaluation import parallel_evaluator


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
    loss.teacher.live.needs_inputs = True
    row = {"id": "1", "image": None, "en": text, "it": "mela"}
    batch = ParallelCollator(model.preprocess, languages=("it",), inputs=True)([row])
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
    vectors = MMMEBEncoder(model, show_progress=False).embed([ModelInput(text), ModelInput("a dog")], task="a task")
    assert np.abs(vectors[0] - as_words(model, text)).max() < 1e-5
    assert model_input(ModelInput("a dog")) == "a dog"
    assert not server.asked


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A model that takes images and texts, apart."""
    return tiny_clip(tmp_path_factory.mktemp("clip"))


def rows(*texts):
    return Dataset.from_dict({"id": [str(number) for number in range(len(texts))], "text": texts})


FACTS = {"hf_split": "test", "hf_subset": "default"}


def test_on_a_task_that_is_not_of_the_benchmark(model, text, server):
    metadata = mteb.get_task("Banking77Classification").metadata
    loader = create_dataloader(rows(text, "a dog"), task_metadata=metadata, batch_size=2)
    encoder = MMMEBEncoder(model, show_progress=False)
    vectors = encoder.encode(loader, task_metadata=metadata, **FACTS, show_progress_bar=False)
    assert np.abs(vectors[0] - as_words(model, text)).max() < 1e-5
    assert not server.asked


def test_in_a_search_by_a_model_that_mteb_wraps(clip, text, server, tmp_path):
    wrapper = SentenceTransformerEncoderWrapper(clip)
    wrapper.mteb_model_meta = wrapper.mteb_model_meta.model_copy(
        update={"use_instructions": True, "modalities": ["text", "image"]}
    )
    search = searcher(wrapper, {})
    assert search.model is wrapper
    search.index(rows(text, "a dog"))
    facts = {"task_metadata": MiniClassification.metadata, "hf_split": "test", "hf_subset": "en"}
    asked = {"top_k": 2, "encode_kwargs": {"show_progress_bar": False}, "top_ranked": {"0": ["0", "1"]}}
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "blue.png")
    query = {"id": ["0"], "image": [str(tmp_path / "blue.png")]}
    features = Features({"id": Value("string"), "image": DatasetImage()})
    found = search.search(Dataset.from_dict(query, features=features), **facts, **asked)
    blue = clip.encode([Image.open(tmp_path / "blue.png")])
    assert found["0"]["0"] == pytest.approx(float(clip.similarity(blue, as_words(clip, text))), abs=1e-5)
    assert not server.asked


def test_of_a_baseline(clip, text, server, tmp_path):
    clip.save_pretrained(str(tmp_path / "clip"))
    towers = multilingual_clip(str(tmp_path / "clip"), partner=str(tmp_path / "clip"), device="cpu")
    assert np.abs(towers.texts([text, "a dog"], 2)[0] - as_words(clip, text)).max() < 1e-5
    assert not server.asked


def test_by_a_model_of_texts_alone_which_need_not_know_dicts(text, server):
    words = Tokenizer(WordLevel({"[UNK]": 0, "a": 1, "dog": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    static = SentenceTransformer(modules=[StaticEmbedding(words, embedding_dim=4)], device="cpu")
    vectors = MMMEBEncoder(static, show_progress=False).embed([ModelInput(text), ModelInput("a dog")], task="a task")
    assert np.array_equal(vectors, static.encode([text, "a dog"]))
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
