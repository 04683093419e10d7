"""BatchBALD against BALD on repeated digits with the network of the paper's kind: is the published order met?

The protocol of A. Kirsch, J. van Amersfoort and Y. Gal ("BatchBALD", NeurIPS 2019) at the size of scikit-learn's digits: 1198
images in three copies with noise (standard deviation 0.1 of the normalized image), 599 others as the test set, 20 labels to begin
with (two of each class), batches of ten, and a network that is a plain ``torch.nn`` user's: two hidden layers of 128 ReLU units,
dropout 0.5, Adam (1e-3) on batches of 64, no weight prior, from scratch in every round. 1500 steps stand for the early stopping
of the paper, so that no labels are spent on validation. The acquisition sees the network through ``log_probs`` alone: 100 masks,
the same for the whole pool. ``benchmarks/active_learning.py`` asks the same of this library's own surrogates.

``--information`` asks why models differ in what they can choose by: how much their functions disagree after 60 labels drawn at
random, about single images and about a batch of ten together.

The CSV is written after every run, and a run that it holds is not repeated.

    python benchmarks/repeated_digits.py                     # writes benchmarks/results/repeated_digits.{csv,md}
    python benchmarks/repeated_digits.py --information       # writes benchmarks/results/repeated_digits_information.md
    python benchmarks/repeated_digits.py --quick             # seconds, one round, writes nothing
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pandas as pd
import torch
from torch import Tensor

import seqbdl.envs  # noqa: F401  (registers the environments)
from seqbdl.acquisition import pool_scores, select_batch
from seqbdl.acquisition.batches import batchbald
from seqbdl.loops import ActiveLearningLoop

RESULTS = Path(__file__).parent / "results"
METHODS: dict[str, dict[str, Any]] = {"Random": {}, "BALD": {}, "BatchBALD": {"num_configurations": 10_000}, "BADGE": {}}
START, BATCH, ROUNDS, DRAWS, COPIES = 20, 10, 16, 100, 3
LEVELS = (0.90, 0.95)
NARROW = {"inputs": 0.25, "weights": 4.0, "biases": 0.1}
FLAT = {"inputs": 10.0, "weights": 300.0, "biases": 1.0}
SURROGATES: dict[str, tuple[str, dict[str, Any]]] = {
    "`mc-dropout`, rate 0.2, narrow prior": ("mc-dropout", {"network": (64, 64), "rate": 0.2, "scales": NARROW}),
    "`mc-dropout`, rate 0.5, flat prior": ("mc-dropout", {"network": (64, 64), "rate": 0.5, "scales": FLAT}),
    "`ensemble` of 10": ("ensemble", {"network": (32,), "num_members": 10, "scales": NARROW}),
    "`ensemble` of 40": ("ensemble", {"network": (32,), "num_members": 40, "scales": NARROW}),
}


class DropoutNetwork(torch.nn.Module):
    """Anybody's classifier, with masks that can be held for a whole pool.

    Args:
        seed: Of the weights, the training and the masks.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)
        sizes = [(64, 128), (128, 128), (128, 10)]
        self.layers = torch.nn.ModuleList([torch.nn.utils.skip_init(torch.nn.Linear, *size) for size in sizes])
        for layer in self.layers:
            for part in (layer.weight, layer.bias):
                part.data.uniform_(-(layer.weight.shape[1] ** -0.5), layer.weight.shape[1] ** -0.5, generator=self.generator)
        self.masks = [self._mask(DRAWS, 1) for _ in range(2)]

    def _mask(self, *shape: int) -> Tensor:
        """Zero or two, for the 128 units of a layer."""
        return 2.0 * (torch.rand(*shape, 128, generator=self.generator) < 0.5)

    def forward(self, x: Tensor, masks: list[Tensor]) -> Tensor:
        """Logits ``... x 10`` of images ``... x 64`` under masks ``... x 128`` of the two hidden layers."""
        for layer, mask in zip(self.layers[:2], masks, strict=True):
            x = layer(x).relu() * mask
        return self.layers[2](x)

    def train_on(self, x: Tensor, y: Tensor, steps: int) -> DropoutNetwork:
        """Itself, after so many steps of Adam with fresh masks for every image."""
        adam = torch.optim.Adam(self.parameters(), 1e-3)
        for _ in range(steps):
            rows = torch.randint(len(x), (min(64, len(x)),), generator=self.generator)
            loss = torch.nn.functional.cross_entropy(self(x[rows], [self._mask(len(rows)) for _ in range(2)]), y[rows])
            adam.zero_grad()
            loss.backward()
            adam.step()
        return self.requires_grad_(False)

    def features(self, x: Tensor) -> Tensor:
        """The last hidden layer without dropout, which BADGE reads."""
        for layer in self.layers[:2]:
            x = layer(x.float()).relu()
        return x.double()

    def log_probs(self, x: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
        """``n x N x 10`` under the first ``n`` masks."""
        return self(x.float(), [mask[:n] for mask in self.masks]).double().log_softmax(-1)


@dataclass(frozen=True)
class Digits:
    """The pool in three copies and the test set, images as standardized rows."""

    pool: Tensor
    labels: Tensor
    test: Tensor
    test_labels: Tensor

    @staticmethod
    def load() -> Digits:
        about: Any = gymnasium.make("seqbdl/LabelRepeatedDigits-v0").unwrapped
        labels = torch.tensor([int(about.step(i)[1]) for i in range(len(about.pool))])
        pool, test = (torch.as_tensor(part).flatten(1).float() for part in (about.pool, about.test_inputs))
        mean, sd = pool.mean(), pool.std()
        return Digits((pool - mean) / sd, labels, (test - mean) / sd, torch.as_tensor(about.test_labels))

    def start(self, seed: int) -> tuple[list[int], list[int]]:
        """The first labels, equally many of each class, and all others in random order."""
        order = np.random.default_rng(seed).permutation(len(self.labels))
        first = [int(i) for c in range(10) for i in order[self.labels.numpy()[order] == c][: START // 10]]
        return first, [int(i) for i in order if i not in first]

    def different(self, indices: list[int]) -> int:
        """Images among them, copies counted once."""
        return len({i % (len(self.labels) // COPIES) for i in indices})

    def accuracy(self, log_probs: Tensor) -> float:
        """Of the mean of probabilities ``n x N x 10`` at the test set."""
        return float((log_probs.exp().mean(0).argmax(-1) == self.test_labels).double().mean())


def run(digits: Digits, method: str, seed: int, rounds: int, steps: int) -> list[dict[str, Any]]:
    """One learning curve, a row for each round."""
    asked, _ = digits.start(seed)
    rows, chosen, start = [], asked, time.process_time()
    for number in range(rounds + 1):
        network = DropoutNetwork(1000 * seed + number).train_on(digits.pool[asked], digits.labels[asked], steps)
        values = {
            "labels": len(asked),
            "accuracy": digits.accuracy(network.log_probs(digits.test, DRAWS)),
            "different": digits.different(chosen),
        }
        rows.append({"method": method, "seed": seed, **values, "cpu_seconds": time.process_time() - start})
        if number == rounds:
            break
        batch = select_batch(
            method,
            network,
            digits.pool,
            BATCH,
            exclude=asked,
            num_draws=DRAWS,
            generator=torch.Generator().manual_seed(1000 * seed + number),
            **METHODS[method],
        )
        chosen = batch.indices.tolist()
        asked = asked + chosen
    return rows


def information(digits: Digits, seeds: int, extra: int, steps: int) -> str:
    """What functions disagree about after the start and ``extra`` random labels, means over seeds, as Markdown."""
    lines = [
        "# How much functions disagree on repeated digits",
        "",
        f"Command: `python benchmarks/repeated_digits.py --information`. After {START + extra} random labels, means of {seeds} "
        f"seeds, {DRAWS} draws. Information in nats: about the best single image (BALD), about the ten that BatchBALD picks "
        "together, and what its sixth to tenth pick add; different: images among the ten of highest BALD, copies counted once.",
        "",
        "| method | accuracy | best image | ten images together | picks six to ten | different |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in ("plain network, dropout 0.5", *SURROGATES):
        rows = []
        for seed in range(seeds):
            first, rest = digits.start(seed)
            asked = first + rest[:extra]
            if name in SURROGATES:
                kind, options = SURROGATES[name]
                members = {"num_members": DRAWS} if kind == "mc-dropout" else {}
                loop = ActiveLearningLoop(
                    digits.pool.double(), kind, "Random", classes=10, seed=seed, surrogate_options={**options, **members}
                )
                loop.tell(asked, digits.labels[asked])
                model: Any = loop.fitted()
            else:
                model = DropoutNetwork(seed).train_on(digits.pool[asked], digits.labels[asked], steps)
            # the same generator twice: the same functions
            pool, test = (
                model.log_probs(x.double(), DRAWS, torch.Generator().manual_seed(seed)) for x in (digits.pool, digits.test)
            )
            scores = pool_scores.bald(pool)
            scores[asked] = -torch.inf
            batch = batchbald(pool, BATCH, torch.Generator().manual_seed(seed), num_configurations=10_000, exclude=asked)
            alike = digits.different(scores.topk(BATCH).indices.tolist())
            late = float(batch.increments[BATCH // 2 :].sum())
            rows.append([digits.accuracy(test), float(scores.max()), float(batch.scores[-1]), late, alike])
        accuracy, best, joint, late, alike = np.mean(rows, axis=0)
        lines.append(f"| {name} | {accuracy:.3f} | {best:.2f} | {joint:.2f} | {late:.2f} | {alike:.1f} |")
    return "\n".join(lines) + "\n"


def report(frame: pd.DataFrame) -> str:
    """The table, as Markdown."""
    lines = [
        "# Repeated digits with the network of the paper's kind",
        "",
        "Command: `python benchmarks/repeated_digits.py`. What is measured stands at the head of the script. Medians over seeds, "
        "quartiles in brackets; `>` where the level was not reached. Different: images in a batch of ten, copies counted once.",
        "",
        "| method | seeds | labels to 90 % | labels to 95 % | accuracy at 60 | at 100 | at 150 | different | CPU s per round |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for method in METHODS:
        curves = [curve for _, curve in frame[frame["method"] == method].groupby("seed")]
        if not curves:
            continue
        cells = [method, str(len(curves)), *(_quartiles(curves, level) for level in LEVELS)]
        marks = [[curve[curve["labels"] <= mark].iloc[-1]["accuracy"] for curve in curves] for mark in (60, 100, 150)]
        cells += [f"{np.median(values):.3f}" for values in marks]
        cells.append(f"{np.mean([curve['different'].iloc[1:].mean() for curve in curves]):.1f}")
        cells.append(f"{np.mean([curve['cpu_seconds'].iloc[-1] / len(curve) for curve in curves]):.1f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _quartiles(curves: list[pd.DataFrame], level: float) -> str:
    reached = [curve[curve["accuracy"] >= level]["labels"].min() for curve in curves]
    numbers = np.percentile([np.inf if np.isnan(n) else n for n in reached], [25, 50, 75], method="nearest")
    low, middle, high = (">" if np.isinf(n) else f"{n:.0f}" for n in numbers)
    return f"{middle} ({low}, {high})"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--out", type=Path, default=RESULTS / "repeated_digits.csv", help="the .md stands beside it")
    parser.add_argument("--information", action="store_true", help="how much functions disagree, instead")
    parser.add_argument("--quick", action="store_true", help="one round of little training, writes nothing")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    digits = Digits.load()
    if options.information:
        text = information(digits, 1, 0, 20) if options.quick else information(digits, 2, 40, 1500)
        print(text)
        if not options.quick:
            options.out.with_name("repeated_digits_information.md").write_text(text)
        return
    rows: list[dict[str, Any]] = []
    if options.out.exists() and not options.quick:
        rows = pd.read_csv(options.out).to_dict("records")
    done = {(row["method"], row["seed"]) for row in rows}
    rounds, steps, seeds = (1, 20, 1) if options.quick else (ROUNDS, 1500, options.seeds)
    for seed, method in product(range(seeds), options.methods):
        if (method, seed) in done:
            continue
        rows += run(digits, method, seed, rounds, steps)
        print({key: rows[-1][key] for key in ("method", "seed", "labels", "accuracy", "cpu_seconds")}, flush=True)
        if not options.quick:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            pd.DataFrame(rows).to_csv(options.out, index=False)
            options.out.with_suffix(".md").write_text(report(pd.DataFrame(rows)))
    print(report(pd.DataFrame(rows)))


if __name__ == "__main__":
    main(sys.argv[1:])
