"""The deep kernel machine as a GPyTorch kernel, for exact and variational models of your own.

A trained deep kernel machine is a positive-definite kernel between any two inputs, so it stands where a kernel stands:
``SingleTaskGP(X, Y, covar_module=DKMKernel(X))`` with BoTorch's ``fit_gpytorch_mll`` maximizes the machine's own objective,
since the kernel brings the divergences of its layers as an added loss term and the priors of its scales as GPyTorch priors.
Surrogates (``dkm``) need none of this: it is for those who have GPyTorch models already.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from botorch.sampling.pathwise.features.generators import GenKernelFeatures
from botorch.sampling.pathwise.features.maps import FeatureMap
from gpytorch.kernels import Kernel
from gpytorch.mlls import AddedLossTerm
from gpytorch.priors import NormalPrior
from torch import Tensor, nn

from seqbdl.errors import InvalidOptionError, ShapeError, UnknownNameError
from seqbdl.inference.gram import SQUARED_EXPONENTIAL, GramKernel, divergences, gram, gram_diagonal, lower_logs, lower_root
from seqbdl.inference.gram_draws import RandomFeatures, prior_draws
from seqbdl.inference.infinite_width import WidthScales, default_scales
from seqbdl.inference.kernel_machine import LOG_SD
from seqbdl.networks.activations import ACTIVATIONS
from seqbdl.surrogates import DKMSurrogate


class DKMKernel(Kernel):
    """A deep kernel machine (Yang et al. 2023) between inputs in the unit cube.

    The Gram matrix of every hidden layer is learned at the inducing points, in whitened coordinates, and held to that of the
    infinitely wide network by ``nu`` times its divergence from it; ``nu=math.inf`` is the network. The kernel brings its own
    output scale. All algebra is done in float64.

    ``ExactMarginalLogLikelihood`` adds an added loss term and divides by the rows; ``VariationalELBO`` and its kin subtract
    it and do not divide. Without ``num_data`` the term is right for the former, with it for the latter.

    Args:
        inducing_points: ``P x d`` in the unit cube. A hundred rows of the data are a good choice; they stay where they are.
        nu: How strongly learned Gram matrices are held; small values overfit (held-out rows choose it in ``dkm``).
        depth: Layers of the network; ``depth - 1`` Gram matrices are learned.
        activation: ``"erf"``, ``"relu"``, ``"leaky_relu"`` or ``"squared-exponential"``.
        num_data: Rows in all, under a variational objective; ``None`` under the exact one.
        batch_shape: Of a batch of kernels.
        active_dims: As of every GPyTorch kernel: the columns of the inputs that the kernel sees, ``d`` of them.
    """

    has_lengthscale = False

    def __init__(
        self,
        inducing_points: Tensor,
        nu: float = 30.0,
        depth: int = 2,
        activation: str = "erf",
        num_data: int | None = None,
        batch_shape: torch.Size | None = None,
        active_dims: tuple[int, ...] | None = None,
    ) -> None:
        if activation not in (*ACTIVATIONS, SQUARED_EXPONENTIAL):
            raise UnknownNameError("activation", activation, [*ACTIVATIONS, SQUARED_EXPONENTIAL])
        if inducing_points.dim() != 2 or not inducing_points.shape[0]:
            raise ShapeError(f"inducing_points has shape {tuple(inducing_points.shape)}; give at least one row, P x d")
        if not nu > 0 or depth < 1 or (num_data is not None and num_data < 1):
            raise InvalidOptionError(
                f"nu={nu}, depth={depth}, num_data={num_data}: nu is positive (math.inf is the infinitely wide network), depth "
                "at least 1, num_data None or at least 1"
            )
        batch = torch.Size() if batch_shape is None else batch_shape
        super().__init__(batch_shape=batch, active_dims=active_dims)
        self.nu, self.depth, self.activation, self.num_data = float(nu), depth, activation, num_data
        P, d = inducing_points.shape
        self.register_buffer("inducing_points", inducing_points.detach().expand(*batch, P, d).clone())
        for name, value in default_scales(d, depth, 1).tree().items():
            if name != "noise":
                logs = value[0].log().to(inducing_points)
                self.register_parameter(f"log_{name}", nn.Parameter(logs.expand(*batch, -1).clone()))
                prior = NormalPrior(logs[0].clone(), logs.new_tensor(LOG_SD[name]))
                own = f"log_{name}"  # GPyTorch's own closures cannot be pickled
                self.register_prior(f"{name}_prior", prior, partial(_parameter, name=own), partial(_set_parameter, name=own))
        layers = 0 if math.isinf(nu) else depth - 1
        roots = inducing_points.new_zeros(*batch, layers, P, P)  # strictly lower: T's; diagonal: its logarithm
        self.register_parameter("raw_roots", nn.Parameter(roots, requires_grad=layers > 0))
        self.register_added_loss_term("divergence")
        self.update_added_loss_term("divergence", _Divergence(self))

    @classmethod
    def of(cls, surrogate: DKMSurrogate, num_data: int | None = None) -> DKMKernel:
        """What a fitted ``dkm`` has learned, between inputs scaled to the unit cube of the surrogate's bounds and for
        standardized outcomes.

        Args:
            surrogate: The surrogate.
            num_data: As of the constructor.

        Raises:
            InvalidOptionError: Its rows are images.
        """
        learned = surrogate.kernel
        if surrogate.image_shape is not None:
            raise InvalidOptionError("the kernel of images is not available in GPyTorch; use the surrogate itself")
        kernel = cls(learned.Z, surrogate.learned_nu, learned.scales.depth, learned.activation, num_data)
        with torch.no_grad():
            for name in ("inputs", "weights", "biases"):
                getattr(kernel, f"log_{name}").copy_(getattr(learned.scales, name)[0].log())
            kernel.raw_roots.copy_(lower_logs(learned.roots))
        return kernel

    @property
    def gram_kernel(self) -> GramKernel:
        """The kernel as the library's own functions take it, in float64."""
        return self._gram_kernel(0)

    def _gram_kernel(self, extra: int) -> GramKernel:
        """With so many axes of size one behind its batch."""

        def widened(value: Tensor, own: int) -> Tensor:
            return value.double().reshape(*value.shape[: value.dim() - own], *[1] * extra, *value.shape[value.dim() - own :])

        parts = {name: widened(getattr(self, f"log_{name}"), 1).exp().unsqueeze(0) for name in ("inputs", "weights", "biases")}
        noise = parts["inputs"].new_zeros(1)  # the likelihood's business
        roots = lower_root(widened(self.raw_roots, 3)).movedim(-3, 0)
        return GramKernel(WidthScales(**parts, noise=noise), roots, widened(self.inducing_points, 2), self.activation)

    def divergences(self) -> Tensor:
        """``nu KL(N(0, G_l) || N(0, K_l))`` summed over layers, of the kernel's batch shape; 0 where ``nu`` is infinite."""
        if not self.raw_roots.shape[-3]:
            return self.raw_roots.new_zeros(self.batch_shape)
        return self.nu * divergences(self.gram_kernel.roots).sum(0).to(self.raw_roots)

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        """``batch x n1 x n2``, or with ``diag`` the pairs ``batch x n``."""
        a, b = x1.double(), x2.double()
        if not diag:
            return gram(self.gram_kernel, a, b).to(x1.dtype)
        if torch.equal(x1, x2):
            return gram_diagonal(self.gram_kernel, a).to(x1.dtype)
        pairs = gram(self._gram_kernel(1), a.unsqueeze(-2), b.unsqueeze(-2))
        return pairs.squeeze(-1).squeeze(-1).to(x1.dtype)


