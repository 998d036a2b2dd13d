"""The schedules of torch.optim.lr_scheduler that transformers does not have, and momenta that go with them.

W is ``num_warmup_steps`` and T is ``num_training_steps``. From step T on the multiplier stays where it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from ..checks import choice, is_list, real_number, whole_number
from ..curves import Absolute, Constant, Curve, cycle_at
from ..patterns import Geometric, Phases, Products, Triangles
from ..shapes import Cosine, spanned
from ..table import Lengths, checked_lengths, described, schedule, to_first_value

# With a warm-up and an end only if they are given.
_endless = functools.partial(schedule, warmup=0, total=None, rise=to_first_value)
_ANNEALING = {"cos": "cosine", "cosine": "cosine", "linear": "linear"}


@schedule("one_cycle", "up to the peak, then far below where it began", aliases=["onecycle"])
def get_one_cycle_schedule(
    num_warmup_steps: int | float,
    num_training_steps: int,
    *,
    max_lr: float | None = None,
    pct_start: float | None = None,
    anneal_strategy: str = "cos",
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    three_phase: bool = False,
) -> Curve:
    """Up from a small learning rate to the maximum, then down to a much smaller one: the 1cycle policy.

    From ``lr / d`` at step 0 to ``lr`` at step ``p T - 1``, then to ``lr / (d f)`` at step T - 1, d = ``div_factor``,
    f = ``final_div_factor``; in three phases back to ``lr / d`` at step ``2 p T - 2`` in between. Each phase is
    ``b + (a - b) (1 + cos(pi x)) / 2`` or ``a + (b - a) x``, x the share of it that is done.

    Args:
        num_warmup_steps: the step that has the maximum, or a share of T; 0: ``pct_start`` says where it is.
        num_training_steps: T, steps of the whole schedule.
        max_lr: the learning rate at the peak, the same in every group. Default: each group's own.
        pct_start: p, share of T before the peak, from 0 to 1; 0.3 by default.
        anneal_strategy: ``cos`` or ``linear``.
        div_factor: d, the maximum over the first learning rate, above 0.
        final_div_factor: f, the first learning rate over the last, above 0.
        three_phase: three phases, as in the paper, in place of two.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range, or ``num_warmup_steps`` and
            ``pct_start`` both say where the peak is.

    Source: Super-Convergence, https://arxiv.org/abs/1708.07120, in the form of torch's OneCycleLR.
    """
    first = 1.0 / real_number("div_factor", div_factor, above=0)
    last = first / real_number("final_div_factor", final_div_factor, above=0)
    levels = (first, 1.0, first, last) if three_phase else (first, 1.0, last)
    curve = _one_cycle(levels, num_warmup_steps, num_training_steps, pct_start, anneal_strategy)
    return spanned(curve, max_lr, 0.0)


def one_cycle_momentum(
    num_warmup_steps: int | float,
    num_training_steps: int,
    *,
    base_momentum: float = 0.85,
    max_momentum: float = 0.95,
    pct_start: float | None = None,
    anneal_strategy: str = "cos",
    three_phase: bool = False,
) -> Curve:
    """The momentum of the 1cycle policy: low where the learning rate is high. For ``schedule_hyperparameter``.

    From ``max_momentum`` to ``base_momentum`` and back, in the phases of :func:`get_one_cycle_schedule`; a third phase
    stays at ``max_momentum``. These are the values themselves, whatever momentum (or beta1) the optimizer began with.

    Args:
        num_warmup_steps: as for :func:`get_one_cycle_schedule`.
        num_training_steps: as there.
        base_momentum: the momentum at the peak of the learning rate, from 0 to below 1.
        max_momentum: the momentum at the ends, from 0 to below 1.
        pct_start: as for :func:`get_one_cycle_schedule`.
        anneal_strategy: as there.
        three_phase: as there.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Source: https://arxiv.org/abs/1708.07120, in the form of torch's OneCycleLR.
    """
    low = real_number("base_momentum", base_momentum, at_least=0, below=1)
    high = real_number("max_momentum", max_momentum, at_least=0, below=1)
    levels = (high, low, high, high) if three_phase else (high, low, high)
    return _one_cycle(levels, num_warmup_steps, num_training_steps, pct_start, anneal_strategy) * Absolute(1.0)


def _one_cycle(
    levels: tuple[float, ...],
    num_warmup_steps: int | float,
    num_training_steps: int,
    pct_start: float | None,
    anneal_strategy: str,
) -> Curve:
    warmup, total = checked_lengths(num_warmup_steps, whole_number("num_training_steps", num_training_steps))
    assert total is not None
    shape = _ANNEALING[choice("anneal_strategy", anneal_strategy, _ANNEALING)]
    if warmup and pct_start is not None:
        raise ValueError(
            f"num_warmup_steps={num_warmup_steps!r} and pct_start={pct_start!r} both say where the peak is: give one"
        )
    share = real_number("pct_start", 0.3 if pct_start is None else pct_start, at_least=0, at_most=1)
    peak = float(warmup or share * total - 1)
    last = float(max(0, total - 1))
    stops = (peak, last) if len(levels) == 3 else (peak, 2 * peak, last)
    return Phases(levels, stops, shape).until(last)


@_endless("cyclic", "triangles between two learning rates, with a scale for each cycle")
def get_cyclic_schedule(
    lengths: Lengths,
    *,
    base_lr: float | None = None,
    max_lr: float | None = None,
    step_size_up: int = 2000,
    step_size_down: int | None = None,
    mode: str = "triangular",
    gamma: float = 1.0,
    scale_fn: Callable[[float], float] | None = None,
    scale_mode: str = "cycle",
) -> Curve:
    """Up and down between two learning rates, again and again: ``base_lr + (max_lr - base_lr) * h(t) * s``.

    The height h goes from 0 to 1 in ``step_size_up`` steps and back in ``step_size_down``. The scale s is 1
    (``triangular``), ``1 / 2 ** (c - 1)`` in cycle c, counted from 1 (``triangular2``), ``gamma ** t`` (``exp_range``),
    or ``scale_fn`` of c or t. A warm-up leads from 0 to ``base_lr``, and the cycles start after it.

    Args:
        num_warmup_steps: W, steps before the first cycle, or a share of T.
        num_training_steps: T; the learning rate stays from there on. None: no end.
        base_lr: the lower learning rate, the same in every group. Default: a quarter of the upper one.
        max_lr: the upper learning rate, the same in every group. Default: each group's own.
        step_size_up: steps up, 1 or more.
        step_size_down: steps down, 0 or more. Default: as many as up.
        mode: ``triangular``, ``triangular2`` or ``exp_range``.
        gamma: base of ``exp_range``, above 0.
        scale_fn: a function in place of ``mode``, picklable if the curve shall be. It cannot be written in JSON.
        scale_mode: ``cycle`` or ``iterations``: what ``scale_fn`` is given.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Source: https://arxiv.org/abs/1506.01186; the quarter is its rule of thumb in section 3.3.
    """
    share = _triangles(step_size_up, step_size_down, mode, gamma, scale_fn, scale_mode)
    if base_lr is None:
        return spanned(share.floor(0.25), max_lr, 0.0)
    return spanned(share, max_lr, base_lr, ("max_lr", "base_lr"))


def cyclic_momentum(
    *,
    base_momentum: float = 0.8,
    max_momentum: float = 0.9,
    step_size_up: int = 2000,
    step_size_down: int | None = None,
    mode: str = "triangular",
    gamma: float = 1.0,
    scale_fn: Callable[[float], float] | None = None,
    scale_mode: str = "cycle",
) -> Curve:
    """The momentum of ``cyclic``: low where the learning rate is high. For ``schedule_hyperparameter``.

    ``max_momentum - (max_momentum - base_momentum) * h(t) * s``. These are the values themselves, whatever momentum
    (or beta1) the optimizer began with.

    Args:
        base_momentum: the momentum at the peak of a cycle of scale 1, from 0 to below 1.
        max_momentum: the momentum at the beginning of a cycle, from 0 to below 1.
        step_size_up: as for :func:`get_cyclic_schedule`, like all that follow.
        step_size_down: as there.
        mode: as there.
        gamma: as there.
        scale_fn: as there.
        scale_mode: as there.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Source: torch's CyclicLR.
    """
    low = real_number("base_momentum", base_momentum, at_least=0, below=1)
    high = real_number("max_momentum", max_momentum, at_least=0, below=1)
    share = _triangles(step_size_up, step_size_down, mode, gamma, scale_fn, scale_mode)
    return share.between(high, low) * Absolute(1.0)


def _triangles(
    step_size_up: int,
    step_size_down: int | None,
    mode: str,
    gamma: float,
    scale_fn: Callable[[float], float] | None,
    scale_mode: str,
) -> Curve:
    up = whole_number("step_size_up", step_size_up, at_least=1)
    down = up if step_size_down is None else whole_number("step_size_down", step_size_down)
    choice("scale_mode", scale_mode, ("cycle", "iterations"))
    return Triangles(up, down, mode, gamma, scale_fn, scale_mode == "iterations")


@_endless("exponential", "warm-up, then multiplied by gamma at every step")
def get_exponential_schedule(lengths: Lengths, *, gamma: float) -> Curve:
    """``lr * gamma ** (t - W)`` after the warm-up.

    Args:
        num_warmup_steps: W, steps of warm-up from 0, or a share of T.
        num_training_steps: T; the learning rate stays from there on. None: no end.
        gamma: the factor from one step to the next, above 0.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Source: torch's ExponentialLR.
    """
    return Geometric(real_number("gamma", gamma, above=0))


@_endless("multiplicative", "warm-up, then multiplied by a factor at every step: a number, a list or a function")
def get_multiplicative_schedule(lengths: Lengths, *, factor: float | Sequence[float] | Callable[[int], float]) -> Curve:
    """``lr * factor(1) * factor(2) * ... * factor(t - W)`` after the warm-up.

    Args:
        num_warmup_steps: W, steps of warm-up from 0, or a share of T.
        num_training_steps: T; the learning rate stays from there on. None: no end.
        factor: the factor of every step; or a list of factors, the first for the first step after the warm-up, the
            learning rate stays after the last; or a function of the step, from 1 on, picklable if the curve shall be.
            Each 0 or more. A list is one for all groups, not one for each as in torch.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Source: torch's MultiplicativeLR.
    """
    if callable(factor):
        return Products(factor)
    if is_list(factor):
        return Products(tuple(factor))
    return Geometric(real_number("factor", factor, at_least=0))


@schedule("cosine_annealing", "warm-up, then half a cosine to the learning rate eta_min", rise=to_first_value)
def get_cosine_annealing_schedule(lengths: Lengths, *, T_max: int | None = None, eta_min: float = 0.0) -> Curve:
    """``m + (lr - m) (1 + cos(pi (t - W) / T_max)) / 2`` after the warm-up, m = ``eta_min``; then it stays at m.

    Args:
        num_warmup_steps: W, steps of warm-up from 0, or a share of T.
        num_training_steps: T, steps of the whole schedule, warm-up included.
        T_max: steps of the way down, 1 or more. Default: T - W.
        eta_min: m, a learning rate, the same in every group, at most the smallest one.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Source: SGDR, https://arxiv.org/abs/1608.03983, without restarts: torch's CosineAnnealingLR.
    """
    down = lengths.rest if T_max is None else whole_number("T_max", T_max, at_least=1)
    return spanned(Cosine(down), None, eta_min, ("max_lr", "eta_min"))


@_endless(
    "cosine_annealing_with_warm_restarts",
    "warm-up, then half cosines of growing length, each from the peak",
    aliases=["cosine_annealing_warm_restarts", "cosine_annealing_with_warm_restart"],
)
def get_cosine_annealing_with_warm_restarts_schedule(
    lengths: Lengths, *, T_0: int, T_mult: float = 1, eta_min: float = 0.0
) -> Curve:
    """Half cosines from the learning rate to ``eta_min``, cycle i ``T_0 * T_mult ** i`` steps long.

    ``m + (lr - m) (1 + cos(pi x)) / 2``, x the share of the cycle that is done, m = ``eta_min``. A run that ends with a
    cycle stays at m after it: there is no restart at step T.

    Args:
        num_warmup_steps: W, steps of warm-up from 0, or a share of T.
        num_training_steps: T; the learning rate stays from there on. None: no end.
        T_0: steps of the first cycle, 1 or more.
        T_mult: length of a cycle over that of the one before, 1 or more.
        eta_min: m, a learning rate, the same in every group, at most the smallest one.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Source: SGDR, https://arxiv.org/abs/1608.03983: torch's CosineAnnealingWarmRestarts.
    """
    first = whole_number("T_0", T_0, at_least=1)
    mul = real_number("T_mult", T_mult, at_least=1)
    count = None
    if lengths.rest > 0:
        index, start, _ = cycle_at(lengths.rest, first, mul)
        count = index if start == lengths.rest else None
    return spanned(Cosine(first).cycles(count, mul), None, eta_min, ("max_lr", "eta_min"))


@_endless("constant_factor", "a factor for total_iters steps, then the initial learning rate")
def get_constant_factor_schedule(lengths: Lengths, *, factor: float = 1.0 / 3.0, total_iters: int = 5) -> Curve:
    """``lr * factor`` for ``total_iters`` steps, then ``lr``.

    Args:
        num_warmup_steps: W, steps of warm-up from 0 before, or a share of T.
        num_training_steps: T; the learning rate stays from there on. None: no end.
        factor: the multiplier, 0 or more.
        total_iters: steps with the factor, 0 or more.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Source: torch's ConstantLR, which is pytorch_optimizer's ``constant``.
    """
    level = Constant(real_number("factor", factor, at_least=0))
    return level.then(Constant(), at=whole_number("total_iters", total_iters))


@_endless("linear_factor", "from one factor to another on a line in total_iters steps")
def get_linear_factor_schedule(
    lengths: Lengths, *, start_factor: float = 1.0 / 3.0, end_factor: float = 1.0, total_iters: int = 5
) -> Curve:
    """``lr * (s + (e - s) min(t, n) / n)``: from s = ``start_factor`` to e = ``end_factor``, n = ``total_iters``.

    Args:
        num_warmup_steps: W, steps of warm-up from 0 before, or a share of T.
        num_training_steps: T; the learning rate stays from there on. None: no end.
        start_factor: the first multiplier, 0 or more.
        end_factor: the last multiplier, 0 or more.
        total_iters: steps between the two, 0 or more.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Source: torch's LinearLR.
    """
    start = real_number("start_factor", start_factor, at_least=0)
    end = real_number("end_factor", end_factor, at_least=0)
    return Phases((start, end), (float(whole_number("total_iters", total_iters)),), "linear")


@schedule("sequential", "several schedules one after the other", warmup=0, total=None)
def get_sequential_schedule(
    lengths: Lengths, *, schedules: Sequence[Curve | str | Sequence[Any]], milestones: Sequence[int] = ()
) -> Curve:
    """One schedule after the other: number i from ``milestones[i - 1]`` on, each counting from 0 at its beginning.

        >>> options = {"schedules": [["linear_factor", {"total_iters": 100}], "cosine"], "milestones": [100]}
        >>> get_scheduler("sequential", optimizer, 0, 1000, options)  # doctest: +SKIP

    Args:
        num_warmup_steps: warm-up of the first schedule, where that does not name its own; steps, or a share of T.
        num_training_steps: T; the learning rate stays from there on. None: the last schedule decides.
        schedules: each a name, a pair of a name and a dict of its arguments, or a curve. A
            ``num_training_steps`` that is not given is the number of steps to the next milestone, or to T; the
            ``num_warmup_steps`` of all but the first are 0 unless given.
        milestones: the first steps of the second, third, ... schedule, one less than there are schedules, ascending.

    Raises:
        TypeError: a schedule is none of the three, or takes no such argument.
        ValueError: the numbers of schedules and milestones do not fit, or what :func:`schedules.get_curve` raises.

    Source: torch's SequentialLR.
    """
    if not is_list(schedules) or not schedules:
        raise TypeError(f"schedules must be a list of schedules, got {schedules!r}")
    if not is_list(milestones):
        raise TypeError(f"milestones must be a list of steps, got {milestones!r}")
    starts = [0, *(whole_number("milestones", each, at_least=1) for each in milestones)]
    if starts != sorted(set(starts)):
        raise ValueError(f"milestones must be ascending, got {list(milestones)!r}")
    if len(starts) != len(schedules):
        raise ValueError(f"{len(schedules)} schedules need {len(schedules) - 1} milestones, got {list(milestones)!r}")
    whole: Curve | None = None
    for index, (each, start) in enumerate(zip(schedules, starts, strict=True)):
        end = starts[index + 1] if index + 1 < len(starts) else lengths.total
        steps = None if end is None else max(0, end - start)
        curve = described(f"schedules[{index}]", each, 0 if index else lengths.warmup, steps)
        whole = curve if whole is None else whole.then(curve, at=start)
    assert whole is not None
    return whole
