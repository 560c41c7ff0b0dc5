"""The optimizer of the mini models."""

import torch

from recipes.shared.muon import Muon, orthogonalised


def test_a_step_on_a_matrix_is_orthogonal_and_of_the_rates_size():
    weight = torch.nn.Parameter(torch.zeros(6, 3))
    optimizer = Muon([("layer.weight", weight)], lr=0.1)
    weight.grad = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    singular = torch.linalg.svdvals(weight.detach()) / (0.1 * 2**0.5)
    assert ((singular > 0.6) & (singular < 1.3)).all()
    assert (weight * weight.grad).sum() < 0  # downhill


def test_wide_and_tall_matrices_are_treated_alike():
    matrix = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(orthogonalised(matrix), orthogonalised(matrix.T).T)


def test_all_else_takes_adam_as_torch_has_it():
    start = torch.randn(4, generator=torch.Generator().manual_seed(0))
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    optimizer = Muon([("norm.weight", ours)], adam_lr=0.1)
    reference = torch.optim.Adam([theirs], lr=0.1, betas=(0.9, 0.98))
    for step in range(5):
        for parameter, one in ((ours, optimizer), (theirs, reference)):
            parameter.grad = (parameter.detach() - step).square()
            one.step()
    torch.testing.assert_close(ours, theirs)
    assert (ours - start).abs().min() > 0.05


def test_embeddings_and_frozen_parameters_are_no_hidden_matrices():
    named = [(name, torch.nn.Parameter(torch.ones(2, 2))) for name in ("embed_tokens.weight", "mlp.weight", "frozen")]
    named[2][1].requires_grad_(False)
    hidden, rest = Muon(named).param_groups
    assert [p is named[1][1] for p in hidden["params"]] == [True]
    assert [p is named[0][1] for p in rest["params"]] == [True]
