"""What an acquisition function is built from, and what it derives when it was not given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from botorch.acquisition.multi_objective.objective import (
    GenericMCMultiOutputObjective,
    IdentityMCMultiOutputObjective,
    MCMultiOutputObjective,
)
from botorch.acquisition.objective import ConstrainedMCObjective, IdentityMCObjective, MCAcquisitionObjective
from botorch.acquisition.utils import get_infeasible_cost
from botorch.models.model import Model
from botorch.sampling.base import MCSampler
from botorch.sampling.get_sampler import get_sampler
from botorch.utils.multi_objective.hypervolume import infer_reference_point
from botorch.utils.multi_objective.pareto import is_non_dominated
from torch import Tensor

from seqbdl.acquisition._models import posterior_of
from seqbdl.acquisition._random import sobol_points
from seqbdl.acquisition.draws import Optima, optimal_samples
from seqbdl.acquisition.outputs import OutputView
from seqbdl.acquisition.scores import Constraint, as_mc_objective, check_output_index, violation, with_optional_inputs
from seqbdl.errors import InvalidOptionError


@dataclass(frozen=True)
class AcquisitionContext:
    """Everything a factory of an acquisition function may ask for. The surrogate's outputs are to be maximized.

    Args:
        surrogate: A BoTorch model.
        name: The acquisition function's name, for messages.
        X_baseline: ``n x d`` points already observed; the surrogate's training inputs by default.
        best_f: The incumbent's value: a number, or ``"mean"`` (largest posterior mean over the baseline, the default)
            or ``"observed"`` (largest observed value, for outcomes without noise).
        bounds: ``2 x d``, of the surrogate's inputs.
        X_pending: ``k x d`` points asked for and not yet observed.
        constraints: Callables on samples ``... x q x m`` to ``... x q``; negative is feasible.
        objective: An output's index, a callable on samples, a BoTorch objective; for several objectives also a list of
            output indices.
        ref_point: Of the hypervolume, one number per objective, maximization; inferred from the baseline by default.
        mc_samples: Monte Carlo samples of the posterior.
        num_fantasies: Fantasies of look-ahead methods; each has its own default.
        beta: Of the upper confidence bound, mean + sqrt(beta) sd; 4 by default.
        candidates: ``N x d``, where only these points can be chosen.
        seed: Of every random choice made while building.
    """

    surrogate: Model
    name: str = ""
    X_baseline: Tensor | None = None
    best_f: float | str | Tensor | None = None
    bounds: Tensor | None = None
    X_pending: Tensor | None = None
    constraints: Sequence[Constraint] | None = None
    objective: Any = None
    ref_point: Tensor | Sequence[float] | None = None
    mc_samples: int = 128
    num_fantasies: int | None = None
    beta: float = 4.0
    candidates: Tensor | None = None
    seed: int = 0

    def error(self, problem: str) -> InvalidOptionError:
        """An error that begins with the acquisition function's name."""
        return InvalidOptionError(f"{self.name}: {problem}")

    # -- data ---------------------------------------------------------------------------------------------------

    @property
    def baseline(self) -> Tensor | None:
        """Observed points ``n x d``, or ``None`` before any data."""
        return self.X_baseline if self.X_baseline is not None else observed_inputs(self.surrogate)

    def need_baseline(self) -> Tensor:
        """Observed points ``n x d``; an error before any data."""
        baseline = self.baseline
        if baseline is None or baseline.shape[0] == 0:
            raise self.error("needs observed points; fit the surrogate first or pass X_baseline (n x d)")
        return baseline

    def need_bounds(self) -> Tensor:
        """``2 x d``: as given, else the box around the candidates."""
        if self.bounds is not None:
            return self.bounds
        if self.candidates is not None:
            return torch.stack([self.candidates.amin(dim=0), self.candidates.amax(dim=0)])
        raise self.error("needs bounds (2 x d) of the surrogate's inputs, or candidates (N x d)")

    def spread_points(self, n: int) -> Tensor:
        """``n x d`` points that fill the space: scrambled Sobol points, or evenly drawn candidates."""
        if self.candidates is not None:
            if self.candidates.shape[0] <= n:
                return self.candidates
            generator = torch.Generator().manual_seed(self.seed)
            keep = torch.randperm(self.candidates.shape[0], generator=generator)[:n]
            return self.candidates[keep.to(self.candidates.device)]
        return sobol_points(self.need_bounds(), n, self.seed).squeeze(-2)

    # -- models and objectives -----------------------------------------------------------------------------------

    def scalar(self) -> AcquisitionContext:
        """The same context on a surrogate that has the objective as its only output.

        Raises:
            InvalidOptionError: Constraints, or an objective that is not one output: the method needs the posterior of
                the objective itself, not only samples of it.
        """
        if self.constraints:
            raise self.error("does not take outcome constraints; use qLogEI, qLogNEI, qUCB, qSR or qKG")
        if self.objective is None:
            if self.surrogate.num_outputs > 1:
                as_mc_objective(None, self.surrogate.num_outputs)
            return self
        if not isinstance(self.objective, int):
            raise self.error("takes objective=<output index> only; for a callable use a q* method such as qLogNEI")
        index = check_output_index(self.objective, self.surrogate.num_outputs)
        if self.surrogate.num_outputs == 1:
            return replace(self, objective=None)
        return replace(self, surrogate=select_outputs(self.surrogate, [index]), objective=None, X_baseline=self.baseline)

    def scalar_if_possible(self) -> AcquisitionContext:
        """:meth:`scalar` for a plain output index, else the context itself."""
        if self.constraints or not (self.objective is None or isinstance(self.objective, int)):
            return self
        return self.scalar()

    def mc_objective(self) -> MCAcquisitionObjective | None:
        """The single objective for Monte Carlo acquisition functions."""
        return as_mc_objective(self.objective, self.surrogate.num_outputs)

    def constrained_objective(self) -> MCAcquisitionObjective | None:
        """Objective weighted by (smoothed) feasibility, for methods without constraints of their own."""
        objective = self.mc_objective()
        if not self.constraints:
            return objective
        inner = objective if objective is not None else IdentityMCObjective()
        X = self.baseline if self.baseline is not None else self.spread_points(64)
        cost = get_infeasible_cost(X=X, model=self.surrogate, objective=inner)
        return ConstrainedMCObjective(objective=inner, constraints=list(self.constraints), infeasible_cost=cost)

    def multi_objective(self) -> MCMultiOutputObjective | None:
        """Several objectives for hypervolume methods; ``None`` where every output is one.

        With constraints and no objective, the first ``len(ref_point)`` outputs are the objectives.
        """
        m = self.surrogate.num_outputs
        if isinstance(self.objective, MCMultiOutputObjective):
            return self.objective
        if isinstance(self.objective, (list, tuple)):
            indices = [check_output_index(int(i), m) for i in self.objective]
        elif self.objective is None:
            if self.constraints and self.ref_point is None:
                raise self.error("has constraints; pass objective=[indices of the outputs to maximize]")
            indices = list(range(m if self.ref_point is None else len(self.ref_point)))
        elif callable(self.objective):
            return GenericMCMultiOutputObjective(with_optional_inputs(self.objective))
        else:
            raise self.error(f"objective is {self.objective!r}; pass a list of two or more output indices")
        if len(indices) < 2:
            raise self.error(f"needs two or more objectives, the surrogate offers {len(indices)}; use qLogNEI for one")
        if indices == list(range(m)):
            return None
        return IdentityMCMultiOutputObjective(outcomes=indices, num_outcomes=m)

    # -- derived quantities --------------------------------------------------------------------------------------

    def baseline_means(self) -> Tensor:
        """Posterior mean over the baseline, ``n x m``."""
        with torch.no_grad():
            return cast(Tensor, posterior_of(self.surrogate, self.need_baseline()).mean)

    def baseline_outcomes(self) -> Tensor:
        """What the incumbent is measured by, ``n x m``: posterior means, or the observed values if so asked."""
        if self.best_f == "observed":
            targets = observed_outcomes(self.surrogate)
            if targets is None or self.X_baseline is not None:
                raise self.error('best_f="observed" needs the surrogate\'s own training targets; pass best_f as a number')
            return targets
        return self.baseline_means()

    def incumbent(self) -> Tensor:
        """The best feasible objective value, a 0-d tensor; below all values where nothing is feasible yet."""
        if isinstance(self.best_f, (int, float, Tensor)):
            like = self.bounds if self.bounds is not None else self.baseline
            dtype = torch.get_default_dtype() if like is None else like.dtype
            return torch.as_tensor(self.best_f, dtype=dtype, device=None if like is None else like.device)
        if isinstance(self.best_f, str) and self.best_f not in ("mean", "observed"):
            raise self.error(f'best_f={self.best_f!r}; pass a number, "mean" or "observed"')
        outcomes = self.baseline_outcomes()
        objective = self.mc_objective()
        values = outcomes[..., 0] if objective is None else objective(outcomes, self.baseline)
        excess = violation(outcomes, self.constraints)
        if excess is None or bool((excess <= 0).all()):
            return values.max()
        if bool((excess <= 0).any()):
            return values[excess <= 0].max()
        return values.min() - (values.max() - values.min()).clamp_min(1.0)

    def reference_point(self) -> Tensor:
        """As given, else 0.1 of the front's range below the worst point of the feasible front of the baseline."""
        if self.ref_point is not None:
            like = self.need_baseline()
            return torch.as_tensor(self.ref_point, dtype=like.dtype, device=like.device)
        outcomes = self.objective_means()
        front = outcomes[is_non_dominated(outcomes)]
        return infer_reference_point(pareto_Y=front)

    def objective_means(self) -> Tensor:
        """Objective values of the baseline's feasible posterior means, all of them where none is feasible."""
        means = self.baseline_means()
        objective = self.multi_objective()
        values = means if objective is None else objective(means)
        excess = violation(means, self.constraints)
        if excess is None or not bool((excess <= 0).any()):
            return values
        return values[excess <= 0]

    def sampler(self, n: int | None = None, observation_noise: bool = False, seed_offset: int = 0) -> MCSampler:
        """A sampler with fixed base samples for this surrogate's kind of posterior."""
        with torch.no_grad():
            point = self.some_point()
            posterior = posterior_of(self.surrogate, point, observation_noise=observation_noise)
        count = self.mc_samples if n is None else n
        return get_sampler(posterior, torch.Size([count]), seed=self.seed + seed_offset)

    def some_point(self) -> Tensor:
        """Any one input, ``1 x d``."""
        baseline = self.baseline
        return baseline[:1] if baseline is not None and baseline.shape[0] > 0 else self.spread_points(1)

    def optima(self, n: int) -> Optima:
        """``n`` samples of the optimum by maximized function draws."""
        generator = torch.Generator().manual_seed(self.seed)
        return optimal_samples(
            self.surrogate,
            self.need_bounds(),
            n,
            generator,
            candidates=self.candidates,
            start=self.baseline,
        )


