"""Predictions of observations from samples of latent values, for every likelihood."""

from __future__ import annotations

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.likelihoods import Likelihood
from seqbdl.posteriors import Prediction

_REPEATS = 64  # observations per latent sample, for quantiles of counts and labels


def predict_observations(
    likelihood: Likelihood,
    latents: Tensor,
    weights: Tensor,
    noise: Tensor,
    shift: Tensor,
    scale: Tensor,
    outputs: list[int] | None,
    dtype: torch.dtype,
    seed: int,
) -> Prediction:
    """The mixture over latent samples, by the laws of total expectation and variance.

    Args:
        likelihood: Of an observation.
        latents: ``T x batch x q x l`` inner latent values.
        weights: ``T x batch`` (aligned on the right with ``batch``), sums to one over ``T``.
        noise: ``m`` inner reference noise variances.
        shift: ``m``; outcomes in the user's units are ``shift + scale * inner``.
        scale: ``m``.
        outputs: Which outputs; ``None``: all.
        dtype: Of the answers.
        seed: Of the sampled observations behind quantiles of counts and labels.
    """
    batch = latents.shape[1:-2]
    w = weights.reshape(weights.shape[0], *([1] * (len(batch) - weights.dim() + 1)), *weights.shape[1:])[..., None, None]
    means, variances = likelihood.mean_variance(latents, noise)
    means, variances = shift + scale * means, scale.square() * variances
    mean = (w * means).sum(0)
    epistemic = (w * (means - mean).square()).sum(0)
    aleatoric = (w * variances).sum(0)
    keep = list(range(mean.shape[-1])) if outputs is None else outputs

    def answer(value: Tensor) -> Tensor:
        return value[..., keep].to(dtype)

    def quantile(p: Tensor) -> Tensor:
        if likelihood.name == "categorical":
            raise InvalidOptionError("class labels have no quantiles; read probs")
        generator = torch.Generator().manual_seed(seed)
        f = latents.expand(_REPEATS, *latents.shape)
        observed = shift + scale * likelihood.sample(f, noise, generator)  # R x T x batch x q x m
        flat, order = observed.flatten(0, 1).sort(0)
        mass = w.expand(means.shape).repeat(_REPEATS, *([1] * (means.dim() - 1))).gather(0, order).cumsum(0)
        index = (mass < p * mass[-1:]).sum(0, keepdim=True).clamp_max(flat.shape[0] - 1)
        return answer(flat.gather(0, index).squeeze(0))

    probs = None
    if likelihood.is_discrete:
        log_probs = likelihood.class_log_probs(latents)
        extra = w.unsqueeze(-1) if log_probs.dim() > latents.dim() else w
        probs = (extra * log_probs.exp()).sum(0).to(dtype)
    return Prediction(
        mean=answer(mean),
        std=answer((epistemic + aleatoric).sqrt()),
        epistemic_std=answer(epistemic.sqrt()),
        aleatoric_std=answer(aleatoric.sqrt()),
        _quantile=quantile,
        probs=probs,
    )
