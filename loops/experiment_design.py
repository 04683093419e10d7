"""Bayesian experimental design as a memory that is asked and told."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from seqbdl.acquisition.eig import Bounds, DesignModel, information_of_history
from seqbdl.acquisition.policies import DesignBox, DesignPolicy
from seqbdl.errors import InvalidDataError, InvalidOptionError, InvalidSpaceError, ShapeError
from seqbdl.loops.design_history import DesignHistory, interval
from seqbdl.loops.design_policy import check_policy
from seqbdl.loops.design_posteriors import (
    AmortizedPosterior,
    DesignPosterior,
    GridPosterior,
    ParticlePosterior,
    moments,
    posterior_from_tree,
    quantiles,
)
from seqbdl.loops.design_search import DesignSettings, GivenHistory, Propose, WithPending, best_design
from seqbdl.loops.design_space import design_box, design_space
from seqbdl.loops.history import COMPLETE, FAILED, Record
from seqbdl.loops.settings import check_state
from seqbdl.loops.space import Point
from seqbdl.serialization import generator_state

STATE_VERSION = 1
POSTERIORS = ("auto", "grid", "particles", "importance", "amortized")
LEVELS = (0.025, 0.5, 0.975)


class ExperimentDesignLoop:
    """Ask where to measure, tell what was measured; what is known about the model's parameters chooses the next design.

    The posterior after every outcome is the prior of the next choice. Designs that were asked and not yet told are pending:
    later asks look for what tells most together with them.

    Args:
        model: What the experiment is thought to be: ``sample(n, generator)``, ``log_prob(y, theta, design)`` and
            ``simulate(theta, design, generator)``, see :class:`seqbdl.acquisition.eig.DesignModel`.
        space: The designs: a :class:`Space` of numbers, an array of candidates ``D x d``, or a Gymnasium environment.
        posterior: ``"particles"`` (sequential Monte Carlo; needs ``log_prior``), ``"grid"`` (exact, for up to three parameters;
            needs ``log_prior`` and ``grid``), ``"importance"`` (reweighted prior draws, honest up to about ``log(num_particles)
            - 3`` nats in all), ``"amortized"`` (prior draws weighted by the critic of a policy; for simulators), or ``"auto"``:
            a grid when one is given, else particles where the model has ``log_prior``.
        grid: One increasing axis for each parameter.
        num_particles: Particles, or prior draws; 4096 by default, for ``"importance"`` 100,000, for
            ``"amortized"`` 10,000.
        moves: Metropolis steps after each resampling of particles.
        propose: ``(posterior, n, generator) -> n x d``: candidates of your own, of which those outside the space are refused.
        policy: A trained network that answers at once, from all that was told; see :func:`seqbdl.loops.train_policy`. Nothing
            is searched then, and one design is asked at a time.
        settings: How designs are searched; further keywords replace single ones, see
            :class:`seqbdl.loops.design_search.DesignSettings`.
        outcome_names: Of what is measured, in the order of the model's ``y``; those of an environment, else ``"outcome"``.
        seed: Of everything random.

    Raises:
        InvalidOptionError: Settings that contradict each other, or that the model does not allow.
        InvalidSpaceError: Designs that are not numbers.
    """

    def __init__(
        self,
        model: DesignModel,
        space: Any,
        posterior: str = "auto",
        *,
        grid: Sequence[Any] | None = None,
        num_particles: int | None = None,
        moves: int = 10,
        propose: Propose | None = None,
        policy: DesignPolicy | None = None,
        settings: DesignSettings | None = None,
        outcome_names: Sequence[str] | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        critic = None if policy is None else policy.critic
        for name in ("sample", "simulate", *(() if critic is not None else ("log_prob",))):
            if not callable(getattr(model, name, None)):
                raise InvalidOptionError(
                    f"the model has no method {name}; it needs sample, simulate and log_prob (a simulator alone: a policy= that "
                    "was trained with a critic)"
                )
        self.model = model
        self.space, self.design_names = design_space(space)
        self._box = design_box(self.space)
        self.settings = settings if settings is not None else DesignSettings()
        unknown = [name for name in options if name not in DesignSettings.__dataclass_fields__]
        if unknown:
            known = ", ".join(DesignSettings.__dataclass_fields__)
            raise InvalidOptionError(f"unknown option {unknown[0]!r}; the settings of the search are {known}")
        if options:
            self.settings = DesignSettings(**{**self.settings.__dict__, **options})
        self.propose, self.policy, self.seed = propose, policy, seed
        if policy is not None:
            check_policy(policy, self.space)
        if self.settings.optimizer == "gradient":
            _check_ascent(self._box, model)
        self.generator = torch.Generator().manual_seed(seed)
        self._kind, self.posterior = self._prior(posterior, grid, num_particles, moves)
        if outcome_names is None:
            outcome_names = getattr(getattr(space, "unwrapped", None), "outcome_names", ("outcome",))
        self.history = DesignHistory(self.design_names, outcome_names)
        self._rounds = 0
        self._told: list[int] = []
        self.last_bounds: Bounds | None = None

    def _prior(self, kind: str, grid: Any, count: int | None, moves: int) -> tuple[str, DesignPosterior]:
        if kind not in POSTERIORS:
            raise InvalidOptionError(f"posterior={kind!r} is not one of {', '.join(map(repr, POSTERIORS))}")
        explicit = callable(getattr(self.model, "log_prob", None))
        if kind == "auto" and grid is not None:
            kind = "grid"
        elif kind == "auto":
            kind = "amortized" if not explicit else "particles" if hasattr(self.model, "log_prior") else "importance"
        if kind != "amortized" and not explicit:
            raise InvalidOptionError(f"posterior={kind!r} needs a model with log_prob; a simulator alone takes 'amortized'")
        if (kind == "grid") != (grid is not None):
            raise InvalidOptionError(f"posterior={kind!r} with grid={'given' if grid is not None else None}; they go together")
        if count is not None and count < 2:
            raise InvalidOptionError(f"num_particles={count}; it is a number of at least 2")
        if grid is not None:
            return kind, GridPosterior.from_axes(self.model, [torch.as_tensor(axis, dtype=torch.float64) for axis in grid])
        if kind == "amortized":
            critic = None if self.policy is None else self.policy.critic
            if critic is None:
                raise InvalidOptionError("posterior='amortized' needs a policy= that was trained with a critic")
            return kind, AmortizedPosterior.from_draws(self.model.sample(count or 10_000, self.generator), critic)
        if kind == "importance":
            return kind, GridPosterior.from_draws(self.model.sample(count or 100_000, self.generator))
        return kind, ParticlePosterior.from_prior(self.model, count or 4096, self.generator, moves)

    # -- what it knows

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Of the model's parameters."""
        count = self.posterior.theta.shape[-1]
        return tuple(getattr(self.model, "parameter_names", None) or (f"theta{i + 1}" for i in range(count)))

    def summary(self) -> pd.DataFrame:
        """What is known about each parameter: ``mean``, ``sd``, and the quantiles 2.5 %, 50 % and 97.5 %."""
        mean, sd = moments(self.posterior)
        table = {"mean": mean, "sd": sd}
        table |= {f"q{100 * level:g}": row for level, row in zip(LEVELS, quantiles(self.posterior, LEVELS), strict=True)}
        return pd.DataFrame({name: value.numpy() for name, value in table.items()}, index=list(self.parameter_names))

    def data(self) -> tuple[Tensor, Tensor]:
        """Designs ``T x d`` and outcomes ``T x m`` in the order in which they were told."""
        records = [self.history[step] for step in self._told]
        outcomes = torch.tensor([record.outcomes for record in records], dtype=torch.float64)
        return self._rows([record.point for record in records]), outcomes.reshape(len(records), len(self.history.outcome_names))

    def information(self, num_contrastive: int = 10_000, seed: int | None = None) -> Bounds:
        """What all outcomes told: bounds of ``KL(posterior || prior)`` in nats, exact for a grid.

        About all parameters, nuisances too. Of an amortized posterior an estimate without bounds.

        Args:
            num_contrastive: Prior draws in each of eight sets; the lower bound cannot exceed ``log(num_contrastive + 1)``.
            seed: Of the draws; the loop's by default. Asking changes nothing about later asks.
        """
        if isinstance(self.posterior, AmortizedPosterior):
            return self.posterior.information()
        if isinstance(self.posterior, GridPosterior) and self.posterior.exact:
            value = torch.tensor(self.posterior.divergence(), dtype=torch.float64)
            return Bounds(value, value, torch.zeros_like(value), torch.tensor(False))
        if not self._told:
            zero = torch.zeros((), dtype=torch.float64)
            return Bounds(zero, zero, zero, torch.tensor(False))
        generator = torch.Generator().manual_seed(self.seed + 1 if seed is None else seed)
        designs, outcomes = self.data()
        return information_of_history(
            self.model, designs, outcomes, self.posterior, num_contrastive=num_contrastive, generator=generator
        )

    # -- ask

    def ask(self, observation: object = None, n: int = 1) -> Any:
        """The design to measure next, or the next ``n``, chosen one after the other for what they tell together.

        Args:
            observation: Not used; loops in changing environments get one.
            n: How many.

        Returns:
            A point (from name to value) for ``n=1``, a list of points otherwise.

        Raises:
            InvalidOptionError: ``n`` is less than 1, or a policy is asked while a design is under way.
            InvalidSpaceError: ``propose`` gave a design outside the space.
        """
        if n < 1:
            raise InvalidOptionError(f"n={n}; ask for at least one design")
        points = []
        for _ in range(n):
            start = time.perf_counter()
            design, bounds = self._search() if self.policy is None else (self._follow(self.policy), None)
            record = self.history.append(self._rounds, self._point(design), "model" if self.policy is None else "policy")
            record.seconds_ask = time.perf_counter() - start
            if bounds is not None:
                self.history.expected[record.step] = interval(bounds)
            self.last_bounds = bounds
            points.append(record.point)
        self._rounds += 1
        return points[0] if n == 1 else points

    def _search(self) -> tuple[Tensor, Bounds]:
        """The design that is expected to tell most, and how much."""
        model: DesignModel = self.model
        if hasattr(model, "nuisances") and self._told:
            model = GivenHistory(model, *self.data())
        pending = [record.point for record in self.history.pending]
        if pending:
            model = WithPending(model, self._rows(pending))
        return best_design(model, self.posterior, self._candidates(), self.settings, self.generator, self._box)

    def _follow(self, policy: DesignPolicy) -> Tensor:
        """The policy's design after all that was told."""
        waiting = len(self.history.pending)
        if waiting:
            raise InvalidOptionError(
                f"{waiting} designs are under way, and a policy answers after outcomes only; tell them, with failed=True if lost"
            )
        with torch.no_grad():
            return policy(*self.data())

    def _candidates(self) -> Tensor:
        count = self.settings.num_candidates
        if self.propose is not None:
            rows = torch.as_tensor(self.propose(self.posterior, count, self.generator), dtype=torch.float64)
            if rows.dim() != 2 or rows.shape[-1] != len(self.design_names):
                raise ShapeError(f"propose answered {tuple(rows.shape)}; it needs n x {len(self.design_names)}")
            self._check_inside(rows)
            return rows
        if self.space.enumerable:
            return self._rows([self.space.table_point(i) for i in range(self.space.cardinality or 0)])
        seed = int(torch.randint(2**31 - 1, (1,), generator=self.generator))
        return self._rows(self.space.sample(count, seed))

    def _check_inside(self, rows: Tensor) -> None:
        for i, row in enumerate(rows.tolist()):
            if not self.space.contains(row):
                raise InvalidSpaceError(f"propose: row {i}, {row}, is outside the space of designs; keep candidates inside")

    def _rows(self, points: Sequence[Mapping[str, Any]]) -> Tensor:
        values = [[float(point[name]) for name in self.design_names] for point in points]
        return torch.tensor(values, dtype=torch.float64).reshape(len(values), len(self.design_names))

    def _point(self, design: Tensor) -> Point:
        return self.space.point(design.tolist())

    # -- tell

    def tell(
        self,
        action: object,
        outcome: object = None,
        Yvar: object = None,
        *,
        constraints: object = None,
        failed: bool | Sequence[bool] = False,
        reason: str = "",
        true_value: float | None = None,
    ) -> Any:
        """What was measured at a design, asked or not; the posterior becomes the prior of what comes next.

        An outcome is checked, and the posterior computed, before anything is recorded. Of several designs, those before one whose
        outcome the model holds impossible are kept.

        Args:
            action: A point, or the values of a design in order; a list of points for several.
            outcome: A number, or one for each entry of the model's ``y``; a list of them for several.
            Yvar: Not used: the model says what the noise is.
            constraints: Experiments have none.
            failed: Whether nothing could be measured; then nothing is learned.
            reason: Why.
            true_value: For the history only.

        Returns:
            The record, or the list of records.

        Raises:
            InvalidSpaceError: A design outside its space.
            InvalidDataError: NaN or infinite outcomes, or one that the model holds impossible.
            ShapeError: Another number of outcomes; a likelihood of the wrong shape.
            InvalidOptionError: Noise variances or constraints.
        """
        if Yvar is not None or constraints is not None:
            raise InvalidOptionError("Yvar and constraints have no place here: the model's log_prob says what the noise is")
        if isinstance(action, list) and action and isinstance(action[0], Mapping):
            marks = [failed] * len(action) if isinstance(failed, bool) else list(failed)
            values = [None] * len(action) if outcome is None else list(outcome)  # type: ignore[call-overload]
            if not len(action) == len(values) == len(marks):
                raise ShapeError(f"{len(action)} designs, {len(values)} outcomes, {len(marks)} failed; tell one for each design")
            checked = [self._read(a, y, bool(f)) for a, y, f in zip(action, values, marks, strict=True)]
        else:
            checked = [self._read(action, outcome, bool(failed))]
        records = [self._learn(point, y, reason, true_value) for point, y in checked]
        return records if isinstance(action, list) and action and isinstance(action[0], Mapping) else records[0]

    def _read(self, action: object, outcome: object, failed: bool) -> tuple[Point, Tensor | None]:
        point = self.space.point(action)
        if not self.space.contains(point):
            raise InvalidSpaceError(f"the design {point} is outside its space {self.space!r}; measure inside, or widen the space")
        if failed:
            return point, None
        if outcome is None:
            raise InvalidDataError(f"no outcome was told for {point}; tell one, or failed=True with a reason")
        y = torch.as_tensor(np.asarray(outcome, dtype=np.float64)).reshape(-1)
        names = self.history.outcome_names
        if y.shape != (len(names),):
            raise ShapeError(f"the outcome {outcome!r} has {y.numel()} values; expected {len(names)}: {', '.join(names)}")
        if not bool(y.isfinite().all()):
            raise InvalidDataError(f"the outcome at {point} is {y.tolist()}; leave it out, or tell failed=True with a reason")
        return point, y

    def _learn(self, point: Point, y: Tensor | None, reason: str, true_value: float | None) -> Record:
        start = time.perf_counter()
        learned = self.posterior
        if y is not None:
            designs, outcomes = self.data()
            designs = torch.cat([designs, self._rows([point])])
            outcomes = torch.cat([outcomes, y.unsqueeze(0)])
            learned = learned.update(self.model, designs, outcomes, self.generator)
        waiting = self.history.pending
        place = self.space.match(point, [record.point for record in waiting])
        record = waiting[place] if place is not None else self.history.append(-1, point, "told")
        record.true_value, record.reason = true_value, reason
        if y is None:
            record.status, record.reason = FAILED, reason or "failed"
        else:
            record.outcomes[:], record.status = y.tolist(), COMPLETE
            self._told.append(record.step)
            self.posterior = learned
            gained = self.information(2_000)
            if gained.lower is not None:
                self.history.gained[record.step] = interval(gained)
        record.seconds_tell = time.perf_counter() - start
        return record

    # -- state

    def _settings(self) -> dict[str, Any]:
        policy = {} if self.policy is None else {"policy": self.policy.objective}
        return {"space": self.space.to_json(), "posterior": self._kind, "parameters": list(self.parameter_names), **policy}

    def state_dict(self) -> dict[str, Any]:
        """Everything the next asks depend on, as a tree for :func:`seqbdl.serialization.save_tree`.

        A loop made with the same arguments that loads it asks the same designs.
        """
        return {
            "version": STATE_VERSION,
            "settings": self._settings(),
            "history": self.history.to_tree(),
            "posterior": self.posterior.to_tree(),
            "generator": generator_state(self.generator),
            "rounds": self._rounds,
            "told": list(self._told),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`.

        Raises:
            StateError: The state is of another version, or of a loop with another space, posterior or model.
        """
        check_state(state, STATE_VERSION, self._settings())
        self.posterior = posterior_from_tree(state["posterior"], None if self.policy is None else self.policy.critic)
        self.history = DesignHistory.from_tree(state["history"])
        self.generator.set_state(state["generator"])
        self._rounds, self._told = int(state["rounds"]), [int(step) for step in state["told"]]


def _check_ascent(box: DesignBox | None, model: object) -> None:
    if box is None:
        raise InvalidOptionError("optimizer='gradient' needs a space of real parameters without steps; use 'candidates'")
    if getattr(model, "support", None) is None and not getattr(model, "reparametrized", False):
        raise InvalidOptionError(
            "optimizer='gradient' needs a model with a finite support, or reparametrized = True and a differentiable simulate"
        )
