"""Check that weights and embeddings are finite numbers."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[str]:
    """Names of tensors that hold NaN or infinity.

    >>> list(not_finite([("a", torch.ones(2)), ("b", torch.tensor([1.0, float("nan")]))]))
    ['b']
    """
    for name, tensor in tensors:
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor  # a shard of FSDP2
        if local.numel() and local.is_floating_point() and not bool(local.detach().abs().max().isfinite()):
            yield name


def check_weights_finite(model: nn.Module, what: str, advice: str) -> None:
    """Refuse weights that are NaN or infinite.

    Raises:
        ValueError: names the first tensor, and counts the others.
    """
    names = list(not_finite(model.state_dict().items()))
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise ValueError(f"{what}: weights are not numbers ({names[0]}{more}); {advice}")


def check_targets(teacher: nn.Module, targets: dict[str, Tensor]) -> None:
    """Refuse teacher embeddings that are NaN or infinite.

    Raises:
        ValueError: names the cause: the teacher's weights, or some rows.
    """
    bad = ~torch.stack([value.isfinite().all(-1) for value in targets.values()]).all(0)
    if not bool(bad.any()):
        return
    check_weights_finite(teacher, "the teacher", "use another teacher, or copy its files again")
    rows = ", ".join(map(str, bad.nonzero().flatten().tolist()))
    raise ValueError(
        f"the teacher's embeddings of the batch's rows {rows} are not numbers, although its weights are; "
        "load it in fp32 or bf16, or remove these rows"
    )
