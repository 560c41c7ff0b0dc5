"""The instructions that images and queries are embedded with.

A model's own are taken where it has any. A model that takes an image with a text, and has none of its own, is an
embedder of VLM2Vec's kind: it was trained with an instruction on each side, and without that for images half of the
mini world's captions miss their image.
"""

from sentence_transformers import SentenceTransformer

from mmmeb_tasks.instructions import render_query, render_target

IMAGE = render_target("t2i", "en")
TEXT = render_query("t2i", "en", "?").removesuffix("?")


def image_prompt(model: SentenceTransformer) -> str:
    """The instruction beside an image: of an index, or of a query that is an image."""
    names = ("document", "passage", "corpus")  # as sentence-transformers looks for them
    own = next((model.prompts[name] for name in names if model.prompts.get(name)), "")
    return own or (IMAGE if is_instructed(model) else "")


def text_prompt(model: SentenceTransformer) -> str:
    """The instruction before a text."""
    return model.prompts.get("query") or (TEXT if is_instructed(model) else "")


def is_instructed(model: SentenceTransformer) -> bool:
    """Whether a model takes an image together with a text."""
    return model.supports(("image", "text"))
