"""A model's `preprocess` for loading workers, which need the processor but not the weights."""

from collections.abc import Sequence
from typing import Any

from sentence_transformers import SentenceTransformer
from torch import nn


class Preprocessor:
    """`model.preprocess`, pickled without the weights.

    Loading workers that do not fork (forkserver, Python 3.14's default on Linux; spawn, on macOS and Windows)
    receive the collator as a pickle. A bound method of the model would include all weights, and cannot be
    pickled if the model uses gradient checkpointing, which stores local functions.

    Args:
        model: its first module preprocesses.

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
        """Preprocess inputs like `model.preprocess`."""
        return self.target.preprocess(inputs, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """The first module, with its transformer replaced by its config."""
        first = self.target[0] if isinstance(self.target, SentenceTransformer) else self.target
        return {"target": without_weights(first)}


class Shell(nn.Module):
    """Stands for a transformer: `preprocess` needs its config only."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config


def without_weights(module: nn.Module) -> nn.Module:
    """A copy of `module` that shares everything except its children's weights."""
    getattr(module, "sharing", None)  # an LVLM decides on its route while it has its weights
    copy = object.__new__(type(module))
    copy.__dict__.update(module.__dict__)
    copy.__dict__["_modules"] = {name: Shell(getattr(child, "config", None)) for name, child in module._modules.items()}
    return copy
