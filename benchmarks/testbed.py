"""The Neural Testbed's question, asked of every classifier here: how far are JOINT predictions from the true environment?

Osband et al. (2022, "The Neural Testbed: evaluating joint predictions", NeurIPS) and (2022, "Evaluating high-order
predictive distributions in deep learning", UAI) draw two-class problems from random ReLU networks and score the
probability that an agent gives to ``tau`` labels at once. The problem family is theirs (the distribution, not the
instances), on 36 problems that fit a CPU: inputs ``D`` in {2, 10}, rows ``n = D`` times {1, 10, 100}, temperatures {0.01,
0.1, 0.5}, two seeds. Agents are told ``D``, ``n``, the temperature and the layers, as they are there.

    python benchmarks/testbed.py                       # adds to benchmarks/results/testbed.csv, then table and picture
    python benchmarks/testbed.py --methods laplace     # one agent
    python benchmarks/testbed.py --report              # table and picture only; --quick: seconds, temporary folder
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import botorch
import pandas as pd
import torch
from botorch.sampling import IIDNormalSampler
from torch import Tensor

import seqbdl
from seqbdl.diagnostics import dyadic_log_loss
from seqbdl.likelihoods import get_likelihood
from seqbdl.posteriors import ParticlePosterior
from seqbdl.surrogates import surrogate_class, surrogate_options

RESULTS = Path(__file__).parent / "results"
DIMENSIONS, RATIOS, TEMPERATURES = (2, 10, 100), (1, 10, 100, 1000), (0.01, 0.1, 0.5)  # the whole sweep's levels
TAUS, ANCHORS, CLASSES, HIDDEN = (1, 10), 2, 2, (50, 50)
UNIFORM, PRIOR, MLP, ENSEMBLE_PLUS = "uniform", "prior", "mlp", "ensemble+ (Adam)"
REFERENCES = (UNIFORM, PRIOR, MLP, ENSEMBLE_PLUS)
STREAMS = ("problem", "anchors", "labels", "training", "functions")
TRUNCATION = 2.0
# Variance of a standard normal truncated at +-2 (its sd is 0.880): 1 - 2 * 2 phi(2) / (2 Phi(2) - 1).
TRUNCATED_VARIANCE = 1 - 4 * math.exp(-2.0) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2.0))
BOX = 3.0  # inputs are standard normal: the box that surrogates map to the unit cube
COLUMNS = ("D", "ratio", "temperature", "seed", "method", "tau", "kl", "kl_error", "fit_seconds", "score_seconds")

# Options per registered surrogate, beyond what `knowledge` tells all of them: few members score worse for being few, and
# cost most where they matter least.
ENSEMBLES = ("ensemble", "anchored-ensemble", "ensemble-plus", "repulsive-ensemble", "svgd")
AGENTS: dict[str, Callable[[Problem], dict[str, Any]]] = {
    **dict.fromkeys(ENSEMBLES, lambda problem: {"num_members": 64 if problem.rows <= 200 else 10}),
    "hmc": lambda problem: {"num_members": 128},
}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {"ensemble of 2": ("ensemble", {"num_members": 2})}
"""Agents that are a registered surrogate with other options: two networks say little of joint predictions."""

Layers = list[tuple[Tensor, Tensor]]
LogProbs = Callable[[Tensor], Tensor]
"""``X: N x D -> M x N x C``, log-probabilities of classes under ``M`` functions, the same for every ``X``."""


@dataclass(frozen=True)
class Problem:
    dimension: int  # D
    ratio: int  # training rows per input dimension
    temperature: float  # of the softmax
    seed: int  # among the problems of these levels

    @property
    def rows(self) -> int:
        return self.dimension * self.ratio

    def generator(self, stream: str) -> torch.Generator:
        """Independent streams of randomness, numbered by the problem's place in the whole sweep."""
        place = DIMENSIONS.index(self.dimension) * len(RATIOS) + RATIOS.index(self.ratio)
        place = (place * len(TEMPERATURES) + TEMPERATURES.index(self.temperature)) * 5 + self.seed
        return torch.Generator().manual_seed(1 + place + 1000 * STREAMS.index(stream))


@dataclass(frozen=True)
class Settings:
    draws: int = 1000  # tests
    samples: int = 1000  # M, of an agent that has infinitely many functions
    steps: int = 1000  # of Adam, for the reference networks


