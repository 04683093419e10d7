"""Pool-based active learning as a memory that is asked and told."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from seqbdl.acquisition.batches import Batch, get_batch_acquisition, select_batch
from seqbdl.errors import InvalidDataError, InvalidOptionError
from seqbdl.loops.conditioning import Conditioning, moments
from seqbdl.loops.history import COMPLETE, FAILED, Record
from seqbdl.loops.label_pool import INDEX, Features, LabelPool
from seqbdl.loops.learning_history import LABEL, CurvePoint, LearningHistory
from seqbdl.loops.learning_labels import Labels, check_rows, check_selection, indices_of, read_test, read_told, surrogate_for
from seqbdl.loops.learning_metrics import class_metrics, class_probs, kappa, value_metrics
from seqbdl.loops.outcomes import OutcomeSpec
from seqbdl.loops.proposals import SpaceExhaustedError
from seqbdl.loops.settings import check_refit, check_state
from seqbdl.posteriors import Prediction
from seqbdl.serialization import generator_state
from seqbdl.surrogates import Surrogate

STATE_VERSION = 1
LARGE_BATCH = 10
"""From this size on, the joint information of classes under a hundred draws is close to its ceiling."""
_WATCHED = 500
"""Pool points whose predicted classes are compared from one model to the next."""


class ActiveLearningLoop:
    """Ask which points of a pool to label, tell their labels; a surrogate and an acquisition choose the next ones.

    Points are indices into the pool. Those that were asked and not yet told are pending: later asks count them as chosen.
    Labels may come late, in any order, in part, and for points that were never asked.

    Args:
        pool: A tensor or array ``N x ...``, a data frame, a sequence with ``features``, a data set or data loader; see
            :class:`seqbdl.loops.label_pool.LabelPool`.
        surrogate: A registered name, or an instance for the pool's (flattened) inputs.
        acquisition: A name of :func:`seqbdl.acquisition.list_batch_acquisitions`; ``"auto"``: ``EPIG`` with targets, else
            ``BatchBALD``, of classes in batches over 10 ``PowerBALD``, of counts ``LCMD``.
        classes: The number of classes, or their names; ``None``: labels are real values.
        features: Turns items into numbers, such as a pretrained encoder.
        targets: Inputs from where the model will be used, for acquisitions that need them; made like the pool.
        target_weights: One per target, their density ratio where they come from elsewhere.
        test: ``(inputs, labels)`` for the learning curve. Never learned from, never asked.
        cost: One positive cost per point of the pool; points are ranked by what they add for a unit of cost.
        forbidden: Indices that are never asked.
        initial: Labels after which the model chooses; before, points are drawn at random. By default 10, or 2 per class.
        refit: ``"every"`` change of the data, every ``k`` new labels (updates in between), or ``"update"``: fit once,
            then let the posterior become the prior.
        likelihood: Of the surrogate; by default categorical of classes and Gaussian of values.
        noise: Known variance of the label noise, in squared units of the label; ``None``: learned.
        num_draws: Function draws for the acquisition.
        subsample: How many randomly chosen open points compete in each ask; ``None``: all.
        seed: Of everything random.
        surrogate_options: For :func:`seqbdl.make_surrogate`, such as ``network=`` (your own module, fed with flattened rows).
        acquisition_options: For :func:`seqbdl.acquisition.select_batch`, such as ``beta``, or ``features`` to cluster by.

    Raises:
        UnknownNameError: No surrogate or acquisition has that name.
        InvalidOptionError: Settings that contradict each other.
        InvalidDataError: Bad numbers in the pool, the targets or the test set.
    """

    def __init__(
        self,
        pool: Any,
        surrogate: str | Surrogate = "laplace",
        acquisition: str = "auto",
        *,
        classes: int | Sequence[object] | None = None,
        features: Features | None = None,
        targets: Any = None,
        target_weights: Any = None,
        test: tuple[Any, Any] | None = None,
        cost: Any = None,
        forbidden: Any = None,
        initial: int | None = None,
        refit: str | int = "every",
        likelihood: str | None = None,
        noise: float | None = None,
        num_draws: int = 100,
        subsample: int | None = None,
        seed: int = 0,
        surrogate_options: Mapping[str, Any] | None = None,
        acquisition_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.space = pool if isinstance(pool, LabelPool) else LabelPool(pool, features)
        self.labels = Labels.build(classes)
        self._options = dict(acquisition_options or {})
        self._counts = likelihood == "poisson"
        self.acquisition = check_selection(acquisition, self.labels, targets is not None, self._options)
        self.seed, self.num_draws = seed, num_draws
        size = len(self.space)
        if initial is not None and (isinstance(initial, bool) or initial < 0):
            raise InvalidOptionError(f"initial={initial!r}; it is a number of labels, at least 0")
        if subsample is not None and subsample < 1:
            raise InvalidOptionError(f"subsample={subsample}; it is a number of points, at least 1")
        self.initial = initial if initial is not None else 2 * self.labels.num_classes or 10
        self.subsample = subsample
        self.targets = None if targets is None else self.space.inputs(targets)
        if target_weights is not None and self.targets is None:
            raise InvalidOptionError("target_weights without targets; give targets too")
        self._weights: Tensor | None = None
        if self.targets is not None and target_weights is not None:
            self._weights = check_rows("target_weights", target_weights, self.targets.shape[0], "targets")
        self.cost = None if cost is None else check_rows("cost", cost, size, "points of the pool")
        if self.cost is not None and not bool((self.cost > 0).all()):
            raise InvalidDataError(f"cost is not positive at index {int((~(self.cost > 0)).nonzero()[0])}; costs are positive")
        self.forbidden = set(indices_of(self.space, forbidden))
        self._test = None if test is None else read_test(self.space, self.labels, *test)
        options = dict(surrogate_options or {})
        model = surrogate_for(surrogate, self.space, self.labels, likelihood, noise, seed, options)
        self._model = Conditioning(model, self.space, OutcomeSpec.build("maximize", 1, 0, [LABEL]), check_refit(refit))
        self.generator = torch.Generator().manual_seed(seed)
        watched = torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:_WATCHED]
        self._watched = watched.sort().values
        self._seen: Tensor | None = None
        self.history = LearningHistory(self.labels.class_names)
        self._rounds = 0
        self.last_batch: Batch | None = None

    # -- what it knows

    @property
    def surrogate(self) -> Surrogate:
        """The surrogate; it learns of told labels when it is next needed. :meth:`fitted` makes it learn now."""
        return self._model.surrogate

    def fitted(self) -> Surrogate:
        """The surrogate, knowing every label that was told.

        Raises:
            InvalidDataError: No label has been told.
        """
        return self._model.fitted(self.history)

    @property
    def labelled(self) -> list[int]:
        """Indices with a label, in the order in which they entered."""
        return [self.history.action(record) for record in self.history.complete]

    @property
    def pending(self) -> list[int]:
        """Indices that were asked and await their label."""
        return [self.history.action(record) for record in self.history.pending]

    @property
    def remaining(self) -> int:
        """How many points can still be asked."""
        return len(self._open())

    @property
    def spent(self) -> float:
        """What the labels so far cost; their number, without costs."""
        if self.cost is None:
            return float(len(self.labelled))
        return float(self.cost[self.labelled].sum())

    def _open(self) -> list[int]:
        closed = self.forbidden | {self.history.action(record) for record in self.history}
        return [index for index in range(len(self.space)) if index not in closed]

    def predict(self, items: Any = None) -> Prediction:
        """Predictions at other items, or at the whole pool; see :class:`seqbdl.posteriors.Prediction`.

        Raises:
            InvalidDataError: No label has been told.
        """
        X = self.space.X if items is None else self.space.inputs(items)
        return self.fitted().predict(X)

    # -- ask

    def ask(self, observation: object = None, n: int = 1) -> Any:
        """The next index to label, or the next ``n``.

        Args:
            observation: Not used; loops in changing environments get one.
            n: How many.

        Returns:
            An integer for ``n=1``, a list of integers otherwise, in pick order.

        Raises:
            InvalidOptionError: ``n`` is less than 1.
            SpaceExhaustedError: The pool has fewer points left.
        """
        if n < 1:
            raise InvalidOptionError(f"n={n}; ask for at least one point")
        free = self._open()
        if n > len(free):
            raise SpaceExhaustedError(f"{n} points were asked, {len(free)} of the pool are left")
        start = time.perf_counter()
        name = self._method(n)
        if len(self.history.complete) + len(self.history.pending) < self.initial or not self.history.complete:
            source, picks, batch = "initial", self._at_random(free, n), None
        elif name == "Random":
            source, picks, batch = "random", self._at_random(free, n), None
            self.measure()
        else:
            self.measure()
            source, (picks, batch) = "model", self._select(name, free, n)
        predicted = self._predicted(picks) if source == "model" and not self.labels.num_classes else None
        seconds = (time.perf_counter() - start) / n
        for place, index in enumerate(picks):
            record = self.history.append(self._rounds, {INDEX: index}, source)
            record.seconds_ask = seconds
            if batch is not None:
                self.history.scores[record.step] = (float(batch.scores[place]), float(batch.increments[place]))
            if predicted is not None:
                record.predicted_mean, record.predicted_sd = predicted[0][place].tolist(), predicted[1][place].tolist()
        self.last_batch = batch
        self._rounds += 1
        return picks[0] if n == 1 else picks

    def _method(self, n: int) -> str:
        if self.acquisition != "auto":
            return get_batch_acquisition(self.acquisition).name
        if self.targets is not None and not self._counts:
            return "EPIG"
        if self._counts:
            return "LCMD"  # needs no variance of the noise, which counts do not have
        return "PowerBALD" if self.labels.num_classes and n > LARGE_BATCH else "BatchBALD"

    def _at_random(self, free: list[int], n: int) -> list[int]:
        return [free[i] for i in torch.randperm(len(free), generator=self.generator)[:n].tolist()]

    def _select(self, name: str, free: list[int], n: int) -> tuple[list[int], Batch]:
        compete = free
        if self.subsample is not None and max(self.subsample, n) < len(free):
            compete = sorted(self._at_random(free, max(self.subsample, n)))
        needs_targets = get_batch_acquisition(name).needs_targets
        rows = [*compete, *self.pending]
        batch = select_batch(
            name,
            self.fitted(),
            self.space.X[rows],
            n,
            targets=self.targets if needs_targets else None,
            target_weights=self._weights if needs_targets else None,
            pending=list(range(len(compete), len(rows))),
            cost=None if self.cost is None else self.cost[rows],
            num_draws=self.num_draws,
            generator=self.generator,
            **self._options,
        )
        return [rows[i] for i in batch.indices.tolist()], batch

    def _predicted(self, picks: list[int]) -> tuple[Tensor, Tensor]:
        mean, variance = moments(self.surrogate, self.space.X[picks])
        return mean, variance.sqrt()

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
        """The label of one index, or of several. All arguments are checked before anything is recorded.

        Args:
            action: An index, or a list of them; asked or not.
            outcome: Its label, a name or number of a class or a value; a list for several. ``None``: still to come.
            Yvar: Known noise variance of the labels; one number, for all labels or none.
            constraints: Labels have none.
            failed: Whether no label can be given; the point is not asked again. So is one whose label is NaN.
            reason: Why.
            true_value: The label without noise, where it is known; for the history only.

        Returns:
            The record of the index, or the list of records.

        Raises:
            InvalidSpaceError: No index of the pool.
            InvalidDataError: An index that has a label already, that is forbidden, or that stands twice; a label that is none.
        """
        if constraints is not None:
            raise InvalidOptionError("labels have no constraints; leave them out")
        start = time.perf_counter()
        single, told = read_told(self.space, self.labels, action, outcome, failed)
        self._check_told([index for index, _, _ in told])
        variance = None if Yvar is None else float(torch.as_tensor(Yvar, dtype=torch.float64).reshape(-1)[0])
        known = {record.variances is not None for record in self.history.complete}
        if known and known != {variance is not None} and any(value is not None for _, value, _ in told):
            raise InvalidDataError("Yvar is known for some labels only; give it for all labels or for none")
        if variance is not None and not variance >= 0:
            raise InvalidDataError(f"Yvar is {variance}; it is a variance, at least 0")
        waiting = {self.history.action(record): record for record in self.history.pending}
        records = []
        for index, value, mark in told:
            record = waiting[index] if index in waiting else self.history.append(-1, {INDEX: index}, "told")
            self._fill(record, value, variance, mark, reason)
            record.true_value = record.true_value if true_value is None else float(true_value)
            record.seconds_tell = (time.perf_counter() - start) / len(told)
            records.append(record)
        if self._test is not None and not self.history.pending and len(self.history.complete) >= max(self.initial, 1):
            self.measure()
        return records[0] if single else records

    def _check_told(self, indices: list[int]) -> None:
        done = {self.history.action(record) for record in self.history if not record.open}
        for place, index in enumerate(indices):
            if index in indices[:place]:
                raise InvalidDataError(f"index {index} stands twice; a point has one label")
            if index in done:
                raise InvalidDataError(f"index {index} is labelled already; a point has one label")
            if index in self.forbidden:
                raise InvalidDataError(f"index {index} is forbidden; take it out of forbidden to label it")

    @staticmethod
    def _fill(record: Record, value: float | None, variance: float | None, failed: bool, reason: str) -> None:
        if failed or (value is not None and not torch.isfinite(torch.tensor(value))):
            record.status, record.reason = FAILED, reason or ("failed" if failed else f"the label is {value}")
        elif value is not None:
            record.outcomes[:], record.status = [value], COMPLETE
            record.variances = None if variance is None else [variance]

    # -- learning curve

    def measure(self) -> CurvePoint:
        """The model after every label so far, on the test set; once for each number of labels.

        Raises:
            InvalidDataError: No label has been told.
        """
        surrogate, count = self.fitted(), len(self.history.complete)
        if self.history.curve and self.history.curve[-1].labels == count:
            return self.history.curve[-1]
        metrics: dict[str, float] = {}
        if self._test is not None:
            metrics = (class_metrics if self.labels.num_classes else value_metrics)(surrogate, *self._test)
        if self.labels.num_classes:
            seen = class_probs(surrogate, self.space.X[self._watched]).argmax(-1)
            if self._seen is not None:
                metrics["agreement"] = kappa(self._seen.to(seen), seen, self.labels.num_classes)
            self._seen = seen
        self.history.curve.append(CurvePoint(count, len(self.history), self.spent, metrics))
        return self.history.curve[-1]

    # -- state

    def _settings(self) -> dict[str, Any]:
        return {
            "pool": self.space.digest,
            "surrogate": self.surrogate.name,
            "acquisition": self.acquisition,
            "classes": list(self.labels.class_names),
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
            "rounds": self._rounds,
            "seen": self._seen,
            "model": self._model.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`.

        Raises:
            StateError: The state is of another version, or of a loop with another pool, surrogate, acquisition or classes.
        """
        check_state(state, STATE_VERSION, self._settings())
        self._model.load_state_dict(state["model"])
        self.history = LearningHistory.from_tree(state["history"])
        self.generator.set_state(state["generator"])
        self._rounds, self._seen = int(state["rounds"]), state["seen"]