def select_outputs(model: Model, indices: list[int]) -> Model:
    """Those outputs as a model that can fantasize."""
    return OutputView(model, indices) if hasattr(model, "sample_functions") else model.subset_output(indices)


def observed_inputs(model: Model) -> Tensor | None:
    """Training inputs ``n x d`` of a surrogate, BoTorch model or list of models; ``None`` before data."""
    inputs: Any = getattr(model, "train_inputs", None)
    while isinstance(inputs, (tuple, list)):
        if not inputs:
            return None
        inputs = inputs[0]
    if inputs is None:
        models: Any = getattr(model, "models", None)
        return observed_inputs(models[0]) if models else None
    tensor = cast(Tensor, inputs)
    # BoTorch's multi-output GPs repeat the inputs for every output.
    return tensor.reshape(-1, *tensor.shape[-2:])[0].detach()


def observed_outcomes(model: Model) -> Tensor | None:
    """Training targets ``n x m`` in the user's units where the model offers them in that shape."""
    targets: Any = getattr(model, "train_targets", None)
    if not isinstance(targets, Tensor) or getattr(model, "outcome_transform", None) is not None:
        return None
    if targets.dim() == 1:
        return targets.unsqueeze(-1).detach()
    return targets.detach() if targets.shape[-1] == model.num_outputs else None