def truncated_normal(*shape: int, generator: torch.Generator) -> Tensor:
    """Standard normals conditioned on ``|x| <= 2`` (not rescaled to unit variance), by inversion."""
    low = 0.5 * (1 - math.erf(TRUNCATION / math.sqrt(2)))
    x: Tensor = torch.special.ndtri(low + (1 - 2 * low) * torch.rand(*shape, generator=generator, dtype=torch.float64))
    return x


def random_networks(dimension: int, n: int, generator: torch.Generator) -> Layers:
    """Environments: truncated normal weights over the root of the fan-in; first biases ``N(0, 1/D)``, the others zero.

    Returns:
        Weights ``n x in x out`` and biases ``n x 1 x out`` of the three layers.
    """
    layers = []
    for fan_in, out in itertools.pairwise((dimension, *HIDDEN, CLASSES)):
        weights = truncated_normal(n, fan_in, out, generator=generator) / math.sqrt(fan_in)
        layers.append((weights, torch.zeros(n, 1, out, dtype=torch.float64)))
    layers[0][1].normal_(0.0, 1 / math.sqrt(dimension), generator=generator)
    return layers


def forward(layers: Layers, X: Tensor) -> Tensor:
    """ReLU networks, ``X: N x D -> n x N x C``."""
    h = X
    for weights, biases in layers[:-1]:
        h = torch.relu(h @ weights + biases)
    return h @ layers[-1][0] + layers[-1][1]


def log_probs_of(layers: Layers, temperature: float) -> LogProbs:
    return lambda X: (forward(layers, X) / temperature).log_softmax(-1)


def in_pieces(log_probs: LogProbs, size: int) -> LogProbs:  # a thousand functions at all points fill the memory
    return lambda X: torch.cat([log_probs(piece) for piece in X.split(size)], 1)


def generate(problem: Problem) -> tuple[Tensor, Tensor, LogProbs]:
    """Training inputs ``n x D``, training classes ``n``, and the environment, whose ``M`` is 1."""
    generator = problem.generator("problem")
    environment = log_probs_of(random_networks(problem.dimension, 1, generator), problem.temperature)
    X = torch.randn(problem.rows, problem.dimension, generator=generator, dtype=torch.float64)
    return X, torch.multinomial(environment(X)[0].exp(), 1, generator=generator).squeeze(-1), environment


def score(agent: LogProbs, environment: LogProbs, problem: Problem, draws: int) -> dict[int, Tensor]:
    """``log P(y | environment) - log (1/M) sum_m prod_t p_m(y_t | x_t)`` of every test draw, ``draws``, for every tau.

    A test draw has two standard normal anchors, and tau rows, each at one of them, with fresh labels: the same for all
    agents. What is not finite counts as the largest finite value; a ``ValueError`` where nothing is finite.
    """
    anchors = torch.randn(draws, ANCHORS, problem.dimension, generator=problem.generator("anchors"), dtype=torch.float64)
    with torch.no_grad():
        predicted, truth = agent(anchors.flatten(0, 1)), environment(anchors.flatten(0, 1))[0]
    rows = torch.arange(draws * ANCHORS).reshape(draws, ANCHORS, 1)  # functions are evaluated once and looked up by row
    found = {}
    for tau in TAUS:
        result = dyadic_log_loss(
            lambda r: predicted[:, r.squeeze(-1)], lambda r: truth[r.squeeze(-1)], rows, problem.generator("labels"), tau
        )
        assert result.reference is not None
        excess = result.values - result.reference
        finite = excess.isfinite()
        if not bool(finite.any()):
            raise ValueError("the agent gave probability zero to the labels of every test draw")
        found[tau] = torch.where(finite, excess, excess[finite].max())
    return found


