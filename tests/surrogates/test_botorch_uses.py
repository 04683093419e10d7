"""BoTorch's own classes over every registered surrogate: nothing of ours between the model and the acquisition function.

The 29 uses are those that BoTorch's ``SingleTaskGP`` supports.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from botorch.acquisition import (
    LogExpectedImprovement,
    UpperConfidenceBound,
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
from botorch.sampling.normal import SobolQMCNormalSampler
from botorch.sampling.pathwise import get_matheron_path_model
from botorch.utils.multi_objective.box_decompositions import FastNondominatedPartitioning
from botorch.utils.sampling import manual_seed
from torch import Tensor

import seqbdl

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
    return qHypervolumeKnowledgeGradient(
        case.models, ref_point=REFERENCE, num_fantasies=2, num_pareto=2, use_posterior_mean=True
    )


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
        lambda c: qMaxValueEntropy(
            c.one, points(64), num_fantasies=4, num_mv_samples=4, num_y_samples=8, X_pending=PENDING
        ),
        1,
    ),
    "GIBBON": (lambda c: qLowerBoundMaxValueEntropy(c.one, points(64), num_mv_samples=4), 1),
    "GIBBON pending": (
        lambda c: qLowerBoundMaxValueEntropy(c.one, points(64), num_mv_samples=4, X_pending=PENDING),
        1,
    ),
    "qJES": (lambda c: qJointEntropySearch(c.one, *optimal(c)), 1),
    "qPES": (lambda c: qPredictiveEntropySearch(cast(Any, c.one), optimal(c)[0], max_ep_iterations=20), 1),
    "PathwiseThompsonSampling": (lambda c: PathwiseThompsonSampling(c.one), 2),
    "qLogEHVI": (lambda c: qLogExpectedHypervolumeImprovement(c.two, REFERENCE, partitioning(c), sampler=sampler()), 2),
    "qLogNEHVI": (
        lambda c: qLogNoisyExpectedHypervolumeImprovement(
            c.two, REFERENCE, c.X, sampler=sampler(), prune_baseline=False
        ),
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
    candidate, value = optimize_acqf(
        acqf, BOUNDS, q=asked, num_restarts=2, raw_samples=8, options={"maxiter": 5}
    )
    assert candidate.shape == (q, 2)
    assert bool(((candidate >= BOUNDS[0]) & (candidate <= BOUNDS[1])).all())
    assert bool(value.isfinite().all())
