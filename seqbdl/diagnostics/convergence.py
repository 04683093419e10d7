"""Have Markov chains converged? Rank-normalized split R-hat, bulk and tail ESS and Monte Carlo errors, by ArviZ.

Weights of a network have symmetries (permuted units, flipped signs), so that chains that agree on the function may
disagree on the weights: R-hat of weights is often large where that of function values is one (Izmailov et al. 2021).
Predictions only need function values to converge; both are reported, and never mixed.

References: A. Vehtari, A. Gelman, D. Simpson, B. Carpenter and P.-C. Bürkner, "Rank-normalization, folding, and
localization: an improved R-hat for assessing convergence of MCMC", Bayesian Analysis 2021; P. Izmailov, S. Vikram,
M. Hoffman and A. Wilson, "What are Bayesian neural network posteriors really like?", ICML 2021.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from arviz_stats.base.array import array_stats
from torch import Tensor

from seqbdl.diagnostics import _inputs
from seqbdl.errors import InvalidDataError, ShapeError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TAIL = (0.05, 0.95)
"""The quantiles whose effective sample sizes the tail ESS is the smaller of (Vehtari et al. 2021, section 4.3)."""

DRAWS_FOR_ESS = 10
"""Half chains of fewer than 5 draws leave the estimator no lag: it would answer ``N log10 N`` for any chains whatever."""


@dataclass(frozen=True)
class Convergence:
    """Diagnostics of ``K`` scalar quantities, each followed over all draws of all chains.

    A quantity that never changes has NaN everywhere but in its mean and standard deviation: there is nothing to
    diagnose. Chains that are stuck, each in a place of its own, have an infinite R-hat. Effective sample sizes and
    Monte Carlo errors are NaN for fewer than 10 draws a chain, from which they cannot be estimated.

    Attributes:
        index: ``K x k``, where each quantity stands in the trailing dimensions of what was handed in.
        mean: ``K`` posterior means.
        std: ``K`` posterior standard deviations, over all draws of all chains.
        r_hat: ``K`` rank-normalized split R-hat, the larger of bulk and folded; 1 is convergence.
        ess_bulk: ``K`` effective numbers of independent draws for the centre of the distribution.
        ess_tail: ``K`` the same for its 5 % and 95 % quantiles, the smaller of the two.
        mcse_mean: ``K`` Monte Carlo standard errors of ``mean``.
        mcse_std: ``K`` Monte Carlo standard errors of ``std``.
        num_quantities: How many quantities were handed in; more than ``K`` if only an even sample of them was looked at.
        worst_draws: ``draws x chains`` draws of the quantity with the largest R-hat.
    """

    index: Tensor = field(repr=False)
    mean: Tensor = field(repr=False)
    std: Tensor = field(repr=False)
    r_hat: Tensor = field(repr=False)
    ess_bulk: Tensor = field(repr=False)
    ess_tail: Tensor = field(repr=False)
    mcse_mean: Tensor = field(repr=False)
    mcse_std: Tensor = field(repr=False)
    num_quantities: int
    worst_draws: Tensor = field(repr=False)

    @property
    def worst(self) -> int:
        """Position, among the ``K``, of the largest R-hat."""
        return _worst(self.r_hat)

    def converged(self, max_r_hat: float = 1.01, min_ess: float = 400.0) -> bool:
        """Whether every quantity that changes keeps both limits; the defaults are those of Vehtari et al. (2021).

        An effective sample size that is unknown, for fewer than 10 draws a chain, is not large enough.
        """
        moves = ~self.r_hat.isnan()
        ess = torch.minimum(self.ess_bulk, self.ess_tail)
        return bool(((self.r_hat <= max_r_hat) & (ess >= min_ess))[moves].all())

    def frame(self) -> pd.DataFrame:
        """One row for each quantity: its index as a tuple, and every diagnostic."""
        columns: dict[str, object] = {"index": [tuple(row) for row in self.index.tolist()]}
        for name in ("mean", "std", "r_hat", "ess_bulk", "ess_tail", "mcse_mean", "mcse_std"):
            columns[name] = getattr(self, name).numpy()
        return pd.DataFrame(columns)

    def plot_r_hat(self, ax: Axes | None = None, label: str = "") -> Axes:
        """Histogram of R-hat over all quantities; infinite ones are counted in the label."""
        ax = _new_axes() if ax is None else ax
        finite = self.r_hat[self.r_hat.isfinite()].numpy()
        stuck = int(self.r_hat.isinf().sum())
        note = f"{label}, largest {float(self.r_hat[self.worst]):.3f}" + (f", {stuck} stuck" if stuck else "")
        ax.hist(finite, bins=30, alpha=0.6, label=note.lstrip(", "))
        ax.axvline(1.01, color="0.3", linestyle="--", linewidth=1)
        ax.set_xlabel("R-hat")
        ax.set_ylabel("quantities")
        ax.legend()
        return ax

    def plot_ranks(self, ax: Axes | None = None, bins: int = 20) -> Axes:
        """Ranks of the worst quantity's draws among all draws, one line a chain; chains that mix have equal, flat lines."""
        _inputs.at_least("bins", bins, 2)
        ax = _new_axes() if ax is None else ax
        draws, chains = self.worst_draws.shape
        bins = min(bins, max(2, draws // 5))  # fewer draws to a bin say nothing
        ranks = array_stats.compute_ranks(self.worst_draws.numpy(), axis=None)
        edges = np.linspace(0.5, draws * chains + 0.5, bins + 1)
        for chain in range(chains):
            share = np.histogram(ranks[:, chain], edges)[0] * bins / draws
            ax.stairs(share, edges / (draws * chains), alpha=0.8)
        ax.axhline(1.0, color="0.3", linestyle="--", linewidth=1)
        ax.set_xlabel(f"rank of the draws, index {tuple(self.index[self.worst].tolist())}")
        ax.set_ylabel("density, one line a chain")
        return ax


@dataclass(frozen=True)
class ConvergenceReport:
    """Convergence of function values, which predictions need, and of weights, which they do not.

    Attributes:
        functions: Of function values.
        weights: Of weights; ``None`` if none were handed in.
        num_draws: Draws of each chain.
        num_chains: Chains.
    """

    functions: Convergence
    weights: Convergence | None
    num_draws: int
    num_chains: int

    def converged(self, max_r_hat: float = 1.01, min_ess: float = 400.0) -> bool:
        """Whether the function values have converged, by the limits of Vehtari et al. (2021)."""
        return self.functions.converged(max_r_hat, min_ess)

    def frame(self) -> pd.DataFrame:
        """One row for each quantity: ``kind`` (function or weight), its index, and every diagnostic."""
        parts = [part.frame().assign(kind=kind) for kind, part in self._parts()]
        table = pd.concat(parts, ignore_index=True)
        return table[["kind", *(name for name in table.columns if name != "kind")]]

    def summary(self) -> pd.DataFrame:
        """One row for each kind: how many quantities, median and largest R-hat, and the smallest of either ESS."""
        table = self.frame().groupby("kind", sort=False)
        return pd.DataFrame(
            {
                "quantities": table.size(),
                "r_hat_median": table["r_hat"].median(),
                "r_hat_max": table["r_hat"].max(),
                "ess_bulk_min": table["ess_bulk"].min(),
                "ess_tail_min": table["ess_tail"].min(),
            }
        )

    def plot(self) -> Figure:
        """R-hat of all quantities, and rank plots of the worst function value and of the worst weight."""
        from matplotlib.figure import Figure  # no global state, and no cost for who does not plot

        parts = self._parts()
        figure = Figure(figsize=(4.5 * (1 + len(parts)), 3.5), layout="constrained")
        axes = figure.subplots(1, 1 + len(parts))
        for ax, (kind, part) in zip(axes[1:], parts, strict=True):
            part.plot_r_hat(axes[0], label=f"{kind}s")
            part.plot_ranks(ax).set_title(f"worst {kind}: R-hat {float(part.r_hat[part.worst]):.3f}")
        axes[0].set_title(f"{self.num_chains} chains of {self.num_draws} draws")
        return figure

    def _parts(self) -> list[tuple[str, Convergence]]:
        return [("function", self.functions)] + ([] if self.weights is None else [("weight", self.weights)])


def chain_convergence(draws: Tensor, max_quantities: int = 2000, name: str = "draws") -> Convergence:
    """Diagnostics of every scalar in ``draws``.

    Args:
        draws: ``draws x chains x ...``, without warm-up; at least 4 draws of 2 chains.
        max_quantities: Look at an even sample of that many quantities if there are more: about a millisecond each.
        name: How the argument is called in error messages.

    Raises:
        ShapeError: Fewer than 2 chains or 4 draws.
        InvalidDataError: NaN or infinite draws.
    """
    if isinstance(draws, Tensor) and (draws.dim() < 2 or draws.shape[0] < 4 or draws.shape[1] < 2):
        raise ShapeError(
            f"{name} has shape {tuple(draws.shape)}; it needs draws x chains x ... with at least 4 draws and 2 chains. "
            f"One long chain can be split: {name}.unflatten(0, (2, -1)).transpose(0, 1)"
        )
    values = _inputs.finite(name, draws)
    _inputs.at_least("max_quantities", max_quantities, 1)
    trailing = values.shape[2:]
    flat = values.detach().cpu().flatten(2) if trailing else values.detach().cpu().unsqueeze(-1)
    total = flat.shape[-1]
    picks = torch.linspace(0, total - 1, min(total, max_quantities), dtype=torch.float64).round().long()
    flat = flat[..., picks]
    index = torch.stack(torch.unravel_index(picks, trailing), -1) if trailing else picks.new_zeros(1, 0)
    scores = _arviz(flat.numpy())
    r_hat = scores["r_hat"]
    return Convergence(
        index=index,
        mean=flat.mean((0, 1)),
        std=flat.flatten(0, 1).std(0),
        num_quantities=total,
        worst_draws=flat[..., _worst(r_hat)],
        **scores,
    )


def convergence_report(values: Tensor, weights: Tensor | None = None, max_quantities: int = 2000) -> ConvergenceReport:
    """Convergence of function values and, separately, of weights.

    For the surrogate ``hmc`` after a fit: ``convergence_report(surrogate.report.values)``.

    Args:
        values: ``draws x chains x n x m`` (any trailing shape) function values at fixed inputs, without warm-up.
        weights: ``draws x chains x P`` (any trailing shape), of the same chains.
        max_quantities: Of each kind, look at an even sample of that many if there are more.

    Raises:
        ShapeError: Fewer than 2 chains or 4 draws, or weights of other chains than ``values``.
        InvalidDataError: NaN or infinite draws.
    """
    functions = chain_convergence(values, max_quantities, "values")
    if weights is not None and weights.shape[:2] != values.shape[:2]:
        raise ShapeError(
            f"weights has shape {tuple(weights.shape)}, values {tuple(values.shape)}; "
            "their first two dimensions are the same draws x chains"
        )
    return ConvergenceReport(
        functions=functions,
        weights=None if weights is None else chain_convergence(weights, max_quantities, "weights"),
        num_draws=values.shape[0],
        num_chains=values.shape[1],
    )


def monte_carlo_error(draws: Tensor) -> Tensor:
    """Standard error of the mean over ``draws x chains``, with the chains' autocorrelation, ``...``.

    Args:
        draws: ``draws x chains x ...`` with at least 10 draws.
    """
    if isinstance(draws, Tensor) and (draws.dim() < 2 or draws.shape[0] < DRAWS_FOR_ESS):
        raise ShapeError(
            f"draws has shape {tuple(draws.shape)}; it needs draws x chains x ... with at least {DRAWS_FOR_ESS} draws, "
            "from which the autocorrelation is estimated"
        )
    values = _inputs.finite("draws", draws).detach().cpu().numpy()
    return torch.as_tensor(array_stats.mcse(values, chain_axis=1, draw_axis=0, method="mean"))


def _arviz(flat: np.ndarray) -> dict[str, Tensor]:
    """ArviZ's diagnostics of ``draws x chains x K``, with NaN for what never changes."""
    axes = {"chain_axis": 1, "draw_axis": 0}
    count = flat.shape[-1]
    moves = np.ptp(flat, axis=(0, 1)) > 0
    part = flat[..., moves]
    scores = {name: np.full(count, np.nan) for name in ("r_hat", "ess_bulk", "ess_tail", "mcse_mean", "mcse_std")}
    # A chain that is stuck has no variance within: R-hat is infinite then, by division by zero, as it should be.
    with np.errstate(divide="ignore", invalid="ignore"):
        scores["r_hat"][moves] = array_stats.rhat(part, method="rank", **axes)
    if flat.shape[0] < DRAWS_FOR_ESS:
        return {name: torch.as_tensor(value) for name, value in scores.items()}
    scores["ess_bulk"][moves] = array_stats.ess(part, method="bulk", **axes)
    scores["ess_tail"][moves] = array_stats.ess(part, method="tail", prob=TAIL, **axes)
    scores["mcse_mean"][moves] = array_stats.mcse(part, method="mean", **axes)
    scores["mcse_std"][moves] = array_stats.mcse(part, method="sd", **axes)
    return {name: torch.as_tensor(value) for name, value in scores.items()}


def _worst(r_hat: Tensor) -> int:
    if bool(r_hat.isnan().all()):
        raise InvalidDataError("no quantity ever changes, so none is the worst; hand in draws of a sampler that moves")
    return int(torch.where(r_hat.isnan(), -torch.inf, r_hat).argmax())


def _new_axes() -> Axes:
    from matplotlib.figure import Figure  # no global state, and no cost for who does not plot

    return Figure(figsize=(5, 3.5), layout="constrained").add_subplot()
