"""The shapes under short names, to be read as a sentence: ``warmup(100).then(cosine(900).floor(0.1))``.

Every word is the class of :mod:`schedules.shapes` or :mod:`schedules.curves` that does the work, so the result pickles,
compares and prints as that class.
"""

from __future__ import annotations

from .curves import Absolute, Constant
from .shapes import Cosine, Exponential, InverseSqrt, Linear, OneMinusSqrt, Polynomial, Ramp

__all__ = [
    "absolute",
    "constant",
    "cosine",
    "exponential",
    "inverse_sqrt",
    "linear",
    "one_minus_sqrt",
    "polynomial",
    "warmup",
]

absolute = Absolute
constant = Constant
cosine = Cosine
exponential = Exponential
inverse_sqrt = InverseSqrt
linear = Linear
one_minus_sqrt = OneMinusSqrt
polynomial = Polynomial
warmup = Ramp
