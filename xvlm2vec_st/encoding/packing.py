"""Pack rows that share their images, so that the shared prefix is computed once.

Attention is causal and images come first, so the states of a shared prefix do not depend on the tokens after it. A
group of rows becomes one stretch of tokens: the prefix once, then the other tokens of each row, its branch. A branch
attends to the prefix and to itself, and its positions continue after the prefix. So each token gets the same state as
row by row. Stretches lie side by side in packed rows of one width.

Pure functions on tensors, without a model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Plan:
    """The places of a batch's tokens in the packed batch.

    Attributes:
        slot: (rows, tokens) place of each token in the flattened packed batch; -1 for padding.
        stretch: (packed rows, width) number of the stretch at each place; -1 for padding.
        branch: (packed rows, width) 0 in a prefix, else 1 + the row that the token belongs to.
        groups: numbers of the groups, in the order of their stretches.
    """

    slot: Tensor
    stretch: Tensor
    branch: Tensor
    groups: tuple[int, ...]


def common_prefix(rows: Sequence[list[int]]) -> int:
    """The number of leading ids that all rows share.

    >>> common_prefix([[1, 9, 9, 4], [1, 9, 9, 5, 6]])
    3
    """
    # In lexicographic order, all rows between the first and the last share what these two share.
    first_row, last_row = min(rows), max(rows)
    for place, (first, second) in enumerate(zip(first_row, last_row, strict=False)):
        if first != second:
            return place
    return min(len(first_row), len(last_row))


def plan_rows(
    attention_mask: Tensor,
    group: Tensor,
    shared: Tensor,
    *,
    limit: int,
    boundary: int | None = None,
) -> Plan:
    """Plan the layout of a batch.

    Packed rows are as wide as the longest stretch. Stretches keep the order of their groups' first rows. Rows without a
    group fill the remaining room.

    Args:
        attention_mask: (rows, tokens), 1 for real tokens, padding on either side.
        group: (rows,) rows with the same number share their leading tokens; -1: no group.
        shared: (rows,) number of leading tokens that a row shares with its group.
        limit: maximum tokens per stretch. A larger group is split; a single row is not.
        boundary: separates rows up to this length from longer ones (rotary factors that depend on a row's length).

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
    starts, count = place_stretches(sizes, [numbers[rows[0]] >= 0 for rows in stretches], width)

    slots = torch.full(attention_mask.shape, -1, dtype=torch.long)
    stretch, branch = torch.full((count * width,), -1), torch.zeros(count * width, dtype=torch.long)
    real = attention_mask.bool().cpu()
    for number, (rows, start) in enumerate(zip(stretches, starts, strict=True)):
        stretch[start : start + sizes[number]] = number
        common = torch.arange(start, start + prefix[rows[0]])
        end = start + len(common)
        for row in rows:
            rest = torch.arange(end, end + lengths[row] - prefix[row])
            slots[row, real[row]] = torch.cat((common, rest))
            branch[rest] = row + 1
            end += len(rest)
    device = attention_mask.device
    shape = (count, width)
    groups = tuple(numbers[rows[0]] for rows in stretches if numbers[rows[0]] >= 0)
    return Plan(slots.to(device), stretch.view(shape).to(device), branch.view(shape).to(device), groups)


def group_rows(
    lengths: Sequence[int], group: Sequence[int], prefix: Sequence[int], limit: int, boundary: int | None
) -> list[list[int]]:
    """The rows of each stretch, in the order of their first rows.

    >>> group_rows([5, 2, 5, 5], [0, -1, 0, 0], [3, 0, 3, 3], 8, None)
    [[0, 2], [1], [3]]
    """
    stretches: list[list[int]] = []
    current: dict[tuple[int, bool], int] = {}
    size: dict[int, int] = {}
    for row, length in enumerate(lengths):
        key = (group[row], boundary is not None and length > boundary)
        at = current.get(key) if group[row] >= 0 else None
        rest = length - prefix[row]
        if at is None or size[at] + rest > limit:
            at = current[key] = len(stretches)
            stretches.append([])
            size[at] = prefix[row]
        stretches[at].append(row)
        size[at] += rest
    return stretches


def place_stretches(sizes: Sequence[int], ordered: Sequence[bool], width: int) -> tuple[list[int], int]:
    """(start of each stretch in the flattened packed batch, number of packed rows).

    Ordered stretches go to the last packed row or to a new one, which keeps their order. The others go to the first
    packed row with room, longest first.

    >>> place_stretches([5, 2, 4, 3], [True, False, True, False], 6)
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
    """Pack values per token: (…, rows, tokens) -> (…, packed rows, width), with `pad` at unused places.

    >>> plan = plan_rows(torch.ones(2, 3), torch.tensor([0, 0]), torch.tensor([2, 2]), limit=9)
    >>> pack(plan, torch.tensor([[1, 9, 4], [1, 9, 5]])).tolist()
    [[1, 9, 4, 5]]
    """
    real = plan.slot >= 0
    packed = tokens.new_full((*tokens.shape[:-2], plan.stretch.numel()), pad)
    packed[..., plan.slot[real]] = tokens[..., real]
    return packed.unflatten(-1, plan.stretch.shape)


def unpack(plan: Plan, states: Tensor) -> Tensor:
    """Unpack states: (packed rows, width, dim) -> (rows, tokens, dim), with zeros for padding."""
    return states_at(plan.slot, states.flatten(0, 1))


def states_at(slot: Tensor, states: Tensor) -> Tensor:
    """The states at each token's slot: (slots, dim) -> (rows, tokens, dim), with zeros where the slot is -1."""
    rows = states.index_select(0, slot.clamp(min=0).flatten()).unflatten(0, slot.shape)
    return rows * (slot >= 0).unsqueeze(-1)


def mark_slots(slot: Tensor, chosen: Tensor, count: int) -> Tensor:
    """Which of `count` slots hold a chosen token; rows may share a slot.

    Args:
        slot: (rows, tokens) slot of each token.
        chosen: (rows, tokens) bool.

    >>> mark_slots(torch.tensor([[0, 1], [0, 2]]), torch.tensor([[True, False], [False, True]]), 4).int().tolist()
    [1, 0, 1, 0]
    """
    marked = torch.zeros(count, dtype=torch.bool, device=slot.device)
    marked[slot[chosen]] = True
    return marked


def attention_mask(plan: Plan, dtype: torch.dtype) -> Tensor:
    """The packed attention mask, added to scores: (packed rows, 1, width, width), 0 or the lowest value.

    A place attends to itself, and to earlier places of its stretch in the prefix or in its branch. Padding attends to
    itself, because the softmax of a row without any 0 is undefined.

    >>> plan = plan_rows(torch.ones(2, 2), torch.tensor([0, 0]), torch.tensor([1, 1]), limit=9)
    >>> (attention_mask(plan, torch.float32) == 0)[0, 0].int().tolist()
    [[1, 0, 0], [1, 1, 0], [1, 0, 1]]
    """
    stretch, branch = plan.stretch, plan.branch
    reachable = (branch[:, None] == 0) | (branch[:, None] == branch[..., None])
    same = (stretch[:, None] == stretch[..., None]) & (stretch[..., None] >= 0)
    width = stretch.shape[1]
    seen = (same & reachable).tril() | torch.eye(width, dtype=torch.bool, device=stretch.device)
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min).unsqueeze(1)


