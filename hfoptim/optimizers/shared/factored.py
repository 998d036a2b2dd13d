"""Second moments of matrices kept as two means, one over either dimension, and those of other tensors kept whole."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Size

from hfoptim.engine import State, ema, nonnegative, zeros_without
from hfoptim.engine.checks import entries, number


class Factored(NamedTuple):
    """How the second moment of one kind of parameter is kept.

    Args:
        dims: the dimensions (column, row) over which means are kept, the column before the row, both negative or
            neither; None keeps the whole moment.
    """

    dims: tuple[int, int] | None

    def state(self, name: str, row: str = "_row", column: str = "_col") -> dict[str, State]:
        """The state of a moment called `name`."""
        if self.dims is None:
            return {name: nonnegative}
        return {name + row: zeros_without(self.dims[1]), name + column: zeros_without(self.dims[0])}

    def averaged(self, squared: Any, moments: list[Any], alpha: Any, eps: Any) -> tuple[list[Any], list[Any]]:
        """The factors whose product is the moment's inverse, and the moment with new squares in it.

        eps is added to the means: the mean of a sum is the same number.
        """
        moments = self.moved(squared, moments, alpha, eps)
        if self.dims is None:
            return [moments[0].reciprocal()], moments
        (column, row), (rows, columns) = self.dims, moments
        # Among the dimensions that the row means kept, the column has its place: it comes before the row.
        row_factor = rows.mean(column + 1 if column < 0 else column, keepdim=True) / rows
        return [row_factor.unsqueeze(row), columns.reciprocal().unsqueeze(column)], moments

    def moved(self, squared: Any, moments: list[Any], alpha: Any, eps: Any) -> list[Any]:
        """The moment with new squares in it, to which eps is added."""
        if self.dims is None:
            return [ema(moments[0], squared + eps, alpha)]
        return [ema(each, squared.mean(dim) + eps, alpha) for each, dim in zip(moments, self.dims[::-1], strict=True)]

    def product(self, moments: list[Any], least: float) -> Any:
        """The moment, of whose factors the mean is above a least number, so that zeros stay zeros."""
        if self.dims is None:
            return moments[0]
        (column, row), (rows, columns) = self.dims, moments
        mean = rows.mean(column + 1 if column < 0 else column, keepdim=True) + least
        return (rows / mean).unsqueeze(row) * columns.unsqueeze(column)

    def mean_square(self, squared: Any, factors: list[Any]) -> Any:
        """The mean square of the update, the gradient times the roots of the factors, from the gradient's squares."""
        if self.dims is None:
            return (squared * factors[0]).mean()
        row_factor, column_factor = factors
        return ((squared * column_factor).mean(self.dims[1], keepdim=True) * row_factor).mean()


def last_two(shape: Size) -> Factored:
    """The last two dimensions of every parameter that has them."""
    return Factored((-2, -1) if len(shape) >= 2 else None)


def scaled(x: Any, factors: list[Any], size: Any) -> Any:
    """`x` times the roots of the factors, and times a number, which goes into the smallest of them."""
    first, *others = factors
    x = x * (first.sqrt() * size)
    for factor in others:
        x = x * factor.sqrt()
    return x


def inverse_clip(mean_square: Any, inverse_threshold: Any) -> Any:
    """What an update is divided by so that its root mean square is at most the threshold."""
    return (mean_square.sqrt() * inverse_threshold).clamp(min=1.0)


def pair(name: str, value: Any) -> tuple[float, ...]:
    """Two numbers to be added, or to be stayed above: the check of an `eps` that has two parts."""
    found = entries(value)
    if found is None or len(found) != 2:
        raise ValueError(f"{name}={value!r}, expected two numbers, each of a use of its own")
    return tuple(number(f"{name}[{i}]", entry) for i, entry in enumerate(found))
