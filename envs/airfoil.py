"""An airfoil's drag at a required lift, by NeuralFoil (a network fitted to the flow solver XFoil)."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from gymnasium import spaces

from seqbdl.envs.base import Array, DecisionEnv, Evaluation
from seqbdl.envs.data import Carrier

NEURALFOIL = Carrier("neuralfoil", "0.3.3")
INSTALL = f"pip install {NEURALFOIL.name}=={NEURALFOIL.version}"
WEIGHTS = 8  # shape weights of each surface (Kulfan's class-shape transformation)
TRAILING_EDGE = 0.0025  # thickness over chord
MIN_CONFIDENCE = 0.9  # of NeuralFoil in its own answer


def _class_shape(n: int) -> Array:
    """`(n, 8)`: how each weight moves a surface at `n` chordwise stations, class sqrt(x)(1-x) times Bernstein."""
    x = 0.5 * (1 - np.cos(np.linspace(0, np.pi, n)))
    binomial = np.array([1, 7, 21, 35, 35, 21, 7, 1], dtype=np.float64)
    k = np.arange(WEIGHTS)
    bernstein = binomial * x[:, None] ** k * (1 - x[:, None]) ** (WEIGHTS - 1 - k)
    shape: Array = (np.sqrt(x) * (1 - x))[:, None] * bernstein
    return shape


class AirfoilDragEnv(DecisionEnv):
    """Shape an airfoil for the least drag; 18 parameters, deterministic, about 1 ms an evaluation.

    Parameters: eight weights of the upper and eight of the lower surface, the leading-edge weight, and the angle of
    attack in degrees. The reward is minus the drag in counts (10^4 times the drag coefficient). Constraints, feasible
    when `<= 0`: the lift coefficient reaches `min_lift`; the pitching moment is at least `min_moment`; the section is
    at least `min_thickness` of the chord thick; NeuralFoil is at least 90 % confident, so that a search cannot exploit
    the network where it has never seen a flow. Surfaces that cross are a failed evaluation.

    Args:
        reynolds: Reynolds number.
        min_lift, min_moment, min_thickness: see above.
        model_size: of NeuralFoil, from `"xxsmall"` to `"xxxlarge"`: cheaper or more faithful.
        noise_std: standard deviation of noise on the drag, in counts.
    """

    def __init__(
        self,
        reynolds: float = 1e6,
        min_lift: float = 0.6,
        min_moment: float = -0.12,
        min_thickness: float = 0.12,
        model_size: str = "large",
        noise_std: float = 0.0,
    ) -> None:
        try:
            self._neuralfoil: Any = importlib.import_module("neuralfoil")
        except ImportError as error:
            raise ValueError(f"the package neuralfoil simulates this problem and is missing; run: {INSTALL}") from error
        if not reynolds > 0 or not noise_std >= 0:
            raise ValueError(f"reynolds, noise_std: {reynolds}, {noise_std}; give a positive and a non-negative number.")
        sizes = ("xxsmall", "xsmall", "small", "medium", "large", "xlarge", "xxlarge", "xxxlarge")
        if model_size not in sizes:
            raise ValueError(f"model_size: {model_size!r}; the sizes are {', '.join(sizes)}.")
        self.reynolds, self.model_size, self.noise_std = reynolds, model_size, noise_std
        self.min_lift, self.min_moment, self.min_thickness = min_lift, min_moment, min_thickness
        self._shape = _class_shape(101)
        low = np.array([0.05] * WEIGHTS + [-0.3] * WEIGHTS + [-0.2, -2.0])
        high = np.array([0.5] * WEIGHTS + [0.2] * WEIGHTS + [0.4, 10.0])
        names = [f"{side}{i + 1}" for side in ("upper", "lower") for i in range(WEIGHTS)]
        super().__init__(
            spaces.Box(low, high, dtype=np.float64),
            parameter_names=[*names, "leading_edge", "angle_of_attack"],
            outcome_names=("-drag counts",),
            num_constraints=4,
            failure_reward=-1500.0,  # worse than any shape that can be analysed
        )

    def _evaluate(self, point: Array) -> Evaluation:
        upper, lower = point[:WEIGHTS], point[WEIGHTS : 2 * WEIGHTS]
        thickness = self._shape @ (upper - lower)
        if thickness[1:-1].min() <= 0:
            return self.failure("the lower surface crosses the upper one")
        answer = self._neuralfoil.get_aero_from_kulfan_parameters(
            {
                "upper_weights": upper,
                "lower_weights": lower,
                "leading_edge_weight": float(point[-2]),
                "TE_thickness": TRAILING_EDGE,
            },
            alpha=float(point[-1]),
            Re=self.reynolds,
            model_size=self.model_size,
        )
        lift, drag, moment, confidence = (
            float(np.asarray(answer[key]).reshape(-1)[0]) for key in ("CL", "CD", "CM", "analysis_confidence")
        )
        if not np.isfinite([lift, drag, moment, confidence]).all():
            return self.failure("NeuralFoil returned a number that is not finite")
        value = -1e4 * drag
        constraints = np.array(
            [
                self.min_lift - lift,
                self.min_moment - moment,
                self.min_thickness - float(thickness.max()),
                MIN_CONFIDENCE - confidence,
            ]
        )
        noise = self.noise_std * float(self.np_random.standard_normal()) if self.noise_std > 0 else 0.0
        extra = {"lift": lift, "drag": drag, "moment": moment, "confidence": confidence}
        return Evaluation(np.array([value + noise]), value, constraints, np.array([self.noise_std**2]), None, extra)
