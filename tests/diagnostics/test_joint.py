"""Joint predictive scores against products written out, exact enumeration and the multivariate normal density."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from seqbdl.diagnostics import (
    JointScore,
    dyadic_log_loss,
    joint_gaussian_log_loss,
    joint_log_loss,
    log_loss,
    polyadic_gaussian_log_loss,
    polyadic_log_loss,
    predictive_log_probs,
)
from seqbdl.diagnostics.joint import _subsets
from seqbdl.errors import InvalidDataError, InvalidOptionError, ShapeError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def log_probs(*shape: int, seed: int = 0) -> Tensor:
    return (2 * torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)).log_softmax(-1)


def test_it_is_the_product_averaged_over_draws() -> None:
    logs = log_probs(3, 2, 4, 5)
    y = torch.randint(5, (2, 4), generator=seeded(1))
    expected = []
    for b in range(2):
        products = [math.prod(math.exp(float(logs[m, b, t, y[b, t]])) for t in range(4)) for m in range(3)]
        expected.append(-math.log(sum(products) / 3))
    assert joint_log_loss(logs, y).tolist() == pytest.approx(expected)


def test_one_outcome_is_the_marginal_score() -> None:
    logs, y = log_probs(6, 20, 3), torch.randint(3, (20,), generator=seeded(1))
    marginal = joint_log_loss(logs.unsqueeze(2), y.unsqueeze(1))
    assert float(marginal.mean()) == pytest.approx(log_loss(predictive_log_probs(logs), y))


def test_draws_may_come_in_parts_and_weighted() -> None:
    logs, y = log_probs(7, 2, 4, 3), torch.randint(3, (2, 4), generator=seeded(1))
    weights = torch.tensor([1.0, 2.0, 1.0, 3.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    whole = joint_log_loss(logs, y)
    assert torch.allclose(joint_log_loss(iter(logs.split([3, 1, 3])), y), whole)
    repeated = joint_log_loss(logs.repeat_interleave(weights.long(), 0), y)
    assert torch.allclose(joint_log_loss(logs, y, weights.log() - 4), repeated)
    assert torch.allclose(joint_log_loss(logs.split(2), y, weights.log()), repeated)


def test_many_small_probabilities_do_not_underflow() -> None:
    logs = torch.full((2, 5000, 2), math.log(0.5), dtype=torch.float64)
    assert float(joint_log_loss(logs, torch.zeros(5000))) == pytest.approx(5000 * math.log(2))


def test_a_coin_of_unknown_bias_separates_marginal_from_joint() -> None:
    """Osband's example: one model has two coins, one always heads and one always tails, the other a fair coin.

    Marginally both say 1/2; of ``tau`` equal labels the first says 1/2, the second ``2^-tau``.
    """
    tau = 10
    coins = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64).log().unsqueeze(1).expand(2, tau, 2)
    fair = torch.full((2, tau, 2), 0.5, dtype=torch.float64).log()
    heads = torch.zeros(tau)
    assert float(joint_log_loss(coins, heads)) == pytest.approx(math.log(2))
    assert float(joint_log_loss(fair, heads)) == pytest.approx(tau * math.log(2))
    assert float(joint_log_loss(coins, torch.arange(tau) % 2)) == math.inf


def test_gaussian_joint_density_of_many_draws_is_the_multivariate_normal() -> None:
    """Function values ``F w`` with ``w ~ N(0, I)``, plus noise: the mixture over draws tends to N(0, F F^T + s^2 I)."""
    F = torch.tensor([[1.0, 0.0], [0.8, 0.3], [-0.5, 1.0]], dtype=torch.float64)
    y = torch.tensor([[0.5], [0.2], [-1.0]], dtype=torch.float64)
    noise, draws = 0.5, 200_000
    values = torch.randn(draws, 2, generator=seeded(), dtype=torch.float64) @ F.T
    found = float(joint_gaussian_log_loss(values.unsqueeze(-1), noise, y))
    covariance = F @ F.T + noise * torch.eye(3, dtype=torch.float64)
    exact = -float(torch.distributions.MultivariateNormal(torch.zeros(3, dtype=torch.float64), covariance).log_prob(y.T))
    # Delta method: the relative error of the mean density over the draws.
    terms = torch.distributions.Normal(values, math.sqrt(noise)).log_prob(y.T).sum(-1).exp()
    error = float(terms.std() / terms.mean()) / math.sqrt(draws)
    assert abs(found - exact) < 4 * error


def test_gaussian_joint_density_sums_outputs_and_takes_noise_by_output_or_draw() -> None:
    values = torch.randn(3, 2, 4, 2, generator=seeded(), dtype=torch.float64)
    y = torch.randn(2, 4, 2, generator=seeded(1), dtype=torch.float64)
    noise = 0.5 + torch.rand(3, 1, 1, 2, generator=seeded(2), dtype=torch.float64)
    parts = torch.distributions.Normal(values, noise.sqrt()).log_prob(y).sum((-1, -2))
    assert torch.allclose(joint_gaussian_log_loss(values, noise, y), math.log(3) - parts.logsumexp(0))
    by_output = joint_gaussian_log_loss(values, noise[0, 0, 0], y)
    assert torch.allclose(joint_gaussian_log_loss(values.split(1), noise[0, 0, 0], y), by_output)


def test_subsets_are_uniform() -> None:
    sets, rows, kappa = 20_000, 5, 2
    chosen = _subsets(sets, rows, kappa, seeded())
    assert bool((chosen[:, 0] != chosen[:, 1]).all())
    counts = Counter(frozenset(pair) for pair in chosen.tolist())
    every = list(itertools.combinations(range(rows), kappa))
    p = 1 / len(every)
    assert all(abs(counts[frozenset(pair)] - sets * p) < 4.5 * math.sqrt(sets * p * (1 - p)) for pair in every)


def exact_polyadic(log_likelihoods: Tensor, tau: int) -> float:
    """Mean over all pairs of rows and all ways to resample them ``tau`` times, by enumeration."""
    rows = range(log_likelihoods.shape[1])
    scores = [
        -float(log_likelihoods[:, list(sequence)].sum(-1).exp().mean().log())
        for pair in itertools.combinations(rows, 2)
        for sequence in itertools.product(pair, repeat=tau)
    ]
    return sum(scores) / len(scores)


def test_polyadic_score_is_the_mean_over_all_resampled_pairs() -> None:
    logs, y = log_probs(4, 5, 3), torch.randint(3, (5,), generator=seeded(1))
    score = polyadic_log_loss(logs, y, seeded(), tau=3, kappa=2, num_sets=4000, chunk_size=700)
    exact = exact_polyadic(logs.gather(-1, y.expand(4, 5).unsqueeze(-1)).squeeze(-1), tau=3)
    assert score.values.shape == (4000,)
    assert abs(score.log_loss - exact) < 4 * score.standard_error
    with pytest.raises(InvalidOptionError, match="true probabilities are not known"):
        _ = score.kl


def test_polyadic_score_for_regression() -> None:
    values = torch.randn(4, 5, 2, generator=seeded(), dtype=torch.float64)
    y = torch.randn(5, 2, generator=seeded(1), dtype=torch.float64)
    score = polyadic_gaussian_log_loss(values, 0.5, y, seeded(), tau=3, num_sets=4000)
    density = torch.distributions.Normal(values, math.sqrt(0.5)).log_prob(y).sum(-1)
    assert abs(score.log_loss - exact_polyadic(density, tau=3)) < 4 * score.standard_error


def test_polyadic_of_one_row_once_is_the_marginal_score() -> None:
    logs, y = log_probs(4, 6, 3), torch.randint(3, (6,), generator=seeded(1))
    score = polyadic_log_loss(logs, y, seeded(), tau=1, kappa=1, num_sets=3000)
    assert abs(score.log_loss - log_loss(predictive_log_probs(logs), y)) < 4 * score.standard_error


def test_weights_count_draws_several_times() -> None:
    logs, y = log_probs(3, 6, 3), torch.randint(3, (6,), generator=seeded(1))
    weights = torch.tensor([2.0, 1.0, 1.0]).log()
    one = polyadic_log_loss(logs, y, seeded(), kappa=6, tau=2, num_sets=1, log_weights=weights)
    other = polyadic_log_loss(logs[[0, 0, 1, 2]], y, seeded(), kappa=6, tau=2, num_sets=1)
    assert torch.allclose(one.values, other.values)


class Environment:
    """Two anchors decide everything: class-log-probabilities of three draws, and of the truth, as functions of x."""

    def __init__(self) -> None:
        self.slopes = torch.tensor([1.0, -1.0, 3.0], dtype=torch.float64)

    def draws(self, X: Tensor) -> Tensor:
        f = self.slopes[:, None, None] * X  # 3 x q x 1
        return torch.cat([f, -f], -1).log_softmax(-1)

    def truth(self, X: Tensor) -> Tensor:
        return torch.cat([1.5 * X, -1.5 * X], -1).log_softmax(-1)


def test_dyadic_score_is_the_expectation_over_rows_and_fresh_labels() -> None:
    environment, tau, sets = Environment(), 3, 3000
    pair = torch.tensor([[0.4], [-0.7]], dtype=torch.float64)
    score = dyadic_log_loss(environment.draws, environment.truth, pair.expand(sets, 2, 1), seeded(), tau, chunk_size=400)
    draws, truth = environment.draws(pair), environment.truth(pair)
    loss, entropy = 0.0, 0.0
    for rows in itertools.product(range(2), repeat=tau):
        for y in itertools.product(range(2), repeat=tau):
            log_true = sum(float(truth[r, c]) for r, c in zip(rows, y, strict=True))
            probability = 2.0**-tau * math.exp(log_true)
            joint = torch.stack([draws[:, r, c] for r, c in zip(rows, y, strict=True)]).sum(0).exp().mean().log()
            loss -= probability * float(joint)
            entropy -= probability * log_true
    assert abs(score.log_loss - loss) < 4 * score.standard_error
    assert abs(score.kl - (loss - entropy)) < 4 * score.kl_standard_error


def test_the_truth_itself_has_no_divergence() -> None:
    environment = Environment()
    anchors = torch.randn(50, 2, 1, generator=seeded(), dtype=torch.float64)
    score = dyadic_log_loss(lambda X: environment.truth(X).unsqueeze(0), environment.truth, anchors, seeded(1))
    assert score.kl == pytest.approx(0.0, abs=1e-12)


def test_a_class_that_is_ruled_out_and_does_not_come_up_costs_nothing() -> None:
    def sure(X: Tensor) -> Tensor:
        return torch.tensor([0.0, -torch.inf], dtype=torch.float64).expand(X.shape[0], 2)

    score = dyadic_log_loss(lambda X: sure(X).unsqueeze(0), sure, torch.zeros(4, 2, 1), seeded(), tau=5)
    assert score.log_loss == 0.0
    assert score.kl == 0.0


def test_bad_input_is_named() -> None:
    logs, y = log_probs(3, 4, 2), torch.zeros(4)
    with pytest.raises(ShapeError, match="labels has shape"):
        joint_log_loss(logs, torch.zeros(5))
    with pytest.raises(InvalidDataError, match="labels is 2 in row 3"):
        joint_log_loss(logs, torch.tensor([0, 1, 1, 2]))
    with pytest.raises(InvalidDataError, match=r"exp\(log_probs\) sums"):
        joint_log_loss(logs.exp(), y)
    with pytest.raises(ShapeError, match="no draws"):
        joint_log_loss([], y)
    with pytest.raises(ShapeError, match="leading axis of draws"):
        joint_log_loss(logs[0], y)
    with pytest.raises(ShapeError, match="one for each"):
        joint_log_loss(logs, y, torch.zeros(2))
    with pytest.raises(ShapeError, match="log_weights has 4 entries for 3 draws"):
        joint_log_loss(logs, y, torch.zeros(4))
    with pytest.raises(InvalidDataError, match="log_weights has NaN"):
        joint_log_loss(logs, y, torch.full((3,), math.nan))
    with pytest.raises(InvalidOptionError, match="kappa=5, but there are 4 rows"):
        polyadic_log_loss(logs, y, seeded(), kappa=5)
    with pytest.raises(InvalidOptionError, match="tau=0"):
        polyadic_log_loss(logs, y, seeded(), tau=0)
    with pytest.raises(ShapeError, match="M x n"):
        polyadic_log_loss(logs.unsqueeze(1), y.unsqueeze(0), seeded())
    values, outcomes = torch.zeros(3, 4, 1), torch.zeros(4, 1)
    with pytest.raises(ShapeError, match=r"values has shape.*y \(4,\)"):
        joint_gaussian_log_loss(values, 1.0, torch.zeros(4))
    with pytest.raises(InvalidDataError, match="noise is zero or negative"):
        joint_gaussian_log_loss(values, 0.0, outcomes)
    with pytest.raises(ShapeError, match="noise has shape"):
        joint_gaussian_log_loss(values, torch.ones(3), outcomes)
    with pytest.raises(InvalidDataError, match="y has 1 NaN or infinite entries, the first in row 2"):
        joint_gaussian_log_loss(values, 1.0, torch.tensor([[0.0], [0.0], [math.nan], [0.0]]))
    environment = Environment()
    with pytest.raises(ShapeError, match="anchors has shape"):
        dyadic_log_loss(environment.draws, environment.truth, torch.zeros(4, 2), seeded())
    with pytest.raises(ShapeError, match="for 8 inputs"):
        dyadic_log_loss(environment.truth, environment.truth, torch.zeros(4, 2, 1), seeded())
    with pytest.raises(ShapeError, match="at least two"):
        _ = JointScore(torch.zeros(1)).standard_error
