"""Surrogates as models of experiments: the unknown is a function, an expensive simulator, or what a simulator lacks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqbdl.acquisition.draws import function_draws
from seqbdl.acquisition.eig.model import ThetaSource
from seqbdl.errors import InvalidOptionError, ShapeError
from seqbdl.serialization import generator_state, restore_generator

_ROWS = 4096  # inputs of an emulator in one call
_LOG_ROOT = 0.5 * math.log(2 * math.pi)


class FunctionModel:
    """The unknown is which of a surrogate's functions is true: information about it is BALD.

    ``theta`` is the number of one of ``K`` function draws, ``... x 1``, all equally probable; a design is an input of the
    surrogate. Outcomes that are classes are enumerated, and the information equals :func:`seqbdl.acquisition.pool_scores.bald` of
    the same draws; real ones have Gaussian noise. Neither can exceed ``log K``.

    Args:
        surrogate: With ``sample_functions`` and ``noise_variance`` for one real output, with ``log_probs`` for classes.
        num_functions: ``K``.
        num_classes: Of outcomes; ``None``: they are real.
        noise: Standard deviation of a real outcome; by default from the surrogate.
        generator: Of the draws, which are kept.
        goal: Of function values ``K x P`` (of classes: log-probabilities ``K x P x C``) at ``points``, ``K x g``: what the
            experiment is about, such as where the function is largest. ``None``: all of the function.
        points: ``P x d``.

    Raises:
        InvalidOptionError: Fewer than two functions or classes; noise that is not positive; ``goal`` without ``points``.
    """

    parameter_names = ("function",)
    exact = True  # weighted() is the whole distribution

    def __init__(
        self,
        surrogate: Any,
        num_functions: int = 256,
        *,
        num_classes: int | None = None,
        noise: float | None = None,
        generator: torch.Generator | None = None,
        goal: Callable[[Tensor], Tensor] | None = None,
        points: Tensor | None = None,
    ) -> None:
        if num_functions < 2 or (num_classes is not None and num_classes < 2):
            raise InvalidOptionError(f"num_functions={num_functions}, num_classes={num_classes}; both are at least 2")
        if (goal is None) != (points is None):
            raise InvalidOptionError("goal and points go together: say where the functions are looked at")
        if num_classes is not None and noise is not None:
            raise InvalidOptionError("noise is of real outcomes; classes have none")
        self.num_functions = num_functions
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        if num_classes is None:
            self.noise = _positive(float(surrogate.noise_variance.reshape(-1)[0]) ** 0.5 if noise is None else noise)
            self.support = None
            self.reparametrized = True
            draws = function_draws(surrogate, num_functions, generator)
            self._values: Callable[[Tensor], Tensor] = lambda X: draws(X).squeeze(-1)
        else:
            self.support = torch.arange(num_classes, dtype=torch.float64).unsqueeze(-1)
            state = generator_state(generator)
            self._values = lambda X: surrogate.log_probs(X, num_functions, restore_generator(state))
        if goal is not None:
            assert points is not None
            self._set_goal(goal(self._values(points).detach()))

    def _set_goal(self, goals: Tensor) -> None:
        if goals.dim() != 2 or goals.shape[0] != self.num_functions:
            raise ShapeError(f"goal answered {tuple(goals.shape)}; it needs {self.num_functions} x g, a row for each function")
        group = torch.unique(goals, dim=0, return_inverse=True)[1]
        order, sizes = group.argsort(stable=True), torch.bincount(group)
        first = sizes.cumsum(0) - sizes

        def goal(theta: Tensor) -> Tensor:
            return goals[theta[..., 0].long()].double()

        def nuisances(theta: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
            own = group[theta[..., 0].long()]
            u = torch.rand(n, *own.shape, generator=generator, dtype=torch.float64)
            return order[first[own] + (u * sizes[own]).long()].double().unsqueeze(-1)

        self.goal, self.nuisances = goal, nuisances

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """``n x 1`` numbers of functions."""
        return torch.randint(self.num_functions, (n, 1), generator=generator).double()

    def weighted(self) -> tuple[Tensor, Tensor]:
        """All numbers ``K x 1`` and their weights ``K``."""
        weights = torch.full((self.num_functions,), 1 / self.num_functions, dtype=torch.float64)
        return torch.arange(self.num_functions, dtype=torch.float64).unsqueeze(-1), weights

    def log_prob(self, y: Tensor, theta: Tensor, design: Tensor) -> Tensor:
        """``log p(y | function, design)``, the broadcast leading dimensions."""
        values = _looked_up(self._values, theta, design)
        if self.support is None:
            return _log_normal(y.squeeze(-1), values, self.noise)
        shape = np.broadcast_shapes(y.shape[:-1], values.shape[:-1])
        chosen = y.expand(*shape, 1).long()
        return values.expand(*shape, values.shape[-1]).gather(-1, chosen).squeeze(-1)

    def simulate(self, theta: Tensor, design: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Outcomes ``... x 1``."""
        values = _looked_up(self._values, theta, design)
        if self.support is None:
            return (values + self.noise * _normal(values.shape, generator)).unsqueeze(-1)
        flat = torch.multinomial(values.exp().flatten(0, -2), 1, generator=generator)
        return flat.reshape(*values.shape[:-1], 1).double()


