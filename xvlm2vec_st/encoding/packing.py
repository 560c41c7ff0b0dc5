"""Rows that share their images, packed so that what they share is computed once.

Attention is causal and images come first, so the states of a shared prefix do not depend on what
follows it. A group of rows becomes one stretch of tokens, the prefix once and then each row's own
tokens, its branch. A branch sees the prefix and itself, its positions go on where the prefix ends:
the same function, token by token, as row by row. Stretches lie side by side in rows of one width.

Pure functions on tensors; no model is known here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Plan:
    """Where the tokens of a batch stand in the packed one.

    Attributes:
        slot: (rows, tokens) place of each token in the flattened packed batch; -1 for padding.
        stretch: (packed rows, width) number of the stretch that a place belongs to; -1 for padding.
        branch: (packed rows, width) 0 in a prefix, else 1 + the row whose own token stands there.
        groups: the groups' numbers in the order in which their stretches stand.
    """

    slot: Tensor
    stretch: Tensor
    branch: Tensor
    groups: tuple[int, ...]

    @property
    def saved(self) -> float:
        """The part of the padded batch's tokens that the packed one does without."""
        return 1 - self.stretch.numel() / self.slot.numel()


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """How many leading ids all rows share.

    >>> common_prefix([[1, 9, 9, 4], [1, 9, 9, 5, 6]])
    3
    """
    shortest, longest = min(rows), max(rows)  # what these two share, all between them share
    for place, (first, second) in enumerate(zip(shortest, longest, strict=False)):
        if first != second:
            return place
    return min(len(shortest), len(longest))


def plan_rows(
    attention_mask: Tensor,
    group: Tensor,
    shared: Tensor,
    *,
    limit: int,
    boundary: int | None = None,
) -> Plan:
    """Lay out a batch.

    Args:
        attention_mask: (rows, tokens), 1 for real tokens, padding on either side.
        group: (rows,) rows of one number share their leading tokens; -1: a row for itself.
        shared: (rows,) how many leading tokens a row has in common with its group.
        limit: tokens of a stretch at most; a larger group is split, a single row never.
        boundary: rows up to this length and rows beyond are kept apart (rotary factors that
            change with a row's length).

    Packed rows are as wide as the longest stretch. Stretches keep the order of their groups' first
    rows; rows of no group fill what room is left.

    >>> plan = plan_rows(torch.ones(2, 3), torch.tensor([0, 0]), torch.tensor([2, 2]), limit=9)
    >>> plan.slot.tolist(), plan.branch.tolist()
    ([[0, 1, 2], [0, 1, 3]], [[0, 0, 1, 2]])
    """
    lengths = [int(n) for n in attention_mask.sum(-1).tolist()]
    prefix = [int(n) for n in shared.tolist()]
    numbers = [int(g) for g in group.tolist()]
    stretches = group_rows(lengths, numbers, prefix, limit, boundary)
    sizes = [prefix[rows[0]] + sum(lengths[r] - prefix[r] for r in rows) for rows in stretches]
    width = max(sizes)
    starts, count = fill(sizes, [numbers[rows[0]] >= 0 for rows in stretches], width)

    slots = torch.full(attention_mask.shape, -1, dtype=torch.long)
    stretch, branch = torch.full((count * width,), -1), torch.zeros(count * width, dtype=torch.long)
    real = attention_mask.bool().cpu()
    for number, (rows, start) in enumerate(zip(stretches, starts, strict=True)):
        stretch[start : start + sizes[number]] = number
        common = torch.arange(start, start + prefix[rows[0]])
        own = start + len(common)
        for row in rows:
            rest = torch.arange(own, own + lengths[row] - prefix[row])
            slots[row, real[row]] = torch.cat((common, rest))
            branch[rest] = row + 1
            own += len(rest)
    device = attention_mask.device
    shape = (count, width)
    groups = tuple(numbers[rows[0]] for rows in stretches if numbers[rows[0]] >= 0)
    return Plan(slots.to(device), stretch.view(shape).to(device), branch.view(shape).to(device), groups)


