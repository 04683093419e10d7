"""LO-FI reads images one by one, once: 784-500-500-10, 648,010 weights, against stochastic gradients with ten stored images.

python benchmarks/lofi.py --fashion FOLDER    # 2,000 images: some ten minutes; writes benchmarks/results/lofi.md
python benchmarks/lofi.py --quick             # digits and a small network, prints only

FOLDER holds the files of Debian's package dataset-fashion-mnist. Beliefs are in single precision.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from seqbdl.envs.image_stream import load_images
from seqbdl.inference import lofi
from seqbdl.inference.recursion import FilterSettings, absorb
from seqbdl.likelihoods import get_likelihood
from seqbdl.networks import MLP, JacobianRows

RESULTS = Path(__file__).parent / "results" / "lofi.md"
CATEGORICAL, DTYPE, STORED = get_likelihood("categorical"), torch.float32, 10


def network_of(pixels: int, width: int) -> MLP:
    """Rectified linear units with He's scales."""
    ones = torch.ones(3, dtype=DTYPE)
    return MLP((width, width), torch.full((pixels,), 2 / pixels, dtype=DTYPE), 2 * ones[:2], 0.01 * ones, 10, "relu")


def error(network: MLP, z: Tensor, X: Tensor, Y: Tensor) -> float:
    return float((network.forward(z[None], X)[0].argmax(-1) != Y[:, 0]).double().mean())


def filtered(network: MLP, z: Tensor, X: Tensor, Y: Tensor, rank: int, variance: float):  # type: ignore[no-untyped-def]
    """The mean after every image, and the CPU seconds that its update took."""
    belief, noise = lofi.prior_belief(z, variance, rank), torch.ones(1, 10, dtype=DTYPE)
    for x, y in zip(X.split(1), Y.split(1), strict=True):

        def linearize(weights: Tensor, x: Tensor = x) -> tuple[Tensor, JacobianRows]:
            here = network.tangents(weights[None], x)
            return here.values[0], network.rows(here)

        start = time.process_time()
        belief, _ = absorb(belief, linearize, CATEGORICAL, y, noise, FilterSettings())
        yield belief.mean, time.process_time() - start


def replayed(network: MLP, z: Tensor, X: Tensor, Y: Tensor, rate: float):  # type: ignore[no-untyped-def]
    """A gradient step on the mean loss of the last ten images, with every image."""
    noise = torch.ones(1, 10, dtype=DTYPE)
    for i in range(X.shape[0]):
        rows = slice(max(0, i + 1 - STORED), i + 1)
        start = time.process_time()
        f, back = network.pullback(z[None], X[rows])
        z = z + rate * back(CATEGORICAL.score(f, Y[rows], noise))[0] / f.shape[1]
        yield z, time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small, prints only")
    parser.add_argument("--fashion", metavar="FOLDER", help="the folder of Fashion-MNIST's files")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--variances", type=float, nargs="+", default=[1.0], help="prior variances of whitened weights")
    parser.add_argument("--rates", type=float, nargs="+", default=[1.0], help="of stochastic gradients, in whitened weights")
    parser.add_argument("--rank", type=int, default=10)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if not args.quick and args.fashion is None:
        parser.error("--fashion FOLDER is missing: where the files of Debian's package dataset-fashion-mnist are")
    count = 60 if args.quick else args.images
    images, labels, test_images, test_labels, white = load_images("digits" if args.quick else "fashion-mnist", args.fashion or "")
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(images), generator=generator)[:count].numpy()
    X, test_X = (torch.tensor(x.reshape(len(x), -1) / white, dtype=DTYPE) for x in (images[order], test_images))
    Y, test_Y = (torch.tensor(y[:, None].astype(np.float64), dtype=DTYPE) for y in (labels[order], test_labels))
    network = network_of(X.shape[1], 32 if args.quick else 500)
    z = torch.randn(network.num_params, generator=generator, dtype=DTYPE)
    marks = sorted({count // 4, count // 2, count})
    runs = [(f"LO-FI, rank {args.rank}, variance {v:g}", filtered(network, z, X, Y, args.rank, v)) for v in args.variances]
    runs += [(f"gradients, {STORED} stored images, rate {r:g}", replayed(network, z, X, Y, r)) for r in args.rates]
    lines = [
        "| method | " + " | ".join(f"error after {mark}" for mark in marks) + " | ms an image |",
        "|" + " --- |" * (len(marks) + 2),
    ]
    for label, steps in runs:
        errors, seconds = [], []
        for i, (mean, spent) in enumerate(steps):
            seconds.append(spent)
            if i + 1 in marks:
                errors.append(f"{error(network, mean, test_X, test_Y):.3f}")
        lines.append(f"| {label} | {' | '.join(errors)} | {1e3 * float(np.median(seconds)):.1f} |")
        print(lines[-1], flush=True)
    text = "\n".join(lines)
    print(text)
    if not args.quick:
        command = "`python benchmarks/lofi.py --fashion FOLDER`, one seed, one core."
        head = f"# One pass over {count} images of Fashion-MNIST\n\n{command}\n\n"
        args.out.write_text(head + text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
