"""The forms of the error, on hand-made values."""

import math

import pytest
import torch

from xvlm2vec_st.distillation.loss_terms import (
    check_options,
    contrastive_error,
    cosine_error,
    distillation_parts,
    error_terms,
    is_normalized,
    similarity_divergence,
    squared_error,
)

ROWS = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]])
GOOD = {
    "width": 4,
    "distance_metric": "mse",
    "english_weight": 0.5,
    "weights": {"similarity_weight": 0, "contrastive_weight": 1},
    "temperature": 1,
    "matryoshka_dims": (),
}


def test_squared_and_cosine():
    other = torch.tensor([[4.0, 3.0, 0.0], [0.0, 5.0, 0.0]])
    assert squared_error(ROWS, other).tolist() == [[1.0, 1.0, 0.0], [0.0, 25.0, 4.0]]
    assert cosine_error(ROWS, other).flatten().tolist() == pytest.approx([1 - 24 / 25, 1.0])


def test_cosine_does_not_see_lengths_and_mse_does():
    assert cosine_error(ROWS, 7 * ROWS).abs().max() < 1e-6
    assert squared_error(ROWS, 7 * ROWS).mean() > 1


def test_matryoshka_is_the_mean_over_leading_dimensions():
    found = error_terms(ROWS, torch.zeros(2, 3), matryoshka_dims=[3, 2, 1])
    assert found.tolist() == [
        [pytest.approx(25 / 3), 12.5, 9.0],
        [pytest.approx(4 / 3), 0.0, 0.0],
    ]


def test_parts_of_another_form():
    parts = distillation_parts(ROWS, -ROWS, ROWS, torch.tensor([0, 1]), distance_metric="cosine")
    assert parts["english"].item() == pytest.approx(0, abs=1e-6)
    assert parts["translated"].item() == pytest.approx(2)


def test_divergence_by_hand():
    """Two rows at right angles, temperature 1: the teacher's distribution is softmax(1, 0)."""
    target = torch.eye(2)
    p = math.e / (math.e + 1)
    student = torch.tensor([[0.0, 9.0]])  # says row 1 where the teacher says row 0
    by_hand = p * math.log(p / (1 - p)) + (1 - p) * math.log((1 - p) / p)
    found = similarity_divergence(student, target, torch.tensor([0]), temperature=1.0)
    assert found.item() == pytest.approx(by_hand, rel=1e-5)
    right = similarity_divergence(student, target, torch.tensor([1]), temperature=1.0)
    assert right.item() == pytest.approx(0, abs=1e-6)


def test_contrastive_by_hand():
    """Two rows at right angles: cosines (1, 0) of the right row, temperature 0.5."""
    target = torch.eye(2)
    states = torch.tensor([[7.0, 0.0], [3.0, 0.0]])
    right, wrong = -math.log(math.e**2 / (math.e**2 + 1)), -math.log(1 / (math.e**2 + 1))
    for row, by_hand in (([0, 0], right), ([1, 1], wrong), ([0, 1], (right + wrong) / 2)):
        error = contrastive_error(states, target, torch.tensor(row), temperature=0.5)
        assert error.item() == pytest.approx(by_hand, rel=1e-5)


def test_a_repeated_row_is_not_a_negative():
    target = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]])  # rows 0 and 2 are one text
    states = torch.tensor([[5.0, 1.0]])
    alone = contrastive_error(states, target[:2], torch.tensor([0]), temperature=1.0)
    assert contrastive_error(states, target, torch.tensor([0]), temperature=1.0) == pytest.approx(alone.item())
    near = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.1]])
    assert contrastive_error(states, near, torch.tensor([0]), temperature=1.0) > alone + 0.1


def test_near_rows_weigh_most():
    """The gradient points away from the nearest wrong row, not from the far one."""
    target = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.0, 0.0, 1.0]]), dim=-1)
    states = torch.tensor([[0.9, 0.3, 0.3]], requires_grad=True)
    contrastive_error(states, target, torch.tensor([0]), temperature=0.05).backward()
    gradient = states.grad[0]
    assert gradient[1] > 0.5 and gradient[1] > 10 * gradient[2].abs()


def test_contrastive_matryoshka_is_the_mean_over_leading_dimensions():
    target, states = torch.randn(4, 6), torch.randn(3, 6)
    row = torch.tensor([0, 2, 3])
    each = [contrastive_error(states[:, :d], target[:, :d], row, temperature=0.1) for d in (2, 6)]
    both = contrastive_error(states, target, row, temperature=0.1, matryoshka_dims=(2, 6))
    assert both.item() == pytest.approx(sum(each).item() / 2, rel=1e-5)


def test_unit_length_is_of_all_rows():
    assert is_normalized(ROWS / ROWS.norm(dim=-1, keepdim=True)) and not is_normalized(ROWS)
    assert not is_normalized(torch.tensor([[1.0, 0.0], [3.0, 0.0]]))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("distance_metric", "mae", "distance_metric is 'mae'; pass mse or cosine"),
        ("english_weight", 1.0, "english_weight is 1.0; pass 0 or more, below 1"),
        ("weights", {"similarity_weight": -1}, "similarity_weight is -1; pass 0 .* or more"),
        ("weights", {"contrastive_weight": math.nan}, "contrastive_weight is nan; pass 0 .* or more"),
        ("temperature", 0, "temperature is 0; pass a number above 0"),
        ("matryoshka_dims", (5,), r"matryoshka_dims is \[5\]; pass different numbers from 1 to 4"),
        ("matryoshka_dims", (2, 2), r"matryoshka_dims is \[2, 2\]"),
    ],
)
def test_options_out_of_range(option, value, message):
    check_options(**GOOD)
    with pytest.raises(ValueError, match=message):
        check_options(**GOOD | {option: value})
