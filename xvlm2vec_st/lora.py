"""LoRA and DoRA on the language model only: target presets a family."""

from peft import LoraConfig

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


def lora_config(
    family: str, *, rank: int = 16, alpha: int = 32, dropout: float = 0.0, dora: bool = False
) -> LoraConfig:
    """A peft configuration that adapts every linear layer of the family's language model.

    Args:
        family: `config.model_type` of the backbone.
        rank: rank of the update; `alpha / rank` scales it.
        alpha: see `rank`.
        dropout: on the adapter's input.
        dora: weight-decomposed LoRA, as VLM2Vec's own adapters.

    Raises:
        ValueError: for a family without a preset.

    >>> lora_config("llava", rank=8).r
    8
    """
    if family not in TARGETS:
        raise ValueError(
            f"no LoRA preset for {family!r}; there is one for {', '.join(TARGETS)}. "
            "Make a peft.LoraConfig with target_modules of your own."
        )
    return LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, use_dora=dora, target_modules=TARGETS[family]
    )
