"""Input that cannot be embedded as it is: a clear error, or the embedding that is meant."""

from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image
from tiny import PLACEHOLDER, checkpoint, damaged, embedder, every_family, random_image, stock

from xvlm2vec_st import SentenceTransformer, build
from xvlm2vec_st.families import loading as families

# Each text alone, wherever an image stands.
NO_PLACE = """{% for message in messages %}{% for part in message['content'] if part['type'] == 'text' -%}
{{ part['text'] }}{% endfor %}{% endfor %}"""


@pytest.mark.parametrize("family", ["phi3_v", "llava"])
@pytest.mark.parametrize("keep", [5, 1000, 60_000])
def test_truncated_weights(family: str, keep: int, tmp_path: Path) -> None:
    base = damaged(tmp_path / "cut", checkpoint(family), keep=keep)
    with pytest.raises(ValueError, match="cannot be read.*copy or download it again"):
        build(base, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["cut"]


def test_missing_and_misshapen_weights_are_listed(tmp_path: Path) -> None:
    def spoil(weights: dict) -> dict:
        gone = next(key for key in weights if key.endswith("layers.1.mlp.up_proj.weight"))
        norm = next(key for key in weights if key.endswith("layers.0.input_layernorm.weight"))
        return {k: torch.ones(33) if k == norm else v for k, v in weights.items() if k != gone}

    base = damaged(tmp_path / "spoilt", checkpoint("llava"), spoil)
    with pytest.raises(ValueError, match=r"missing: \S+layers.1.mlp.up_proj.weight; of another shape: \S+ \[33\]"):
        build(base, tmp_path / "out")


@pytest.mark.parametrize("installed", [True, False])
def test_weights_are_checked_without_accelerate_too(
    installed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(families, "is_accelerate_available", lambda: installed)
    base = damaged(tmp_path / "b", checkpoint("llava"), lambda w: {k: v for k, v in w.items() if "k_proj" not in k})
    with pytest.raises(ValueError, match="missing: "):
        SentenceTransformer(str(base), device="cpu")


@every_family
def test_image_token_without_an_image(family: str) -> None:
    token, image = PLACEHOLDER[family].strip(), random_image()
    model = stock(family)
    for rows in (
        [f"{token} a dog"],
        [f"{token} a dog", {"image": image, "text": "a dog"}],
        [{"image": image, "text": f"{token} a dog"}],
    ):
        with pytest.raises(ValueError, match=r"image tags?\b.*; |tokens in the "):
            model.encode(rows)


@every_family
def test_image_without_a_token(family: str, tmp_path: Path) -> None:
    """A template that leaves images out must not give a text's embedding for an image's."""
    (tmp_path / "no_place.jinja").write_text(NO_PLACE)
    says = r"0 image tag.* 1 image|total 0 .*tokens and 1 images"
    with pytest.raises(ValueError, match=rf"cannot encode an image \(.*({says}).*check its chat template"):
        build(checkpoint(family), tmp_path / "out", template=tmp_path / "no_place.jinja")
    assert [path.name for path in tmp_path.iterdir()] == ["no_place.jinja"]
    model = SentenceTransformer(str(checkpoint(family)), device="cpu", template=tmp_path / "no_place.jinja")
    assert model.encode("a dog").shape == (32,)
    with pytest.raises(ValueError, match=says):
        model.encode([{"image": random_image(), "text": "a dog"}])


@every_family
def test_images_become_rgb(family: str, tmp_path: Path) -> None:
    image = random_image()
    kinds = [image.convert(mode) for mode in ("CMYK", "P", "L", "RGBA")]
    image.convert("CMYK").save(tmp_path / "cmyk.jpg")
    frames = [random_image(seed).quantize(64) for seed in (0, 1)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    files = [tmp_path / "cmyk.jpg", tmp_path / "moving.gif"]
    given, meant = list(kinds), [kind.convert("RGB") for kind in kinds]
    for file in files:
        with Image.open(file) as opened:
            given.append(opened.copy())
            meant.append(opened.convert("RGB"))
    if family not in tiny.VIDEO:  # torchvision, which then reads files, has no decoders in this test
        given += [{"image": str(file), "text": ""} for file in files]
        meant += meant[-2:]
    model = stock(family)
    got, want = (torch.as_tensor(model.encode(rows)) for rows in (given, meant))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    second = torch.as_tensor(model.encode(frames[1].convert("RGB")))
    assert (second - got[5]).abs().max() > 1e-3
    assert (got[0] - got[2]).abs().max() > 1e-3


@every_family
def test_corrupt_jpeg(family: str, tmp_path: Path) -> None:
    random_image(width=200, height=200).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:2000])
    model = stock(family)
    with Image.open(tmp_path / "whole.jpg") as whole:
        assert model.encode([whole]).shape == (1, 32)
    with Image.open(tmp_path / "cut.jpg") as cut, pytest.raises((OSError, ValueError), match="truncated"):
        model.encode([{"image": cut, "text": "a dog"}])


def test_zero_size_image_and_no_crops(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="row 1, image 1: an image has no pixels: its size is 0 x 5"):
        stock("phi3_v").encode(["a dog", {"image": Image.new("RGB", (0, 5)), "text": "a dog"}])
    for number in (0, -1):
        with pytest.raises(ValueError, match=f"num_crops is {number}; pass"):
            build(checkpoint("phi3_v"), tmp_path / "out", num_crops=number)
        with pytest.raises(ValueError, match=f"num_crops is {number}; pass"):
            SentenceTransformer(str(embedder("phi3_v")), device="cpu", processor_kwargs={"num_crops": number})
