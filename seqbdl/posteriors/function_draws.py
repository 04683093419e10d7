"""Functions drawn once and evaluated anywhere, any number of times."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


class FunctionDraws:
    """``n`` functions from a posterior: ``draws(X)`` evaluates the same ``n`` functions at any ``X``, differentiably.

    Args:
        evaluate: ``X: batch x q x d -> n x batch x q x m``, in the user's units.
        num_draws: ``n``.
        num_outputs: ``m``.
    """

    def __init__(self, evaluate: Callable[[Tensor], Tensor], num_draws: int, num_outputs: int) -> None:
        self._evaluate = evaluate
        self.num_draws = num_draws
        self.num_outputs = num_outputs

    def __call__(self, X: Tensor) -> Tensor:
        """Evaluate every draw at every point.

        Args:
            X: ``batch x q x d``.

        Returns:
            ``n x batch x q x m``.
        """
        return self._evaluate(X)

    def __len__(self) -> int:
        return self.num_draws

    def __repr__(self) -> str:
        return f"FunctionDraws(num_draws={self.num_draws}, num_outputs={self.num_outputs})"
