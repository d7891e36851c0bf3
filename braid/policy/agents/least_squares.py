"""Weighted least squares of a few coefficients, learnt online: old samples fade, outliers count little, and no
coefficient is negative. Standard library only.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from operator import mul

HALF_LIFE = 2000
"""Samples after which an old one counts half."""
HUBER = 2.0
"""Residuals beyond so many usual ones count as if they were that large."""
SMALLEST = 0.01
"""Of y: a spread below that is not believed."""
SOLVE_EVERY = 32


class LeastSquares:
    """y = sum of coefficient x feature.

    The prior's proportions are believed longer than its size, which comes from the samples as soon as there is one:
    machines differ by much more in how fast they are than in what they are fast at.

    Args:
        prior: the coefficients before there are samples; not negative.
        prior_weight: of the prior, in samples.
    """

    def __init__(self, prior: Sequence[float], prior_weight: float = 2.0) -> None:
        self._prior = tuple(prior)
        self._weight = prior_weight
        size = len(self._prior)
        self._moments = [[0.0] * size for _ in range(size)]
        self._products = [0.0] * size
        self._total = 0.0
        self._seen = self._foreseen = 0.0
        """Sums of y, and of what the prior says of the same samples."""
        self._fade = 0.5 ** (1 / HALF_LIFE)
        self._spread = self._size = 0.0
        self._unsolved = 0
        self._coefficients = self._prior
        self.num = 0

    @property
    def coefficients(self) -> tuple[float, ...]:
        """Of all samples but the last few, once there are many."""
        if self._unsolved and (self.num <= SOLVE_EVERY or self._unsolved >= SOLVE_EVERY):
            self._coefficients = self._solve()
            self._unsolved = 0
        return self._coefficients

    @property
    def residual(self) -> float:
        """The usual size of what is not explained, in units of y."""
        return self._spread

    def predict(self, features: Sequence[float]) -> float:
        return sum(c * x for c, x in zip(self.coefficients, features, strict=True))

    def add(self, features: Sequence[float], y: float) -> None:
        weight = self._weight_of(y, abs(y - self.predict(features)))
        fade = self._fade
        self._total = self._total * fade + weight
        self._seen = self._seen * fade + weight * y
        self._foreseen = self._foreseen * fade + weight * sum(map(mul, self._prior, features))
        for i, x in enumerate(features):
            row = self._moments[i]
            for j in range(i + 1):
                row[j] = row[j] * fade + weight * x * features[j]
            self._products[i] = self._products[i] * fade + weight * x * y
        self.num += 1
        self._unsolved += 1

    def _weight_of(self, y: float, residual: float) -> float:
        """Less for outliers, by the spread of those before. The spread itself grows by no more than an outlier counts,
        but it grows: so a machine that has become slower is believed after some dozens of samples."""
        limit = HUBER * max(self._spread, SMALLEST * self._size)
        is_early = self.num < SOLVE_EVERY
        step = 1 / min(self.num + 1, 100)
        self._size += step * ((abs(y) if is_early else min(abs(y), self._size + 2 * limit)) - self._size)
        self._spread += step * ((residual if is_early else min(residual, 2 * limit)) - self._spread)
        return 1.0 if is_early or residual <= limit else limit / residual

    def _solve(self) -> tuple[float, ...]:
        """Without the coefficients that would be negative, one after the other: the worst first."""
        size = len(self._prior)
        free = list(range(size))
        while free:
            solved = self._solve_for(free)
            worst = min(range(len(free)), key=lambda place: solved[place])
            if solved[worst] >= 0:
                found = [0.0] * size
                for place, index in enumerate(free):
                    found[index] = solved[place]
                return tuple(found)
            del free[worst]
        return (0.0,) * size

    def _solve_for(self, free: Sequence[int]) -> list[float]:
        """In units where each feature has mean square 1, so that the prior weighs all of them alike."""
        size = self._seen / self._foreseen if self._foreseen > 0 else 1.0
        scales = [sqrt(self._moments[i][i] / self._total) or 1.0 for i in free]
        matrix = []
        for row, i in enumerate(free):
            line = [
                self._moments[max(i, j)][min(i, j)] / (scales[row] * scales[column])
                for column, j in enumerate(free)
            ]
            line[row] += self._weight
            matrix.append(
                [*line, self._products[i] / scales[row] + self._weight * size * self._prior[i] * scales[row]]
            )
        return [value / scale for value, scale in zip(_eliminate(matrix), scales, strict=True)]


def _eliminate(matrix: list[list[float]]) -> list[float]:
    """Solve a positive definite system, given as rows with the right side at their ends (Gauss, in place)."""
    size = len(matrix)
    for i in range(size):
        pivot = matrix[i][i]
        for row in matrix[i + 1 :]:
            factor = row[i] / pivot
            for j in range(i, size + 1):
                row[j] -= factor * matrix[i][j]
    values = [0.0] * size
    for i in reversed(range(size)):
        known = sum(matrix[i][j] * values[j] for j in range(i + 1, size))
        values[i] = (matrix[i][size] - known) / matrix[i][i]
    return values
