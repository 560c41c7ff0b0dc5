"""The encoder: exact texts with images, each once; a name for each state of the weights."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from mteb._create_dataloaders import create_dataloader
from mteb.cache import ResultCache
from mteb.mocks import MockSTSTask
from mteb.models import SentenceTransformerEncoderWrapper
from mteb.types import PromptType
from PIL import Image as PILImage
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import InputModule
from torch.utils.data import DataLoader

from mmmeb_tasks.mini.tasks import (
    MiniClassification,
    MiniGrounding,
    MiniI2TRanking,
    MiniT2IRanking,
    MiniVQARanking,
)
from mmmeb_tasks.models.encoder import MMMEBEncoder, ModelInput, model_input, model_meta
from mmmeb_tasks.retrieval import MMMEBRetrieval


class Weights(InputModule):
    """Four weights, a folder that they came from, and nothing that computes."""

    config_keys = ["pooling"]

    def __init__(self, modalities: tuple[str, ...], folder: str = "", pooling: str = "last") -> None:
        super().__init__()
        self.taken, self.pooling, self.tokenizer = list(modalities), pooling, None
        self.config = SimpleNamespace(name_or_path=folder)
        self.linear = torch.nn.Linear(2, 2, bias=False)
        self.linear.weight.data = torch.arange(4.0).reshape(2, 2)

    @property
    def modalities(self) -> list[str]:
        """What the model takes."""
        return self.taken

    def forward(self, features: dict, **kwargs: object) -> dict:
        """Never run."""
        return features

    def save(self, *args: object, **kwargs: object) -> None:
        """Never saved."""


class Recorder(SentenceTransformer):
    """A model that keeps what it is asked to encode, and answers with random vectors in float16."""

    def __init__(self, modalities: tuple[str, ...] = ("text", "image", "message"), **kwargs: str) -> None:
        super().__init__(modules=[Weights(modalities, **kwargs)], device="cpu")
        self.inputs: list = []
        self.calls: list[dict] = []

    def encode(self, inputs: list, **kwargs: object) -> np.ndarray:
        """Keep the call; one random row of three numbers an input."""
        self.inputs += inputs
        self.calls.append(kwargs)
        vectors = np.random.default_rng(len(self.inputs)).standard_normal((len(inputs), 3))
        return vectors.astype(np.float16)


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    """Three images, of them one with transparency, and the third a copy of the first."""
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    for path, mode in zip(paths, ("RGB", "RGBA", "RGB"), strict=True):
        PILImage.new(mode, (4, 3), "red").save(path)
    return paths


def loader(**columns: list) -> DataLoader:
    """Rows as mteb hands them over."""
    features = {name: Image() if name == "image" else Value("string") for name in columns}
    return DataLoader(Dataset.from_dict(columns, features=Features(features)))


def encode(encoder: MMMEBEncoder, task: type[MMMEBRetrieval], lang: str, side: str, **columns: list) -> np.ndarray:
    """Rows of one side of a task through the encoder."""
    return encoder.encode(
        loader(**columns),
        task_metadata=task.metadata,
        hf_split="test",
        hf_subset=lang,
        prompt_type=PromptType(side),
        batch_size=2,
    )


def seen(model: Recorder) -> list:
    """What the model got; an image as its mode and size."""

    def plain(item: object) -> object:
        if isinstance(item, dict):
            return {key: plain(value) for key, value in item.items()}
        return (item.mode, item.size) if isinstance(item, PILImage.Image) else item

    return [plain(item) for item in model.inputs]


RGB = ("RGB", (4, 3))


def test_the_model_gets_the_exact_text_with_the_image(images: list[str]) -> None:
    model = Recorder()
    encoder = MMMEBEncoder(model, show_progress=False)
    encode(encoder, MiniI2TRanking, "en", "query", image=images[:2])
    encode(encoder, MiniI2TRanking, "en", "document", text=["A dog. "], body=[" A dog. "])
    encode(encoder, MiniT2IRanking, "de", "query", text=["Ein Hund."])
    encode(encoder, MiniT2IRanking, "de", "document", image=images[:1])
    encode(encoder, MiniClassification, "it", "query", image=images[:1])
    encode(encoder, MiniVQARanking, "fr", "query", image=images[:1], text=["quoi ?"])
    encode(encoder, MiniGrounding, "es", "query", image=images[:1], text=["perro"])
    encode(encoder, MiniGrounding, "es", "document", image=images[:1])
    query = "Find an image caption describing the given everyday image"
    ground = 'Selecciona la parte de la imagen que aísla el objeto etiquetado como "perro"'
    assert seen(model) == [
        {"image": RGB, "text": query},
        {"image": RGB, "text": query},
        " A dog. ",  # mteb's "text" is stripped, its "body" is what the file says
        "Finde mir ein alltägliches Bild, das der gegebenen Beschriftung entspricht: Ein Hund",
        {"image": RGB, "text": "Stelle das gegebene Bild dar"},
        {"image": RGB, "text": "Rappresenta l'immagine data per la classificazione"},
        {"image": RGB, "text": "Représentez l'image donnée avec la question suivante: quoi "},
        {"image": RGB, "text": ground},
        {"image": RGB, "text": "Representa la imagen recortada del objeto"},
    ]
    # An image+text row goes image first; a default prompt of the model stays out.
    assert [*model.inputs[0]] == ["image", "text"]
    assert {call["prompt"] for call in model.calls} == {""}


def test_the_style_is_in_the_text_and_in_the_place_of_results(images: list[str], tmp_path: Path) -> None:
    model = Recorder()
    newline, plain = MMMEBEncoder(model, style="newline"), MMMEBEncoder(model)
    encode(newline, MiniVQARanking, "en", "query", image=images[:1], text=["why"])
    assert model.inputs[0]["text"].endswith("question: why?\n")
    paths = [ResultCache(tmp_path).get_task_result_path("T", e.mteb_model_meta) for e in (newline, plain)]
    assert paths[0] != paths[1]
    with pytest.raises(ValueError, match="unknown style 'loud'; known: plain, punct, newline"):
        MMMEBEncoder(model, style="loud")  # type: ignore[arg-type]


def test_the_same_image_and_text_are_encoded_once(images: list[str]) -> None:
    model = Recorder()
    encoder = MMMEBEncoder(model, show_progress=False)
    one = encode(encoder, MiniI2TRanking, "en", "query", image=images)
    assert len(model.inputs) == 2  # the third is a copy of the first
    assert (one[0] == one[2]).all() and not (one[0] == one[1]).all()
    two = encode(encoder, MiniI2TRanking, "en", "query", image=images[::-1])
    assert len(model.inputs) == 2 and (two == one[::-1]).all()
    encode(encoder, MiniI2TRanking, "it", "query", image=images)
    assert len(model.inputs) == 4  # another text, another vector
    encode(encoder, MiniI2TRanking, "en", "document", text=["dog", "cat", "dog"])
    encode(encoder, MiniClassification, "en", "document", text=["dog", "bird"])
    assert model.inputs[4:] == ["dog", "cat", "bird"]
    assert one.shape == (3, 3) and one.dtype == np.float32


def test_blocks_give_each_row_its_own_vector() -> None:
    class Numbers(Recorder):
        def encode(self, inputs: list, **kwargs: object) -> np.ndarray:
            self.inputs += [len(inputs)]
            return np.array([[float(text)] for text in inputs])

    model = Numbers()
    encoder = MMMEBEncoder(model, batch_size=2, show_progress=False)
    texts = [str(i % 40) for i in range(100)]
    vectors = encode(encoder, MiniI2TRanking, "en", "document", text=texts)
    assert vectors.ravel().tolist() == [i % 40 for i in range(100)]
    assert model.inputs == [16, 16, 8]


@pytest.mark.parametrize(("own", "used"), [(64, 64), (None, 2)])
def test_the_batch_size_is_the_encoders_or_mtebs(own: int | None, used: int) -> None:
    model = Recorder()
    encode(MMMEBEncoder(model, batch_size=own), MiniI2TRanking, "en", "document", text=["x"])
    assert model.calls[0]["batch_size"] == used


def test_a_text_only_model_is_refused_where_rows_have_an_image(images: list[str]) -> None:
    encoder = MMMEBEncoder(Recorder(("text",)))
    assert encoder.mteb_model_meta.modalities == ["text"]
    with pytest.raises(ValueError, match="MiniVQARanking has rows of image with text, but .*text"):
        encode(encoder, MiniVQARanking, "en", "query", image=images[:1], text=["x"])
    assert encode(encoder, MiniVQARanking, "en", "document", text=["x"]).shape == (1, 3)


def test_a_model_that_takes_images_and_texts_apart_is_refused_for_both(
    images: list[str],
) -> None:
    encoder = MMMEBEncoder(Recorder(("text", "image")), instructions=True)
    with pytest.raises(ValueError, match="rows of image with text"):
        encode(encoder, MiniI2TRanking, "en", "query", image=images[:1])
    together = MMMEBEncoder(Recorder(("text", "image", ("image", "text"))))  # type: ignore[arg-type]
    assert encode(together, MiniI2TRanking, "en", "query", image=images[:1]).shape == (1, 3)


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    encoder = MMMEBEncoder(Recorder(), show_progress=False)
    with pytest.raises(ValueError, match="image .*broken.png cannot be read"):
        encode(encoder, MiniI2TRanking, "en", "query", image=[str(tmp_path / "broken.png")])


def test_an_image_cut_off_in_the_middle_is_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    PILImage.fromarray(noise).save(tmp_path / "whole.png")
    cut = (tmp_path / "whole.png").read_bytes()[:2000]
    (tmp_path / "cut.png").write_bytes(cut)
    encoder = MMMEBEncoder(Recorder(), show_progress=False)
    with pytest.raises(ValueError, match="image .*cut.png cannot be read"):
        encode(encoder, MiniI2TRanking, "en", "query", image=[str(tmp_path / "cut.png")])


def test_an_image_that_is_too_large_is_named(images: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PILImage, "MAX_IMAGE_PIXELS", 5)  # Pillow refuses twice as many; these have 12
    with pytest.raises(ValueError, match="image .*0.png cannot be read: .*exceeds limit"):
        encode(MMMEBEncoder(Recorder()), MiniI2TRanking, "en", "query", image=images[:1])


def test_scores_of_another_precision_are_refused() -> None:
    encoder = MMMEBEncoder(Recorder())
    with pytest.raises(ValueError, match="precision 'int8': scores are of float32 only"):
        encoder.encode(
            loader(text=["x"]),
            task_metadata=MiniI2TRanking.metadata,
            hf_split="test",
            hf_subset="en",
            prompt_type=PromptType.document,
            precision="int8",
        )


def test_a_language_without_instructions_is_refused(images: list[str]) -> None:
    with pytest.raises(ValueError, match="'fi'; known: en, it, es, fr, de"):
        encode(MMMEBEncoder(Recorder()), MiniI2TRanking, "fi", "query", image=images[:1])


def test_other_weights_are_another_revision_and_never_share_a_result(tmp_path: Path) -> None:
    first, second, same = Recorder(), Recorder(), Recorder()
    with torch.no_grad():
        second[0].linear.weight[0, 0] += 1e-6
    metas = [model_meta(m, name="x/y", style="plain") for m in (first, second, same)]
    paths = [ResultCache(tmp_path).get_task_result_path("T", meta) for meta in metas]
    assert paths[0] != paths[1] and paths[0] == paths[2]
    assert len(metas[0].revision) == 40


def test_other_settings_are_another_revision() -> None:
    first = MMMEBEncoder(Recorder()).mteb_model_meta.revision
    assert MMMEBEncoder(Recorder(pooling="mean")).mteb_model_meta.revision != first
    with_template = Recorder()
    with_template[0].processor = SimpleNamespace(chat_template="{{ messages }}")
    assert MMMEBEncoder(with_template).mteb_model_meta.revision != first


@pytest.mark.parametrize(("name", "side"), [("query", PromptType.query), ("STS", None)])
def test_a_task_that_is_not_of_mmmeb_gets_the_models_own_prompts(name: str, side: PromptType | None) -> None:
    """As mteb's wrapper calls the model; by the side, or by the task's type."""
    calls = []
    for wrap in (MMMEBEncoder, SentenceTransformerEncoderWrapper):
        model = Recorder()
        model.prompts = {"query": "", "document": "", name: "ask: "}
        facts = {"task_metadata": MockSTSTask.metadata, "hf_split": "test", "hf_subset": "default"}
        wrap(model).encode(loader(text=["dog", "cat"]), prompt_type=side, batch_size=64, **facts)
        calls.append([(call.get("prompt"), call["batch_size"]) for call in model.calls])
        assert model.inputs == ["dog", "cat"]
    assert calls[0] == calls[1] == [("ask: ", 64)]


def test_a_task_that_is_not_of_mmmeb_gets_images_and_refuses_to_lose_them(images: list[str]) -> None:
    metadata = MockSTSTask.metadata.model_copy(update={"modalities": ["image", "text"]})
    facts = {"task_metadata": metadata, "hf_split": "test", "hf_subset": "default"}
    model = Recorder()
    rows = loader(image=images[:1], text=["x"]).dataset
    MMMEBEncoder(model).encode(create_dataloader(rows, task_metadata=metadata), **facts)
    assert seen(model) == [{"image": RGB, "text": "x"}]
    with pytest.raises(ValueError, match="MockSTSTask has rows of image, but the model takes"):
        MMMEBEncoder(Recorder(("text",))).encode(loader(image=images[:1]), **facts)


def test_other_prompts_are_another_revision() -> None:
    model = Recorder()
    first = MMMEBEncoder(model).mteb_model_meta.revision
    model.prompts = {"query": "ask: "}
    assert MMMEBEncoder(model).mteb_model_meta.revision != first


def test_weights_of_every_shape_and_type_are_hashed() -> None:
    model = Recorder()
    model[0].register_buffer("scalar", torch.tensor(3))
    model[0].register_buffer("bf16", torch.ones(2, 3, dtype=torch.bfloat16).T)
    before = MMMEBEncoder(model).mteb_model_meta.revision
    model[0].bf16[2, 1] = 2
    assert MMMEBEncoder(model).mteb_model_meta.revision != before


@pytest.mark.parametrize(
    ("folder", "name", "expected"),
    [
        ("", None, "local/Recorder"),
        ("org/model", None, "org/model"),
        ("{tmp}/student", None, "local/student"),
        ("{tmp}/student", "mine", "local/mine"),
        ("{tmp}/student", "me/mine", "me/mine"),
    ],
)
def test_names(tmp_path: Path, folder: str, name: str | None, expected: str) -> None:
    (tmp_path / "student").mkdir()
    model = Recorder(folder=folder.format(tmp=tmp_path))
    assert MMMEBEncoder(model, name=name).mteb_model_meta.name == expected


def test_images_in_the_data_are_read_like_files(images: list[str]) -> None:
    model = Recorder()
    rows = Dataset.from_dict({"image": [PILImage.open(path) for path in images[:1]]})
    MMMEBEncoder(model, show_progress=False).encode(
        DataLoader(rows),
        task_metadata=MiniT2IRanking.metadata,
        hf_split="test",
        hf_subset="en",
        prompt_type=PromptType.document,
    )
    assert seen(model) == [{"image": RGB, "text": "Represent the given image"}]


def test_similarity_is_the_cosine_in_float32() -> None:
    encoder = MMMEBEncoder(Recorder())
    scores = encoder.similarity(np.array([[3.0, 4.0]], np.float16), np.array([[4.0, 3.0]]))
    assert scores.dtype == torch.float32 and scores.item() == pytest.approx(24 / 25)


def test_an_item_without_an_image_is_its_text() -> None:
    assert model_input(ModelInput("a dog")) == "a dog"
