"""Killing the process at any moment and starting again gives the same queries as never having been killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes; this system has none")
def test_killed_runs_ask_the_same_points(tmp_path: Path) -> None:
    script = Path(__file__).with_name("killed_run.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "10"],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    when = json.loads(done.stdout)
    assert when, "no run was killed"
    assert when == sorted(when)  # nothing that was told is ever lost
    killed = json.loads((tmp_path / "killed.json").read_text())
    whole = json.loads((tmp_path / "whole.json").read_text())
    assert len(whole) == 12
    assert killed == whole
    # no half-written files remain in the way of anybody who reads the folder
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")} == {
        "run",
        "killed.json",
        "whole.json",
    }
