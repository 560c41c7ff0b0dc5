"""Each content encoded once, neighbours, bare content, scores in blocks."""

import gc
import json
import random
import time
import tracemalloc
import weakref
from collections.abc import Iterator
from pathlib import Path

import mteb
import numpy as np
import pytest
import torch
from datasets import Dataset
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ScoringFunction
from mteb.types import PromptType
from PIL import Image as PILImage
from toys import CONCEPTS, Nothing, Random, Toy, write_published

from mmmeb_tasks.data.layout import BenchmarkRow
from mmmeb_tasks.models.encoder import MMMEBEncoder
from mmmeb_tasks.models.inputs import ModelInput
from mmmeb_tasks.models.search import best, searcher
from mmmeb_tasks.retrieval import split_data
from mmmeb_tasks.tasks import (
    Flickr30kEntitiesGrounding,
    ImageNetMultilingual,
    MaXMRanking,
    XTD10I2TRanking,
    XTD10T2IRanking,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published layout, synthetic."""
    return write_published(tmp_path_factory.mktemp("mmmeb") / "data")


class Plain(AbsEncoder):
    """A model as mteb's users write them: batches in, vectors out; it counts what it is given."""

    def __init__(self, *, use_instructions: bool | None) -> None:
        self.mteb_model_meta = ModelMeta.create_empty(
            overwrites={
                "name": "me/plain",
                "modalities": ["text", "image"],
                "use_instructions": use_instructions,
                "similarity_fn_name": ScoringFunction.COSINE,
            }
        )
        self.toy, self.seen = Toy(), []

    def encode(
        self,
        inputs: Iterator[dict],
        *,
        task_metadata: TaskMetadata,
        prompt_type: PromptType,
        **kwargs: object,
    ) -> np.ndarray:
        """One vector a row."""
        vectors = []
        for batch in inputs:
            size = len(next(iter(batch.values())))
            for n in range(size):
                item = {"text": batch["text"][n] if "text" in batch else ""}
                if "image" in batch:
                    item["image"] = batch["image"][n]
                shown = item["image"].getpixel((0, 0))[0] if "image" in item else None
                prompt = (task_metadata.prompt or {}).get(prompt_type.value)
                self.seen.append((shown, item["text"], prompt))
                vectors.append(self.toy.encode([item])[0])
        return np.stack(vectors)


def run(model: object, task: object) -> list[dict]:
    """All metrics, a language each."""
    results = mteb.evaluate(model, task, cache=None, co2_tracker=False, show_progress_bar=False)
    return results.task_results[0].scores["test"]


def test_an_image_of_five_languages_is_encoded_once_and_mteb_does_it_five_times(data: Path) -> None:
    ours, stock = Plain(use_instructions=False), Plain(use_instructions=False)
    run(ours, XTD10I2TRanking(data_root=data))
    images = [shown for shown, _, _ in ours.seen if shown is not None]
    assert sorted(images) == [*range(CONCEPTS)]

    run(stock, _stock_task(XTD10I2TRanking, data))
    assert len([shown for shown, _, _ in stock.seen if shown is not None]) == 5 * CONCEPTS
    # i2t and t2i of one dataset share images and captions.
    before = len(ours.seen)
    assert {entry["accuracy"] for entry in run(ours, XTD10T2IRanking(data_root=data))} == {1.0}
    new = ours.seen[before:]
    assert new and all(shown is None for shown, _, _ in new)


def _stock_task(kind: type, data: Path) -> object:
    task = kind(data_root=data)
    task._evaluate_subset = lambda *args, **kwargs: mteb.abstasks.AbsTaskRetrieval._evaluate_subset(
        task, *args, **kwargs
    )
    return task


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """XTD10 in English: 40 queries, each with 30 candidates, far more than the ten that are kept."""
    root, picks = tmp_path_factory.mktemp("many"), random.Random(0)
    (root / "xtd_images").mkdir()
    (root / "datasets").mkdir()
    for number in range(40):
        PILImage.new("RGB", (2, 2), (number, 0, 0)).save(root / "xtd_images" / f"{number}.jpg", "PNG")
    for kind in ("i2t", "t2i"):
        lines = []
        for number in range(40):
            own = [number, *picks.sample([n for n in range(40) if n != number], 29)]
            texts, images = [f"en name {n}" for n in own], [str(n) for n in own]
            fields = {"img": images[0], "captions": texts, "text": texts[0], "images": images}
            lines.append(json.dumps({"id": str(number)} | fields) + "\n")
        (root / "datasets" / f"xtd_en_1000_formatted_{kind}.jsonl").write_text("".join(lines))
    return root


class Noisy(Random):
    """Right for some queries: a direction for each number, and another one for each thing read."""

    def vector(self, number: int, read: str) -> np.ndarray:
        """Both with the same weight."""
        return np.random.default_rng(number).standard_normal(16) + super().vector(number, read)


@pytest.mark.parametrize("task", [XTD10I2TRanking, XTD10T2IRanking])
def test_metrics_of_a_random_model_equal_those_of_stock_mteb(many: Path, task: type) -> None:
    """No two scores are equal, so nothing is left to the order of ties, which differs beyond ten."""
    metrics = []
    for asked in (task(data_root=many), _stock_task(task, many)):
        model = Plain(use_instructions=False)
        model.toy = Noisy()
        entry = run(model, asked.filter_languages(None, hf_subsets=["en"]))[0]
        metrics.append({name: value for name, value in entry.items() if isinstance(value, float)})
    ours, stock = metrics
    assert ours == pytest.approx(stock, nan_ok=True)
    values = {ours[f"{name}_at_{k}"] for name in ("ndcg", "recall", "map", "mrr") for k in (1, 5, 10)}
    assert len(values) > 6 and 0 < min(values) and max(values) < 1  # no constants are compared


def test_a_model_without_instructions_gets_the_bare_content(data: Path) -> None:
    model = Plain(use_instructions=False)
    run(model, ImageNetMultilingual(data_root=data).filter_languages(None, hf_subsets=["it", "de"]))
    run(model, MaXMRanking(data_root=data).filter_languages(None, hf_subsets=["fr"]))
    texts = {text for shown, text, _ in model.seen if shown is None}
    assert {"immagine di it name 3", "Bild von de name 3", "fr name 3"} <= texts
    assert {text for shown, text, _ in model.seen if shown is not None} == {"", "fr text 5"}
    assert {prompt for _, _, prompt in model.seen} == {None}


def test_a_model_with_instructions_gets_the_languages_instruction_as_prompt(data: Path) -> None:
    model = Plain(use_instructions=True)
    run(model, ImageNetMultilingual(data_root=data).filter_languages(None, hf_subsets=["it", "de"]))
    prompts = {prompt for shown, _, prompt in model.seen if shown is not None}
    assert prompts == {
        "Rappresenta l'immagine data per la classificazione",
        "Stellen Sie das gegebene Bild für die Klassifizierung dar",
    }
    assert {text for shown, text, _ in model.seen if shown is None} >= {"it name 3", "de name 3"}
    assert len(model.seen) == len(set(model.seen))


class Apart(Nothing):
    """Takes images and texts, not together."""

    modalities = ["text", "image"]


class Clip(Toy):
    """A toy of two towers: it sees the number of an image, or reads the one in a text."""

    def __init__(self) -> None:
        super(Toy, self).__init__(modules=[Apart()], device="cpu")
        self.asked: list = []

    def encode(self, inputs: list, **kwargs: object) -> np.ndarray:
        """One vector an input, never of both."""
        for item in inputs:
            item = {"text": item} if isinstance(item, str) else item
            assert len(item) == 1
            self.asked.append(item.get("text"))
        items = [item if isinstance(item, str) else {"text": "", **item} for item in inputs]
        return super().encode(items, **kwargs)


def test_a_clip_like_model_gets_bare_content_and_the_sum_of_image_and_text(data: Path) -> None:
    model = Clip()
    encoder = MMMEBEncoder(model, show_progress=False)
    assert encoder.mteb_model_meta.use_instructions is False
    metrics = run(encoder, MaXMRanking(data_root=data).filter_languages(None, hf_subsets=["en"]))
    assert {text for text in model.asked if text} == {"en text 5", *(f"en name {i}" for i in range(CONCEPTS))}
    assert model.asked.count(None) == CONCEPTS
    # The question's number and the image's are both near, the sum's own is not.
    assert metrics[0]["accuracy"] < 1 and metrics[0]["hit_rate_at_5"] > 0
    both = encoder.embed(
        encoder.read(
            split_data([BenchmarkRow(1, "a", data / "maxm_v1_images/2.jpg", "en text 5", ("x 1",))], "vqa")["queries"],
            MaXMRanking.metadata,
            "en",
            PromptType.query,
        ),
        task="t",
    )
    assert both[0].tolist() == [1.0 if n in (2, 5) else 0.0 for n in range(CONCEPTS)]
    with pytest.raises(ValueError, match="style 'punct' has no meaning"):
        MMMEBEncoder(model, style="punct")


class Watching(Toy):
    """Keeps which images stood in which call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[list[tuple[int | None, str]]] = []

    def encode(self, inputs: list, **kwargs: object) -> np.ndarray:
        """Note the images and texts of a call."""
        items = [{"text": item} if isinstance(item, str) else item for item in inputs]
        self.calls.append(
            [(item["image"].getpixel((0, 0))[0] if "image" in item else None, item["text"]) for item in items]
        )
        return super().encode(inputs, **kwargs)


@pytest.mark.parametrize("task", [XTD10I2TRanking, Flickr30kEntitiesGrounding])
def test_rows_of_one_image_are_neighbours_across_languages(data: Path, task: type) -> None:
    model = Watching()
    metrics = run(MMMEBEncoder(model, batch_size=10, show_progress=False), task(data_root=data))
    languages = len(task.metadata.hf_subsets)
    assert [entry["accuracy"] for entry in metrics] == [1.0] * languages
    with_images = [[n for n, _ in call] for call in model.calls if call[0][0] is not None]
    seen = [shown for call in with_images for shown in call]
    runs = 1 + sum(a != b for a, b in zip(seen, seen[1:], strict=False))
    sides = 1 if task is XTD10I2TRanking else 2
    assert len(seen) == CONCEPTS * languages * sides
    assert runs <= CONCEPTS * sides
    for call in with_images:
        assert all(call.count(shown) == languages for shown in call)


def test_a_resumed_run_encodes_the_first_language_only(data: Path) -> None:
    model = Watching()
    task = XTD10I2TRanking(data_root=data)
    task.load_data()
    encoder = MMMEBEncoder(model, show_progress=False)
    task.evaluate(encoder, "test", subsets_to_run=["es"], encode_kwargs={})
    texts = {text for call in model.calls for shown, text in call if shown is not None}
    assert texts == {"Encuentra una leyenda que describa la imagen cotidiana dada"}


def test_of_equal_scores_the_later_wins_also_beyond_the_tenth() -> None:
    scores = np.array([1.0] * 30 + [2.0], np.float32)
    places, values = best(scores, np.arange(31), 10)
    assert places.tolist() == [30, *range(29, 20, -1)]
    assert values.tolist() == [2.0] + [1.0] * 9
    shuffled = random.Random(0).sample(range(31), 31)
    assert best(scores, np.array(shuffled), 10)[0].tolist() == places.tolist()
    assert best(scores, np.array([4]), 10)[0].tolist() == [4]


def test_scores_that_are_not_numbers_are_refused(data: Path) -> None:
    class Broken(Toy):
        def vector(self, number: int, read: str) -> np.ndarray:
            return np.full(4, np.nan)

    with pytest.raises(ValueError, match="scores are not numbers"):
        run(MMMEBEncoder(Broken(), show_progress=False), MaXMRanking(data_root=data))


def test_what_is_kept_of_a_model_goes_with_it(data: Path) -> None:
    model = Plain(use_instructions=False)
    run(model, MaXMRanking(data_root=data))
    assert searcher(model, {})._vectors
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


class Given(MMMEBEncoder):
    """The vectors are there already."""

    def __init__(self, vectors: dict[str, np.ndarray]) -> None:
        super().__init__(Toy())
        self.given = vectors

    def embed(self, items: list[ModelInput], **kwargs: object) -> np.ndarray:
        """No model is run."""
        return np.stack([self.given[item.text] for item in items])

    def read(self, rows: Dataset, *args: object) -> list[ModelInput]:
        """Texts as they are."""
        return [ModelInput(text) for text in rows["text"][:]]


def test_scoring_is_fast_and_small() -> None:
    """A tenth of 3,600 queries x 1,000 candidates x 5 languages, apart from encoding.

    The whole may take 30 s on two cores and 2 GB: 6 CPU seconds and 0.2 GB here.
    """
    rng, picks = np.random.default_rng(0), random.Random(0)
    texts = [f"caption {number}" for number in range(1800)]
    vectors = dict(zip(texts, rng.standard_normal((1800, 512)).astype(np.float32), strict=True))
    own = {f"{n}": sorted(picks.sample(texts, 1000)) for n in range(360)}
    queries = Dataset.from_dict({"id": [*own], "text": texts[:360]})
    search = searcher(Given(vectors), {})
    search.index(Dataset.from_dict({"id": sorted(texts), "text": sorted(texts)}))
    facts = {"task_metadata": XTD10I2TRanking.metadata, "hf_split": "test", "hf_subset": "en"}
    tracemalloc.start()
    start = time.process_time()
    for _ in range(5):
        found = search.search(queries, top_k=10, encode_kwargs={}, top_ranked=own, **facts)
    seconds = time.process_time() - start
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 6 and peak < 2e8
    candidates = torch.tensor(np.stack([vectors[text] for text in own["7"]]))
    exact = torch.nn.functional.cosine_similarity(torch.tensor(vectors[texts[7]])[None], candidates)
    top = exact.topk(10)
    assert list(found["7"]) == [own["7"][n] for n in top.indices]
    assert list(found["7"].values()) == pytest.approx(top.values.tolist(), abs=1e-5)
