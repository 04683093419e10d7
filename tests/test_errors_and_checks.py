"""Every refusal names the argument, the row and the remedy, and is a ValueError."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import seqbdl
from seqbdl import errors
from seqbdl._checks import check_data, check_finite, check_inputs

X, Y = torch.rand(5, 2, generator=torch.Generator().manual_seed(0)).double(), torch.zeros(5, 1).double()
NAN = float("nan")


def with_entry(tensor: torch.Tensor, index: tuple[int, ...], value: float) -> torch.Tensor:
    changed = tensor.clone()
    changed[index] = value
    return changed


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((X.numpy(), Y, None), errors.ShapeError, ("X", "torch.Tensor")),
        ((X.long(), Y, None), errors.InvalidDataError, ("X", "int64", "X.double()")),
        ((X[0], Y, None), errors.ShapeError, ("X", "(2,)", "1 x 2")),
        ((X[:, :1], Y, None), errors.ShapeError, ("X", "1 columns", "input_dim=2")),
        ((X.unsqueeze(0), Y, None), errors.ShapeError, ("X", "n x d")),
        ((X[:0], Y[:0], None), errors.ShapeError, ("X", "no rows")),
        ((with_entry(X, (3, 1), NAN), Y, None), errors.InvalidDataError, ("X", "row 3", "remove")),
        ((X, with_entry(Y, (4, 0), float("inf")), None), errors.InvalidDataError, ("Y", "row 4", "remove")),
        ((X, Y[:4], None), errors.ShapeError, ("Y", "4 rows", "X has 5")),
        ((X, Y.squeeze(-1), None), errors.ShapeError, ("Y", "(5,)", "output_dim = 1")),
        ((X, Y.expand(-1, 2), None), errors.ShapeError, ("Y", "output_dim = 1")),
        ((X, None, None), errors.ShapeError, ("Y", "NoneType")),
        ((X, Y, with_entry(Y, (2, 0), -1.0)), errors.InvalidDataError, ("Yvar", "row 2", "variances")),
        ((X, Y, Y[:3]), errors.ShapeError, ("Yvar", "3 rows")),
        ((X, Y, with_entry(Y, (1, 0), NAN)), errors.InvalidDataError, ("Yvar", "row 1")),
    ],
)
def test_bad_data_is_refused_with_its_place(arguments: Any, error: type[Exception], words: tuple[str, ...]) -> None:
    with pytest.raises(error) as caught:
        check_data(*arguments, input_dim=2, output_dim=1)
    assert isinstance(caught.value, ValueError)
    for word in words:
        assert word in str(caught.value)


def test_good_data_pass_unchanged() -> None:
    inputs, outcomes, variances = check_data(X, Y, None, 2, 1)
    assert inputs is X
    assert outcomes is Y
    assert variances is None
    assert check_data(X.float(), Y, Y, 2, 1)[2] is Y
    assert check_inputs("X", X.expand(3, 2, 5, 2), 2).shape == (3, 2, 5, 2)


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 6), columns=st.integers(1, 4), data=st.data())
def test_the_first_bad_row_is_named(rows: int, columns: int, data: st.DataObject) -> None:
    bad = data.draw(st.sets(st.integers(0, rows - 1), min_size=1))
    column = data.draw(st.integers(0, columns - 1))
    value = torch.zeros(rows, columns)
    for row in bad:
        value[row, column] = data.draw(st.sampled_from([NAN, float("inf"), -float("inf")]))
    with pytest.raises(errors.InvalidDataError, match=f"{len(bad)} NaN or infinite entries, the first in row {min(bad)} "):
        check_finite("V", value)
    check_finite("V", torch.zeros(rows, columns))


@pytest.mark.parametrize(
    "error",
    [
        errors.InvalidDataError,
        errors.ShapeError,
        errors.InvalidOptionError,
        errors.InvalidSpaceError,
        errors.StateError,
    ],
)
def test_errors_are_value_errors(error: type[Exception]) -> None:
    assert issubclass(error, errors.SeqbdlError)
    assert issubclass(error, ValueError)


def test_unknown_names_come_with_the_known_ones() -> None:
    with pytest.raises(errors.UnknownNameError, match=r"unknown surrogate 'gpp'; the known ones are: .*gp.*nngp"):
        seqbdl.make_surrogate("gpp", 2)
    with pytest.raises(errors.UnknownNameError, match=r"unknown option of 'gp' 'netwrk'; the known ones are: .*num_frequencies"):
        seqbdl.make_surrogate("gp", 2, netwrk=(3,))
    with pytest.raises(errors.UnknownNameError, match=r"unknown likelihood 'gauss'.*gaussian"):
        seqbdl.make_surrogate("gp", 2, likelihood="gauss")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"noise": -1.0}, "noise=-1.0"),
        ({"noise": NAN}, "noise=nan"),
        ({"bounds": torch.tensor([[1.0, 0.0], [0.0, 1.0]])}, "bounds"),
        ({"bounds": torch.zeros(2, 3)}, "bounds"),
        ({"max_rows": 0}, "max_rows=0"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(errors.InvalidOptionError, match=words):
        seqbdl.make_surrogate("gp", 2, **options)


@pytest.mark.parametrize("dims", [(0, 1), (2, 0)])
def test_dimensions_are_positive(dims: tuple[int, int]) -> None:
    with pytest.raises(errors.InvalidOptionError, match="at least 1"):
        seqbdl.make_surrogate("gp", *dims)


@pytest.mark.parametrize("name", ["laplace", "ensemble", "hmc", "bayesian-last-layer", "dkl"])
@pytest.mark.parametrize("network", [(), (0,), (4, 2.5), "wide", 64, lambda: 3])
def test_bad_networks_are_refused(name: str, network: Any) -> None:
    with pytest.raises(errors.InvalidOptionError, match="network="):
        seqbdl.make_surrogate(name, 2, network=network)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("laplace", {"prior_precision": 0.0}, "prior_precision"),
        ("laplace", {"centre": "middle"}, "centre"),
        ("laplace", {"memory": 0}, "memory"),
        ("ensemble", {"num_members": 1}, "num_members"),
        ("ensemble", {"max_iterations": 0}, "max_iterations"),
        ("ensemble", {"min_ess": 0.0}, "min_ess"),
        ("ensemble", {"activation": "gelu"}, "activation"),
        ("hmc", {"num_chains": 1}, "num_chains"),
        ("hmc", {"samples": 1}, "raise samples"),
        ("hmc", {"warmup": 0}, "warmup"),
        ("bayesian-last-layer", {"adaptation": 1.5}, "adaptation"),
        ("bayesian-last-layer", {"num_networks": 0}, "num_networks"),
        ("bayesian-last-layer", {"prior_precision": -1.0}, "prior_precision"),
        ("nngp", {"depth": 0}, "depth"),
        ("nngp", {"activation": "tanh"}, "activation"),
        ("dkl", {"warp_scale": 0.0}, "warp_scale"),
        ("dkl", {"num_features": 0}, "num_features"),
        ("dkl", {"activation": "gelu"}, "activation"),
    ],
)
def test_bad_options_of_networks_are_refused(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(errors.SeqbdlError, match=words):
        seqbdl.make_surrogate(name, 2, **options)
