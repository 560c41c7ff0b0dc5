"""Configuration of Phi-3.5-vision; it reads the official `config.json` unchanged."""

import math
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import CLIPVisionConfig, Phi3Config

CLIP_L_14_336 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_channels": 3,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}

# The choices of the published checkpoints; others are not implemented.
EMBD_LAYER = {
    "embedding_cls": "image",
    "hd_transform_order": "sub_glb",
    "projection_cls": "mlp",
    "use_hd_transform": True,
    "with_learnable_separator": True,
}
IMG_PROCESSOR = {"name": "clip_vision_model", "layer_idx": -2, "type_feature": "patch"}
IMAGE_TOKEN_ID = 32044  # `<|image|>` in the official tokenizer


@strict
class Phi3VConfig(Phi3Config):
    """A `Phi3Config` for the decoder, plus the shape of the vision tower.

    In official files, `rope_scaling` has type `su`; transformers calls it longrope. They have no `vision_config`; the
    default is CLIP ViT-L/14-336. They have no `image_token_id` either. It is None if the vocabulary is too small for
    the official one; then only the processor's `mm_token_type_ids` mark the images. Settings of the machine
    (`_attn_implementation`: the official file requests flash attention) and remote code (`auto_map`) are dropped.

    Raises:
        ValueError: `embd_layer`, `img_processor` or `vision_config` describe another architecture.

    >>> Phi3VConfig().vision_config.image_size
    336
    """

    model_type = "phi3_v"
    sub_configs: ClassVar[dict[str, type]] = {"vision_config": CLIPVisionConfig}

    num_key_value_heads: int | None = 32
    max_position_embeddings: int = 131072
    pad_token_id: int | None = None
    image_token_id: int | None = None
    embd_layer: dict | None = None
    img_processor: dict | None = None
    vision_config: dict | CLIPVisionConfig | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Convert the settings of 2024's official files."""
        for machine_or_remote in ("_attn_implementation", "auto_map"):
            kwargs.pop(machine_or_remote, None)
        if not isinstance(self.vision_config, CLIPVisionConfig):
            self.vision_config = CLIPVisionConfig(**(self.vision_config or CLIP_L_14_336))
        self.embd_layer = check_choices("embd_layer", EMBD_LAYER, self.embd_layer)
        self.img_processor = check_choices("img_processor", IMG_PROCESSOR, self.img_processor)
        if rope_scaling := kwargs.pop("rope_scaling", None):
            self.rope_parameters = longrope(
                rope_scaling, self.max_position_embeddings, self.original_max_position_embeddings
            )
        check_tower(self.vision_config, self.img_processor)
        if self.image_token_id is None and self.vocab_size > IMAGE_TOKEN_ID:
            self.image_token_id = IMAGE_TOKEN_ID
        super().__post_init__(**kwargs)


def check_choices(field: str, supported: dict[str, Any], chosen: dict | None) -> dict[str, Any]:
    """Return `chosen`, or by default the supported choices.

    Raises:
        ValueError: a choice is not implemented.

    >>> check_choices("embd_layer", {"order": "sub_glb"}, {"order": "glb_sub"})
    Traceback (most recent call last):
    ...
    ValueError: embd_layer.order is 'glb_sub'; only 'sub_glb' is implemented
    """
    if chosen is None:
        return dict(supported)
    for key, choice in supported.items():
        if chosen.get(key, choice) != choice:
            raise ValueError(f"{field}.{key} is {chosen[key]!r}; only {choice!r} is implemented")
    return dict(chosen)


def check_tower(tower: CLIPVisionConfig, img_processor: dict[str, Any]) -> None:
    """Compare the tower's shape with the numbers of `img_processor`, which are not used otherwise.

    Raises:
        ValueError: they differ, or 2 x 2 patches cannot form a token.
    """
    image_size, patch_size = tower.image_size, tower.patch_size
    if not isinstance(image_size, int) or not isinstance(patch_size, int):
        raise ValueError(f"vision_config has size {image_size}, patches {patch_size}; use squares")
    side = image_size // patch_size
    if image_size % patch_size or side % 2:
        raise ValueError(
            f"vision_config.image_size {image_size} is not an even number of patches of "
            f"{patch_size} pixels, and 2 x 2 patches make a token; use a multiple of "
            f"{2 * patch_size}"
        )
    for key, built in (("image_dim_out", tower.hidden_size), ("num_img_tokens", side**2 // 4)):
        if img_processor.get(key, built) != built:
            raise ValueError(
                f"img_processor.{key} is {img_processor[key]}, vision_config gives {built}; "
                "pass the vision_config of the checkpoint's tower"
            )


def longrope(rope_scaling: dict[str, Any], longest: int, original: int) -> dict[str, Any]:
    """Convert the official `rope_scaling` to transformers' format; `su` is the old name of longrope.

    The original computes its attention scale sqrt(1 + log(longest / original) / log(original)); transformers computes
    the same from `factor`.

    >>> longrope({"type": "su", "short_factor": [1.0], "long_factor": [2.0]}, 8192, 1024)["factor"]
    8.0
    """
    parameters = {key: value for key, value in rope_scaling.items() if key != "type"}
    named = parameters.setdefault("rope_type", rope_scaling.get("type", "default"))
    if named in ("su", "longrope"):
        parameters["rope_type"] = "longrope"
        parameters["original_max_position_embeddings"] = original
        if not math.isclose(longest, original):
            parameters.setdefault("factor", longest / original)
    return parameters
