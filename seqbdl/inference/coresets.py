"""Which rows of a task are kept: at random, spread over the inputs, or where the model is least sure."""

from __future__ import annotations

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError, UnknownNameError
from seqbdl.inference.laplace import Rows
from seqbdl.networks import Network

CORESETS = ("random", "k-centre", "uncertain")


def choose_rows(kind: str, count: int, network: Network, z: Tensor, rows: Rows, generator: torch.Generator) -> Tensor:
    """Indices of at most ``count`` rows.

    Args:
        kind: ``"random"``; ``"k-centre"`` (:func:`k_centre`); ``"uncertain"`` (:func:`most_uncertain`).
        count: How many.
        network: For ``"uncertain"``.
        z: ``P``, for ``"uncertain"``.
        rows: Of the task.
        generator: For ``"random"``.
    """
    check_coreset(kind, count)
    count = min(count, rows.X.shape[0])
    if kind == "random":
        return torch.randperm(rows.X.shape[0], generator=generator)[:count].to(rows.X.device)
    return k_centre(rows.X, count) if kind == "k-centre" else most_uncertain(network, z, rows, count)


def check_coreset(kind: str, count: int) -> None:
    """Refuse kinds that do not exist, and negative counts."""
    if kind not in CORESETS:
        raise UnknownNameError("coreset", kind, list(CORESETS))
    if count < 0:
        raise InvalidOptionError(f"coreset of {count} rows: a number of at least 0")


def k_centre(X: Tensor, count: int) -> Tensor:
    """The greedy K-centre algorithm (Gonzalez 1985): from row 0 on, the row farthest from all that were chosen.

    Args:
        X: ``n x d``.
        count: At most ``n``.
    """
    chosen = [0] if count else []
    distance = torch.full((X.shape[0],), torch.inf).to(X)
    while len(chosen) < count:
        distance = torch.minimum(distance, (X - X[chosen[-1]]).square().sum(-1))
        chosen.append(int(distance.argmax()))
    return torch.tensor(chosen, dtype=torch.long, device=X.device)


def most_uncertain(network: Network, z: Tensor, rows: Rows, count: int) -> Tensor:
    """The rows with the largest variance of an observation given the network, of classes ``sum_c p_c (1 - p_c)``; equally many of
    every class that occurs, as far as they go (the memorable points of Pan et al. 2020).

    Args:
        network: Over whitened weights.
        z: ``P``.
        rows: Of the task.
        count: At most ``n``.
    """
    f = network.forward(z.unsqueeze(0), rows.X)[0]
    order = rows.likelihood.mean_variance(f, rows.noise)[1].sum(-1).argsort(descending=True, stable=True)
    if rows.likelihood.is_discrete and rows.Y.shape[-1] == 1:
        labels = rows.Y[order, 0]
        place = torch.empty_like(order)  # the place of a row among those of its class
        for label in labels.unique():
            mine = labels == label
            place[mine] = torch.arange(int(mine.sum()), device=order.device)
        order = order[place.argsort(stable=True)]
    return order[:count]
