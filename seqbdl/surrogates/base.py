"""The surrogate contract: one interface between every posterior and every decision loop."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from botorch.acquisition.objective import PosteriorTransform
from botorch.posteriors.posterior import Posterior
from torch import Tensor

from seqbdl._checks import check_data, check_inputs
from seqbdl.errors import InvalidOptionError, ShapeError
from seqbdl.likelihoods import get_likelihood
from seqbdl.posteriors import FunctionDraws, Prediction
from seqbdl.serialization import generator_state, restore_generator
from seqbdl.surrogates.botorch_model import BoTorchModel
from seqbdl.surrogates.observing import predict_observations
from seqbdl.surrogates.scaling import Scaling

Evaluate = Callable[[Tensor], Tensor]


class Surrogate(BoTorchModel):
    """A posterior over functions that plugs into every loop, and into BoTorch and Ax, as it is.

    Subclasses work in inner coordinates (unit-cube inputs, standardized outcomes, float64) and write the hooks at the
    end of the class; this class does the checks, the units, the dtypes and the bookkeeping, its base classes do the state and
    BoTorch's conventions.

    Args:
        input_dim: ``d``, columns of ``X``.
        output_dim: ``m``: columns of ``Y``; of the categorical likelihood the number of classes, ``Y`` has one column.
        likelihood: ``"gaussian"``, or another of :attr:`likelihoods`.
        bounds: ``2 x d`` lower and upper bounds that map inputs to the unit cube; ``None``: by the mean and the standard
            deviation of the data, to those of the uniform distribution on it.
        outcome_bounds: ``2 x m`` bounds of outcomes (not hard ones): their middle becomes 0 inside and half their width 1;
            ``None``: by the mean and the standard deviation of the data. A stream's first rows may not show how far later ones
            reach.
        noise: Known variance of the observation noise, in squared units of ``Y``; ``None``: learned.
        seed: Seeds the surrogate's own generator. The global generator is never used.
        keep_data: Whether the rows stay at hand beside the posterior, for acquisition functions that read ``train_inputs`` and
            for tempering by a new fit; ``False``: only their number. Filters, and heads on fixed features, then are of one
            size, however many rows come.
        training_data: ``X``, ``Y`` and ``Yvar`` (or ``None``) for :meth:`fit_training_data`; BoTorch and Ax construct a
            model with its data and fit it afterwards.

    Raises:
        UnknownNameError: The likelihood does not exist.
        InvalidOptionError: A dimension is not positive, bounds are reversed, the noise is negative, or the method does not
            support the likelihood.
    """

    likelihoods: ClassVar[tuple[str, ...]] = ("gaussian",)
    """Names of the likelihoods that the method supports."""

    carries: ClassVar[str] = ""
    """What ``update`` carries from the old data to the new posterior."""
    update_tolerance: ClassVar[float] = 0.0
    """By how many standard deviations predictions after ``update(A); update(B)`` may differ from those after ``fit(A
    and B)`` under the same hyperparameters; 0: exact up to rounding."""

    def __init__(
        self,
        input_dim: int,
        output_dim: int = 1,
        likelihood: str = "gaussian",
        *,
        bounds: Tensor | None = None,
        noise: float | None = None,
        seed: int = 0,
        outcome_bounds: Tensor | None = None,
        keep_data: bool = True,
        training_data: tuple[Tensor, Tensor, Tensor | None] | None = None,
    ) -> None:
        super().__init__()
        self._lik = get_likelihood(likelihood)
        if likelihood not in self.likelihoods:
            raise InvalidOptionError(f"likelihood={likelihood!r}: {self.name!r} supports {', '.join(self.likelihoods)}")
        if input_dim < 1 or output_dim < 1:
            raise InvalidOptionError(f"input_dim={input_dim} and output_dim={output_dim} must be at least 1")
        if noise is not None and not (noise >= 0.0):
            raise InvalidOptionError(f"noise={noise} is a variance; it must be at least 0, or None to learn it")
        if noise is not None and not self._lik.has_noise:
            raise InvalidOptionError(f"noise={noise}: the {likelihood} likelihood has no noise variance; leave it out")
        if likelihood == "categorical" and output_dim < 2:
            raise InvalidOptionError(f"output_dim={output_dim} is the number of classes; the categorical likelihood needs 2")
        if bounds is not None:
            bounds = torch.as_tensor(bounds, dtype=torch.float64)
            if bounds.shape != (2, input_dim) or not bool((bounds[1] > bounds[0]).all()):
                raise InvalidOptionError("bounds must be 2 x input_dim with every lower bound below its upper bound")
        if outcome_bounds is not None:
            outcome_bounds = torch.as_tensor(outcome_bounds, dtype=torch.float64)
            if not self._lik.has_noise:
                raise InvalidOptionError(f"outcome_bounds: the {likelihood} likelihood has no scale; leave them out")
            if outcome_bounds.shape != (2, output_dim) or not bool((outcome_bounds[1] > outcome_bounds[0]).all()):
                raise InvalidOptionError("outcome_bounds must be 2 x output_dim with every lower bound below its upper bound")
        self.input_dim = input_dim
        self.output_dim = output_dim
        self.num_latents = self._lik.num_latents(output_dim)
        self.num_targets = self._lik.num_targets(output_dim)
        self.fixed_noise = noise
        self.seed = seed
        self.generator = torch.Generator().manual_seed(seed)
        self.keep_data = keep_data
        self._bounds = bounds
        self._outcome_bounds = outcome_bounds
        self._scaling = Scaling.identity(input_dim, output_dim, bounds, outcome_bounds)
        self._num_rows = 0
        self._inherits = False
        self._X: Tensor | None = None
        self._Y: Tensor | None = None
        self._Yvar: Tensor | None = None
        self._output_indices: list[int] | None = None
        self._training_data = training_data
        self.eval()

    _draws_in_single_precision: ClassVar[bool] = False
    """Whether function draws may be evaluated in the precision of ``X``: sums of products of weights can, differences of
    nearly equal matrices cannot."""

    # ------------------------------------------------------------------ learning

    def fit(self, X: Tensor, Y: Tensor, Yvar: Tensor | None = None) -> Self:
        """Condition the prior on the data, forgetting earlier data.

        Args:
            X: ``n x d``.
            Y: ``n x m``; class indices ``n x 1`` under the categorical likelihood.
            Yvar: ``n x m`` known noise variances, in squared units of ``Y``.

        Raises:
            ShapeError: Rows or columns do not match.
            InvalidDataError: NaN, infinite values, negative variances, or labels out of range.
        """
        self._require_whole("fit")
        X, Y, Yvar = self._check_data(X, Y, Yvar)
        X, Y = X.detach(), Y.detach()
        as_they_are = None if self._lik.has_noise else self.output_dim
        inputs, outcomes = X.to(torch.float64), Y.to(torch.float64)
        with self._unchanged_if_it_fails():
            self._scaling = Scaling.learn(inputs, outcomes, self._input_bounds(inputs), as_they_are, self._outcome_bounds)
            self._X, self._Y, self._Yvar, self._num_rows = X, Y, None if Yvar is None else Yvar.detach(), X.shape[0]
            self._inherits = False
            with torch.enable_grad():  # hyperparameters are found by gradients, whatever the caller's mode
                self._fit(self._scaling.inputs(X), self._scaling.outcomes(Y), self._inner_noise(Yvar))
            self._settle()
            self._drop_rows()
        return self

    def _input_bounds(self, X: Tensor) -> Tensor | None:
        """``2 x d`` that become the unit cube for the data ``X: n x d``; ``None``: their spread decides."""
        return self._bounds

    def _drop_rows(self) -> None:
        """Where rows are not kept: empty tensors in their place, which tell types, and that there was a fit."""
        if not self.keep_data and self._X is not None and self._Y is not None:
            self._X, self._Y = self._X[:0].clone(), self._Y[:0].clone()
            self._Yvar = None if self._Yvar is None else self._Yvar[:0].clone()

    def update(self, X: Tensor, Y: Tensor, Yvar: Tensor | None = None) -> Self:
        """The posterior becomes the prior: absorb new data, in time that does not grow with the old.

        Scales and hyperparameters stay as they are; a surrogate without data is fitted.

        Args:
            X: ``n x d`` new inputs.
            Y: ``n x m`` new outcomes.
            Yvar: ``n x m`` known noise variances.

        Raises:
            ShapeError, InvalidDataError: As :meth:`fit`. Whatever fails, here or there, leaves the posterior as it was.
        """
        self._require_whole("update")
        X, Y, Yvar = self._check_data(X, Y, Yvar)
        if self._X is None or self._Y is None:
            return self.fit(X, Y, Yvar)
        X, Y = X.detach().to(self._X), Y.detach().to(self._Y)
        with self._unchanged_if_it_fails():
            self._update(self._scaling.inputs(X), self._scaling.outcomes(Y), self._inner_noise(Yvar))
            self._settle()
            if self._Yvar is not None or Yvar is not None:
                old = self._known_variances(self._Yvar, self._Y)
                self._Yvar = torch.cat([old, self._known_variances(Yvar, Y).to(old)])
            self._X, self._Y = torch.cat([self._X, X]), torch.cat([self._Y, Y])
            self._num_rows += X.shape[0]
            self._drop_rows()
        return self

    def _check_data(self, X: Tensor, Y: Tensor, Yvar: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        if Yvar is not None and not self._lik.has_noise:
            raise InvalidOptionError(f"Yvar: the {self._lik.name} likelihood has no noise variance; leave it out")
        X, Y, Yvar = check_data(X, Y, Yvar, self.input_dim, self.num_targets)
        self._lik.check_targets(Y, self.output_dim)
        return X, Y, Yvar

    def _known_variances(self, Yvar: Tensor | None, Y: Tensor) -> Tensor:
        if Yvar is not None:
            return Yvar.detach()
        return self.noise_variance.to(Y).expand_as(Y)

    def _inner_noise(self, Yvar: Tensor | None) -> Tensor | None:
        """Known inner noise variances, ``n x m`` or ``1 x m``; ``None`` when they are to be learned."""
        if Yvar is not None:
            return self._scaling.variances(Yvar.detach())
        if self.fixed_noise is not None:
            known = torch.full((1, self.output_dim), self.fixed_noise, dtype=torch.float64, device=self._scaling.y_std.device)
            return self._scaling.variances(known)
        return None

    # ------------------------------------------------------------------ answering

    def posterior(  # type: ignore[override]  # BoTorch's two base classes disagree about the arguments
        self,
        X: Tensor,
        output_indices: list[int] | None = None,
        observation_noise: bool | Tensor = False,
        posterior_transform: PosteriorTransform | None = None,
    ) -> Posterior:
        """The joint posterior of the latent function (or of observations) at q points, differentiable in ``X``.

        Args:
            X: ``batch x q x d``; a 2-D ``q x d`` is one joint batch.
            output_indices: Which outputs; all by default.
            observation_noise: ``True`` adds the noise variance; a tensor, broadcastable to ``batch x q x m``, adds
                those variances, in squared units of ``Y``.
            posterior_transform: BoTorch's.

        Returns:
            A posterior of shape ``broadcast(batch, batch_shape) x q x m``.
        """
        X = check_inputs("X", X, self.input_dim)
        if X.shape[-2] == 0:
            raise ShapeError("X has no points (q = 0); ask for at least one")
        noise: Tensor | None = None
        if observation_noise is not False and not self._lik.has_noise:
            raise InvalidOptionError(
                f"observation_noise: the posterior speaks of the latent function, and {self._lik.name} observations are not "
                "that plus noise; read predict(X)"
            )
        if isinstance(observation_noise, Tensor):
            noise = observation_noise
        elif observation_noise:
            noise = self._all_noise_variance.reshape(1, -1)
        varying = observation_noise is True and self._lik.name == "heteroscedastic"
        posterior = self._posterior(X, self._resolve_outputs(output_indices), None if varying else noise, varying)
        if posterior_transform is not None:
            return posterior_transform(posterior=posterior, X=X)
        return posterior

    def predict(self, X: Tensor) -> Prediction:
        """Predictions of observations, with their epistemic and aleatoric parts; see :class:`Prediction`.

        Args:
            X: ``batch x q x d``.
        """
        with torch.no_grad():
            if self._lik.name != "gaussian":
                X = check_inputs("X", X, self.input_dim)
                scaling = self._scaling
                latents, weights = self._latent_samples(scaling.inputs(X))
                noise, outputs = self._noise(), self._output_indices
                return predict_observations(
                    self._lik, latents, weights, noise, scaling.y_mean, scaling.y_std, outputs, X.dtype, self.seed
                )
            mean, variance = self._marginals(X, observation_noise=False)
            noise = self.noise_variance.to(X).expand(variance.shape)
            return Prediction(
                mean=mean,
                std=(variance + noise).sqrt(),
                epistemic_std=variance.sqrt(),
                aleatoric_std=noise.sqrt(),
                _quantile=lambda p: self._predictive_quantile(X, p),
            )

    def _predictive_quantile(self, X: Tensor, p: Tensor) -> Tensor:
        with torch.no_grad():
            mean, variance = self._marginals(X, observation_noise=True)
            return mean + torch.special.ndtri(p.to(torch.float64)).to(X) * variance.sqrt()

    def _marginals(self, X: Tensor, observation_noise: bool) -> tuple[Tensor, Tensor]:
        """Mean and variance, ``batch x q x m``, without the covariance between rows where nothing needs it."""
        X = check_inputs("X", X, self.input_dim)
        if self.batch_shape:
            joint: Any = self.posterior(X, observation_noise=observation_noise)
            return joint.mean, joint.variance
        alone: Any = self.posterior(X.unsqueeze(-2), observation_noise=observation_noise)
        return alone.mean.squeeze(-2), alone.variance.squeeze(-2)

    def sample_functions(self, n: int, generator: torch.Generator | None = None) -> FunctionDraws:
        """Draw ``n`` functions of the posterior once; see :class:`FunctionDraws`.

        Args:
            n: How many.
            generator: Where randomness comes from; the surrogate's own generator by default.

        Returns:
            A callable ``X: batch x q x d -> n x batch x q x m``, in the units of ``Y``.
        """
        if n < 1:
            raise InvalidOptionError(f"n={n}; draw at least one function")
        inner = self._draw(n, self.generator if generator is None else generator)
        scaling, outputs, m = self._scaling, self._output_indices, self.output_dim
        single = self._draws_in_single_precision

        def evaluate(X: Tensor) -> Tensor:
            X = check_inputs("X", X, self.input_dim)
            points = scaling.inputs(X)
            values = scaling.y_mean + scaling.y_std * inner(points.to(X) if single else points)[..., :m]
            return (values if outputs is None else values[..., outputs]).to(X.dtype)

        return FunctionDraws(evaluate, n, self.num_outputs)

    def sample_values(self, X: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Values of ``n`` function draws at these points alone, without gradients: in law ``sample_functions(n)(X)``, and cheaper
        where the joint posterior of a few points costs less than a whole function.

        Args:
            X: ``q x d``.
            n: How many.
            generator: Where randomness comes from; the surrogate's own generator by default.

        Returns:
            ``n x q x m``, in the units of ``Y``.
        """
        if n < 1:
            raise InvalidOptionError(f"n={n}; draw at least once")
        X = check_inputs("X", X, self.input_dim)
        if X.dim() != 2:
            raise ShapeError(f"X has shape {tuple(X.shape)}; draws are joint over the rows of q x {self.input_dim}")
        with torch.no_grad():
            inner = self._draw_at(self._scaling.inputs(X), n, self.generator if generator is None else generator)
        values = self._scaling.y_mean + self._scaling.y_std * inner[..., : self.output_dim]
        return (values if self._output_indices is None else values[..., self._output_indices]).to(X.dtype)

    def log_probs(self, X: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Class log-probabilities under ``n`` function draws: what scores of joint predictions need.

        The generator is read, not advanced: under one state every ``X`` sees the same ``n`` functions.

        Args:
            X: ``batch x q x d``.
            n: How many functions.
            generator: Where randomness comes from; the surrogate's own generator by default.

        Returns:
            ``n x batch x q x C`` (Bernoulli: ``C = 2``, class 0 first; with several outputs ``n x batch x q x m x 2``).

        Raises:
            InvalidOptionError: The likelihood has no classes, or this is a view of some outputs.
        """
        if not self._lik.is_discrete:
            raise InvalidOptionError(f"log_probs: the {self._lik.name} likelihood has no classes; read predict(X)")
        if self._output_indices is not None:
            raise InvalidOptionError("log_probs needs all outputs; this is a view of some; use the surrogate it came from")
        source = self.generator if generator is None else generator
        draws = self.sample_functions(n, restore_generator(generator_state(source)))
        return self._lik.class_log_probs(draws(X))

    def log_evidence(self) -> float | None:
        """Log marginal likelihood of the data in the units of ``Y``, where the method defines one; else ``None``."""
        inner = self._log_evidence()
        if inner is None or self._Y is None:
            return None
        return float(inner - self._num_rows * self._scaling.y_std.log().sum())

    # ------------------------------------------------------------------ what was learned from

    @property
    def num_rows(self) -> int:
        """How many rows the posterior has learned since its prior, at hand or not."""
        return self._num_rows

    @property
    def train_inputs(self) -> tuple[Tensor] | None:
        """``(n x d,)`` in the user's units, or ``None`` before any data; empty where ``keep_data=False``."""
        return None if self._X is None else (self._X,)

    @property
    def train_targets(self) -> Tensor | None:
        """``n x m`` in the user's units, or ``None`` before any data."""
        if self._Y is None or self._output_indices is None:
            return self._Y
        return self._Y[:, self._output_indices]

    @property
    def _all_noise_variance(self) -> Tensor:
        return self._noise() * self._scaling.y_std.square()

    @property
    def noise_variance(self) -> Tensor:
        """Variance of the observation noise per output, ``m``, in squared units of ``Y``."""
        noise = self._all_noise_variance
        return noise if self._output_indices is None else noise[self._output_indices]

    # ------------------------------------------------------------------ hooks, in inner coordinates

    @abstractmethod
    def _fit(self, X: Tensor, Y: Tensor, noise: Tensor | None) -> None:
        """Condition the prior on ``X: n x d``, ``Y: n x m``; ``noise``: ``n x m`` or ``1 x m`` known variances, or
        ``None``."""

    @abstractmethod
    def _update(self, X: Tensor, Y: Tensor, noise: Tensor | None) -> None:
        """Absorb new rows; arguments as in :meth:`_fit`."""

    @abstractmethod
    def _noise(self) -> Tensor:
        """Inner noise variance per output, ``m``."""

    @abstractmethod
    def _posterior(self, X: Tensor, outputs: list[int] | None, noise: Tensor | None, varying: bool = False) -> Posterior:
        """The posterior at user's ``X: batch x q x d`` plus ``noise`` variances in squared units of ``Y``; ``varying``: plus
        the noise that the heteroscedastic likelihood predicts there."""

    @abstractmethod
    def _draw(self, n: int, generator: torch.Generator) -> Evaluate:
        """``n`` inner functions: ``X: batch x q x d -> n x batch x q x l``."""

    def _draw_at(self, X: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Values of :meth:`_draw` at inner ``X: q x d``, ``n x batch x q x l``."""
        return self._draw(n, generator)(X)

    @abstractmethod
    def _latent_samples(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Samples of the latent values of every point by itself, inner ``X: batch x q x d -> T x batch x q x l``, and their
        weights ``T x batch'`` (aligned on the right with ``batch``)."""

    def _log_evidence(self) -> Tensor | None:
        """Log evidence of the inner outcomes, summed over outputs."""
        return None
