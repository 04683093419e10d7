"""BoTorch's own classes over every registered surrogate: nothing of ours stands between them.

The 29 uses are those that BoTorch's ``SingleTaskGP`` supports.
"""

from __future__ import annotations

import copy
import gc
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from botorch.acquisition import (
    ExpectedImprovement,
    LogExpectedImprovement,
    PosteriorMean,
    UpperConfidenceBound,
    qExpectedImprovement,
    qKnowledgeGradient,
    qLogExpectedImprovement,
    qLogNoisyExpectedImprovement,
    qLowerBoundMaxValueEntropy,
    qMaxValueEntropy,
    qMultiStepLookahead,
    qNegIntegratedPosteriorVariance,
    qSimpleRegret,
    qUpperConfidenceBound,
)
from botorch.acquisition.acquisition import AcquisitionFunction
from botorch.acquisition.joint_entropy_search import qJointEntropySearch
from botorch.acquisition.multi_objective import (
    qLogExpectedHypervolumeImprovement,
    qLogNoisyExpectedHypervolumeImprovement,
)
from botorch.acquisition.multi_objective.hypervolume_knowledge_gradient import qHypervolumeKnowledgeGradient
from botorch.acquisition.multi_objective.parego import qLogNParEGO
from botorch.acquisition.objective import GenericMCObjective
from botorch.acquisition.predictive_entropy_search import qPredictiveEntropySearch
from botorch.acquisition.thompson_sampling import PathwiseThompsonSampling
from botorch.acquisition.utils import get_optimal_samples
from botorch.generation import MaxPosteriorSampling
from botorch.models import ModelList
from botorch.models.model import Model
from botorch.optim import optimize_acqf
from botorch.posteriors import GPyTorchPosterior
from botorch.sampling.normal import SobolQMCNormalSampler
from botorch.sampling.pathwise import get_matheron_path_model
from botorch.utils.multi_objective.box_decompositions import FastNondominatedPartitioning
from botorch.utils.sampling import manual_seed
from torch import Tensor

import seqbdl
from seqbdl.posteriors import ParticlePosterior

_spec = importlib.util.spec_from_file_location("surrogate_settings", Path(__file__).with_name("conftest.py"))
assert _spec is not None
assert _spec.loader is not None
_settings = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_settings)
data, get_fitted = _settings.data, _settings.get_fitted

