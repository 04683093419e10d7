"""Joint Gaussians against dense algebra over the point-major vector of all outputs."""

from __future__ import annotations

import pytest
import torch
from botorch.sampling.normal import IIDNormalSampler
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_operator.utils.warnings import NumericalWarning
from torch import Tensor

from seqbdl.errors import NotPositiveDefiniteError
from seqbdl.posteriors.joint_gaussian import JointGaussian, jittered_cholesky, safe_cholesky


def random_joint(q: int, m: int, coupled: bool, batch: tuple[int, ...] = (), seed: int = 0) -> JointGaussian:
    generator = torch.Generator().manual_seed(seed)
    g, r = (1, q * m) if coupled else (m, q)
    root = torch.randn(*batch, g, r, r + 2, generator=generator, dtype=torch.float64)
    mean = torch.randn(*batch, q, m, generator=generator, dtype=torch.float64)
    return JointGaussian(mean, root @ root.mT / r)


def dense(joint: JointGaussian) -> Tensor:
    """``batch x (q m) x (q m)``, the point running slower, entry by entry."""
    q, m = joint.num_points, joint.num_outputs
    groups = joint.covariance.shape[-3]
    full = joint.covariance.new_zeros(*joint.covariance.shape[:-3], q * m, q * m)
    for p in range(q):
        for o in range(m):
            for p2 in range(q):
                for o2 in range(m):
                    if groups == 1:
                        value = joint.covariance[..., 0, p * m + o, p2 * m + o2]
                    elif o == o2:
                        value = joint.covariance[..., o, p, p2]
                    else:
                        continue
                    full[..., p * m + o, p2 * m + o2] = value
    return full


CASES = [(1, False), (2, False), (2, True), (3, True)]


