"""Phi-3.5-vision's HD transform: images to crops of 336 x 336 pixels, with PIL only.

There is one backend, whatever is installed: torchvision's resize would give other pixels, and so other embeddings.
"""

import math
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.processing_utils import ImagesKwargs

from xvlm2vec_st.images.opening import open_image

CROP = 336  # pixels per side
TOKENS = 12  # tokens per side of a crop
WHITE = (255, 255, 255)
# Settings of other image processors. The HD transform fixes them.
FIXED_SETTINGS = (
    *("do_resize", "size", "resample", "do_center_crop", "crop_size"),
    *("do_rescale", "do_normalize", "do_pad", "pad_size"),
)


class Phi3VImagesKwargs(ImagesKwargs, total=False):
    """Settings of a call: `num_crops` (maximum tiles; 4 and 16 are published), mean and std."""

    num_crops: int


class Phi3VImageProcessor(PilBackend):
    """An image becomes a global crop and, at a larger scale, up to `num_crops` tiles of it.

    Gives `pixel_values` [images, num_crops + 1, 3, 336, 336] (global crop first, then the tiles row
    by row, then zeros) and `image_sizes` [images, 2], the tiled height and width in pixels.
    """

    model_input_names = ["pixel_values", "image_sizes"]
    valid_kwargs = Phi3VImagesKwargs
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    num_crops = 4

    def __init__(self, **kwargs: Any) -> None:
        """Accept the keys of `preprocessor_config.json`; `auto_map` (remote code) is dropped."""
        kwargs.pop("auto_map", None)
        super().__init__(**kwargs)
        check_num_crops(self.num_crops)

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Keep paths and URLs: `process_image` reads them, and names them in errors."""
        return image_url_or_urls

    def process_image(self, image: Any, **kwargs: Any) -> Image.Image:  # type: ignore[override]
        """Open an image as RGB: see `read_rgb`."""
        return read_rgb(image)

    def _prepare_images_structure(self, images: Any, expected_ndims: int = 3) -> list[Any]:
        return flat_list(images)

    def _preprocess(  # type: ignore[override]
        self,
        images: list[Image.Image],
        num_crops: int,
        image_mean: tuple[float, ...],
        image_std: tuple[float, ...],
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        check_num_crops(num_crops)
        for name in FIXED_SETTINGS:
            if kwargs.get(name) is not None:
                raise ValueError(
                    f"{name} is {kwargs[name]!r}: Phi-3.5-vision scales, pads and normalises in "
                    "one way; leave it out, and set num_crops for more or fewer tiles"
                )
        tiled = [hd_transform(image, num_crops) for image in images]
        crops = [crop(normalize(image, image_mean, image_std), num_crops) for image in tiled]
        sizes = [[image.height, image.width] for image in tiled]
        data = {"pixel_values": torch.stack(crops), "image_sizes": torch.tensor(sizes)}
        return BatchFeature(data, tensor_type=return_tensors)


def read_rgb(image: Any) -> Image.Image:
    """Open anything that `open_image` accepts as RGB.

    Transparency is dropped, as in training, and not blended with white. See `open_image` for frames and orientation.

    Raises:
        ValueError: the image is missing, damaged, or not an image.
    """
    return open_image(image).convert("RGB")


def flat_list(images: Any) -> list[Any]:
    """Flatten nested lists of images, in order.

    >>> flat_list([["a"], [], ["b", "c"]])
    ['a', 'b', 'c']
    """
    if not isinstance(images, (list, tuple)):
        return [images]
    return [image for part in images for image in flat_list(part)]


def check_num_crops(num_crops: int) -> None:
    """Raise a ValueError for fewer than one crop."""
    if not isinstance(num_crops, int) or num_crops < 1:
        raise ValueError(f"num_crops is {num_crops!r}; pass a whole number of 1 or more (4 and 16 are published)")


def hd_transform(image: Image.Image, num_crops: int) -> Image.Image:
    """Scale to the widest grid of at most `num_crops` tiles, and pad with white to whole tiles.

    A tall image is transposed first and back at the end, so that the resize rounds colours in the same order as in
    training.
    """
    if image.width < image.height:
        turned = hd_transform(image.transpose(Image.Transpose.TRANSPOSE), num_crops)
        return turned.transpose(Image.Transpose.TRANSPOSE)
    cols = grid_columns(image.width / image.height, num_crops)
    width = cols * CROP
    # A strip thousands of times wider than high would round to zero pixels.
    height = max(1, int(width / (image.width / image.height)))
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    padded = Image.new("RGB", (width, math.ceil(height / CROP) * CROP), WHITE)
    padded.paste(resized, (0, (padded.height - height) // 2))
    return padded


def grid_columns(ratio: float, num_crops: int) -> int:
    """The most columns whose grid, for an image `ratio` times wider than high, fits `num_crops`.

    >>> [grid_columns(ratio, 16) for ratio in (1.0, 1.5, 4.0)]
    [4, 4, 8]
    """
    cols = 1
    while (cols + 1) * math.ceil((cols + 1) / ratio) <= num_crops:
        cols += 1
    return cols


def normalize(image: Image.Image, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Pixels [3, height, width], minus the mean and divided by the standard deviation of each colour."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def crop(pixels: Tensor, num_crops: int) -> Tensor:
    """The global view, the tiles, and zeros: [num_crops + 1, 3, 336, 336].

    `pixels` is [3, rows * 336, cols * 336]. The global view is resized after normalisation and without antialiasing, as
    in training.
    """
    overview = torch.nn.functional.interpolate(pixels[None], size=(CROP, CROP), mode="bicubic")
    tiles = pixels.unfold(1, CROP, CROP).unfold(2, CROP, CROP)
    tiles = tiles.permute(1, 2, 0, 3, 4).reshape(-1, 3, CROP, CROP)
    zeros = pixels.new_zeros(num_crops - len(tiles), 3, CROP, CROP)
    return torch.cat((overview, tiles, zeros))


def num_image_tokens(height: int, width: int) -> int:
    """The number of tokens of an image that is tiled to `height` x `width` pixels.

    Each crop has 12 x 12 tokens, each line of tokens ends with a newline token, and a separator stands between the two
    scales.

    >>> num_image_tokens(672, 672)
    757
    """
    rows, cols = height // CROP, width // CROP
    return (rows * cols + 1) * TOKENS**2 + (rows + 1) * TOKENS + 1
