"""Schedules of Keras and optax that the others do not have.

W is ``num_warmup_steps`` and T is ``num_training_steps``. From step T on the multiplier stays where it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from ..checks import choice, real_number, steps_or_share, whole_number
from ..curves import Constant, Curve
from ..patterns import Inverse, Phases
from ..table import Lengths, schedule, to_first_value


@schedule(
    "inverse_time",
    "warm-up, then one over a line",
    aliases=["inverse_time_decay", "inversetimedecay"],
    warmup=0,
    total=None,
    rise=to_first_value,
)
def get_inverse_time_schedule(
    lengths: Lengths, *, decay_steps: int, decay_rate: float, staircase: bool = False
) -> Curve:
    """``lr / (1 + decay_rate * (t - W) / decay_steps)`` after the warm-up.

    Args:
        num_warmup_steps: W, steps of warm-up from 0, or a share of T.
        num_training_steps: T; the learning rate stays from there on. None: no end.
        decay_steps: steps in which ``decay_rate`` is added below the line, 1 or more.
        decay_rate: above 0.
        staircase: add it at once after each ``decay_steps`` steps.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Source: keras.optimizers.schedules.InverseTimeDecay.
    """
    every = whole_number("decay_steps", decay_steps, at_least=1)
    return Inverse(real_number("decay_rate", decay_rate, above=0), every, staircase)


@schedule(
    "piecewise_interpolate", "from one level to the next at given steps", warmup=0, total=None, rise=to_first_value
)
def get_piecewise_interpolate_schedule(
    lengths: Lengths, *, boundaries_and_scales: Mapping[Any, float], interpolate_type: str = "linear"
) -> Curve:
    """From the learning rate to it times the first scale, from there to that times the second, and so on.

    Between two levels a and b, x the share of the way that is done: ``a + (b - a) x``, or with ``cosine``
    ``b + (a - b) (1 + cos(pi x)) / 2``. After the last boundary the last level stays.

    Args:
        num_warmup_steps: W, steps of warm-up from 0 before, or a share of T.
        num_training_steps: T; the learning rate stays from there on. None: no end.
        boundaries_and_scales: for each boundary what multiplies the level before, 0 or more, to give the level at it:
            ``{400: 0.5, 800: 0.1}``. Boundaries are steps after the warm-up, or shares of the T - W steps above 0 and
            below 1. They may be text, as keys of JSON are.
        interpolate_type: ``linear`` or ``cosine``.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range, or two boundaries are equal.

    Source: optax.piecewise_interpolate_schedule.
    """
    if not isinstance(boundaries_and_scales, Mapping):
        raise TypeError(f"boundaries_and_scales must be a dict such as {{400: 0.5}}, got {boundaries_and_scales!r}")
    choice("interpolate_type", interpolate_type, ("linear", "cosine"))
    rest = None if lengths.total is None else lengths.rest
    given = [
        (steps_or_share("a boundary", at, rest), real_number(f"the scale at {at!r}", scale, at_least=0))
        for at, scale in boundaries_and_scales.items()
    ]
    given.sort()
    stops = [at for at, _ in given]
    if len(set(stops)) < len(stops) or (stops and stops[0] == 0):
        raise ValueError(f"boundaries must be different steps after step 0, got {stops}")
    if not stops:
        return Constant()
    levels = tuple(itertools.accumulate((1.0, *(scale for _, scale in given)), lambda level, scale: level * scale))
    return Phases(levels, tuple(map(float, stops)), interpolate_type)