NAMES = seqbdl.list_surrogates()
BOUNDS = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
PENDING = torch.tensor([[0.9, 0.2], [0.1, 0.6]], dtype=torch.float64)
REFERENCE = torch.tensor([1.0, 1.0], dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    """A surrogate fitted to one outcome and to two, and its data."""

    one: seqbdl.Surrogate
    two: seqbdl.Surrogate

    @property
    def X(self) -> Tensor:
        assert self.one.train_inputs is not None
        return self.one.train_inputs[0]

    @property
    def best(self) -> Tensor:
        assert self.one.train_targets is not None
        return self.one.train_targets.max()

    @property
    def models(self) -> ModelList:
        """One single-outcome surrogate per objective."""
        return ModelList(self.two.subset_output([0]), self.two.subset_output([1]))


@pytest.fixture(params=NAMES)
def case(request: pytest.FixtureRequest, fitted: dict[tuple[str, int], seqbdl.Surrogate]) -> Iterator[Case]:
    """BoTorch reads the global generator: it is seeded here and restored afterwards."""
    one, two = (copy.deepcopy(get_fitted(fitted, request.param, m)) for m in (1, 2))
    with manual_seed(0):
        yield Case(one, two)


def points(n: int, seed: int = 3) -> Tensor:
    return torch.rand(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sampler(n: int = 16) -> SobolQMCNormalSampler:
    return SobolQMCNormalSampler(torch.Size([n]), seed=0)


def optimal(case: Case) -> tuple[Tensor, Tensor]:
    return cast(
        tuple[Tensor, Tensor],
        get_optimal_samples(cast(Any, case.one), BOUNDS, num_optima=3, raw_samples=16, num_restarts=2),
    )


def partitioning(case: Case) -> FastNondominatedPartitioning:
    return FastNondominatedPartitioning(ref_point=REFERENCE, Y=case.two.posterior(case.X).mean.detach())


def constrained(case: Case) -> AcquisitionFunction:
    return qLogNoisyExpectedImprovement(
        case.two,
        case.X,
        sampler=sampler(),
        objective=GenericMCObjective(lambda Y, X=None: Y[..., 0]),
        constraints=[lambda Y: Y[..., 1] - 3.0],
        prune_baseline=False,
    )


def hypervolume_knowledge(case: Case) -> AcquisitionFunction:
    return qHypervolumeKnowledgeGradient(case.models, ref_point=REFERENCE, num_fantasies=2, num_pareto=2, use_posterior_mean=True)


def improvements_to_come(case: Case) -> AcquisitionFunction:
    """Expected improvement now and after one fantasy."""
    return qMultiStepLookahead(
        case.one,
        batch_sizes=[1],
        num_fantasies=[3],
        valfunc_cls=[qLogExpectedImprovement, qLogExpectedImprovement],
        valfunc_argfacs=[lambda model, X: {"best_f": case.best}, lambda model, X: {"best_f": case.best}],
        inner_mc_samples=[8, 8],
    )


# What to build, and how many points to ask it for.
USES: dict[str, tuple[Callable[[Case], AcquisitionFunction], int]] = {
    "LogEI": (lambda c: LogExpectedImprovement(c.one, best_f=c.best), 1),
    "UCB": (lambda c: UpperConfidenceBound(c.one, beta=2.0), 1),
    "qLogEI": (lambda c: qLogExpectedImprovement(c.one, best_f=c.best, sampler=sampler()), 2),
    "qUCB": (lambda c: qUpperConfidenceBound(c.one, beta=2.0, sampler=sampler()), 2),
    "qSR": (lambda c: qSimpleRegret(c.one, sampler=sampler()), 2),
    "qLogNEI": (lambda c: qLogNoisyExpectedImprovement(c.one, c.X, sampler=sampler(), prune_baseline=False), 2),
    "qLogNEI pruned": (lambda c: qLogNoisyExpectedImprovement(c.one, c.X, prune_baseline=True), 2),
    "qLogNEI pending": (
        lambda c: qLogNoisyExpectedImprovement(c.one, c.X, X_pending=PENDING, sampler=sampler(), prune_baseline=False),
        2,
    ),
    "qLogNEI constrained": (constrained, 2),
    "qKG": (lambda c: qKnowledgeGradient(c.one, num_fantasies=4), 1),
    "qMultiStep": (lambda c: qMultiStepLookahead(c.one, batch_sizes=[1, 1], num_fantasies=[2, 2]), 1),
    "qMultiStep of improvements": (improvements_to_come, 1),
    "qNIPV": (lambda c: qNegIntegratedPosteriorVariance(c.one, mc_points=points(16)), 2),
    "qMES": (lambda c: qMaxValueEntropy(c.one, points(64), num_mv_samples=4, num_y_samples=8), 1),
    "qMES pending": (
        lambda c: qMaxValueEntropy(c.one, points(64), num_fantasies=4, num_mv_samples=4, num_y_samples=8, X_pending=PENDING),
        1,
    ),
    "GIBBON": (lambda c: qLowerBoundMaxValueEntropy(c.one, points(64), num_mv_samples=4), 1),
    "GIBBON pending": (
        lambda c: qLowerBoundMaxValueEntropy(c.one, points(64), num_mv_samples=4, X_pending=PENDING),
        1,
    ),
    "qJES": (lambda c: qJointEntropySearch(c.one, *optimal(c)), 1),
    # Its expectation propagation takes the log of a normal cdf that underflows where optima contradict each other, and had
    # NaN gradients there for hmc at BoTorch's default jitter of 1e-4; 0.1 kept it away from that.
    "qPES": (
        lambda c: qPredictiveEntropySearch(cast(Any, c.one), optimal(c)[0], max_ep_iterations=20, ep_jitter=0.1, test_jitter=0.1),
        1,
    ),
    "PathwiseThompsonSampling": (lambda c: PathwiseThompsonSampling(c.one), 2),
    "qLogEHVI": (lambda c: qLogExpectedHypervolumeImprovement(c.two, REFERENCE, partitioning(c), sampler=sampler()), 2),
    "qLogNEHVI": (
        lambda c: qLogNoisyExpectedHypervolumeImprovement(c.two, REFERENCE, c.X, sampler=sampler(), prune_baseline=False),
        2,
    ),
    "qLogNEHVI pruned": (
        lambda c: qLogNoisyExpectedHypervolumeImprovement(c.two, REFERENCE, c.X, prune_baseline=True),
        1,
    ),
    "qLogNParEGO": (lambda c: qLogNParEGO(c.two, c.X, sampler=sampler()), 1),
    "qHVKG": (hypervolume_knowledge, 1),
    "ModelList qLogNEHVI": (lambda c: qLogNoisyExpectedHypervolumeImprovement(c.models, REFERENCE, c.X), 1),
}


@pytest.mark.parametrize("use", USES)
def test_acquisition_functions_through_optimize_acqf(case: Case, use: str) -> None:
    build, q = USES[use]
    acqf = build(case)
    asked = acqf.get_augmented_q_batch_size(q) if isinstance(acqf, qMultiStepLookahead) else q
    candidate, value = optimize_acqf(acqf, BOUNDS, q=asked, num_restarts=2, raw_samples=8, options={"maxiter": 5})
    assert candidate.shape == (q, 2)
    assert bool(((candidate >= BOUNDS[0]) & (candidate <= BOUNDS[1])).all())
    assert bool(value.isfinite().all())


# ---------------------------------------------------------------------------- samples of functions and of optima


def test_optimal_samples_are_the_maxima_of_function_draws(case: Case) -> None:
    inputs, outputs = optimal(case)
    assert inputs.shape == (3, 2)
    assert outputs.shape == (3, 1)
    assert bool(((inputs >= 0) & (inputs <= 1)).all())
    # Maxima of functions lie above the mean's at the same places, on average, and never far below the best mean.
    with torch.no_grad():
        posterior = case.one.posterior(points(64))
    assert outputs.min() > (posterior.mean - 4 * posterior.variance.sqrt()).max()


def test_matheron_paths_are_functions_at_their_own_points(case: Case) -> None:
    path = get_matheron_path_model(cast(Any, case.one), sample_shape=torch.Size([3]))
    two = get_matheron_path_model(cast(Any, case.two))
    listed = get_matheron_path_model(cast(Any, case.models), sample_shape=torch.Size([3]))
    X = points(4)
    with torch.no_grad():
        shared = path(X)  # 3 x 4 x 1: every path at the same points
        assert shared.shape == (3, 4, 1)
        own = path(X[:3].unsqueeze(-2))  # 3 x 1 x d: path i at point i
        torch.testing.assert_close(own.squeeze(-2), shared[[0, 1, 2], [0, 1, 2]])
        batched = path(X[:3].unsqueeze(-2).expand(5, 3, 1, 2))
        torch.testing.assert_close(batched, own.expand(5, 3, 1, 1))
        assert two(X).shape == (4, 2)
        assert listed(X).shape == (3, 4, 2)


def test_paths_of_fantasies(case: Case) -> None:
    fantasies = case.one.fantasize(points(2).unsqueeze(-2), sampler(4))  # batch shape 4 x 2
    path = get_matheron_path_model(cast(Any, fantasies), sample_shape=torch.Size([3]))
    X = points(5)
    with torch.no_grad():
        values = path(X)
        assert values.shape == (3, 4, 2, 5, 1)
        own = path(X.expand(3, 4, 2, 5, 2))
        torch.testing.assert_close(own, values)
        posterior = fantasies.posterior(X)
        average = fantasies.sample_functions(400)(X).mean(0)
    error = (average - posterior.mean).abs() / posterior.variance.sqrt()
    assert error.max() < 5.0 / 400**0.5


def test_pathwise_thompson_sampling_sums_one_path_per_point(case: Case) -> None:
    acqf = PathwiseThompsonSampling(case.one)
    X = points(6).reshape(3, 2, 2)
    with torch.no_grad():
        value = acqf(X)
        assert acqf.samples is not None
        paths = acqf.samples(X.reshape(6, 2)).reshape(2, 3, 2)  # path x batch x point
    torch.testing.assert_close(value, paths[0, :, 0] + paths[1, :, 1])


def test_max_posterior_sampling(case: Case) -> None:
    candidates = points(50)
    picked = MaxPosteriorSampling(case.one, replacement=False)(candidates, num_samples=4)
    assert picked.shape == (4, 2)
    assert bool((picked.unsqueeze(1) == candidates).all(-1).any(-1).all())


# ---------------------------------------------------------------------------- views and copies


def test_subset_output_equals_the_slice(case: Case) -> None:
    view, X = case.two.subset_output([1]), points(4)
    with torch.no_grad():
        whole = case.two.posterior(X)
        torch.testing.assert_close(view.posterior(X).mean, whole.mean[..., 1:])
        torch.testing.assert_close(view.posterior(X).variance, whole.variance[..., 1:], rtol=1e-6, atol=1e-10)
        # Its fantasies move its own output as fantasies of that output do, and leave the training data alone.
        outcome = view.posterior(X[:1]).mean + 1.0
        fantasy = view.condition_on_observations(X[:1], outcome)
        after = fantasy.posterior(X[:1])
        assert fantasy.num_outputs == 1
        assert (after.mean - outcome).abs().item() < 1.0
        assert after.variance.item() < whole.variance[0, 1].item()
        torch.testing.assert_close(view.posterior(X).mean, whole.mean[..., 1:])


def test_fantasies_of_a_view_leave_unrelated_outputs_as_they_are(case: Case) -> None:
    """Gaussian processes with independent outputs: what is told about one says nothing about the other."""
    if case.two.name not in ("gp", "nngp"):
        return
    X = points(1)
    with torch.no_grad():
        before = case.two.posterior(X)
        fantasy = case.two.subset_output([1]).condition_on_observations(X, before.mean[..., 1:] + 1.0)
        fantasy._output_indices = None  # look behind the view
        after = fantasy.posterior(X)
    torch.testing.assert_close(after.mean[..., 0], before.mean[..., 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(after.variance[..., 0], before.variance[..., 0], rtol=1e-5, atol=1e-8)


def test_copies_and_loaded_states_give_identical_acquisition_values(case: Case) -> None:
    fresh = case.one.clone()
    fresh.load_state_dict(case.one.state_dict())
    X = points(4).unsqueeze(-2)
    values = [
        qLogNoisyExpectedImprovement(model, case.X, sampler=sampler(), prune_baseline=False)(X).detach()
        for model in (case.one, copy.deepcopy(case.one), fresh)
    ]
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[0], values[2])


# ---------------------------------------------------------------------------- values

ANY_BATCH = [
    "LogEI", "UCB", "qLogEI", "qUCB", "qSR", "qLogNEI", "qLogNEI pending", "qLogNEI constrained", "qNIPV", "qMES",
    "GIBBON", "qJES", "qLogEHVI", "qLogNEHVI", "qLogNParEGO",
]  # fmt: skip


@pytest.mark.parametrize("use", ANY_BATCH)
def test_a_point_has_one_value_in_every_slot_of_every_batch(case: Case, use: str) -> None:
    build, q = USES[use]
    acqf = build(case)
    X, others = points(q, seed=5), points(2 * q, seed=6).reshape(2, q, 2)
    with torch.no_grad():
        alone = acqf(X)
        assert alone.shape == (1,)
        slots = torch.cat([others[:1], X.expand(3, q, 2), others[1:], X.unsqueeze(0)])
        values = acqf(slots)[[1, 2, 3, 5]]
        torch.testing.assert_close(values, alone.expand(4), rtol=1e-6, atol=1e-8)
        if use == "GIBBON":
            return  # BoTorch's class takes one batch dimension only, with its own GP too
        deep = acqf(slots.reshape(2, 3, q, 2))
        assert deep.shape == (2, 3)
        again = deep.flatten()[[1, 2, 3, 5]]
        # BoTorch draws qLogNEHVI's base samples anew when the number of batch dimensions changes (with its own GP too).
        expected = again[:1] if use == "qLogNEHVI" else alone
        torch.testing.assert_close(again, expected.expand(4), rtol=1e-6, atol=1e-8)


def test_sampled_expected_improvement_is_the_exact_one(case: Case) -> None:
    """Of a Gaussian: the analytic formula. Of particles: the weighted sum."""
    X = points(6, seed=9).unsqueeze(-2)
    best = case.one.posterior(X).mean.mean().detach()
    with torch.no_grad():
        sampled = qExpectedImprovement(case.one, best_f=best, sampler=sampler(4096))(X)
        posterior = case.one.posterior(X)
        if isinstance(posterior, ParticlePosterior):
            gains = (posterior.values[..., 0, 0] - best).clamp_min(0)
            exact = (posterior.weights * gains).sum(0)
        else:
            exact = ExpectedImprovement(case.one, best_f=best)(X)
        spread = posterior.variance.flatten().sqrt()
    assert ((sampled - exact).abs() / spread).max() < 0.01


def test_knowledge_gradient_is_not_negative(case: Case) -> None:
    _, now = optimize_acqf(PosteriorMean(case.one), BOUNDS, q=1, num_restarts=4, raw_samples=64)
    # Means of fantasies average to the mean itself up to the error of quasi-random fantasies, about 1 / 64 of the spread.
    acqf = qKnowledgeGradient(case.one, num_fantasies=64, current_value=now)
    X = points(3, seed=8).unsqueeze(-2)
    values = acqf.evaluate(X, bounds=BOUNDS, num_restarts=4, raw_samples=64)
    with torch.no_grad():
        spread = case.one.posterior(X).variance.sqrt().flatten()
    assert bool((values > -0.05 * spread).all())


def test_memory_does_not_grow(case: Case) -> None:
    acqf = qLogExpectedImprovement(case.one, best_f=case.best, sampler=sampler())

    def numbers_held_after(calls: int) -> int:
        for _ in range(calls):
            optimize_acqf(acqf, BOUNDS, q=1, num_restarts=2, raw_samples=4, options={"maxiter": 1})
        gc.collect()
        return sum(item.numel() for item in gc.get_objects() if type(item) is Tensor)

    first = numbers_held_after(5)
    assert numbers_held_after(50) <= first


# ---------------------------------------------------------------------------- entropy searches of particles


class MomentMatched(Model):
    """The Gaussian with the moments of a particle surrogate at any points, conditioned exactly."""

    def __init__(self, base: seqbdl.Surrogate, told: tuple[Tensor, Tensor, Tensor] | None = None) -> None:
        super().__init__()
        self.base = base
        self.told = told  # inputs b x n' x d, outcomes b x n' x 1, noise variances

    num_outputs = 1
    batch_shape = torch.Size([])

    def posterior(self, X: Tensor, observation_noise: bool = False, **kwargs: Any) -> GPyTorchPosterior:
        posterior = self.base.posterior(X if self.told is None else _join(X, self.told[0]))
        assert isinstance(posterior, ParticlePosterior)
        joint = posterior.moments
        if self.told is not None:
            joint = joint.condition(self.told[1], self.told[2])
        if observation_noise:
            joint = joint.plus_noise(self.base.noise_variance.reshape(1, -1))
        return joint.to_posterior(X.dtype)

    def condition_on_observations(self, X: Tensor, Y: Tensor, noise: Tensor | None = None, **kwargs: Any) -> MomentMatched:
        return MomentMatched(self.base, (X, Y, self.base.noise_variance.expand(Y.shape) if noise is None else noise))


def _join(X: Tensor, more: Tensor) -> Tensor:
    batch = torch.broadcast_shapes(X.shape[:-2], more.shape[:-2])
    return torch.cat([X.expand(*batch, *X.shape[-2:]), more.expand(*batch, *more.shape[-2:])], -2)


@pytest.mark.parametrize("use", ["qMES", "qLowerBoundMES", "qJES"])
def test_entropy_searches_of_particles_agree_with_the_moment_matched_gaussian(case: Case, use: str) -> None:
    if not isinstance(case.one.posterior(points(1)), ParticlePosterior):
        return
    inputs, outputs = optimal(case)
    X = points(24, seed=12).unsqueeze(-2)
    candidates = points(64)

    def values(model: Any) -> Tensor:
        with manual_seed(1), torch.no_grad():
            if use == "qJES":
                return cast(Tensor, qJointEntropySearch(model, inputs, outputs)(X))
            options: dict[str, Any] = {"num_mv_samples": 32, "train_inputs": candidates[:0]}
            if use == "qMES":
                return cast(Tensor, qMaxValueEntropy(model, candidates, num_y_samples=128, **options)(X))
            return cast(Tensor, qLowerBoundMaxValueEntropy(model, candidates, **options)(X))

    ours, gaussian = values(case.one), values(MomentMatched(case.one))
    if use == "qLowerBoundMES":  # made of moments alone
        torch.testing.assert_close(ours, gaussian, rtol=1e-4, atol=1e-6)
    # A mixture of few functions has other entropies than its Gaussian; places and sizes must agree all the same.
    assert torch.corrcoef(torch.stack([ours, gaussian]))[0, 1] > 0.7
    assert (ours - gaussian).abs().mean() < 0.15  # nats