def group_rows(
    lengths: Sequence[int], group: Sequence[int], prefix: Sequence[int], limit: int, boundary: int | None
) -> list[list[int]]:
    """The rows of each stretch, in the order of first rows.

    >>> group_rows([5, 2, 5, 5], [0, -1, 0, 0], [3, 0, 3, 3], 8, None)
    [[0, 2], [1], [3]]
    """
    stretches: list[list[int]] = []
    current: dict[tuple[int, bool], int] = {}
    size: dict[int, int] = {}
    for row, length in enumerate(lengths):
        key = (group[row], boundary is not None and length > boundary)
        at = current.get(key) if group[row] >= 0 else None
        own = length - prefix[row]
        if at is None or size[at] + own > limit:
            at = current[key] = len(stretches)
            stretches.append([])
            size[at] = prefix[row]
        stretches[at].append(row)
        size[at] += own
    return stretches


def fill(sizes: Sequence[int], ordered: Sequence[bool], width: int) -> tuple[list[int], int]:
    """(start of each stretch in the flattened packed batch, number of packed rows).

    Ordered stretches go to the last row or a new one, so that they keep their order; the others,
    longest first, to the first row with room.

    >>> fill([5, 2, 4, 3], [True, False, True, False], 6)
    ([0, 10, 6, 12], 3)
    """
    used: list[int] = []
    starts = [0] * len(sizes)

    def place(number: int, at: int) -> None:
        if at == len(used):
            used.append(0)
        starts[number] = at * width + used[at]
        used[at] += sizes[number]

    for number, size in enumerate(sizes):
        if ordered[number]:
            last = max(len(used) - 1, 0)
            place(number, last if not used or used[last] + size <= width else last + 1)
    for number in sorted((n for n, o in enumerate(ordered) if not o), key=lambda n: -sizes[n]):
        fits = (at for at, taken in enumerate(used) if taken + sizes[number] <= width)
        place(number, next(fits, len(used)))
    return starts, len(used)


def pack(plan: Plan, tokens: Tensor, pad: int = 0) -> Tensor:
    """(…, rows, tokens) values a token → (…, packed rows, width); `pad` where nothing stands.

    >>> plan = plan_rows(torch.ones(2, 3), torch.tensor([0, 0]), torch.tensor([2, 2]), limit=9)
    >>> pack(plan, torch.tensor([[1, 9, 4], [1, 9, 5]])).tolist()
    [[1, 9, 4, 5]]
    """
    real = plan.slot >= 0
    packed = tokens.new_full((*tokens.shape[:-2], plan.stretch.numel()), pad)
    packed[..., plan.slot[real]] = tokens[..., real]
    return packed.unflatten(-1, plan.stretch.shape)


def unpack(plan: Plan, states: Tensor) -> Tensor:
    """(packed rows, width, dim) states → (rows, tokens, dim); zero where padding stands."""
    flat = states.flatten(0, 1)
    rows = flat.index_select(0, plan.slot.clamp(min=0).flatten()).unflatten(0, plan.slot.shape)
    return rows * (plan.slot >= 0).unsqueeze(-1)


def attention_mask(plan: Plan, dtype: torch.dtype) -> Tensor:
    """What each place may look at, to be added to scores: (packed rows, 1, width, width), 0 or lowest.

    Itself and what stands before it in its stretch: the prefix, and its own branch. Padding sees
    itself, for a row of nothing but the lowest would have no softmax.

    >>> plan = plan_rows(torch.ones(2, 2), torch.tensor([0, 0]), torch.tensor([1, 1]), limit=9)
    >>> (attention_mask(plan, torch.float32) == 0)[0, 0].int().tolist()
    [[1, 0, 0], [1, 1, 0], [1, 0, 1]]
    """
    stretch, branch = plan.stretch, plan.branch
    own = (branch[:, None] == 0) | (branch[:, None] == branch[..., None])
    together = (stretch[:, None] == stretch[..., None]) & (stretch[..., None] >= 0) & own
    width = stretch.shape[1]
    seen = together.tril() | torch.eye(width, dtype=torch.bool, device=stretch.device)
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min).unsqueeze(1)
