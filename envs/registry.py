"""The list of problems: registers them with Gymnasium and says what each is and whether it can run here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import gymnasium


@dataclass(frozen=True)
class EnvInfo:
    """One line about a problem.

    Args:
        id: for `gymnasium.make`.
        summary: what is decided.
        available: whether all it needs is installed.
        install: the command that installs what it needs beyond seqbdl; empty when nothing.
        arguments: arguments that `gymnasium.make` must be given; empty for almost all.
        kind: `"points"`: choose a point, see its outcome; `"stream"`: predict a chunk of inputs, see what they were;
            `"bandit"`: play an arm in a context, see its reward.
    """

    id: str
    summary: str
    available: bool
    install: str = ""
    arguments: tuple[str, ...] = ()
    kind: str = "points"


@dataclass(frozen=True)
class _Entry:
    summary: str
    entry_point: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    distribution: str = ""
    install: str = ""
    arguments: tuple[str, ...] = ()
    kind: str = "points"
    folder: str = ""  # of files that a system package brings


def _images(summary: str, dataset: str, protocol: str) -> _Entry:
    fashion = dataset == "fashion-mnist"
    return _Entry(
        summary,
        "seqbdl.envs.image_stream:ImageStreamEnv",
        {"dataset": dataset, "protocol": protocol},
        install="apt-get install dataset-fashion-mnist" if fashion else "",
        kind="stream",
        folder="/usr/share/datasets/fashion-mnist" if fashion else "",
    )


def _synthetic(summary: str, function: str, **options: Any) -> _Entry:
    return _Entry(summary, "seqbdl.envs.synthetic:SyntheticEnv", {"function": function, **options})


def _table(summary: str, table: str, distribution: str, version: str) -> _Entry:
    install = f"pip install --no-deps {distribution}=={version}"
    return _Entry(summary, "seqbdl.envs.pool:MeasuredPoolEnv", {"table": table}, distribution, install)


def _labels(summary: str, dataset: str, **options: Any) -> _Entry:
    return _Entry(summary, "seqbdl.envs.labels:SklearnLabelEnv", {"dataset": dataset, **options})


def _bandit(summary: str, where: str, **options: Any) -> _Entry:
    return _Entry(summary, f"seqbdl.envs.{where}", options, kind="bandit")


def _design(summary: str, name: str, file: str = "models") -> _Entry:
    return _Entry(summary, f"seqbdl.envs.design_{file}:{name}Env")


def _bocode(summary: str, table: str) -> _Entry:
    return _table(summary, table, "bocode", "1.0.1")


def _olympus(summary: str, table: str) -> _Entry:
    return _table(summary, table, "olymp", "0.0.1b0")


_TABLE = "bandit_table:ClassificationBanditEnv"

# Entry points are text, so that importing seqbdl.envs imports neither BoTorch nor scikit-learn.
_ENTRIES: dict[str, _Entry] = {
    # Real problems
    "TuneDigits": _Entry(
        "tune a neural network that reads digits: 8 mixed hyperparameters",
        "seqbdl.envs.tuning:TuneNetworkEnv",
        {"dataset": "digits"},
    ),
    "TuneBreastCancer": _Entry(
        "tune a neural network that diagnoses tumours: 8 mixed hyperparameters",
        "seqbdl.envs.tuning:TuneNetworkEnv",
        {"dataset": "breast_cancer"},
    ),
    "TuneWine": _Entry(
        "tune a neural network that recognizes wines: 8 mixed hyperparameters",
        "seqbdl.envs.tuning:TuneNetworkEnv",
        {"dataset": "wine"},
    ),
    "AirfoilDrag": _Entry(
        "shape an airfoil for little drag at a required lift: 18-d, 4 constraints",
        "seqbdl.envs.airfoil:AirfoilDragEnv",
        distribution="neuralfoil",
        install="pip install neuralfoil==0.3.3",
    ),
    "LowNoxBurner": _Entry(
        "run a gas burner with little nitric oxide: 4-d, 2 constraints, failures",
        "seqbdl.envs.burner:LowNoxBurnerEnv",
        distribution="cantera",
        install="pip install cantera==3.2.0",
    ),
    # Measured tables
    "DiabetesPool": _Entry("442 patients, find the fastest progression: 10-d pool", "seqbdl.envs.pool:DiabetesPoolEnv"),
    "CrossedBarrel": _bocode("600 printed structures, find the toughest: 4-d pool with replicates", "CrossedBarrel"),
    "AgNP": _bocode("164 silver nanoparticle recipes, match a spectrum: 5-d pool with replicates", "AgNP"),
    "Perovskite": _bocode("94 perovskite mixtures, find the most stable: 3-d pool", "Perovskite"),
    "HPLC": _olympus("1007 settings of a chromatograph, find the largest peak: 6-d pool", "HPLC"),
    "PhotoPCE10": _olympus("1040 solar-cell blends, find the most stable: 4-d pool", "PhotoPCE10"),
    "PhotoWF3": _olympus("1040 solar-cell blends, find the most stable: 4-d pool", "PhotoWF3"),
    "TablePool": _Entry(
        "your own table of measurements as a pool",
        "seqbdl.envs.pool:TablePoolEnv",
        arguments=("table", "target"),
    ),
    # Pools to be labelled
    "LabelDigits": _labels("1198 images of digits, ten classes", "digits"),
    "LabelRepeatedDigits": _labels("1198 images of digits, each in three noisy copies", "digits", repeats=3, noise=0.1),
    "LabelIris": _labels("100 flowers, three classes", "iris"),
    "LabelWine": _labels("119 wines, three classes", "wine"),
    "LabelBreastCancer": _labels("379 tumours, two classes", "breast_cancer"),
    "LabelDiabetes": _labels("295 patients, progression of a disease", "diabetes"),
    "LabelFriedman1": _Entry("a noisy function of ten inputs, 2000 points", "seqbdl.envs.labels:Friedman1LabelEnv"),
    "LabelTable": _Entry(
        "your own table, to see what active learning would have saved",
        "seqbdl.envs.labels:TableLabelEnv",
        arguments=("table", "target"),
    ),
    # Streams
    "SplitDigits": _images("digits, two classes at a time", "digits", "split"),
    "PermutedDigits": _images("digits whose pixels are permuted anew for every task", "digits", "permuted"),
    "RotatedDigits": _images("digits that turn from task to task", "digits", "rotated"),
    "SplitFashionMNIST": _images("clothes, two classes at a time", "fashion-mnist", "split"),
    "PermutedFashionMNIST": _images("clothes whose pixels are permuted anew for every task", "fashion-mnist", "permuted"),
    "RotatedFashionMNIST": _images("clothes that turn from task to task", "fashion-mnist", "rotated"),
    "PiecewiseRegression": _Entry(
        "a curve that is another one after every hundredth row", "seqbdl.envs.stream:PiecewiseRegressionEnv", kind="stream"
    ),
    "DriftingLinear": _Entry(
        "a linear function whose coefficients walk at random", "seqbdl.envs.stream:DriftingLinearEnv", kind="stream"
    ),
    "TabularStream": _Entry(
        "your own table, row by row as it came",
        "seqbdl.envs.table_stream:TableStreamEnv",
        arguments=("X", "y"),
        kind="stream",
    ),
    # Bandits
    "WheelBandit": _bandit("five arms, of which four pay off in rare corners of a disc", "bandit:WheelBanditEnv"),
    "AbruptWheelBandit": _bandit(
        "the wheel, whose corners change hands every 500 rounds", "bandit:WheelBanditEnv", change_every=500
    ),
    "LinearBandit": _bandit("eight arms whose rewards are linear in ten numbers", "bandit:LinearBanditEnv"),
    "SparseLinearBandit": _bandit(
        "seven arms, each of which cares for three of ten numbers", "bandit:LinearBanditEnv", num_arms=7, nonzero=3
    ),
    "DriftingLinearBandit": _bandit("eight linear arms whose coefficients drift", "bandit:LinearBanditEnv", drift=0.01),
    "AbruptLinearBandit": _bandit(
        "eight linear arms that are others after every 500 rounds", "bandit:LinearBanditEnv", change_every=500
    ),
    "DriftingBernoulliBandit": _bandit(
        "ten arms, won or lost, whose odds walk at random", "bernoulli_bandit:DriftingBernoulliBanditEnv"
    ),
    "NeuralTestbedBandit": _bandit("a hundred points of the plane, won or lost", "bandit:NeuralTestbedBanditEnv"),
    "DigitsBandit": _bandit("say which digit an image shows, told only right or wrong", _TABLE, dataset="digits"),
    "WineBandit": _bandit("say which wine it is, told only right or wrong", _TABLE, dataset="wine"),
    "BreastCancerBandit": _bandit("benign or malignant, told only right or wrong", _TABLE, dataset="breast_cancer"),
    "ClassificationBandit": _Entry(
        "your own table of rows and classes as a bandit",
        f"seqbdl.envs.{_TABLE}",
        arguments=("X", "y"),
        kind="bandit",
    ),
    # Experiments to be designed
    "LinearGaussian": _design("coefficients of a line, everything known in closed form", "LinearGaussian"),
    "LocationFinding": _design("find two hidden sources by measuring their signal: 2-d", "LocationFinding"),
    "HyperbolicDiscounting": _design("how fast does a person discount the future: 2-d", "HyperbolicDiscounting"),
    "DeathProcess": _design("how fast does a disease spread: when to count: 1-d", "DeathProcess"),
    "TwoLookDeathProcess": _design("how fast does a disease spread: two times to count: 2-d", "TwoLookDeathProcess", "epidemic"),
    "Epidemic": _design("rates of an epidemic, simulator only: when to count: 1-d", "Epidemic", "epidemic"),
    "Preference": _design("which of two baskets is better, and how much: 6-d", "Preference", "science"),
    "Pharmacokinetic": _design("a drug in the blood: when to sample: 1-d", "Pharmacokinetic", "science"),
    "PreyPopulation": _design("how does a predator hunt: how much prey: 1 integer", "PreyPopulation", "science"),
    # Formulas with many inputs
    "NetworkDraw": _Entry("a random network of 400 inputs", "seqbdl.envs.synthetic:NetworkDrawEnv"),
    "EmbeddedHartmann6": _Entry("60 inputs of which six matter", "seqbdl.envs.synthetic:EmbeddedHartmannEnv"),
    "PestControl": _Entry("25 categorical choices of a pesticide", "seqbdl.envs.pest:PestControlEnv"),
    # Classical formulas
    "Ackley2": _synthetic("Ackley, 2-d: many local optima around one deep one", "Ackley", dim=2),
    "Ackley5": _synthetic("Ackley, 5-d", "Ackley", dim=5),
    "Ackley10": _synthetic("Ackley, 10-d", "Ackley", dim=10),
    "Ackley60": _synthetic("Ackley, 60-d", "Ackley", dim=60),
    "AckleyMixed": _synthetic("Ackley with 50 binary and 3 continuous inputs", "AckleyMixed", dim=53),
    "Beale": _synthetic("Beale, 2-d: a flat valley with steep corners", "Beale"),
    "Branin": _synthetic("Branin, 2-d: three equal optima", "Branin"),
    "Bukin": _synthetic("Bukin, 2-d: a narrow bent ridge", "Bukin"),
    "Cosine8": _synthetic("cosine mixture, 8-d", "Cosine8"),
    "DixonPrice5": _synthetic("Dixon-Price, 5-d: a valley", "DixonPrice", dim=5),
    "DropWave": _synthetic("drop wave, 2-d: rings", "DropWave"),
    "EggHolder": _synthetic("egg holder, 2-d: optimum in a corner of many", "EggHolder"),
    "Griewank5": _synthetic("Griewank, 5-d: a bowl with ripples", "Griewank", dim=5),
    "Hartmann3": _synthetic("Hartmann, 3-d: four local optima", "Hartmann", dim=3),
    "Hartmann6": _synthetic("Hartmann, 6-d: six local optima", "Hartmann", dim=6),
    "HolderTable": _synthetic("Holder table, 2-d: four equal corners", "HolderTable"),
    "Labs30": _synthetic("a binary sequence of 30 with little autocorrelation", "Labs", dim=30),
    "Levy5": _synthetic("Levy, 5-d: wavy", "Levy", dim=5),
    "Levy10": _synthetic("Levy, 10-d: wavy", "Levy", dim=10),
    "Michalewicz5": _synthetic("Michalewicz, 5-d: steep valleys", "Michalewicz", dim=5),
    "Michalewicz10": _synthetic("Michalewicz, 10-d: steep valleys", "Michalewicz", dim=10),
    "Powell8": _synthetic("Powell, 8-d: a singular valley", "Powell", dim=8),
    "Rastrigin5": _synthetic("Rastrigin, 5-d: a grid of local optima", "Rastrigin", dim=5),
    "Rosenbrock5": _synthetic("Rosenbrock, 5-d: a bent valley", "Rosenbrock", dim=5),
    "Rosenbrock10": _synthetic("Rosenbrock, 10-d: a bent valley", "Rosenbrock", dim=10),
    "Shekel": _synthetic("Shekel, 4-d: ten narrow holes", "Shekel"),
    "SixHumpCamel": _synthetic("six-hump camel, 2-d", "SixHumpCamel"),
    "StyblinskiTang5": _synthetic("Styblinski-Tang, 5-d", "StyblinskiTang", dim=5),
    "ThreeHumpCamel": _synthetic("three-hump camel, 2-d", "ThreeHumpCamel"),
    # With constraints
    "ConstrainedGramacy": _synthetic("Gramacy's toy, 2-d, 2 constraints", "ConstrainedGramacy"),
    "ConstrainedHartmann6": _synthetic("Hartmann, 6-d, 1 constraint", "ConstrainedHartmann", dim=6),
    "KeaneBump10": _synthetic("Keane's bumps, 10-d, 2 constraints", "KeaneBumpFunction", dim=10),
    "PressureVessel": _synthetic("cheapest pressure vessel, 4-d, 4 constraints", "PressureVessel"),
    "SpeedReducer": _synthetic("lightest speed reducer, 7-d, 11 constraints", "SpeedReducer"),
    "TensionCompressionString": _synthetic("lightest spring, 3-d, 4 constraints", "TensionCompressionString"),
    "WeldedBeam": _synthetic("cheapest welded beam, 4-d, 6 constraints", "WeldedBeamSO"),
    # With several objectives
    "BraninCurrin": _synthetic("Branin and Currin, 2-d, 2 objectives", "BraninCurrin"),
    "CarSideImpact": _synthetic("a car's side impact, 7-d, 4 objectives", "CarSideImpact"),
    "ConstrainedBraninCurrin": _synthetic("Branin and Currin, 2 objectives, 1 constraint", "ConstrainedBraninCurrin"),
    "C2DTLZ2": _synthetic("DTLZ2, 4-d, 2 objectives, 1 constraint", "C2DTLZ2", dim=4, num_objectives=2),
    "DTLZ1": _synthetic("DTLZ1, 5-d, 2 objectives", "DTLZ1", dim=5, num_objectives=2),
    "DTLZ2": _synthetic("DTLZ2, 6-d, 2 objectives: a quarter circle", "DTLZ2", dim=6, num_objectives=2),
    "DTLZ5": _synthetic("DTLZ5, 20-d, 3 objectives", "DTLZ5", dim=20, num_objectives=3),
    "Penicillin": _synthetic("a fermentation, 7-d, 3 objectives", "Penicillin"),
    "VehicleSafety": _synthetic("a vehicle's crash safety, 5-d, 3 objectives", "VehicleSafety"),
    "ZDT1": _synthetic("ZDT1, 6-d, 2 objectives: a convex front", "ZDT1", dim=6, num_objectives=2),
    "ZDT2": _synthetic("ZDT2, 6-d, 2 objectives: a concave front", "ZDT2", dim=6, num_objectives=2),
    "ZDT3": _synthetic("ZDT3, 6-d, 2 objectives: a broken front", "ZDT3", dim=6, num_objectives=2),
}


def env_id(name: str) -> str:
    """`seqbdl/Name-v0`."""
    return f"seqbdl/{name}-v0"


def register_all() -> None:
    """Tell Gymnasium of every problem; harmless when done before."""
    for name, entry in _ENTRIES.items():
        if env_id(name) not in gymnasium.registry:
            gymnasium.register(env_id(name), entry_point=entry.entry_point, kwargs=dict(entry.kwargs))


def list_envs(kind: str | None = None) -> list[EnvInfo]:
    """Every problem of this package, whether or not what it needs is installed.

    Args:
        kind: only those of this kind, `"points"`, `"stream"` or `"bandit"` (see `EnvInfo`); `None`: all.
    """
    return [
        EnvInfo(env_id(name), e.summary, _installed(e.distribution, e.folder), e.install, e.arguments, e.kind)
        for name, e in _ENTRIES.items()
        if kind in (None, e.kind)
    ]


def _installed(distribution: str, folder: str = "") -> bool:
    if folder:
        return Path(folder).is_dir()
    if not distribution:
        return True
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
