"""``dkm``: deep kernel machines, from the infinitely wide network to learned representations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError, UnknownNameError
from seqbdl.inference import infinite_width
from seqbdl.inference.gram import SQUARED_EXPONENTIAL, GramKernel, gram, gram_diagonal, with_mixers
from seqbdl.inference.gram_draws import prior_draws
from seqbdl.inference.gram_layout import Images, Vectors
from seqbdl.inference.inducing import BoundSettings, spread_rows
from seqbdl.inference.infinite_width import WidthScales, default_scales
from seqbdl.inference.kernel_machine import (
    INFINITE,
    LOG_SD,
    Choice,
    Machine,
    MachineSettings,
    choose_nu,
    inflated,
    train_machine,
    train_path,
)
from seqbdl.inference.kernel_machine_bound import train_machines_by_bound
from seqbdl.networks.activations import ACTIVATIONS
from seqbdl.posteriors.inducing import best_noise, project
from seqbdl.posteriors.joint_gaussian import jittered_cholesky
from seqbdl.surrogates.base import Evaluate
from seqbdl.surrogates.inducing import InducingSurrogate
from seqbdl.surrogates.network_prior import LABEL_ROWS, evidence_rows

_MIN_ROWS = 8  # fewer say nothing about nu
_EVIDENCE_ROWS = 512  # a random sample that trains the kernel where max_rows is exceeded
_SPREAD_ROWS = 1024  # a random sample, at most, that inducing inputs are taken from
_BATCHED = 5000  # rows beyond which Gram matrices are learned in mini-batches, and noise from a sample
_GROWTH = 1.5  # nu is chosen again when the rows have grown by so much
_IMAGE_ROWS = 160  # as _EVIDENCE_ROWS and _SPREAD_ROWS, of images, whose Gram matrices have a block per pixel
_SHARE = 0.2  # of the rows, held out, that set the noise on a basis
_MOST_NUMBERS = 4_000_000  # of these blocks held at once
_CANDIDATES = (INFINITE, 100.0, 30.0, 10.0)
_LABEL_CANDIDATES = (INFINITE, 100.0, 10.0)


class DKMSurrogate(InducingSurrogate):
    """The infinitely wide network ``nngp`` with Gram matrices between its layers that are learned (Yang et al. 2023).

    ``nu`` says how strongly a layer's Gram matrix is held to the one that the network has there: infinite, it IS ``nngp``;
    small, representations are free. Held-out rows choose it, and the infinite one stays unless it is clearly beaten; under a
    chosen finite one all variances are multiplied by the mean square of standardized held-out errors, if that is above 1. Up to
    ``max_rows`` rows the top is an exact Gaussian process; beyond, and under other likelihoods, it stands on the inducing
    inputs. All outputs share one kernel.

    With ``image_shape`` the network is convolutional, with a dense layer at the end, and what is learned are Gram matrices of
    patches (Milsom et al. 2024; see :mod:`seqbdl.inference.gram_layout`): for small images.

    Args:
        nu: A number (``math.inf`` too); ``None``: chosen.
        depth: Layers of the network: ``depth - 1`` Gram matrices are learned.
        activation: ``"erf"``, ``"relu"``, ``"leaky_relu"``, or ``"squared-exponential"`` for that kernel of each Gram matrix.
        image_shape: Channels, height and width of the images that rows of ``X`` are, flattened in this order.
        patch_size: Of convolutions; odd.
        num_inducing: ``P``, rows at which Gram matrices are learned.
        stochastic: Train under random draws around the Gram matrices (stochastic kernel regularization, Milsom et al. 2024):
            holds off overfitting at small ``nu``; by Adam, with ``steps``.
        max_iterations: L-BFGS iterations of the infinitely wide network.
        steps: Per ``nu``: L-BFGS iterations (40 by default), or steps of Adam (150 in mini-batches and under other likelihoods,
            300 with ``stochastic``).
        learning_rate: Of Adam.
        batch_size: Rows per step; ``None``: all up to 5,000, then 512.
        draw_width: Random features per layer of a function draw (and pixel), every draw its own; 256, or 32 for images.
    """

    name = "dkm"
    carries = "the Gaussian process under the learned kernel: exactly up to max_rows rows, then sums over that basis"

    def __init__(
        self,
        *args: Any,
        nu: float | None = None,
        depth: int = 2,
        activation: str = "erf",
        image_shape: Sequence[int] | None = None,
        patch_size: int = 3,
        num_inducing: int = 100,
        stochastic: bool = False,
        max_iterations: int = 60,
        steps: int | None = None,
        learning_rate: float = 0.02,
        batch_size: int | None = None,
        draw_width: int | None = None,
        **kwargs: Any,
    ) -> None:
        if activation not in (*ACTIVATIONS, SQUARED_EXPONENTIAL):
            raise UnknownNameError("activation", activation, [*ACTIVATIONS, SQUARED_EXPONENTIAL])
        if depth < 1 or num_inducing < 2 or (steps is not None and steps < 1) or (draw_width is not None and draw_width < 1):
            raise InvalidOptionError(
                f"depth={depth}, num_inducing={num_inducing}, steps={steps}, draw_width={draw_width}: at least 1, 2, 1 and 1"
            )
        if nu is not None and not nu > 0:
            raise InvalidOptionError(f"nu={nu} must be positive; math.inf is the infinitely wide network, None chooses")
        if image_shape is not None and (len(image_shape) != 3 or min(image_shape) < 1 or patch_size < 1 or patch_size % 2 == 0):
            raise InvalidOptionError(
                f"image_shape={image_shape!r}, patch_size={patch_size}: give channels, height and width, and an odd size"
            )
        self.image_shape = None if image_shape is None else (image_shape[0], image_shape[1], image_shape[2])
        self.patch_size = patch_size
        self.nu, self.depth, self.activation, self.num_inducing = nu, depth, activation, num_inducing
        self.max_iterations, self.batch_size, self.draw_width = (
            max_iterations,
            batch_size,
            draw_width or (256 if image_shape is None else 32),
        )
        self.steps = steps
        self.settings = MachineSettings(steps or (300 if stochastic else 40), stochastic=stochastic, learning_rate=learning_rate)
        self._chosen_rows = 0
        self._inflation = 1.0
        super().__init__(*args, **kwargs)

    @property
    def learned_nu(self) -> float:
        """The ``nu`` of the last fit."""
        return float(self._hyper["nu"])

    @property
    def kernel(self) -> GramKernel:
        """The learned kernel, inner coordinates."""
        h = self._hyper
        scales = WidthScales(h["inputs"], h["weights"], h["biases"], h["noise"])
        layout = Vectors() if self.image_shape is None else Images(self.image_shape, self.patch_size, h["pixels"], h["mixers"])
        return GramKernel(scales, h["roots"], h["Z"], self.activation, layout)

    def _initial_hyperparameters(self) -> dict[str, Tensor]:
        if self.image_shape is not None and math.prod(self.image_shape) != self.input_dim:
            raise InvalidOptionError(
                f"image_shape={self.image_shape} has {math.prod(self.image_shape)} numbers, not input_dim={self.input_dim}"
            )
        sobol = torch.quasirandom.SobolEngine(self.input_dim, scramble=True, seed=self.seed).draw(8, dtype=torch.float64)
        scales = self._default_scales(sobol)
        return _tree(Machine(self._plain_kernel(scales, sobol), scales.noise, INFINITE, 0.0))

    def _default_scales(self, like: Tensor) -> WidthScales:
        numbers = self.input_dim if self.image_shape is None else self.image_shape[0]
        return default_scales(numbers, self.depth, 1).to(like)

    def _plain_kernel(self, scales: WidthScales, Z: Tensor) -> GramKernel:
        """The infinitely wide network, with inducing inputs; each image contributes the patch around a pixel of its own."""
        layout: Vectors | Images = Vectors()
        P = Z.shape[0]
        if self.image_shape is not None:
            generator = torch.Generator().manual_seed(self.seed)
            num_pixels = self.image_shape[1] * self.image_shape[2]
            pixels = torch.cat([torch.randperm(num_pixels, generator=generator) for _ in range(-(-P // num_pixels))])[:P]
            layout = Images(self.image_shape, self.patch_size, pixels.to(Z.device), Z.new_zeros(0, self.patch_size**2, P, P))
        kernel = GramKernel(scales, Z.new_zeros(0, P, P), Z, self.activation, layout)
        return kernel if self.image_shape is None or self.depth == 1 else with_mixers(kernel)

    def _inducing_inputs(self) -> Tensor:
        return self._hyper["basis"]

    def _learn(self, X: Tensor, Y: Tensor, noise: Tensor | None) -> tuple[dict[str, Tensor], Tensor]:
        rows = X.shape[0]
        generator = torch.Generator().manual_seed(self.seed)
        machine = self._infinitely_wide(X, Y, noise, generator)
        nus = self._candidates(rows)
        settings = replace(self.settings, exact_rows=max(self.max_rows, _EVIDENCE_ROWS))
        if len(nus) > 1 or not math.isinf(nus[0]):
            if self._lik.name != "gaussian" or self.batch_size is not None or rows > _BATCHED:
                steps, rate, size = self.steps or 150, self.settings.learning_rate, self.batch_size or 512
                bound = BoundSettings(steps, rate, size if self.batch_size or rows > _BATCHED else rows)
                machine = train_machines_by_bound(machine, X, Y, self._lik, noise, nus, generator, bound)
                self._inflation = 1.0
            else:
                choice = Choice(nus[0], self._inflation if self.nu is None else 1.0)
                some = self._evidence_rows(X, generator)
                known = noise if noise is None or noise.shape[0] == 1 else noise[some]
                if len(nus) > 1:
                    choice = choose_nu(machine, X[some], Y[some], known, nus, generator, settings)
                self._inflation = choice.inflation
                if not math.isinf(choice.nu):
                    machine = self._descend(machine, X[some], Y[some], known, choice.nu, generator, settings)
        self._chosen_rows = rows if len(nus) > 1 else self._chosen_rows
        machine, basis = self._on_a_basis(machine, X, Y, noise, generator)
        if not math.isinf(machine.nu):
            machine = inflated(machine, self._inflation)
        own = machine.noise.expand(self.output_dim)
        return {**_tree(machine), "basis": basis}, own.unsqueeze(0) if noise is None else noise

    def _on_a_basis(
        self, machine: Machine, X: Tensor, Y: Tensor, noise: Tensor | None, generator: torch.Generator
    ) -> tuple[Machine, Tensor]:
        """What the top layer stands on where it is not exact, since predictions need more rows than Gram matrices do; and the
        noise there, by held-out rows."""
        if self._is_exact(X.shape[0]) or self._lik.name != "gaussian":
            return machine, machine.kernel.Z
        few = torch.randperm(X.shape[0], generator=generator)[: 2 * self.max_rows].sort().values.to(X.device)
        with torch.no_grad():
            basis = X[few][spread_rows(self._shared_kernel(machine.kernel, X[few], X[few]), self.max_rows)]
            if noise is not None:
                return machine, basis
            factor = jittered_cholesky(self._shared_kernel(machine.kernel, basis, basis))
            rows = torch.randperm(X.shape[0], generator=generator)[:_BATCHED].to(X.device)
            A = project(factor, self._shared_kernel(machine.kernel, basis, X[rows]))
            centre = self._default_scales(X).noise.log()
            prior = lambda logs: -0.5 * ((logs - centre) / LOG_SD["noise"]).square()  # noqa: E731
            held = max(1, round(_SHARE * rows.shape[0]))
            own = best_noise(A, gram_diagonal(machine.kernel, X[rows]), Y[rows].T, held, prior)
        return replace(machine, noise=own), basis

    def _descend(
        self,
        machine: Machine,
        X: Tensor,
        Y: Tensor,
        noise: Tensor | None,
        nu: float,
        generator: torch.Generator,
        settings: MachineSettings,
    ) -> Machine:
        if settings.stochastic:
            return train_machine(machine, X, Y, noise, nu, generator, settings)
        path = [value for value in _CANDIDATES if nu < value < INFINITE]
        return train_path(machine, X, Y, noise, [*path, nu], generator, settings)[-1]

    def _candidates(self, rows: int) -> tuple[float, ...]:
        if self.nu is not None:
            return (self.nu,)
        if rows < _MIN_ROWS or self.depth == 1:
            return (INFINITE,)
        if self._chosen_rows and self._chosen_rows / _GROWTH <= rows < self._chosen_rows * _GROWTH:
            return (self.learned_nu,)
        return _CANDIDATES if self._lik.name == "gaussian" else _LABEL_CANDIDATES

    @property
    def _has_closed_scales(self) -> bool:
        """Whether the infinitely wide network's kernel is that of :mod:`seqbdl.inference.infinite_width`."""
        return self.activation != SQUARED_EXPONENTIAL and self.image_shape is None

    def _infinitely_wide(self, X: Tensor, Y: Tensor, noise: Tensor | None, generator: torch.Generator) -> Machine:
        """``nngp``, and the inducing inputs under its kernel."""
        warm = self.kernel.scales if self._conditioning.num_rows else None
        some = self._evidence_rows(X, generator)
        known = noise if noise is None or noise.shape[0] == 1 else noise[some]
        if not self._has_closed_scales:
            first = self._default_scales(X) if warm is None else warm.to(X)
            machine = Machine(self._plain_kernel(first, X[:1]), first.noise.expand(self.output_dim), INFINITE, 0.0)
            machine = self._train_infinitely_wide(machine, X[some], Y[some], known, generator)
            own = machine.noise if self._lik.has_noise else torch.ones_like(machine.noise)
            scales = replace(machine.kernel.scales, noise=machine.noise.mean(0, keepdim=True))  # where the next fit starts
        elif self._lik.has_noise:
            scales, _ = infinite_width.learn_scales(
                X[some],
                Y[some],
                known,
                depth=self.depth,
                activation=self.activation,
                shared=True,
                start=warm,
                max_iterations=self.max_iterations,
            )
            own = scales.noise.expand(self.output_dim)
        else:
            some = evidence_rows(X.shape[0], self.seed, LABEL_ROWS).to(X.device)
            scales = infinite_width.learn_scales_of_latents(
                X[some], Y[some], self._lik, self.num_latents, depth=self.depth, activation=self.activation, start=warm
            )
            own = scales.noise.new_ones(self.output_dim)
        most = max(_SPREAD_ROWS if self.image_shape is None else _IMAGE_ROWS, self.num_inducing)
        few = torch.randperm(X.shape[0], generator=generator)[:most].sort().values.to(X.device)
        with torch.no_grad():
            kernel = self._plain_kernel(scales, X[:1])
            Z = X[few][spread_rows(gram(kernel, X[few], X[few]), self.num_inducing)]
            return Machine(self._plain_kernel(scales, Z), own, INFINITE, 0.0)

    def _evidence_rows(self, X: Tensor, generator: torch.Generator) -> Tensor:
        """Rows whose exact evidence trains the kernel: all, or a random sample of them. A bound on the evidence of all rows is
        worse: at few inducing inputs it takes what they cannot explain for noise, and smooths."""
        rows, most = X.shape[0], max(self.max_rows, _EVIDENCE_ROWS) if self.image_shape is None else _IMAGE_ROWS
        if rows <= most:
            return torch.arange(rows, device=X.device)
        return torch.randperm(rows, generator=generator)[: min(most, _EVIDENCE_ROWS)].sort().values.to(X.device)

    def _train_infinitely_wide(
        self, machine: Machine, X: Tensor, Y: Tensor, noise: Tensor | None, generator: torch.Generator
    ) -> Machine:
        """Scales of a kernel that :mod:`seqbdl.inference.infinite_width` does not know."""
        settings = MachineSettings(self.max_iterations, exact_rows=X.shape[0])
        if self._lik.has_noise:
            return train_machine(machine, X, Y, noise, INFINITE, generator, settings)

        def prior(machine: Machine) -> Tensor:
            return gram(machine.kernel, X, X)

        def learn(machine: Machine, pseudo: Tensor, variance: Tensor) -> Machine:
            return train_machine(machine, X, pseudo, variance, INFINITE, generator, replace(settings, max_iterations=15))

        return infinite_width.alternate_with_sites(prior, learn, machine, Y, self._lik, self.num_latents)

    def _shared_kernel(self, kernel: GramKernel, X1: Tensor, X2: Tensor) -> Tensor:
        """``batch x q1 x q2``, in parts where there is a block per pixel."""
        if not isinstance(kernel.layout, Images):
            return gram(kernel, X1, X2)
        each = kernel.layout.num_pixels * X2.shape[-2] * math.prod(X1.shape[:-2])
        parts = X1.split(max(1, _MOST_NUMBERS // max(1, each)), -2)
        return torch.cat([gram(kernel, part, X2) for part in parts], -2)

    def _kernel(self, X1: Tensor, X2: Tensor) -> Tensor:
        K = self._shared_kernel(self.kernel, X1, X2).unsqueeze(-3)
        return K.expand(*K.shape[:-3], self.num_latents, *K.shape[-2:])

    def _prior_variance(self, X: Tensor) -> Tensor:
        return gram_diagonal(self.kernel, X)

    def _prior_draw(self, n: int, generator: torch.Generator) -> Evaluate:
        latents = self.num_latents
        draws = prior_draws(self.kernel, n * latents, self.draw_width, generator)

        def evaluate(X: Tensor) -> Tensor:
            return draws(X).unflatten(0, (n, latents)).movedim(1, -1)

        return evaluate

    def _log_evidence(self) -> Tensor | None:
        return super()._log_evidence() if math.isinf(self.learned_nu) else None

    def _get_state(self) -> dict[str, Any]:
        return {**super()._get_state(), "chosen_rows": self._chosen_rows, "inflation": self._inflation}

    def _set_state(self, state: Mapping[str, Any]) -> None:
        super()._set_state(state)
        self._chosen_rows, self._inflation = state["chosen_rows"], state["inflation"]


def _tree(machine: Machine) -> dict[str, Tensor]:
    kernel = machine.kernel
    scales = {name: getattr(kernel.scales, name) for name in ("inputs", "weights", "biases")}
    nu = kernel.Z.new_tensor(machine.nu)
    tree = {**scales, "noise": kernel.scales.noise, "roots": kernel.roots, "Z": kernel.Z, "nu": nu}
    return {**tree, "pixels": kernel.layout.pixels, "mixers": kernel.layout.mixers} if isinstance(kernel.layout, Images) else tree
