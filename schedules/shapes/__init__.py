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

__all__ = [
    "RAMPS",
    "Constant",
    "Cosine",
    "CosineRestarts",
    "Exponential",
    "InverseSqrt",
    "Linear",
    "OneMinusSqrt",
    "Polynomial",
    "Ramp",
]
