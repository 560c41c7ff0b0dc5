"""From crops of 336 x 336 pixels to image tokens: CLIP tower, 2 x 2 merge, separators, projection.

Parameter names are the official checkpoint's.
"""

import math
from typing import cast

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel


class PatchTower(CLIPVisionModel):
    """CLIP's tower up to its last but one layer.

    A subclass, so that transformers' renaming of plain CLIP checkpoints does not change the official names.
    """

    def forward(self, pixel_values: Tensor) -> Tensor:
        """States of the patches [crops, patches, width], without the class token.

        `pixel_values` is [crops, 3, side, side]. The last layer and the final norm are in the checkpoint, but the model
        never used them; they are not run.
        """
        states = self.pre_layrnorm(self.embeddings(pixel_values))
        for layer in self.encoder.layers[:-1]:
            states = layer(states, attention_mask=None)
        return states[:, 1:]


class ImageEmbedding(nn.Module):
    """Image tokens of whole images: the tiles, a separator, the global view.

    This is not a `PreTrainedModel`, so that FSDP does not wrap its layers: a rank whose batch has no images would make
    the others wait forever.
    """

    def __init__(self, tower: CLIPVisionConfig, hidden_size: int) -> None:
        """Build the tower, and the projection to the decoder's `hidden_size`."""
        super().__init__()
        width = 4 * tower.hidden_size
        self.image_size = cast(int, tower.image_size)
        self.img_processor = nn.ModuleDict({"vision_model": PatchTower(tower)})
        self.glb_GN = nn.Parameter(torch.empty(1, 1, width))
        self.sub_GN = nn.Parameter(torch.empty(1, 1, 1, width))
        self.img_projection = nn.Sequential(
            nn.Linear(width, hidden_size),
            nn.GELU(),
            nn.Linear(hidden_size, hidden_size),
        )

    def forward(self, pixel_values: Tensor, image_sizes: Tensor) -> list[Tensor]:
        """Tokens [n, hidden] for each image.

        Args:
            pixel_values: [images, crops, 3, side, side]; the global view first, then the tiles row by row. Crops beyond
                those of an image are ignored.
            image_sizes: [images, 2], height and width in pixels of the tiled image.

        Raises:
            ValueError: the sizes do not match the crops.
        """
        grids = crop_grids(pixel_values, image_sizes, self.image_size)
        crops = [image[: rows * cols + 1] for image, (rows, cols) in zip(pixel_values, grids, strict=True)]
        patches = self.img_processor["vision_model"](torch.cat(crops))
        per_image = merge_patches(patches).split([len(image) for image in crops])
        laid_out = [self.lay_out(tiles, *grid) for tiles, grid in zip(per_image, grids, strict=True)]
        tokens = self.img_projection(torch.cat(laid_out))
        return list(tokens.split([len(image) for image in laid_out]))

    def lay_out(self, merged: Tensor, rows: int, cols: int) -> Tensor:
        """Tokens [n, 4 width] in reading order (`sub_glb`), from [1 + rows * cols, s, s, 4 width].

        n = (rows * cols + 1) * s^2 + (rows + 1) * s + 1.
        """
        newline = self.sub_GN.flatten()
        tiled = end_lines(tile(merged[1:], rows, cols), newline)
        return torch.cat((tiled, self.glb_GN[0], end_lines(merged[0], newline)))


def merge_patches(patches: Tensor) -> Tensor:
    """Join 2 x 2 neighbours: [n, side^2, width] -> [n, side / 2, side / 2, 4 width].

    >>> merge_patches(torch.arange(16.0).view(1, 16, 1))[0, 0].tolist()
    [[0.0, 1.0, 4.0, 5.0], [2.0, 3.0, 6.0, 7.0]]
    """
    n, length, width = patches.shape
    half = math.isqrt(length) // 2
    blocks = patches.reshape(n, half, 2, half, 2, width).transpose(2, 3)
    return blocks.reshape(n, half, half, 4 * width)


def tile(crops: Tensor, rows: int, cols: int) -> Tensor:
    """One large grid from crops row by row: [rows * cols, s, s, d] -> [rows * s, cols * s, d].

    >>> tile(torch.arange(6.0).view(6, 1, 1, 1), 2, 3)[..., 0].tolist()
    [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    """
    _, side, _, width = crops.shape
    grid = crops.reshape(rows, cols, side, side, width).transpose(1, 2)
    return grid.reshape(rows * side, cols * side, width)


def end_lines(grid: Tensor, newline: Tensor) -> Tensor:
    """Read a grid [rows, cols, d] line by line, a newline [d] after each: [rows * (cols + 1), d].

    >>> end_lines(torch.tensor([[[1.0], [2.0]]]), torch.tensor([9.0])).flatten().tolist()
    [1.0, 2.0, 9.0]
    """
    ends = newline.expand(grid.shape[0], 1, -1)
    return torch.cat((grid, ends), dim=1).flatten(0, 1)


def crop_grids(pixel_values: Tensor, image_sizes: Tensor, side: int) -> list[tuple[int, int]]:
    """Rows and columns of crops for each image.

    Raises:
        ValueError: shapes are not those of the processor, or sizes do not match the crops.
    """
    if pixel_values.ndim != 5 or tuple(image_sizes.shape) != (pixel_values.shape[0], 2):
        raise ValueError(
            f"pixel_values {tuple(pixel_values.shape)} and image_sizes {tuple(image_sizes.shape)}: "
            "expected [images, crops, 3, side, side] and [images, 2]; pass the processor's output"
        )
    grids = []
    for number, (height, width) in enumerate(image_sizes.tolist()):
        rows, cols = height // side, width // side
        if height % side or width % side or not 1 <= rows * cols < pixel_values.shape[1]:
            raise ValueError(
                f"image {number}: size {height} x {width} does not fit {pixel_values.shape[1]} "
                f"crops of {side} pixels, one of them global; pass the processor's output"
            )
        grids.append((rows, cols))
    return grids


def image_positions(
    input_ids: Tensor | None, mm_token_type_ids: Tensor | None, image_token_id: int | None
) -> Tensor | None:
    """The positions of image tokens, [batch, seq] bool; None if they are not marked.

    >>> image_positions(torch.tensor([[1, 7, 7, 1]]), None, 7).tolist()
    [[False, True, True, False]]
    """
    if mm_token_type_ids is not None:
        return mm_token_type_ids == 1
    if input_ids is not None and image_token_id is not None:
        return input_ids == image_token_id
    return None


def place_images(embeds: Tensor, is_image: Tensor | None, images: list[Tensor]) -> Tensor:
    """Write the images' tokens, in order, to the image positions of `embeds` [batch, seq, hidden].

    Raises:
        ValueError: the number of tokens differs from the number of positions.
    """
    positions = 0 if is_image is None else int(is_image.sum())
    tokens = sum(len(image) for image in images)
    if positions != tokens:
        raise ValueError(
            f"{positions} image positions in the text and {tokens} image tokens; pass input_ids, "
            "pixel_values, image_sizes and mm_token_type_ids of one call of the processor together"
        )
    if is_image is None or not images:
        return embeds
    return embeds.masked_scatter(is_image[..., None], torch.cat(images).to(embeds))
