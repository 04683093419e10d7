"""A gas burner simulated by Cantera: little nitric oxide, little carbon monoxide, and a flame that stays alight."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces

from seqbdl.envs.base import Array, DecisionEnv, Evaluation
from seqbdl.envs.data import Carrier

CANTERA = Carrier("cantera", "3.2.0")
INSTALL = f"pip install {CANTERA.name}=={CANTERA.version}"
PARAMETERS = ("equivalence_ratio", "inlet_temperature", "pressure", "residence_time")
# Fuel to air relative to stoichiometric; K; bar; s.
LOW = np.array([0.4, 300.0, 1.0, 5e-4])
HIGH = np.array([1.2, 800.0, 20.0, 5e-2])
IGNITED = 200.0  # K above the inlet: less is no flame
START_TEMPERATURE = 2500.0  # K


class LowNoxBurnerEnv(DecisionEnv):
    """Choose how a perfectly stirred methane burner runs; deterministic, about 60 ms an evaluation.

    Parameters: equivalence ratio (0.4 to 1.2), inlet temperature (300 to 800 K), pressure (1 to 20 bar), residence
    time (0.5 to 50 ms, logarithmic). Chemistry: GRI-Mech 3.0, 53 species, adiabatic, steady state. The reward is
    minus the decimal logarithm of the NO mole fraction in ppm, dry and corrected to 15 % oxygen as emission rules do.
    Constraints, feasible when `<= 0`: log10 of CO over `max_co` ppm (corrected likewise), and the shortfall from
    `min_temperature` in units of 100 K. When the flame blows out, or the solver gives up, the evaluation has failed.

    Args:
        max_co: allowed carbon monoxide, ppm.
        min_temperature: required outlet temperature, K.
        noise_std: standard deviation of the analyser's noise on the reward.
    """

    def __init__(self, max_co: float = 200.0, min_temperature: float = 1700.0, noise_std: float = 0.0) -> None:
        try:
            import cantera
        except ImportError as error:
            raise ValueError(f"the package cantera simulates this problem and is missing; run: {INSTALL}") from error
        if not max_co > 0 or not noise_std >= 0:
            raise ValueError(f"max_co, noise_std: {max_co}, {noise_std}; give a positive and a non-negative number.")
        self._cantera = cantera
        self._gas = cantera.Solution("gri30.yaml")
        self.max_co, self.min_temperature, self.noise_std = max_co, min_temperature, noise_std
        super().__init__(
            spaces.Box(LOW, HIGH, dtype=np.float64),
            parameter_names=PARAMETERS,
            log_scale=(False, False, False, True),
            outcome_names=("-log10(NO ppm)",),
            num_constraints=2,
            failure_reward=-5.0,  # as bad as a NO fraction of 10 %
        )

    def _evaluate(self, point: Array) -> Evaluation:
        inlet_temperature = float(point[1])
        try:
            temperature, no, co = self._burn(*map(float, point))
        except self._cantera.CanteraError as error:
            return self.failure(f"the solver gave up: {str(error).strip().splitlines()[-1]}")
        extra = {"temperature": temperature, "no_ppm": no, "co_ppm": co}
        if temperature < inlet_temperature + IGNITED:
            return self.failure(f"the flame blew out at {temperature:.0f} K", **extra)
        value = -float(np.log10(max(no, 1e-6)))
        constraints = np.array([np.log10(max(co, 1e-6) / self.max_co), (self.min_temperature - temperature) / 100.0])
        noise = self.noise_std * float(self.np_random.standard_normal()) if self.noise_std > 0 else 0.0
        return Evaluation(np.array([value + noise]), value, constraints, np.array([self.noise_std**2]), None, extra)

    def _burn(self, phi: float, inlet_temperature: float, pressure: float, residence: float) -> tuple[float, float, float]:
        """Outlet temperature in K, and NO and CO in ppm, dry, at 15 % oxygen."""
        ct, gas = self._cantera, self._gas
        gas.TP = inlet_temperature, pressure * 1e5
        gas.set_equivalence_ratio(phi, "CH4", "O2:0.21, N2:0.79")
        inlet = ct.Reservoir(gas, clone=True)
        # Start hot, so that the flame goes out only if it must. (Starting from equilibrium would do too, but Cantera's
        # equilibrium solver remembers its last answer, and the same action would not give the same outcome twice.)
        gas.TP = START_TEMPERATURE, pressure * 1e5
        reactor = ct.IdealGasReactor(gas, clone=True, volume=1.0)
        exhaust = ct.Reservoir(gas, clone=True)
        flow = ct.MassFlowController(inlet, reactor, mdot=lambda t: reactor.mass / residence)
        ct.PressureController(reactor, exhaust, primary=flow, K=1e-5)
        ct.ReactorNet([reactor]).advance_to_steady_state()
        phase = reactor.phase
        x = dict(zip(phase.species_names, phase.X, strict=True))
        dry = 1.0 - x["H2O"]
        oxygen = min(x["O2"] / dry, 0.20)
        to_15 = (0.209 - 0.15) / (0.209 - oxygen)
        return float(phase.T), float(1e6 * x["NO"] / dry * to_15), float(1e6 * x["CO"] / dry * to_15)
