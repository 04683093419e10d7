"""Randomized objectives: what gives the members of an ensemble the spread of the posterior.

*Target noise* (randomize-then-optimize, Bardsley et al. 2014; Pearce et al. 2020). With weights anchored at prior draws ``a``
the minimizers of a linear Gaussian model are exact posterior samples only if the targets are noisy as well: without it their
covariance is ``S P0 S`` instead of ``S`` (posterior covariance ``S``, prior precision ``P0``). A Gaussian target ``y + sigma e``
adds the constant ``e / sigma`` to the gradient in ``f``, which is ``R e`` with ``R R^T`` the Fisher information. For other
likelihoods the gradient ``R(f) e`` has the same effect on the linearized problem, ``H^{-1} (J^T R R^T J + I) H^{-1} =
H^{-1}``. It belongs to the potential ``e . g(f)`` with ``g`` the variance-stabilizing transform, whose Jacobian is ``R^T``: of
classes the square roots of their probabilities, so that a member can gain only so much by giving a row up. (The push ``R e`` with
``R`` held fixed follows the skew of a posterior over few weights better; a network, which can follow the push of every row, is
carried away by it.)

*Bootstrap* (Osband et al. 2016, 2018): random weights of rows, with mean one, so that sums over data stay sums over data.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqbdl.errors import UnknownNameError

BOOTSTRAPS = ("none", "bernoulli", "exponential")


def centred_normals(num_members: int, shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    """``S x shape`` standard normals that sum to zero over the members, each of unit variance: the mean of linear members
    then has no Monte Carlo error from them."""
    white = torch.randn(num_members, *shape, generator=generator, dtype=torch.float64).to(like)
    if num_members == 1:
        return white
    return (white - white.mean(0)) * (num_members / (num_members - 1)) ** 0.5


def bootstrap_weights(kind: str, num_members: int, num_rows: int, generator: torch.Generator, like: Tensor) -> Tensor | None:
    """Weights of rows with mean one, ``S x n``; ``None`` for ``"none"``.

    Args:
        kind: ``"none"``; ``"bernoulli"``: twice or never, with probability one half each; ``"exponential"``: standard
            exponential (the Bayesian bootstrap before normalization).
        num_members: ``S``.
        num_rows: ``n``.
        generator: Source of randomness.
        like: Sets type and device.

    Raises:
        UnknownNameError: There is no bootstrap of that name.
    """
    if kind not in BOOTSTRAPS:
        raise UnknownNameError("bootstrap", kind, list(BOOTSTRAPS))
    if kind == "none":
        return None
    uniform = torch.rand(num_members, num_rows, generator=generator, dtype=torch.float64)
    weights = 2.0 * (uniform < 0.5) if kind == "bernoulli" else -torch.log1p(-uniform)
    return weights.to(like)
