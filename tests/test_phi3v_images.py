"""Phi-3.5-vision's image processor: images of any kind, and the HD transform."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, BatchFeature

from xvlm2vec_st.phi3v import Phi3VProcessor
from xvlm2vec_st.phi3v.image_processing import grid_columns, hd_transform, num_image_tokens

GOLDEN = Path(__file__).parent / "golden" / "phi3v"


@cache
def processor() -> Phi3VProcessor:
    return AutoProcessor.from_pretrained(GOLDEN)


def random_image(width: int = 60, height: int = 40, mode: str = "RGB", seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def features(text: str | list[str], images: Any = None, **kwargs: Any) -> BatchFeature:
    return processor()(text=text, images=images, return_tensors="pt", **kwargs)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr"])
def test_modes_become_rgb(mode: str, tmp_path: Path) -> None:
    image = random_image(mode=mode)
    want = features("<|image_1|>", image.convert("RGB"))["pixel_values"]
    assert torch.equal(features("<|image_1|>", image)["pixel_values"], want)
    suffix, settings = {
        "CMYK": (".tiff", {}),
        "YCbCr": (".jpg", {"quality": 100, "subsampling": 0}),
    }.get(mode, (".png", {}))
    file = tmp_path / f"a{suffix}"
    image.save(file, **settings)
    read = features("<|image_1|>", str(file))["pixel_values"]
    # JPEG rounds its coefficients: 3 of 1.7 million values move by 0.057, four grey levels.
    torch.testing.assert_close(read, want, atol=0.06 if mode == "YCbCr" else 0, rtol=0)


def test_transparency_is_dropped_not_laid_on_white() -> None:
    red = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    want = features("<|image_1|>", Image.new("RGB", (40, 40), (255, 0, 0)))
    assert torch.equal(features("<|image_1|>", red)["pixel_values"], want["pixel_values"])


def test_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (30, 20), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    want = features("<|image_1|>", frames[0])["pixel_values"]
    with Image.open(tmp_path / "a.gif") as opened:
        assert opened.n_frames == 2
        for image in (str(tmp_path / "a.gif"), tmp_path / "a.gif", opened):
            assert torch.equal(features("<|image_1|>", image)["pixel_values"], want)


def test_arrays_and_tensors() -> None:
    image = random_image()
    want = features("<|image_1|>", image)["pixel_values"]
    array = np.array(image)
    for given in (array, array.transpose(2, 0, 1), torch.from_numpy(array)):
        assert torch.equal(features("<|image_1|>", given)["pixel_values"], want)


def corrupt(folder: Path) -> str:
    random_image(200, 200).save(folder / "whole.jpg")
    (folder / "cut.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:2000])
    return str(folder / "cut.jpg")


def test_corrupt_jpeg(tmp_path: Path) -> None:
    file = corrupt(tmp_path)
    for image in (file, Image.open(file)):
        with pytest.raises(ValueError, match=r"row 1, image 1: cannot read an image .* truncated"):
            features(["a", "<|image_1|>"], [None, image], padding=True)
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(ValueError, match=r"row 0, image 1: cannot read .*text\.jpg.* identify"):
        features("<|image_1|>", str(tmp_path / "text.jpg"))
    with pytest.raises(ValueError, match=r"row 0, image 1: cannot read .*missing\.jpg"):
        features("<|image_1|>", str(tmp_path / "missing.jpg"))


@pytest.mark.parametrize("size", [(0, 10), (10, 0)])
def test_image_without_pixels(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="row 0, image 2: an image has no pixels"):
        features("<|image_1|><|image_2|>", [random_image(), Image.new("RGB", size)])


@pytest.mark.parametrize("num_crops", [0, -1])
def test_no_crops(num_crops: int) -> None:
    with pytest.raises(ValueError, match=f"num_crops is {num_crops}; pass a whole number of 1"):
        features("<|image_1|>", random_image(), num_crops=num_crops)
    with pytest.raises(ValueError, match="num_crops is"):
        AutoProcessor.from_pretrained(GOLDEN, num_crops=num_crops)


def test_steps_that_the_transform_settles_are_refused() -> None:
    with pytest.raises(ValueError, match="do_resize is False"):
        features("<|image_1|>", random_image(), images_kwargs={"do_resize": False})


@pytest.mark.parametrize(
    ("size", "num_crops", "tiled"),
    [
        ((336, 336), 4, (672, 672)),
        ((1344, 1344), 4, (672, 672)),
        ((336, 336), 1, (336, 336)),
        ((1000, 250), 16, (2688, 672)),
        ((250, 1000), 16, (672, 2688)),
        ((9000, 1), 4, (1344, 336)),
    ],
)
def test_hd_transform_sizes(size: tuple[int, int], num_crops: int, tiled: tuple[int, int]) -> None:
    result = hd_transform(random_image(*size), num_crops)
    assert result.size == tiled
    assert result.width * result.height <= num_crops * 336**2


def test_hd_transform_pads_with_white_above_and_below() -> None:
    result = np.array(hd_transform(Image.new("RGB", (400, 100)), 4))
    dark = np.flatnonzero((result == 0).all((1, 2)))
    assert result.shape == (336, 1344, 3)
    assert len(dark) == 336 and (result[:, 0, 0] == 0).all()  # 1344 / 4: nothing to pad
    result = np.array(hd_transform(Image.new("RGB", (400, 80)), 4))
    white = (result == 255).all((1, 2))
    assert (white[:33].all(), white[34:301].any(), white[303:].all()) == (True, False, True)


def test_grid_is_never_larger_than_num_crops() -> None:
    for num_crops in (1, 4, 9, 16):
        for ratio in np.linspace(1, 20, 50):
            cols = grid_columns(float(ratio), num_crops)
            assert cols * np.ceil(cols / ratio) <= num_crops


def test_token_number_of_the_published_training_size() -> None:
    assert num_image_tokens(*reversed(hd_transform(random_image(1344, 1344), 4).size)) == 757