def train(problem: Problem, X: Tensor, Y: Tensor, members: int, steps: int, prior_scale: float = 0.0) -> LogProbs:
    """The tuned networks of the testbed, all members at once: Adam at 1e-3, batches of 100 rows (repeated where there
    are fewer), mean cross-entropy plus ``sqrt(T) D / n`` times the sum of squares of all parameters.

    Every step averages the loss over as many members as there are, drawn with replacement. ``prior_scale`` multiplies
    fixed random networks that are added to the logits (Osband et al. 2018).
    """
    generator, X = problem.generator("training"), X.float()
    decay = math.sqrt(problem.temperature) * problem.dimension / problem.rows

    def start() -> Layers:
        layers = random_networks(problem.dimension, members, generator)
        bias = truncated_normal(members, 1, HIDDEN[0], generator=generator) / math.sqrt(problem.dimension)
        layers[0] = (layers[0][0], bias if prior_scale else torch.zeros_like(bias))
        return [(weights.float(), biases.float()) for weights, biases in layers]

    fixed = start() if prior_scale else []
    layers = [(weights.requires_grad_(), biases.requires_grad_()) for weights, biases in start()]

    def logits_at(X: Tensor) -> Tensor:
        return forward(layers, X) + prior_scale * forward(fixed, X) if fixed else forward(layers, X)

    parameters = [parameter for layer in layers for parameter in layer]
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    queue = torch.zeros(0, dtype=torch.long)
    for _ in range(steps):
        while len(queue) < 100:
            queue = torch.cat([queue, torch.randperm(len(X), generator=generator)])
        batch, queue = queue[:100], queue[100:]
        logits = logits_at(X[batch]).flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, Y[batch].repeat(members), reduction="none")
        chosen = torch.randint(members, (members,), generator=generator).bincount(minlength=members)
        objective = (loss.unflatten(0, (members, -1)).mean(1) * chosen).mean()
        objective = objective + decay / members * sum(p.square().sum() for p in parameters)
        optimizer.zero_grad()
        objective.backward()
        optimizer.step()

    return lambda X: logits_at(X.float()).detach().double().log_softmax(-1)


def supported(name: str) -> str | None:
    """The likelihood under which a registered surrogate does two classes."""
    likelihoods = getattr(surrogate_class(name), "likelihoods", ("gaussian",))
    return next((likelihood for likelihood in ("bernoulli", "categorical") if likelihood in likelihoods), None)


def knowledge(problem: Problem, likelihood: str) -> dict[str, Any]:
    """What every agent is told, as options: the layers, the range of the inputs, and the scales of the weights.

    Weights have the variance of the truncated normal over the fan-in; surrogates see inputs over ``BOX``; the latent
    function is the difference of the two logits over the temperature (Bernoulli), or each of them.
    """
    box = torch.full((problem.dimension,), BOX, dtype=torch.float64)
    differences = 2.0 if likelihood == "bernoulli" else 1.0
    return {
        "network": HIDDEN,
        "depth": len(HIDDEN),
        "activation": "relu",
        "bounds": torch.stack([-box, box]),
        "scales": {
            "inputs": BOX**2 * TRUNCATED_VARIANCE / problem.dimension,
            "weights": [TRUNCATED_VARIANCE, differences * TRUNCATED_VARIANCE / problem.temperature**2],
            "biases": [1 / problem.dimension, 0.0, 0.0],
        },
        "seed": problem.seed,
    }


def fit_surrogate(name: str, problem: Problem, X: Tensor, Y: Tensor, samples: int) -> LogProbs:
    """Fit a registered surrogate; its function samples are drawn once, a finite ensemble of equal weights enumerated."""
    name, own = VARIANTS.get(name, (name, {}))
    likelihood = supported(name)
    assert likelihood is not None
    known = surrogate_options(surrogate_class(name))
    options = {key: value for key, value in knowledge(problem, likelihood).items() if key in known}
    options |= (AGENTS[name](problem) if name in AGENTS else {}) | own
    outputs = 1 if likelihood == "bernoulli" else CLASSES
    surrogate = seqbdl.make_surrogate(name, problem.dimension, outputs, likelihood, **options)
    surrogate.fit(X, Y.double().unsqueeze(-1))
    n = samples
    with torch.no_grad():
        posterior = surrogate.posterior(X[:1])
    if not isinstance(posterior, ParticlePosterior):
        return in_pieces(lambda X: joint_log_probs(surrogate, likelihood, problem, X, n), 500)
    if torch.allclose(posterior.weights, posterior.weights[:1]):
        n = posterior.num_particles
    generator = problem.generator("functions")  # read, not advanced: every call sees the same functions
    return in_pieces(lambda X: surrogate.log_probs(X, n, generator), 500)


def joint_log_probs(surrogate: seqbdl.Surrogate, likelihood: str, problem: Problem, X: Tensor, samples: int) -> Tensor:
    """Log-probabilities of classes under samples of a Gaussian posterior, joint over the anchors of every test draw, which is
    all that the score reads: thousands of rows under a function draw each cost far more. ``X``: whole test draws."""
    posterior: Any = surrogate.posterior(X.unflatten(0, (-1, ANCHORS)))
    latents = IIDNormalSampler(torch.Size([samples]), seed=problem.seed)(posterior)  # samples x draws x anchors x l
    return get_likelihood(likelihood).class_log_probs(latents).flatten(1, 2)


