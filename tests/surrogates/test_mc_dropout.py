"""``mc-dropout``: one mask per function, what is chosen on held-out rows, updates of the weights behind the masks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import seqbdl
from seqbdl.errors import InvalidOptionError
from seqbdl.networks.dropout import weight_factors
from seqbdl.surrogates.mc_dropout import NOISES, RATES, MCDropoutSurrogate

BOUNDS = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
X_TEST = torch.rand(6, 2, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def data(n: int = 20) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    return X, torch.sin(4 * X[:, :1]) + X[:, 1:] + 0.1 * torch.randn(n, 1, generator=generator, dtype=torch.float64)


def make(**options: Any) -> MCDropoutSurrogate:
    settings: dict[str, Any] = {"bounds": BOUNDS, "network": (16, 16), "num_members": 32, "steps": 60}
    surrogate = seqbdl.make_surrogate("mc-dropout", 2, **{**settings, **options})
    assert isinstance(surrogate, MCDropoutSurrogate)
    return surrogate


@pytest.mark.parametrize("input_rate", [0.0, 0.3])
def test_particles_are_masked_copies_of_one_weight_vector(input_rate: float) -> None:
    surrogate = make(rate=0.2, input_rate=input_rate).fit(*data())
    state = surrogate.save_state()["method"]
    z, own = state["z"], state["own"]
    assert own["weights"].shape == (1, z.shape[1])
    kept = z != 0
    if input_rate == 0.0:
        scaled = torch.where(kept, z, own["weights"])
        ratio = scaled / own["weights"]  # 1 where no unit sends, 1 / (1 - p) where one does
        assert bool(((ratio - 1).abs() < 1e-9).logical_or((ratio - 1.25).abs() < 1e-9).all())
    share = float((own["keep"] == 0).double().mean())
    assert abs(share - 0.2) < 4 * (0.16 / own["keep"].numel()) ** 0.5
    inputs = own["keep_inputs"] if input_rate else None
    expected = own["weights"] * weight_factors(surrogate._network, own["keep"], inputs)
    torch.testing.assert_close(z, expected)


def test_a_function_keeps_its_mask_for_every_input() -> None:
    """A mask per row would make repeated rows differ."""
    surrogate = make(rate=0.3).fit(*data())
    draws = surrogate.sample_functions(32)
    with torch.no_grad():
        values = draws(X_TEST[:1].expand(5, 2))
        assert float((values - values[:, :1]).abs().max()) < 1e-12
        assert float(values[:, 0].std()) > 1e-3
        torch.testing.assert_close(draws(X_TEST[:1]), values[:, :1])


def test_rate_and_noise_are_chosen_from_the_grid() -> None:
    surrogate = make().fit(*data(40))
    assert surrogate.dropout_rate in RATES
    state = surrogate.save_state()["method"]
    assert state["own"]["noise_factor"] in NOISES
    evidence = state["prior"]["noise"] * surrogate.save_state()["scaling"]["y_std"] ** 2
    torch.testing.assert_close(surrogate.noise_variance, evidence * state["own"]["noise_factor"])
    known = make(noise=0.04).fit(*data(40))
    assert known.save_state()["method"]["own"]["noise_factor"] == 1.0
    assert make(rate=0.25).fit(*data(40)).dropout_rate == 0.25


def test_densities_are_mixtures_over_masks() -> None:
    """``logsumexp`` over masks, as in the paper: the density of the noisy posterior."""
    X, Y = data()
    surrogate = make(rate=0.2).fit(X, Y)
    with torch.no_grad():
        posterior = surrogate.posterior(X, observation_noise=True)
        functions = surrogate._members(surrogate._scaling.inputs(X))
        scaling = surrogate._scaling
        normal = torch.distributions.Normal(scaling.y_mean + scaling.y_std * functions, surrogate.noise_variance.sqrt())
        expected = normal.log_prob(Y).logsumexp(0) - torch.tensor(32.0).log()
        torch.testing.assert_close(posterior.density(Y).log(), expected)  # type: ignore[attr-defined]


def test_updates_move_the_weights_and_keep_the_masks() -> None:
    X, Y = data(24)
    surrogate = make(rate=0.05).fit(X[:16], Y[:16])
    before = surrogate.save_state()["method"]["own"]
    gap = float((surrogate.posterior(X[16:]).mean - Y[16:]).abs().mean())
    surrogate.update(X[16:], Y[16:])
    after = surrogate.save_state()["method"]["own"]
    assert torch.equal(before["keep"], after["keep"])
    assert not torch.equal(before["weights"], after["weights"])
    assert float((surrogate.posterior(X[16:]).mean - Y[16:]).abs().mean()) < gap


def test_modules_and_bad_options() -> None:
    module = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    surrogate = make(network=module, rate=0.2, input_rate=0.1).fit(*data(12))
    assert float(surrogate.posterior(X_TEST).variance.min()) > 0
    with pytest.raises(InvalidOptionError, match="no hidden units"):
        make(network=nn.Linear(2, 1))
    for bad in ({"rate": 0.0}, {"rate": 1.0}, {"input_rate": 1.0}, {"steps": 0}, {"max_iterations": 0}):
        with pytest.raises(InvalidOptionError, match=next(iter(bad))):
            make(**bad)
