"""Joint Gaussian distributions over the outputs at q points, and the algebra that loops need of them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from botorch.posteriors import GPyTorchPosterior
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from gpytorch.settings import min_variance
from linear_operator import to_linear_operator
from linear_operator.utils.warnings import NumericalWarning
from torch import Tensor

from seqbdl.errors import NotPositiveDefiniteError

# Relative to the mean diagonal: far below any noise that matters, far above the rounding of float64.
JITTER = 1e-10
KERNEL_JITTER = 1e-6  # of kernel matrices that are nearly singular by nature
_NUGGET = 1e-9  # a standard deviation of 3e-5 of the prior's
_TINY = 1e-30  # of a variance that is zero: positive in either precision
_QUIET_JITTER = 1e-6  # jitter beyond this share of the diagonal is worth a warning


@dataclass(frozen=True)
class JointGaussian:
    """A batch of Gaussians over the ``q x m`` outputs at ``q`` points.

    The covariance is block-diagonal in ``g`` groups. Independent outputs: ``g = m`` groups of ``r = q`` rows. Outputs
    that share random weights: ``g = 1`` group of ``r = q m`` rows, the point running slower than the output.

    Attributes:
        mean: ``batch x q x m``.
        covariance: ``batch' x g x r x r``; ``batch`` and ``batch'`` broadcast.
    """

    mean: Tensor
    covariance: Tensor

    @property
    def num_points(self) -> int:
        return self.mean.shape[-2]

    @property
    def num_outputs(self) -> int:
        return self.mean.shape[-1]

    @property
    def coupled(self) -> bool:
        """Whether outputs are correlated with one another."""
        return self.covariance.shape[-3] == 1 and self.num_outputs > 1

    @property
    def variance(self) -> Tensor:
        """Marginal variances, ``batch x q x m``."""
        diagonal = self.covariance.diagonal(dim1=-2, dim2=-1)  # batch' x g x r
        if self.covariance.shape[-3] == 1:
            marginal = diagonal.squeeze(-2).unflatten(-1, (self.num_points, self.num_outputs))
        else:
            marginal = diagonal.transpose(-1, -2)
        return marginal.clamp_min(0.0).expand(self.mean.shape)

    @property
    def covariance_of_points(self) -> Tensor:
        """Covariances between the outputs of every point by itself, ``batch' x q x m x m``."""
        q, m = self.num_points, self.num_outputs
        matrix = self.as_coupled().covariance.squeeze(-3)
        blocks = matrix.reshape(*matrix.shape[:-2], q, m, q, m)
        return blocks.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)

    def scaled(self, shift: Tensor, scale: Tensor) -> JointGaussian:
        """The distribution of ``shift + scale * f``, both of shape ``m``."""
        if self.covariance.shape[-3] == 1:
            factor = scale.repeat(self.num_points)  # (q m)
            covariance = self.covariance * factor.unsqueeze(-1) * factor
        else:
            covariance = self.covariance * scale.square()[:, None, None]
        return JointGaussian(shift + scale * self.mean, covariance)

    def plus_noise(self, variance: Tensor) -> JointGaussian:
        """Add independent noise of the given variances, broadcastable to ``batch x q x m``."""
        rows = group_rows(variance.expand(*variance.shape[:-2], self.num_points, self.num_outputs), self.covariance)
        return JointGaussian(self.mean, self.covariance + torch.diag_embed(rows))

    def select(self, outputs: list[int]) -> JointGaussian:
        """The marginal distribution of some outputs."""
        mean = self.mean[..., outputs]
        if not self.coupled:
            groups = [0] if self.covariance.shape[-3] == 1 else outputs
            return JointGaussian(mean, self.covariance[..., groups, :, :])
        m = self.num_outputs
        rows = torch.tensor([p * m + o for p in range(self.num_points) for o in outputs], device=mean.device)
        return JointGaussian(mean, self.covariance[..., rows, :][..., rows])

    def as_coupled(self) -> JointGaussian:
        """The same distribution with its covariance written as one group."""
        m, q = self.num_outputs, self.num_points
        if self.covariance.shape[-3] == 1:
            return self
        blocks = torch.diag_embed(self.covariance.movedim(-3, -1))  # batch x q x q x m x m
        return JointGaussian(self.mean, blocks.transpose(-3, -2).reshape(*blocks.shape[:-4], 1, q * m, q * m))

    def observed_through(self, root: Tensor) -> JointGaussian:
        """The same, with ``R^T f`` in place of ``f`` at the LAST ``n'`` points: a likelihood's curvature ``R R^T`` is what
        observing these with unit noise says.

        Args:
            root: ``batch x n' x m x m``.
        """
        base = self.as_coupled()
        kept = (self.num_points - root.shape[-3]) * self.num_outputs
        batch = torch.broadcast_shapes(self.mean.shape[:-2], base.covariance.shape[:-3], root.shape[:-3])
        seen = (root.transpose(-1, -2) @ self.mean[..., -root.shape[-3] :, :, None]).squeeze(-1)
        old = self.mean[..., : -root.shape[-3], :].expand(*batch, -1, -1)
        mean = torch.cat([old, seen.expand(*batch, -1, -1)], -2)

        def through(matrix: Tensor) -> Tensor:  # R^T on the last rows
            top, bottom = matrix[..., :kept, :], matrix[..., kept:, :]
            blocks = root.transpose(-1, -2) @ bottom.unflatten(-2, root.shape[-3:-1])
            blocks = blocks.flatten(-3, -2)
            return torch.cat([top.expand(*blocks.shape[:-2], -1, -1), blocks], -2)

        covariance = through(through(base.covariance.squeeze(-3)).transpose(-1, -2)).transpose(-1, -2)
        return JointGaussian(mean, covariance.unsqueeze(-3))

    def condition(self, Y: Tensor, noise: Tensor) -> JointGaussian:
        """Condition on noisy observations of the LAST ``n'`` points; the distribution of the points before them
        remains.

        Args:
            Y: ``batch x n' x m`` observed values.
            noise: Their noise variances, broadcastable to ``batch x n' x m``.
        """
        kept, cross, factor = self._split(Y.shape[-2], noise)
        gain = torch.cholesky_solve(cross, factor)  # batch' x g x r_new x r_kept
        covariance = remaining(kept, cross.transpose(-1, -2) @ gain)
        residual = self._group(Y - self.mean[..., -Y.shape[-2] :, :])  # batch x g x r_new
        shift = (gain.transpose(-1, -2) @ residual.unsqueeze(-1)).squeeze(-1)
        q = self.num_points - Y.shape[-2]
        return JointGaussian(self.mean[..., :q, :] + self._ungroup(shift, q), covariance)

    def gain(self, num_new: int, noise: Tensor) -> Tensor:
        """``C(x, X_new) (C(X_new, X_new) + noise)^{-1}`` of the last points, ``batch' x g x r_kept x r_new``."""
        _, cross, factor = self._split(num_new, noise)
        return torch.cholesky_solve(cross, factor).transpose(-1, -2)

    def _split(self, num_new: int, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        per_point = 1 if self.covariance.shape[-3] != 1 else self.num_outputs
        r = (self.num_points - num_new) * per_point
        rows = group_rows(noise.expand(*noise.shape[:-2], num_new, self.num_outputs), self.covariance)
        observed = self.covariance[..., r:, r:] + torch.diag_embed(rows)
        return self.covariance[..., :r, :r], self.covariance[..., r:, :r], safe_cholesky(observed)

    def _group(self, values: Tensor) -> Tensor:
        return group_rows(values, self.covariance)

    def _ungroup(self, rows: Tensor, q: int) -> Tensor:
        """``batch x g x r`` back to ``batch x q x m``."""
        if self.covariance.shape[-3] == 1:
            return rows.squeeze(-2).unflatten(-1, (q, self.num_outputs))
        return rows.transpose(-1, -2)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """``n x batch x q x m`` draws, of the covariance with the least jitter that lets it be factorized."""
        factor = safe_cholesky(self.covariance)
        shape = torch.broadcast_tensors(self._group(self.mean), factor[..., 0])[0].shape
        white = torch.randn(n, *shape, 1, generator=generator, dtype=torch.float64).to(factor)
        return self.mean + self._ungroup((factor @ white).squeeze(-1), self.num_points)

    def to_posterior(self, dtype: torch.dtype) -> GPyTorchPosterior:
        """The BoTorch posterior, in the given floating-point type."""
        return GPyTorchPosterior(self.distribution(dtype))

    def distribution(self, dtype: torch.dtype) -> MultivariateNormal:
        """The GPyTorch distribution over ``q`` (``m = 1``) or ``q x m`` values."""
        jitter = JITTER if dtype == torch.float64 else 1e-6
        diagonal = self.covariance.diagonal(dim1=-2, dim2=-1)
        lift = (jitter * diagonal.mean(-1, keepdim=True)).clamp_min(_TINY).expand_as(diagonal)
        covariance = (self.covariance + torch.diag_embed(lift)).to(dtype)
        mean = self.mean.to(dtype)
        batch = torch.broadcast_shapes(mean.shape[:-2], covariance.shape[:-3])
        mean = mean.expand(*batch, *mean.shape[-2:])
        # Wrapped, so that it is factorized when sampled, with growing jitter: a plain tensor is factorized at once, and
        # points beside observed ones, whose covariance is all rounding, would raise.
        if self.num_outputs == 1:
            return _Normal(mean.squeeze(-1), to_linear_operator(covariance.squeeze(-3).expand(*batch, -1, -1)))
        if self.coupled:
            return _MultitaskNormal(mean, to_linear_operator(covariance.squeeze(-3).expand(*batch, -1, -1)))
        covariance = to_linear_operator(covariance.expand(*batch, -1, -1, -1))
        return _MultitaskNormal.from_batch_mvn(_Normal(mean.transpose(-1, -2), covariance), task_dim=-1)


class _Normal(MultivariateNormal):
    """Variances as they are: GPyTorch raises those below 1e-10 (single precision: 1e-6), which depends on the units."""

    @property
    def variance(self) -> Tensor:
        with min_variance(0.0, 0.0, 0.0):
            variance: Tensor = super().variance
        return variance


class _MultitaskNormal(MultitaskMultivariateNormal):
    """The same of several outputs."""

    @property
    def variance(self) -> Tensor:
        with min_variance(0.0, 0.0, 0.0):
            variance: Tensor = super().variance
        return variance


def remaining(prior: Tensor, explained: Tensor) -> Tensor:
    """``prior - explained``, both ``... x r x r``: a covariance of which data took away nearly all near observed points.

    What is left there is rounding error in proportion to the PRIOR variance, so a share of that is kept on the diagonal.
    """
    return prior - explained + torch.diag_embed(_NUGGET * prior.diagonal(dim1=-2, dim2=-1))


def group_rows(values: Tensor, covariance: Tensor) -> Tensor:
    """``batch x q x m`` values as ``batch x g x r`` rows in the order of a grouped covariance."""
    if covariance.shape[-3] == 1:
        return values.flatten(-2).unsqueeze(-2)
    return values.transpose(-1, -2)


def safe_cholesky(matrix: Tensor) -> Tensor:
    """Lower Cholesky factor; jitter is added, relative to the diagonal, only where the plain one fails.

    Raises:
        NotPositiveDefiniteError: If the matrix has entries that are not finite, or stays indefinite with a jitter of a
            ten-thousandth of its diagonal.
    """
    factor, info = torch.linalg.cholesky_ex(matrix)
    if not bool(info.any()) and bool(factor.diagonal(dim1=-2, dim2=-1).isfinite().all()):
        return factor
    size = f"a {matrix.shape[-2]} x {matrix.shape[-1]} covariance matrix"
    if not bool(matrix.isfinite().all()):
        raise NotPositiveDefiniteError(
            f"{size} has entries that are not finite: its hyperparameters have run away. Check the units of X and Y "
            "(bounds=), or give a smaller learning_rate="
        )
    scale = matrix.detach().diagonal(dim1=-2, dim2=-1).abs().mean(-1, keepdim=True).clamp_min(1e-30)
    for power in range(-9, -3):
        jitter = 10.0**power
        if jitter > _QUIET_JITTER:
            warnings.warn(f"{size} is indefinite: {jitter:g} of its diagonal is added", NumericalWarning, stacklevel=2)
        lift = jitter * scale * (info > 0).unsqueeze(-1)  # only where it is needed
        factor, failed = torch.linalg.cholesky_ex(matrix + torch.diag_embed(lift.expand(matrix.shape[:-1])))
        if not bool(failed.any()):
            return factor
        info = info | failed
    raise NotPositiveDefiniteError(
        f"{size} is not positive definite, even with {jitter:g} of its diagonal added. Rows of X that nearly coincide under "
        "next to no noise do this: merge them, or give noise=; a kernel of your own must be positive definite"
    )


def jittered_cholesky(matrix: Tensor, jitter: float = KERNEL_JITTER) -> Tensor:
    """:func:`safe_cholesky` of a batch of kernel matrices, each with a jitter relative to its mean diagonal: for matrices that
    are nearly singular by nature, such as those of smooth kernels at many inducing inputs.

    Raises:
        NotPositiveDefiniteError: As there.
    """
    lift = (jitter * matrix.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True)).expand(matrix.shape[:-1])
    return safe_cholesky(matrix + torch.diag_embed(lift))
