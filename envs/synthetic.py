"""Problems with a formula: BoTorch's test functions, a random network, and a few effective dimensions among many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from botorch import test_functions
from botorch.test_functions import synthetic as single_objective
from botorch.test_functions.base import BaseTestProblem, ConstrainedBaseTestProblem, MultiObjectiveTestProblem
from gymnasium import spaces
from torch import Tensor

from seqbdl.envs.base import Array, DecisionEnv, Evaluation, integer, mapping, real


class TestFunctionEnv(DecisionEnv):
    """Any BoTorch test problem as an environment: noise and orientation are handled here, not in the problem.

    Args:
        problem: an instance built with `negate=False` and without noise, on the CPU.
        noise_std: standard deviation of the Gaussian noise: one for all objectives, or one for each.
        constraint_noise_std: the same for the constraints.

    The reward is the objective when BoTorch maximizes it by default, and its negative otherwise. Constraints are
    BoTorch's slacks with the sign turned: feasible when `<= 0`. Problems with integer inputs get a `Dict` space. With
    several objectives, `info["true_outcomes"]` holds them without noise, and `max_hypervolume` is the best to be had.
    """

    __test__ = False  # its name would make pytest collect it

    def __init__(
        self,
        problem: BaseTestProblem,
        noise_std: float | Sequence[float] = 0.0,
        constraint_noise_std: float | Sequence[float] = 0.0,
    ) -> None:
        if not isinstance(problem, BaseTestProblem):
            raise ValueError(f"problem: a {type(problem).__name__}; give an instance of a BoTorch test problem.")
        if problem.negate or problem.noise_std is not None:
            raise ValueError(
                "problem: it negates or adds noise itself; build it with negate=False and noise_std=None, and give "
                "noise_std to the environment."
            )
        self.problem = problem
        self._sign = -1.0 if problem._is_minimization_by_default else 1.0
        self._integers = sorted({*problem.discrete_inds, *problem.categorical_inds})
        bounds = cast(Tensor, problem.bounds).detach().numpy().astype(np.float64)
        names = [f"x{i + 1}" for i in range(problem.dim)]
        num_outcomes = int(getattr(problem, "num_objectives", 1))
        num_constraints = int(problem.num_constraints) if isinstance(problem, ConstrainedBaseTestProblem) else 0
        self.noise_std = _noise_std("noise_std", noise_std, num_outcomes)
        self.constraint_noise_std = _noise_std("constraint_noise_std", constraint_noise_std, num_constraints)
        self.max_hypervolume: float | None = None
        ref_point = None
        if isinstance(problem, MultiObjectiveTestProblem):
            ref_point = self._sign * cast(Tensor, problem.ref_point).detach().numpy().astype(np.float64)
            self.max_hypervolume = problem._max_hv
        super().__init__(
            _space(bounds, names, self._integers),
            parameter_names=names,
            categories={
                names[i]: [str(k) for k in range(int(bounds[0, i]), int(bounds[1, i]) + 1)] for i in problem.categorical_inds
            },
            outcome_names=["objective"] if num_outcomes == 1 else [f"objective{j + 1}" for j in range(num_outcomes)],
            num_constraints=num_constraints,
            optimal_value=self._optimum(),
            ref_point=ref_point,
        )

    def _optimum(self) -> float | None:
        if isinstance(self.problem, MultiObjectiveTestProblem):
            return None
        value = getattr(self.problem, "_optimal_value", None)
        return None if value is None else self._sign * float(value)

    def _evaluate(self, point: Any) -> Evaluation:
        values = list(point.values()) if isinstance(point, dict) else point
        x = torch.as_tensor(np.asarray(values, dtype=np.float64)).unsqueeze(0)
        with torch.no_grad():
            true = self._sign * self.problem.evaluate_true(x).reshape(-1).numpy().astype(np.float64)
            constraints = None
            if isinstance(self.problem, ConstrainedBaseTestProblem):
                constraints = -self.problem.evaluate_slack_true(x).reshape(-1).numpy().astype(np.float64)
                constraints = self._noisy(constraints, self.constraint_noise_std)
        extra = {"true_outcomes": true.copy()} if self.num_outcomes > 1 else {}
        noisy = self._noisy(true, self.noise_std)
        return Evaluation(noisy, float(true.mean()), constraints, self.noise_std**2, None, extra)

    def _noisy(self, values: Array, std: Array) -> Array:
        return values + std * self.np_random.standard_normal(len(values)) if std.any() else values


class SyntheticEnv(TestFunctionEnv):
    """One of BoTorch's test functions by name.

    Args:
        function: the class's name in `botorch.test_functions`, such as `"Hartmann"`.
        noise_std, constraint_noise_std: as in `TestFunctionEnv`.
        **options: arguments of the class, such as `dim=`.
    """

    def __init__(
        self,
        function: str = "Branin",
        noise_std: float | Sequence[float] = 0.0,
        constraint_noise_std: float | Sequence[float] = 0.0,
        **options: Any,
    ) -> None:
        kind = getattr(test_functions, function, None) or getattr(single_objective, function, None)
        if not (isinstance(kind, type) and issubclass(kind, BaseTestProblem)):
            raise ValueError(f"function: {function!r} is no test problem of BoTorch; see botorch.test_functions.")
        super().__init__(kind(**options), noise_std, constraint_noise_std)


class _FormulaEnv(DecisionEnv):
    """A problem on a box whose noise-free value is `_value`."""

    def __init__(self, low: Array, high: Array, noise_std: float, optimal_value: float | None = None) -> None:
        self.noise_std = _noise_std("noise_std", noise_std, 1)
        super().__init__(
            spaces.Box(low, high, dtype=np.float64),
            parameter_names=[f"x{i + 1}" for i in range(len(low))],
            optimal_value=optimal_value,
        )

    def _value(self, x: Array) -> float:
        raise TypeError(f"{type(self).__name__} defines no value.")

    def _evaluate(self, point: Array) -> Evaluation:
        value = self._value(point)
        noise = self.noise_std * self.np_random.standard_normal(1) if self.noise_std.any() else np.zeros(1)
        return Evaluation(value + noise, value, None, self.noise_std**2)


class NetworkDrawEnv(_FormulaEnv):
    """A random tanh network `dim -> 256 -> 256 -> 1` on `[0, 1]^dim`, all weights drawn from N(0, 1).

    With `dim=400, seed=2` this is the 400-dimensional network draw of Li, Rudner and Wilson (2023, "A study of Bayesian
    neural network surrogates for Bayesian optimization"), bit for bit. The optimum is not known; gradient ascent
    reaches about 99.9. The generator is local: the global one is neither read nor seeded.
    """

    def __init__(self, dim: int = 400, seed: int = 2, noise_std: float = 0.0) -> None:
        if dim < 1:
            raise ValueError(f"dim: {dim}; give a positive number of inputs.")
        generator = torch.Generator().manual_seed(seed)
        widths = [dim, 256, 256, 1]
        shapes = [shape for a, b in pairwise(widths) for shape in ((b, a), (b,))]
        # The published draw starts after torch.nn.Linear has initialized each of these once: use up as many numbers.
        for shape in shapes:
            torch.empty(shape, dtype=torch.float64).uniform_(-1, 1, generator=generator)
        sizes = [math.prod(shape) for shape in shapes]
        theta = torch.randn(sum(sizes), dtype=torch.float64, generator=generator)
        self._weights = [w.reshape(s).numpy() for w, s in zip(theta.split(sizes), shapes, strict=True)]
        super().__init__(np.zeros(dim), np.ones(dim), noise_std)

    def _value(self, x: Array) -> float:
        w1, b1, w2, b2, w3, b3 = self._weights
        hidden = np.tanh(w2 @ np.tanh(w1 @ x + b1) + b2)
        return float((w3 @ hidden + b3)[0])


class EmbeddedHartmannEnv(_FormulaEnv):
    """Hartmann's function of six inputs, hidden among `dim` inputs of which the others do nothing.

    Args:
        dim: number of inputs, at least 6, on `[0, 1]^dim`.
        active: the six inputs that matter; by default spread evenly over all.
        noise_std: standard deviation of the noise.
    """

    def __init__(self, dim: int = 60, active: Sequence[int] | None = None, noise_std: float = 0.0) -> None:
        if dim < 6:
            raise ValueError(f"dim: {dim}; give at least 6 inputs.")
        self.active = tuple(active) if active is not None else tuple(i * dim // 6 for i in range(6))
        if len(set(self.active)) != 6 or not all(0 <= i < dim for i in self.active):
            raise ValueError(f"active: {list(self.active)}; give six different indices from 0 to {dim - 1}.")
        self._hartmann = test_functions.Hartmann(dim=6)
        super().__init__(np.zeros(dim), np.ones(dim), noise_std, -float(self._hartmann.optimal_value))

    def _value(self, x: Array) -> float:
        return -float(self._hartmann.evaluate_true(torch.as_tensor(x[list(self.active)])[None]).item())


def _space(bounds: Array, names: Sequence[str], integers: Sequence[int]) -> spaces.Space[Any]:
    """A box, or a dictionary when some inputs are integers."""
    if not integers:
        return spaces.Box(bounds[0], bounds[1], dtype=np.float64)
    parts: dict[str, spaces.Space[Any]] = {}
    for i, name in enumerate(names):
        low, high = bounds[:, i]
        parts[name] = integer(int(low), int(high)) if i in integers else real(float(low), float(high))
    return mapping(parts)


def _noise_std(name: str, value: float | Sequence[float], length: int) -> Array:
    """`value` as `length` standard deviations."""
    std = np.asarray(value, dtype=np.float64)
    if std.ndim > 1 or (std.ndim == 1 and len(std) != length):
        raise ValueError(f"{name}: shape {std.shape}; give one number, or {length} numbers.")
    if not (np.isfinite(std) & (std >= 0)).all():
        raise ValueError(f"{name}: {value!r}; give finite numbers that are not negative.")
    return np.broadcast_to(std, (length,)).copy()
