"""LoRA and DoRA on the language model only: target presets a family."""

from peft import LoraConfig

from xvlm2vec_st.utils.peft_version import check_peft

# Regular expressions on module names, for `q_proj, v_proj` alone also hits vision towers.
LINEAR = r"(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
TARGETS = {
    "phi3_v": r"model\.layers\..*\.(qkv_proj|o_proj|gate_up_proj|down_proj)",
    **dict.fromkeys(
        ("llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"),
        rf"language_model\.layers\..*\.{LINEAR}",
    ),
    **dict.fromkeys(("idefics3", "smolvlm"), rf"text_model\.layers\..*\.{LINEAR}"),
}
# The linear layers of the vision towers' blocks; projectors are left as they are.
CLIP_BLOCK = r"\.layers\..*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)"
QWEN_BLOCK = r"visual\.blocks\..*\.(qkv|proj|fc1|fc2|gate_proj|up_proj|down_proj|linear_fc1|linear_fc2)"
VISION_TARGETS = {
    "phi3_v": rf"model\.vision_embed_tokens\.img_processor\..*{CLIP_BLOCK}",
    **dict.fromkeys(("llava", "llava_next"), rf"vision_tower\..*{CLIP_BLOCK}"),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), QWEN_BLOCK),
    **dict.fromkeys(("idefics3", "smolvlm"), rf"vision_model\..*{CLIP_BLOCK}"),
}


def lora_config(
    family: str,
    *,
    rank: int = 16,
    alpha: int = 32,
    dropout: float = 0.0,
    dora: bool = False,
    vision: bool = False,
) -> LoraConfig:
    """A peft configuration that adapts every linear layer of the family's language model.

    Args:
        family: `config.model_type` of the backbone.
        rank: rank of the update; `alpha / rank` scales it.
        alpha: see `rank`.
        dropout: on the adapter's input.
        dora: weight-decomposed LoRA, as VLM2Vec's own adapters.
        vision: adapt the linear layers of the vision tower's blocks too.

    Raises:
        ValueError: for a family without a preset; the installed transformers and peft do not work together.

    >>> lora_config("llava", rank=8).r
    8
    """
    check_peft("lora_config")
    if family not in TARGETS:
        raise ValueError(
            f"no LoRA preset for {family!r}; there is one for {', '.join(TARGETS)}. "
            "Make a peft.LoraConfig with target_modules of your own."
        )
    targets = f"({TARGETS[family]})|({VISION_TARGETS[family]})" if vision else TARGETS[family]
    return LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, use_dora=dora, target_modules=targets)
