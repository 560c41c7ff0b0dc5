"""Embed a query: a text, an image, or both."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sentence_transformers import SentenceTransformer

from xvlm2vec_st.images.opening import open_image
from xvlm2vec_st.utils.texts import fault_of, is_blank

from .prompts import image_prompt, text_prompt
from .reading import register_heif


def embed_query(
    model: SentenceTransformer,
    text: str | None = None,
    image: str | Path | Image.Image | None = None,
    prompt: str | None = None,
    *,
    alone: str | None = None,
) -> np.ndarray:
    """The embedding of a query (dim,), normalised, in fp32.

    Args:
        model: that embeds it.
        text: in any language of the model.
        image: a file, or an open image.
        prompt: the instruction of the query; default: the model's own, or VLM2Vec's; none beside image and text.
        alone: the default instruction of an image alone; pass the index's, `space.prompt`.

    Raises:
        ValueError: there is neither a text nor an image; the text or the image cannot be read; the model does not
            take such a query.

    Example::

        embed_query(model, "like this, but green", "apple.jpg")
    """
    text = None if text is None or is_blank(text) else text
    if text is None and image is None:
        raise ValueError("the query is empty; pass a text, an image, or both")
    if text is not None and (fault := fault_of(text)):
        raise ValueError(f"the query {fault}")
    item: dict[str, Any] = {} if image is None else {"image": opened(image)}
    if text is not None:
        item["text"] = text
    kinds = tuple(sorted(item))
    if not model.supports(kinds if len(kinds) > 1 else kinds[0]):
        takes = ", ".join(map(str, model.modalities))
        raise ValueError(f"the model does not take {' and '.join(kinds)} as a query; it takes {takes}")
    if prompt is None:
        prompt = default_prompt(model, kinds, alone)
    vector = model.encode_query([item], prompt=prompt, normalize_embeddings=True, show_progress_bar=False)[0]
    return np.asarray(vector, np.float32)


def default_prompt(model: SentenceTransformer, kinds: tuple[str, ...], alone: str | None) -> str:
    """The instruction of a query of these kinds: `image`, `text` or both."""
    if kinds == ("image",):
        return image_prompt(model) if alone is None else alone
    return text_prompt(model) if kinds == ("text",) else model.prompts.get("query") or ""


def opened(image: str | Path | Image.Image) -> Image.Image:
    """An image in RGB; a file upright.

    Raises:
        ValueError: see `open_image`; there is no such file.
    """
    if isinstance(image, Image.Image):
        return open_image(image)
    if not Path(image).is_file():
        raise ValueError(f"{image}: no such image; pass a file")
    register_heif()
    return open_image(str(image)).convert("RGB")
