"""Every name builds, for a Gaussian and for a particle posterior, and bad requests are refused in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from botorch.acquisition.acquisition import AcquisitionFunction
from botorch.acquisition.objective import LinearMCObjective
from botorch.models import SingleTaskGP
from torch import Tensor

from seqbdl.acquisition import (
    ACQUISITIONS,
    AcquisitionContext,
    list_acquisitions,
    make_acquisition,
    optimize_acquisition,
    register_acquisition,
)
from seqbdl.acquisition.encoding import SearchView, pending_points
from seqbdl.acquisition.registry import _TABLE
from seqbdl.errors import InvalidOptionError, ShapeError, UnknownNameError
from seqbdl.surrogates import Surrogate, make_surrogate

Fitted = Callable[..., Surrogate]
MULTI = {"qLogEHVI", "qLogNEHVI", "qLogNParEGO", "qHVKG"}
NO_PENDING = {"LogEI", "UCB", "PosteriorMean", "PosteriorStandardDeviation"}
OPTIONS: dict[str, dict[str, Any]] = {
    "qKG": {"num_fantasies": 4},
    "qHVKG": {"num_fantasies": 2, "num_pareto": 2},
    "qMultiStep": {"step_fantasies": (2, 2)},
    "qMES": {"num_optima": 4},
    "GIBBON": {"num_optima": 4},
    "qJES": {"num_optima": 4},
    "qPES": {"num_optima": 4},
    "DrawEntropySearch": {"num_draws": 32, "raw_samples": 64},
}


def build(name: str, fitted: Fitted, kind: str, bounds: Tensor, **more: Any) -> AcquisitionFunction:
    surrogate = fitted(kind, 2 if name in MULTI or name == "qLogPF" else 1)
    if name == "qLogPF":
        more["constraints"] = [lambda samples: samples[..., 1] - 0.5]
    return make_acquisition(name, surrogate, bounds=bounds, mc_samples=32, **OPTIONS.get(name, {}), **more)


@pytest.mark.parametrize("kind", ["gp", "ensemble"])
@pytest.mark.parametrize("name", list_acquisitions())
def test_every_name_is_optimized_the_same_way_twice(name: str, kind: str, make_fitted: Fitted, unit_square: Tensor) -> None:
    results = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        before = torch.random.get_rng_state()
        acqf = build(name, make_fitted, kind, unit_square)
        generator = torch.Generator().manual_seed(5)
        results.append(optimize_acquisition(acqf, unit_square, num_restarts=2, raw_samples=16, generator=generator, maxiter=5))
        assert torch.equal(torch.random.get_rng_state(), before)
    (X, value), (again, value_again) = results
    assert X.shape == (1, 2)
    assert bool(value.isfinite())
    assert bool(((X >= 0) & (X <= 1)).all())
    assert torch.equal(X, again)
    assert torch.equal(value, value_again)


@pytest.mark.parametrize("kind", ["gp", "ensemble"])
@pytest.mark.parametrize("name", sorted(set(list_acquisitions()) - NO_PENDING))
def test_a_batch_grows_on_top_of_pending_points_and_leaves_them(
    name: str, kind: str, make_fitted: Fitted, unit_square: Tensor
) -> None:
    pending = torch.tensor([[0.35, 0.45]], dtype=torch.float64)
    acqf = build(name, make_fitted, kind, unit_square, X_pending=pending)
    X, value = optimize_acquisition(acqf, unit_square, q=2, num_restarts=2, raw_samples=16, maxiter=3)
    assert X.shape == (2, 2)
    assert bool(value.isfinite().all())
    kept = pending_points(acqf)
    assert kept is not None
    assert torch.equal(kept, pending)


@pytest.mark.parametrize("name", ["qLogEI", "qLogNEI", "qUCB", "qMES", "GIBBON", "qJES", "qNIPV", "DrawEntropySearch"])
def test_adding_pending_points_equals_building_with_them(name: str, make_fitted: Fitted, unit_square: Tensor) -> None:
    first, second = unit_square[:1] + 0.35, unit_square[:1] + 0.45
    point = torch.tensor([[[0.5, 0.3]]], dtype=torch.float64)
    alone = build(name, make_fitted, "gp", unit_square)
    acqf = build(name, make_fitted, "gp", unit_square, X_pending=first)
    with_first = acqf(point)
    assert not torch.allclose(alone(point), with_first)
    expected = build(name, make_fitted, "gp", unit_square, X_pending=torch.cat([first, second]))(point)
    with SearchView(acqf).adding_pending() as add:
        add(second)
        assert torch.allclose(acqf(point), expected, atol=1e-5)
    assert torch.allclose(acqf(point), with_first, atol=1e-7)


def test_methods_without_pending_points_say_so(make_fitted: Fitted, unit_square: Tensor) -> None:
    for name in NO_PENDING:
        with pytest.raises(InvalidOptionError, match="use q"):
            make_acquisition(name, make_fitted(), X_pending=unit_square)


def test_botorch_models_are_welcome(unit_square: Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(8, 2, generator=generator, dtype=torch.float64)
    model = SingleTaskGP(X, X.sum(dim=-1, keepdim=True).sin())
    model.eval()
    for name in ("qLogNEI", "GIBBON", "qJES", "qKG", "qNIPV"):
        acqf = make_acquisition(name, model, bounds=unit_square, **OPTIONS.get(name, {}))
        _, value = optimize_acquisition(acqf, unit_square, num_restarts=2, raw_samples=16, maxiter=3)
        assert bool(value.isfinite())


def test_one_output_of_several_is_that_output(make_fitted: Fitted, unit_square: Tensor) -> None:
    """objective=0 of a surrogate whose outputs are independent Gaussians equals the single-output surrogate's value."""
    both = make_fitted("gp", 2)
    points = torch.rand(5, 1, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for name in ("LogEI", "UCB", "qNIPV", "GIBBON", "qJES", "qKG"):
        acqf = make_acquisition(name, both, bounds=unit_square, objective=0, **OPTIONS.get(name, {}))
        X = points
        if name == "qKG":
            X = points.expand(5, 5, 2)
        assert acqf(X).shape == (5,)
        assert bool(acqf(X).isfinite().all())
    expected = both.posterior(points, output_indices=[1]).mean.flatten()
    mean = make_acquisition("PosteriorMean", both, objective=1)
    assert torch.allclose(mean(points), expected)


def test_objectives_may_be_callables_of_samples_and_inputs(make_fitted: Fitted) -> None:
    surrogate = make_fitted("gp", 2)
    points = torch.rand(4, 1, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    linear = LinearMCObjective(torch.tensor([1.0, -1.0], dtype=torch.float64))
    variants: list[Any] = [linear, lambda Y: Y[..., 0] - Y[..., 1], lambda Y, X: Y[..., 0] - Y[..., 1]]
    values = [make_acquisition("qLogNEI", surrogate, objective=each)(points) for each in variants]
    assert torch.allclose(values[0], values[1])
    assert torch.allclose(values[0], values[2])


@pytest.mark.parametrize("name", ["qLogEI", "qLogNEI", "qUCB", "qSR", "qKG"])
def test_constraints_move_the_optimum_into_the_feasible_part(name: str, make_fitted: Fitted, unit_square: Tensor) -> None:
    """The unconstrained optimum is at (0.4, 0.4); the second output, which equals x1, must be at most 0.2."""
    surrogate = make_fitted("gp", 2)
    acqf = make_acquisition(
        name,
        surrogate,
        bounds=unit_square,
        objective=0,
        constraints=[lambda samples: samples[..., 1] - 0.2],
        mc_samples=64,
        num_fantasies=4,
        beta=0.01,
    )
    X, _ = optimize_acquisition(acqf, unit_square, num_restarts=4, raw_samples=64)
    if name != "qKG":  # knowledge of the feasible optimum can also come from an infeasible point
        assert float(X[0, 0]) < 0.25


def test_before_any_data_what_can_work_works(unit_square: Tensor) -> None:
    empty = make_surrogate("gp", 2, bounds=unit_square)
    for name in ("UCB", "qUCB", "qSR", "qNIPV", "PosteriorStandardDeviation", "GIBBON", "qMES"):
        acqf = make_acquisition(name, empty, bounds=unit_square, **OPTIONS.get(name, {}))
        assert bool(acqf(torch.full((1, 1, 2), 0.5, dtype=torch.float64)).isfinite())
    for name in ("LogEI", "qLogEI", "qLogNEI", "qPES"):
        with pytest.raises(InvalidOptionError, match=f"{name}: needs observed points"):
            make_acquisition(name, empty, bounds=unit_square)


def test_incumbent(make_fitted: Fitted) -> None:
    surrogate = make_fitted("gp", 1)
    context = AcquisitionContext(surrogate=surrogate, name="x")
    assert surrogate.train_inputs is not None
    means: Any = surrogate.posterior(surrogate.train_inputs[0])
    assert torch.allclose(context.incumbent(), means.mean.max())
    assert surrogate.train_targets is not None
    observed = AcquisitionContext(surrogate=surrogate, name="x", best_f="observed").incumbent()
    assert torch.equal(observed, surrogate.train_targets.max())
    assert float(AcquisitionContext(surrogate=surrogate, name="x", best_f=3.5).incumbent()) == 3.5
    nothing = AcquisitionContext(surrogate=surrogate, name="x", constraints=[lambda samples: samples[..., 0] + 1e3])
    assert float(nothing.incumbent()) < float(means.mean.min())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "EI"}, UnknownNameError, "known ones are:.*qLogNEI"),
        ({"name": "qLogEI", "temperature": 1}, UnknownNameError, "option of qLogEI 'temperature'.*fat"),
        ({"name": "qMES", "bounds": None}, InvalidOptionError, "qMES: needs bounds"),
        ({"name": "qMES", "method": "magic"}, InvalidOptionError, 'it is "auto"'),
        ({"name": "qLogEI", "mc_samples": 0}, InvalidOptionError, "mc_samples=0"),
        ({"name": "qUCB", "beta": -1.0}, InvalidOptionError, "beta=-1"),
        ({"name": "LogEI", "best_f": "largest"}, InvalidOptionError, "best_f='largest'"),
        ({"name": "LogEI", "constraints": [len]}, InvalidOptionError, "does not take outcome constraints"),
        ({"name": "qLogPF"}, InvalidOptionError, "needs constraints"),
        ({"name": "qLogNEHVI"}, InvalidOptionError, "two or more objectives"),
        ({"name": "qLogEI", "objective": 3}, InvalidOptionError, "outputs are 0 to 0"),
        ({"name": "qLogEI", "objective": "first"}, InvalidOptionError, "output's index or a callable"),
        ({"name": "qJES", "estimation_type": "UB"}, InvalidOptionError, '"LB" or "MC"'),
        ({"name": "qLogEI", "X_pending": torch.zeros(2)}, ShapeError, "X_pending has shape"),
        (
            {"name": "qMES", "bounds": torch.tensor([[1.0, 0.0], [0.0, 1.0]])},
            InvalidOptionError,
            "reversed in column 0",
        ),
    ],
)
def test_bad_requests_are_refused_in_words(
    arguments: dict[str, Any], error: type[Exception], message: str, make_fitted: Fitted, unit_square: Tensor
) -> None:
    options = {"bounds": unit_square, **arguments}
    name = options.pop("name")
    with pytest.raises(error, match=message):
        make_acquisition(name, make_fitted("gp", 1), **options)


def test_several_outputs_need_an_objective(make_fitted: Fitted) -> None:
    with pytest.raises(InvalidOptionError, match="pass objective="):
        make_acquisition("qLogEI", make_fitted("gp", 2))


def test_new_names_can_be_registered(make_fitted: Fitted) -> None:
    def twice_the_mean(context: AcquisitionContext, *, factor: float = 2.0) -> AcquisitionFunction:
        return make_acquisition("qSR", context.surrogate, seed=context.seed)

    register_acquisition("twice", twice_the_mean)
    try:
        assert "twice" in list_acquisitions()
        assert make_acquisition("twice", make_fitted("gp", 1), factor=3.0) is not None
        with pytest.raises(UnknownNameError, match="factor"):
            make_acquisition("twice", make_fitted("gp", 1), fctor=3.0)
        with pytest.raises(InvalidOptionError, match="exists already"):
            register_acquisition("twice", twice_the_mean)
    finally:
        del _TABLE["twice"]
    assert "twice" not in ACQUISITIONS
