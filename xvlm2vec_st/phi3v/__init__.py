"""Phi-3.5-vision for transformers 5, registered with its Auto classes on import.

>>> from transformers import AutoConfig
>>> import xvlm2vec_st.phi3v
>>> type(AutoConfig.for_model("phi3_v")).__name__
'Phi3VConfig'
"""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming

from xvlm2vec_st.phi3v.configuration import Phi3VConfig
from xvlm2vec_st.phi3v.image_processing import Phi3VImageProcessor
from xvlm2vec_st.phi3v.modeling import Phi3VForCausalLM, Phi3VModel
from xvlm2vec_st.phi3v.processing import Phi3VProcessor

__all__ = [
    "Phi3VConfig",
    "Phi3VForCausalLM",
    "Phi3VImageProcessor",
    "Phi3VModel",
    "Phi3VProcessor",
]

AutoConfig.register("phi3_v", Phi3VConfig, exist_ok=True)
AutoModel.register(Phi3VConfig, Phi3VModel, exist_ok=True)
# CausalLM is what official files name; the other two are what transformers 5 asks for.
for auto_class in (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM):
    auto_class.register(Phi3VConfig, Phi3VForCausalLM, exist_ok=True)
# One class for both backends: pixels do not depend on whether torchvision is installed.
AutoImageProcessor.register(
    Phi3VConfig,
    image_processor_classes={"pil": Phi3VImageProcessor, "torchvision": Phi3VImageProcessor},
    exist_ok=True,
)
AutoProcessor.register(Phi3VConfig, Phi3VProcessor, exist_ok=True)
# peft writes DoRA's magnitudes without the `.weight` that their parameters have. peft puts it back;
# transformers' own `load_adapter` (and so an adapter's folder given to AutoModel or to
# sentence-transformers) does not, and would leave them untrained.
for model_class in (Phi3VModel, Phi3VForCausalLM):
    register_checkpoint_conversion_mapping(
        model_class.__name__,
        [WeightRenaming(r"(lora_magnitude_vector\.\w+)$", r"\1.weight")],
        overwrite=True,
    )
