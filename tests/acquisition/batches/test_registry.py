"""Selections by name, from surrogates and from anyone's model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from seqbdl.acquisition import gaussian_scores, pool_scores
from seqbdl.acquisition.batches import (
    Batch,
    BatchAcquisition,
    PoolKernel,
    context,
    get_batch_acquisition,
    list_batch_acquisitions,
    max_det,
    posterior_features,
    register_batch_acquisition,
    registry,
    select_batch,
)
from seqbdl.acquisition.batches.features import unit_scale
from seqbdl.acquisition.batches.ranking import rank
from seqbdl.errors import InvalidDataError, InvalidOptionError, ShapeError, UnknownNameError
from seqbdl.surrogates import Surrogate, make_surrogate

Fitted = Callable[..., Surrogate]
NAMES = list_batch_acquisitions()
OF_VALUES = [name for name in NAMES if get_batch_acquisition(name).for_values is not None]
OF_CLASSES = [name for name in NAMES if get_batch_acquisition(name).for_classes is not None]


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=gen(seed), dtype=torch.float64)


def needed(name: str) -> dict[str, Any]:
    options: dict[str, Any] = {"targets": uniform(6, 2, seed=9)} if get_batch_acquisition(name).needs_targets else {}
    return options | ({"num_configurations": 200} if name == "BatchBALD" else {})


@pytest.fixture(scope="module")
def classifiers() -> dict[str, Surrogate]:
    X = uniform(20, 2, seed=3)
    labels = (X.sum(-1, keepdim=True) * 1.5).floor().clamp_max(2.0)
    three = {"likelihood": "categorical", "network": (8,), "seed": 1}
    return {
        "laplace": make_surrogate("laplace", 2, 3, **three).fit(X, labels),
        "ensemble": make_surrogate("ensemble", 2, 3, **three).fit(X, labels),
        "two classes": make_surrogate("laplace", 2, likelihood="bernoulli", network=(8,), seed=1).fit(X, labels.clamp_max(1.0)),
    }


class Linear(torch.nn.Module):
    """Somebody's classifier: ``n`` linear functions, and nothing else that a surrogate has."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.num_classes = num_classes

    def log_probs(self, X: Tensor, n: int, generator: torch.Generator) -> Tensor:
        weights = 3 * torch.randn(n, X.shape[-1], self.num_classes, generator=generator, dtype=X.dtype)
        return (X @ weights).log_softmax(-1)


def check(batch: Batch, q: int, forbidden: set[int]) -> None:
    picks = batch.indices.tolist()
    assert len(set(picks)) == q == len(batch)
    assert not set(picks) & forbidden
    assert batch.scores.shape == batch.increments.shape == (q,)
    assert bool(batch.scores.isfinite().all())


@pytest.mark.parametrize("name", OF_VALUES)
@pytest.mark.parametrize("kind", ["gp", "ensemble"])
def test_every_selection_of_values_respects_the_rules(name: str, kind: str, make_fitted: Fitted) -> None:
    pool, cost = uniform(40, 2), 0.5 + uniform(40, seed=1)
    options: dict[str, Any] = {"targets": uniform(6, 2, seed=9)} if get_batch_acquisition(name).needs_targets else {}
    options |= {"pending": [4, 5], "exclude": [0, 1, 2, 39], "num_draws": 20}
    for extra in ({}, {"cost": cost}):
        batch = select_batch(name, make_fitted(kind), pool, 3, generator=gen(), **options, **extra)
        check(batch, 3, {0, 1, 2, 39, 4, 5})
    again = select_batch(name, make_fitted(kind), pool, 3, generator=gen(), **options, cost=cost)
    assert again.indices.tolist() == batch.indices.tolist()


