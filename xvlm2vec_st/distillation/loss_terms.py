"""Errors between a student's and a teacher's states: pure functions on tensors, in fp32."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, normalize


def squared(states: Tensor, target: Tensor) -> Tensor:
    """Squared differences, a dimension each: (rows, dim)."""
    return (states - target).square()


def cosine(states: Tensor, target: Tensor) -> Tensor:
    """1 - cosine: (rows, 1), 0 for one direction, 2 for opposite ones, whatever the lengths.

    >>> cosine(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, -3.0]])).tolist()
    [[0.0], [2.0]]
    """
    return 1 - (normalize(states, dim=-1) * normalize(target, dim=-1)).sum(-1, keepdim=True)


FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": squared, "cosine": cosine}


def errors(states: Tensor, target: Tensor, *, form: str = "mse", dims: Sequence[int] = ()) -> Tensor:
    """(rows, terms) whose mean over terms is a row's error.

    With `dims` (Matryoshka), the error of the first d dimensions for each d of `dims`, equally weighted.

    >>> x = torch.tensor([[1.0, 1.0, 3.0, 3.0]])
    >>> errors(x, torch.zeros(1, 4)).mean().item(), errors(x, torch.zeros(1, 4), dims=[4, 2]).mean().item()
    (5.0, 3.0)
    """
    if not dims:
        return FORMS[form](states, target)
    each = [FORMS[form](states[:, :d], target[:, :d]).mean(-1) for d in dims]
    return torch.stack(each, dim=-1)


def similarity_divergence(
    states: Tensor, target: Tensor, row: Tensor, *, temperature: float, dims: Sequence[int] = ()
) -> Tensor:
    """KL from the teacher's to the student's distribution over the batch's rows, 0-d.

    A text's distribution is the softmax of its cosines with all rows' teacher states over
    `temperature`; the teacher's is that of the text's row, `row[i]` for text i. It teaches which rows
    are near, where an error a dimension teaches where a row is.

    >>> x = torch.eye(3)
    >>> similarity_divergence(x * 5, x, torch.arange(3), temperature=0.1).item()
    0.0
    """
    found = []
    for d in dims or (target.shape[-1],):
        rows = normalize(target[:, :d], dim=-1)
        theirs = log_softmax(rows @ rows.T / temperature, dim=-1)[row]
        ours = log_softmax(normalize(states[:, :d], dim=-1) @ rows.T / temperature, dim=-1)
        found.append(kl_div(ours, theirs, log_target=True, reduction="batchmean"))
    return torch.stack(found).mean()


def unit_length(target: Tensor) -> bool:
    """Whether all rows of (rows, dim) are normalised: a plain squared error is then of order 1/dim.

    >>> unit_length(torch.eye(3)), unit_length(2 * torch.eye(3))
    (True, False)
    """
    return bool(((target.float().norm(dim=-1) - 1).abs() < 1e-3).all())


def check_options(
    *,
    width: int,
    form: str,
    english_weight: float,
    similarity: float,
    temperature: float,
    dims: Sequence[int],
) -> None:
    """Refuse options of the loss that are out of range.

    Raises:
        ValueError: names the option, its value and what is allowed.

    >>> check_options(width=8, form="l1", english_weight=0.5, similarity=0, temperature=1, dims=())
    Traceback (most recent call last):
    ...
    ValueError: form 'l1': mse or cosine
    """
    if form not in FORMS:
        raise ValueError(f"form {form!r}: {' or '.join(FORMS)}")
    if not 0 <= english_weight < 1:
        raise ValueError(f"english_weight {english_weight}: at least 0 and below 1; the paper's is 0.5")
    if similarity < 0 or temperature <= 0:
        raise ValueError(
            f"similarity {similarity} at temperature {temperature}: a weight of at least 0, at above 0"
        )
    if any(not 0 < d <= width for d in dims) or len(set(dims)) != len(dims):
        raise ValueError(f"dims {list(dims)}: different numbers from 1 to {width}, the models' width")
