"""The posterior of weighted particles: function values of S networks at q points, jointly.

BoTorch's ``EnsemblePosterior`` ties the member to the position in the t-batch and cannot be re-weighted per fantasy.
Here the first base sample of every draw picks the particle through the cumulated weights, ONE pick for all points and
outputs, so that draws are joint and equal points have equal values in every t-batch slot; the other base samples are
the noise.
"""

from __future__ import annotations

from typing import Any

import torch
from botorch.posteriors.posterior import Posterior
from botorch.sampling.get_sampler import GetSampler
from botorch.sampling.normal import IIDNormalSampler, NormalMCSampler, SobolQMCNormalSampler
from gpytorch.distributions import MultivariateNormal
from torch import Tensor
from torch.quasirandom import SobolEngine

from seqbdl.posteriors.joint_gaussian import JointGaussian


class ParticlePosterior(Posterior):
    """A mixture of S functions, evaluated at q points.

    Args:
        values: ``S x batch x q x m`` function values.
        log_weights: ``S x batch'`` with ``batch'`` broadcastable to ``batch`` (aligned on the right); need not be
            normalized. ``None``: equal weights.
        noise: Observation-noise variances to add, broadcastable to ``S x batch x q x m``; ``None``: the latent
            function.
    """

    def __init__(self, values: Tensor, log_weights: Tensor | None = None, noise: Tensor | None = None) -> None:
        self.values = values
        batch = values.shape[1:-2]
        if log_weights is None:
            log_weights = values.new_zeros(values.shape[0])
        weights = log_weights.softmax(0)
        padded = weights.reshape(weights.shape[0], *([1] * (len(batch) - weights.dim() + 1)), *weights.shape[1:])
        self.weights = padded.expand(-1, *batch)  # S x batch
        self.noise = None if noise is None else noise.expand(values.shape)

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    @property
    def num_particles(self) -> int:
        return self.values.shape[0]

    @property
    def batch_shape(self) -> torch.Size:
        return self.values.shape[1:-2]

    @property
    def event_shape(self) -> torch.Size:
        return self.values.shape[-2:]

    @property
    def effective_sample_size(self) -> Tensor:
        """``1 / sum of squared weights``, ``batch``."""
        return self.weights.square().sum(0).reciprocal()

    def _extended_shape(self, sample_shape: torch.Size = torch.Size()) -> torch.Size:  # noqa: B008 - BoTorch's signature
        return sample_shape + self.values.shape[1:]

    @property
    def base_sample_shape(self) -> torch.Size:
        return self.batch_shape + torch.Size([1 + self.values.shape[-2] * self.values.shape[-1]])

    @property
    def batch_range(self) -> tuple[int, int]:
        return (0, -1)

    @property
    def mean(self) -> Tensor:
        """``batch x q x m``."""
        return (self.weights[..., None, None] * self.values).sum(0)

    @property
    def variance(self) -> Tensor:
        """Law of total variance, ``batch x q x m``; the spread is that of the mixture (no small-sample correction)."""
        w = self.weights[..., None, None]
        variance = (w * (self.values - self.mean).square()).sum(0)
        return variance if self.noise is None else variance + (w * self.noise).sum(0)

    @property
    def moments(self) -> JointGaussian:
        """The Gaussian with the same mean and joint covariance (outputs coupled)."""
        deviations = (self.values - self.mean).flatten(-2)  # S x batch x (q m)
        left = (self.weights[..., None] * deviations).movedim(0, -2)  # batch x S x (q m)
        covariance = left.transpose(-1, -2) @ deviations.movedim(0, -2)
        if self.noise is not None:
            noise = (self.weights[..., None, None] * self.noise).sum(0).flatten(-2)
            covariance = covariance + torch.diag_embed(noise)
        # S particles span at most S - 1 directions; the lift keeps the rest of the matrix invertible.
        diagonal = covariance.diagonal(dim1=-2, dim2=-1)
        lift = 1e-6 * diagonal.mean(-1, keepdim=True)
        return JointGaussian(self.mean, (covariance + torch.diag_embed(lift.expand_as(diagonal))).unsqueeze(-3))

    @property
    def distribution(self) -> MultivariateNormal:
        """Moment-matched GPyTorch distribution, what acquisition functions made for Gaussians read."""
        return self.moments.distribution(self.dtype)

    @property
    def mvn(self) -> MultivariateNormal:
        """The same as :attr:`distribution`, under the older name."""
        return self.distribution

    def quantile(self, value: Tensor) -> Tensor:
        """Marginal quantiles of the mixture, ``k x batch x q x m`` for ``k`` levels (a scalar level: no leading axis).

        Without noise: of the weighted empirical distribution, interpolated. With noise: by bisection of the mixture's
        distribution function.
        """
        levels = value.reshape(-1).to(self.values)
        if self.noise is None:
            result = _weighted_quantile(self.values, self.weights[..., None, None].expand_as(self.values), levels)
        else:
            result = _mixture_quantile(self.values, self.noise, self.weights[..., None, None], levels)
        return result.squeeze(0) if value.dim() == 0 else result

    def density(self, value: Tensor) -> Tensor:
        """Marginal density of the noisy mixture at ``value`` (``batch x q x m``)."""
        if self.noise is None:
            raise ValueError("a particle posterior of the latent function has no density; ask with observation_noise=True")
        log_terms = torch.distributions.Normal(self.values, self.noise.sqrt()).log_prob(value)
        return (self.weights[..., None, None] * log_terms.exp()).sum(0)

    def rsample(self, sample_shape: torch.Size | None = None) -> Tensor:
        shape = torch.Size([1]) if sample_shape is None else sample_shape
        base = torch.randn(shape + self.base_sample_shape, dtype=self.dtype, device=self.device)
        return self.rsample_from_base_samples(sample_shape=shape, base_samples=base)

    def rsample_from_base_samples(self, sample_shape: torch.Size, base_samples: Tensor) -> Tensor:
        """Joint samples ``sample_shape x batch x q x m``, differentiable in the values (the pick is not).

        Args:
            sample_shape: The leading shape.
            base_samples: ``sample_shape x batch (or ones) x (1 + q m)`` standard normals.
        """
        base = base_samples.to(self.values)
        base = base.expand(*sample_shape, *self.batch_shape, base.shape[-1])
        uniform = torch.special.ndtr(base[..., 0])  # sample_shape x batch
        cumulated = self.weights.detach().cumsum(0).movedim(0, -1).contiguous()  # batch x S
        flat = uniform.reshape(-1, *self.batch_shape).movedim(0, -1).contiguous()  # batch x n
        picks = torch.searchsorted(cumulated, flat).clamp_max(self.num_particles - 1)
        picks = picks.movedim(-1, 0)  # n x batch
        index = picks[..., None, None].expand(*picks.shape, *self.event_shape)
        chosen = torch.gather(self.values, 0, index)
        if self.noise is not None:
            normals = base[..., 1:].reshape(-1, *self.batch_shape, *self.event_shape)
            chosen = chosen + torch.gather(self.noise, 0, index).sqrt() * normals
        return chosen.reshape(*sample_shape, *self.values.shape[1:])


