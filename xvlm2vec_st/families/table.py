"""The model families: one entry each. To add a family, add an entry here and a tiny checkpoint in tests/tiny.py."""

import re
from dataclasses import dataclass

# Parameters that a text without an image does not reach, in any family.
VISION = re.compile(r"vision|visual|audio|connector|projector|img_|image_newline")

# Attention, linear attention and convolutions; feed-forward layers; Gemma 4's inputs per layer. Fused experts are
# parameters, not linear layers, and routers are left alone.
_LINEAR = (
    r"(q_proj|k_proj|v_proj|o_proj|out_proj|in_proj\w*|gate_proj|up_proj|down_proj|w[123]|"
    r"per_layer_input_gate|per_layer_projection)"
)
_CLIP_BLOCK = r"\.layers\..*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)"
_GATED_BLOCK = r"\.layers\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
_LLAVA_LORA = rf"language_model\.layers\..*\.{_LINEAR}"
_LLAVA_VISION = rf"vision_tower\..*{_CLIP_BLOCK}"
_QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
_QWEN_VISION = r"visual\.blocks\..*\.(qkv|q|k|v|proj|fc1|fc2|gate_proj|up_proj|down_proj|linear_fc1|linear_fc2)"
_INTERNVL_VISION = r"vision_tower\.encoder\.layer\..*\.(q_proj|k_proj|v_proj|projection_layer|fc1|fc2)"
_IDEFICS_LORA = rf"text_model\.layers\..*\.{_LINEAR}"
_IDEFICS_VISION = rf"vision_model\..*{_CLIP_BLOCK}"


@dataclass(frozen=True)
class Family:
    """What is specific to a family. All families have a language model that is causal over images too.

    Attributes:
        image: the placeholder of an image in the chat template; `{number}` counts a row's images from 1.
        lora: regular expression of the language model's linear layers, for LoRA.
        vision_lora: the same for the blocks of the vision tower; projectors are not adapted.
    """

    image: str
    lora: str
    vision_lora: str


_LLAVA = Family("<image>", _LLAVA_LORA, _LLAVA_VISION)
_QWEN = Family(_QWEN_IMAGE, _LLAVA_LORA, _QWEN_VISION)

# By `config.model_type`.
FAMILIES: dict[str, Family] = {
    "phi3_v": Family(
        "<|image_{number}|>",
        lora=r"model\.layers\..*\.(qkv_proj|o_proj|gate_up_proj|down_proj)",
        vision_lora=rf"model\.vision_embed_tokens\.img_processor\..*{_CLIP_BLOCK}",
    ),
    "llava": _LLAVA,
    "llava_next": _LLAVA,
    "idefics3": Family("<image>", _IDEFICS_LORA, _IDEFICS_VISION),
    "smolvlm": Family("<image>", _IDEFICS_LORA, _IDEFICS_VISION),
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": _QWEN,
    "qwen3_vl_moe": _QWEN,
    "qwen3_5": _QWEN,
    "qwen3_5_moe": _QWEN,
    "internvl": Family(
        "<IMG_CONTEXT>",
        _LLAVA_LORA,
        r"vision_tower\.encoder\.layer\..*\.(q_proj|k_proj|v_proj|projection_layer|fc1|fc2)",
    ),
    "llava_onevision": _LLAVA,
    "mistral3": Family("[IMG]", _LLAVA_LORA, rf"vision_tower\..*{_GATED_BLOCK}"),
    "lfm2_vl": _LLAVA,
    "qwen2_5_omni_thinker": Family("<|vision_bos|><|IMAGE|><|vision_eos|>", _LLAVA_LORA, _QWEN_VISION),
    "gemma3": Family("<start_of_image>", _LLAVA_LORA, _LLAVA_VISION),
    "gemma4": Family("<|image|>", _LLAVA_LORA, rf"vision_tower\..*{_GATED_BLOCK}\.linear"),
    "aya_vision": _LLAVA,
    "cohere2_vision": Family("<|IMG_PATCH|>", _LLAVA_LORA, _LLAVA_VISION),
}
