"""Without any training: linear maps from a language's embeddings to English, fitted on parallel texts."""

from collections.abc import Callable

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize
from torch import nn

# Embeddings of a language, embeddings of English -> (rotation, shift): x @ rotation + shift.
Fit = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def mean_shift(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Move the mean of `source`, (rows, dim), to the mean of `target`.

    >>> mean_shift(np.zeros((2, 2)), np.ones((2, 2)))[1].tolist()
    [1.0, 1.0]
    """
    return np.eye(source.shape[1]), target.mean(0) - source.mean(0)


def procrustes(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The orthogonal map, and the shift, that bring `source` nearest to `target` (Schönemann, 1966).

    >>> turn = np.array([[0.0, 1.0], [-1.0, 0.0]])
    >>> points = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 1.0]])
    >>> bool(np.allclose(procrustes(points, points @ turn)[0], turn))
    True
    """
    middle, aim = source.mean(0), target.mean(0)
    left, _, right = np.linalg.svd((source - middle).T @ (target - aim))
    rotation = left @ right
    return rotation, aim - middle @ rotation


MAPS: dict[str, Fit] = {"mean shift, untrained": mean_shift, "Procrustes, untrained": procrustes}


def with_map(model: SentenceTransformer, rotation: np.ndarray, shift: np.ndarray) -> SentenceTransformer:
    """A model of the same modules that ends with the map, and a normalisation."""
    dense = Dense(*rotation.shape, bias=True, activation_function=nn.Identity())
    with torch.no_grad():
        dense.linear.weight.copy_(torch.from_numpy(rotation.T.copy()))
        dense.linear.bias.copy_(torch.from_numpy(shift))
    mapped = type(model)(modules=[*model, dense, Normalize()], device=str(model.device))
    return mapped.eval()
