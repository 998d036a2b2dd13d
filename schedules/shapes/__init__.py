"""The shapes that schedules are made of: curves from their own step 0, one module per family."""

from .basic import (
    RAMPS,
    Constant,
    Cosine,
    CosineRestarts,
    Exponential,
    InverseSqrt,
    Linear,
    OneMinusSqrt,
    Polynomial,
    Ramp,
)
from .cycling import KDecay, Tanh
from .decays import DECAYS, OneMinusSquare, falling
from .levels import Milestones, Stairs
from .phases import TRIANGLES, Phases, Triangles
from .powers import Chebyshev, Geometric, Noam, PowerLaw, Products, Rational
from .warmed_cycles import CyclePeaks, WarmedCycles

__all__ = [
    "DECAYS",
    "RAMPS",
    "TRIANGLES",
    "Chebyshev",
    "Constant",
    "Cosine",
    "CosineRestarts",
    "CyclePeaks",
    "Exponential",
    "Geometric",
    "InverseSqrt",
    "KDecay",
    "Linear",
    "Milestones",
    "Noam",
    "OneMinusSqrt",
    "OneMinusSquare",
    "Phases",
    "Polynomial",
    "PowerLaw",
    "Products",
    "Ramp",
    "Rational",
    "Stairs",
    "Tanh",
    "Triangles",
    "WarmedCycles",
    "falling",
]