def has_window(text: PreTrainedConfig) -> bool:
    """Whether some layer attends to a window only; packed rows have one mask for all layers.

    >>> from transformers import MistralConfig
    >>> has_window(MistralConfig(sliding_window=None)), has_window(MistralConfig(sliding_window=4096))
    (False, True)
    """
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    window = getattr(text, "sliding_window", None) or text.max_position_embeddings
    return kinds != {"full_attention"} or window < text.max_position_embeddings


def images_of_groups(features: dict[str, Any]) -> list[int]:
    """The number of images of each group."""
    return [count for count in features["num_images_per_sample"].tolist() if count]


def repeat_per_stretch(encoded: Any, groups: Sequence[int], counts: Sequence[int]) -> Any:
    """Repeat encoded images for every stretch.

    Args:
        encoded: output of `get_image_features`: tensors whose last dimension is that of the states, or lists of them,
            one per image, tile or row, in the order of the images.
        groups: the set of images of each stretch.
        counts: number of image tokens of each set.
    """
    if list(groups) == list(range(len(counts))):
        return encoded

    def repeated(tensors: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
        whole = isinstance(tensors, Tensor)
        flat = torch.cat([t.flatten(0, -2) for t in ([tensors] if whole else tensors)])  # type: ignore[union-attr]
        if len(flat) != sum(counts):
            raise ValueError(f"{len(flat)} encoded image tokens for {sum(counts)} image tokens in the rows")
        sets = flat.split(list(counts))
        return torch.cat([sets[group] for group in groups]) if whole else [sets[group] for group in groups]

    encoded.pooler_output = repeated(encoded.pooler_output)
    if getattr(encoded, "deepstack_features", None) is not None:
        encoded.deepstack_features = [repeated(layer) for layer in encoded.deepstack_features]
    return encoded
