"""The curves of long pre-training runs: Noam, power and infinite. (warmup_stable_decay is in transformers.py.)

W is ``num_warmup_steps`` and T is ``num_training_steps``. From step T on the multiplier stays where it is.
"""

from __future__ import annotations

from ..annealing import annealed
from ..checks import choice, real_number, steps_or_share, whole_number
from ..curves import Absolute, Constant, Curve, Min
from ..shapes import DECAYS, Noam, PowerLaw, Ramp, falling
from .parts import warmed

__all__ = ["infinite_curve", "noam_curve", "power_curve"]


def noam_curve(
    num_warmup_steps: int | float,
    num_training_steps: int | None = None,
    *,
    d_model: int | None = None,
    factor: float = 1.0,
) -> Curve:
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
    warmup = steps_or_share("num_warmup_steps", num_warmup_steps, num_training_steps)
    if warmup == 0:
        raise ValueError("noam is built around its warm-up: num_warmup_steps must be at least 1 (the paper's is 4000)")
    scale = real_number("factor", factor, above=0)
    curve: Curve = Noam(warmup)
    if d_model is not None:
        curve = curve * Absolute(scale * (whole_number("d_model", d_model, at_least=1) * warmup) ** -0.5)
    elif scale != 1.0:
        curve = curve * scale
    return curve if num_training_steps is None else curve.until(whole_number("num_training_steps", num_training_steps))


def power_curve(
    num_warmup_steps: int | float = 0,
    num_training_steps: int | None = None,
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
    warmup = steps_or_share("num_warmup_steps", num_warmup_steps, num_training_steps)
    sequences = whole_number("batch_size", batch_size, at_least=1)
    tokens = sequences * whole_number("sequence_length", sequence_length, at_least=1)
    exponent = real_number("b", b, below=0)
    law = PowerLaw(exponent) * Absolute(sequences * real_number("a", a, above=0) * tokens**exponent)
    top = Constant() if max_lr is None else Absolute(real_number("max_lr", max_lr, above=0))
    curve = warmed(Min(law, top).ahead(warmup), warmup)
    choice("decay_type", decay_type, DECAYS)
    decay = steps_or_share("num_decay_steps", num_decay_steps, num_training_steps)
    ratio = real_number("min_lr_ratio", min_lr_ratio, at_least=0, at_most=1)
    if num_training_steps is None:
        if decay:
            raise ValueError(f"num_decay_steps={decay} are the last before num_training_steps, which is not given")
        return curve
    total = whole_number("num_training_steps", num_training_steps)
    if decay:
        curve = annealed(curve, max(0, total - decay), min(total, decay), decay_type, ratio)
    return curve.until(total)


def infinite_curve(
    num_warmup_steps: int | float = 0,
    num_training_steps: int | None = None,
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
    warmup = steps_or_share("num_warmup_steps", num_warmup_steps, num_training_steps)
    down = steps_or_share("num_cooldown_steps", num_cooldown_steps, num_training_steps)
    anneal = steps_or_share("num_anneal_steps", num_anneal_steps, num_training_steps)
    least = real_number("min_lr_rate", min_lr_rate, at_least=0, at_most=1)
    constant = (1.0 + least) / 2.0 if constant_lr_rate is None else constant_lr_rate
    constant = real_number("constant_lr_rate", constant, above=0, at_least=least, at_most=1)
    choice("cooldown_type", cooldown_type, DECAYS)
    choice("anneal_type", anneal_type, DECAYS)
    total = None if num_training_steps is None else whole_number("num_training_steps", num_training_steps)
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
    return curve if total is None else curve.until(total)
