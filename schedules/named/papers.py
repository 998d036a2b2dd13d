"""The schedules of papers: long pre-training runs, REX, Chebyshev steps, what follows another schedule.

W is ``num_warmup_steps`` and T is ``num_training_steps``. From step T on the multiplier stays where it is.
(warmup_stable_decay is in transformers.py.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..checks import choice, real_number, whole_number
from ..curves import Absolute, Constant, Curve, EndLR, Max, Min
from ..patterns import Chebyshev, CyclePeaks, Noam, PowerLaw, WarmedCycles
from ..shapes import DECAYS, Polynomial, Ramp, Rational, annealed, falling, spanned
from ..table import Lengths, described, from_zero, schedule, to_first_value


@schedule("noam", "a line up, then one over the root of the steps, by the width of the model if given", total=None)
def get_noam_schedule(lengths: Lengths, *, d_model: int | None = None, factor: float = 1.0) -> Curve:
    """``lr * factor * min(n / W, sqrt(W / n))``, n = t + 1; with ``d_model`` it is the paper's learning rate itself.

    ``factor / sqrt(d_model) * min(1 / sqrt(n), n / W ** 1.5)`` in every group then, whatever its own lr.

    Args:
        num_warmup_steps: W, steps of the way up, 1 or more, or a share of T. Step W - 1 has the peak. The paper's is
            4000.
        num_training_steps: T; the learning rate stays from there on. None: no end.
        d_model: width of the model, 1 or more. None: each group's own lr is the peak.
        factor: above 0.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Source: Attention Is All You Need, https://arxiv.org/abs/1706.03762, equation 3.
    """
    warmup = lengths.warmup
    if warmup == 0:
        raise ValueError("noam is built around its warm-up: num_warmup_steps must be at least 1 (the paper's is 4000)")
    scale = real_number("factor", factor, above=0)
    curve: Curve = Noam(warmup)
    if d_model is not None:
        curve = curve * Absolute(scale * (whole_number("d_model", d_model, at_least=1) * warmup) ** -0.5)
    elif scale != 1.0:
        curve = curve * scale
    return curve


@schedule(
    "power",
    "warm-up, then a power of the tokens seen, a decay at the end",
    aliases=["power_lr", "powerlr"],
    warmup=0,
    total=None,
)
def get_power_schedule(
    lengths: Lengths,
    *,
    batch_size: int,
    sequence_length: int,
    a: float = 4.0,
    b: float = -0.51,
    max_lr: float | None = None,
    num_decay_steps: int | float = 0,
    decay_type: str = "exponential",
    min_lr_ratio: float = 0.0,
) -> Curve:
    """``min(max_lr, batch_size * a * n ** b)``, n the tokens seen; a line to it before, a decay at the end.

    n = ``t * batch_size * sequence_length``, at least one step's tokens. For t < W it is ``t / W`` times the value at
    W, in the last D = ``num_decay_steps`` steps before T the value at T - D times a decay to ``min_lr_ratio``.

    Args:
        num_warmup_steps: W, steps of warm-up from 0, or a share of T.
        num_training_steps: T; the learning rate stays from there on. None: no end.
        batch_size: sequences in one step of the optimizer, over all processes, 1 or more.
        sequence_length: tokens of a sequence, 1 or more.
        a: the amplitude, above 0.
        b: the exponent, below 0.
        max_lr: the largest learning rate, the same in every group. Default: each group's own. The paper's is 0.02.
        num_decay_steps: D, steps of decay, 0 or more, or a share of T.
        decay_type: ``linear``, ``cosine``, ``1-sqrt``, ``1-square`` or ``exponential``.
        min_lr_ratio: the end of the decay as a share of the learning rate before it, from 0 to 1.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range, or D is given without T.

    Source: Power Scheduler, https://arxiv.org/abs/2408.13359.
    """
    sequences = whole_number("batch_size", batch_size, at_least=1)
    tokens = sequences * whole_number("sequence_length", sequence_length, at_least=1)
    exponent = real_number("b", b, below=0)
    law = PowerLaw(exponent) * Absolute(sequences * real_number("a", a, above=0) * tokens**exponent)
    top = Constant() if max_lr is None else Absolute(real_number("max_lr", max_lr, above=0))
    curve = to_first_value(Min(law, top).ahead(lengths.warmup), lengths.warmup)
    choice("decay_type", decay_type, DECAYS)
    decay = lengths.steps("num_decay_steps", num_decay_steps)
    ratio = real_number("min_lr_ratio", min_lr_ratio, at_least=0, at_most=1)
    if not decay:
        return curve
    if lengths.total is None:
        raise ValueError(f"num_decay_steps={decay} are the last before num_training_steps, which is not given")
    return annealed(curve, max(0, lengths.total - decay), min(lengths.total, decay), decay_type, ratio)


@schedule("power_decay", "warm-up, the initial learning rate for a while, then a power of what is left", rise=from_zero)
def get_power_decay_schedule(
    lengths: Lengths, *, capacity: float = 1.5, num_decay_steps: int | float | None = None
) -> Curve:
    """``lr * ((T - t) / D) ** (2 b - 1)`` in the last D steps, ``lr`` before them and after the warm-up.

    By the functional scaling law this is the best shape: over all steps (D = T - W) for tasks that are easy for the
    model, at the end only for hard ones. With b = 1 it is a line.

    Args:
        num_warmup_steps: W, steps of warm-up from 0, or a share of T.
        num_training_steps: T, steps of the whole schedule, warm-up included.
        capacity: b, the exponent of the model's capacity, above 0.5; in the paper above 1.
        num_decay_steps: D, at most T - W; steps, or a share of T. Default: T - W.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Source: https://arxiv.org/abs/2602.06797.
    """
    power = 2.0 * real_number("capacity", capacity, above=0.5) - 1.0
    decay = lengths.rest if num_decay_steps is None else lengths.steps("num_decay_steps", num_decay_steps)
    if decay > lengths.rest:
        raise ValueError(f"num_decay_steps={decay} is more than the {lengths.rest} steps after the warm-up")
    return Constant().then(Polynomial(decay, power), at=lengths.rest - decay)


@schedule(
    "infinite", "warm-up, down to a constant learning rate, annealed at the end or on demand", warmup=0, total=None
)
def get_infinite_schedule(
    lengths: Lengths,
    *,
    num_cooldown_steps: int | float,
    constant_lr_rate: float | None = None,
    cooldown_type: str = "cosine",
    anneal_start: int | None = None,
    num_anneal_steps: int | float = 0,
    anneal_type: str = "exponential",
    min_lr_rate: float = 0.1,
) -> Curve:
    """Up, down to a constant learning rate, and there for ever; annealed at the end, once an end is known.

    With c = ``constant_lr_rate`` and m = ``min_lr_rate``: ``lr t / W``, then ``lr (c + (1 - c) f(x))``, f the cooldown,
    x the share of it that is done, then ``lr c``, and from ``anneal_start`` on down to ``lr m``, ``exponential`` by
    ``lr c (m / c) ** x``. :meth:`schedules.ScheduleLR.anneal` does this last part at any moment of a run.

    Args:
        num_warmup_steps: W, steps of warm-up from 0, or a share of T.
        num_training_steps: T; the learning rate stays from there on. None: no end.
        num_cooldown_steps: steps from the peak to the constant, 0 or more, or a share of T.
        constant_lr_rate: c, share of the initial lr, above 0 and at most 1. Default: half-way between 1 and m.
        cooldown_type: ``linear``, ``cosine``, ``1-sqrt``, ``1-square`` or ``exponential``.
        anneal_start: the step from which to anneal. Default: T - ``num_anneal_steps``.
        num_anneal_steps: steps of annealing, or a share of T; 0: none.
        anneal_type: one of the same.
        min_lr_rate: m, share of the initial lr after annealing, from 0 to c.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range; ``anneal_start`` without
            ``num_anneal_steps``, or these without T and ``anneal_start``.

    Source: https://arxiv.org/abs/2403.08763.
    """
    down = lengths.steps("num_cooldown_steps", num_cooldown_steps)
    anneal = lengths.steps("num_anneal_steps", num_anneal_steps)
    least = real_number("min_lr_rate", min_lr_rate, at_least=0, at_most=1)
    constant = (1.0 + least) / 2.0 if constant_lr_rate is None else constant_lr_rate
    constant = real_number("constant_lr_rate", constant, above=0, at_least=least, at_most=1)
    choice("cooldown_type", cooldown_type, DECAYS)
    choice("anneal_type", anneal_type, DECAYS)
    warmup, total = lengths
    curve: Curve = Ramp(warmup).then(falling(cooldown_type, down, constant).then(Constant(constant)))
    if anneal_start is not None and not anneal:
        raise ValueError(
            f"anneal_start={anneal_start!r} needs num_anneal_steps, the number of steps from there to the end"
        )
    if anneal:
        if anneal_start is None and total is None:
            raise ValueError("num_anneal_steps needs anneal_start, or num_training_steps as the end")
        if anneal_start is None:
            start = max(0, (total or 0) - anneal)
            anneal = (total or 0) - start
        else:
            start = whole_number("anneal_start", anneal_start)
        if start < warmup:
            given = f"num_anneal_steps={anneal}" if anneal_start is None else f"anneal_start={start}"
            raise ValueError(f"{given}: annealing from step {start} on would cut off the warm-up of {warmup} steps")
        curve = annealed(curve, start, anneal, anneal_type, least / curve(start))
    return curve


@schedule("rex", "warm-up, then a ratio of lines to min_lr: high for long, then steep", rise=to_first_value)
def get_rex_schedule(lengths: Lengths, *, max_lr: float | None = None, min_lr: float = 0.0) -> Curve:
    """``m + (lr - m) (1 - x) / (1 - x / 2)`` after the warm-up, x = (t - W)/(T - W), m = ``min_lr``.

    Args:
        num_warmup_steps: W, steps of warm-up from 0, or a share of T.
        num_training_steps: T, steps of the whole schedule, warm-up included.
        max_lr: the learning rate at the peak, the same in every group. Default: each group's own.
        min_lr: m, the learning rate at the end, the same in every group.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Source: REX, https://arxiv.org/abs/2107.04197.
    """
    return spanned(Rational(lengths.rest), max_lr, min_lr)


@schedule("chebyshev", "warm-up, then large and small steps in fractal order", rise=to_first_value)
def get_chebyshev_schedule(lengths: Lengths, *, small: float = 0.05, big: float = 1.0) -> Curve:
    """``lr / ((M + m) / 2 - (M - m) / 2 * cos(pi (s(t - W) + 1/2) / N))``: Chebyshev steps in fractal order.

    N is the smallest power of two that is at least T - W, s the fractal order of 0 .. N - 1. The multiplier lies
    between 1 / M and 1 / m: by default the largest learning rate is nearly 20 times the optimizer's, in the first step.

    Args:
        num_warmup_steps: W, steps of warm-up from 0 to the first of them, or a share of T.
        num_training_steps: T, steps of the whole schedule, warm-up included.
        small: m, lower end of the spectrum, above 0.
        big: M, upper end of the spectrum, at least m.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Source: https://arxiv.org/abs/2103.01338.
    """
    return Chebyshev(lengths.rest, small, big)


@schedule("proportion", "a value that rises and falls with another schedule")
def get_proportion_schedule(
    num_warmup_steps: int | float = 0,
    num_training_steps: int | None = None,
    *,
    schedule: Curve | str | Sequence[Any],
    max_value: float,
    min_value: float,
    max_lr: float = 1.0,
    min_lr: float = 0.0,
) -> Curve:
    """A value that rises and falls with a schedule: ``min_value + (max_value - min_value) (lr - l) / (h - l)``.

    l = ``min_lr``, h = ``max_lr``, and ``lr = h * schedule(t)``. The result is the value itself, not a multiplier:
    with :func:`schedules.schedule_hyperparameter` the rho of GSAM, for example, follows the learning rate from
    ``max_value`` to ``min_value``. By name, as a schedule, it is the learning rate of every group.

    Args:
        num_warmup_steps: warm-up of ``schedule``, where that does not name its own.
        num_training_steps: total of ``schedule``, where that does not name its own.
        schedule: a name, a pair of a name and a dict of its arguments, or a curve.
        max_value: the value at ``max_lr``.
        min_value: the value at ``min_lr``.
        max_lr: h, the learning rate that ``schedule`` multiplies. The default takes the multipliers themselves.
        min_lr: l, the learning rate at ``min_value``, below ``max_lr``.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Source: Surrogate Gap Minimization (GSAM), https://arxiv.org/abs/2203.08065.
    """
    high = real_number("max_lr", max_lr, above=0)
    low = real_number("min_lr", min_lr, at_least=0, below=high)
    bottom, top = real_number("min_value", min_value), real_number("max_value", max_value)
    curve = described("schedule", schedule, num_warmup_steps, num_training_steps).bind(high)
    share = curve.between(-low / (high - low), 1.0)
    return share.between(bottom, top) * Absolute(1.0)


@schedule("cosine_annealing_with_warmup", "cycles of a warm-up and half a cosine, with falling peaks")
def get_cosine_annealing_with_warmup_schedule(
    lengths: Lengths,
    *,
    first_cycle_steps: int | None = None,
    cycle_mult: float = 1.0,
    max_lr: float | None = None,
    min_lr: float = 1e-6,
    gamma: float = 0.9,
) -> Curve:
    """Cycles of a warm-up and a half cosine, each with a lower peak than the one before.

    In cycle i: ``m + (g ** i lr - m) p / W`` for the first W steps, then ``m + (g ** i lr - m) (1 + cos(pi x)) / 2``,
    p the step in the cycle, x the share of the way down that is done, m = ``min_lr``, g = ``gamma``. A run that ends
    with a cycle stays at m.

    Args:
        num_warmup_steps: W, steps of warm-up in each cycle, or a share of T.
        num_training_steps: T; the learning rate stays from there on.
        first_cycle_steps: steps of the first cycle, more than W. Default: T.
        cycle_mult: a way down's length over that of the one before, above 0; rounded down to whole steps, 1 at least.
        max_lr: the learning rate at the first peak, the same in every group. Default: each group's own.
        min_lr: m, the learning rate at the ends of a cycle, the same in every group.
        gamma: g, a peak over the one before, above 0 and at most 1. A peak below ``min_lr`` is ``min_lr``.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Source: SGDR, https://arxiv.org/abs/1608.03983, with warm-ups: pytorch_optimizer's CosineAnnealingWarmupRestarts.
    """
    warmup, total = lengths.warmup, lengths.total or 0
    first = max(total, warmup + 1) if first_cycle_steps is None else first_cycle_steps
    cycles = WarmedCycles(warmup, first, cycle_mult)
    low = real_number("min_lr", min_lr, at_least=0)
    top: Curve = CyclePeaks(cycles, gamma)
    if max_lr is not None:
        high = real_number("max_lr", max_lr, above=0)
        if low > high:
            raise ValueError(f"min_lr={low:g} is above max_lr={high:g}")
        top = top * Absolute(high)
    ends_with_a_cycle = total > 0 and cycles.cycle(total)[1] == 0
    height = cycles.then(Constant(0.0), at=total) if ends_with_a_cycle else cycles
    bottom = Absolute(low) if max_lr is not None else EndLR(low)
    return height.between(bottom, Max(top, bottom))
