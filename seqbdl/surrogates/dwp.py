"""``dwp``: a deep Wishart process, a mixture of Gaussian processes over sampled representations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.deep_wishart import DeepWishart, Parameters, WishartSettings, log_bound, start_parameters, train_wishart
from seqbdl.inference.inducing import spread_rows
from seqbdl.inference.infinite_width import kernel
from seqbdl.inference.wishart_functions import Features, FrozenLayers, freeze, random_features
from seqbdl.posteriors.inducing import InducingSums, add_gaussian, no_rows, project, with_inputs
from seqbdl.posteriors.joint_gaussian import KERNEL_JITTER, safe_cholesky
from seqbdl.surrogates.network_prior import standard_normal
from seqbdl.surrogates.particle import ParticleSurrogate

_BOUND_SAMPLES = 32
_BOUND_ROWS = 512
_CANDIDATES = ((3,), (10,))
_FIRST = 8  # inducing inputs before any data


class DWPSurrogate(ParticleSurrogate):
    """Bayes over the Gram matrices between layers (Ober and Aitchison 2021), where ``dkm`` takes their best values.

    After training, ``num_components`` samples of the hidden layers are frozen as functions of the inputs; given each, the
    posterior is a Gaussian process, conditioned exactly on sums over the rows, and ``num_members / num_components`` functions
    of it are the particles. ``update`` conditions every component exactly and weighs it by how well it had predicted, tempered to
    an effective sample size of ``min_ess``: among a few samples of the representation a single one would soon hold all weight.

    Args:
        network: Degrees of freedom of the hidden layers (the widths of a deep Gaussian process); ``None``: one layer of 3 or of
            10, whichever has the higher bound after a quarter of the steps.
        num_components: ``S``, samples of the hidden layers.
        num_inducing: ``P``, rows at which Gram matrices are sampled.
        steps: Adam steps.
        learning_rate: Of Adam.
        batch_size: Rows per step.
        draw_width: Random features per layer of a function.
        memory: Rows on which the top stands at most: the first so many are its basis, and till then every component is
            the exact process given all rows, in whatever calls they came.
        log_evidence: The evidence lower bound, an estimate by 32 samples; ``None`` after ``update``.
    """

    name = "dwp"
    carries = "every component's Gaussian process, exactly up to memory rows, and its weight"
    likelihoods = ("gaussian",)
    update_tolerance = 0.05
    _draws_in_single_precision = False

    def __init__(
        self,
        *args: Any,
        network: Sequence[int] | None = None,
        activation: str = "erf",
        num_members: int = 128,
        num_components: int = 16,
        num_inducing: int = 50,
        steps: int = 200,
        learning_rate: float = 0.05,
        batch_size: int = 256,
        draw_width: int = 128,
        memory: int = 300,
        **kwargs: Any,
    ) -> None:
        if num_components < 2 or num_members % num_components or num_inducing < 2 or steps < 0 or draw_width < 1:
            raise InvalidOptionError(
                f"num_members={num_members} must be a multiple of num_components={num_components} >= 2, "
                f"num_inducing={num_inducing} at least 2, steps={steps} at least 0, draw_width={draw_width} at least 1"
            )
        given = network if isinstance(network, Sequence) and not isinstance(network, str) else None
        if network is not None and not (given and all(isinstance(nu, int) and nu > 0 for nu in given)):
            raise InvalidOptionError(f"network={network!r}: give the degrees of freedom of every hidden layer, such as (8,)")
        self._given_nus = tuple(given) if given else None
        self.nus = self._given_nus or _CANDIDATES[-1]
        self.num_components, self.num_inducing, self.draw_width = num_components, num_inducing, draw_width
        self.settings = WishartSettings(steps, learning_rate, batch_size=batch_size)
        layers = (1,) * (len(self.nus) + 1)  # only the scales of the infinitely wide network are used
        super().__init__(*args, network=layers, activation=activation, num_members=num_members, memory=memory, **kwargs)
        Z = torch.quasirandom.SobolEngine(self.input_dim, scramble=True, seed=self.seed).draw(_FIRST, dtype=torch.float64)
        self._elbo: Tensor | None = None
        self._evidence = Z.new_zeros(num_components)  # log predictive densities of what came after the fit
        scales, noise = self._prior.scales, self._prior.noise
        generator = torch.Generator().manual_seed(self.seed)
        with torch.no_grad():
            model = DeepWishart(self.nus, activation, Z)
            start = start_parameters(model, scales, noise, Z.new_zeros(_FIRST, self.output_dim), 1e-9, generator)
            self._freeze(model, start, generator)
            self._z = self._coefficients()

    # ------------------------------------------------------------------ the components and their functions

    def _freeze(self, model: DeepWishart, parameters: Parameters, generator: torch.Generator) -> None:
        """Hidden layers, the random features of the particles' tops, and the tops before any row."""
        S, R, m = self.num_components, self.num_members // self.num_components, self.output_dim
        self._layers = freeze(model, parameters, S, self.draw_width, generator)
        self._top = random_features((R, S), self.nus[-1], self.draw_width, generator, model.Z)
        self._heads = standard_normal(R, S, self.draw_width + 1, m, generator=generator, like=model.Z)
        self._white = standard_normal(R, S * m, self.memory, generator=generator, like=model.Z)
        self._basis = model.Z.new_zeros(S, 0, self.nus[-1])  # S x B x nu
        self._sums = no_rows(model.Z.new_zeros(S * m, 0, 0), S * m)

    def _top_kernel(self, phi1: Tensor, phi2: Tensor) -> Tensor:
        return self._layers.kernel(len(self.nus), phi1, phi2)

    def _top_prior(self, phi: Tensor) -> Tensor:
        """The particles' prior functions, ``S x N x nu`` to ``R x S x N x m``."""
        scales = self._layers.scales
        return self._top(scales, len(self.nus), self._builder.activation, phi.unsqueeze(0)) @ self._heads

    def _coefficients(self) -> Tensor:
        """What corrects the prior functions, ``(R S) x (B m)``."""
        S, m = self.num_components, self.output_dim
        B = self._basis.shape[1]
        v = self._sums.draw(self._white[..., :B].to(self._basis))  # R x (m S) x B, the output slower
        prior = self._top_prior(self._basis).permute(0, 3, 1, 2).flatten(1, 2).unsqueeze(-1)  # R x (m S) x B x 1
        own = torch.linalg.solve_triangular(self._sums.factor, prior, upper=False)
        rest = torch.linalg.solve_triangular(self._sums.factor.transpose(-1, -2), v.unsqueeze(-1) - own, upper=True)
        return rest.squeeze(-1).unflatten(1, (m, S)).permute(0, 2, 3, 1).reshape(self.num_members, B * m)

    def _members(self, X: Tensor, picks: Tensor | None = None) -> Tensor:
        flat = X.reshape(-1, X.shape[-1])
        phi = self._layers.hidden(flat)
        S, m = self.num_components, self.output_dim
        coefficients = self._z.reshape(self.num_members // S, S, self._basis.shape[1], m)
        values = self._top_prior(phi) + self._top_kernel(phi, self._basis) @ coefficients  # R x S x N x m
        values = values.flatten(0, 1)
        values = values if picks is None else values[picks]
        return values.unflatten(1, X.shape[:-1])

    # ------------------------------------------------------------------ learning

    def _infer(self, X: Tensor, Y: Tensor, variance: Tensor, warm: bool) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        n = X.shape[0]
        scales, noise = self._prior.scales, self._prior.noise
        some = torch.randperm(n, generator=generator)[:1000].sort().values.to(X.device)
        order = some[spread_rows(kernel(scales, X[some], X[some], self._builder.activation)[0], self.memory)]
        picks = order if order.shape[0] <= self.num_inducing else order[_evenly(order.shape[0], self.num_inducing)]
        learned = self.fixed_noise is None and self._Yvar is None
        known = None if learned else variance
        few = torch.arange(n) if n <= _BOUND_ROWS else torch.randperm(n, generator=generator)[:_BOUND_ROWS]
        few = few.to(X.device)

        def bound(model: DeepWishart, parameters: Parameters) -> Tensor:
            own = None if known is None else known[few]
            return log_bound(model, parameters, X[few], Y[few], own, n / few.shape[0], _BOUND_SAMPLES, generator)

        contest = (self._given_nus,) if self._given_nus else _CANDIDATES
        short = replace(self.settings, steps=self.settings.steps // (1 if len(contest) == 1 else 4))
        fits = []
        for nus in contest:
            model = DeepWishart(nus, self._builder.activation, X[picks])
            start = start_parameters(model, scales, noise, Y[picks], n / picks.shape[0], generator)
            parameters = train_wishart(model, start, X, Y, known, generator, short)
            fits.append((bound(model, parameters) if len(contest) > 1 else 0.0, model, parameters))
        _, model, parameters = max(fits, key=lambda fit: float(fit[0]))
        if len(contest) > 1:
            rest = replace(self.settings, steps=self.settings.steps // 2)
            parameters = train_wishart(model, parameters, X, Y, known, generator, rest)
        self.nus = model.nus
        if learned:
            self._prior = replace(self._prior, noise=parameters["noise"].exp())
            variance = self._prior.noise.expand(n, -1).clamp_min(1e-7)
        self._freeze(model, parameters, generator)
        others = torch.ones(n, dtype=torch.bool, device=X.device)
        others[order] = False
        self._join(X[order], Y[order], variance[order])
        self._add(X[others], Y[others], variance[others])
        self._elbo = bound(model, parameters)
        self._evidence = X.new_zeros(self.num_components)
        return self._coefficients(), X.new_zeros(self.num_members)

    def _join(self, X: Tensor, Y: Tensor, variance: Tensor) -> None:
        """Absorb rows that become a part of the basis, exactly.

        A basis holds ``u = f + e``, ``e`` of variance ``J``, without which its factor would be lost in rounding. ``J`` is taken
        from the row's own noise, so that ``y = u + rest`` with what remains of it: the Gaussian process given ``y = f + noise``,
        to rounding. A row's ``J`` and its row of the factor do not depend on the rows after it, nor on the calls they come in.
        """
        S, m, B = self.num_components, self.output_dim, self._basis.shape[1]
        phi = self._layers.hidden(X)
        K, A = self._top_kernel(phi, phi), project(self._sums.factor[:S], self._top_kernel(self._basis, phi))
        lift = torch.minimum(KERNEL_JITTER * K.diagonal(dim1=-2, dim2=-1), 0.5 * variance.amin(-1))  # S x rows
        total = K + torch.diag_embed(lift)
        corner = safe_cholesky(total - A.transpose(-1, -2) @ A)
        sums = with_inputs(self._sums, A.repeat(m, 1, 1), corner.repeat(m, 1, 1))
        levels = variance.T.repeat_interleave(S, 0) - lift.repeat(m, 1)  # (m S) x rows
        own = sums.factor[:, B:].transpose(-1, -2)
        diagonal = total.diagonal(dim1=-2, dim2=-1).repeat(m, 1)
        self._sums = add_gaussian(sums, own, diagonal, Y.T.repeat_interleave(S, 0), levels)
        self._basis = torch.cat([self._basis, phi], 1)

    def _add(self, X: Tensor, Y: Tensor, variance: Tensor) -> None:
        """Absorb rows as the basis sees them."""
        S, m, last = self.num_components, self.output_dim, len(self.nus)
        for part in torch.arange(X.shape[0], device=X.device).split(512):
            phi = self._layers.hidden(X[part])
            A = project(self._sums.factor[:S], self._top_kernel(self._basis, phi))
            outcomes = Y[part].T.repeat_interleave(S, 0)  # (m S) x rows
            levels = variance[part].T.repeat_interleave(S, 0)
            diagonal = self._layers.variance(last, phi).repeat(m, 1)
            self._sums = add_gaussian(self._sums, A.repeat(m, 1, 1), diagonal, outcomes, levels)

    def _absorb(self, X: Tensor, Y: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        S, R = self.num_components, self.num_members // self.num_components
        before = self._sums.bound
        room = max(0, self.memory - self._basis.shape[1])
        self._join(X[:room], Y[:room], variance[:room])
        self._add(X[room:], Y[room:], variance[room:])
        gained = (self._sums.bound - before).unflatten(0, (-1, S)).sum(0)
        self._elbo = None
        self._evidence = self._evidence + gained
        return self._coefficients(), tempered(self._evidence, self.min_ess).repeat(R)

    def _log_evidence(self) -> Tensor | None:
        return self._elbo

    # ------------------------------------------------------------------ state

    def _own_state(self) -> dict[str, Any]:
        return {
            "nus": list(self.nus),
            "layers": self._layers.tree(),
            "top": {"weights": self._top.weights, "phases": self._top.phases},
            "heads": self._heads,
            "white": self._white,
            "basis": self._basis,
            "sums": self._sums.tree(),
            "elbo": self._elbo,
            "evidence": self._evidence,
        }

    def _set_own_state(self, state: Mapping[str, Any]) -> None:
        self.nus = tuple(state["nus"])
        self._layers = FrozenLayers.of(state["layers"], self._builder.activation, self.nus)
        self._top = Features(**state["top"])
        self._heads, self._white, self._basis = state["heads"], state["white"], state["basis"]
        self._sums = InducingSums(**state["sums"])
        self._elbo, self._evidence = state["elbo"], state["evidence"]


def tempered(log_weights: Tensor, min_ess: float) -> Tensor:
    """The largest power of the weights, at most 1, whose effective sample size is at least ``min_ess`` of their number.

    Args:
        log_weights: ``S``.
        min_ess: A share, in (0, 1].
    """

    def share(power: float) -> float:
        return float(1.0 / (power * log_weights).softmax(0).square().sum()) / log_weights.shape[0]

    low, high = 0.0, 1.0
    if share(high) >= min_ess:
        return log_weights
    for _ in range(50):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if share(middle) >= min_ess else (low, middle)
    return low * log_weights


def _evenly(count: int, size: int) -> Tensor:
    """``size`` indices spread over ``count``."""
    return torch.linspace(0, count - 1, size).round().long()
