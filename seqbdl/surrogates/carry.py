"""Posterior as prior between models: a fresh surrogate that begins where another one ended, trusted as far as is asked.

With ``q`` the posterior and ``p0`` the prior that it came from, the new prior is the power prior ``q^b p0^(1 - b)`` (Ibrahim and
Chen 2000), which for a posterior ``q`` in proportion to ``p0 L`` is ``p0 L^b``: the old data with their likelihood to the power
``b``. Of Gaussians over weights the natural parameters mix, ``b eta_q + (1 - b) eta_0``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import singledispatch
from typing import TypeVar

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference import last_layer
from seqbdl.inference.ekf import DenseBelief, DiagonalBelief
from seqbdl.inference.lofi import LowRankBelief
from seqbdl.inference.recursion import Belief
from seqbdl.posteriors import kernel_conditioning as conditioning
from seqbdl.posteriors.joint_gaussian import safe_cholesky
from seqbdl.posteriors.mean_field import MeanField
from seqbdl.posteriors.operators import LowRank
from seqbdl.surrogates.base import Surrogate
from seqbdl.surrogates.bayesian_last_layer import _KNOWN, _SHAPE, BayesianLastLayerSurrogate
from seqbdl.surrogates.continual import ContinualSurrogate
from seqbdl.surrogates.filter import FilterSurrogate
from seqbdl.surrogates.fsvi import FSVISurrogate
from seqbdl.surrogates.inducing import InducingSurrogate
from seqbdl.surrogates.kernel import KernelSurrogate
from seqbdl.surrogates.variational import VariationalSurrogate

AnySurrogate = TypeVar("AnySurrogate", bound=Surrogate)

_NOISES = ("_noise_inner", "_learned_noise", "_noise_factor", "_member_noise")  # where methods keep noise that they learned
_NOTHING = 1e-9  # the share of a row's likelihood that counts as none


def prior_from(
    posterior: AnySurrogate, temper: float = 1.0, inflate: float = 0.0, reset_heads: Sequence[int] = ()
) -> AnySurrogate:
    """A new surrogate whose prior is the tempered posterior of another; learn with ``update`` (``fit`` would start over).

    Filters and mean fields mix natural parameters, Gaussian processes raise the noise of the rows that they hold: exact. So does
    the head of ``bayesian-last-layer`` where the rows behind it are gone (a stream's), and its features stay. All others are
    fitted again to the rows that they were trained on, whose noise variances are divided by ``temper`` (of labels and counts: to
    so large a random share of the rows), which costs a fit and needs those rows at hand; of ``swag``, ``multiswag`` and
    ``mc-dropout``, whose spread step sizes and rates decide, it moves the mean and not the spread.
    Scales of inputs and outcomes stay. ``train_inputs`` of the result are empty; its ``log_evidence()`` says nothing.

    Args:
        posterior: A surrogate; it does not change.
        temper: ``b``: 1 trusts all, 0 goes back to the prior before data (with the hyperparameters learned since).
        inflate: ``a``: Gaussians over weights have their covariance multiplied by ``1 + a`` after tempering, beyond that of
            the prior if need be. All others divide ``temper`` by ``1 + a`` instead.
        reset_heads: Outputs (or classes) whose own weights go back to the prior, of ``ekf``, ``lofi``, ``mfvi`` and ``ivon``
            (of ``lofi``: given the other weights at their mean, the correlations being dropped from the precision).

    Raises:
        InvalidOptionError: An argument is out of range, the surrogate is a view or a fantasy, it cannot reset heads, or the
            rows to fit again are no longer there.
    """
    if not 0.0 <= temper <= 1.0 or not 0.0 <= inflate < float("inf"):
        raise InvalidOptionError(f"temper={temper} must be in [0, 1] and inflate={inflate} a number of at least 0")
    posterior._require_whole("prior_from")
    twin = copy.deepcopy(posterior)
    if twin.train_inputs is None:
        return twin
    with torch.no_grad():
        if temper < 1.0 or inflate > 0.0:
            _temper(twin, temper, inflate)
        if len(reset_heads):
            _reset(twin, reset_heads)
    twin._settle()
    assert twin._X is not None
    assert twin._Y is not None
    twin._X, twin._Y, twin._Yvar, twin._num_rows = twin._X[:0], twin._Y[:0], None, 0
    twin._inherits = temper > 0.0
    return twin


@singledispatch
def _temper(twin: Surrogate, temper: float, inflate: float) -> None:
    """In place, by the most special class that has a rule; without one the surrogate is fitted again."""
    _refit(twin, temper / (1.0 + inflate))


_refitted = _temper.dispatch(Surrogate)
_temper.register(FSVISurrogate, _refitted)  # its prior is over functions
_temper.register(InducingSurrogate, _refitted)  # sums over its basis hold no rows apart


@_temper.register
def _(twin: FilterSurrogate, temper: float, inflate: float) -> None:
    twin._belief = temper_belief(twin._belief, twin._start[0], twin.initial_covariance, temper, inflate)


@_temper.register
def _(twin: VariationalSurrogate, temper: float, inflate: float) -> None:
    twin._q = temper_mean_field(twin._q, twin._prior_components(), temper, inflate)
    twin._elbo = None
    twin._z, twin._log_weights = twin._particles()


@_temper.register
def _(twin: ContinualSurrogate, temper: float, inflate: float) -> None:
    twin._carried = twin.method.tempered(twin._carried, temper, inflate)
    twin._z = twin._draw_members()


@_temper.register
def _(twin: KernelSurrogate, temper: float, inflate: float) -> None:
    share = temper / (1.0 + inflate)
    if twin._conditioning.phi is None:
        _temper_kernel(twin, share)
    else:  # beyond max_rows
        _refit(twin, share)


@_temper.register
def _(twin: BayesianLastLayerSurrogate, temper: float, inflate: float) -> None:
    share = temper / (1.0 + inflate)
    if _holds_rows(twin):
        X, Y = _refit(twin, share)
        _temper_head(twin, X, Y, max(share, _NOTHING))
    else:
        twin._head = last_layer.tempered(twin._head, twin._prior_head, share)


def temper_belief(belief: Belief, centre: Tensor, variance: float, temper: float, inflate: float = 0.0) -> Belief:
    """The power prior of a filter's belief, whose prior was ``N(centre, variance I)``.

    Args:
        belief: Of the extended Kalman filter, full or diagonal, or of LO-FI.
        centre: ``P``.
        variance: Of every weight.
        temper: ``b``.
        inflate: ``a``.
    """
    rest, scale = (1.0 - temper) / variance, 1.0 + inflate
    deviation = belief.mean - centre
    if isinstance(belief, DenseBelief):
        eye = torch.eye(centre.shape[0]).to(centre)
        precision = temper * torch.cholesky_inverse(safe_cholesky(belief.covariance))
        covariance = torch.cholesky_inverse(safe_cholesky(precision + rest * eye))
        return DenseBelief(centre + covariance @ (precision @ deviation), scale * 0.5 * (covariance + covariance.T))
    if isinstance(belief, DiagonalBelief):
        old = temper / belief.variance
        return DiagonalBelief(centre + old / (old + rest) * deviation, scale / (old + rest), belief.variational)
    assert isinstance(belief, LowRankBelief)
    entries, factor = temper * belief.entries + rest, temper**0.5 * belief.factor
    pull = temper * (belief.entries * deviation + (belief.factor @ deviation) @ belief.factor)
    mean = centre + LowRank(entries, factor.T).solve(pull)
    return replace(belief, mean=mean, entries=entries / scale, factor=factor / scale**0.5)


def temper_mean_field(q: MeanField, prior: MeanField, temper: float, inflate: float = 0.0) -> MeanField:
    """The power prior of mean-field Gaussians, component by component."""
    old, new = temper * q.sd.pow(-2), (1.0 - temper) * prior.sd.pow(-2)
    mean = (old * q.mean + new * prior.mean) / (old + new)
    return MeanField(mean, ((1.0 + inflate) / (old + new)).sqrt())


def _temper_kernel(twin: KernelSurrogate, share: float) -> None:
    state = twin._conditioning
    if share <= _NOTHING:
        twin._basis = twin._basis[:0]
        twin._conditioning = conditioning.empty(state.weights.shape[0], state.weights)
        return
    K = twin._kernel(twin._basis, twin._basis)
    twin._conditioning = conditioning.condition_exact(K, state.residual, state.noise / share)


def _holds_rows(twin: Surrogate) -> bool:
    """Whether all that it learned is in the rows at hand."""
    return twin._X is not None and twin._X.shape[0] == twin._num_rows > 0 and not twin._inherits


def _refit(twin: Surrogate, share: float) -> tuple[Tensor, Tensor]:
    """The surrogate fitted again to its rows, each counting for a share of one; these rows."""
    X, Y = twin._X, twin._Y
    assert X is not None
    assert Y is not None
    if not _holds_rows(twin):
        raise InvalidOptionError(
            f"temper, inflate: {twin.name!r} is tempered by its training rows, and those of this one are gone; temper the"
            " surrogate that was trained on all of them"
        )
    if twin._lik.has_noise:
        variance = twin._known_variances(twin._Yvar, Y) / max(share, _NOTHING)
        inner = twin._scaling.variances(variance)
        picks = torch.arange(X.shape[0])
    else:
        count = max(1, round(share * X.shape[0]))
        picks, inner = torch.randperm(X.shape[0], generator=twin.generator)[:count].sort().values, None
        variance = None
    kept = {name: getattr(twin, name) for name in _NOISES if hasattr(twin, name)}
    known, twin._Yvar = twin._Yvar, variance
    with _hyperparameters_held(twin), torch.enable_grad():
        twin._fit(twin._scaling.inputs(X[picks]), twin._scaling.outcomes(Y[picks]), inner)
    for name, value in kept.items():  # the noise of new rows: only the old ones are trusted less
        setattr(twin, name, value)
    twin._Yvar = known
    return X, Y


@contextmanager
def _hyperparameters_held(twin: Surrogate) -> Iterator[None]:
    """Fits inside keep the scales and the noise that networks have already."""
    pairs = {"_builder": "_prior", "_prior_builder": "_function_prior"}
    kept = {name: getattr(twin, name) for name in pairs if hasattr(twin, name)}
    for name, builder in kept.items():
        setattr(twin, name, builder.holding(getattr(twin, pairs[name])))
    try:
        yield
    finally:
        for name, builder in kept.items():
            setattr(twin, name, builder)


def _temper_head(twin: BayesianLastLayerSurrogate, X: Tensor, Y: Tensor, share: float) -> None:
    """The power of the normal-inverse-gamma posterior: every row counts for ``share`` of one, in head and noise."""
    features, outcomes = twin._features(twin._scaling.inputs(X)), twin._scaling.outcomes(Y)
    known = twin._Yvar is not None or twin.fixed_noise is not None
    variance = twin._scaling.variances(twin._known_variances(twin._Yvar, Y)) if known else twin._prior.noise.expand_as(outcomes)
    twin._reference = variance.mean()
    relative = twin._relative(outcomes, variance if known else None) / share
    twin._prior_head, head = twin._fit_head(features, outcomes, relative, _KNOWN if known else _SHAPE)
    twin._head = replace(head, a=head.a - 0.5 * (1.0 - share) * X.shape[0])


def _reset(twin: Surrogate, heads: Sequence[int]) -> None:
    count = twin.num_latents
    if count < 2 or any(not 0 <= head < count for head in heads):
        raise InvalidOptionError(
            f"reset_heads={list(heads)}; heads are the outputs 0 to {count - 1} of a surrogate with two or more"
        )
    if isinstance(twin, FilterSurrogate):
        own = _head_weights(twin, twin._belief.mean, heads)
        twin._belief = _reset_belief(twin._belief, own, twin._start[0], twin.initial_covariance)
    elif isinstance(twin, VariationalSurrogate) and not isinstance(twin, FSVISurrogate):
        own = _head_weights(twin, twin._q.mean[0], heads)
        prior = twin._prior_components()
        twin._q = MeanField(torch.where(own, prior.mean, twin._q.mean), torch.where(own, prior.sd, twin._q.sd))
        twin._z, twin._log_weights = twin._particles()
    else:
        raise InvalidOptionError(f"reset_heads: {twin.name!r} cannot reset heads; 'ekf', 'lofi', 'mfvi' and 'ivon' can")


def _head_weights(twin: FilterSurrogate | VariationalSurrogate, weights: Tensor, heads: Sequence[int]) -> Tensor:
    """Weights, ``P``, on which one of these outputs depends and no other one: found from the Jacobian at random inputs."""
    X = torch.rand(8, twin.input_dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(weights)
    random = torch.randn(1, weights.shape[0], generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(weights)
    moves = twin._network.jacobian(twin._network.tangents(random, X))[0].abs().sum(0) > 0  # l x P
    return (moves.sum(0) == 1) & moves[list(heads)].any(0)


def _reset_belief(belief: Belief, own: Tensor, centre: Tensor, variance: float) -> Belief:
    mean = torch.where(own, centre, belief.mean)
    if isinstance(belief, DenseBelief):
        kept = ~own
        covariance = belief.covariance * kept * kept.unsqueeze(-1) + variance * torch.diag(own.to(mean))
        return DenseBelief(mean, covariance)
    if isinstance(belief, DiagonalBelief):
        return DiagonalBelief(mean, torch.where(own, mean.new_tensor(variance), belief.variance), belief.variational)
    assert isinstance(belief, LowRankBelief)
    entries = torch.where(own, mean.new_tensor(1.0 / variance), belief.entries)
    return replace(belief, mean=mean, entries=entries, factor=belief.factor * ~own)
