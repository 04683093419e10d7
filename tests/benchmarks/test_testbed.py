"""The mini-testbed: the problem family, the score against closed forms, and what agents are told."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import Tensor

from seqbdl.inference import infinite_width
from seqbdl.inference.infinite_width import WidthScales

DRAWS = 1000


@pytest.fixture(scope="module")
def testbed(load: Callable[[str], ModuleType]) -> ModuleType:
    return load("testbed")


def constant(*probabilities: float) -> Callable[[Tensor], Tensor]:
    """Functions that do not depend on the input: the probability of class 1 under each."""
    p = torch.tensor(probabilities, dtype=torch.float64)
    log_probs = torch.stack([1 - p, p], -1).log()
    return lambda X: log_probs.unsqueeze(1).expand(-1, len(X), -1)


def close(values: Tensor, expected: float) -> None:
    """The mean is what it should be, within four standard errors."""
    assert abs(float(values.mean()) - expected) <= 4 * float(values.std()) / math.sqrt(len(values))


def anchors(problem: object) -> Tensor:
    """The inputs of the test draws, ``(draws 2) x D``."""
    generator = problem.generator("anchors")  # type: ignore[attr-defined]
    return torch.randn(DRAWS, 2, problem.dimension, generator=generator, dtype=torch.float64).flatten(0, 1)  # type: ignore[attr-defined]


def test_truncated_normals(testbed: ModuleType) -> None:
    x = testbed.truncated_normal(200_000, generator=torch.Generator().manual_seed(0))
    exact = stats.truncnorm(-2.0, 2.0)
    assert exact.var() == pytest.approx(testbed.TRUNCATED_VARIANCE, rel=1e-9)
    assert math.sqrt(testbed.TRUNCATED_VARIANCE) == pytest.approx(0.880, abs=5e-4)
    assert float(x.abs().max()) <= 2.0
    assert stats.kstest(x.numpy(), exact.cdf).pvalue > 1e-3
    close(x.square(), testbed.TRUNCATED_VARIANCE)


def test_weights_and_biases_have_the_familys_scales(testbed: ModuleType) -> None:
    layers = testbed.random_networks(10, 400, torch.Generator().manual_seed(1))
    assert [tuple(w.shape[1:]) for w, _ in layers] == [(10, 50), (50, 50), (50, 2)]
    for weights, _ in layers:
        close(weights.square().flatten(), testbed.TRUNCATED_VARIANCE / weights.shape[1])
    close(layers[0][1].square().flatten(), 1 / 10)
    assert float(layers[0][1].abs().max()) > 2 / math.sqrt(10)  # first biases are not truncated
    assert not layers[1][1].any()
    assert not layers[2][1].any()


def test_labels_follow_the_environment(testbed: ModuleType) -> None:
    X, Y, environment = testbed.generate(testbed.Problem(10, 100, 0.5, 0))
    assert X.shape == (1000, 10)
    p = environment(X)[0, :, 1].exp()
    assert abs(float((Y - p).sum())) <= 4 * math.sqrt(float((p * (1 - p)).sum()))
    again = testbed.generate(testbed.Problem(10, 100, 0.5, 0))
    assert torch.equal(X, again[0])
    assert torch.equal(Y, again[1])
    assert not torch.equal(X, testbed.generate(testbed.Problem(10, 100, 0.5, 1))[0])


def test_the_environment_itself_scores_zero(testbed: ModuleType) -> None:
    problem = testbed.Problem(2, 1, 0.1, 0)
    environment = testbed.generate(problem)[2]
    for values in testbed.score(environment, environment, problem, DRAWS).values():
        assert float(values.abs().max()) < 1e-12


def test_uniform_scores_what_the_entropies_say(testbed: ModuleType) -> None:
    problem = testbed.Problem(2, 1, 0.5, 1)
    X, Y, environment = testbed.generate(problem)
    uniform = testbed.fit(testbed.UNIFORM, problem, X, Y, testbed.Settings())
    truth = environment(anchors(problem))[0]
    entropy = -(truth.exp() * truth).sum(-1).mean()
    for tau, values in testbed.score(uniform, environment, problem, DRAWS).items():
        close(values, tau * float(math.log(2) - entropy))


def test_one_sample_scores_the_product_of_its_marginals(testbed: ModuleType) -> None:
    problem = testbed.Problem(2, 1, 0.5, 2)
    environment, agent = testbed.generate(problem)[2], testbed.generate(testbed.Problem(2, 1, 0.5, 3))[2]
    p, q = environment(anchors(problem))[0], agent(anchors(problem))[0]
    marginal = float((p.exp() * (p - q)).sum(-1).mean())
    found = testbed.score(agent, environment, problem, DRAWS)
    for tau, values in found.items():
        close(values, tau * marginal)
    copies = testbed.score(lambda X: agent(X).expand(7, -1, -1), environment, problem, DRAWS)
    for tau, values in copies.items():
        torch.testing.assert_close(values, found[tau], rtol=1e-12, atol=1e-12)


def test_the_mean_over_samples_is_after_the_product_over_labels(testbed: ModuleType) -> None:
    problem, p = testbed.Problem(2, 1, 0.1, 0), 0.9
    found = testbed.score(constant(p, 1 - p), constant(p), problem, DRAWS)
    for tau, values in found.items():
        k = np.arange(tau + 1)
        truth = p**k * (1 - p) ** (tau - k)
        mixture = 0.5 * (truth + (1 - p) ** k * p ** (tau - k))
        close(values, float(np.sum(stats.binom.pmf(k, tau, p) * np.log(truth / mixture))))


def test_impossible_labels_count_as_the_worst_possible_ones(testbed: ModuleType) -> None:
    problem = testbed.Problem(2, 1, 0.1, 0)
    found = testbed.score(constant(1.0), constant(0.9), problem, DRAWS)[1]
    assert torch.allclose(found, found.new_tensor(math.log(0.9)))  # finite where label 1 came up
    with pytest.raises(ValueError, match="probability zero"):
        testbed.score(constant(1.0), constant(1e-12), problem, DRAWS)


def test_the_prior_is_told_in_the_coordinates_of_a_surrogate(testbed: ModuleType) -> None:
    problem = testbed.Problem(10, 1, 0.5, 0)
    told = testbed.knowledge(problem, "bernoulli")
    like = torch.ones(1, 1, dtype=torch.float64)
    parts = {name: like * torch.as_tensor(value, dtype=torch.float64) for name, value in told["scales"].items()}
    scales = WidthScales(parts["inputs"].expand(1, 10), parts["weights"], parts["biases"], like[0])
    X = torch.randn(3, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    low, high = told["bounds"]
    variance = infinite_width.kernel(scales, (X - low) / (high - low), (X - low) / (high - low), "relu")[0].diagonal()
    # E relu(a)^2 is half the variance of any symmetric a, so that the variances of finite networks are the kernel's.
    networks = testbed.random_networks(10, 4000, torch.Generator().manual_seed(1))
    logits = testbed.forward(networks, X) / problem.temperature
    difference = logits[..., 1] - logits[..., 0]  # networks x points
    for i in range(3):
        close(difference[:, i].square(), float(variance[i]))


def test_networks_learn_what_there_is_to_learn(testbed: ModuleType) -> None:
    problem = testbed.Problem(2, 100, 0.01, 0)
    X, Y, environment = testbed.generate(problem)
    settings = testbed.Settings(steps=300)
    uniform, mlp = (
        float(testbed.score(testbed.fit(method, problem, X, Y, settings), environment, problem, DRAWS)[1].mean())
        for method in (testbed.UNIFORM, testbed.MLP)
    )
    assert mlp < 0.5 * uniform
    plus = testbed.train(problem, X, Y, 3, 20, prior_scale=3.0)(X)
    assert plus.shape == (3, 200, 2)
    assert float((plus[0] - plus[1]).abs().max()) > 0.1


def test_finite_ensembles_are_enumerated(testbed: ModuleType) -> None:
    problem = testbed.Problem(2, 10, 0.1, 0)
    X, Y, _ = testbed.generate(problem)
    log_probs = testbed.fit("ensemble", problem, X, Y, testbed.Settings(samples=1000))(X)
    members = testbed.AGENTS["ensemble"](problem)["num_members"]
    assert log_probs.shape == (members, 20, 2)
    assert len(torch.unique(log_probs[:, 0, 0])) == members


def test_normalized_is_a_ratio_of_sums_with_the_spread_between_seeds(testbed: ModuleType) -> None:
    kl = {"a": [1.0, 3.0, 2.0, -0.5], "mlp": [4.0, 4.0, 2.0, 2.0]}
    rows = [
        {"D": 2, "ratio": 1, "temperature": T, "seed": s, "method": method, "tau": 1, "kl": values[2 * i + s]}
        for method, values in kl.items()
        for i, T in enumerate((0.1, 0.5))
        for s in (0, 1)
    ]
    frame = pd.DataFrame(rows)
    ratio, error = testbed.normalized(frame, "a", "mlp", 1)
    assert ratio == pytest.approx(6 / 12)  # below zero counts as zero
    # Residuals a - ratio mlp: (-1, 1) and (1, -1): variance 2 in each cell of two, 8 of the sum.
    assert error == pytest.approx(math.sqrt(8) / 12)
    assert testbed.normalized(frame, "mlp", "mlp", 1) == (1.0, 0.0)
    assert math.isnan(testbed.normalized(frame[frame["seed"] == 0], "a", "mlp", 1)[1])


def test_measuring_resumes(testbed: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, problems = tmp_path / "out.csv", [testbed.Problem(2, 1, T, 0) for T in (0.1, 0.5)]
    settings = testbed.Settings(draws=20)
    testbed.measure(path, problems[:1], [testbed.UNIFORM], settings)
    before = path.read_text()
    testbed.measure(path, problems, [testbed.UNIFORM], settings)
    assert path.read_text().startswith(before)
    monkeypatch.delattr(testbed, "fit")  # nothing may be computed again
    testbed.measure(path, problems, [testbed.UNIFORM], settings)
    assert len(path.read_text().splitlines()) == 1 + 2 * 2