def _parameter(kernel: DKMKernel, name: str) -> Tensor:
    value = getattr(kernel, name)
    assert isinstance(value, Tensor)
    return value


def _set_parameter(kernel: DKMKernel, value: Tensor, name: str) -> None:
    kernel.initialize(**{name: value})


class _RandomFeatures(FeatureMap):
    """Features whose inner products have the kernel as mean, for BoTorch's pathwise draws; the layers are drawn once."""

    def __init__(self, kernel: DKMKernel, num_outputs: int) -> None:
        if kernel.batch_shape:
            raise InvalidOptionError(
                f"no pathwise draws of a batch of kernels, batch_shape={tuple(kernel.batch_shape)}; take one model per outcome"
            )
        super().__init__()
        self.kernel, self.num_outputs, self.batch_shape = kernel, num_outputs, kernel.batch_shape
        self.input_transform = self.output_transform = None
        with torch.no_grad():  # a function of its inputs only
            draws = prior_draws(kernel.gram_kernel, 1, num_outputs - 1, torch.Generator().manual_seed(0))
        assert isinstance(draws, RandomFeatures)
        self._draws = draws

    def forward(self, x: Tensor) -> Tensor:
        """``batch x q x d`` to ``batch x q x num_outputs``."""
        seen = x if self.kernel.active_dims is None else x[..., self.kernel.active_dims]
        phi = self._draws.features(seen.double().reshape(-1, seen.shape[-1])).squeeze(0)
        return phi.unflatten(0, x.shape[:-1]).to(x.dtype)


@GenKernelFeatures.register(DKMKernel)
def _features_of_dkm(kernel: DKMKernel, *, num_inputs: int, num_outputs: int) -> FeatureMap:
    return _RandomFeatures(kernel, num_outputs)


class _Divergence(AddedLossTerm):
    """The divergences of a kernel, with the sign and the scale that the objective expects."""

    def __init__(self, kernel: DKMKernel) -> None:
        self.kernel = kernel

    def loss(self, *params: Any) -> Tensor:
        total = self.kernel.divergences()
        return -total if self.kernel.num_data is None else total / self.kernel.num_data
