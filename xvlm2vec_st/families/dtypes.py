"""The dtypes of a checkpoint: what its files hold, what is loaded, what is stored."""

import math
import os
from collections import Counter
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig
from transformers.utils import cached_file

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# Floating-point dtypes, as safetensors writes them. Others (F64, FP8) are loaded as fp32.
NAMES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
INTEGERS = ("BOOL", "U", "I")


def count_dtypes(folder: str | Path) -> Counter[str]:
    """Numbers of each dtype in a folder's weight files; reads their headers only. Empty for what is not a folder."""
    counts: Counter[str] = Counter()
    for file in sorted(Path(folder).glob("*.safetensors")) if os.path.isdir(folder) else ():
        with safe_open(file, "pt") as weights:
            for key in weights.keys():  # noqa: SIM118 - not a mapping
                part = weights.get_slice(key)
                counts[part.get_dtype()] += math.prod(part.get_shape())
    return counts


def stored_dtype(base: str) -> torch.dtype:
    """The dtype of most weights in a checkpoint's files, or else of its configuration.

    The configuration of a published Qwen3-VL names a dtype for the language model only.
    """
    if counts := count_dtypes(base):
        return NAMES.get(counts.most_common(1)[0][0], torch.float32)
    config = AutoConfig.from_pretrained(base, trust_remote_code=False)
    return config.dtype or config.get_text_config().dtype or torch.float32


def exact_dtype(base: str) -> torch.dtype:
    """The smallest dtype that holds a checkpoint's weights without rounding; fp32 where the files do not tell.

    Args:
        base: folder, or Hub id of a checkpoint whose files are in the Hub's cache.
    """
    folder = base if os.path.isdir(base) else os.path.dirname(str(cached_file(base, "config.json")))
    try:
        dtypes = {name for name in count_dtypes(folder) if not name.startswith(INTEGERS)}
    except SafetensorError:
        return torch.float32  # a damaged file, which is refused by name when it is loaded
    return NAMES.get(dtypes.pop(), torch.float32) if len(dtypes) == 1 else torch.float32


def cast_parameters(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast parameters to `dtype`. Buffers, for example rotary frequencies, keep theirs."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
