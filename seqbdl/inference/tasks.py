"""Learning one task after the other, as pure functions: what a method carries from one to the next, and how it learns.

A method turns the memory of earlier tasks and the rows of a new one into a new memory. All losses are SUMS over rows: papers
that average have other strengths, as each method's file says. Weights are whitened, and the first prior is ``N(0, I)``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.adam import AdamSettings, Gradient, adam
from seqbdl.inference.gauss_newton import GaussNewtonSettings, minimize
from seqbdl.inference.laplace import Rows
from seqbdl.likelihoods import Likelihood
from seqbdl.networks import AffineNetwork, Network
from seqbdl.posteriors.gaussian_weights import GaussianWeights
from seqbdl.posteriors.kronecker import Kronecker
from seqbdl.posteriors.operators import Dense, Diagonal, PositiveOperator, operator_from_tree

EXACT_SIZE = 400
"""Weights up to which Gauss-Newton finds modes, of linear networks to rounding; beyond, Adam."""

_NEWTON = GaussNewtonSettings(max_iterations=60)


@dataclass(frozen=True)
class HeldRows:
    """Rows that are kept, inputs ``n x d`` in the unit cube, outcomes ``n x t`` and noise variances ``n x m``."""

    X: Tensor
    Y: Tensor
    noise: Tensor

    @classmethod
    def of(cls, rows: Rows, index: Tensor) -> HeldRows:
        """Some of the rows."""
        return cls(rows.X[index], rows.Y[index], rows.noise[index])


@dataclass(frozen=True)
class TaskMemory:
    """What is carried.

    Attributes:
        z: ``P``, the weights that answer.
        spread: Precision of the weights around ``z``; ``None``: they are a point.
        prior: What holds weights while the next task is learned: a mean ``P`` and a precision (of penalties by themselves,
            without the first prior: the precision may be zero).
        held: The rows that are kept of each task.
        counts: Of a Kronecker-factored precision, per block (see :class:`seqbdl.inference.curvature.WeightSpace`).
    """

    z: Tensor
    spread: PositiveOperator | None
    prior: GaussianWeights
    held: tuple[HeldRows, ...] = ()
    counts: Tensor | None = None

    def draws(self, white: Tensor) -> Tensor:
        """Weights that answer, from standard normals: ``S x P``."""
        return self.z.expand_as(white) if self.spread is None else self.z + self.spread.inverse_root(white)

    def tree(self) -> dict[str, Any]:
        """Tensors and plain values, for saving."""
        return {
            "z": self.z,
            "spread": None if self.spread is None else self.spread.tree(),
            "prior": self.prior.tree(),
            "held": [dict(rows.__dict__) for rows in self.held],
            "counts": self.counts,
        }

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> TaskMemory:
        """Restore :meth:`tree`."""
        spread = None if tree["spread"] is None else operator_from_tree(tree["spread"])
        held = tuple(HeldRows(**rows) for rows in tree["held"])
        return cls(tree["z"], spread, GaussianWeights.from_tree(tree["prior"]), held, tree["counts"])


@dataclass(frozen=True)
class TaskMethod(ABC):
    """How tasks are learned one after the other.

    Attributes:
        descent: Adam's steps for every task, equally many whatever its size.
    """

    descent: AdamSettings = field(default_factory=lambda: AdamSettings(steps=1000, learning_rate=0.02, batch_size=256))

    rate: ClassVar[float] = 0.02
    """A learning rate that suits the method on thousands of rows."""

    linearized: ClassVar[bool] = False
    """Whether functions are those of the network linearized at ``z``."""

    def begin(self, network: Network, generator: torch.Generator, like: Tensor) -> TaskMemory:
        """Before any data: random weights, and the first prior."""
        z = torch.randn(network.num_params, generator=generator, dtype=torch.float64).to(like)
        prior = first_prior(z)
        return TaskMemory(z, prior.precision, prior)

    @abstractmethod
    def learn(self, network: Network, rows: Rows, memory: TaskMemory, generator: torch.Generator) -> TaskMemory:
        """The memory after one more task.

        Args:
            network: Over whitened weights.
            rows: Of the task.
            memory: Before it; does not change.
            generator: Of all randomness.
        """

    def tempered(self, memory: TaskMemory, temper: float, inflate: float = 0.0) -> TaskMemory:
        """The memory whose prior is ``q^b p0^(1 - b)``, the natural parameters mixed, with the covariance times ``1 + a``.

        Args:
            memory: It does not change.
            temper: ``b``, in [0, 1].
            inflate: ``a``.
        """
        precision = fortified(memory.prior.precision, temper)
        mean = precision.solve(temper * memory.prior.precision.matmul(memory.prior.mean))
        if inflate:
            precision = scaled(precision, 1.0 / (1.0 + inflate))
        return replace(
            memory, z=mean, spread=None if memory.spread is None else precision, prior=GaussianWeights(mean, precision)
        )


def first_prior(like: Tensor) -> GaussianWeights:
    """``N(0, I)``."""
    return GaussianWeights(torch.zeros_like(like), Diagonal(torch.ones_like(like)))


def off_zero(z: Tensor, generator: torch.Generator) -> Tensor:
    """``P`` weights, those at exactly zero (where a tempered prior leaves them) drawn anew: from zero no gradient leads out."""
    fresh = torch.randn(z.shape[0], generator=generator, dtype=torch.float64).to(z)
    return torch.where(z == 0.0, fresh, z)


def penalized_mode(
    network: Network,
    rows: Rows,
    start: Tensor,
    held_by: GaussianWeights,
    descent: AdamSettings,
    generator: torch.Generator,
    more: Gradient | None = None,
    active: Tensor | None = None,
) -> Tensor:
    """The weights that minimize ``-sum_n log p(y_n | z) + 1/2 (z - a)^T A (z - a)`` plus another term, ``P``.

    Args:
        network: Over whitened weights.
        rows: The data.
        start: ``P``.
        held_by: ``a`` and ``A``.
        descent: Adam's steps, where the problem is too large for Gauss-Newton or there is another term.
        generator: Orders mini-batches.
        more: The other term's gradient.
        active: ``P``, the weights that Adam moves; by default those on which a row depends.
    """
    precision, centre = held_by.precision, held_by.mean.unsqueeze(0)
    start = off_zero(start, generator)
    if more is None and network.num_params <= EXACT_SIZE:
        whitened = AffineNetwork(network, centre, precision.inverse_root, precision.inverse_root_transposed, precision.size)
        u = precision.root_transposed(start.unsqueeze(0) - centre)
        found = minimize(whitened, rows.X, rows.observations, torch.zeros_like(u), u, _NEWTON).z
        return whitened.weights(found)[0]
    active = network.active_weights(rows.X) if active is None else active  # heads of other tasks stay where they are
    slope = likelihood_gradient(network, rows)

    def gradient(z: Tensor, index: Tensor | None) -> Tensor:
        total = precision.matmul(z - centre) + slope(z, index)
        if more is not None:
            total = total + more(z, index)
        return total * active

    return adam(gradient, start.unsqueeze(0), rows.X.shape[0], descent, generator)[0]


def likelihood_gradient(network: Network, rows: Rows) -> Gradient:
    """The gradient of minus the log likelihood of all rows (of a mini-batch: an unbiased estimate), ``S x P``; networks that know
    their layers are evaluated in single precision."""
    data = in_single_precision(network, rows)

    def gradient(z: Tensor, index: Tensor | None) -> Tensor:
        part = data if index is None else data.pick(index)
        f, back = network.pullback(z.to(part.X.dtype), part.X)
        score = data.likelihood.score(f, part.Y, part.noise)
        return -(data.X.shape[0] / part.X.shape[0]) * back(score).to(z.dtype)

    return gradient


def in_single_precision(network: Network, rows: Rows) -> Rows:
    """The rows in the floating-point type in which descents evaluate this network."""
    kind = torch.float32 if network.matrix_free else rows.X.dtype
    return Rows(rows.likelihood, rows.X.to(kind), rows.Y.to(kind), rows.noise.to(kind))


def joined(likelihood: Likelihood, held: tuple[HeldRows, ...]) -> Rows:
    """All kept rows as one set."""
    X, Y, noise = (torch.cat([getattr(part, name) for part in held]) for name in ("X", "Y", "noise"))
    return Rows(likelihood, X, Y, noise)


def fortified(precision: PositiveOperator, factor: float) -> PositiveOperator:
    """``I + c (A - I)``: what was learned beyond the first prior counts ``c`` times.

    Raises:
        InvalidOptionError: The structure has no such multiple.
    """
    return _affine(precision, factor, 1.0 - factor)


def scaled(precision: PositiveOperator, factor: float) -> PositiveOperator:
    """``c A``."""
    return _affine(precision, factor, 0.0)


def _affine(A: PositiveOperator, factor: float, shift: float) -> PositiveOperator:
    if factor == 1.0 and shift == 0.0:
        return A
    if isinstance(A, Diagonal):
        return Diagonal(factor * A.entries + shift)
    if isinstance(A, Dense):
        return Dense.of(factor * A.dense() + shift * torch.eye(A.size).to(A.factor))
    if isinstance(A, Kronecker):
        blocks = A.blocks
        return Kronecker(tuple(replace(b, left_values=factor * b.left_values, shift=factor * b.shift + shift) for b in blocks))
    raise InvalidOptionError(f"a {A.kind} precision has no multiple here")
