"""A model's `preprocess` for loading workers, which need the processor and not the weights."""

from collections.abc import Sequence
from typing import Any

from sentence_transformers import SentenceTransformer
from torch import nn


class Preprocessor:
    """`model.preprocess`, which pickles without the model.

    Workers that are started anew (forkserver, Python 3.14's default on Linux; spawn, on macOS and Windows)
    receive the collator as a pickle. A bound method of the model would take all weights along, and fails on
    a model with gradient checkpointing, which holds local functions.

    Args:
        model: whose first module preprocesses.

    >>> import pickle, tempfile
    >>> from mmmeb_tasks.mini import TEACHER
    >>> preprocess = Preprocessor(SentenceTransformer(str(TEACHER), device="cpu"))
    >>> pickled = pickle.dumps(preprocess)
    >>> len(pickled) < 1_000_000, list(pickle.loads(pickled)(["a dog"])["input_ids"].shape)[0]
    (True, 1)
    """

    def __init__(self, model: SentenceTransformer) -> None:
        self.target: Any = model

    def __call__(self, inputs: Sequence[Any], **kwargs: Any) -> dict[str, Any]:
        """Features of inputs, as `model.preprocess` gives them."""
        return self.target.preprocess(inputs, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """The first module with a shell where the transformer is."""
        first = self.target[0] if isinstance(self.target, SentenceTransformer) else self.target
        return {"target": without_weights(first)}


class Shell(nn.Module):
    """What `preprocess` asks a transformer for: its configuration."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config


def without_weights(module: nn.Module) -> nn.Module:
    """A module that shares everything with `module` but the weights of its children."""
    copy = object.__new__(type(module))
    copy.__dict__.update(module.__dict__)
    copy.__dict__["_modules"] = {
        name: Shell(getattr(child, "config", None)) for name, child in module._modules.items()
    }
    return copy
