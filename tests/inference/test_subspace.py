"""Subspaces of weights: directions, curvature, and posteriors within them in closed form."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.elliptical_slice import SliceSettings, elliptical_slice
from seqbdl.inference.log_joint import LogJoint
from seqbdl.inference.subspace import (
    VariationalSettings,
    curvature,
    gaussian_vi,
    laplace_root,
    principal_directions,
    subspace_network,
)
from seqbdl.likelihoods import LIKELIHOODS, get_likelihood
from seqbdl.networks import MLP
from seqbdl.priors import get_prior


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def within(p: SimpleNamespace, centre: Tensor, basis: Tensor) -> LogJoint:
    network = subspace_network(p.network, centre, basis)
    return LogJoint(network, get_likelihood("gaussian"), get_prior("gaussian"), p.X, p.Y, p.variance)


def exact(p: SimpleNamespace, centre: Tensor, basis: Tensor, mean: Tensor, root: Tensor, T: float) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the tempered posterior of the coordinates, by the textbook."""
    A, rows = p.J @ basis, T * p.variance.flatten()
    prior = torch.linalg.inv(root @ root.T)
    covariance = torch.linalg.inv(prior + A.T @ (A / rows[:, None]))
    return covariance @ (prior @ mean + A.T @ ((p.Y.flatten() - p.J @ centre[0]) / rows)), covariance


def test_directions_are_the_principal_ones(linear: SimpleNamespace) -> None:
    deviations = linear.normals(6, 9) * torch.linspace(1, 3, 9).double()
    basis = principal_directions(deviations, 4)
    torch.testing.assert_close(basis.T @ basis, torch.eye(4).double())
    values, vectors = torch.linalg.eigh(deviations.T @ deviations)
    top = vectors[:, -4:]
    torch.testing.assert_close(basis @ basis.T, top @ top.T)
    torch.testing.assert_close((deviations @ basis).square().sum(0), values[-4:].flip(0))
    with pytest.raises(InvalidOptionError, match="rank=7"):
        principal_directions(deviations, 7)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_curvature_is_that_of_the_dense_jacobian(likelihood: str, linear: SimpleNamespace) -> None:
    lik = get_likelihood(likelihood)
    m = 3 if likelihood == "categorical" else 2
    ones = torch.ones(2, dtype=torch.float64)
    network = MLP((4,), ones, ones[:1], ones, lik.num_latents(m))
    X = torch.rand(7, 2, generator=generator(), dtype=torch.float64)
    noise = 0.1 + torch.rand(7, m, generator=generator(1), dtype=torch.float64)
    weights = 0.5 + torch.rand(7, generator=generator(2), dtype=torch.float64)
    centre = linear.normals(1, network.num_params)
    basis = principal_directions(linear.normals(5, network.num_params, seed=3), 3)
    Y = lik.sample(network.forward(centre, X)[0], noise, generator(4))
    joint = LogJoint(subspace_network(network, centre, basis), lik, get_prior("gaussian"), X, Y, noise, weights)
    tangents = network.tangents(centre, X)
    J, R = network.jacobian(tangents)[0], lik.root(tangents.values, noise)[0]
    R = torch.diag_embed(R) if R.dim() == 2 else R
    expected = torch.einsum("nlp,nlk,njk,njq,n->pq", J, R, R, J, weights)
    torch.testing.assert_close(curvature(joint), basis.T @ expected @ basis)


@pytest.mark.parametrize("temperature", [1.0, 7.0])
def test_roots_and_the_variational_gaussian_on_a_linear_network(temperature: float, linear: SimpleNamespace) -> None:
    p = linear.problem(n=6, m=2, level=0.4)
    centre, basis = linear.normals(1, 6, seed=1), principal_directions(linear.normals(6, 6, seed=2), 4)
    root, mean = linear.normals(4, 4, seed=3), linear.normals(4, seed=4)
    expected, covariance = exact(p, centre, basis, mean, root, temperature)
    joint = within(p, centre, basis)
    guess = laplace_root(curvature(joint), root, temperature)
    torch.testing.assert_close(guess @ guess.T, covariance, rtol=1e-8, atol=1e-12)
    # From a Gaussian of another size the ascent has to find both moments.
    found, L = gaussian_vi(joint, mean, root, temperature, 1.5 * guess, generator(), VariationalSettings(1500, 0.03))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3 * float(covariance.diagonal().max().sqrt()))
    torch.testing.assert_close(L @ L.T, covariance, rtol=0, atol=1e-3 * float(covariance.diagonal().max()))


def test_slices_within_a_subspace_sample_the_exact_posterior(linear: SimpleNamespace) -> None:
    p = linear.problem(level=0.5)
    centre, basis = linear.normals(1, 3, seed=1), principal_directions(linear.normals(3, 3, seed=2), 2)
    root, mean, T = torch.diag(torch.tensor([1.0, 0.7]).double()), linear.normals(2, seed=4), 2.0
    joint = within(p, centre, basis)

    def log_likelihood(u: Tensor, chains: Tensor) -> Tensor:
        return joint.log_likelihood(u) / T

    settings = SliceSettings(warmup=25, samples=1)
    draws = elliptical_slice(log_likelihood, linear.normals(600, 2), mean, root, generator(), settings).draws[0]
    linear.assert_samples(draws, *exact(p, centre, basis, mean, root, T))