@pytest.mark.parametrize(("m", "coupled"), CASES)
def test_scaling_noise_and_marginals(m: int, coupled: bool) -> None:
    joint = random_joint(4, m, coupled, (2,))
    generator = torch.Generator().manual_seed(1)
    shift, scale = torch.randn(m, generator=generator).double(), torch.rand(m, generator=generator).double() + 0.5
    noise = torch.rand(2, 4, m, generator=generator).double()
    changed = joint.scaled(shift, scale).plus_noise(noise)
    factor = torch.diag(scale.repeat(4))
    expected = factor @ dense(joint) @ factor + torch.diag_embed(noise.flatten(-2))
    torch.testing.assert_close(dense(changed), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(changed.mean, shift + scale * joint.mean)
    torch.testing.assert_close(changed.variance.flatten(-2), expected.diagonal(dim1=-2, dim2=-1))


@pytest.mark.parametrize("outputs", [[0], [1], [1, 0], [0, 1]])
@pytest.mark.parametrize("coupled", [False, True])
def test_selection_of_outputs(coupled: bool, outputs: list[int]) -> None:
    joint = random_joint(3, 2, coupled, (2,))
    chosen = joint.select(outputs)
    rows = [p * 2 + o for p in range(3) for o in outputs]
    torch.testing.assert_close(dense(chosen), dense(joint)[..., rows, :][..., rows])
    torch.testing.assert_close(chosen.mean, joint.mean[..., outputs])


@pytest.mark.parametrize(("m", "coupled"), CASES)
def test_conditioning_equals_dense_conditioning(m: int, coupled: bool) -> None:
    joint, kept = random_joint(5, m, coupled, (2,)), 3
    generator = torch.Generator().manual_seed(2)
    Y = torch.randn(2, 2, m, generator=generator).double()
    noise = 0.1 + torch.rand(2, 2, m, generator=generator).double()
    result = joint.condition(Y, noise)
    C, r = dense(joint), kept * m
    gain = C[..., :r, r:] @ torch.linalg.inv(C[..., r:, r:] + torch.diag_embed(noise.flatten(-2)))
    surprise = (Y - joint.mean[..., kept:, :]).flatten(-2).unsqueeze(-1)
    mean = joint.mean[..., :kept, :].flatten(-2) + (gain @ surprise).squeeze(-1)
    torch.testing.assert_close(result.mean.flatten(-2), mean, rtol=1e-10, atol=1e-10)
    # A nugget of 1e-9 of the prior variance stays on the diagonal.
    nugget = 2e-9 * float(C.diagonal(dim1=-2, dim2=-1).max())
    torch.testing.assert_close(dense(result), C[..., :r, :r] - gain @ C[..., r:, :r], rtol=1e-10, atol=nugget)
    if coupled or m == 1:
        torch.testing.assert_close(joint.gain(2, noise).squeeze(-3), gain, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("coupled", [False, True])
def test_one_covariance_conditions_a_batch_of_fantasies(coupled: bool) -> None:
    """The covariance of fantasies does not depend on their outcomes: it is stored once and broadcast."""
    joint = random_joint(4, 2, coupled)
    Y = torch.randn(6, 1, 2, generator=torch.Generator().manual_seed(3)).double()
    together = joint.condition(Y, torch.full((1, 1, 2), 0.3).double())
    for i in range(6):
        alone = joint.condition(Y[i], torch.full((1, 2), 0.3).double())
        torch.testing.assert_close(together.mean[i], alone.mean)
        torch.testing.assert_close(dense(together).reshape(6, 6), dense(alone))


@pytest.mark.parametrize(("m", "coupled"), CASES)
def test_samples_have_the_declared_covariance(m: int, coupled: bool) -> None:
    """The ordering of rows in GPyTorch's multitask distribution, measured by sampling."""
    joint, n = random_joint(3, m, coupled), 40_000
    posterior = joint.to_posterior(torch.float64)
    samples = IIDNormalSampler(torch.Size([n]), seed=0)(posterior)
    assert samples.shape == (n, 3, m)
    expected = dense(joint)
    # Covariance of the entries of a sample covariance: (c_ii c_jj + c_ij^2) / n.
    diagonal = expected.diagonal()
    error = ((diagonal[:, None] * diagonal + expected.square()) / n).sqrt()
    assert bool(((samples.flatten(1).T.cov() - expected).abs() < 5 * error).all())
    assert bool(((samples.mean(0) - joint.mean).abs().flatten() < 5 * (diagonal / n).sqrt()).all())
    torch.testing.assert_close(posterior.mean, joint.mean)
    torch.testing.assert_close(posterior.variance, joint.variance, rtol=1e-6, atol=1e-9)


def test_singular_covariances_have_samples() -> None:
    """Twice the same point."""
    ones = torch.ones(1, 4, 4, dtype=torch.float64)
    posterior = JointGaussian(torch.zeros(4, 1).double(), ones).to_posterior(torch.float64)
    samples = posterior.rsample(torch.Size([8]))
    assert float((samples - samples[:, :1]).abs().max()) < 1e-3
    assert JointGaussian(torch.zeros(4, 1).double(), ones).to_posterior(torch.float32).variance.dtype == torch.float32


def test_what_remains_beside_a_point_known_exactly_is_a_covariance() -> None:
    """Points within rounding of one observed without noise: nothing but rounding error would be left."""
    x = torch.linspace(0, 1e-4, 6, dtype=torch.float64)
    K = 100.0 * torch.exp(-0.5 * (x[:, None] - x).square())
    rest = JointGaussian(torch.zeros(6, 1).double(), K.unsqueeze(0)).condition(
        torch.zeros(1, 1).double(), torch.zeros(1, 1).double()
    )
    assert bool((rest.variance > 0).all())
    assert bool((torch.linalg.eigvalsh(rest.covariance) > 0).all())


@settings(max_examples=20, deadline=None)
@given(q=st.integers(2, 5), m=st.integers(1, 3), coupled=st.booleans(), batch=st.lists(st.integers(1, 3), max_size=2))
def test_shapes(q: int, m: int, coupled: bool, batch: list[int]) -> None:
    joint = random_joint(q, m, coupled, tuple(batch))
    assert joint.variance.shape == (*batch, q, m)
    Y = torch.zeros(*batch, 1, m).double()
    rest = joint.condition(Y, torch.ones(1, m).double())
    assert rest.mean.shape == (*batch, q - 1, m)
    assert rest.covariance.shape[-1] == (q - 1) * (m if coupled or m == 1 else 1)
    assert joint.to_posterior(torch.float64).rsample(torch.Size([2])).shape == (2, *batch, q, m)


def test_cholesky_adds_nothing_where_nothing_is_needed() -> None:
    joint = random_joint(5, 1, False)
    factor = safe_cholesky(joint.covariance)
    torch.testing.assert_close(factor @ factor.mT, joint.covariance, rtol=1e-13, atol=1e-13)
    for scale in (1e-12, 1.0, 1e12):  # the jitter is relative
        lifted = safe_cholesky(torch.full((3, 3), scale, dtype=torch.float64))
        torch.testing.assert_close(lifted @ lifted.mT, torch.full((3, 3), scale, dtype=torch.float64), rtol=1e-5, atol=0)


def test_jitter_goes_where_it_is_needed_and_ends_in_an_error_that_says_why(recwarn: pytest.WarningsRecorder) -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    sound, singular = root @ root.mT + torch.eye(5).double(), 1e-8 * torch.ones(5, 5).double()
    factor = safe_cholesky(torch.stack([sound, singular]))  # of very different scales
    torch.testing.assert_close(factor[0], torch.linalg.cholesky(sound), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(factor[1] @ factor[1].mT, singular, rtol=1e-5, atol=0)
    assert not recwarn.list
    indefinite = torch.ones(3, 3).double() - 1e-5 * torch.eye(3).double()
    with pytest.warns(NumericalWarning, match="3 x 3"):
        factor = safe_cholesky(indefinite)
    torch.testing.assert_close(factor @ factor.mT, indefinite, rtol=0, atol=2e-4)
    with pytest.warns(NumericalWarning), pytest.raises(NotPositiveDefiniteError, match=r"5 x 5.*not positive definite.*noise="):
        safe_cholesky(-sound)
    for bad in (float("nan"), float("inf")):
        broken = sound.clone()
        broken[2, 2] = bad
        with pytest.raises(NotPositiveDefiniteError, match=r"5 x 5.*not finite.*bounds="):
            safe_cholesky(broken)


def test_a_jittered_factor_is_that_of_each_matrix_with_a_share_of_its_diagonal() -> None:
    matrices = torch.stack([torch.ones(3, 3), 100 * torch.ones(3, 3)]).double()
    factor = jittered_cholesky(matrices, 1e-3)
    lift = torch.tensor([1e-3, 0.1]).double()[:, None, None] * torch.eye(3).double()
    torch.testing.assert_close(factor @ factor.mT, matrices + lift)


@pytest.mark.parametrize("groups", [1, 2])
def test_observing_through_a_root_is_linear_conditioning(groups: int) -> None:
    """Rows ``R^T f`` under unit noise, against the dense formula; also of a batch."""
    generator = torch.Generator().manual_seed(0)
    q, n_new, m = 3, 2, 2
    size = (q + n_new) * m if groups == 1 else q + n_new
    half = torch.randn(groups, size, size + 2, generator=generator, dtype=torch.float64)
    mean = torch.randn(4, q + n_new, m, generator=generator, dtype=torch.float64)
    joint = JointGaussian(mean, half @ half.mT)
    coupled = joint.as_coupled()
    torch.testing.assert_close(coupled.variance, joint.variance)
    dense, r = coupled.covariance[0], q * m
    root = torch.randn(n_new, m, m, generator=generator, dtype=torch.float64)
    seen = torch.randn(4, n_new, m, generator=generator, dtype=torch.float64)
    after = joint.observed_through(root).condition(seen, torch.ones(1, m, dtype=torch.float64))
    R = torch.block_diag(*root)
    gain = dense[:r, r:] @ R @ torch.linalg.inv(R.T @ dense[r:, r:] @ R + torch.eye(n_new * m).double())
    residual = seen.flatten(1) - mean[:, q:].flatten(1) @ R
    torch.testing.assert_close(after.mean.flatten(1), mean[:, :q].flatten(1) + residual @ gain.T)
    expected = dense[:r, :r] - gain @ R.T @ dense[r:, :r]
    torch.testing.assert_close(after.covariance.reshape(r, r), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("coupled", [True, False])
def test_outputs_of_every_point_by_itself(coupled: bool, m: int) -> None:
    joint = random_joint(4, m, coupled, (3,))
    blocks, full = joint.covariance_of_points, dense(joint)
    assert blocks.shape == (3, 4, m, m)
    for p in range(4):
        rows = slice(p * m, (p + 1) * m)
        torch.testing.assert_close(blocks[:, p], full[:, rows, rows], rtol=0, atol=0)


@pytest.mark.parametrize(("m", "coupled"), CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_variances_are_not_raised_whatever_the_unit(m: int, coupled: bool, dtype: torch.dtype) -> None:
    joint = random_joint(4, m, coupled)
    small = JointGaussian(1e-8 * joint.mean, 1e-16 * joint.covariance).distribution(dtype)
    expected = 1e-16 * joint.variance.to(dtype)
    torch.testing.assert_close(small.variance.reshape(4, m), expected, rtol=2e-5, atol=0)
    torch.testing.assert_close(
        small.expand(torch.Size([3])).variance.reshape(3, 4, m), expected.expand(3, 4, m), rtol=2e-5, atol=0
    )
