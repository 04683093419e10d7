"""Convergence diagnostics against the formulas of the paper, ArviZ called by hand, and chains of known autocorrelation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from arviz_stats.base.array import array_stats
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor

from seqbdl.diagnostics import chain_convergence, convergence_report, monte_carlo_error
from seqbdl.errors import InvalidDataError, InvalidOptionError, ShapeError
from seqbdl.surrogates.hmc import HMCSurrogate


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def autoregressive(draws: int, chains: int, phi: float, seed: int = 0) -> Tensor:
    """Stationary AR(1) chains of variance one, ``draws x chains``."""
    innovations = normals(draws, chains, seed=seed)
    rows = [innovations[0]]
    for row in innovations[1:]:
        rows.append(phi * rows[-1] + math.sqrt(1 - phi**2) * row)
    return torch.stack(rows)


def split_r_hat(draws: Tensor) -> float:
    """Equations 1 to 4 and 14 of Vehtari et al. (2021), from the text."""
    half = draws.shape[0] // 2
    split = torch.cat([draws[:half], draws[-half:]], 1).numpy()

    def of_ranks(values: np.ndarray) -> float:
        ranks = stats.rankdata(values).reshape(values.shape)
        z = stats.norm.ppf((ranks - 3 / 8) / (values.size + 1 / 4))
        within = z.var(0, ddof=1).mean()
        between = half * z.mean(0).var(ddof=1)
        return math.sqrt(((half - 1) / half * within + between / half) / within)

    return max(of_ranks(split), of_ranks(np.abs(split - np.median(split))))


def test_r_hat_is_that_of_the_paper() -> None:
    draws = normals(40, 3, 4)
    draws[:, 0, 1] += 1.0  # a shift, seen by the ranks
    draws[:, 0, 2] *= 3.0  # a scale, seen by the folded ranks
    found = chain_convergence(draws)
    assert found.r_hat.tolist() == pytest.approx([split_r_hat(draws[..., k]) for k in range(4)], rel=1e-12)
    assert found.r_hat[1] > 1.05
    assert found.r_hat[2] > 1.05
    assert found.worst in (1, 2)


def test_every_number_is_arviz_for_the_same_chains() -> None:
    draws = torch.stack([autoregressive(60, 4, 0.5, seed) for seed in range(6)], -1).reshape(60, 4, 3, 2)
    found = chain_convergence(draws)
    assert found.index.tolist() == [[i, j] for i in range(3) for j in range(2)]
    for k, (i, j) in enumerate(found.index.tolist()):
        chains = draws[:, :, i, j].T.numpy()  # ArviZ's own layout: chains x draws
        assert found.r_hat[k] == pytest.approx(float(array_stats.rhat(chains)))
        assert found.ess_bulk[k] == pytest.approx(float(array_stats.ess(chains, method="bulk")))
        assert found.ess_tail[k] == pytest.approx(float(array_stats.ess(chains, method="tail", prob=(0.05, 0.95))))
        assert found.mcse_mean[k] == pytest.approx(float(array_stats.mcse(chains, method="mean")))
        assert found.mcse_std[k] == pytest.approx(float(array_stats.mcse(chains, method="sd")))
        assert found.mean[k] == pytest.approx(chains.mean())
        assert found.std[k] == pytest.approx(chains.std(ddof=1))


@pytest.mark.parametrize("phi", [0.0, 0.7])
def test_effective_sample_size_of_an_autoregressive_chain(phi: float) -> None:
    draws, chains = 2000, 4
    found = chain_convergence(autoregressive(draws, chains, phi))
    expected = draws * chains * (1 - phi) / (1 + phi)
    # Sokal (1997): the relative error of the autocorrelation time is sqrt(2 (2 W + 1) / n) for a window of W lags; the
    # autocorrelation is below the noise, 1 / sqrt(n), after W lags.
    window = 1 if phi == 0 else math.ceil(math.log(1 / math.sqrt(draws * chains)) / math.log(phi))
    error = math.sqrt(2 * (2 * window + 1) / (draws * chains))
    assert float(found.ess_bulk) == pytest.approx(expected, rel=4 * error)
    assert float(found.mcse_mean) == pytest.approx(1 / math.sqrt(expected), rel=4 * error)
    assert float(monte_carlo_error(autoregressive(draws, chains, phi))) == pytest.approx(float(found.mcse_mean))


def test_symmetric_weights_do_not_converge_where_functions_do() -> None:
    weights = 3.0 + 0.5 * normals(1000, 4, 5)
    weights[:, ::2] *= -1  # every other chain sits at the mirrored mode
    report = convergence_report(weights.square(), weights)
    assert report.converged()
    assert report.weights is not None
    assert not report.weights.converged(max_r_hat=1.5)
    table = report.frame()
    assert list(table["kind"]) == ["function"] * 5 + ["weight"] * 5
    assert list(table.columns) == ["kind", "index", "mean", "std", "r_hat", "ess_bulk", "ess_tail", "mcse_mean", "mcse_std"]
    assert table["index"][5] == (0,)
    summary = report.summary()
    assert summary.loc["function", "r_hat_max"] == pytest.approx(float(report.functions.r_hat.max()))
    assert summary.loc["weight", "ess_bulk_min"] == pytest.approx(float(report.weights.ess_bulk.min()))
    assert (report.num_draws, report.num_chains) == (1000, 4)


def test_limits_of_convergence_are_both_kept() -> None:
    found = chain_convergence(normals(100, 4, 3))
    r_hat, ess = float(found.r_hat.max()), float(torch.minimum(found.ess_bulk, found.ess_tail).min())
    assert found.converged(r_hat, ess)
    assert not found.converged(r_hat - 1e-9, ess)
    assert not found.converged(r_hat, ess + 1e-6)


def test_constants_are_not_diagnosed_and_stuck_chains_are_infinite() -> None:
    draws = normals(50, 3, 3)
    draws[..., 1] = 2.0
    draws[..., 2] = torch.arange(3.0)
    found = chain_convergence(draws)
    assert found.r_hat.isnan().tolist() == [False, True, False]
    assert (float(found.mean[1]), float(found.std[1])) == (2.0, 0.0)
    assert found.r_hat[2] == torch.inf
    assert found.worst == 2
    assert not found.converged(max_r_hat=100.0, min_ess=0.0)
    assert "1 stuck" in str(found.plot_r_hat().get_legend().get_texts()[0].get_text())


@pytest.mark.parametrize("draws", [9, 10])
def test_effective_sample_sizes_are_unknown_for_very_short_chains(draws: int) -> None:
    """Chains that hardly move are worth about one draw each; short ones must not seem to be worth more than all draws."""
    stuck = torch.arange(6.0, dtype=torch.float64) + 1e-3 * normals(draws, 6)
    found = chain_convergence(stuck.unsqueeze(-1))
    assert float(found.r_hat) > 1.5
    assert not found.converged(max_r_hat=1e6, min_ess=30.0)
    for score in (found.ess_bulk, found.ess_tail, found.mcse_mean, found.mcse_std):
        assert bool(score.isnan()) == (draws < 10)
    assert draws < 10 or float(found.ess_bulk) < 2 * 2 * 6  # two half chains of each, hardly ever more than two draws


def test_an_even_sample_of_many_quantities() -> None:
    draws = normals(12, 2, 101)
    found = chain_convergence(draws, max_quantities=11)
    assert found.index.flatten().tolist() == list(range(0, 101, 10))
    assert found.num_quantities == 101
    whole = chain_convergence(draws)
    assert torch.equal(found.ess_bulk, whole.ess_bulk[::10])


def test_scalar_chains_have_no_index() -> None:
    found = chain_convergence(normals(8, 2).float())
    assert found.frame()["index"].tolist() == [()]
    assert found.r_hat.dtype == torch.float64


def test_plots_show_every_kind_and_chain() -> None:
    values = normals(60, 3, 4, 2)
    values[:, 0, 2, 1] += 5.0
    report = convergence_report(values, normals(60, 3, 7, seed=1))
    figure = report.plot()
    assert isinstance(figure, Figure)
    assert len(figure.axes) == 3
    assert "(2, 1)" in figure.axes[1].get_xlabel()
    assert len(figure.axes[1].patches) == 3
    assert len(convergence_report(values).plot().axes) == 2
    # The chain that sits above the others has the highest ranks only.
    heights = report.functions.plot_ranks(bins=3).patches[0].get_data().values
    assert heights[0] == 0.0
    assert heights[2] > 2.5


def test_the_report_of_hmc_goes_in_as_it_is() -> None:
    X = torch.linspace(0, 1, 8, dtype=torch.float64).unsqueeze(-1)
    surrogate = HMCSurrogate(1, network=(8,), num_members=16, num_chains=4, warmup=4, samples=6)
    surrogate.fit(X, torch.sin(5 * X))
    assert surrogate.report is not None
    report = convergence_report(surrogate.report.values)
    assert len(report.frame()) == 8
    assert (report.num_draws, report.num_chains) == (6, 4)
    assert report.weights is None


def test_bad_draws_are_named() -> None:
    with pytest.raises(ShapeError, match=r"values has shape \(3, 2\).*at least 4 draws"):
        convergence_report(normals(3, 2))
    with pytest.raises(ShapeError, match="can be split"):
        chain_convergence(normals(10, 1))
    with pytest.raises(ShapeError, match=r"weights has shape \(8, 3, 1\)"):
        convergence_report(normals(8, 2, 1), normals(8, 3, 1))
    draws = normals(8, 2, 3)
    draws[5, 1, 2] = math.nan
    with pytest.raises(InvalidDataError, match=r"draws has 1 NaN.*\(5, 1, 2\)"):
        chain_convergence(draws)
    with pytest.raises(InvalidDataError, match="no quantity ever changes"):
        chain_convergence(torch.ones(8, 2, 3))
    with pytest.raises(InvalidOptionError, match="max_quantities"):
        chain_convergence(normals(8, 2), max_quantities=0)
    with pytest.raises(ShapeError, match="list"):
        chain_convergence([1.0, 2.0])  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="at least 10 draws"):
        monte_carlo_error(normals(9, 2))
    one_long = normals(20)
    split = one_long.unflatten(0, (2, -1)).transpose(0, 1)  # the remedy that the message proposes
    assert torch.equal(split[:, 1], one_long[10:])
    assert chain_convergence(split).r_hat.shape == (1,)
