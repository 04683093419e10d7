"""Does a sampler sample at the temperature that it claims? Kinetic and configurational temperature.

A sampler with momenta that targets ``exp(-U / T)`` has two averages that equal ``T`` (for any U, any P): ``v^2 / M`` over
all coordinates, because momenta are Gaussian, and ``theta . grad U / P``, by integration by parts. The first is wrong
where momenta are simulated badly (steps too large, friction too small for the gradient noise), the second where positions
are not at equilibrium yet. Gradients from minibatches keep the second unbiased, as long as the rows of the batch were
drawn independently of the position.

References: F. Wenzel et al., "How good is the Bayes posterior in deep neural networks really?", ICML 2020, appendix D;
B. Leimkuhler and C. Matthews, "Molecular Dynamics", Springer 2015.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from scipy import stats
from torch import Tensor

from seqbdl.diagnostics import _inputs
from seqbdl.diagnostics.convergence import DRAWS_FOR_ESS, monte_carlo_error
from seqbdl.errors import ShapeError


@dataclass(frozen=True)
class Temperature:
    """A temperature measured along chains.

    Attributes:
        values: ``draws x chains`` instantaneous temperatures, averages over coordinates.
        estimate: Their mean.
        standard_error: Monte Carlo standard error of the mean, which knows the chains' autocorrelation (by ArviZ).
        num_coordinates: Coordinates ``P`` that each instantaneous temperature averages over.
    """

    values: Tensor = field(repr=False)
    estimate: float
    standard_error: float
    num_coordinates: int

    def agrees(self, temperature: float = 1.0, errors: float = 3.0) -> bool:
        """Whether the estimate is within so many standard errors of that temperature."""
        return abs(self.estimate - temperature) <= errors * self.standard_error


def kinetic_temperature(momenta: Tensor, mass: Tensor | float = 1.0) -> Temperature:
    """Mean of ``v^2 / M`` over coordinates and draws; the temperature if momenta are simulated well.

    Args:
        momenta: ``draws x chains x P``, momenta ``v ~ N(0, T M)``. Velocities ``u = v / M`` go in as ``u * M``.
        mass: Diagonal of the mass matrix: a number, ``P``, or broadcastable to ``momenta``.

    Raises:
        ShapeError: Momenta are not ``draws x chains x P`` with at least 10 draws, or the mass does not fit.
        InvalidDataError: NaN, or a mass that is not positive.
    """
    v = _chains("momenta", momenta)
    diagonal = _inputs.positive("mass", torch.atleast_1d(torch.as_tensor(mass, dtype=v.dtype, device=v.device)))
    _inputs.broadcastable("mass", diagonal, "momenta", v)
    return _temperature(v.square() / diagonal)


def configurational_temperature(positions: Tensor, gradients: Tensor, centre: Tensor | None = None) -> Temperature:
    """Mean of ``(theta - c) . grad U(theta) / P`` over draws; the temperature if positions are at equilibrium.

    Args:
        positions: ``draws x chains x P``.
        gradients: ``draws x chains x P`` gradients at those positions of ``U``, the negative log joint at temperature
            one (sums over data, prior included), exact or from independent minibatches.
        centre: ``P`` (or broadcastable): any point ``c`` fixed beforehand. The average does not depend on it; near the
            mode it has the smallest Monte Carlo error. Zero, as in Wenzel et al., by default.

    Raises:
        ShapeError: The shapes differ, or there are fewer than 10 draws.
        InvalidDataError: NaN or infinite entries.
    """
    theta = _chains("positions", positions)
    gradient = _chains("gradients", gradients)
    _inputs.same_shape("positions", theta, "gradients", gradient)
    if centre is not None:
        origin = _inputs.finite("centre", centre)
        _inputs.broadcastable("centre", origin, "positions", theta)
        theta = theta - origin
    return _temperature(theta * gradient)


def kinetic_interval(num_coordinates: int, temperature: float = 1.0, level: float = 0.99) -> tuple[float, float]:
    """Where ONE instantaneous kinetic temperature of ``P`` coordinates lies with that probability, by chi-squared.

    ``P v^2 / (M T)`` has the chi-squared distribution with ``P`` degrees of freedom at equilibrium, so the temperature
    of a whole tensor of weights can be checked at any single step (Wenzel et al. 2020).
    """
    _inputs.at_least("num_coordinates", num_coordinates, 1)
    _inputs.level("level", level)
    low, high = stats.chi2.ppf([0.5 - 0.5 * level, 0.5 + 0.5 * level], num_coordinates) / num_coordinates
    return temperature * float(low), temperature * float(high)


def _chains(name: str, value: Tensor) -> Tensor:
    if isinstance(value, Tensor) and (value.dim() != 3 or value.shape[0] < DRAWS_FOR_ESS):
        raise ShapeError(
            f"{name} has shape {tuple(value.shape)}; it needs draws x chains x P with at least {DRAWS_FOR_ESS} draws. "
            f"One chain is {name}.unsqueeze(1)"
        )
    return _inputs.finite(name, value).detach()


def _temperature(products: Tensor) -> Temperature:
    values = products.mean(-1)
    return Temperature(
        values=values,
        estimate=float(values.mean()),
        standard_error=float(monte_carlo_error(values)),
        num_coordinates=products.shape[-1],
    )
