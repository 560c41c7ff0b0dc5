"""Plans and packed batches, on numbers that can be checked by hand."""

import pytest
import torch

from xvlm2vec_st.encoding.packing import (
    attention_mask,
    common_prefix,
    group_rows,
    pack,
    place_stretches,
    plan_rows,
    unpack,
)


def lengths_mask(lengths, width, side="right"):
    mask = torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
    return mask if side == "right" else mask.flip(-1)


@pytest.mark.parametrize("side", ["right", "left"])
def test_every_token_stands_once_and_shared_tokens_stand_together(side):
    lengths, group, shared = [5, 7, 4, 6, 3], [0, 0, -1, 1, -1], [4, 4, 0, 6, 0]
    mask = lengths_mask(lengths, 7, side)
    plan = plan_rows(mask, torch.tensor(group), torch.tensor(shared), limit=100)
    assert plan.groups == (0, 1)
    assert ((plan.slot >= 0) == mask.bool()).all()
    rows = [slots[slots >= 0].tolist() for slots in plan.slot]
    assert [len(row) for row in rows] == lengths
    assert rows[0][:4] == rows[1][:4]
    used = set().union(*rows)
    assert len(used) == 4 + 1 + 3 + 4 + 6 + 3 == int((plan.stretch >= 0).sum())
    assert plan.stretch.shape[1] == 8  # the longest stretch: 4 shared, 1 and 3 of their own


def test_pack_and_unpack_are_inverse_and_keep_leading_dimensions():
    mask = lengths_mask([3, 4, 2], 4)
    plan = plan_rows(mask, torch.tensor([0, 0, -1]), torch.tensor([2, 2, 0]), limit=100)
    tokens = torch.tensor([[1, 9, 4, 0], [1, 9, 5, 6], [7, 8, 0, 0]])
    packed = pack(plan, tokens, -5)
    assert sorted(packed[packed != -5].tolist()) == [1, 4, 5, 6, 7, 8, 9]
    assert unpack(plan, packed.unsqueeze(-1)).squeeze(-1).tolist() == tokens.tolist()
    three = torch.stack([tokens, tokens + 10, tokens + 20])
    assert (pack(plan, three)[1][plan.stretch >= 0] == packed[plan.stretch >= 0] + 10).all()


def test_a_branch_sees_its_prefix_and_itself_only():
    plan = plan_rows(lengths_mask([4, 4, 2], 4), torch.tensor([0, 0, -1]), torch.tensor([2, 2, 0]), limit=9)
    seen = attention_mask(plan, torch.float32) == 0
    flat = plan.slot
    width = plan.stretch.shape[1]

    def sees(row, token, other_row, other):
        first, second = int(flat[row, token]), int(flat[other_row, other])
        return first // width == second // width and bool(seen[first // width, 0, first % width, second % width])

    assert all(sees(0, 3, 0, token) for token in range(4))
    assert all(sees(1, 2, 0, token) for token in range(2))
    assert not any(sees(1, token, 0, other) for token in range(4) for other in (2, 3))
    assert not any(sees(0, token, 1, other) for token in range(4) for other in (2, 3))
    assert not any(sees(0, token, 0, other) for token in range(4) for other in range(token + 1, 4))
    assert not any(sees(2, token, 0, other) for token in range(2) for other in range(4))
    assert seen.any(-1).all(), "a place that sees nothing has no softmax"


def test_too_large_a_group_is_split_and_no_row_cut():
    stretches = group_rows([10, 10, 10, 10, 40], [0] * 5, [8] * 5, 12, None)
    assert stretches == [[0, 1], [2, 3], [4]]
    mask = lengths_mask([10, 10, 10], 10)
    plan = plan_rows(mask, torch.zeros(3, dtype=torch.long), torch.full((3,), 8), limit=12)
    assert plan.groups == (0, 0)
    assert (plan.slot >= 0).sum() == 30


def test_rows_beyond_the_boundary_stand_apart():
    assert group_rows([5, 9, 5, 9], [0] * 4, [4] * 4, 99, 6) == [[0, 2], [1, 3]]


def test_identical_rows_stand_once():
    mask = lengths_mask([4, 4], 4)
    plan = plan_rows(mask, torch.tensor([0, 0]), torch.tensor([4, 4]), limit=99)
    assert plan.stretch.numel() == 4 and (plan.slot[0] == plan.slot[1]).all()
    assert plan.stretch.numel() / plan.slot.numel() == 0.5


def test_stretches_of_groups_keep_their_order_and_others_fill_room():
    starts, rows = place_stretches([5, 2, 4, 3, 6], [True, False, True, False, True], 6)
    assert rows == 4
    assert starts[0] < starts[2] < starts[4]


def test_common_prefix_of_many():
    assert common_prefix([[1, 2, 3], [1, 2], [1, 2, 3, 4]]) == 2
    assert common_prefix([[1, 2, 3]]) == 3
    assert common_prefix([[1], [2]]) == 0