@pytest.mark.parametrize("name", OF_CLASSES)
@pytest.mark.parametrize("kind", ["laplace", "ensemble", "two classes"])
def test_every_selection_of_classes_respects_the_rules(name: str, kind: str, classifiers: dict[str, Surrogate]) -> None:
    pool, cost = uniform(40, 2), 0.5 + uniform(40, seed=1)
    options = needed(name) | {"pending": [4, 5], "exclude": [0, 1, 2, 39], "num_draws": 20}
    for extra in ({}, {"cost": cost}):
        batch = select_batch(name, classifiers[kind], pool, 3, generator=gen(), **options, **extra)
        check(batch, 3, {0, 1, 2, 39, 4, 5})
    again = select_batch(name, classifiers[kind], pool, 3, generator=gen(), **options, cost=cost)
    assert again.indices.tolist() == batch.indices.tolist()  # the same generator, the same batch


def test_a_bare_classifier_is_enough_for_scores_of_classes() -> None:
    pool = uniform(30, 2)
    model = Linear()
    for name in OF_CLASSES:
        entry = get_batch_acquisition(name)
        if entry.needs_features:
            continue
        check(select_batch(name, model, pool, 2, generator=gen(), num_draws=20, **needed(name)), 2, set())
    hidden = torch.nn.Linear(2, 5, dtype=torch.float64)
    for name in ("BADGE", "KCentre", "LCMD"):
        check(select_batch(name, model, pool, 2, generator=gen(), num_draws=20, features=hidden), 2, set())
    with pytest.raises(InvalidOptionError, match="pass generator="):
        select_batch("BALD", model, pool)


def test_the_draws_are_the_same_functions_at_pool_and_targets() -> None:
    """A sure classifier's label at a point tells all about the label at that same point, if the functions are the same."""

    class Sure(Linear):
        def log_probs(self, X: Tensor, n: int, generator: torch.Generator) -> Tensor:
            return torch.nn.functional.one_hot(super().log_probs(X, n, generator).argmax(-1), 3).double().log()

    pool = uniform(30, 2) - 0.5
    batch = select_batch("EPIG", Sure(), pool, 1, targets=pool[[7]], generator=gen(), num_draws=60)
    bald = select_batch("BALD", Sure(), pool, 30, generator=gen(), num_draws=60)
    about = dict(zip(bald.indices.tolist(), bald.scores.tolist(), strict=True))
    assert float(batch.scores[0]) == pytest.approx(about[7], abs=1e-12)


def test_batchbald_of_values_is_the_determinant_of_the_surrogates_covariance(make_fitted: Fitted) -> None:
    surrogate: Any = make_fitted("gp")
    pool = uniform(300, 2)  # more than one block of the joint covariance
    batch = select_batch("BatchBALD", surrogate, pool, 4, pending=[7])
    with torch.no_grad():
        joint = surrogate.posterior(pool).distribution.covariance_matrix
    noise = float(surrogate.noise_variance)
    expected = max_det(PoolKernel.of_covariance(joint), 4, noise, gen(), pending=[7])
    assert batch.indices.tolist() == expected.indices.tolist()
    # Both round near data, where little of the prior variance is left: 1e-9 of it over the noise.
    assert torch.allclose(batch.scores, expected.scores, rtol=1e-4)


def test_epig_of_values_is_the_closed_form_of_the_surrogates_moments(make_fitted: Fitted) -> None:
    surrogate: Any = make_fitted("gp")
    pool, targets = uniform(20, 2), uniform(5, 2, seed=1)
    weights = torch.tensor([1.0, 2.0, 0.0, 1.0, 1.0])
    batch = select_batch("EPIG", surrogate, pool, 1, targets=targets, target_weights=weights)
    with torch.no_grad():
        joint = surrogate.posterior(torch.cat([pool, targets])).distribution.covariance_matrix
    noise = float(surrogate.noise_variance)
    v, there = joint.diagonal()[:20], joint.diagonal()[20:]
    scores = gaussian_scores.gaussian_epig(v, there, joint[:20, 20:], noise, noise, weights)
    assert int(batch.indices[0]) == int(scores.argmax())
    assert float(batch.scores[0]) == pytest.approx(float(scores.max()), rel=1e-5)
    sampled = select_batch("EPIG", surrogate, pool, 20, targets=targets, target_weights=weights, sampling="power")
    assert torch.allclose(sampled.scores, scores[sampled.indices], rtol=1e-4, atol=1e-9)


