"""What the benchmarks measure on: a Phi-3.5-vision of random weights, 757 tokens an image."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from xvlm2vec_st.phi3v import Phi3VConfig, Phi3VImageProcessor, Phi3VModel, Phi3VProcessor

# Width and depth; the lengths are true in both. `phi3_v` is the published geometry.
GEOMETRIES: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "vocab_size": 512,
        "vision_config": {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": 336,
            "patch_size": 14,
        },
    },
    "phi3_v": {},
}
SPECIAL = ["<unk>", "<s>", "</s>", "<|image|>", "<pad>"]


def letters() -> PreTrainedTokenizerFast:
    """A token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    whole = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(SPECIAL + alphabet)}, merges=[]))
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    whole.decoder = decoders.ByteLevel()
    whole.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=whole, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=4096
    )


def write_checkpoint(folder: Path, geometry: str) -> Path:
    """Random weights, fp32 for the tiny geometry, bf16 and 8.3 GB for the published one."""
    chosen = GEOMETRIES[geometry]
    config = Phi3VConfig(
        **chosen, pad_token_id=4, bos_token_id=1, eos_token_id=2, original_max_position_embeddings=4096
    )
    torch.manual_seed(0)
    if chosen:
        model = Phi3VModel(config)
    else:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            model = Phi3VModel._from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    Phi3VProcessor(Phi3VImageProcessor(num_crops=4), letters()).save_pretrained(folder)
    return folder
