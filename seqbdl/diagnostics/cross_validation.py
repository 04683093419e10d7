"""Cross-validation that really refits: each fold is predicted by a surrogate that has never seen it.

A new surrogate is made for every fold by ``clone()`` (same options, no data, no learned state), so nothing that was
learned from the held-out rows can leak, neither weights nor scales nor hyperparameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from seqbdl.diagnostics import _inputs, regression
from seqbdl.errors import InvalidOptionError, ShapeError
from seqbdl.posteriors import ParticlePosterior

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from seqbdl.surrogates.base import Surrogate


@dataclass(frozen=True)
class CrossValidation:
    """What was predicted for each row while it was held out.

    Particles with noise are scored as the mixtures that they are, everything else as a Gaussian.

    Attributes:
        mean: ``n x m`` predictive means.
        std: ``n x m`` predictive standard deviations of an observation.
        y: ``n x m`` outcomes.
        log_density: ``n x m`` log density of each outcome under its prediction.
        crps_values: ``n x m`` continuous ranked probability score of each outcome, in the units of ``y``.
        cdf: ``n x m`` distribution function of each prediction at its outcome; uniform if predictions are right.
        fold: ``n``, which fold a row was held out in.
    """

    mean: Tensor
    std: Tensor
    y: Tensor
    log_density: Tensor
    crps_values: Tensor
    cdf: Tensor
    fold: Tensor

    @property
    def rmse(self) -> float:
        """Root mean squared error of held-out rows."""
        return regression.rmse(self.y, self.mean)

    @property
    def r_squared(self) -> float:
        """Share of variance explained on held-out rows."""
        return regression.r_squared(self.y, self.mean)

    @property
    def nlpd(self) -> float:
        """Mean negative log predictive density of held-out rows, nats."""
        return -float(self.log_density.mean())

    @property
    def crps(self) -> float:
        """Mean continuous ranked probability score of held-out rows, in the units of ``y``."""
        return float(self.crps_values.mean())

    def coverage(self, level: float = 0.95) -> float:
        """Share of held-out rows inside their central interval of that level."""
        _inputs.level("level", level)
        return float((self._levels() <= level).double().mean())

    @property
    def miscalibration_area(self) -> float:
        """Mean distance of real from nominal coverage; 0 is perfect."""
        return regression.level_area(self._levels())

    def _levels(self) -> Tensor:
        """The smallest level of a central interval that holds each outcome."""
        return (2 * self.cdf.double() - 1).abs()

    def summary(self) -> dict[str, float]:
        """All scores by name."""
        return {
            "rmse": self.rmse,
            "nlpd": self.nlpd,
            "crps": self.crps,
            "coverage_95": self.coverage(0.95),
            "miscalibration_area": self.miscalibration_area,
        }

    def plot(self, ax: Axes | None = None, output: int = 0, level: float = 0.95) -> Axes:
        """Predicted against observed, with central intervals.

        Args:
            ax: Where to draw; a new figure by default.
            output: Which outcome.
            level: Of the intervals.
        """
        if not 0 <= output < self.y.shape[-1]:
            raise InvalidOptionError(f"output={output}; the outcomes are 0 to {self.y.shape[-1] - 1}")
        if ax is None:
            from matplotlib.figure import Figure  # no global state, and no cost for who does not plot

            ax = Figure(figsize=(5, 5)).add_subplot()
        y, mean = self.y[:, output].cpu().numpy(), self.mean[:, output].cpu().numpy()
        z = float(torch.special.ndtri(torch.tensor(0.5 + level / 2, dtype=torch.float64)))
        reach = z * self.std[:, output].cpu().numpy()
        ax.errorbar(y, mean, yerr=reach, fmt="o", markersize=4, linewidth=0.8, alpha=0.8)
        ends = [min(y.min(), mean.min()), max(y.max(), mean.max())]
        ax.plot(ends, ends, color="0.5", linewidth=1, zorder=0)
        ax.set_xlabel("observed")
        ax.set_ylabel(f"predicted while held out ({level:.0%} interval)")
        ax.set_title(f"RMSE {self.rmse:.3g}, {level:.0%} coverage {self.coverage(level):.0%}")
        return ax


def cross_validate(
    surrogate: Surrogate,
    X: Tensor,
    Y: Tensor,
    Yvar: Tensor | None = None,
    folds: int | str = "loo",
    generator: torch.Generator | None = None,
) -> CrossValidation:
    """Predict every row by a surrogate refitted without it. The given surrogate itself is neither used nor changed.

    Args:
        surrogate: Its ``clone()`` is fitted in every fold.
        X: ``n x d``.
        Y: ``n x m``.
        Yvar: ``n x m`` known noise variances.
        folds: ``"loo"`` (each row by itself) or the number of folds.
        generator: Shuffles rows into folds; without one, a fixed shuffle.

    Raises:
        ShapeError: Rows of ``X``, ``Y`` and ``Yvar`` differ.
        InvalidOptionError: Fewer than 2 folds or more folds than rows.
    """
    if X.dim() != 2 or Y.dim() != 2 or X.shape[0] != Y.shape[0]:
        raise ShapeError(f"X has shape {tuple(X.shape)}, Y {tuple(Y.shape)}; they need n x d and n x m")
    if Yvar is not None and Yvar.shape != Y.shape:
        raise ShapeError(f"Yvar has shape {tuple(Yvar.shape)}; it needs the shape of Y, {tuple(Y.shape)}")
    n = X.shape[0]
    if isinstance(folds, str):
        if folds != "loo":
            raise InvalidOptionError(f'folds={folds!r}; pass "loo" or the number of folds')
        folds = n
    if not 2 <= folds <= n:
        raise InvalidOptionError(f"folds={folds}, but there are {n} rows; pass 2 to {n}")
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    order = torch.randperm(n, generator=generator, device=generator.device).to(X.device)
    fold = torch.empty(n, dtype=torch.long, device=X.device)
    fold[order] = torch.arange(n, device=X.device) % folds
    parts = [torch.empty_like(Y) for _ in range(5)]
    for k in range(folds):
        out = fold == k
        fresh = surrogate.clone()
        fresh.fit(X[~out], Y[~out], None if Yvar is None else Yvar[~out])
        noise = None if Yvar is None else Yvar[out]
        for part, values in zip(parts, _predict(fresh, X[out], Y[out], noise), strict=True):
            part[out] = values.to(Y)
    mean, std, log_density, crps_values, cdf = parts
    return CrossValidation(mean=mean, std=std, y=Y, log_density=log_density, crps_values=crps_values, cdf=cdf, fold=fold)


def _predict(surrogate: Surrogate, X: Tensor, Y: Tensor, Yvar: Tensor | None) -> tuple[Tensor, ...]:
    """Mean, standard deviation, log density, CRPS and distribution function of held-out observations.

    They have their own noise where it is known.
    """
    with torch.no_grad():
        posterior: Any = surrogate.posterior(X, observation_noise=True if Yvar is None else Yvar)
        mean, std = posterior.mean, posterior.variance.sqrt()
        if isinstance(posterior, ParticlePosterior) and posterior.noise is not None and bool((posterior.noise > 0).all()):
            # The mixture's own scores; the Gaussian with its moments would hide several modes.
            mixture = (Y, posterior.values, posterior.noise.sqrt(), posterior.weights.log())
            return (
                mean,
                std,
                regression.mixture_log_density(*mixture),
                regression.crps_mixture_values(*mixture),
                regression.mixture_cdf(*mixture),
            )
        return (
            mean,
            std,
            regression.gaussian_log_density(Y, mean, std),
            regression.crps_gaussian_values(Y, mean, std),
            torch.special.ndtr((Y - mean) / std),
        )
