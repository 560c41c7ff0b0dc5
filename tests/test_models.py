"""Models that run by name: local folders and their revisions, the baselines."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import mteb
import numpy as np
import pytest
import torch
import transformers
from mteb.cache import ResultCache
from PIL import Image as PILImage
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from toys import Toy, write_published

from mmmeb_tasks.mini import TEACHER
from mmmeb_tasks.models import baselines
from mmmeb_tasks.models import local_folders as models
from mmmeb_tasks.models.encoder import MMMEBEncoder
from mmmeb_tasks.models.local_folders import Registry, folder_meta, modalities_from_files
from mmmeb_tasks.tasks import MaXMRanking


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the bundled model."""
    return Path(shutil.copytree(TEACHER, tmp_path / "mine"))


def train_more(folder: Path) -> None:
    """Change one weight."""
    weights = load_file(folder / "model.safetensors")
    name = sorted(weights)[0]
    weights[name].view(-1)[0] += 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def test_more_training_is_another_revision_and_a_card_is_not(folder: Path, tmp_path: Path) -> None:
    first = folder_meta(folder)
    (folder / "README.md").write_text("another card")
    (folder / "report").mkdir()
    (folder / "report" / "scores.json").write_text("{}")
    assert folder_meta(folder).revision == first.revision
    train_more(folder)
    second = folder_meta(folder)
    assert second.revision != first.revision and second.name == first.name == "local/mine"
    cache = ResultCache(tmp_path)
    assert cache.get_task_result_path("T", first) != cache.get_task_result_path("T", second)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert folder_meta(folder).revision != second.revision


def test_other_prompts_are_another_revision_and_other_versions_are_not(folder: Path) -> None:
    path, first = folder / "config_sentence_transformers.json", folder_meta(folder).revision
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"__version__": {"sentence_transformers": "99"}}))
    assert folder_meta(folder).revision == first
    path.write_text(json.dumps(settings | {"prompts": {"query": "query: ", "document": ""}}))
    assert folder_meta(folder).revision != first


def test_two_folders_of_one_name_have_two_places_for_results(folder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "elsewhere" / "mine"))
    train_more(other)
    paths = [ResultCache(tmp_path).get_task_result_path("T", folder_meta(path)) for path in (folder, other)]
    assert paths[0] != paths[1]


def test_a_folder_is_a_model_of_mteb(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    for name in (str(folder), "./mine", "mine"):
        meta = mteb.get_model_meta(name)
        assert (meta.name, meta.modalities, meta.use_instructions) == ("local/mine", ["text", "image"], True)
    model = mteb.get_model("./mine")
    assert isinstance(model, MMMEBEncoder)
    assert model.mteb_model_meta.revision == folder_meta(folder).revision
    assert type(model.model).__module__.startswith("xvlm2vec_st")


def test_a_path_without_a_model_and_a_missing_xvlm2vec_are_reported(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no model in nothing .*no modules.json, no config.json"):
        mteb.get_model_meta("./nothing")
    with pytest.raises(ValueError, match="no model in xvlm2vec .*; xvlm2vec demo writes it"):
        mteb.get_model_meta("xvlm2vec")


def test_xvlm2vec_is_the_folder_that_the_demo_makes(folder: Path, monkeypatch) -> None:
    folder.rename(folder.with_name("xvlm2vec"))
    monkeypatch.chdir(folder.parent)
    assert mteb.get_model_meta("xvlm2vec").name == "local/xvlm2vec"


def test_a_registered_name_is_never_a_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "google/siglip-base-patch16-256-multilingual"
    shutil.copytree(TEACHER, tmp_path / name)
    assert mteb.get_model_meta(name).name == name
    assert "no/such-model" not in Registry({})
    with pytest.raises(KeyError, match="not found"):
        mteb.get_model_meta("no/such-model")


def test_a_style_is_in_the_place_of_results(folder: Path) -> None:
    plain, punct = folder_meta(folder), folder_meta(folder, style="punct")
    assert plain.experiment_name is None and "punct" in punct.experiment_name
    with pytest.raises(ValueError, match="unknown style 'loud'"):
        folder_meta(folder, style="loud")  # type: ignore[arg-type]


BOTH = {"image": {}, "text": {}}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"sentence_bert_config.json": {"modality_config": {"text": {}}}}, (["text"], True)),
        ({"sentence_bert_config.json": {"modality_config": BOTH}}, (["text", "image"], False)),
        ({"config.json": {"model_type": "llava", "vision_config": {}}}, (["text", "image"], True)),
        ({"config.json": {"model_type": "phi3_v", "img_processor": {}}}, (["text", "image"], True)),
        ({"config.json": {"model_type": "siglip", "vision_config": {}}}, (["text", "image"], False)),
        ({"config.json": {"model_type": "bert"}}, (["text"], True)),
        ({"sentence_bert_config.json": {"max_seq_length": 128}, "config.json": {}}, (["text"], True)),
    ],
)
def test_modalities_by_the_files(tmp_path: Path, files: dict, expected: tuple) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert modalities_from_files(tmp_path) == expected


