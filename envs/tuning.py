"""Tuning the hyperparameters of a real model on real data: a neural network that reads handwritten digits.

One evaluation trains the network from scratch with the given hyperparameters and scores it on validation data it has
not seen; it takes about a tenth of a second. The landscape is what people meet in practice: most of it is a plateau
where nothing is learned, some of it diverges, and the good region needs several parameters to be right together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from seqbdl.envs.base import DecisionEnv, Evaluation, integer, mapping, real
from seqbdl.envs.data import load_sklearn

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "tanh": torch.tanh, "logistic": torch.sigmoid}
DATASETS = ("digits", "breast_cancer", "wine")
EPOCHS = 15
BATCH = 32
MAX_TRAIN = 500
# The log loss counts no probability below this, so that one confident error cannot swamp the rest.
MIN_PROBABILITY = 1e-3


@dataclass(frozen=True)
class Configuration:
    """What is tuned; `momentum` is `1 - one_minus_momentum`, and weights start as N(0, init_scale² / inputs)."""

    learning_rate: float
    one_minus_momentum: float
    weight_decay: float
    init_scale: float
    label_smoothing: float
    width: int
    layers: int
    activation: str


@dataclass(frozen=True)
class Split:
    """Standardized inputs `(n, d)` in float32 and classes `(n,)`."""

    x: Tensor
    y: Tensor


class TuneNetworkEnv(DecisionEnv):
    """Minus the validation log loss (natural logarithm) of a multilayer perceptron, over eight hyperparameters.

    Learning rate, one minus momentum, weight decay, initial scale and width are best searched on a logarithmic scale;
    label smoothing is not; the number of hidden layers is an integer and the activation a category. Training: 15 epochs
    of stochastic gradient descent with Nesterov momentum, batches of 32, the rate falling along a half cosine.
    `info` also holds `validation_accuracy`, `test_accuracy` and `test_log_loss`: the test rows serve to report on a
    chosen configuration, never to choose one. A training that diverges is a failed evaluation. The optimum is unknown.

    Args:
        dataset: `"digits"` (10 classes), `"breast_cancer"` (2) or `"wine"` (3), all bundled with scikit-learn.
        seed: of the split, the initial weights and the order of batches.
        fresh_seeds: draw a new seed for weights and batches at every evaluation, which makes the reward noisy; without
            it the problem is deterministic.
    """

    def __init__(self, dataset: str = "digits", seed: int = 0, fresh_seeds: bool = False) -> None:
        if dataset not in DATASETS:
            raise ValueError(f"dataset: {dataset!r}; the data sets are {', '.join(DATASETS)}.")
        self.dataset, self.fresh_seeds = dataset, fresh_seeds
        self._seed = seed
        self.train, self.validation, self.test = load_splits(dataset, seed)
        self.num_classes = int(self.train.y.max()) + 1
        log_scale = {"learning_rate", "one_minus_momentum", "weight_decay", "init_scale", "width"}
        space = mapping(
            {
                "learning_rate": real(1e-4, 1.0),
                "one_minus_momentum": real(0.01, 1.0),
                "weight_decay": real(1e-6, 1e-1),
                "init_scale": real(0.1, 10.0),
                "label_smoothing": real(0.0, 0.5),
                "width": integer(8, 256),
                "layers": integer(1, 4),
                "activation": integer(0, len(ACTIVATIONS) - 1),
            }
        )
        super().__init__(
            space,
            log_scale=[name in log_scale for name in space.spaces],
            categories={"activation": tuple(ACTIVATIONS)},
            outcome_names=("-validation log loss",),
            failure_reward=math.log(MIN_PROBABILITY),
        )

    def configuration(self, point: dict[str, float | int]) -> Configuration:
        """The hyperparameters that a point of the action space stands for."""
        values: dict[str, Any] = dict(point)
        values["activation"] = tuple(ACTIVATIONS)[int(point["activation"])]
        return Configuration(**values)

    def _evaluate(self, point: dict[str, float | int]) -> Evaluation:
        seed = int(self.np_random.integers(2**31)) if self.fresh_seeds else self._seed
        predict = train(self.configuration(point), self.train, self.num_classes, seed)
        loss, accuracy = score(predict(self.validation.x), self.validation.y)
        if not math.isfinite(loss):
            return self.failure("the training diverged")
        test_loss, test_accuracy = score(predict(self.test.x), self.test.y)
        extra = {"validation_accuracy": accuracy, "test_accuracy": test_accuracy, "test_log_loss": test_loss}
        noise_variance = None if self.fresh_seeds else np.zeros(1)
        return Evaluation(np.array([-loss]), None if self.fresh_seeds else -loss, None, noise_variance, None, extra)


def load_splits(dataset: str, seed: int) -> tuple[Split, Split, Split]:
    """Training, validation and test rows: two fifths (at most 500), and halves of the rest."""
    inputs, classes, _ = load_sklearn(dataset)
    order = np.random.default_rng(seed).permutation(len(inputs))
    first = min(MAX_TRAIN, 2 * len(order) // 5)
    second = first + (len(order) - first) // 2
    rows = inputs[order[:first]]
    span = np.maximum(np.ptp(inputs, axis=0), 1e-12)
    # A tenth of the range is added to the spread: some pixels are almost always blank and must not blow up.
    x = torch.as_tensor((inputs - rows.mean(axis=0)) / (rows.std(axis=0) + 0.1 * span)).to(torch.float32)
    y = torch.as_tensor(classes, dtype=torch.int64)
    parts = (order[:first], order[first:second], order[second:])
    splits = [Split(x[torch.as_tensor(part)], y[torch.as_tensor(part)]) for part in parts]
    return splits[0], splits[1], splits[2]


def train(configuration: Configuration, data: Split, num_classes: int, seed: int) -> Callable[[Tensor], Tensor]:
    """Train a network; what comes back maps inputs `(n, d)` to log-probabilities `(n, num_classes)`."""
    c = configuration
    generator = torch.Generator().manual_seed(seed)
    sizes = [data.x.shape[1], *[c.width] * c.layers, num_classes]
    weights, biases = [], []
    for fan_in, fan_out in pairwise(sizes):
        weight = torch.randn(fan_in, fan_out, generator=generator, dtype=torch.float32)
        weights.append((weight * c.init_scale / math.sqrt(fan_in)).requires_grad_())
        biases.append(torch.zeros(fan_out, dtype=torch.float32, requires_grad=True))
    activation = ACTIVATIONS[c.activation]

    def logits(x: Tensor) -> Tensor:
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            x = activation(torch.addmm(bias, x, weight))
        return torch.addmm(biases[-1], x, weights[-1])

    def predict(x: Tensor) -> Tensor:
        with torch.no_grad():
            return functional.log_softmax(logits(x), dim=-1)

    groups = [{"params": weights, "weight_decay": c.weight_decay}, {"params": biases, "weight_decay": 0.0}]
    momentum = 1.0 - c.one_minus_momentum
    optimizer = torch.optim.SGD(groups, lr=c.learning_rate, momentum=momentum, nesterov=momentum > 0, foreach=True)
    batches = max(len(data.x) // BATCH, 1)
    with torch.enable_grad():
        for epoch in range(EPOCHS):
            order = torch.randperm(len(data.x), generator=generator)
            for i in range(batches):
                done = (epoch * batches + i) / (EPOCHS * batches)
                for group in optimizer.param_groups:
                    group["lr"] = c.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
                rows = order[i * BATCH : (i + 1) * BATCH]
                loss = functional.cross_entropy(logits(data.x[rows]), data.y[rows], label_smoothing=c.label_smoothing)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return predict


def score(log_probabilities: Tensor, classes: Tensor) -> tuple[float, float]:
    """Log loss (NaN when any prediction is not finite) and accuracy."""
    if not bool(torch.isfinite(log_probabilities).all()):
        return math.nan, 0.0
    chosen = log_probabilities.gather(1, classes[:, None]).clamp(min=math.log(MIN_PROBABILITY))
    accuracy = (log_probabilities.argmax(dim=1) == classes).to(torch.float64).mean()
    return -float(chosen.to(torch.float64).mean()), float(accuracy)