def fit(method: str, problem: Problem, X: Tensor, Y: Tensor, settings: Settings) -> LogProbs:
    """The agent's function samples."""
    if method == UNIFORM:
        return lambda X: torch.full((1, len(X), CLASSES), -math.log(CLASSES), dtype=torch.float64)
    if method == PRIOR:
        networks = random_networks(problem.dimension, settings.samples, problem.generator("functions"))
        return in_pieces(log_probs_of(networks, problem.temperature), 50)
    if method == MLP:
        return train(problem, X, Y, 1, settings.steps)
    if method == ENSEMBLE_PLUS:
        return train(problem, X, Y, 30, settings.steps, 3 / math.sqrt(problem.temperature))
    return fit_surrogate(method, problem, X, Y, settings.samples)


def measure(path: Path, problems: list[Problem], methods: list[str], settings: Settings) -> None:
    """Run what the file does not hold yet and append it; every training is scored at every tau."""
    done: set[tuple[Any, ...]] = set()
    if path.exists():
        done = set(pd.read_csv(path)[list(COLUMNS[:5])].itertuples(index=False, name=None))
    path.parent.mkdir(parents=True, exist_ok=True)
    for method, problem in itertools.product(methods, problems):
        if (*astuple(problem), method) in done:
            continue
        X, Y, environment = generate(problem)
        started = time.process_time()
        agent = fit(method, problem, X, Y, settings)
        fitted = time.process_time()
        found = score(agent, environment, problem, settings.draws)
        seconds = (fitted - started, time.process_time() - fitted)
        fresh = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if fresh:
                writer.writerow(COLUMNS)
            for tau, values in found.items():
                numbers = (float(values.mean()), float(values.std()) / math.sqrt(len(values)), *seconds)
                writer.writerow([*astuple(problem), method, tau, *(f"{number:.6g}" for number in numbers)])
        kl = ", ".join(f"tau {tau} KL {float(values.mean()):.4f}" for tau, values in found.items())
        print(f"{method:20s} {problem}: {kl}, {seconds[0]:.1f} + {seconds[1]:.1f} CPU s", flush=True)


def normalized(frame: pd.DataFrame, method: str, baseline: str, tau: int) -> tuple[float, float]:
    """Mean KL over the problems that a method has, over the baseline's on the same problems, and its standard error.

    KL estimates below zero count as zero, as on the testbed's leaderboard. The error is that of the seeds: the spread
    of the linearized ratio between the problems of equal levels; NaN with one seed.
    """
    levels = ["D", "ratio", "temperature"]
    kl = frame[frame["tau"] == tau].pivot_table(index=[*levels, "seed"], columns="method", values="kl")
    pair = kl[list(dict.fromkeys([method, baseline]))].dropna().clip(lower=0.0)
    own, reference = pair[method], pair[baseline]
    if reference.sum() == 0.0:
        return math.nan, math.nan
    ratio = own.sum() / reference.sum()
    groups = (own - ratio * reference).groupby(level=levels)
    variance = (groups.var(ddof=1) * groups.count()).sum(min_count=len(groups))
    return float(ratio), math.sqrt(variance) / float(reference.sum())


