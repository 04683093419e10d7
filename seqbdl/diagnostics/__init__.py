"""Is the surrogate right about what it knows and does not know?"""

from seqbdl.diagnostics.cross_validation import CrossValidation, cross_validate
from seqbdl.diagnostics.regression import (
    best_so_far,
    calibration_curve,
    coverage,
    crps_gaussian,
    crps_samples,
    cumulative_regret,
    gaussian_log_density,
    miscalibration_area,
    nlpd,
    r_squared,
    rmse,
    simple_regret,
)

__all__ = [
    "CrossValidation",
    "best_so_far",
    "calibration_curve",
    "coverage",
    "cross_validate",
    "crps_gaussian",
    "crps_samples",
    "cumulative_regret",
    "gaussian_log_density",
    "miscalibration_area",
    "nlpd",
    "r_squared",
    "rmse",
    "simple_regret",
]
