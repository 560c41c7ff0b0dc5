"""Error terms between states of a student and a teacher: pure functions on tensors, in fp32."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax, normalize

# Two targets with a cosine above this are the same text.
SAME = 1 - 1e-5


def squared_error(states: Tensor, target: Tensor) -> Tensor:
    """Squared differences per dimension: (rows, dim)."""
    return (states - target).square()


def cosine_error(states: Tensor, target: Tensor) -> Tensor:
    """1 - cosine: (rows, 1), 0 for equal directions and 2 for opposite ones.

    >>> states, target = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, -3.0]])
    >>> cosine_error(states, target).tolist()
    [[0.0], [2.0]]
    """
    return 1 - (normalize(states, dim=-1) * normalize(target, dim=-1)).sum(-1, keepdim=True)


DISTANCE_METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": squared_error,
    "cosine": cosine_error,
}


def error_terms(
    states: Tensor, target: Tensor, *, distance_metric: str = "mse", matryoshka_dims: Sequence[int] = ()
) -> Tensor:
    """(rows, terms); the mean over the terms is a row's error.

    With `matryoshka_dims`, each term is the error of the first d dimensions, for each d.

    >>> x = torch.tensor([[1.0, 1.0, 3.0, 3.0]])
    >>> error_terms(x, torch.zeros(1, 4)).mean().item()
    5.0
    >>> error_terms(x, torch.zeros(1, 4), matryoshka_dims=[4, 2]).mean().item()
    3.0
    """
    metric = DISTANCE_METRICS[distance_metric]
    if not matryoshka_dims:
        return metric(states, target)
    return torch.stack([metric(states[:, :d], target[:, :d]).mean(-1) for d in matryoshka_dims], dim=-1)


def distillation_parts(
    english: Tensor,
    translated: Tensor,
    target: Tensor,
    row: Tensor,
    *,
    distance_metric: str = "mse",
    matryoshka_dims: Sequence[int] = (),
) -> dict[str, Tensor]:
    """The two mean errors of the paper's loss L (arXiv 2503.09313, section 3), unweighted, in fp32.

    A (row, language) is one pair. The English error of a row counts once per translation, at least once. If
    every row has the same languages, both errors are plain means.

    Args:
        english: (rows, dim) student states of the English texts.
        translated: (texts, dim) student states of the translations.
        target: (rows, dim) teacher states of the English texts.
        row: (texts,) the row that each translation belongs to.
        distance_metric: see `error_terms`; the paper's is "mse".
        matryoshka_dims: see `error_terms`; the paper uses all dimensions.

    Returns:
        0-d tensors under "english" and, if there are translations, "translated".

    >>> x = torch.zeros(2, 3)
    >>> parts = distillation_parts(x, x[:1] + 2, x + 1, torch.tensor([1]))
    >>> parts["english"].item(), parts["translated"].item()
    (1.0, 1.0)
    """

    def row_errors(states: Tensor, target: Tensor) -> Tensor:
        return error_terms(states, target, distance_metric=distance_metric, matryoshka_dims=matryoshka_dims).mean(-1)

    english, translated, target = english.float(), translated.float(), target.float()
    pairs = torch.bincount(row, minlength=len(english)).clamp(min=1).to(english)
    parts = {"english": (row_errors(english, target) * pairs).sum() / pairs.sum()}
    if len(translated):
        parts["translated"] = row_errors(translated, target[row]).mean()
    return parts


def similarity_divergence(
    states: Tensor, target: Tensor, row: Tensor, *, temperature: float, matryoshka_dims: Sequence[int] = ()
) -> Tensor:
    """KL divergence from the teacher's to the student's distribution over the rows of the batch, 0-d.

    The distribution of a text is the softmax of its cosines with the teacher states of all rows, divided by
    `temperature`. The teacher's is that of the text's row, `row[i]` for text i. This term teaches which rows
    are neighbours; an error per dimension teaches where a row lies.

    >>> x = torch.eye(3)
    >>> similarity_divergence(x * 5, x, torch.arange(3), temperature=0.1).item()
    0.0
    """
    divergences = []
    for d in matryoshka_dims or (target.shape[-1],):
        rows = normalize(target[:, :d], dim=-1)
        teacher = log_softmax(rows @ rows.T / temperature, dim=-1)[row]
        student = log_softmax(normalize(states[:, :d], dim=-1) @ rows.T / temperature, dim=-1)
        divergences.append(kl_div(student, teacher, log_target=True, reduction="batchmean"))
    return torch.stack(divergences).mean()


def contrastive_error(
    states: Tensor, target: Tensor, row: Tensor, *, temperature: float, matryoshka_dims: Sequence[int] = ()
) -> Tensor:
    """InfoNCE of texts against the teacher states of many rows, 0-d (van den Oord et al., arXiv 1807.03748).

    A text must be nearer to the English target of its own row than to that of any other row. Near rows weigh most
    (they are the batch's hard negatives), and the more so the lower the `temperature`. A row with the same target
    as the text's own, such as a repeated caption, is not a negative.

    Args:
        states: (texts, dim) student states.
        target: (rows, dim) teacher states of the English texts; rows of other processes too.
        row: (texts,) the row of `target` that each text belongs to.
        temperature: cosines are divided by it.
        matryoshka_dims: see `error_terms`.

    >>> x = torch.eye(3)
    >>> contrastive_error(x, x, torch.arange(3), temperature=0.05).item() < 1e-6
    True
    >>> round(contrastive_error(x[:1], x, torch.tensor([1]), temperature=0.05).item(), 3)
    20.0
    """
    own = torch.arange(len(target), device=target.device) == row[:, None]
    errors = []
    for d in matryoshka_dims or (target.shape[-1],):
        rows = normalize(target[:, :d], dim=-1)
        scores = normalize(states[:, :d], dim=-1) @ rows.T / temperature
        repeated = (rows[row] @ rows.T > SAME) & ~own
        errors.append(cross_entropy(scores.masked_fill(repeated, -torch.inf), row))
    return torch.stack(errors).mean()


def is_normalized(target: Tensor) -> bool:
    """Whether all rows of (rows, dim) have length 1. A squared error per dimension is then of order 1/dim.

    >>> is_normalized(torch.eye(3)), is_normalized(2 * torch.eye(3))
    (True, False)
    """
    return bool(((target.float().norm(dim=-1) - 1).abs() < 1e-3).all())


def check_options(
    *,
    width: int,
    distance_metric: str,
    english_weight: float,
    weights: Mapping[str, float],
    temperature: float,
    matryoshka_dims: Sequence[int],
) -> None:
    """Check the options of the loss. `weights`: the weights of the added terms by name.

    Raises:
        ValueError: an option is out of range; the message names it, its value and what is allowed.

    >>> check_options(width=8, distance_metric="l1", english_weight=0.5, weights={}, temperature=1,
    ...               matryoshka_dims=())
    Traceback (most recent call last):
    ...
    ValueError: distance_metric is 'l1'; pass mse or cosine
    """
    if distance_metric not in DISTANCE_METRICS:
        raise ValueError(f"distance_metric is {distance_metric!r}; pass {' or '.join(DISTANCE_METRICS)}")
    if not 0 <= english_weight < 1:
        raise ValueError(f"english_weight is {english_weight}; pass 0 or more, below 1 (the paper's is 0.5)")
    for name, weight in weights.items():
        if not 0 <= weight < torch.inf:
            raise ValueError(f"{name} is {weight}; pass 0 (no such term) or more")
    if not 0 < temperature < torch.inf:
        raise ValueError(f"temperature is {temperature}; pass a number above 0")
    dims = list(matryoshka_dims)
    if any(not 0 < d <= width for d in dims) or len(set(dims)) != len(dims):
        raise ValueError(f"matryoshka_dims is {dims}; pass different numbers from 1 to {width}, the width")