class EmulatorModel:
    """An expensive simulator that a surrogate stands for: what the surrogate does not know is part of the noise.

    ``y ~ N(m, v + noise^2)`` with the surrogate's mean ``m`` and variance ``v`` at ``(theta, design)``. Without ``v``, designs
    would be sought where the emulator errs. Its errors at different designs count as independent: a history at neighbouring
    designs then seems to tell a little more than it does.

    Args:
        surrogate: A function of ``theta`` and the design side by side, with one real output.
        parameters: ``sample(n, generator)``, and ``log_prior(theta)`` where particles are to move.
        noise: Standard deviation of a measurement.
    """

    reparametrized = True

    def __init__(self, surrogate: Any, parameters: ThetaSource, noise: float) -> None:
        self.surrogate, self.parameters, self.noise = surrogate, parameters, _positive(noise)
        for name in ("log_prior", "parameter_names"):
            if hasattr(parameters, name):
                setattr(self, name, getattr(parameters, name))

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """``n x p`` draws of the prior."""
        return self.parameters.sample(n, generator)

    def moments(self, theta: Tensor, design: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of an outcome, the emulator's uncertainty included."""
        lead = np.broadcast_shapes(theta.shape[:-1], design.shape[:-1])
        rows = torch.cat([theta.expand(*lead, -1), design.expand(*lead, -1)], dim=-1).flatten(0, -2)
        means, variances = [], []
        for part in rows.split(_ROWS):
            posterior = self.surrogate.posterior(part.unsqueeze(-2))
            means.append(posterior.mean.reshape(len(part), -1))
            variances.append(posterior.variance.reshape(len(part), -1))
        mean, variance = torch.cat(means), torch.cat(variances)
        if mean.shape[-1] != 1:
            raise ShapeError(f"the emulator has {mean.shape[-1]} outputs; an experiment measures one")
        return mean.reshape(lead), (variance.reshape(lead).clamp_min(0.0) + self.noise**2).sqrt()

    def log_prob(self, y: Tensor, theta: Tensor, design: Tensor) -> Tensor:
        """``log p(y | theta, design)``, the broadcast leading dimensions."""
        mean, sd = self.moments(theta, design)
        return _log_normal(y.squeeze(-1), mean, sd)

    def simulate(self, theta: Tensor, design: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Outcomes ``... x 1``."""
        mean, sd = self.moments(theta, design)
        return (mean + sd * _normal(mean.shape, generator)).unsqueeze(-1)


class DiscrepancyModel:
    """A simulator that is wrong: ``y ~ N(m(theta, design) + delta(design), noise^2)``, with a surrogate's function ``delta``.

    M. Kennedy and A. O'Hagan, "Bayesian calibration of computer models", JRSS B 2001. The last entry of ``theta`` is the number
    of one of ``K`` draws of ``delta``, so that outcomes at neighbouring designs share its error; it is a nuisance, and the
    information is about the other entries. It has no prior density: use ``posterior="importance"``.

    Args:
        mean: ``(theta, design)`` to the simulator's answers, the broadcast leading dimensions.
        parameters: ``sample(n, generator)``, of the simulator's parameters.
        discrepancy: A surrogate of ``delta``, of the design alone, with one real output; usually before any data.
        noise: Standard deviation of a measurement.
        num_functions: ``K``.
        generator: Of the draws, which are kept.
    """

    reparametrized = True

    def __init__(
        self,
        mean: Callable[[Tensor, Tensor], Tensor],
        parameters: ThetaSource,
        discrepancy: Any,
        noise: float,
        num_functions: int = 256,
        generator: torch.Generator | None = None,
    ) -> None:
        if num_functions < 2:
            raise InvalidOptionError(f"num_functions={num_functions}; at least two functions differ")
        self.mean, self.parameters, self.noise, self.num_functions = mean, parameters, _positive(noise), num_functions
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        draws = function_draws(discrepancy, num_functions, generator)
        self._values: Callable[[Tensor], Tensor] = lambda X: draws(X).squeeze(-1)
        names = getattr(parameters, "parameter_names", None)
        if names is not None:
            self.parameter_names = (*names, "discrepancy")

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """``n x (p + 1)`` draws of the prior."""
        return self._with_function(self.parameters.sample(n, generator), generator)

    def goal(self, theta: Tensor) -> Tensor:
        """The simulator's parameters, ``... x p``."""
        return theta[..., :-1]

    def nuisances(self, theta: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
        """The same parameters with ``n`` other discrepancies, ``n x ... x (p + 1)``."""
        return self._with_function(self.goal(theta).expand(n, *theta.shape[:-1], -1), generator)

    def _with_function(self, parameters: Tensor, generator: torch.Generator | None) -> Tensor:
        which = torch.randint(self.num_functions, (*parameters.shape[:-1], 1), generator=generator)
        return torch.cat([parameters, which.to(parameters)], dim=-1)

    def _centre(self, theta: Tensor, design: Tensor) -> Tensor:
        return self.mean(self.goal(theta), design) + _looked_up(self._values, theta[..., -1:], design)

    def log_prob(self, y: Tensor, theta: Tensor, design: Tensor) -> Tensor:
        """``log p(y | theta, discrepancy, design)``, the broadcast leading dimensions."""
        return _log_normal(y.squeeze(-1), self._centre(theta, design), self.noise)

    def simulate(self, theta: Tensor, design: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Outcomes ``... x 1``."""
        centre = self._centre(theta, design)
        return (centre + self.noise * _normal(centre.shape, generator)).unsqueeze(-1)


def _looked_up(values: Callable[[Tensor], Tensor], which: Tensor, design: Tensor) -> Tensor:
    """Every design under the function of its number: all functions are evaluated once at each design.

    Args:
        values: ``M x d`` to ``K x M (x C)``.
        which: ``... x 1``.
        design: ``... x d``.

    Returns:
        The broadcast leading dimensions, and those of a value behind them.
    """
    lead = np.broadcast_shapes(which.shape[:-1], design.shape[:-1])
    table = values(design.reshape(-1, design.shape[-1])).double()
    places = torch.arange(table.shape[1]).reshape(design.shape[:-1]).expand(lead)
    return table[which[..., 0].long().expand(lead), places]


def _log_normal(y: Tensor, mean: Tensor, sd: Tensor | float) -> Tensor:
    scale = torch.as_tensor(sd, dtype=torch.float64)
    return -0.5 * ((y - mean) / scale).square() - scale.log() - _LOG_ROOT


def _normal(shape: torch.Size, generator: torch.Generator | None) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _positive(noise: float) -> float:
    if not 0 < noise < math.inf:
        raise InvalidOptionError(f"noise={noise!r} is the standard deviation of a measurement; it is a positive number")
    return float(noise)
