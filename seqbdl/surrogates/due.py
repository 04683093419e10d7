"""``due``: a variational Gaussian process on features that keep distances, for many rows and any likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from seqbdl.errors import InvalidOptionError, UnknownNameError
from seqbdl.inference.features import fourier_draw, squared_exponential
from seqbdl.inference.inducing import BoundFit, BoundSettings, Parameters, spread_rows, train_bound
from seqbdl.networks import ModuleNetwork, Network
from seqbdl.networks.activations import ACTIVATIONS
from seqbdl.networks.residual import initial_blocks, residual_features
from seqbdl.surrogates.base import Evaluate
from seqbdl.surrogates.gp import fit_single_task_gp
from seqbdl.surrogates.inducing import InducingSurrogate
from seqbdl.surrogates.network_prior import NetworkSpec, standard_normal

_START_ROWS = 512  # a random sample, at most, whose exact Gaussian process is where training begins
_SOME_ROWS = 1024  # a random sample, at most, that inducing inputs are taken from
_MIN_ROWS = 8
_MOST_HELD = 2000
_SHARE = 0.15
_MARGIN = 0.01  # nats per row by which learned features must beat the plain process on held-out rows
_GATE = 0.3  # of a module's features where training begins, against the inputs over lengthscales
_SPREAD = 1.5  # prior standard deviation of the logarithms of lengthscales and of the amplitude around their start


class DUESurrogate(InducingSurrogate):
    """Deterministic uncertainty estimation (van Amersfoort et al. 2021): inducing inputs, mini-batches, bi-Lipschitz features.

    Features are inputs over lengthscales, through residual blocks with spectral normalization that begin as the identity: at
    the start the surrogate is a sparse Gaussian process. Everything follows the evidence lower bound by Adam, with a normal
    prior on the weights, until held-out rows are predicted no better; where features help by less than 0.01 nats per row,
    the plain process stays. The posterior under this kernel is then found from all rows: exact, and exactly updated, for up to
    ``max_rows`` rows with Gaussian noise, else on the inducing inputs. Memory does not grow with the rows.

    Args:
        network: Units inside each residual block; or a module (or a factory) that maps ``N x d`` inputs in [-1, 1] to ``N x F``
            features, which stand beside the inputs over lengthscales as they are, without spectral normalization.
        activation: Of the residual blocks: ``"erf"``, ``"relu"`` or ``"leaky_relu"``.
        num_features: ``F`` of a module.
        num_inducing: ``P``; ``update`` lets the basis grow to ``max_rows``.
        steps: Adam steps at most.
        learning_rate: Of Adam.
        batch_size: Rows per step.
        max_rows: Rows at most of the exact posterior, and inducing inputs at most after updates.
        num_frequencies: Fourier features of a function draw, every draw its own.
    """

    name = "due"
    carries = "the Gaussian process under the learned kernel: exactly up to max_rows rows, then sums over inducing inputs"
    update_tolerance = 0.01

    def __init__(
        self,
        *args: Any,
        network: NetworkSpec = (32, 32),
        activation: str = "erf",
        num_features: int = 4,
        num_inducing: int = 100,
        steps: int = 300,
        learning_rate: float = 0.01,
        batch_size: int = 512,
        max_rows: int = 512,
        num_frequencies: int = 512,
        **kwargs: Any,
    ) -> None:
        if activation not in ACTIVATIONS:
            raise UnknownNameError("activation", activation, list(ACTIVATIONS))
        self._given: tuple[Any, ...] = (network,)  # in a tuple: a module must not become a part of this one
        self.num_features = num_features
        widths = network if isinstance(network, Sequence) and not isinstance(network, str) else ()
        modular = isinstance(network, nn.Module) or callable(network)
        if not modular and (not widths or not all(isinstance(width, int) and width > 0 for width in widths)):
            raise InvalidOptionError(
                f"network={network!r}: give the units of every residual block, such as (32, 32), or a module"
            )
        if num_inducing < 2 or num_features < 1 or steps < 0 or batch_size < 1 or not learning_rate > 0:
            raise InvalidOptionError(
                f"num_inducing={num_inducing}, steps={steps}, batch_size={batch_size}, learning_rate={learning_rate}: give at "
                "least 2, 0 and 1, and a positive rate"
            )
        self.widths = tuple(widths)
        self.activation, self.num_inducing, self.num_frequencies = activation, num_inducing, num_frequencies
        self.settings = BoundSettings(steps, learning_rate, batch_size)
        super().__init__(*args, max_rows=max_rows, **kwargs)

    @property
    def uses_features(self) -> bool:
        """Whether the last fit kept learned features."""
        return any(bool((value != 0).any()) for key, value in self._hyper.items() if key == "gate" or key.startswith("V"))

    def features(self, X: Tensor) -> Tensor:
        """The learned features in units of the lengthscales, ``X: batch x q x d -> batch x q x d`` (``d + F`` for a module)."""
        return self._features(self._hyper, self._scaling.inputs(X)).to(X.dtype)

    def _initial_hyperparameters(self) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        scale = torch.full((self.input_dim,), 0.5 * self.input_dim**0.5, dtype=torch.float64)
        return {
            "lengthscale": scale.log(),
            "amplitude": scale.new_zeros(()),
            "noise": scale.new_full((self.output_dim,), -4.0),
            "Z": torch.quasirandom.SobolEngine(self.input_dim, scramble=True, seed=self.seed).draw(8, dtype=torch.float64),
            **self._initial_extractor(generator),
        }

    def _initial_extractor(self, generator: torch.Generator) -> Parameters:
        if self.widths:
            return initial_blocks(self.input_dim, self.widths, generator)
        (spec,) = self._given
        module = spec if isinstance(spec, nn.Module) else spec()
        if not isinstance(module, nn.Module):
            raise InvalidOptionError(f"network= returned a {type(module).__name__}; a factory returns a torch.nn.Module")
        extractor = ModuleNetwork(module, self.input_dim, self.num_features)
        self._extractor: tuple[Network, ...] = (extractor,)
        zero = torch.zeros((), dtype=torch.float64)
        return {"weights": standard_normal(extractor.num_params, generator=generator, like=zero), "gate": zero}

    def _inducing_inputs(self) -> Tensor:
        return self._hyper["Z"]

    def _features(self, hyper: Parameters, X: Tensor) -> Tensor:
        scaled = X * (-hyper["lengthscale"]).exp()
        if self.widths:
            return residual_features({key: hyper[key] for key in _extractor_keys(hyper)}, scaled, self.activation)
        flat = self._extractor[0].forward(hyper["weights"].unsqueeze(0), X.reshape(-1, self.input_dim))[0]
        return torch.cat([scaled, hyper["gate"] * flat.unflatten(0, X.shape[:-1])], -1)

    def _learn(self, X: Tensor, Y: Tensor, noise: Tensor | None) -> tuple[dict[str, Tensor], Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        rows = X.shape[0]
        fresh = {key: value.to(X.device) for key, value in self._initial_hyperparameters().items()}
        plain = {**fresh, **self._plain_process(X, Y, noise, generator)}
        some = torch.randperm(rows, generator=generator)[: max(_SOME_ROWS, self.num_inducing)].to(X.device)
        with torch.no_grad():
            U = self._features(plain, X[some])
            plain["Z"] = X[some][spread_rows(squared_exponential(U, U), self.num_inducing)]
        chosen = plain
        if rows >= _MIN_ROWS and self.settings.steps:
            known = None if noise is None else noise.expand(rows, self.output_dim)
            held = torch.randperm(rows, generator=generator)[: min(_MOST_HELD, max(1, round(_SHARE * rows)))].to(X.device)
            learned = _extractor_keys(plain)
            if self._lik.name != "gaussian" or rows > _START_ROWS:  # the plain process is not at its best yet
                fixed = {key: plain[key] for key in learned}
                first = {key: value for key, value in plain.items() if key not in learned}
                fit = self._train(first, fixed, X, Y, known, held, generator, self.settings)
                chosen = plain = {**fit.parameters, **fixed}
            none = replace(self.settings, steps=0)
            base = self._train(plain, {}, X, Y, known, held, generator, none).base
            opened = plain if self.widths else {**plain, "gate": torch.full_like(plain["gate"], _GATE)}
            fit = self._train(opened, {}, X, Y, known, held, generator, self.settings, plain)
            if fit.score - base > _MARGIN:
                chosen = fit.parameters
        return chosen, chosen["noise"].exp().unsqueeze(0) if noise is None else noise

    def _plain_process(self, X: Tensor, Y: Tensor, noise: Tensor | None, generator: torch.Generator) -> Parameters:
        """Lengthscales and noise of an exact Gaussian process on a sample of the rows."""
        if self._lik.name == "heteroscedastic" or not self._lik.has_noise:
            return {} if self._lik.has_noise else {"noise": X.new_zeros(self.output_dim)}
        some = torch.randperm(X.shape[0], generator=generator)[:_START_ROWS].sort().values.to(X.device)
        known = noise if noise is None or noise.shape[0] == 1 else noise[some]
        lengthscale, _, variance = fit_single_task_gp(X[some], Y[some], known)
        return {"lengthscale": lengthscale.log().mean(0), "noise": variance.mean(0).clamp_min(1e-6).log()}

    def _train(
        self,
        free: Parameters,
        fixed: Parameters,
        X: Tensor,
        Y: Tensor,
        noise: Tensor | None,
        held: Tensor,
        generator: torch.Generator,
        settings: BoundSettings,
        centre: Parameters | None = None,
    ) -> BoundFit:
        centre = free if centre is None else centre

        def blocks(parameters: Parameters, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            hyper = {**fixed, **parameters}
            U, Z = self._features(hyper, rows), self._features(hyper, hyper["Z"])
            amplitude = hyper["amplitude"].exp()
            diagonal = amplitude.expand(rows.shape[0])
            return amplitude * squared_exponential(Z, Z), amplitude * squared_exponential(Z, U), diagonal

        def penalty(parameters: Parameters) -> Tensor:
            total = X.new_zeros(())
            for key, value in parameters.items():
                if key in ("lengthscale", "amplitude", "noise"):
                    total = total + 0.5 * ((value - centre[key]) / _SPREAD).square().sum()
                elif key not in ("Z", "gate"):
                    total = total + 0.5 * value.square().sum()
            return total

        return train_bound(blocks, penalty, free, X, Y, self._lik, noise, held, generator, settings)

    def _kernel(self, X1: Tensor, X2: Tensor) -> Tensor:
        U1, U2 = self._features(self._hyper, X1), self._features(self._hyper, X2)
        K = self._hyper["amplitude"].exp() * squared_exponential(U1, U2)
        K = K.unsqueeze(-3)
        return K.expand(*K.shape[:-3], self.num_latents, *K.shape[-2:])

    def _prior_variance(self, X: Tensor) -> Tensor:
        return self._hyper["amplitude"].exp().expand(X.shape[0])

    def _prior_draw(self, n: int, generator: torch.Generator) -> Evaluate:
        def shared(X: Tensor) -> Tensor:
            return self._features(self._hyper, X).unsqueeze(0)

        noise = self._hyper["noise"]
        dim = self.input_dim + (0 if self.widths else self.num_features)
        draw = fourier_draw(shared, self.num_latents, dim, n, self.num_frequencies, generator, noise)
        root = (0.5 * self._hyper["amplitude"]).exp()
        return lambda X: root * draw(X)


def _extractor_keys(hyper: Parameters) -> set[str]:
    """Names of the extractor's parameters."""
    return set(hyper) - {"lengthscale", "amplitude", "noise", "Z"}
