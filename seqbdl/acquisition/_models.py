"""BoTorch's models and decorators with the types they have in practice."""

from __future__ import annotations

from typing import Any

from botorch.models.model import Model
from botorch.utils import transforms
from torch import Tensor

#: BoTorch declares their arguments for its base class only.
t_batch_mode_transform: Any = transforms.t_batch_mode_transform
concatenate_pending_points: Any = transforms.concatenate_pending_points


def posterior_of(model: Model, X: Tensor, **options: Any) -> Any:
    """``model.posterior``; BoTorch's base ``Posterior`` declares neither mean nor variance, all real ones have both."""
    return model.posterior(X, **options)
