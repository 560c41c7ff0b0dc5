"""The instructions that images and queries are embedded with.

A model's own are taken where it has any. A published embedder with a layout of its own has its instruction in that
layout; a second one would change it, as in E5-V, whose images with a text are images to modify. Any other model that
takes an image with a text is an embedder of VLM2Vec's kind: it was trained with an instruction on each side, and
without that for images half of the mini world's captions miss their image.
"""

from sentence_transformers import SentenceTransformer

from mmmeb_tasks.instructions import render_query, render_target
from xvlm2vec_st.families.published import PUBLISHED, Published, recognise_template
from xvlm2vec_st.utils.modules import transformer_of

IMAGE = render_target("t2i", "en")
TEXT = render_query("t2i", "en", "?").removesuffix("?")


def image_prompt(model: SentenceTransformer) -> str:
    """The instruction beside an image: of an index, or of a query that is an image."""
    names = ("document", "passage", "corpus")  # as sentence-transformers looks for them
    own = next((model.prompts[name] for name in names if model.prompts.get(name)), "")
    return own or (IMAGE if is_instructed(model) else "")


def text_prompt(model: SentenceTransformer) -> str:
    """The instruction before a text."""
    layout = own_layout(model)
    default = layout.query if layout else TEXT if is_instructed(model) else ""
    return model.prompts.get("query") or default


def is_instructed(model: SentenceTransformer) -> bool:
    """Whether a model is of VLM2Vec's kind: it takes an image together with a text, in no layout of its own."""
    return model.supports(("image", "text")) and own_layout(model) is None


def own_layout(model: SentenceTransformer) -> Published | None:
    """The layout of a published embedder that has one of its own; that of VLM2Vec-V2 is VLM2Vec's."""
    if not model.supports(("image", "text")):
        return None
    processor = getattr(transformer_of(model), "processor", None)
    entry = recognise_template(getattr(processor, "chat_template", None))
    return None if entry in (None, "vlm2vec_v2") else PUBLISHED[entry]
