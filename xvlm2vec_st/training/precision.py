"""Whether weights are precise enough to learn."""

import logging

import torch
from torch import nn

logger = logging.getLogger(__name__)


def warn_of_lost_updates(model: nn.Module) -> bool:
    """Log a warning, and return True, where weights that learn are bf16 or fp16.

    A weight of 8 bits takes no update smaller than 1/256 of it: at a rate of 1e-5 most are lost.

    >>> warn_of_lost_updates(nn.Linear(2, 2))
    False
    """
    low = {p.dtype for p in model.parameters() if p.requires_grad} & {torch.bfloat16, torch.float16}
    if low:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in low))
        logger.warning(
            "weights that learn are %s, in which small updates are lost; load the student with "
            'model_kwargs={"dtype": "float32"}, and train with bf16=True for the speed',
            names,
        )
    return bool(low)
