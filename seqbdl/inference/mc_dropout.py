"""Dropout as approximate inference (Gal and Ghahramani 2016).

The approximation's functions are ``f(x; z * m)``, ``m`` the factors on whitened weights that switch units off with probability
``p`` and divide what remains by ``1 - p``. Its free energy, up to terms that do not move ``z``, is::

    - sum_n E_m log p(y_n | f(x_n; z * m)) + 1/2 sum_i c_i z_i^2

where ``c_i = 1 / (1 - p)`` for weights that leave a unit, ``(1 - p)`` times the square of ``z_i / (1 - p)``, and 1 for all
others: the paper's L2 terms under the prior ``N(0, I)``. Training draws masks afresh for every row and step, which leaves the
gradient unbiased and its rows independent; a FUNCTION has one mask for all inputs, drawn once and kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.adam import AdamSettings, adam, gradient_of
from seqbdl.inference.log_joint import LogJoint
from seqbdl.networks import Network
from seqbdl.networks.dropout import dropout_forward, weight_factors


@dataclass(frozen=True)
class DropoutSettings:
    """Attributes:
    steps: Of Adam.
    learning_rate: Of the first; it falls to zero along a half cosine.
    batch_size: Rows per step.
    input_rate: Probability that an input is off.
    """

    steps: int = 400
    learning_rate: float = 1e-2
    batch_size: int = 64
    input_rate: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1 or not self.learning_rate > 0.0:
            raise InvalidOptionError(
                f"steps={self.steps} and batch_size={self.batch_size} must be at least 1, "
                f"learning_rate={self.learning_rate} positive"
            )
        if not 0.0 <= self.input_rate < 1.0:
            raise InvalidOptionError(f"input_rate={self.input_rate} is a probability below 1")


def draw_keep(shape: tuple[int, ...], rates: Tensor, generator: torch.Generator) -> Tensor:
    """Factors ``1 / (1 - p)`` or, with probability ``p``, 0.

    Args:
        shape: Of the factors.
        rates: ``p``, broadcastable to ``shape``.
        generator: Source of randomness.
    """
    kept = torch.rand(shape, generator=generator, dtype=torch.float64).to(rates.device) >= rates
    return kept / (1 - rates)


def decay(network: Network, rates: Tensor, input_rate: float) -> Tensor:
    """``c``, ``S x P``.

    Args:
        network: The network.
        rates: ``S``, probabilities that a hidden unit is off.
        input_rate: Probability that an input is off.
    """
    S = rates.shape[0]
    scale = (1 / (1 - rates)).unsqueeze(-1)
    inputs = None if input_rate == 0.0 else rates.new_full((S, network.input_dim), 1 / (1 - input_rate))
    return weight_factors(network, scale.expand(S, network.num_units), inputs)


def mc_dropout(
    log_joint: LogJoint,
    start: Tensor,
    rates: Tensor,
    settings: DropoutSettings,
    generator: torch.Generator,
    row_weights: Tensor | None = None,
) -> Tensor:
    """Weights that minimize the free energy, one vector per dropout rate.

    Args:
        log_joint: Its prior is not used: the whitened weights' ``N(0, I)`` is, see the head of this file.
        start: ``S x P``.
        rates: ``S``, each in [0, 1).
        settings: Of the descent.
        generator: Draws masks and orders rows.
        row_weights: ``S x N``, what the rows weigh for each, such as 0 for held-out ones; ``None``: one.

    Returns:
        ``S x P``.
    """
    network, likelihood = log_joint.network, log_joint.likelihood
    S, d, U = start.shape[0], network.input_dim, network.num_units
    coefficients = decay(network, rates, settings.input_rate)
    input_rate = rates.new_full((1,), settings.input_rate)

    def loss(z: Tensor, rows: Tensor | None) -> Tensor:
        X, Y, noise, factor = log_joint.rows(rows)
        n = X.shape[0]
        keep = draw_keep((S, n, U), rates[:, None, None], generator)
        inputs = None if settings.input_rate == 0.0 else draw_keep((S, n, d), input_rate, generator)
        terms = likelihood.log_prob(dropout_forward(network, z, X, keep, inputs), Y, noise)
        if row_weights is not None:
            terms = terms * (row_weights if rows is None else row_weights[:, rows])
        return -factor * terms.sum(-1) + 0.5 * (coefficients * z.square()).sum(-1)

    adam_settings = AdamSettings(steps=settings.steps, learning_rate=settings.learning_rate, batch_size=settings.batch_size)
    return adam(gradient_of(loss), start, log_joint.num_rows, adam_settings, generator)
