"""Knowledge carried between campaigns: trusted where it holds, dropped where it does not, at a bounded price."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import seqbdl
from seqbdl.diagnostics import log_predictive
from seqbdl.errors import InvalidOptionError
from seqbdl.loops import BayesOptLoop, Real, Space
from seqbdl.loops.transfer import trust
from seqbdl.surrogates import Surrogate


def f(X: torch.Tensor) -> torch.Tensor:
    return torch.sin(7 * X) + X


def rows(n: int, seed: int, sign: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    X = torch.rand(n, 1, generator=generator, dtype=torch.float64)
    return X, sign * f(X) + 0.05 * torch.randn(n, 1, generator=generator, dtype=torch.float64)


def campaign(sign: float, name: str = "gp") -> Surrogate:
    return seqbdl.make_surrogate(name, 1, bounds=torch.tensor([[0.0], [1.0]])).fit(*rows(20, 1, sign))


@pytest.mark.parametrize("name", ["gp", "ekf", "ensemble"])
def test_the_evidence_decides(name: str) -> None:
    X, Y = rows(8, 2)
    assert trust(campaign(1.0, name), X, Y).weights[0] < 0.05
    assert trust(campaign(-1.0, name), X, Y).expected < 0.05  # adversarial: the old campaign's sign is turned


def test_the_mixture_is_never_worse_than_no_trust_by_more_than_its_prior() -> None:
    for sign in (1.0, -1.0):
        old, (X, Y) = campaign(sign), rows(10, 3)
        found = trust(old, X, Y)
        mixture = math.log(sum(math.exp(e) for e in found.log_evidence) / len(found.powers))
        none = float(log_predictive(seqbdl.prior_from(old, temper=0.0), X, Y))
        assert -mixture <= -none - math.log(1 / len(found.powers))
        assert sum(found.weights) == pytest.approx(1.0)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_campaign_starts_from_a_saved_one(sign: float, tmp_path: Path) -> None:
    seqbdl.save(tmp_path / "old", campaign(sign))
    regrets: dict[str, float] = {}
    best = float(f(torch.linspace(0, 1, 2001, dtype=torch.float64)).max())
    for kind in ("cold", "carried"):
        old: Any = None if kind == "cold" else seqbdl.load(tmp_path / "old")
        loop = BayesOptLoop(Space([Real("x", 0, 1)]), prior=old, initial=2, seed=1)
        for _ in range(8):
            point = loop.ask()
            loop.tell(point, float(f(torch.tensor(point["x"], dtype=torch.float64))))
        record = loop.history.best()
        assert record is not None
        regrets[kind] = best - record.outcomes[0]
        if kind == "carried":
            assert loop.trust is not None
            assert (loop.trust.power > 0.0) == (sign > 0)
            again = BayesOptLoop(Space([Real("x", 0, 1)]), prior=old, initial=2, seed=1)
            again.load_state_dict(loop.state_dict())
            assert again.ask() == loop.ask()
    assert regrets["carried"] <= regrets["cold"] + 1e-3


def test_bad_use() -> None:
    X, Y = rows(3, 2)
    with pytest.raises(InvalidOptionError, match="learned nothing"):
        trust(seqbdl.make_surrogate("gp", 1), X, Y)
    with pytest.raises(InvalidOptionError, match="hold 0"):
        trust(campaign(1.0), X, Y, powers=(0.5, 1.0))
    for ignored in ({"surrogate": "nngp"}, {"refit": "update"}):
        with pytest.raises(InvalidOptionError, match="leave surrogate and refit out"):
            BayesOptLoop(Space([Real("x", 0, 1)]), prior=campaign(1.0), **ignored)
