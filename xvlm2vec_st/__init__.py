"""xVLM2Vec for sentence-transformers: make English multimodal embedders multilingual.

Importing the package registers Phi-3.5-vision with transformers. The public names are imported on first use, so that
embedding needs none of the `train` extra.
"""

from importlib import import_module
from typing import Any

import xvlm2vec_st.phi3v  # noqa: F401

_MODULES = {
    "DistillationTrainer": "xvlm2vec_st.training.trainer",
    "LVLM": "xvlm2vec_st.lvlm",
    "MultilingualDistillationLoss": "xvlm2vec_st.distillation.loss",
    "SentenceTransformer": "xvlm2vec_st.sentence_transformer",
    "build": "xvlm2vec_st.building.builder",
    "load_parallel": "xvlm2vec_st.data.dataset",
    "lora_config": "xvlm2vec_st.building.adapters",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(_MODULES)}")
    return getattr(import_module(_MODULES[name]), name)
