"""The schedules of timm, with timm's names for their options.

Their parts (:func:`cycles`, :func:`stable_then_decay`, :func:`risen`, :func:`noisy`) are also what
:mod:`schedules.timm` builds timm's own factory of. By name, num_training_steps (T) is the length of everything:
warm-up, all cycles, decay. From step T on the learning rate stays, and noise ends.

Source: timm 1.0.31, https://github.com/huggingface/pytorch-image-models.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..checks import choice, is_list, real_number, steps_or_share, whole_number
from ..curves import Absolute, Between, Constant, Curve, Cycles, EndLR, Max, Noise
from ..patterns import Milestones, Stairs
from ..scheduler import ScheduleLR
from ..shapes import DECAYS, Cosine, InverseSqrt, KDecay, Polynomial, Ramp, Tanh, falling
from ..table import checked_lengths, schedule

# timm's names for a way down, and ours. Its power is 1 - x ** p, and p can only be 1/2 in its factory.
DECAY_FNS = {**dict(zip(DECAYS, DECAYS, strict=True)), "power": "1-sqrt", "exp": "exponential"}


def cycles(share: Curve, steps: float, min_lr: float, mul: float, decay: float, limit: int | None) -> Curve:
    """``min_lr + (lr * decay ** i - min_lr) * share(x)`` in cycle i, x the share of it that is done; then ``min_lr``.

    Args:
        share: a curve of length 1.
        steps: length of the first cycle, with a fraction if need be.
        min_lr: the end of every cycle, an absolute learning rate.
        mul: length of a cycle over that of the one before.
        decay: top of a cycle over that of the one before.
        limit: how many cycles; None: no end.
    """
    return Between(Cycles(share, limit, mul), EndLR(min_lr), Stairs(1.0, decay, mul)).paced(steps)


def stable_then_decay(stable: Curve, steps: float, decay_steps: int, decay_fn: str, min_lr: float) -> Curve:
    """``m + (max(lr * stable(t), m) - m) * f(x)``, m = ``min_lr``, x the share done of the last ``decay_steps`` steps.

    The stable part runs on through the decay.
    """
    end = EndLR(min_lr)
    decay = falling(DECAY_FNS[choice("decay_fn", decay_fn, DECAY_FNS)], decay_steps)
    return Constant().then(decay, at=steps - decay_steps).between(end, Max(stable, end))


def risen(main: Curve, warmup: float, warmup_lr: float, prefix: bool, meets_curve: bool = False) -> Curve:
    """A line from ``warmup_lr`` to the initial learning rate in ``warmup`` steps, then ``main``.

    Args:
        main: the curve after the warm-up.
        warmup: steps of warm-up, 0 or more, with a fraction if need be.
        warmup_lr: an absolute learning rate; it may be above a group's own.
        prefix: ``main`` begins after the warm-up. Otherwise it has counted from step 0.
        meets_curve: where ``main`` has counted, the line leads to its value there, not to the initial learning rate.
    """
    if not warmup:
        return main
    top = main.ahead(warmup).until(0) if meets_curve and not prefix else Constant()
    rise = Ramp(1).paced(warmup).between(Absolute(real_number("warmup_lr", warmup_lr, at_least=0)), top)
    return rise.then(main, at=warmup) if prefix else rise.switch(main, at=warmup)


def noisy(curve: Curve, start: float | None, stop: float | None, pct: float, std: float, seed: int) -> Curve:
    """The curve with noise from step ``start`` (None: without) to ``stop`` (None: for ever)."""
    if start is None:
        return curve
    real_number("noise_pct", pct, above=0)
    real_number("noise_std", std, above=0)
    return Noise(curve, start, stop, pct, std, whole_number("noise_seed", seed))


def noise_bounds(name: str, value: float | Sequence[float]) -> list[float]:
    """Where the noise starts and, if that is given, where it stops; ``name`` is the argument that says so."""
    bounds = list(value) if is_list(value) else [value]
    if len(bounds) not in (1, 2):
        raise ValueError(f"{name} must be where the noise starts, or [start, stop]; got {value!r}")
    numbers = [real_number(name, bound, at_least=0) for bound in bounds]
    if numbers != sorted(numbers):
        raise ValueError(f"{name} must not stop before it starts, got {value!r}")
    return numbers


def _noise_steps(noise_range: float | Sequence[float] | None, total: int) -> tuple[int | None, int]:
    """The first step with noise, None for none, and the first without it again."""
    if noise_range is None:
        return None, total
    numbers = noise_bounds("noise_range", noise_range)
    if max(numbers) <= 1.0:
        steps = [round(number * total) for number in numbers]
    else:
        steps = [whole_number("noise_range", number) for number in numbers]
    start = steps[0]
    return start, max(start, min(total, *steps[1:]) if steps[1:] else total)


def delayed(share: Curve, k_decay: float) -> Curve:
    """A curve of length 1 that leaves its beginning later with ``k_decay`` above 1."""
    k_decay = real_number("k_decay", k_decay, above=0)
    return share if k_decay == 1.0 else KDecay(share, k_decay)


def _timm_schedule(
    name: str, description: str, aliases: Iterable[str] = (), *, prefix: bool | None = True, meets_curve: bool = False
) -> Callable[[Callable[..., Curve]], Callable[..., ScheduleLR]]:
    """Make a schedule of a curve that knows only its own steps; warm-up and noise, which all have, are added.

    Args:
        name: as for :func:`schedule`, like the next two.
        description: as there.
        aliases: as there.
        prefix: the default of ``warmup_prefix``; None: the curve always begins after the warm-up.
        meets_curve: see :func:`risen`.
    """

    def decorate(decay: Callable[..., Curve]) -> Callable[..., ScheduleLR]:
        def curve(
            num_warmup_steps: int | float,
            num_training_steps: int,
            *,
            warmup_lr: float = 0.0,
            warmup_prefix: bool = prefix is not False,
            noise_range: float | Sequence[float] | None = None,
            noise_pct: float = 0.67,
            noise_std: float = 1.0,
            noise_seed: int = 42,
            **own: Any,
        ) -> Curve:
            lengths = checked_lengths(num_warmup_steps, whole_number("num_training_steps", num_training_steps))
            warmup, total = lengths.warmup, lengths.total or 0
            if not isinstance(warmup_prefix, bool):
                raise TypeError(f"warmup_prefix must be True or False, got {warmup_prefix!r}")
            start, stop = _noise_steps(noise_range, total)
            if prefix is None:
                own["warmup"] = warmup
            main = decay(lengths.rest if warmup_prefix else total, **own)
            whole = risen(main, warmup, warmup_lr, warmup_prefix, meets_curve).until(total)
            return noisy(whole, start, stop, noise_pct, noise_std, noise_seed)

        return schedule(name, description, aliases=aliases)(
            _with_options_of(curve, decay, without="warmup_prefix" if prefix is None else "")
        )

    return decorate


def _in_cycles(share_of: Callable[..., Curve]) -> Callable[..., Curve]:
    """Repeat a curve of length 1, with the options that all cycles have."""

    def decay(
        steps: int,
        *,
        min_lr: float = 0.0,
        cycle_mul: float = 1.0,
        cycle_decay: float = 1.0,
        cycle_limit: int | None = 1,
        cycle_steps: float | None = None,
        **own: Any,
    ) -> Curve:
        share = share_of(**own)
        mul = real_number("cycle_mul", cycle_mul, above=0)
        real_number("min_lr", min_lr, at_least=0)
        real_number("cycle_decay", cycle_decay, at_least=0)
        limit = None if cycle_limit is None else whole_number("cycle_limit", cycle_limit, at_least=1)
        if cycle_steps is not None:
            return cycles(share, real_number("cycle_steps", cycle_steps, above=0), min_lr, mul, cycle_decay, limit)
        if limit is None:
            raise ValueError("cycle_limit=None repeats the cycles up to the end, so it needs cycle_steps, their length")
        whole = share.cycles(limit, mul).length  # all together, in lengths of the first
        if whole == math.inf:
            raise ValueError(f"cycle_limit={limit!r} with cycle_mul={mul!r} leaves no step for the first cycle")
        assert whole
        return cycles(share, max(1, steps) / whole, min_lr, mul, cycle_decay, limit)

    return _with_options_of(decay, share_of)


def _with_options_of(
    outer: Callable[..., Curve], inner: Callable[..., Curve], without: str = ""
) -> Callable[..., Curve]:
    """Give a function that passes ``**own`` on the name, text and keyword-only options of the one it passes them to."""
    *own, _ = inspect.signature(outer).parameters.values()
    options = [each for each in inspect.signature(inner).parameters.values() if each.kind is each.KEYWORD_ONLY]
    at = sum(each.kind is not each.KEYWORD_ONLY for each in own)
    parameters = [*own[:at], *options, *(each for each in own[at:] if each.name != without)]
    functools.update_wrapper(outer, inner)
    outer.__signature__ = inspect.Signature(parameters, return_annotation="Curve")  # type: ignore[attr-defined]
    return outer


@_timm_schedule(
    "cosine_with_cycles", "warm-up, then half cosines to min_lr, whose lengths and tops may change from one to the next"
)
@_in_cycles
def get_cosine_with_cycles_schedule(*, k_decay: float = 1.0) -> Curve:
    """Warm up, then half cosines to ``min_lr``, each from a top of its own: timm's cosine.

    In cycle i, of which the share x is done::

        lr(t) = m + (lr * cycle_decay^i - m) * (1 + cos(pi x^k_decay)) / 2        m = min_lr

    Cycle i takes ``cycle_mul^i`` times the steps of the first. With ``cycle_steps`` given, that is the length of the
    first cycle, and after ``cycle_limit`` cycles the lr is ``min_lr``; what lies beyond ``num_training_steps`` is cut
    off. Otherwise the length follows from the total: the cycles fill all steps after the warm-up (all steps from 0 on
    with ``warmup_prefix=False``), so that the last one ends at ``num_training_steps``.

    Args:
        num_warmup_steps: W, steps of warm-up, 0 or more: ``lr(t) = w + (lr - w) * t / W``, w = ``warmup_lr``.
        num_training_steps: T, steps of the whole schedule, warm-up and all cycles included.
        min_lr: absolute learning rate at the end of every cycle, at most the smallest initial lr (a group with lr 0
            stays at 0).
        cycle_mul: length of a cycle over that of the one before, above 0.
        cycle_decay: top of a cycle over that of the one before, 0 or more.
        cycle_limit: how many cycles, 1 or more. None: as many as fit, with ``cycle_steps``.
        cycle_steps: steps of the first cycle, above 0. Default: such that the cycles fill the total.
        k_decay: above 1 a cycle stays longer near its top, below 1 it leaves it sooner.
        warmup_lr: absolute learning rate at step 0, 0 or more.
        warmup_prefix: True: the first cycle begins after the warm-up. False: at step 0, and the warm-up takes the
            place of its first steps; the lr then jumps down a little at W.
        noise_range: where the noise is, None for none: its first step, or ``[first, stop]``. Numbers up to 1 are
            shares of the total. It ends at the total.
        noise_pct: bound of the noise n, above 0: ``lr(t) * (1 + n)``.
        noise_std: standard deviation of n, which is normal, and drawn again where it is outside the bound.
        noise_seed: seed of n; step t has its own, ``noise_seed + t``.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range, or ``min_lr`` is above a group's lr.

    Source: SGDR, https://arxiv.org/abs/1608.03983; k-decay, https://arxiv.org/abs/2004.05909; timm's
    ``CosineLRScheduler``.
    """
    return delayed(Cosine(1), k_decay)


@_timm_schedule("tanh", "warm-up, then along the hyperbolic tangent to min_lr, in cycles if wanted", meets_curve=True)
@_in_cycles
def get_tanh_schedule(*, lb: float = -7.0, ub: float = 3.0) -> Curve:
    """Warm up, then fall along the hyperbolic tangent: long near the top, then steeply to ``min_lr``.

    In cycle i, of which the share x is done::

        lr(t) = m + (lr * cycle_decay^i - m) * (1 - tanh(lb + (ub - lb) x)) / 2        m = min_lr

    The other arguments are the arguments of :func:`schedules.get_cosine_with_cycles_schedule`. With
    ``warmup_prefix=False`` the warm-up leads to where the curve is at its end.

    Args:
        lb: where the tangent is entered; -7 is 1 but for 1e-6.
        ub: where it is left, above ``lb``; 3 is 0 but for 0.0025, and what is left is dropped at the end.

    Raises:
        TypeError, ValueError: as there, or ``lb`` is not below ``ub``.

    Source: https://arxiv.org/abs/1806.01593; timm's ``TanhLRScheduler``.
    """
    return Tanh(1, lb, ub)


@_timm_schedule("poly", "warm-up, then a power of the remaining share to min_lr, in cycles if wanted")
@_in_cycles
def get_poly_schedule(*, power: float = 0.5, k_decay: float = 1.0) -> Curve:
    """Warm up, then fall by a power of what remains to ``min_lr``, in cycles: timm's poly.

    In cycle i, of which the share x is done::

        lr(t) = m + (lr * cycle_decay^i - m) * (1 - x^k_decay)^power        m = min_lr

    The other arguments are the arguments of :func:`schedules.get_cosine_with_cycles_schedule`.

    Args:
        power: above 0; 1 is a line, 0.5 falls late.

    Raises:
        TypeError, ValueError: as there, or ``power`` is out of range.

    Source: timm's ``PolyLRScheduler``.
    """
    return delayed(Polynomial(1, power), k_decay)


@_timm_schedule("step", "warm-up, multiplied by decay_rate every decay_steps steps", prefix=False)
def get_step_schedule(steps: int, *, decay_steps: float = 0.3, decay_rate: float = 0.1) -> Curve:
    """Warm up, and multiply by ``decay_rate`` every ``decay_steps`` steps: ``lr(t) = lr * decay_rate^floor(t / n)``.

    ``warmup_prefix`` is False by default: the steps are counted from 0, with the warm-up; True counts them from its
    end. The other arguments are the arguments of :func:`schedules.get_cosine_with_cycles_schedule`.

    Args:
        decay_steps: n, 1 or more, or a share of the steps counted, above 0 and below 1.
        decay_rate: 0 or more.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Source: timm's ``StepLRScheduler``; torch's ``StepLR`` is the same without a warm-up.
    """
    every = steps_or_share("decay_steps", decay_steps, max(1, steps))
    return Stairs(whole_number("decay_steps", every, at_least=1), real_number("decay_rate", decay_rate, at_least=0))


@_timm_schedule(
    "multistep", "warm-up, multiplied by decay_rate at every one of milestones", ["multi_step"], prefix=False
)
def get_multistep_schedule(
    steps: int, *, milestones: Sequence[float] = (0.3, 0.6, 0.9), decay_rate: float = 0.1
) -> Curve:
    """Warm up, and multiply by ``decay_rate`` at every milestone: ``lr(t) = lr * decay_rate^i``, i of them passed.

    A milestone is the first step with the lower learning rate, as in torch; timm's own lowers it one step before.
    ``warmup_prefix`` is False by default: milestones are counted from step 0, with the warm-up; True counts them from
    its end. The other arguments are the arguments of :func:`schedules.get_cosine_with_cycles_schedule`.

    Args:
        milestones: steps in ascending order, or shares of the steps counted, above 0 and below 1.
        decay_rate: 0 or more.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Source: timm's ``MultiStepLRScheduler``, torch's ``MultiStepLR``.
    """
    if not is_list(milestones):
        raise TypeError(f"milestones must be a list of steps, got {milestones!r}")
    at = tuple(steps_or_share("milestones", milestone, max(1, steps)) for milestone in milestones)
    return Milestones(at, real_number("decay_rate", decay_rate, at_least=0))


@_timm_schedule("rsqrt", "warm-up, then one over the root of the steps, cooled down to min_lr at the end", prefix=None)
def get_rsqrt_schedule(
    steps: int,
    warmup: int,
    *,
    min_lr: float = 0.0,
    decay_steps: float = 0.2,
    decay_fn: str = "linear",
    stable_timescale: float | None = None,
) -> Curve:
    """Warm up, fall with one over the root of the steps, and cool down to ``min_lr`` in the last ``decay_steps`` steps.

    With t - W steps after the warm-up and the share x of the cooldown done::

        lr(t) = m + (max(m, lr / sqrt((t - W + timescale) / timescale)) - m) * f(x)        m = min_lr

    The other arguments are the arguments of :func:`schedules.get_cosine_with_cycles_schedule`; there is no
    ``warmup_prefix``.

    Args:
        min_lr: absolute learning rate that the lr never falls below, at most the smallest initial lr.
        decay_steps: steps of the cooldown, or a share of the steps after the warm-up, above 0 and below 1.
        decay_fn: f: ``linear`` 1 - x, ``1-sqrt`` or ``power`` 1 - sqrt(x), ``1-square`` 1 - x^2, ``cosine``
            (1 + cos(pi x)) / 2, ``exponential`` or ``exp`` (0.1^x - 0.1) / 0.9.
        stable_timescale: steps after the warm-up in which the lr falls to 1 / sqrt(2); above 0. Default: W, or 10 000
            if W is 0.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Source: Scaling Vision Transformers, https://arxiv.org/abs/2106.04560; timm's ``WSDLRScheduler``.
    """
    timescale = warmup or 10_000 if stable_timescale is None else stable_timescale
    decay = steps_or_share("decay_steps", decay_steps, steps)
    if decay > steps:
        raise ValueError(f"decay_steps={decay} is more than the {steps} steps after the warm-up")
    real_number("min_lr", min_lr, at_least=0)
    stable = InverseSqrt(real_number("stable_timescale", timescale, above=0))
    return stable_then_decay(stable, steps, decay, decay_fn, min_lr)
