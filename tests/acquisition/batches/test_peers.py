"""The same batches as other people's packages, where these are installed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from seqbdl.acquisition import pool_scores
from seqbdl.acquisition.batches import (
    bait,
    batchbald,
    frank_wolfe,
    k_centre,
    lcmd,
    max_det,
    posterior_features,
    top_batch,
)
from seqbdl.acquisition.batches.features import unit_scale

SIGMA = 0.1


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points_first() -> Tensor:
    """``50 x 20 x 4``."""
    return (2 * torch.randn(50, 20, 4, dtype=torch.float64, generator=gen())).log_softmax(-1)


def test_batchbald_redux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "1")
    redux = pytest.importorskip("batchbald_redux.batchbald")
    given = points_first()
    log_probs = given.transpose(0, 1)
    theirs = redux.get_bald_batch(given, 5, dtype=torch.double)
    ours = top_batch(pool_scores.bald(log_probs), 5)
    assert ours.indices.tolist() == theirs.indices
    assert ours.scores.tolist() == pytest.approx(theirs.scores, abs=1e-14)
    exact = redux.get_batchbald_batch(given, 5, num_samples=100_000, dtype=torch.double)
    batch = batchbald(log_probs, 5, gen(), num_configurations=100_000)
    assert batch.indices.tolist() == exact.indices
    assert batch.scores.tolist() == pytest.approx(exact.scores, abs=1e-13)


def test_baal() -> None:
    heuristics = pytest.importorskip("baal.active.heuristics", exc_type=ImportError)  # it needs torchvision
    given = points_first()
    log_probs, NCK = given.transpose(0, 1), given.exp().permute(0, 2, 1).numpy()
    assert pool_scores.bald(log_probs).tolist() == pytest.approx(heuristics.BALD().compute_score(NCK).tolist(), abs=1e-13)
    entropy = heuristics.Entropy().compute_score(NCK).tolist()
    assert pool_scores.predictive_entropy(log_probs).tolist() == pytest.approx(entropy, abs=1e-13)


def test_scikit_activeml() -> None:
    """Its joint entropies are exact while there are more samples than label vectors; its default is too few of them."""
    bald = pytest.importorskip("skactiveml.pool._bald")
    given = points_first()
    clipped = given.exp().transpose(0, 1).numpy().copy()  # it clips its argument
    utilities = bald.batch_bald(clipped, 5, n_MC_samples=100_000, random_state=0)
    batch = batchbald(given.transpose(0, 1), 5, gen(), num_configurations=100_000)
    assert batch.indices.tolist() == np.nanargmax(utilities, axis=1).tolist()
    assert batch.scores.tolist() == pytest.approx(np.nanmax(utilities, axis=1).tolist(), abs=1e-7)


@pytest.fixture
def select(monkeypatch: pytest.MonkeyPatch) -> Any:
    """bmdal-reg's function; it was written for numpy 1."""
    monkeypatch.setattr(np, "Inf", np.inf, raising=False)
    algorithms = pytest.importorskip("bmdal_reg.bmdal.algorithms")
    data = pytest.importorskip("bmdal_reg.bmdal.feature_data")

    def call(train: Tensor, pool: Tensor, method: str, posterior: bool, **options: Any) -> list[int]:
        chosen, _ = algorithms.select_batch(
            batch_size=10,
            models=[torch.nn.Linear(15, 1).double()],
            data={"train": data.TensorFeatureData(train), "pool": data.TensorFeatureData(pool)},
            y_train=torch.zeros(train.shape[0], 1, dtype=torch.float64),
            base_kernel="linear",
            kernel_transforms=[("train", [SIGMA, None])] if posterior else [],
            selection_method=method,
            sel_with_train=not posterior,
            allow_float64=True,
            verbosity=0,
            **options,
        )
        result: list[int] = chosen.tolist()
        return result

    return call


@pytest.mark.parametrize("seed", range(20))
def test_bmdal_reg(seed: int, select: Any) -> None:
    generator = gen(seed)
    train = torch.randn(40, 15, generator=generator, dtype=torch.float64)
    pool = torch.randn(200, 15, generator=generator, dtype=torch.float64)
    scale = unit_scale(train)
    both = posterior_features(scale * torch.cat([pool, train]), scale * train, SIGMA**2)
    rows = both[:200]
    variances = rows.square().sum(-1)
    assert sorted(top_batch(variances, 10).indices.tolist()) == sorted(select(train, pool, "maxdiag", True))
    assert max_det(rows, 10, 0.0, gen()).indices.tolist() == select(train, pool, "maxdet", True)
    assert k_centre(pool, 10, gen(), centres=train).indices.tolist() == select(train, pool, "maxdist", False)
    assert lcmd(pool, 10, gen(), centres=train).indices.tolist() == select(train, pool, "lcmd", False)
    assert lcmd(rows, 10, gen()).indices.tolist() == select(train, pool, "lcmd", True)
    assert frank_wolfe(rows, 10, gen()).indices.tolist() == select(train, pool, "fw", True)
    forward = bait(rows, 10, SIGMA**2, gen(), targets=both, backward=False)
    assert forward.indices.tolist() == select(train, pool, "bait", True, bait_sigma=SIGMA, overselection_factor=1.0)
    backward = bait(rows, 10, SIGMA**2, gen(), targets=both)
    theirs = select(train, pool, "bait", True, bait_sigma=SIGMA, overselection_factor=2.0)
    if float(backward.scores[-1]) > float(forward.scores[-1]):
        assert sorted(backward.indices.tolist()) == sorted(theirs)
    else:  # dropping ended below picking alone; ours keeps the better of both
        assert backward.indices.tolist() == forward.indices.tolist()
