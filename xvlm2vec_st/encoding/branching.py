"""Split rows into prefixes and branches: each prefix runs once with a cache, then its branches run on top.

Unlike packed rows (see `encoding.packing`), this needs no attention mask of its own: it works with flash attention,
sliding windows, linear attention and convolutions, and with groups of any length.

Pure functions on tensors, without a model.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BranchPlan:
    """The places of a batch's tokens in the prefixes and branches.

    Attributes:
        prefix: (prefixes, width) place of each prefix token in the flattened batch; -1 for padding, on the left.
        branch: (branches, width) the same for the tokens after a prefix; padding is on the right.
        owner: (branches,) the prefix of each branch.
        slot: (rows, tokens) place of each token in the states of the flattened prefixes, then of the flattened
            branches; -1 for padding.
    """

    prefix: Tensor
    branch: Tensor
    owner: Tensor
    slot: Tensor


def plan_branches(attention_mask: Tensor, group: Tensor, shared: Tensor) -> BranchPlan:
    """Plan the prefixes and branches of a batch.

    A row without a group is a prefix of its own, without a branch. Prefixes keep the order of their first rows.

    Args:
        attention_mask: (rows, tokens), 1 for real tokens, padding on either side.
        group: (rows,) rows with the same number share their leading tokens; -1: no group.
        shared: (rows,) number of leading tokens that a row shares with its group.

    >>> plan = plan_branches(torch.ones(2, 3), torch.tensor([0, 0]), torch.tensor([2, 2]))
    >>> plan.prefix.tolist(), plan.branch.tolist(), plan.slot.tolist()
    ([[0, 1]], [[2], [5]], [[0, 1, 2], [0, 1, 3]])
    """
    device, (count, width) = attention_mask.device, attention_mask.shape
    real = attention_mask.bool().cpu()
    places = [row + mask.nonzero().flatten() for row, mask in zip(range(0, count * width, width), real, strict=True)]
    prefixes: list[Tensor] = []
    branches: list[Tensor] = []
    owner: list[int] = []
    known: dict[int, int] = {}
    prefix_of: list[int] = []
    for row, (number, length) in enumerate(zip(group.tolist(), shared.tolist(), strict=True)):
        if number < 0:
            length = len(places[row])
        at = known.setdefault(number, len(prefixes)) if number >= 0 else len(prefixes)
        if at == len(prefixes):
            prefixes.append(places[row][:length])
        prefix_of.append(at)
        if length < len(places[row]):
            branches.append(places[row][length:])
            owner.append(at)
    prefix, branch = pad_places(prefixes, left=True), pad_places(branches, left=False)
    slot = torch.full((count * width,), -1)
    taken = slots_of(branch, prefix.numel())
    slot[branch[branch >= 0]] = taken
    starts = slots_of(prefix, 0).split([len(places) for places in prefixes])
    for row, at in enumerate(prefix_of):
        slot[places[row][: len(prefixes[at])]] = starts[at]
    owners = torch.tensor(owner, dtype=torch.long)
    return BranchPlan(*(value.to(device) for value in (prefix, branch, owners, slot.view(count, width))))


def pad_places(rows: list[Tensor], *, left: bool) -> Tensor:
    """Rows of places as one tensor, padded with -1: (rows, longest)."""
    width = max((len(row) for row in rows), default=0)
    padded = torch.full((len(rows), width), -1)
    for number, row in enumerate(rows):
        if len(row):
            padded[number, slice(width - len(row), None) if left else slice(len(row))] = row
    return padded


def slots_of(places: Tensor, start: int) -> Tensor:
    """The positions of the real places in the flattened tensor, counted from `start`."""
    return (places >= 0).flatten().nonzero().flatten() + start


def take(values: Tensor, places: Tensor, pad: int = 0) -> Tensor:
    """Values per token at those places: (…, rows, tokens) -> (…, *places.shape), with `pad` where a place is -1.

    >>> take(torch.tensor([[5, 6], [7, 8]]), torch.tensor([[3, -1]])).tolist()
    [[8, 0]]
    """
    taken = values.flatten(-2)[..., places.clamp(min=0)]
    return taken.masked_fill(places < 0, pad)


def branch_chunks(plan: BranchPlan, limit: int) -> list[slice]:
    """Cut the branches into chunks of at most `limit` tokens, prefixes included; one branch is never cut.

    >>> plan = plan_branches(torch.ones(3, 3), torch.tensor([0, 0, 0]), torch.tensor([2, 2, 2]))
    >>> branch_chunks(plan, 6)
    [slice(0, 2, None), slice(2, 4, None)]
    """
    size = max(limit // (plan.prefix.shape[1] + plan.branch.shape[1]), 1)
    return [slice(start, start + size) for start in range(0, len(plan.owner), size)]
