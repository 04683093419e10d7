"""Fisher diagonals by every definition against autograd and enumeration; the path integral on a quadratic; penalties."""

from __future__ import annotations

import pytest
import torch

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.consolidation import PathIntegral, fisher_diagonal, held_by
from seqbdl.inference.curvature import gauss_newton_diagonal
from seqbdl.likelihoods import get_likelihood
from seqbdl.posteriors.gaussian_weights import GaussianWeights
from seqbdl.posteriors.operators import Diagonal
from seqbdl.surrogates.network_prior import NetworkBuilder


def setting(n: int = 6, classes: int = 3):  # type: ignore[no-untyped-def]
    builder = NetworkBuilder((5,), 2, classes, "erf", num_latents=classes)
    network = builder.build(builder.initial())
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(1, network.num_params, generator=generator, dtype=torch.float64)
    X = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    Y = torch.randint(classes, (n, 1), generator=generator).double()
    return network, get_likelihood("categorical"), z, X, Y, torch.ones(n, classes, dtype=torch.float64)


def squared_gradients(network, z, X, labels):  # type: ignore[no-untyped-def]
    out = []
    for x, y in zip(X, labels, strict=True):
        w = z.clone().requires_grad_()
        log_p = network.forward(w, x[None])[0].log_softmax(-1)[0, int(y)]
        out.append(torch.autograd.grad(log_p, w)[0][0].square())
    return torch.stack(out)


def test_every_definition() -> None:
    network, likelihood, z, X, Y, noise = setting()
    true = fisher_diagonal(network, likelihood, z, X, noise, "true", Y)
    torch.testing.assert_close(true, squared_gradients(network, z, X, Y[:, 0]).sum(0))
    probs = network.forward(z, X)[0].softmax(-1)
    expected = sum((probs[:, c, None] * squared_gradients(network, z, X, torch.full((len(X),), c))).sum(0) for c in range(3))
    every = fisher_diagonal(network, likelihood, z, X, noise)
    torch.testing.assert_close(every, expected)
    torch.testing.assert_close(every, gauss_newton_diagonal(network, z, X, likelihood.root(network.forward(z, X)[0], noise)))
    pred = fisher_diagonal(network, likelihood, z, X, noise, "pred")
    torch.testing.assert_close(pred, squared_gradients(network, z, X, probs.argmax(-1)).sum(0))
    # A sum over rows: of one row said a thousand times, draws average to the expectation within Monte Carlo error.
    many = X[:1].expand(4000, -1)
    drawn = fisher_diagonal(
        network, likelihood, z, many, noise[:1].expand(4000, -1), "sample", None, torch.Generator().manual_seed(1)
    )
    exact = fisher_diagonal(network, likelihood, z, X[:1], noise[:1])
    assert float((drawn / 4000 - exact).abs().max()) < 0.1 * float(exact.max())  # sd about 1 / sqrt(4000) of single terms
    with pytest.raises(InvalidOptionError, match="Y"):
        fisher_diagonal(network, likelihood, z, X, noise, "true")
    with pytest.raises(InvalidOptionError, match="kind"):
        fisher_diagonal(network, likelihood, z, X, noise, "mean")


def test_the_path_integral_is_what_the_loss_lost() -> None:
    """On ``1/2 sum a z^2`` small gradient steps give every weight its own share of the decrease, ``1/2 a (z0^2 - z1^2)``."""
    a, z = torch.tensor([1.0, 4.0, 0.0], dtype=torch.float64), torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    start, path = z, PathIntegral(z)
    for _ in range(4001):
        path.at(z, a * z)
        end, z = z, z - 1e-3 * a * z
    decrease = 0.5 * a * (start.square() - end.square())
    expected = decrease / ((end - start).square() + 0.1)
    torch.testing.assert_close(path.importance(), expected, rtol=4e-3, atol=1e-12)  # steps of 1e-3 times a curvature of 4
    with pytest.raises(InvalidOptionError):
        path.importance(0.0)


def test_the_first_prior_and_a_penalty_are_one_gaussian() -> None:
    generator = torch.Generator().manual_seed(0)
    anchor, importance, z = torch.rand(3, 4, generator=generator, dtype=torch.float64)
    held = held_by(GaussianWeights(anchor, Diagonal(importance)), 7.0)
    torch.testing.assert_close(-held.score(z[None])[0], z + 7.0 * importance * (z - anchor))
