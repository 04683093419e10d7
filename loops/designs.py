"""Points that need no surrogate: Sobol designs and random search."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch

from seqbdl.loops.parameters import Value
from seqbdl.loops.proposals import SpaceExhaustedError
from seqbdl.loops.space import Point, Space


class Design:
    """A stream of points, none twice while others are left.

    Args:
        space: The search space.
        seed: Of the Sobol sequence.
        replicates: Whether points may repeat.
    """

    def __init__(self, space: Space, seed: int, replicates: bool) -> None:
        self.space = space
        self.seed = seed
        self.replicates = replicates
        self.drawn = 0
        """How many points were taken from the Sobol sequence."""

    def draw(
        self,
        kind: str,
        n: int,
        taken: Collection[tuple[Any, ...]],
        fixed: Mapping[str, Value],
        generator: torch.Generator,
    ) -> list[Point]:
        """The next ``n`` points.

        Args:
            kind: ``"random"``: from the generator; anything else: from the Sobol sequence.
            n: How many.
            taken: Keys of points not to draw.
            fixed: Parameters held at a value.
            generator: Randomness of ``"random"``, and of what remains after the end of a shuffled table.

        Raises:
            SpaceExhaustedError: No points are left.
        """
        closed = set(taken)
        points: list[Point] = []
        for _ in range(1000):
            for point in self._stream(kind, n - len(points), generator):
                held = self._hold(point, fixed)
                if held is None or (not self.replicates and self.space.key(held) in closed):
                    continue
                closed.add(self.space.key(held))
                points.append(held)
            if len(points) == n:
                return points
        return self._remaining(points, n, closed, fixed)

    def _remaining(
        self, points: list[Point], n: int, closed: Collection[tuple[Any, ...]], fixed: Mapping[str, Value]
    ) -> list[Point]:
        """Fill up from the table of a finite space: chance hardly finds the last points of a large one."""
        if self.space.enumerable:
            rows = set(range(len(self.space.table()))) - set(self.space.table_rows(closed))
            for row in sorted(rows):
                point = self.space.table_point(row)
                if all(point[name] == value for name, value in fixed.items()):
                    points.append(point)
                if len(points) == n:
                    return points
        raise SpaceExhaustedError(
            f"only {len(points)} of {n} points were found that were not asked before; replicates=True asks points again"
        )

    def _stream(self, kind: str, n: int, generator: torch.Generator) -> list[Point]:
        if kind != "random":
            drawn = self.space.sample(n, self.seed, skip=self.drawn)
            self.drawn += len(drawn)
            if drawn:
                return drawn
        return self.space.random(n, generator)

    def _hold(self, point: Point, fixed: Mapping[str, Value]) -> Point | None:
        """The point with the fixed values; ``None`` when a candidate does not have them."""
        if not fixed:
            return point
        if self.space.listed:
            return point if all(point[name] == value for name, value in fixed.items()) else None
        return {**point, **fixed}
