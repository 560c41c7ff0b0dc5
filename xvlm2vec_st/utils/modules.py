"""Typed access to the modules of a sentence-transformers model."""

from typing import Any, cast

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Transformer
from torch import nn


def transformer_of(model: SentenceTransformer) -> Transformer:
    """The first module, which holds the transformers model and its processor."""
    return cast(Transformer, model[0])


def language_layers(model: SentenceTransformer) -> nn.ModuleList:
    """The layers of the language model: `layers` of a decoder, `layer` of an encoder such as BERT.

    Raises:
        ValueError: the model has no such list.
    """
    body = transformer_of(model).model
    layers = find_language_layers(body)
    if layers is None:
        raise ValueError(f"the language model's layers were not found in {type(body).__name__}")
    return layers


def find_language_layers(body: Any) -> nn.ModuleList | None:
    """The layers of the language model of a transformers model; None if it has no such list."""
    config = body.config.get_text_config()
    for module in body.modules():
        layers = getattr(module, "layers", getattr(module, "layer", None))
        if isinstance(layers, nn.ModuleList) and len(layers) == config.num_hidden_layers:
            has_embeddings = getattr(module, "embed_tokens", None) is not None
            if has_embeddings or getattr(module, "config", None) is config:
                return layers
    return None
