"""The UCI benchmark: densities, the paired test, units, splits, resuming."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from botorch.posteriors import TorchPosterior
from scipy import stats

from seqbdl.posteriors import JointGaussian, ParticlePosterior


@pytest.fixture(scope="module")
def uci(load: Callable[[str], ModuleType]) -> ModuleType:
    return load("uci")


@pytest.fixture
def toy(uci: ModuleType, tmp_path: Path) -> Path:
    uci.write_toy(tmp_path)
    return tmp_path


def test_mixture_density_uses_every_particles_own_noise_and_weight(uci: ModuleType) -> None:
    values = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64).reshape(3, 1, 1, 1)
    noise = torch.tensor([0.25, 1.0, 4.0], dtype=torch.float64).reshape(3, 1, 1, 1)
    weights = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    y = torch.full((1, 1, 1), 0.7, dtype=torch.float64)
    found = uci.log_density(ParticlePosterior(values, weights.log(), noise), y)
    parts = stats.norm.pdf(0.7, [0.0, 1.0, 3.0], [0.5, 1.0, 2.0])
    assert float(found) == pytest.approx(math.log(np.dot(weights.numpy(), parts)), rel=1e-12)


def test_mixture_density_does_not_underflow(uci: ModuleType) -> None:
    values = torch.tensor([0.0, 1.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    posterior = ParticlePosterior(values, None, torch.ones_like(values))
    y = torch.full((1, 1, 1), 100.0, dtype=torch.float64)
    assert float(posterior.density(y)) == 0.0
    nearest = math.log(0.5) - 0.5 * 99.0**2 - 0.5 * math.log(2 * math.pi)  # the other term is e^-99.5 of it
    assert float(uci.log_density(posterior, y)) == pytest.approx(nearest, rel=1e-12)


def test_gaussian_density(uci: ModuleType) -> None:
    mean = torch.tensor([[[0.3]], [[-1.0]]], dtype=torch.float64)
    joint = JointGaussian(mean, torch.full((2, 1, 1, 1), 2.25, dtype=torch.float64))
    found = uci.log_density(joint.to_posterior(torch.float64), torch.ones(2, 1, 1, dtype=torch.float64))
    expected = stats.norm.logpdf(1.0, [0.3, -1.0], 1.5)
    np.testing.assert_allclose(found.flatten().numpy(), expected, rtol=1e-10)


def test_latent_mixtures_and_unknown_posteriors_are_refused(uci: ModuleType) -> None:
    y = torch.zeros(1, 1, 1)
    with pytest.raises(TypeError, match="observation_noise"):
        uci.log_density(ParticlePosterior(torch.zeros(2, 1, 1, 1)), y)
    with pytest.raises(TypeError, match="TorchPosterior"):
        uci.log_density(TorchPosterior(torch.distributions.Cauchy(y, 1.0)), y)


@pytest.mark.parametrize("method", ["MAP", "gp"])
def test_scores_are_in_the_units_of_the_target(uci: ModuleType, toy: Path, method: str) -> None:
    X, Y, test_X, test_Y = uci.load_split(toy, "toy", 0)
    plain = uci.score(method, (X, Y, test_X, test_Y), 0)
    scaled = uci.score(method, (X, 4.0 * Y + 64.0, test_X, 4.0 * test_Y + 64.0), 0)
    # Standardized targets are equal up to rounding; fits stop at a relative tolerance far below 1e-4.
    assert scaled.log_likelihood == pytest.approx(plain.log_likelihood - math.log(4.0), abs=1e-4)
    assert scaled.rmse == pytest.approx(4.0 * plain.rmse, rel=1e-4)
    assert scaled.coverage == plain.coverage


def test_particles_are_scored_as_a_mixture(uci: ModuleType, toy: Path) -> None:
    scores = uci.score("ensemble", uci.load_split(toy, "toy", 0), 0)
    assert math.isfinite(scores.log_likelihood)
    assert 0.0 <= scores.coverage <= 1.0


def test_splits_are_the_files_rows(uci: ModuleType, toy: Path) -> None:
    table, rows = np.loadtxt(toy / "toy" / "data.txt"), np.loadtxt(toy / "toy" / "test_rows.csv", delimiter=",", dtype=int)
    X, Y, test_X, test_Y = uci.load_split(toy, "toy", 2)
    np.testing.assert_array_equal(torch.cat([test_X, test_Y], 1).numpy(), table[rows[2]])
    together = torch.cat([torch.cat([X, Y], 1), torch.cat([test_X, test_Y], 1)]).numpy()
    np.testing.assert_array_equal(np.sort(together, 0), np.sort(table, 0))


def test_corrected_t_is_the_plain_one_without_overlap_and_wider_with_it(uci: ModuleType) -> None:
    d = np.random.default_rng(0).normal(0.3, 1.0, 20)
    plain = stats.ttest_1samp(d, 0.0)
    assert uci.corrected_t(d, 0, 100).p == pytest.approx(plain.pvalue, rel=1e-12)
    found = uci.corrected_t(d, 51, 455)
    statistic = plain.statistic * math.sqrt((1 / 20) / (1 / 20 + 51 / 455))
    assert found.p == pytest.approx(2 * stats.t.sf(abs(statistic), 19), rel=1e-12)
    assert (found.wins, found.splits) == (int((d > 0).sum()), 20)
    assert math.isnan(uci.corrected_t(d[:1], 51, 455).p)


def test_measuring_resumes(uci: ModuleType, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = toy / "out.csv"
    uci.measure(path, toy, ["toy"], ["MAP"], 1)
    before = path.read_text()
    uci.measure(path, toy, ["toy"], ["MAP"], 2)
    assert path.read_text().startswith(before)
    monkeypatch.delattr(uci, "score")  # nothing may be computed again
    uci.measure(path, toy, ["toy"], ["MAP"], 2)
    assert len(path.read_text().splitlines()) == 3


def test_published_rows_name_known_sets(uci: ModuleType) -> None:
    for source, cells in uci.PUBLISHED.values():
        assert source
        assert set(cells) <= set(uci.SETS)
    tuned = uci.PUBLISHED[uci.DROPOUT][1]
    assert all(tuned[name][0] < uci.CEILING[name] for name in uci.SETS)


def test_the_data_folder_is_required(uci: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        uci.main([])
    assert "--data FOLDER is required" in capsys.readouterr().err