def test_a_model_that_takes_other_than_its_files_say_is_refused(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(models, "modalities_from_files", lambda path: (["text"], True))
    with pytest.raises(ValueError, match="takes text and image, but its files say text; save it again"):
        models.load_folder("local/mine", folder=str(folder))


def tiny_clip(folder: Path) -> SentenceTransformer:
    """A CLIP of a few thousand weights, as sentence-transformers loads it."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<pad>", "<unk>", "en", "fr", "text", "name", *map(str, range(13)), "image", "of", "de"]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<pad>"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=16, **special)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={"vocab_size": len(words), "max_position_embeddings": 16, "eos_token_id": 0, **size},
        vision_config={"image_size": 8, "patch_size": 4, **size},
        projection_dim=8,
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(0)
    transformers.CLIPModel(config).save_pretrained(folder)
    pixels = {"size": {"height": 8, "width": 8}, "crop_size": {"height": 8, "width": 8}}
    transformers.CLIPProcessor(CLIPImageProcessorPil(**pixels), fast).save_pretrained(folder)
    return SentenceTransformer(str(folder))


def test_clip_takes_images_and_texts_apart_and_is_scored_on_both(tmp_path: Path) -> None:
    model = tiny_clip(tmp_path / "clip")
    encoder = MMMEBEncoder(model, show_progress=False)
    assert (encoder.style, encoder.mteb_model_meta.modalities) == (None, ["text", "image"])
    assert modalities_from_files(tmp_path / "clip") == (["text", "image"], False)
    task = MaXMRanking(data_root=write_published(tmp_path / "data"))
    results = mteb.evaluate(encoder, task, cache=None, co2_tracker=False, show_progress_bar=False)
    assert 0 <= results.task_results[0].get_score() <= 1


class Towers(Toy):
    """Stands for a sentence-transformers model of the Hub."""

    loaded: list[tuple] = []

    def __init__(self, name: str, revision: str | None = None, device: str | None = None) -> None:
        super().__init__()
        self.loaded.append((name, revision))

    def encode(self, inputs: list, **kwargs: object) -> np.ndarray:
        """Texts by their number, images by theirs."""
        return super().encode([i if isinstance(i, str) else {"image": i, "text": ""} for i in inputs])


def test_clip_vit_b_32_multilingual_has_its_image_partner(tmp_path: Path, monkeypatch) -> None:
    import sentence_transformers

    monkeypatch.setattr(sentence_transformers, "SentenceTransformer", Towers)
    model = mteb.get_model("sentence-transformers/clip-ViT-B-32-multilingual-v1", device="cpu")
    assert [name for name, _ in Towers.loaded] == [
        "sentence-transformers/clip-ViT-B-32-multilingual-v1",
        "sentence-transformers/clip-ViT-B-32",
    ]
    assert {*model.mteb_model_meta.modalities} == {"text", "image"}
    task = MaXMRanking(data_root=write_published(tmp_path / "data"))
    split = {"text": ["en text 5"], "image": [PILImage.new("RGB", (2, 2), (3, 0, 0))]}
    vector = model.encode([split], task_metadata=task.metadata, hf_split="", hf_subset="")[0]
    assert vector.nonzero()[0].tolist() == [3, 5]
    results = mteb.evaluate(model, task, cache=None, co2_tracker=False, show_progress_bar=False)
    assert results.task_results[0].get_score() < 1  # what a sum can tell


def test_m_clip_is_the_mean_of_xlm_r_mapped_to_the_image_tower(tmp_path: Path, monkeypatch) -> None:
    """The published files in small: config, weights with a pooler and positions, a tokenizer."""
    tiny_clip(tmp_path / "clip")  # for its tokenizer
    config = transformers.XLMRobertaConfig(
        vocab_size=24, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=20, pad_token_id=0,
    )  # fmt: skip
    config.save_pretrained(tmp_path / "base")
    torch.manual_seed(1)
    tower = transformers.XLMRobertaModel(config, add_pooling_layer=True).eval()
    linear = torch.nn.Linear(8, 6)
    state = {f"transformer.{k}": v for k, v in tower.state_dict().items()}
    state |= {f"LinearTransformation.{k}": v for k, v in linear.state_dict().items()}
    torch.save(state, tmp_path / "pytorch_model.bin")
    published = {"modelBase": str(tmp_path / "base"), "transformerDimensions": 8, "numDims": 6}
    (tmp_path / "config.json").write_text(json.dumps(published))

    asked = []
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "clip")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda name, file, **kwargs: str(tmp_path / file))
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *a, **k: tokenizer)

    def create(architecture: str, pretrained: str) -> tuple:
        asked.append((architecture, pretrained))
        vision = torch.nn.Linear(1, 6)
        vision.encode_image = lambda pixels: pixels.flatten(1)[:, :6]
        return vision, None, lambda image: torch.tensor(np.array(image)).float()

    monkeypatch.setitem(sys.modules, "open_clip", SimpleNamespace(create_model_and_transforms=create))
    model = mteb.get_model("M-CLIP/XLM-Roberta-Large-Vit-B-16Plus", device="cpu")
    assert asked == [("ViT-B-16-plus-240", "laion400m_e32")]

    found = model.texts(["en name 3", "fr"], 32)
    with torch.inference_mode():
        one = tower(**tokenizer(["en name 3"], return_tensors="pt")).last_hidden_state.mean(1)
        assert found[0] == pytest.approx(linear(one)[0].numpy(), abs=1e-6)
    images = model.images([PILImage.new("RGB", (2, 2), (1, 2, 3))], 32)
    assert images.tolist() == [[1, 2, 3, 1, 2, 3]]

    del state["LinearTransformation.bias"]
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="no weights for LinearTransformation.bias"):
        mteb.get_model("M-CLIP/XLM-Roberta-Large-Vit-B-16Plus", device="cpu")


def test_m_clip_without_open_clip_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ValueError, match="needs OpenCLIP .*pip install open_clip_torch"):
        mteb.get_model("M-CLIP/XLM-Roberta-Large-Vit-B-16Plus")


def test_the_baselines_of_the_paper_are_there() -> None:
    names = [meta.name for meta in baselines.BASELINES]
    for name in (*names, "google/siglip-base-patch16-256-multilingual"):
        meta = mteb.get_model_meta(name)
        assert {"text", "image"} <= {*meta.modalities} and meta.use_instructions is False


@pytest.mark.parametrize("use", ["encoder"])
def test_mteb_mock_run_passes_for_our_encoder(teacher: SentenceTransformer, use: str) -> None:
    """HOSTS, 9: the host's own contract test; here the tasks of each kind that are quick."""
    from mteb.mocks import ALL_MOCK_TASK_TEST_GRID

    quick = [task for task in ALL_MOCK_TASK_TEST_GRID if "image" in task.metadata.modalities]
    encoder = MMMEBEncoder(teacher, show_progress=False)
    takes = {"text", "image"}
    kinds = set()
    for task in quick:
        if {*task.metadata.modalities} <= takes:
            mteb.evaluate(encoder, task, cache=None, co2_tracker=False, show_progress_bar=False)
            kinds.add(task.metadata.type)
    assert len(kinds) >= 6
