"""Checks before training: the trainer's arguments, and the precision of the weights."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import nn

from xvlm2vec_st.data.dataset import check_columns
from xvlm2vec_st.data.stream import ParallelStream
from xvlm2vec_st.utils.finite import check_targets, not_finite

logger = logging.getLogger(__name__)


def check_arguments(arguments: Mapping[str, Any], languages: Sequence[str]) -> None:
    """Refuse arguments that the base trainer accepts and this one would ignore.

    Args:
        arguments: arguments of the trainer, by name.
        languages: columns that the rows must have.

    Raises:
        ValueError: prompts; several losses; another kind of rows; a missing column.
    """
    if getattr(arguments.get("args"), "prompts", None):
        raise ValueError("prompts are not applied in distillation; write them into the corpus' texts")
    if isinstance(arguments.get("loss"), dict):
        raise ValueError("loss is a dict; pass one MultilingualDistillationLoss for all rows")
    for name in ("train_dataset", "eval_dataset"):
        rows = arguments.get(name)
        if rows is None or isinstance(rows, ParallelStream):
            continue
        if not isinstance(rows, Dataset):
            raise ValueError(f"{name} is a {type(rows).__name__}; pass rows of load_parallel, or a ParallelStream")
        check_columns(rows.column_names, languages)


def warn_of_lost_updates(model: nn.Module) -> bool:
    """Log a warning, and return True, if trainable weights are bf16 or fp16.

    A bf16 weight has 8 bits of precision: it ignores updates smaller than 1/256 of it. At a learning rate of
    1e-5, most updates are lost.

    >>> warn_of_lost_updates(nn.Linear(2, 2))
    False
    """
    low = {p.dtype for p in model.parameters() if p.requires_grad} & {torch.bfloat16, torch.float16}
    if low:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in low))
        logger.warning(
            "trainable weights are %s, which loses small updates; load the student with "
            'model_kwargs={"dtype": "float32"}, and train with bf16=True for the speed',
            names,
        )
    return bool(low)


def not_finite_error(loss: Any, model: nn.Module, update: int, ids: Sequence[str] | None) -> ValueError:
    """The error for a loss that is not a number, with the ids of its rows and the likely cause.

    Raises:
        ValueError: the teacher's targets are not numbers.
    """
    targets = getattr(loss, "targets", None)
    if targets is not None:
        check_targets(loss.teacher.model, targets)
    rows = sorted({int(r) for row, _, error in getattr(loss, "watched", []) for r in row[~error.isfinite()]})
    names = [ids[row] for row in rows] if ids and rows else ids
    cause = "check their texts and images, lower learning_rate, or train with bf16=False"
    if weights := list(not_finite(model.state_dict().items())):
        cause = (
            f"weights of the student are not numbers ({weights[0]}); lower learning_rate, and resume from an "
            "earlier checkpoint"
        )
    return ValueError(f"the loss of update {update} is not a number; rows: {', '.join(names or '?')}; {cause}")
