"""Bayesian optimization as a memory that is asked and told."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqbdl.errors import InvalidDataError, InvalidOptionError, InvalidSpaceError
from seqbdl.loops.conditioning import Conditioning
from seqbdl.loops.designs import Design
from seqbdl.loops.history import COMPLETE, FAILED, PARTIAL, History, Record
from seqbdl.loops.outcomes import OutcomeSpec, Told
from seqbdl.loops.parameters import Value
from seqbdl.loops.proposals import (
    DESIGNS,
    AcquisitionFactory,
    Request,
    SpaceExhaustedError,
    check_acquisition,
    choose_acquisition,
    propose,
)
from seqbdl.loops.settings import check_ref_point, check_refit, check_state, initial_count
from seqbdl.loops.space import Point, Space
from seqbdl.loops.telling import Trial, read_trials
from seqbdl.loops.transfer import Trust
from seqbdl.serialization import generator_state
from seqbdl.surrogates import Surrogate, make_surrogate

STATE_VERSION = 1


class BayesOptLoop:
    """Ask for points, tell what came of them; a surrogate and an acquisition function choose the next ones.

    Points are dictionaries in the user's names and units; outcomes are in the user's units and direction. Points that
    were asked and not yet told are pending: later asks take them into account.

    Args:
        space: A :class:`Space`.
        surrogate: A registered name, or an instance for ``space.dim`` inputs and one output per outcome and constraint.
        acquisition: A name of :func:`seqbdl.acquisition.list_acquisitions`; ``"auto"`` (``qLogNEI``; ``qLogNEHVI`` for
            several outcomes; ``qLogPF`` before a trial is feasible; Thompson sampling for batches over 20);
            ``"thompson"``; ``"random"`` or ``"sobol"``, which use no surrogate; or a callable
            ``(surrogate, AcquisitionContext) -> AcquisitionFunction``. Finite spaces (candidates, or up to 4096 points)
            are searched by evaluating every point.
        objective: ``"maximize"`` or ``"minimize"``; for several outcomes also one per outcome.
        num_outcomes: How many outcomes are optimized.
        constraints: Number of outcome constraints, or their names; feasible when at most 0. The surrogate models them.
        outcome_names: Names of the outcomes.
        initial: Points of the initial Sobol design, told points included; by default ``max(5, min(2 p, 20))`` for ``p``
            parameters. Without two complete trials the design goes on.
        refit: ``"every"`` change of the data, every ``k`` new trials (updates in between), or ``"update"``: fit once,
            then let the posterior become the prior.
        noise: Known variance of the observation noise, in squared units of the outcome; ``None``: learned.
        prior: The surrogate of an earlier campaign (:func:`seqbdl.load`), in place of ``surrogate``; see :func:`trust`. Every
            model starts from it, so that ``refit`` has nothing to choose.
        replicates: Whether a point may be asked twice.
        ref_point: For several outcomes, in the user's units and directions: where the hypervolume is measured from.
        seed: Of everything random.
        surrogate_options: For :func:`seqbdl.make_surrogate`.
        acquisition_options: For :func:`seqbdl.acquisition.make_acquisition`.
        optimizer_options: For :func:`seqbdl.acquisition.optimize_acquisition` (with Thompson sampling:
            ``thompson_continuous``), such as ``num_restarts`` and ``raw_samples``.

    Raises:
        UnknownNameError: No surrogate or acquisition function has that name.
        InvalidOptionError: Settings that contradict each other.
    """

    def __init__(
        self,
        space: Space,
        surrogate: str | Surrogate = "gp",
        acquisition: str | AcquisitionFactory = "auto",
        *,
        objective: str | Sequence[str] = "maximize",
        num_outcomes: int = 1,
        constraints: int | Sequence[str] = 0,
        outcome_names: Sequence[str] | None = None,
        initial: int | None = None,
        refit: str | int = "every",
        noise: float | None = None,
        prior: Surrogate | None = None,
        replicates: bool = False,
        ref_point: Sequence[float] | Tensor | NDArray[np.float64] | None = None,
        seed: int = 0,
        surrogate_options: Mapping[str, Any] | None = None,
        acquisition_options: Mapping[str, Any] | None = None,
        optimizer_options: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(space, Space):
            raise InvalidSpaceError(f"space is a {type(space).__name__}; use Space([Real('x', 0, 1), ...])")
        self.space = space
        self.outcomes = OutcomeSpec.build(objective, num_outcomes, constraints, outcome_names)
        clash = set(self.outcomes.all_names) & set(space.names)
        if clash:
            raise InvalidOptionError(f"{sorted(clash)[0]!r} is both a parameter and an outcome; rename the outcome")
        check_acquisition(acquisition)
        self.acquisition = acquisition
        self.seed = seed
        self.replicates = replicates
        self.initial = initial_count(initial, space)
        self._ref_point = check_ref_point(ref_point, num_outcomes)
        self._acquisition_options = dict(acquisition_options or {})
        self._optimizer_options = dict(optimizer_options or {})
        if prior is not None and (surrogate != "gp" or refit != "every"):
            raise InvalidOptionError(
                "prior takes the place of surrogate, and all models start from it; leave surrogate and refit out"
            )
        model = self._make_surrogate(surrogate if prior is None else prior.clone(), noise, dict(surrogate_options or {}))
        self._model = Conditioning(model, space, self.outcomes, check_refit(refit), prior)
        self._design = Design(space, seed, replicates)
        self.generator = torch.Generator().manual_seed(seed)
        self.history = History(
            space.names,
            self.outcomes.names,
            self.outcomes.directions,
            self.outcomes.constraint_names,
            ref_point=self._ref_point,
        )
        self._batch = 0

    @property
    def surrogate(self) -> Surrogate:
        """The surrogate; it learns of told outcomes when it is next needed."""
        return self._model.surrogate

    @property
    def trust(self) -> Trust | None:
        """How far the trials trust the earlier campaign (:attr:`prior`), as of the last model."""
        return self._model.trust

    def _make_surrogate(self, surrogate: str | Surrogate, noise: float | None, options: dict[str, Any]) -> Surrogate:
        outputs = len(self.outcomes.all_names)
        if isinstance(surrogate, str):
            settings = {"bounds": self.space.bounds, "noise": noise, "seed": self.seed, **options}
            return make_surrogate(surrogate, self.space.dim, outputs, **settings)
        if not isinstance(surrogate, Surrogate):
            raise InvalidOptionError(f"surrogate is a {type(surrogate).__name__}; give a registered name or a Surrogate")
        if options or noise is not None:
            raise InvalidOptionError("noise and surrogate_options belong to a surrogate given by name; set them on the instance")
        if surrogate.input_dim != self.space.dim or surrogate.num_outputs != outputs:
            raise InvalidOptionError(
                f"the surrogate has input_dim={surrogate.input_dim} and {surrogate.num_outputs} outputs; the space"
                f" needs input_dim={self.space.dim} and {outputs} outputs ({', '.join(self.outcomes.all_names)})"
            )
        return surrogate

    # -- ask

    @property
    def remaining(self) -> int | None:
        """How many points can still be asked; ``None`` when there is no end."""
        if self.replicates or self.space.cardinality is None:
            return None
        if not self.space.enumerable:
            return max(self.space.cardinality - len(self._taken()), 0)
        return self.space.cardinality - len(self.space.table_rows(self._taken()))

    def ask(
        self,
        observation: object = None,
        n: int = 1,
        *,
        pending: Sequence[object] | None = None,
        fixed: Mapping[str, Value] | None = None,
    ) -> Any:
        """The next point, or the next ``n`` points.

        Args:
            observation: Not used; loops in changing environments get one.
            n: How many.
            pending: Points under way elsewhere, beside those asked here.
            fixed: Parameters to hold at a value.

        Returns:
            A point for ``n=1``, a list of points otherwise.

        Raises:
            InvalidOptionError: ``n`` is less than 1.
            InvalidSpaceError: A pending point or a fixed value is not of the space.
            SpaceExhaustedError: A finite space has fewer points left.
        """
        if n < 1:
            raise InvalidOptionError(f"n={n}; ask for at least one point")
        held = self.space.part(fixed or {})
        elsewhere = [self.space.point(point) for point in pending or ()]
        left = self.remaining
        if left is not None and n > left:
            raise SpaceExhaustedError(f"{n} points were asked, {left} are left; replicates=True asks points again")
        start = time.perf_counter()
        feasible = not self.outcomes.constraint_names or any(record.feasible for record in self.history)
        method = choose_acquisition(self.acquisition, len(self.outcomes.names), n, feasible)
        start_up = len(self.history) < self.initial or len(self.history.complete) < 2
        source = str(method) if method in DESIGNS else "initial" if start_up else "model"
        if source == "model":
            points = self._propose(method, n, elsewhere, held)
            predicted = list(zip(*(values.tolist() for values in self._model.predict(points)), strict=True))
        else:
            points = self._design.draw(source, n, self._taken(elsewhere), held, self.generator)
            predicted = []
        seconds = (time.perf_counter() - start) / n
        for i, point in enumerate(points):
            record = self.history.append(self._batch, point, source)
            record.seconds_ask = seconds
            if predicted:
                record.predicted_mean, record.predicted_sd = predicted[i]
        self._batch += 1
        return dict(points[0]) if n == 1 else [dict(point) for point in points]

    def _taken(self, elsewhere: Sequence[Point] = ()) -> set[tuple[Any, ...]]:
        if self.replicates:
            return set()
        return {self.space.key(point) for point in (*(record.point for record in self.history), *elsewhere)}

    def _propose(self, method: str | AcquisitionFactory, n: int, elsewhere: list[Point], held: dict[str, Value]) -> list[Point]:
        waiting = [*(record.point for record in self.history.pending), *elsewhere]
        signs = torch.tensor(self.outcomes.signs[: len(self.outcomes.names)], dtype=torch.double)
        reference = None if self._ref_point is None else torch.tensor(self._ref_point, dtype=torch.double) * signs
        options = self._acquisition_options
        if method == "qLogPF" and self.acquisition == "auto":
            # the others are meant for the method that takes over once a point is feasible
            options = {name: value for name, value in options.items() if name == "mc_samples"}
        request = Request(
            space=self.space,
            surrogate=self._model.fitted(self.history),
            acquisition=method,
            num_outcomes=len(self.outcomes.names),
            num_constraints=len(self.outcomes.constraint_names),
            pending=waiting,
            failed=[record.point for record in self.history.failed],
            taken=self._taken(elsewhere),
            fixed=held,
            ref_point=reference,
            generator=self.generator,
            options=options,
            optimizer_options=self._optimizer_options,
        )
        return propose(request, n)

    def predict(self, points: Sequence[object]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Posterior mean and standard deviation of the outcomes without noise, ``n x m`` each, in the user's units.

        Raises:
            InvalidDataError: No trial is complete yet.
        """
        self._model.fitted(self.history)
        return self._model.predict([self.space.point(point) for point in points])

    # -- tell

    def tell(
        self,
        action: object,
        outcome: object = None,
        Yvar: object = None,
        *,
        constraints: object = None,
        failed: bool | Sequence[bool] = False,
        reason: str | Sequence[str] = "",
        true_value: object = None,
    ) -> Any:
        """What came of one point, or of several.

        Points may come in any order, late, in parts (outcomes left out or ``None`` come later), and without having been
        asked. A NaN or infinite outcome, and ``failed=True``, make a failed trial: it stays in the history, the
        surrogate never sees it, and it is not asked again. All arguments are checked before anything is recorded.

        Args:
            action: A point (mapping, sequence of values, or a candidate's row number), or a list of points.
            outcome: Its outcome, see :meth:`OutcomeSpec.read`; for several points one per point.
            Yvar: Known noise variance; one number, or one per outcome and constraint; for all trials or none.
            constraints: Values of the outcome constraints where ``outcome`` does not hold them.
            failed: Whether the trial failed.
            reason: Why it failed.
            true_value: The outcome without noise, where it is known; for the history only.

        Returns:
            The record of the trial, or the list of records.

        Raises:
            InvalidSpaceError: Not a point of the space: a category never seen, a missing parameter.
            ShapeError: Another number of outcomes or points than expected.
            InvalidDataError: An outcome that is not a number; variances for some trials only.
        """
        start = time.perf_counter()
        single, trials = read_trials(self.space, action, outcome, Yvar, constraints, failed, reason, true_value)
        prepared = []
        has_variances = {record.variances is not None for record in self.history.complete}
        for trial in trials:
            told = None if trial.outcome is None and trial.failed else self.outcomes.read(trial.outcome, trial.constraints)
            variances = None if trial.Yvar is None else self.outcomes.read_variances(trial.Yvar)
            broken = trial.failed or (told is not None and bool(told.broken(self.outcomes.all_names)))
            if not broken:
                has_variances.add(variances is not None)
            prepared.append((trial, told, variances))
        if len(has_variances) > 1:
            raise InvalidDataError("Yvar is known for some trials only; give it for all trials or for none")
        waiting = self.history.pending
        records = [self._record(trial, told, variances, waiting) for trial, told, variances in prepared]
        for record in records:
            record.seconds_tell = (time.perf_counter() - start) / len(records)
        return records[0] if single else records

    def _record(self, trial: Trial, told: Told | None, variances: list[float] | None, waiting: list[Record]) -> Record:
        place = self.space.match(trial.point, [record.point for record in waiting]) if waiting else None
        if place is None:
            record = self.history.append(-1, self.space.point(trial.point), "told")
        else:
            record = waiting[place]
        if told is not None:
            for target, values in ((record.outcomes, told.outcomes), (record.constraints, told.constraints)):
                target[:] = [old if new is None else new for old, new in zip(target, values, strict=True)]
        record.variances = record.variances if variances is None else variances
        record.true_value = record.true_value if trial.true_value is None else trial.true_value
        broken = "" if told is None else told.broken(self.outcomes.all_names)
        if trial.failed or broken:
            record.status, record.reason = FAILED, trial.reason or broken or "failed"
        elif np.isnan([*record.outcomes, *record.constraints]).any():
            record.status = PARTIAL
        else:
            record.status = COMPLETE
        if place is not None and not record.open:
            waiting.pop(place)
        elif place is None and record.open:
            waiting.append(record)
        return record

    # -- recommend

    def recommend(self) -> Any:
        """The evaluated point with the best posterior mean among those predicted feasible, not the luckiest draw.

        Without a model (``"random"``, ``"sobol"``, or a single trial) it goes by the observed outcomes. Where nothing
        is feasible, it is the point with the smallest violation.

        Returns:
            A point; for several outcomes the list of points on the Pareto front of posterior means.

        Raises:
            InvalidDataError: No trial is complete yet.
        """
        best = self._model.best(self.history, modelled=self.acquisition not in DESIGNS)
        points = [dict(record.point) for record in best]
        return points[0] if len(self.outcomes.names) == 1 else points

    # -- state

    @cached_property
    def _space_digest(self) -> str:
        return hashlib.sha256(self.space.to_json().encode()).hexdigest()

    def _settings(self) -> dict[str, Any]:
        acquisition = self.acquisition if isinstance(self.acquisition, str) else "custom"
        return {
            "space": self._space_digest,
            "surrogate": self.surrogate.name,
            "acquisition": acquisition,
            "outcomes": list(self.outcomes.names),
            "directions": list(self.outcomes.directions),
            "constraints": list(self.outcomes.constraint_names),
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything the next asks depend on, as a tree for :func:`seqbdl.serialization.save_tree`.

        A loop made with the same arguments that loads it asks the same points.
        """
        return {
            "version": STATE_VERSION,
            "settings": self._settings(),
            "history": self.history.to_tree(),
            "generator": generator_state(self.generator),
            "seed": self.seed,
            "batch": self._batch,
            "drawn": self._design.drawn,
            "model": self._model.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`.

        Raises:
            StateError: The state is of another version, or of a loop with another space, surrogate or outcomes.
        """
        check_state(state, STATE_VERSION, self._settings())
        self._model.load_state_dict(state["model"])
        self.history = History.from_tree(state["history"])
        self.generator.set_state(state["generator"])
        self.seed = self._design.seed = int(state["seed"])
        self._batch, self._design.drawn = int(state["batch"]), int(state["drawn"])
