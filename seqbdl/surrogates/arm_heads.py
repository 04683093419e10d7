"""Exact linear and neural-linear models of many arms: one network of features, one exact head per arm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.arm_features import FeatureSettings, Layers, arm_features, fit_features, start_layers
from seqbdl.inference.arm_heads import (
    ArmHeads,
    ArmPrior,
    absorb_arm_rows,
    change_prior,
    draw_weights,
    forget,
    forget_directions,
    forget_exponentially,
    log_density,
    match_heads,
    prior_heads,
    tune_prior,
)

FORGETTING_KINDS = ("stabilized", "exponential", "directional")


class ArmHeadsModel:
    """Rewards of ``K`` arms, linear in features of the context; weights and noise of every arm exact (normal-inverse-gamma).

    Rows are remembered to retrain the features: all, or the last ``memory`` per arm. Rows that leave the memory stay in the
    posterior; when the features change, what those rows said is carried over by likelihood matching, and the remembered
    rows are absorbed anew, exactly.

    Args:
        context_dim: ``d``.
        num_arms: ``K``.
        hidden: Widths of the network; ``()``: linear in the context. A constant is always added.
        prior_precision: ``alpha`` of the weights, relative to the noise precision; ``None``: by the evidence whenever features
            are retrained (of a linear model: whenever they would be), from 0.25 on.
        a0: Shape of the noise's inverse-gamma prior.
        b0: Its scale; ``None``: by the evidence, from 6 on.
        forgetting: ``gamma`` per absorbed call.
        forgetting_kind: ``"stabilized"``, all arms towards the prior (:func:`seqbdl.inference.arm_heads.forget`);
            ``"exponential"``, all arms towards ignorance; or ``"directional"``, arms that get rows, where those rows speak.
        memory: Rows per arm; ``None``: all; 0 with ``hidden=()`` only.
        steps: Minibatches per retraining.
        batch_size: Rows of one.
        learning_rate: Of Adam.
        reset_threshold: An arm goes back to its prior when its cumulated log density ratio of prior to posterior predictive
            exceeds this (CUSUM; Page 1954): an abrupt change. ``None``: never.
        seed: Of its generator.

    Raises:
        InvalidOptionError: A value is out of range.
    """

    name = "arm-heads"

    def __init__(
        self,
        context_dim: int,
        num_arms: int,
        hidden: tuple[int, ...] = (50,),
        prior_precision: float | None = 0.25,
        a0: float = 6.0,
        b0: float | None = 6.0,
        forgetting: float = 1.0,
        forgetting_kind: str = "stabilized",
        memory: int | None = None,
        steps: int = 100,
        batch_size: int = 512,
        learning_rate: float = 0.01,
        reset_threshold: float | None = None,
        seed: int = 0,
    ) -> None:
        self._tuned = (prior_precision is None, b0 is None)
        prior_precision, b0 = 0.25 if prior_precision is None else prior_precision, 6.0 if b0 is None else b0
        if not (prior_precision > 0 and a0 > 0 and b0 > 0):
            raise InvalidOptionError(f"prior_precision={prior_precision}, a0={a0}, b0={b0} must be positive")
        if not 0.0 < forgetting <= 1.0:
            raise InvalidOptionError(f"forgetting={forgetting} must be in (0, 1]; 1 forgets nothing")
        if forgetting_kind not in FORGETTING_KINDS:
            raise InvalidOptionError(f"forgetting_kind={forgetting_kind!r} is not one of {', '.join(FORGETTING_KINDS)}")
        if memory is not None and memory < (1 if hidden else 0):
            raise InvalidOptionError(f"memory={memory}; features are retrained on remembered rows, give at least 1, or None")
        if forgetting < 1.0 and hidden and memory is None:
            raise InvalidOptionError("forgetting with retrained features needs a bounded memory, such as memory=100")
        if any(self._tuned) and (forgetting < 1.0 or (hidden and memory is not None)):
            raise InvalidOptionError(
                "prior_precision=None, b0=None: rows that are forgotten, or carried over to other features, have no evidence; "
                "give numbers"
            )
        if reset_threshold is not None and not reset_threshold > 0:
            raise InvalidOptionError(f"reset_threshold={reset_threshold} must be positive, or None")
        self.context_dim, self.num_arms = context_dim, num_arms
        self.settings = FeatureSettings(tuple(hidden), steps, batch_size, learning_rate)
        self.prior = ArmPrior(float(prior_precision), float(a0), float(b0))
        self.forgetting, self.forgetting_kind = forgetting, forgetting_kind
        self.memory, self.reset_threshold = memory, reset_threshold
        self.generator = torch.Generator().manual_seed(seed)
        self.layers: Layers = start_layers(context_dim, num_arms, self.settings, self.generator)
        self.num_features = (hidden[-1] if hidden else context_dim) + 1
        self.heads = self._prior()
        self.carried = self._prior()  # rows that left the memory, under the present features
        self._rows: list[tuple[Tensor, int, float]] = []
        self._alarm = torch.zeros(num_arms, dtype=torch.float64)

    def _prior(self) -> ArmHeads:
        return prior_heads(self.num_arms, self.num_features, self.prior)

    def features(self, X: Tensor) -> Tensor:
        """``n x d`` to ``n x F``, the last column constant."""
        return arm_features(self.layers, X)

    def absorb(self, X: Tensor, arms: Tensor, rewards: Tensor) -> None:
        """Learn rows ``X: n x d``, ``arms: n``, ``rewards: n``, under the present features, exactly."""
        phi = self.features(X)
        if self.reset_threshold is not None:
            for row, arm, reward in zip(phi, arms.tolist(), rewards.tolist(), strict=True):
                self._watch(row, arm, reward)
        heads, carried = self.heads, self.carried
        if self.forgetting < 1.0:
            heads, carried = (self._forgotten(state, phi, arms) for state in (heads, carried))
        self.heads, self.carried = absorb_arm_rows(heads, phi, arms, rewards), carried
        if self.settings.hidden:
            self._rows += list(zip(X, arms.tolist(), rewards.tolist(), strict=True))
            self._trim()

    def _forgotten(self, state: ArmHeads, phi: Tensor, arms: Tensor) -> ArmHeads:
        if self.forgetting_kind == "stabilized":
            return forget(state, self._prior(), self.forgetting)
        if self.forgetting_kind == "exponential":
            return forget_exponentially(state, self.forgetting)
        return forget_directions(state, phi, arms, self.forgetting)

    def _watch(self, features: Tensor, arm: int, reward: float) -> None:
        ratio = log_density(self._prior(), features, arm, reward) - log_density(self.heads, features, arm, reward)
        self._alarm[arm] = max(0.0, float(self._alarm[arm]) + ratio)
        if self.reset_threshold is not None and self._alarm[arm] > self.reset_threshold:
            self.reset([arm])

    def reset(self, arms: list[int]) -> None:
        """Forget all that is known of some arms."""
        prior = self._prior()

        def cleared(state: ArmHeads) -> ArmHeads:
            fields = {name: value.clone() for name, value in state.__dict__.items()}
            for name, value in fields.items():
                value[arms] = getattr(prior, name)[arms]
            return ArmHeads(**fields)

        self.heads, self.carried = cleared(self.heads), cleared(self.carried)
        self._rows = [row for row in self._rows if row[1] not in arms]
        self._alarm[arms] = 0.0

    def _trim(self) -> None:
        if self.memory is None:
            return
        counts = [0] * self.num_arms
        keep: list[tuple[Tensor, int, float]] = []
        leave: list[tuple[Tensor, int, float]] = []
        for row in reversed(self._rows):
            counts[row[1]] += 1
            (keep if counts[row[1]] <= self.memory else leave).append(row)
        self._rows = keep[::-1]
        if leave:
            X, arms, rewards = _stack(leave[::-1])
            self.carried = absorb_arm_rows(self.carried, self.features(X), arms, rewards)

    def retrain(self) -> None:
        """Fit the features to the remembered rows, rebuild every arm's posterior under them, and tune the prior where that is
        asked for."""
        if self.settings.hidden and self._rows:
            self._refit_features()
        if any(self._tuned):
            old, self.prior = self.prior, tune_prior(self.heads, self.prior, *self._tuned)
            self.heads, self.carried = change_prior(self.heads, old, self.prior), self._prior()

    def _refit_features(self) -> None:
        X, arms, rewards = _stack(self._rows)
        before = self.layers
        self.layers = fit_features(self.layers, X, arms, rewards, self.settings, self.generator)
        new = self.features(X)
        if self.memory is not None:
            old = arm_features(before, X)
            gone = self.carried.a > self._prior().a + 1e-9
            if bool(gone.any()):
                rows = gone[arms]
                self.carried = match_heads(self.carried, old[rows], new[rows], arms[rows], self._prior())
        base = self._prior() if self.memory is None else self.carried
        self.heads = absorb_arm_rows(base, new, arms, rewards)

    def add_arm(self) -> None:
        """One more arm, of which only the prior is known."""
        self.num_arms += 1
        one = prior_heads(1, self.num_features, self.prior)
        for name in ("heads", "carried"):
            state = getattr(self, name)
            joined = {key: torch.cat([value, getattr(one, key)]) for key, value in state.__dict__.items()}
            setattr(self, name, ArmHeads(**joined))
        self._alarm = torch.cat([self._alarm, self._alarm.new_zeros(1)])
        weights, biases = self.layers[-1]
        self.layers[-1] = (torch.cat([weights, weights.mean(1, keepdim=True)], 1), torch.cat([biases, biases.mean().reshape(1)]))

    def draws(self, x: Tensor, arms: list[int], n: int, generator: torch.Generator) -> Tensor:
        """``n x k`` expected rewards of some arms in the context ``x: d``, under ``n`` draws of all arms' weights."""
        return (draw_weights(self.heads, n, generator) @ self.features(x.unsqueeze(0))[0])[:, arms]

    def mean(self, x: Tensor, arms: list[int]) -> Tensor:
        """``k`` posterior mean rewards."""
        return (self.heads.mean @ self.features(x.unsqueeze(0))[0])[arms]

    def log_evidence(self) -> float:
        """Of the rows under the present features; with forgetting or a bounded memory, what accumulated."""
        return float(self.heads.log_evidence.sum())

    def state_dict(self) -> dict[str, Any]:
        """Everything, as a tree."""
        rows = _stack(self._rows) if self._rows else None
        return {
            "settings": asdict(self.settings),
            "num_arms": self.num_arms,
            "prior": asdict(self.prior),
            "layers": [list(layer) for layer in self.layers],
            "heads": dict(self.heads.__dict__),
            "carried": dict(self.carried.__dict__),
            "rows": None if rows is None else list(rows),
            "alarm": self._alarm,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self.num_arms, self.prior = int(state["num_arms"]), ArmPrior(**state["prior"])
        self.layers = [(layer[0], layer[1]) for layer in state["layers"]]
        self.heads, self.carried = ArmHeads(**state["heads"]), ArmHeads(**state["carried"])
        rows = state["rows"]
        self._rows = [] if rows is None else list(zip(rows[0], rows[1].tolist(), rows[2].tolist(), strict=True))
        self._alarm = state["alarm"].clone()
        self.generator.set_state(state["generator"].to(torch.uint8))


def _stack(rows: list[tuple[Tensor, int, float]]) -> tuple[Tensor, Tensor, Tensor]:
    X, arms, rewards = zip(*rows, strict=True)
    return torch.stack(X), torch.tensor(arms), torch.tensor(rewards, dtype=torch.float64)
