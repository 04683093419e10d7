"""Training of design policies, and the bounds that say what a policy teaches."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import trange

from seqbdl.acquisition.eig.bounds import Bounds
from seqbdl.acquisition.eig.contrastive import contrastive_bounds
from seqbdl.acquisition.eig.critics import BOUNDS
from seqbdl.acquisition.eig.model import ThetaSource, goal_of, simulate_outcomes
from seqbdl.acquisition.eig.sequences import history_log_likelihood, sequence_bounds
from seqbdl.acquisition.policies.box import DesignBox
from seqbdl.acquisition.policies.policy import DesignPolicy
from seqbdl.errors import DivergedError, InvalidOptionError

OBJECTIVES = ("auto", "spce", *BOUNDS)
_PILOT = 2048
"""Prior draws whose moments scale outcomes and parameters."""
_SPREAD = 0.3
"""Root mean square of the logits of an untrained policy's designs: they lie in the middle tenth or two of the box."""
_WARM_UP = 0.1
"""Share of the updates over which the learning rate rises."""


@dataclass(frozen=True)
class PolicySettings:
    """How a policy is trained.

    Attributes:
        objective: ``"spce"``: the contrastive lower bound of a model with a likelihood (A. Foster et al., "Deep adaptive design",
            ICML 2021); ``"infonce"`` or ``"nwj"``: a critic that is trained with the policy, for simulators (D. Ivanova et al.,
            "Implicit deep adaptive design", NeurIPS 2021; the first quarter of the updates is for the critic alone); ``"auto"``:
            the first where the model has ``log_prob`` and no ``goal``, else ``"infonce"``.
        updates: Of Adam.
        batch_size: Histories in each.
        num_contrastive: Contrastive draws ``L`` of ``"spce"``, shared by the histories of a batch; it cannot see more than
            ``log(L + 1)`` nats. For critics the other histories' parameters are the contrast: ``log(batch_size)``.
        learning_rate: The largest; it rises over the first tenth of the updates, and falls to zero along a cosine. Much larger
            rates can scatter designs over the box, where outcomes tell little and nothing leads back: look at ``trace``.
        gradient_limit: Of one history's gradient in one design, in nats for a unit of the design's logit; longer ones are
            shortened. Near a singularity of the model, single histories outweigh all others without it.
        hidden: Width of all hidden layers.
        code: Entries of the code of a history.
    """

    objective: str = "auto"
    updates: int = 1000
    batch_size: int = 128
    num_contrastive: int = 255
    learning_rate: float = 1e-3
    gradient_limit: float = 1.0
    hidden: int = 128
    code: int = 16

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise InvalidOptionError(f"objective={self.objective!r} is not one of {', '.join(map(repr, OBJECTIVES))}")
        least = {"updates": 1, "batch_size": 2, "num_contrastive": 1, "hidden": 1, "code": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise InvalidOptionError(f"{name}={value!r}; it is a number of at least {low}")
        if not 0 < self.learning_rate < math.inf:
            raise InvalidOptionError(f"learning_rate={self.learning_rate}; it is a positive number")
        if not self.gradient_limit > 0:
            raise InvalidOptionError(f"gradient_limit={self.gradient_limit}; it is positive, and infinite for none")


def train_policy(
    model: Any,
    box: DesignBox,
    horizon: int,
    settings: PolicySettings | None = None,
    *,
    generator: torch.Generator | None = None,
    progress: bool = True,
    **options: Any,
) -> DesignPolicy:
    """A policy that learned, from simulated experiments, which designs teach most in ``horizon`` steps.

    The bound has local optima, such as a good design twice: with another ``generator`` training may end elsewhere, and
    :func:`policy_bounds` says which policy to keep.

    Gradients go through the outcomes of a ``reparametrized`` model; without, ``"spce"`` uses the score function with a
    leave-one-out baseline, and ``log_prob`` must be differentiable in the design.

    Args:
        model: ``sample`` and ``simulate``, and ``log_prob`` where there is a likelihood; see
            :class:`seqbdl.acquisition.eig.DesignModel`.
        box: Of the designs.
        horizon: Experiments in a history.
        settings: See :class:`PolicySettings`; ``options`` replace single ones.
        generator: Of everything random.
        progress: Whether to show a progress bar.

    Raises:
        InvalidOptionError: Settings that the model does not allow.
        DivergedError: A gradient that is not finite.
    """
    settings = _settings(settings, options)
    objective = _objective(model, settings.objective)
    if isinstance(horizon, bool) or not isinstance(horizon, int) or horizon < 1:
        raise InvalidOptionError(f"horizon={horizon!r}; it is a number of experiments, at least 1")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    policy = _start(model, box, horizon, settings, objective, generator)
    adam = torch.optim.Adam(policy.parameters(), settings.learning_rate, betas=(0.8, 0.998))
    rates = torch.optim.lr_scheduler.LambdaLR(adam, lambda i: _rate(i / settings.updates, 1 / settings.updates))
    bar = trange(settings.updates, disable=not progress, unit="update")
    for i in bar:
        adam.zero_grad()
        if policy.critic is None:
            value, surrogate = _contrastive_step(model, policy, settings, generator)
        else:
            value, surrogate = _critic_step(model, policy, settings, generator, i / settings.updates)
        (-surrogate).backward()
        for name, parameter in policy.named_parameters():
            if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
                raise DivergedError(
                    f"the gradient of {name} is not finite; lower learning_rate, or mend the gradients of the model's simulate "
                    "and log_prob in the design"
                )
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        adam.step()
        rates.step()
        policy.trace.append(float(value))
        bar.set_postfix_str(f"{objective} {float(value):.2f} nats", refresh=False)
    return policy.requires_grad_(False)


def rollout(
    policy: DesignPolicy,
    model: Any,
    theta: Tensor,
    horizon: int | None = None,
    generator: torch.Generator | None = None,
    differentiable: bool = False,
    gradient_limit: float = math.inf,
) -> tuple[Tensor, Tensor]:
    """Histories of a policy, designs ``R x T x d`` and outcomes ``R x T x m``.

    Args:
        policy: Which designs to choose.
        model: What answers.
        theta: ``R x p``, the true parameters of each history.
        horizon: ``T``; that of the policy by default.
        generator: Of the noise.
        differentiable: Whether gradients go through the outcomes.
        gradient_limit: Of the gradient of ``R`` times the objective in the logits of one design of one history.
    """
    total = torch.zeros(theta.shape[0], policy.code, dtype=torch.float64)
    designs, outcomes = [], []
    for _ in range(policy.horizon if horizon is None else horizon):
        logits = policy.emitter(total)
        if logits.requires_grad and gradient_limit < math.inf:
            logits.register_hook(partial(_shortened, limit=gradient_limit / theta.shape[0]))
        design = policy.from_logits(logits)
        y = simulate_outcomes(model, theta, design, generator).double()
        y = y if differentiable else y.detach()
        total = total + policy.encoder(design, y)
        designs.append(design)
        outcomes.append(y)
    return torch.stack(designs, dim=-2), torch.stack(outcomes, dim=-2)


def _shortened(rows: Tensor, limit: float) -> Tensor:
    """Rows with their direction, and the limit as their largest length; not finite ones stay, to be found."""
    length = rows.norm(dim=-1, keepdim=True)
    return torch.where(length > limit, rows * (limit / length), rows)


def policy_bounds(
    policy: DesignPolicy,
    model: Any,
    num_runs: int = 512,
    num_contrastive: int = 10_000,
    horizon: int | None = None,
    generator: torch.Generator | None = None,
) -> Bounds:
    """What a policy teaches, on new histories.

    Where the model has a likelihood: sPCE from below and sNMC from above. Where the policy has a critic: the critic's bound from
    below, of eight sets of ``num_runs / 8`` histories each; nothing from above.

    Args:
        policy: Trained or not.
        model: What answers.
        num_runs: Histories.
        num_contrastive: ``L`` of sPCE and sNMC.
        horizon: ``T``; that of the policy by default.
        generator: Of all draws.

    Returns:
        Scalar bounds.
    """
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    with torch.no_grad():
        theta = model.sample(num_runs, generator)
        designs, outcomes = rollout(policy, model, theta, horizon, generator)
        if policy.critic is None:
            return sequence_bounds(model, designs, outcomes, theta, num_contrastive, generator)
        if num_runs < 16:
            raise InvalidOptionError(f"num_runs={num_runs}; a critic is judged on eight sets of two histories or more")
        goals = goal_of(model, theta)
        sets = [part[: num_runs // 8] for part in torch.arange(num_runs).tensor_split(8)]
        scores = torch.stack([policy.critic(designs[i], outcomes[i], goals[i]) for i in sets])
        return BOUNDS[policy.objective](scores)


def _rate(done: float, step: float) -> float:
    """The learning rate of an update, as a share of the largest."""
    return min(1.0, (done + step) / _WARM_UP) * 0.5 * (1 + math.cos(math.pi * done))


def _settings(settings: PolicySettings | None, options: dict[str, Any]) -> PolicySettings:
    known = {field.name for field in fields(PolicySettings)}
    unknown = sorted(set(options) - known)
    if unknown:
        raise InvalidOptionError(f"unknown option {unknown[0]!r}; the settings of a policy are {', '.join(sorted(known))}")
    base = settings if settings is not None else PolicySettings()
    return PolicySettings(**{**base.__dict__, **options})


def _objective(model: Any, wanted: str) -> str:
    explicit = callable(getattr(model, "log_prob", None))
    if wanted == "auto":
        wanted = "spce" if explicit and not hasattr(model, "goal") else "infonce"
    if wanted == "spce" and not explicit:
        raise InvalidOptionError("objective='spce' needs a model with log_prob; use 'infonce' for a simulator")
    if wanted != "spce" and not getattr(model, "reparametrized", False):
        raise InvalidOptionError(
            f"objective={wanted!r} needs gradients through outcomes: a simulate that is differentiable in the design, and "
            "reparametrized = True"
        )
    return wanted


def _start(
    model: Any, box: DesignBox, horizon: int, settings: PolicySettings, objective: str, generator: torch.Generator
) -> DesignPolicy:
    """An untrained policy that knows the scales of the problem."""
    with torch.no_grad():
        theta = model.sample(_PILOT, generator)
        u = torch.rand(_PILOT, box.dim, generator=generator, dtype=torch.float64)
        y = simulate_outcomes(model, theta, box.from_unit(u), generator).double()
        moments = None if objective == "spce" else _moments(goal_of(model, theta).double())
        policy = DesignPolicy(box, *_moments(y), horizon, settings.hidden, settings.code, generator, objective, moments)
        # The designs of an untrained network are nearly the same after every history, and repeated designs are often a local
        # optimum. Here the first is the middle of the box, and those after histories at random are spread around it: not as far
        # as the box, whose rim may be so poor in information that nothing leads back.
        codes = policy.encoder(*_random_histories(model, policy, theta, generator)).cumsum(-2)
        first = policy.emitter(torch.zeros(settings.code, dtype=torch.float64))
        gain = _SPREAD / (policy.emitter(codes) - first).square().mean((0, 1)).sqrt()
        policy.emitter.weights[-1].mul_(gain)
        policy.emitter.biases[-1].sub_(first).mul_(gain)
    return policy


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    sd = rows.std(0)
    return rows.mean(0), torch.where(sd > 0, sd, 1.0)


def _random_histories(model: Any, policy: DesignPolicy, theta: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Histories of designs drawn from the box, one for each of the parameters."""
    u = torch.rand(len(theta), policy.horizon, policy.box.dim, generator=generator, dtype=torch.float64)
    designs = policy.box.from_unit(u)
    steps = [simulate_outcomes(model, theta, design, generator).double() for design in designs.unbind(-2)]
    return designs, torch.stack(steps, dim=-2)


def _contrastive_step(
    model: Any, policy: DesignPolicy, settings: PolicySettings, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """sPCE of a batch of histories, and what has its gradient."""
    source: ThetaSource = model
    theta = source.sample(settings.batch_size, generator)
    pathwise = bool(getattr(model, "reparametrized", False))
    designs, outcomes = rollout(
        policy, model, theta, generator=generator, differentiable=pathwise, gradient_limit=settings.gradient_limit
    )
    contrast = source.sample(settings.num_contrastive, generator)
    own = history_log_likelihood(model, designs, outcomes, theta)
    other = history_log_likelihood(model, designs.unsqueeze(1), outcomes.unsqueeze(1), contrast)
    bound = contrastive_bounds(own.unsqueeze(-1), other.unsqueeze(-2)).lower  # N, of one history each
    assert bound is not None
    value = bound.mean().detach()
    if pathwise:
        return value, bound.mean()
    rest = (bound.detach().sum() - bound.detach()) / (len(bound) - 1)
    return value, (bound + (bound.detach() - rest) * own).mean()


def _critic_step(
    model: Any, policy: DesignPolicy, settings: PolicySettings, generator: torch.Generator, done: float
) -> tuple[Tensor, Tensor]:
    """The critic's bound of a batch of histories, and what has its gradient.

    A critic that knows only what the policy does now cannot tell it that other designs are better. Until three quarters are
    ``done`` it learns from histories at random designs too, and in the first quarter from these alone.
    """
    source: ThetaSource = model
    theta = source.sample(settings.batch_size, generator)
    histories = []
    if done < 0.75:
        histories.append(_random_histories(model, policy, theta, generator))
    if done >= 0.25:
        limit = settings.gradient_limit
        histories.append(rollout(policy, model, theta, generator=generator, differentiable=True, gradient_limit=limit))
    assert policy.critic is not None
    goals = goal_of(model, theta)
    bounds = [BOUNDS[policy.objective](policy.critic(*history, goals).unsqueeze(0)).lower for history in histories]
    total = torch.stack([bound for bound in bounds if bound is not None])
    return total[-1].detach(), total.sum()
