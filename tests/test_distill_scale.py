"""The formula of `recipes.experiments.scale` against counted operations."""

import re
from pathlib import Path

import pytest
import torch

from recipes.experiments import scale
from recipes.experiments.bench_model import write_checkpoint
from recipes.experiments.measure import operations
from recipes.experiments.scale import Geometry, Row
from xvlm2vec_st import SentenceTransformer, build


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scale")
    return SentenceTransformer(str(build(write_checkpoint(folder / "raw", "tiny"), folder / "model")))


def test_the_decoder_takes_what_the_formula_says(model):
    geometry, body = Geometry.of(model[0].config), model[0].model
    for width in (64, 100):
        mask = torch.zeros(1, 1, width, width)
        given = {"inputs_embeds": torch.randn(1, width, geometry.hidden), "attention_mask": mask}
        with torch.no_grad():
            assert operations(lambda given=given: body(**given)) == geometry.decoder(width)


def test_the_tower_takes_what_the_formula_says(model):
    geometry = Geometry.of(model[0].config)
    from PIL import Image

    for size in ((1344, 1344), (336, 336)):
        features = model.preprocess([{"image": Image.new("RGB", size), "text": "x"}])
        pixels = {key: features[key] for key in ("pixel_values", "image_sizes") if key in features}
        tokens = int((features["input_ids"] == model[0].processor.image_token_id).sum())
        crops = 5  # the processor fills up to num_crops and the whole
        with torch.no_grad():
            found = operations(lambda pixels=pixels: model[0].model.get_image_features(**pixels))
        assert found == pytest.approx(geometry.vision(crops, tokens), rel=0.02)
    assert Row(30).image == 757


def test_the_published_geometry_is_phi_3_5_vision():
    geometry = Geometry.of(scale.Phi3VConfig())
    assert (geometry.hidden, geometry.layers) == (3072, 32)
    assert geometry.decoder_weights == pytest.approx(3.62e9, rel=0.01)


def test_shared_prefixes_save_what_the_rows_share():
    geometry = Geometry.of(scale.Phi3VConfig())
    row = Row(30)
    (few, shared), (many, published) = row.shared(geometry, 4, True), row.published(geometry, 4, True)
    assert few == 757 + 150 + 757 + 30 and many == 3 * 4 * 787
    assert 6 < published / shared < 7


def test_the_table(capsys, tmp_path):
    document = tmp_path / "scale.md"
    document.write_text("<!-- scale given -->\n<!-- /scale given -->\n")
    cells = scale.main(["--rate", "400", "--device", "H100", "--document", str(document)])
    hours = [float(cell.replace(",", "")) for cell in cells[0][3:]]
    assert hours[0] == pytest.approx(8 * hours[2], abs=0.5) and len(cells) == 3
    assert re.search(r"\| shared prefixes \|", document.read_text()) and "H100" in capsys.readouterr().out
    assert document.read_text().splitlines()[1].startswith("    python -m recipes.experiments.scale --rate 400")
    assert [row[:3] for row in cells] == scale.main([]), "without a rate, no hours"
    with pytest.raises(ValueError, match="--rate and --device go together"):
        scale.main(["--rate", "400"])


def test_the_memory_of_the_document_is_that_of_the_formula():
    lines = (Path(__file__).parents[1] / "docs" / "scale.md").read_text().splitlines()
    told = {line.split("|")[1].strip(): re.findall(r"\d+\.\d", line) for line in lines if line.startswith("| ")}
    weights, adapter = 4_150_000_000, 25_200_000
    whole = [scale.memory(weights, n, trained=weights, teacher=True) for n in scale.GPUS]
    assert told["all parameters, frozen teacher"] == [f"{gb:.1f}" for gb in whole]
    own = scale.memory(weights + adapter, 1, trained=adapter, teacher=False)
    assert told["LoRA of rank 16, its own teacher"] == [f"{own:.1f}"] * 4