def test_few_particles_are_said_so(make_fitted: Fitted) -> None:
    batch = select_batch("EPIG", make_fitted("ensemble"), uniform(20, 2), 2, targets=uniform(5, 2, seed=1))
    assert "particles: scores are too large by up to" in str(batch.status)
    assert str(select_batch("EPIG", make_fitted("gp"), uniform(20, 2), 2, targets=uniform(5, 2, seed=1)).status) == "ok"


def test_features_are_scaled_and_conditioned_on_the_training_points() -> None:
    X, pool = uniform(12, 2, seed=2), uniform(30, 2)
    surrogate = make_surrogate("bayesian-last-layer", 2, network=(8,), seed=1).fit(X, X.sum(-1, keepdim=True))
    batch = select_batch("MaxDet", surrogate, pool, 4, space="features", sigma=0.1)
    train, rows = surrogate.features(X).detach(), surrogate.features(pool).detach()
    scale = unit_scale(train)
    expected = max_det(posterior_features(scale * rows, scale * train, 0.01), 4, 0.01, gen())
    assert batch.indices.tolist() == expected.indices.tolist()
    assert torch.allclose(batch.scores, expected.scores, rtol=1e-6)


def test_training_points_are_centres(make_fitted: Fitted) -> None:
    surrogate: Any = make_fitted("gp")
    train = surrogate.train_inputs[0]
    pool = torch.cat([train, uniform(1, 2, seed=4)])
    for name in ("LCMD", "KCentre", "KMeans++"):
        batch = select_batch(name, surrogate, pool, 1, features=lambda x: x, generator=gen())
        assert int(batch.indices[0]) == train.shape[0]


def test_badge_of_a_jacobian_is_the_gradient_of_all_weights(classifiers: dict[str, Surrogate]) -> None:
    surrogate: Any = classifiers["laplace"]
    pool = uniform(20, 2)
    batch = select_batch("BADGE", surrogate, pool, 1, generator=gen(), sketch_dim=None, num_draws=20)
    source = gen()
    seed = int(torch.randint(2**31 - 1, (1,), generator=source))
    log_probs = surrogate.log_probs(pool, 20, gen(seed))
    p = log_probs.exp().mean(0)
    residual = p - torch.nn.functional.one_hot(p.argmax(-1), 3)
    jacobian = surrogate.features(pool).unflatten(0, (20, 3))
    norms = torch.einsum("nc,ncp->np", residual, jacobian).norm(dim=-1)
    assert int(batch.indices[0]) == int(norms.argmax())
    assert float(batch.scores[0]) == pytest.approx(float(norms.max()), rel=1e-9)


def test_names_forgive_case_and_hyphens_but_no_typos() -> None:
    assert get_batch_acquisition("batchbald").name == get_batch_acquisition("Batch-BALD").name == "BatchBALD"
    assert get_batch_acquisition("k-centre").name == "KCentre"
    assert get_batch_acquisition("kmeans++").name == "KMeans++"
    for wrong in ("BatchBLAD", "", "BAL", None, 3):
        with pytest.raises(UnknownNameError, match=r"unknown batch acquisition.*BADGE, BAIT, BALD"):
            get_batch_acquisition(wrong)  # type: ignore[arg-type]


def test_needs_are_declared() -> None:
    assert get_batch_acquisition("EPIG").needs_targets
    assert get_batch_acquisition("qNIPV").needs_targets
    assert get_batch_acquisition("BADGE").needs_features
    assert get_batch_acquisition("LCMD").needs_features
    assert get_batch_acquisition("BatchBALD").needs_joint
    assert not get_batch_acquisition("BALD").needs_targets


