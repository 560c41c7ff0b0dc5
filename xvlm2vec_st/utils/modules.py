"""Typed access to the modules of a sentence-transformers model."""

from typing import cast

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Transformer


def transformer_of(model: SentenceTransformer) -> Transformer:
    """The first module, which holds the transformers model and its processor."""
    return cast(Transformer, model[0])
