"""Count a run's floating-point operations without changing how it runs."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count, shape_wrapper


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))


# torch 2.13 counts the fused attention of CUDA, but not that of the CPU.
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
COUNTS = {**flop_registry, **{packet: shape_wrapper(count) for packet, count in CPU_ATTENTION.items()}}


class OperationCounter(TorchDispatchMode):
    """Counts matrix products and attention.

    torch 2.13's FlopCounterMode also tracks modules, by hooks on every tensor: a run of 400 updates held 15 GB.

    >>> with OperationCounter() as counter:
    ...     _ = torch.ones(2, 3) @ torch.ones(3, 4)
    >>> counter.total
    48
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run an operation, and add its count."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if count := COUNTS.get(func.overloadpacket):
            self.total += count(*args, **kwargs, out_val=result)
        return result