def report(path: Path, command: str, note: str = "") -> str:
    """The tables, as Markdown, and the picture beside the file."""
    frame = pd.read_csv(path)
    problems = frame.groupby("method").apply(lambda rows: len(rows) // len(TAUS), include_groups=False)
    methods = sorted(frame["method"].unique(), key=lambda method: normalized(frame, method, UNIFORM, TAUS[-1])[0])
    lines = [
        "# Joint predictions on the Neural Testbed's problem family",
        "",
        f"Command: `{command}`. Versions: seqbdl {seqbdl.__version__}, torch {torch.__version__.split('+')[0]}, botorch "
        f"{botorch.__version__}. One thread; shared machine: read CPU seconds as ratios.",
        "",
        "KL estimates to the true environment, nats, over problems drawn from the definition of Osband et al. (2022); tau labels "
        f"at two anchors, {Settings.draws} test draws, {Settings.samples} function samples (finite ensembles enumerated; "
        "`--quick` fewer). `/ mlp` and `/ uniform` are ratios of mean KL over problems, ± the standard error over seeds. The "
        f"floor is not 0 but the information that the data leave open. `{PRIOR}` samples the true prior; `{MLP}` and "
        f"`{ENSEMBLE_PLUS}` (30 members) are trained with the testbed's tuned settings, written in this script.",
        "",
        "| method | problems |" + "".join(f" KL, tau {tau} | / mlp | / uniform |" for tau in TAUS) + " CPU s, fits | scores |",
        "| --- |" + " --- |" * (3 + 3 * len(TAUS)),
    ]
    for method in methods:
        own = frame[frame["method"] == method]
        cells = [str(method), str(problems[method])]
        for tau in TAUS:
            cells.append(f"{own[own['tau'] == tau]['kl'].mean():.3f}")
            cells += [with_error(*normalized(frame, method, baseline, tau)) for baseline in (MLP, UNIFORM)]
        once = own[own["tau"] == TAUS[0]]
        cells += [f"{once['fit_seconds'].sum():.0f}", f"{once['score_seconds'].sum():.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    ratios = sorted(frame["ratio"].unique())
    lines += ["", "Mean KL by rows per input dimension, tau 1 and tau 10:", ""]
    lines += ["| method |" + "".join(f" n/D {ratio} |" for ratio in ratios), "| --- |" + " --- |" * len(ratios)]
    means = frame.groupby(["method", "ratio", "tau"])["kl"].mean()
    for method in methods:
        cells = [" / ".join(f"{means.get((method, ratio, tau), math.nan):.3f}" for tau in TAUS) for ratio in ratios]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    if note:
        lines += ["", note]
    text = "\n".join(lines) + "\n"
    path.with_suffix(".md").write_text(text)
    draw(frame, methods, path.with_suffix(".png"))
    return text


def with_error(value: float, error: float) -> str:
    return f"{value:.3f}" + ("" if math.isnan(error) else f" ± {error:.3f}")


def draw(frame: pd.DataFrame, methods: list[str], path: Path) -> None:
    """Ratios to the mlp with their standard errors, one panel per tau."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [method for method in methods[::-1] if method != UNIFORM]
    figure, axes = plt.subplots(1, 2, figsize=(10, 1.2 + 0.24 * len(shown)), sharey=True, layout="constrained")
    for axis, tau in zip(axes, TAUS, strict=True):
        for i, method in enumerate(shown):
            ratio, error = normalized(frame, method, MLP, tau)
            colour = "0.5" if method in REFERENCES else "C0"
            axis.errorbar(ratio, i, xerr=0.0 if math.isnan(error) else error, fmt="o", color=colour, markersize=4)
        axis.axvline(1.0, color="0.8", zorder=0)
        axis.set(title=f"tau = {tau}", xlabel="mean KL to the environment / mlp's", xscale="log")
        axis.set_yticks(range(len(shown)), shown, fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    agents = [name for name in seqbdl.list_surrogates() if supported(name)]
    methods = [*REFERENCES, *agents]
    parser.add_argument("--methods", nargs="+", default=methods, choices=methods)
    parser.add_argument("--seeds", type=int, default=2, choices=range(1, 6))
    parser.add_argument("--out", type=Path, default=RESULTS / "testbed.csv")
    parser.add_argument("--note", default="", help="a remark to stand below the tables")
    parser.add_argument("--report", action="store_true", help="only write tables and picture from the measurements")
    parser.add_argument("--quick", action="store_true", help="a smoke run in a temporary folder")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.quick:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "quick.csv"
            problems = [Problem(2, ratio, 0.1, seed) for ratio in (1, 10) for seed in (0, 1)]
            measure(path, problems, [*REFERENCES, *agents[:1]], Settings(draws=50, samples=50, steps=20))
            print(report(path, "python benchmarks/testbed.py --quick"))
        return
    if not options.report:
        chosen = [*REFERENCES[:3], *(method for method in options.methods if method not in REFERENCES[:3])]
        levels = itertools.product(DIMENSIONS[:2], RATIOS[:3], TEMPERATURES, range(options.seeds))
        measure(options.out, [Problem(*each) for each in levels], chosen, Settings())
    print(report(options.out, f"python benchmarks/testbed.py --seeds {options.seeds}", options.note))


if __name__ == "__main__":
    main(sys.argv[1:])
