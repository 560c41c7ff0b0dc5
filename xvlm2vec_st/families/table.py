"""The model families: one entry each. To add a family, add an entry here and a tiny checkpoint in tests/tiny.py."""

import re
from dataclasses import dataclass

# Parameters that a text without an image does not reach, in any family.
VISION = re.compile(r"vision|visual|connector|projector|img_|image_newline")

_LINEAR = r"(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
_CLIP_BLOCK = r"\.layers\..*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)"
_LLAVA_LORA = rf"language_model\.layers\..*\.{_LINEAR}"
_LLAVA_VISION = rf"vision_tower\..*{_CLIP_BLOCK}"
_QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
_QWEN_VISION = r"visual\.blocks\..*\.(qkv|proj|fc1|fc2|gate_proj|up_proj|down_proj|linear_fc1|linear_fc2)"
_IDEFICS_LORA = rf"text_model\.layers\..*\.{_LINEAR}"
_IDEFICS_VISION = rf"vision_model\..*{_CLIP_BLOCK}"


@dataclass(frozen=True)
class Family:
    """What is specific to a family. All families have a language model that is causal over images too.

    Attributes:
        image: the placeholder of an image in the chat template; `{number}` counts a row's images from 1.
        lora: regular expression of the language model's linear layers, for LoRA.
        vision_lora: the same for the blocks of the vision tower; projectors are not adapted.
        needs_torchvision: transformers' processor also reads videos, and needs torchvision for them. Image
            pixels differ between PIL and torchvision, so the backend is stored with the model.
        encoded_by_row: the vision tower's output is one tensor per row, not per image.
    """

    image: str
    lora: str
    vision_lora: str
    needs_torchvision: bool = False
    encoded_by_row: bool = False


_LLAVA = Family("<image>", _LLAVA_LORA, _LLAVA_VISION)
_QWEN = Family(_QWEN_IMAGE, _LLAVA_LORA, _QWEN_VISION, needs_torchvision=True)

# By `config.model_type`.
FAMILIES: dict[str, Family] = {
    "phi3_v": Family(
        "<|image_{number}|>",
        lora=r"model\.layers\..*\.(qkv_proj|o_proj|gate_up_proj|down_proj)",
        vision_lora=rf"model\.vision_embed_tokens\.img_processor\..*{_CLIP_BLOCK}",
    ),
    "llava": _LLAVA,
    "llava_next": _LLAVA,
    "idefics3": Family("<image>", _IDEFICS_LORA, _IDEFICS_VISION, encoded_by_row=True),
    "smolvlm": Family("<image>", _IDEFICS_LORA, _IDEFICS_VISION, needs_torchvision=True, encoded_by_row=True),
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": _QWEN,
}

# Placeholders of further named templates. A template is part of a model: two checkpoints of one family can need
# two. VLM2Vec's Qwen code writes a bare `<|image_pad|>`.
VARIANTS = {"qwen2_vl_bare": "<|image_pad|>"}