def _weighted_quantile(values: Tensor, weights: Tensor, levels: Tensor) -> Tensor:
    ordered, order = values.sort(0)
    w = weights.gather(0, order)
    centres = w.cumsum(0) - 0.5 * w  # S x ...: the level of each ordered value
    out = []
    for level in levels:
        above = (centres < level).sum(0, keepdim=True)
        low, high = (above - 1).clamp_min(0), above.clamp_max(values.shape[0] - 1)
        c_low, c_high = centres.gather(0, low), centres.gather(0, high)
        v_low, v_high = ordered.gather(0, low), ordered.gather(0, high)
        share = ((level - c_low) / (c_high - c_low).clamp_min(1e-12)).clamp(0.0, 1.0)
        out.append((v_low + share * (v_high - v_low)).squeeze(0))
    return torch.stack(out)


def _mixture_quantile(values: Tensor, noise: Tensor, weights: Tensor, levels: Tensor) -> Tensor:
    sd = noise.sqrt().clamp_min(1e-12)
    low = (values - 10 * sd).amin(0).expand(levels.shape[0], *values.shape[1:]).clone()
    high = (values + 10 * sd).amax(0).expand_as(low).clone()
    target = levels.reshape(-1, *([1] * (values.dim() - 1)))
    for _ in range(60):
        middle = 0.5 * (low + high)
        cdf = (weights * torch.special.ndtr((middle.unsqueeze(1) - values) / sd)).sum(1)
        below = cdf < target
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return 0.5 * (low + high)


@GetSampler.register(ParticlePosterior)
def _particle_sampler(posterior: Any, sample_shape: torch.Size, *, seed: int | None = None) -> NormalMCSampler:
    """Quasi-Monte-Carlo normals: the first coordinate picks the particle, the rest are noise."""
    if posterior.base_sample_shape[-1] > SobolEngine.MAXDIM:
        return IIDNormalSampler(sample_shape=sample_shape, seed=seed)
    return SobolQMCNormalSampler(sample_shape=sample_shape, seed=seed)
