"""Contextual bandits: any posterior chooses arms, and learns from rewards whenever they come."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.loops.bandit_arms import Arms, read_context, read_spaces
from seqbdl.loops.bandit_history import BanditHistory, Decision
from seqbdl.loops.bandit_learning import Learner, build_learner
from seqbdl.loops.bandit_policies import (
    check_policy,
    epsilon_greedy_probs,
    greedy_probs,
    ids_probs,
    thompson_probs,
    ucb_probs,
)
from seqbdl.loops.bandit_telling import read_observed, read_told
from seqbdl.loops.history import COMPLETE, FAILED, Record
from seqbdl.loops.settings import check_state
from seqbdl.serialization import generator_state
from seqbdl.surrogates import Surrogate

STATE_VERSION = 1
REWARDS = {"continuous": "gaussian", "binary": "bernoulli", "count": "poisson"}
NAN = float("nan")


class BanditLoop:
    """Ask which arm to play in a context, tell the reward when it comes; a posterior over rewards chooses.

    Every decision has an id, and the posterior moves only when a reward is told: late, in any order, one by one or many at
    once. One function draw is evaluated at all offered arms, so that a draw is coherent over arms.

    Args:
        env_or_spaces: A bandit environment, ``(context space, arm space)``, or ``(context_dim, num_arms)``.
        surrogate: ``"linear"`` or ``"neural-linear"`` (exact heads, one per arm; their options are those of
            :class:`seqbdl.surrogates.arm_heads.ArmHeadsModel`), a registered surrogate's name, or an instance for rows as
            ``arms`` makes them.
        policy: ``"thompson"``, ``"ucb"``, ``"ids"``, ``"epsilon-greedy"``, ``"greedy"`` or ``"uniform"``.
        arms: How a surrogate sees arms: ``"onehot"`` beside the context, ``"disjoint"`` (the outer product of the two),
            ``"features"`` beside the context, or ``"separate"``, one surrogate per arm. By default features where there are
            any, else one-hot. Exact heads need none.
        arm_features: ``K x p``; or given with every ``ask``.
        reward: ``"continuous"``, ``"binary"`` (0 or 1) or ``"count"``.
        initial_pulls: Of every arm, before the policy chooses.
        refit_every: Rewards between two fits (heads: retrainings of the features); a factor such as 1.5 refits whenever the
            rewards have grown by it; ``None``: fit once, then the posterior becomes the prior.
        absorb_every: Rewards that are waited for before the posterior moves.
        memory: Rows per arm that are kept for refits; ``None``: all, 0: none. Heads carry over what left the memory, other
            surrogates that are refitted forget it.
        forgetting: ``gamma`` of stabilized exponential forgetting per absorbed batch, of heads; ``ekf`` and ``lofi`` have their
            own, in ``surrogate_options``.
        propensity_samples: Function draws behind Thompson's propensities: it plays the best arm of one of them, so that given
            the draws they are exact. 0: one draw, no propensities.
        num_draws: Joint draws for ``"ids"`` and ``"ucb"``.
        epsilon: Of ``"epsilon-greedy"``.
        beta: Standard deviations that ``"ucb"`` adds.
        seed: Of everything random.
        surrogate_options: For :func:`seqbdl.make_surrogate`, or of the heads.

    Raises:
        InvalidOptionError: Settings that contradict each other.
        UnknownNameError: There is no such surrogate.
    """

    def __init__(
        self,
        env_or_spaces: Any,
        surrogate: str | Surrogate = "neural-linear",
        policy: str = "thompson",
        *,
        arms: str = "auto",
        arm_features: Any = None,
        reward: str = "continuous",
        initial_pulls: int = 2,
        refit_every: int | float | None = 50,
        absorb_every: int = 1,
        memory: int | None = None,
        forgetting: float = 1.0,
        propensity_samples: int = 100,
        num_draws: int = 256,
        epsilon: float = 0.1,
        beta: float = 2.0,
        seed: int = 0,
        surrogate_options: Mapping[str, Any] | None = None,
    ) -> None:
        check_policy(policy, epsilon, beta)
        if reward not in REWARDS:
            raise InvalidOptionError(f"reward={reward!r} is not one of {', '.join(map(repr, REWARDS))}")
        if initial_pulls < 0 or absorb_every < 1 or propensity_samples < 0 or num_draws < 2:
            raise InvalidOptionError(
                f"initial_pulls={initial_pulls}, absorb_every={absorb_every}, propensity_samples={propensity_samples}, "
                f"num_draws={num_draws}: counts, absorb_every at least 1 and num_draws at least 2"
            )
        context_dim, num_arms, bounds = read_spaces(env_or_spaces)
        self.space = Arms(context_dim, num_arms, arms, arm_features, surrogate)
        self.policy, self.reward, self.seed = policy, reward, seed
        self.initial_pulls, self.propensity_samples, self.num_draws = initial_pulls, propensity_samples, num_draws
        self.epsilon, self.beta = epsilon, beta
        self.generator = torch.Generator().manual_seed(seed)
        self.learner: Learner = build_learner(
            surrogate,
            self.space,
            bounds,
            REWARDS[reward],
            refit_every=refit_every,
            absorb_every=absorb_every,
            memory=memory,
            forgetting=forgetting,
            seed=seed,
            options=dict(surrogate_options or {}),
        )
        self.history = BanditHistory()
        self._pending: dict[int, Tensor] = {}
        self._asks = 0
        self._rounds: dict[int, int] = {}

    # -- what it knows

    @property
    def pending(self) -> list[int]:
        """Ids of decisions whose reward has not come."""
        return list(self._pending)

    @property
    def arms(self) -> list[int]:
        """Arms that can be played."""
        return list(self.space.available)

    def predict(self, context: Any) -> Tensor:
        """Expected reward of every arm that can be played: posterior means, of counts and chances those of 400 draws.

        Args:
            context: ``d`` numbers.
        """
        row = read_context(context, self.space.context_dim)
        self.learner.learn()
        if self.reward == "continuous":
            return self.learner.model.mean(self.space.rows(row, self.arms, None), self.arms)
        return self._draws(row, self.arms, None, 400, torch.Generator().manual_seed(self.seed)).mean(0)

    # -- ask

    def ask(self, observation: Any = None, n: int = 1, *, arms: Sequence[int] | None = None, arm_features: Any = None) -> Any:
        """Choose an arm. The posterior does not change by it.

        Args:
            observation: The context, ``d`` numbers; or ``k x d``, one decision for each row.
            n: Decisions in this context, each by a draw of its own.
            arms: Which arms are on offer; all by default.
            arm_features: ``k x p``, one row per arm on offer, where arms are seen by features.

        Returns:
            A :class:`Decision`; for ``n > 1`` or several contexts a list of them.

        Raises:
            ShapeError: The context has another size.
            InvalidDataError: It is not finite, or an arm does not exist.
        """
        contexts = read_context(observation, self.space.context_dim)
        if n < 1 or (contexts.dim() == 2 and n > 1):
            raise InvalidOptionError(f"n={n}; ask for at least one decision, and with several contexts leave n out")
        offered = self.space.offered(arms)
        features = self.space.read_features(arm_features, len(offered))
        start = time.perf_counter()
        rows = contexts if contexts.dim() == 2 else contexts.expand(n, -1)
        decisions = [self._decide(row, offered, features) for row in rows]
        for decision in decisions:
            self.history[decision.id].seconds_ask = (time.perf_counter() - start) / len(decisions)
        self._asks += 1
        return decisions if n > 1 or contexts.dim() == 2 else decisions[0]

    def _decide(self, context: Tensor, offered: list[int], features: Tensor | None) -> Decision:
        asked = [self.space.pulls[arm] for arm in offered]
        known = True
        if min(asked) < self.initial_pulls:
            source = "initial"
            probs = torch.tensor([float(count == min(asked)) for count in asked], dtype=torch.float64)
            probs /= probs.sum()
        else:
            source = "model"
            self.learner.learn()
            probs, known = self._probs(context, offered, features)
        place = int(torch.multinomial(probs, 1, generator=self.generator))
        record = self.history.append(self._asks, {"arm": offered[place]}, source)
        chances = tuple(probs.tolist()) if known else ()
        propensity = chances[place] if known else NAN
        decision = Decision(offered[place], record.step, propensity, chances, tuple(offered))
        self.history.decisions.append(decision)
        self.history.contexts.append(context.tolist())
        self.space.pulls[decision.arm] += 1
        self._pending[decision.id] = self.space.rows(context, offered, features)[place]
        return decision

    def _probs(self, context: Tensor, offered: list[int], features: Tensor | None) -> tuple[Tensor, bool]:
        if self.policy == "uniform":
            return torch.full((len(offered),), 1.0 / len(offered), dtype=torch.float64), True
        if self.policy in ("greedy", "epsilon-greedy"):
            mean = self.learner.model.mean(self.space.rows(context, offered, features), offered).double()
            return greedy_probs(mean) if self.policy == "greedy" else epsilon_greedy_probs(mean, self.epsilon), True
        if self.policy == "thompson":
            draws = self._draws(context, offered, features, max(self.propensity_samples, 1), self.generator)
            return thompson_probs(draws), self.propensity_samples > 0
        draws = self._draws(context, offered, features, self.num_draws, self.generator)
        return ids_probs(draws) if self.policy == "ids" else ucb_probs(draws, self.beta), True

    def _draws(self, context: Tensor, offered: list[int], features: Tensor | None, n: int, generator: torch.Generator) -> Tensor:
        latents = self.learner.model.draws(self.space.rows(context, offered, features), offered, n, generator).double()
        if self.reward == "binary":
            return latents.sigmoid()
        return latents.exp() if self.reward == "count" else latents

    # -- tell

    def tell(
        self,
        action: Any,
        outcome: Any = None,
        Yvar: Any = None,
        *,
        constraints: Any = None,
        failed: bool = False,
        reason: str = "",
        true_value: float | None = None,
    ) -> Any:
        """The reward of one decision, or of several. Everything is checked before anything changes.

        Args:
            action: A decision or its id; or a list.
            outcome: Its reward; a list for several. ``None``: still to come.
            Yvar: Not used.
            constraints: Rewards have none.
            failed: Whether no reward will come: the decision is closed and nothing is learned.
            reason: Why.
            true_value: The expected reward, where it is known; for the history only.

        Returns:
            The record, or the list of records.

        Raises:
            InvalidDataError: An id that was never given or told before, or a reward that is none.
        """
        if constraints is not None:
            raise InvalidOptionError("rewards have no constraints; leave them out")
        start = time.perf_counter()
        single, told = read_told(self.history, action, outcome, failed, self.reward)
        records = []
        for step, value in told:
            record = self.history[step]
            record.true_value = record.true_value if true_value is None else float(true_value)
            if failed:
                record.status, record.reason = FAILED, reason or "failed"
                self._pending.pop(step)
            elif value is not None:
                record.status, record.outcomes = COMPLETE, [value]
                self.learner.add(self._pending.pop(step), self.history.decisions[step].arm, value)
            record.seconds_tell = (time.perf_counter() - start) / len(told)
            records.append(record)
        return records[0] if single else records

    def observe(self, contexts: Any, arms: Any, rewards: Any, arm_features: Any = None) -> None:
        """Learn from decisions that others took.

        Args:
            contexts: ``n x d``.
            arms: ``n`` indices.
            rewards: ``n``.
            arm_features: ``n x p`` features of the played arms, where arms are seen by features that are not kept.
        """
        rows = read_observed(self.space, contexts, arms, rewards, self.reward, arm_features)
        for context, row, arm, value in rows:
            record = self.history.append(-1, {"arm": arm}, "told")
            record.status, record.outcomes = COMPLETE, [value]
            self.history.decisions.append(Decision(arm, record.step, NAN, (), (arm,)))
            self.history.contexts.append(context.tolist())
            self.space.pulls[arm] += 1
            self.learner.add(row, arm, value)

    def note(self, record: Record, info: Mapping[str, Any]) -> None:
        """What an environment says beside the reward: the regret, its round, rewards of earlier rounds that arrived."""
        if "regret" in info:
            self.history.regrets[record.step] = float(info["regret"])
        if "round" in info:
            self._rounds[int(info["round"])] = record.step
        arrived = [(self._rounds.pop(int(number)), value) for number, value in info.get("arrived", ())]
        if "arrived" not in info:
            self._rounds.clear()
        if arrived:
            self.tell([step for step, _ in arrived], [value for _, value in arrived])

    # -- arms that come and go, worlds that change

    def add_arm(self, features: Any = None) -> int:
        """One more arm, and its index; exact heads, separate surrogates, and arms seen by features only.

        Args:
            features: ``p`` numbers, where arms are seen by features.
        """
        arm = self.space.add(features)
        self.learner.add_arm()
        return arm

    def remove_arm(self, arm: int) -> None:
        """It is offered no more; rewards of its decisions may still be told."""
        self.space.remove(arm)

    def restore_arm(self, arm: int) -> None:
        """It is offered again."""
        self.space.restore(arm)

    def reset(self, arms: Sequence[int] | None = None) -> None:
        """Forget what was learned of some arms, or of all: the world has changed. Decisions stay open.

        Raises:
            InvalidDataError: There is no such arm.
        """
        chosen = list(range(self.space.num_arms)) if arms is None else self.space.known(arms)
        self.learner.reset(chosen)

    # -- state

    def _settings(self) -> dict[str, Any]:
        return {
            "surrogate": self.learner.name,
            "policy": self.policy,
            "reward": self.reward,
            "arms": self.space.encoding,
            "context_dim": self.space.context_dim,
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything the next decisions depend on, as a tree for :func:`seqbdl.serialization.save_tree`."""
        return {
            "version": STATE_VERSION,
            "settings": self._settings(),
            "history": self.history.to_tree(),
            "generator": generator_state(self.generator),
            "arms": self.space.state_dict(),
            "learner": self.learner.state_dict(),
            "pending": [[step, row] for step, row in self._pending.items()],
            "asks": self._asks,
            "rounds": [list(pair) for pair in self._rounds.items()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`.

        Raises:
            StateError: The state is of another version, or of a loop with other settings.
        """
        check_state(state, STATE_VERSION, self._settings())
        self.history = BanditHistory.from_tree(state["history"])
        while self.space.num_arms < int(state["arms"]["num_arms"]):
            self.space.add(None, check=False)
            self.learner.add_arm()
        self.space.load_state_dict(state["arms"])
        self.learner.load_state_dict(state["learner"])
        self.generator.set_state(state["generator"].to(torch.uint8))
        self._pending = {int(step): row for step, row in state["pending"]}
        self._asks = int(state["asks"])
        self._rounds = {int(number): int(step) for number, step in state["rounds"]}
