"""Joint predictive log scores: does a posterior know which outcomes go together?

For one draw of the function, outcomes at different inputs are independent; averaging over draws AFTER the product over
``tau`` outcomes makes them dependent: ``-log (1/M) sum_m prod_t p_m(y_t | x_t)``. Marginal scores (``tau = 1``) hardly
separate posteriors, joint ones do, and decisions depend on them (Wen et al. 2021; Osband et al. 2022). Inputs drawn
independently are nearly uncorrelated in many dimensions, so that a set of ``tau`` inputs is drawn from ``kappa`` anchors,
with replacement: two anchors make it dyadic.

The mean over few draws overestimates the score: compare posteriors with the same number of draws.

References: I. Osband et al., "The neural testbed: evaluating joint predictions", NeurIPS 2022; I. Osband et al.,
"Evaluating high-order predictive distributions in deep learning", UAI 2022; Z. Wen et al., "From predictions to decisions:
the importance of joint predictive distributions", 2021.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from seqbdl._checks import check_tensor
from seqbdl.diagnostics import _inputs
from seqbdl.errors import InvalidDataError, InvalidOptionError, ShapeError


@dataclass(frozen=True)
class JointScore:
    """Joint negative log-likelihoods of many sets of outcomes.

    Attributes:
        values: ``sets`` joint negative log-likelihoods, nats per set of ``tau`` outcomes.
        reference: ``sets`` the same under the true probabilities, where they are known.
    """

    values: Tensor = field(repr=False)
    reference: Tensor | None = field(repr=False, default=None)

    @property
    def log_loss(self) -> float:
        """Mean over sets, nats per set."""
        return float(self.values.mean())

    @property
    def standard_error(self) -> float:
        """Of :attr:`log_loss`, over sets."""
        return _standard_error(self.values)

    @property
    def kl(self) -> float:
        """Mean excess over the true probabilities, nats per set: an estimate of the joint Kullback-Leibler divergence.

        Its floor is what the data leave unknown of the environment, not zero.
        """
        return float(self._excess().mean())

    @property
    def kl_standard_error(self) -> float:
        """Of :attr:`kl`, over sets."""
        return _standard_error(self._excess())

    def _excess(self) -> Tensor:
        if self.reference is None:
            raise InvalidOptionError("the true probabilities are not known here, so there is no divergence; read log_loss")
        return self.values - self.reference


def joint_log_loss(log_probs: Tensor | Iterable[Tensor], labels: Tensor, log_weights: Tensor | None = None) -> Tensor:
    """Joint negative log-likelihood of ``tau`` labels, nats, ``batch``.

    Args:
        log_probs: ``M x batch x tau x C`` class log-probabilities of M draws; or an iterable of such tensors, each with
            some of the draws, of which one is in memory at a time.
        labels: ``batch x tau`` class indices.
        log_weights: ``M``, of re-weighted draws; need not be normalized. Equal by default.

    Raises:
        ShapeError: Labels are not ``batch x tau``.
        InvalidDataError: NaN, probabilities that do not sum to one, labels out of range.
    """

    def likelihoods() -> Iterator[Tensor]:
        for part in _parts(log_probs):
            yield _label_log_probs(part, labels).sum(-1)

    return -_log_mean(likelihoods(), log_weights)


def joint_gaussian_log_loss(
    values: Tensor | Iterable[Tensor], noise: Tensor | float, y: Tensor, log_weights: Tensor | None = None
) -> Tensor:
    """Joint negative log density of ``tau`` outcomes under function draws plus Gaussian noise, nats, ``batch``.

    Args:
        values: ``M x batch x tau x m`` function values of M draws, all at the same inputs; or an iterable of such tensors,
            each with some of the draws (``noise`` then has no leading axis of draws longer than one).
        noise: Variances of the noise, a number or broadcastable to ``values``.
        y: ``batch x tau x m`` outcomes.
        log_weights: ``M``, of re-weighted draws; equal by default.

    Raises:
        ShapeError: ``y`` has not the shape of one draw.
        InvalidDataError: NaN, or a noise variance that is not positive.
    """

    def densities() -> Iterator[Tensor]:
        for part in _parts(values):
            yield _gaussian_log_density(part, noise, y).sum(-1)

    return -_log_mean(densities(), log_weights)


def polyadic_log_loss(
    log_probs: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    tau: int = 10,
    kappa: int = 2,
    num_sets: int = 1000,
    log_weights: Tensor | None = None,
    chunk_size: int = 256,
) -> JointScore:
    """Joint score on real data: each set resamples ``kappa`` test rows, with their labels, ``tau`` times.

    Args:
        log_probs: ``M x n x C`` class log-probabilities of M draws at the n test rows.
        labels: ``n`` class indices.
        generator: Draws the sets, on its own device.
        tau: Outcomes of a set.
        kappa: Different rows of a set, drawn without replacement; 2 is dyadic.
        num_sets: Sets.
        log_weights: ``M``; equal by default.
        chunk_size: Sets that are scored at once: ``M x chunk_size x kappa`` numbers are held.

    Raises:
        InvalidOptionError: More anchors than rows, or a count below 1.
    """
    return _polyadic(_label_log_probs(log_probs, labels), generator, tau, kappa, num_sets, log_weights, chunk_size)


def polyadic_gaussian_log_loss(
    values: Tensor,
    noise: Tensor | float,
    y: Tensor,
    generator: torch.Generator,
    tau: int = 10,
    kappa: int = 2,
    num_sets: int = 1000,
    log_weights: Tensor | None = None,
    chunk_size: int = 256,
) -> JointScore:
    """As :func:`polyadic_log_loss`, for regression.

    Args:
        values: ``M x n x m`` function values of M draws at the n test rows.
        noise: Variances of the noise, a number or broadcastable to ``values``.
        y: ``n x m`` outcomes.
        generator: Draws the sets, on its own device.
        tau: Outcomes of a set.
        kappa: Different rows of a set.
        num_sets: Sets.
        log_weights: ``M``; equal by default.
        chunk_size: Sets that are scored at once.
    """
    density = _gaussian_log_density(values, noise, y)
    return _polyadic(density, generator, tau, kappa, num_sets, log_weights, chunk_size)


def dyadic_log_loss(
    log_probs: Callable[[Tensor], Tensor],
    true_log_probs: Callable[[Tensor], Tensor],
    anchors: Tensor,
    generator: torch.Generator,
    tau: int = 10,
    log_weights: Tensor | None = None,
    chunk_size: int = 64,
) -> JointScore:
    """Joint score where the truth is known: each set resamples its anchors ``tau`` times, with a fresh label each time.

    With two anchors drawn from the distribution of inputs this is the score of Osband et al. (2022); with ``tau = 1``
    and one anchor, the marginal one.

    Args:
        log_probs: Takes inputs ``q x d`` and gives ``M x q x C`` class log-probabilities of the same M draws on every
            call, as ``lambda X: surrogate.log_probs(X, M)`` does.
        true_log_probs: Takes inputs ``q x d`` and gives the ``q x C`` log-probabilities that labels are drawn from.
        anchors: ``sets x kappa x d``.
        generator: Draws rows and labels, on its own device.
        tau: Outcomes of a set.
        log_weights: ``M``; equal by default.
        chunk_size: Sets that are scored at once: ``M x chunk_size x kappa x C`` numbers are held.
    """
    _inputs.at_least("tau", tau, 1)
    _inputs.at_least("chunk_size", chunk_size, 1)
    if anchors.dim() != 3 or anchors.numel() == 0:
        raise ShapeError(f"anchors has shape {tuple(anchors.shape)}; it needs sets x kappa x d, none of them zero")
    values, reference = [], []
    for chunk in anchors.split(chunk_size):
        sets, kappa, dim = chunk.shape
        inputs = chunk.reshape(sets * kappa, dim)
        truth = _inputs.log_probabilities("true_log_probs", true_log_probs(inputs))
        predicted = _inputs.log_probabilities("log_probs", log_probs(inputs))
        if truth.shape[0] != sets * kappa or truth.dim() != 2 or predicted.shape[1:] != truth.shape:
            raise ShapeError(
                f"for {sets * kappa} inputs true_log_probs gave {tuple(truth.shape)} and log_probs "
                f"{tuple(predicted.shape)}; they need q x C and M x q x C"
            )
        counts = _label_counts(truth, sets, kappa, tau, generator)  # sets x (kappa C)
        reference.append(-_weighted_sum(truth.reshape(sets, -1), counts))
        likelihood = _weighted_sum(predicted.reshape(predicted.shape[0], sets, -1), counts)
        values.append(-_log_mean([likelihood], log_weights))
    return JointScore(torch.cat(values), torch.cat(reference))


def _label_counts(truth: Tensor, sets: int, kappa: int, tau: int, generator: torch.Generator) -> Tensor:
    """How often each anchor of a set came up with each label, ``sets x (kappa C)``."""
    # An anchor and then its label, both at once: probability 1 / kappa times the label's.
    joint = truth.exp().reshape(sets, -1) / kappa
    picks = torch.multinomial(joint.to(generator.device), tau, replacement=True, generator=generator).to(truth.device)
    return torch.zeros_like(joint).scatter_add_(1, picks, torch.ones_like(picks, dtype=joint.dtype))


def _polyadic(
    log_likelihoods: Tensor,
    generator: torch.Generator,
    tau: int,
    kappa: int,
    num_sets: int,
    log_weights: Tensor | None,
    chunk_size: int,
) -> JointScore:
    """From ``M x n`` log-likelihoods of the test rows under each draw."""
    if log_likelihoods.dim() != 2:
        shape = tuple(log_likelihoods.shape)
        raise ShapeError(f"predictions and outcomes give log-likelihoods {shape}; they need M x n: M draws at n rows")
    for name, value in (("tau", tau), ("kappa", kappa), ("num_sets", num_sets), ("chunk_size", chunk_size)):
        _inputs.at_least(name, value, 1)
    rows = log_likelihoods.shape[1]
    if kappa > rows:
        raise InvalidOptionError(f"kappa={kappa}, but there are {rows} rows; pass at most that")
    values = []
    for start in range(0, num_sets, chunk_size):
        sets = min(chunk_size, num_sets - start)
        anchors = _subsets(sets, rows, kappa, generator).to(log_likelihoods.device)
        picks = torch.randint(kappa, (sets, tau), generator=generator, device=generator.device).to(anchors.device)
        counts = log_likelihoods.new_zeros(sets, kappa)
        counts.scatter_add_(1, picks, torch.ones_like(picks, dtype=counts.dtype))
        values.append(-_log_mean([_weighted_sum(log_likelihoods[:, anchors], counts)], log_weights))
    return JointScore(torch.cat(values))


def _subsets(sets: int, rows: int, kappa: int, generator: torch.Generator) -> Tensor:
    """``sets x kappa`` row indices, different within a set, every subset equally likely (Floyd's algorithm)."""
    chosen = torch.empty(sets, 0, dtype=torch.long, device=generator.device)
    for last in range(rows - kappa, rows):
        pick = torch.randint(last + 1, (sets, 1), generator=generator, device=generator.device)
        taken = (chosen == pick).any(1, keepdim=True)
        chosen = torch.cat([chosen, torch.where(taken, last, pick)], 1)
    return chosen


def _weighted_sum(log_terms: Tensor, counts: Tensor) -> Tensor:
    """Sum of ``counts * log_terms`` over the last dimension; what did not come up may be impossible."""
    return torch.where(counts > 0, counts * log_terms, 0.0).sum(-1)


def _log_mean(chunks: Iterable[Tensor], log_weights: Tensor | None) -> Tensor:
    """Log of the weighted mean over the leading axis, of all chunks together; one chunk is in memory at a time."""
    weights = None if log_weights is None else check_tensor("log_weights", log_weights).double()
    total, norm, seen = None, None, 0
    for chunk in chunks:
        count = chunk.shape[0]
        own = chunk.new_zeros(count) if weights is None else weights[seen : seen + count].to(chunk.device)
        if own.dim() != 1 or own.shape[0] != count:
            raise ShapeError(
                f"log_weights has shape {tuple(own.shape)} for draws {seen} to {seen + count - 1}; one for each draw"
            )
        part = (chunk + own.reshape(-1, *([1] * (chunk.dim() - 1)))).logsumexp(0)
        total = part if total is None else torch.logaddexp(total, part)
        norm = own.logsumexp(0) if norm is None else torch.logaddexp(norm, own.logsumexp(0))
        seen += count
    if total is None or norm is None:
        raise ShapeError("no draws were handed in; the mean is over at least one")
    if weights is not None and weights.shape[0] != seen:
        raise ShapeError(f"log_weights has {weights.shape[0]} entries for {seen} draws; it needs one for each")
    if not bool(norm.isfinite()):
        raise InvalidDataError("log_weights has NaN or +infinity, or leaves no draw any weight; check the re-weighting")
    return total - norm


def _parts(values: Tensor | Iterable[Tensor]) -> Iterable[Tensor]:
    return [values] if isinstance(values, Tensor) else values


def _label_log_probs(log_probs: Tensor, labels: Tensor) -> Tensor:
    """``M x ...`` log-probability of each label under each draw."""
    checked = _inputs.log_probabilities("log_probs", log_probs)
    if checked.dim() < 3:
        raise ShapeError(f"log_probs has shape {tuple(checked.shape)}; it needs M x (batch x) rows x C, a leading axis of draws")
    labels = _inputs.labels("labels", labels, checked.shape[1:-1], checked.shape[-1])
    return checked.gather(-1, labels.expand(checked.shape[:-1]).unsqueeze(-1)).squeeze(-1)


def _gaussian_log_density(values: Tensor, noise: Tensor | float, y: Tensor) -> Tensor:
    """``M x ...`` log density of each row under each draw, the sum over its outputs."""
    values, y = _inputs.finite("values", values), _inputs.finite("y", y)
    if values.shape[1:] != y.shape or y.dim() < 2:
        raise ShapeError(
            f"values has shape {tuple(values.shape)}, y {tuple(y.shape)}; they need M x (batch x) rows x m and one draw of it"
        )
    variance = torch.atleast_1d(torch.as_tensor(noise, dtype=values.dtype, device=values.device))
    variance = _inputs.positive("noise", variance)
    _inputs.broadcastable("noise", variance, "values", values)
    density = -0.5 * ((y - values).square() / variance + variance.log() + math.log(2 * math.pi))
    return density.sum(-1)


def _standard_error(values: Tensor) -> float:
    if values.shape[0] < 2:
        raise ShapeError("a single set has no standard error; score at least two")
    return float(values.std() / math.sqrt(values.shape[0]))
