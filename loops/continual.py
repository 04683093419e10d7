"""Learning from a stream: predict, score, then update."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqbdl.diagnostics import accuracy, coverage, expected_calibration_error, log_loss, nlpd, rmse
from seqbdl.errors import InvalidDataError, InvalidOptionError
from seqbdl.loops.changes import ChangeRule, Hypothesis, advance, expected
from seqbdl.loops.settings import check_state
from seqbdl.loops.stream_history import StreamHistory, StreamRecord
from seqbdl.loops.stream_predictions import mixture
from seqbdl.posteriors import Prediction
from seqbdl.surrogates import Surrogate, make_surrogate, prior_from

STATE_VERSION = 2
LEVEL = 0.9  # of the intervals whose coverage is watched


class PredictionActions:
    """From predictions to a stream's actions: class probabilities, or means and standard deviations."""

    def to_action(self, prediction: Prediction) -> NDArray[np.float64]:
        """``n x C``, or ``n x 2``."""
        if prediction.probs is not None:
            return prediction.probs.double().numpy()
        return torch.cat([prediction.mean, prediction.std], -1).double().numpy()


class ContinualLoop:
    """Predict what a chunk of inputs brings, be scored, then let the posterior become the prior of the next chunk.

    Of a step the order is fixed: the prediction (:meth:`ask`) and its log score use what was known before; then hypotheses of
    change are weighed by the score; then every one learns. An update that fails leaves the posterior as it was.

    Args:
        stream_env: A stream of :mod:`seqbdl.envs` (``make("seqbdl/SplitDigits-v0")``), whose test sets are scored whenever a task
            ends; or ``None`` for data that just arrive.
        surrogate: A registered name, or an instance; an instance is not changed. It may have learned already.
        likelihood: For a name: ``None`` is ``"categorical"`` for streams of classes, ``"gaussian"`` for others.
        change: What is done about change: ``None``, or a rule of :mod:`seqbdl.loops.changes` such as ``BOCD()``.
        warmup: Rows on which the surrogate is fitted anew with every chunk, hyperparameters and scales too; from then on it is
            only updated. Nothing is expected to change in them.
        test_sets: ``(X, Y)`` per task, in place of those of the environment.
        on_failure: Of an update: ``"raise"``, or ``"record"`` it in the history and go on.
        seed: Of a surrogate given by name, and of the stream.
        surrogate_options: For :func:`seqbdl.make_surrogate`; of a stream with ``scenario="task"``, ``network={"widths": (256,
            256), "heads": T}`` gives every task a head of its own. The stream's ``bounds`` of the inputs are handed on.

    Raises:
        UnknownNameError: No surrogate has that name.
        InvalidOptionError: Settings that contradict each other.
    """

    def __init__(
        self,
        stream_env: gymnasium.Env[Any, Any] | None,
        surrogate: str | Surrogate = "last-layer-laplace",
        *,
        likelihood: str | None = None,
        change: ChangeRule | None = None,
        warmup: int = 20,
        test_sets: Sequence[tuple[Any, Any]] | None = None,
        on_failure: str = "raise",
        seed: int = 0,
        surrogate_options: Mapping[str, Any] | None = None,
    ) -> None:
        if on_failure not in ("raise", "record"):
            raise InvalidOptionError(f"on_failure={on_failure!r} is neither 'raise' nor 'record'")
        if warmup < 1:
            raise InvalidOptionError(f"warmup={warmup} must be at least 1 row")
        if change is not None and not isinstance(change, ChangeRule):
            raise InvalidOptionError(f"change is a {type(change).__name__}; give None or a rule such as BOCD()")
        self.seed, self.warmup, self.change, self.on_failure = seed, warmup, change, on_failure
        self.env: Any = None if stream_env is None else stream_env.unwrapped
        start = self._start(surrogate, likelihood, dict(surrogate_options or {}))
        self._hypotheses = [Hypothesis(start, 0.0, 0)]
        self._blank = start
        self._prior: Surrogate | None = None
        self._warm: tuple[Tensor, Tensor] | None = None if start.train_inputs is not None else _no_rows(start)
        if self._warm is None and change is not None:
            self._prior = prior_from(start, temper=0.0)
        self._asked: Tensor | None = None
        self._test_sets = None if test_sets is None else [(_rows(X), _rows(Y)) for X, Y in test_sets]
        self.history = StreamHistory()
        self.space = PredictionActions()

    def _start(self, surrogate: str | Surrogate, likelihood: str | None, options: dict[str, Any]) -> Surrogate:
        if isinstance(surrogate, Surrogate):
            if options or likelihood is not None:
                raise InvalidOptionError("likelihood and surrogate_options belong to a surrogate given by name")
            return prior_from(surrogate) if surrogate.train_inputs is not None else surrogate.clone()
        if self.env is None:
            raise InvalidOptionError("without an environment the sizes of X and Y are not known; give a surrogate, not a name")
        classes = getattr(self.env, "num_classes", None)
        kind = likelihood or ("gaussian" if classes is None else "categorical")
        outputs = int(classes or 0) if kind == "categorical" else 1
        bounds = getattr(self.env, "bounds", None)  # a first task's inputs need not span those of later ones
        known = {} if bounds is None else {"bounds": torch.as_tensor(bounds)}
        return make_surrogate(surrogate, int(self.env.input_dim), outputs, kind, **{"seed": self.seed, **known, **options})

    @property
    def surrogate(self) -> Surrogate:
        """The posterior under the most probable hypothesis; the loop never changes it in place."""
        return max(self._hypotheses, key=lambda h: h.log_weight).surrogate

    @property
    def hypotheses(self) -> list[Hypothesis]:
        """What may be true after the last step."""
        return list(self._hypotheses)

    # -- ask and tell

    def ask(self, observation: Any = None, n: int = 1) -> Prediction:
        """Predictions for a chunk of inputs.

        Args:
            observation: ``n x d``; a single row may be ``d``.
            n: Not used; a stream has one chunk at a time.
        """
        if observation is None:
            raise InvalidOptionError("observation is missing; hand in the inputs to predict for, n x d")
        X = _rows(observation).reshape(-1, self._blank.input_dim)
        self._asked = X
        if self._test_sets is None:
            self._test_sets = self._env_sets()  # now: an environment may draw new tasks when its stream ends
        return self.predict(X)

    def predict(self, X: Tensor) -> Prediction:
        """Predictions for any inputs ``n x d``, averaged over what may be true at the next step."""
        rule = self.change if self._prior is not None else None
        options = expected(rule, self._hypotheses, self._prior)
        return mixture([h.surrogate.predict(X) for h in options], [h.log_weight for h in options])

    def tell(
        self,
        action: Any,
        outcome: Any = None,
        Yvar: Any = None,
        *,
        constraints: Any = None,
        failed: bool = False,
        reason: str = "",
        true_value: Any = None,
    ) -> StreamRecord:
        """The outcomes of the chunk that was asked last: score, then learn.

        Args:
            action: What :meth:`ask` predicted, or anything: the score is the loop's own.
            outcome: ``n x 1`` outcomes, or a mapping with ``Y`` and, where known, ``task``, ``changed`` and ``last``.
            Yvar: Not supported.
            constraints: Not supported.
            failed: No outcomes came; nothing is learned.
            reason: Why.
            true_value: Not used.

        Raises:
            InvalidOptionError: Nothing was asked.
            SeqbdlError: The update failed, with ``on_failure="raise"``. The posterior is as it was.
        """
        X, self._asked = self._asked, None
        if X is None:
            raise InvalidOptionError("tell: nothing was asked; call ask(X) first")
        if Yvar is not None or constraints is not None:
            raise InvalidOptionError("Yvar and constraints are not for streams; leave them out")
        given = dict(outcome) if isinstance(outcome, Mapping) else {"Y": outcome}
        task, changed = int(given.get("task", 0)), bool(given.get("changed", False))
        if not self.history.records:
            self.history.baseline = self._scores()
        record = StreamRecord(len(self.history), task, changed, X.shape[0])
        start = time.perf_counter()
        try:
            if failed or given["Y"] is None:
                raise InvalidDataError(reason or "no outcomes came")
            self._learn(X, _rows(given["Y"]).reshape(X.shape[0], -1), record)
        except (ValueError, torch.linalg.LinAlgError) as error:
            record.learned, record.reason = False, f"{type(error).__name__}: {error}"
            if self.on_failure == "raise":
                raise
        record.seconds = time.perf_counter() - start
        record.hypotheses = len(self._hypotheses)
        record.run_length = float(sum(np.exp(h.log_weight) * h.run for h in self._hypotheses))
        record.state_bytes = sum(_bytes(h.surrogate.save_state()["method"]) for h in self._hypotheses)
        self.history.records.append(record)
        if bool(given.get("last", False)):
            self.score_tasks()
        return record

    def _learn(self, X: Tensor, Y: Tensor, record: StreamRecord) -> None:
        seen = self._hypotheses[0].run > 0 or self._warm is None
        prediction = self.predict(X) if seen else None
        if self._warm is None:
            hypotheses, record.log_score = advance(self.change, self._hypotheses, self._prior, X, Y)
            self._hypotheses = hypotheses
        else:
            if seen:
                _, record.log_score = advance(None, self._hypotheses, None, X, Y)
            rows = torch.cat([self._warm[0], X]), torch.cat([self._warm[1], Y])
            fitted = self._blank.clone().fit(*rows)
            done = rows[0].shape[0] >= self.warmup
            self._prior = prior_from(fitted, temper=0.0) if done and self.change is not None else None
            self._hypotheses = [Hypothesis(fitted, 0.0, self._hypotheses[0].run + 1)]
            self._warm = None if done else rows
        if prediction is not None:
            _judge(prediction, Y, record)

    # -- tasks

    def score_tasks(self) -> dict[str, list[float]]:
        """Score the held-out sets of all tasks with the present posterior, and write a row of the history's task matrices; called
        by itself when a stream says that a task ended."""
        scores = self._scores()
        if scores:
            self.history.task_scores.append(scores)
        return scores

    def _env_sets(self) -> list[tuple[Tensor, Tensor]]:
        if self.env is None:
            return []
        sets = [self.env.test_set(task) for task in range(len(self.env.tasks))]
        return [(_rows(X), _rows(Y)) for X, Y in sets if len(X)]

    def _scores(self) -> dict[str, list[float]]:
        rows = [self._score(X, Y) for X, Y in self._test_sets or []]
        return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}

    def _score(self, X: Tensor, Y: Tensor) -> dict[str, float]:
        said = mixture([h.surrogate.predict(X) for h in self._hypotheses], [h.log_weight for h in self._hypotheses])
        if said.probs is not None:
            probs, labels = said.probs.double(), Y[:, 0].long()
            probs = probs / probs.sum(-1, keepdim=True)
            logs = probs.clamp_min(torch.finfo(torch.float64).tiny).log()  # a ruled-out label costs 708 nats, not infinity
            return {
                "accuracy": accuracy(probs, labels),
                "nll": log_loss(logs.log_softmax(-1), labels),
                "ece": expected_calibration_error(probs, labels),
            }
        mean, std = said.mean.double(), said.std.double()
        return {"rmse": rmse(Y, mean), "nll": nlpd(Y, mean, std), "coverage": coverage(Y, mean, std, LEVEL)}

    # -- state

    def _settings(self) -> dict[str, Any]:
        rule = None if self.change is None else {"rule": type(self.change).__name__, **_fields(self.change)}
        return {"surrogate": self._blank.name, "input_dim": self._blank.input_dim, "change": rule, "warmup": self.warmup}

    def state_dict(self) -> dict[str, Any]:
        """Everything the next predictions depend on, as a tree for :func:`seqbdl.serialization.save_tree`."""
        return {
            "version": STATE_VERSION,
            "settings": self._settings(),
            "history": self.history.to_tree(),
            "hypotheses": [
                {"surrogate": h.surrogate.save_state(), "log_weight": h.log_weight, "run": h.run, "decay": h.decay}
                for h in self._hypotheses
            ],
            "prior": None if self._prior is None else self._prior.save_state(),
            "warm": None if self._warm is None else list(self._warm),
            "asked": self._asked,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`, in a loop made with the same arguments.

        Raises:
            StateError: The state is of another version or of a loop with other settings.
        """
        check_state(state, STATE_VERSION, self._settings())
        self.history = StreamHistory.from_tree(state["history"])
        self._hypotheses = [
            Hypothesis(self._restored(h["surrogate"]), float(h["log_weight"]), int(h["run"]), float(h["decay"]))
            for h in state["hypotheses"]
        ]
        self._prior = None if state["prior"] is None else self._restored(state["prior"])
        self._warm = None if state["warm"] is None else (state["warm"][0], state["warm"][1])
        self._asked = state["asked"]

    def _restored(self, state: Mapping[str, Any]) -> Surrogate:
        return self._blank.clone().load_state(state)


def _judge(prediction: Prediction, Y: Tensor, record: StreamRecord) -> None:
    if prediction.probs is not None:
        best = prediction.probs.max(-1)
        record.accuracy = float((best.indices == Y[:, 0]).double().mean())
        record.confidence = float(best.values.mean())
        return
    low, high = prediction.interval(LEVEL)
    record.covered = float(((low <= Y) & (high >= Y)).double().mean())
    record.squared_error = float((prediction.mean - Y).square().mean())


def _fields(rule: ChangeRule) -> dict[str, Any]:
    return asdict(rule) if hasattr(rule, "__dataclass_fields__") else {}  # type: ignore[call-overload]


def _rows(value: Any) -> Tensor:
    return torch.as_tensor(np.asarray(value) if not isinstance(value, Tensor) else value, dtype=torch.float64)


def _no_rows(surrogate: Surrogate) -> tuple[Tensor, Tensor]:
    like = torch.zeros(0, surrogate.num_targets, dtype=torch.float64)
    return like.new_zeros(0, surrogate.input_dim), like


def _bytes(node: Any) -> int:
    if isinstance(node, Tensor):
        return node.numel() * node.element_size()
    if isinstance(node, Mapping):
        return sum(_bytes(value) for value in node.values())
    return sum(_bytes(value) for value in node) if isinstance(node, list | tuple) else 0