def test_what_is_missing_or_would_be_ignored_is_refused(make_fitted: Fitted, classifiers: dict[str, Surrogate]) -> None:
    gp, pool = make_fitted("gp"), uniform(10, 2)
    with pytest.raises(InvalidOptionError, match="EPIG needs targets"):
        select_batch("EPIG", gp, pool)
    with pytest.raises(InvalidOptionError, match="BALD does not look at targets"):
        select_batch("BALD", gp, pool, targets=pool)
    with pytest.raises(InvalidOptionError, match="BALD does not look at features"):
        select_batch("BALD", gp, pool, features=lambda x: x)
    with pytest.raises(InvalidOptionError, match="BADGE is for classes"):
        select_batch("BADGE", gp, pool)
    with pytest.raises(InvalidOptionError, match="MaxDet is for real values"):
        select_batch("MaxDet", classifiers["laplace"], pool)
    with pytest.raises(UnknownNameError, match="unknown option of BALD 'bata'; the known ones are: sampling, beta"):
        select_batch("BALD", gp, pool, bata=2.0)
    with pytest.raises(UnknownNameError, match="none of its own"):
        select_batch("BatchBALD", gp, pool, num_configurations=100)  # of values it has none
    with pytest.raises(InvalidOptionError, match="num_draws=1"):
        select_batch("BALD", gp, pool, num_draws=1)
    with pytest.raises(InvalidOptionError, match="features, draws"):
        select_batch("LCMD", gp, pool, space="posterior")
    with pytest.raises(InvalidOptionError, match="no features"):
        select_batch("LCMD", gp, pool, space="features")
    with pytest.raises(InvalidDataError, match="exclude holds index 3 2 times"):
        select_batch("BALD", gp, pool, exclude=[3, 3])
    with pytest.raises(InvalidDataError, match="in pending and in exclude"):
        select_batch("BALD", gp, pool, exclude=[3], pending=[3])
    with pytest.raises(ShapeError, match="pool has shape"):
        select_batch("BALD", gp, pool[0])
    with pytest.raises(ShapeError, match="M x 2"):
        select_batch("EPIG", gp, pool, targets=uniform(3, 4))
    with pytest.raises(ShapeError, match="subset_output"):
        select_batch("BALD", make_fitted("gp", 2), pool)

    class Wrong(Linear):
        def log_probs(self, X: Tensor, n: int, generator: torch.Generator) -> Tensor:
            return super().log_probs(X, n, generator).exp()

    with pytest.raises(InvalidDataError, match=r"surrogate\.log_probs\(pool\).*not to 1"):
        select_batch("BALD", Wrong(), pool, generator=gen())


def test_one_output_of_several_can_be_selected_for(make_fitted: Fitted) -> None:
    check(select_batch("BatchBALD", make_fitted("gp", 2).subset_output([1]), uniform(10, 2), 2), 2, set())


def test_a_selection_of_ones_own(monkeypatch: pytest.MonkeyPatch, make_fitted: Fitted) -> None:
    monkeypatch.setattr(registry, "_TABLE", dict(registry._TABLE))

    def nearest(context: Any, *, x: float = 0.0) -> Batch:
        return rank(-(context.pool[:, 0] - x).abs(), context.rules)

    register_batch_acquisition(BatchAcquisition("Nearest", for_values=nearest))
    pool = torch.linspace(0, 1, 11, dtype=torch.float64).unsqueeze(-1).expand(-1, 2)
    assert select_batch("nearest", make_fitted("gp"), pool, x=0.72).indices.tolist() == [7]
    with pytest.raises(InvalidOptionError, match="exists already"):
        register_batch_acquisition(BatchAcquisition("NEAREST"))


def test_scores_do_not_depend_on_how_the_pool_is_cut(classifiers: dict[str, Surrogate], monkeypatch: pytest.MonkeyPatch) -> None:
    pool = uniform(50, 2)
    whole = select_batch("BALD", classifiers["laplace"], pool, 5, generator=gen(), num_draws=20)
    monkeypatch.setattr(context, "VALUES_AT_ONCE", 8 * 20 * 7)
    parts = select_batch("BALD", classifiers["laplace"], pool, 5, generator=gen(), num_draws=20)
    assert parts.indices.tolist() == whole.indices.tolist()
    assert torch.allclose(parts.scores, whole.scores, atol=1e-12)


def test_the_ceiling_of_few_particles_reaches_the_caller(classifiers: dict[str, Surrogate]) -> None:
    draws = classifiers["ensemble"].log_probs(uniform(50, 2), 100, gen())
    distinct = draws.flatten(1).unique(dim=0).shape[0]
    assert distinct < 100
    assert float(pool_scores.bald(draws).max()) <= math.log(distinct) + 1e-12
