"""xVLM2Vec for sentence-transformers: make English multimodal embedders multilingual.

Importing the package registers Phi-3.5-vision with transformers: at once, or when transformers' Auto classes are
imported. The public names are imported on first use. So the import takes milliseconds, and embedding needs none of the
`train` extra.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from xvlm2vec_st.utils.import_hook import call_after_import

if TYPE_CHECKING:
    from xvlm2vec_st.building.adapters import lora_config
    from xvlm2vec_st.building.builder import build
    from xvlm2vec_st.data.dataset import load_parallel
    from xvlm2vec_st.distillation.loss import MultilingualDistillationLoss
    from xvlm2vec_st.lvlm import LVLM
    from xvlm2vec_st.sentence_transformer import SentenceTransformer
    from xvlm2vec_st.training.trainer import DistillationTrainer

__all__ = [
    "LVLM",
    "DistillationTrainer",
    "MultilingualDistillationLoss",
    "SentenceTransformer",
    "build",
    "load_parallel",
    "lora_config",
]
_MODULES = {
    "DistillationTrainer": "xvlm2vec_st.training.trainer",
    "LVLM": "xvlm2vec_st.lvlm",
    "MultilingualDistillationLoss": "xvlm2vec_st.distillation.loss",
    "SentenceTransformer": "xvlm2vec_st.sentence_transformer",
    "build": "xvlm2vec_st.building.builder",
    "load_parallel": "xvlm2vec_st.data.dataset",
    "lora_config": "xvlm2vec_st.building.adapters",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(_MODULES)}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# Every Auto class of transformers imports this module.
call_after_import(
    "transformers.models.auto.configuration_auto",
    lambda: import_module("xvlm2vec_st.phi3v"),
    packages=("transformers", "xvlm2vec_st"),
)
