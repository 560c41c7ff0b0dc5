"""xVLM2Vec for sentence-transformers: English multimodal embedders made multilingual."""

from xvlm2vec_st.distillation import MultilingualDistillationLoss
from xvlm2vec_st.lora import lora_config
from xvlm2vec_st.parallel import load_parallel
from xvlm2vec_st.trainer import DistillationTrainer

__all__ = ["DistillationTrainer", "MultilingualDistillationLoss", "load_parallel", "lora_config"]
