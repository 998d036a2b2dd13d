"""The schedules of DeepSpeed, with the names that its configurations have.

Options without DeepSpeed's prefixes: ``min_lr`` is its ``warmup_min_lr`` or ``lr_range_test_min_lr``, and so on.
W is ``num_warmup_steps`` (its ``warmup_num_steps``), T is ``num_training_steps`` (its ``total_num_steps``).

DeepSpeed takes its first two steps at the lowest learning rate, so that all of ``WarmupLR`` and ``WarmupDecayLR`` and
the warm-up of ``WarmupCosineLR`` are one step late; here they are not.

Source: https://github.com/deepspeedai/DeepSpeed, ``deepspeed/runtime/lr_schedules.py``.
"""

from __future__ import annotations

from ..checks import choice, real_number, whole_number
from ..curves import Constant, Curve
from ..patterns import Rising
from ..shapes import Cosine, Linear, LogRamp, Ramp, spanned
from ..table import Lengths, schedule

WARMUPS = ("log", "linear")


def _warmed(lengths: Lengths, following: Curve, warmup_type: str, start: float = 0.0) -> Curve:
    """A warm-up from ``start`` to 1 by one of WARMUPS, then a curve."""
    shape = LogRamp if choice("warmup_type", warmup_type, WARMUPS) == "log" else Ramp
    return shape(lengths.warmup).floor(start).then(following)


@schedule("lr_range_test", "a line up without end, to find the largest learning rate", aliases=["lrrangetest"])
def get_lr_range_test_schedule(
    num_training_steps: int | None = None,
    *,
    min_lr: float | None = None,
    step_size: int = 2000,
    step_rate: float = 1.0,
    staircase: bool = False,
) -> Curve:
    """``min_lr * (1 + step_rate * t / step_size)``: up on a line, or on stairs, until training diverges.

    Args:
        num_training_steps: T; the learning rate stays from there on. None: no end.
        min_lr: the learning rate at step 0, the same in every group. Default: each group's own. DeepSpeed's is 1e-3.
        step_size: steps in which ``step_rate`` times ``min_lr`` is added, 1 or more.
        step_rate: above 0.
        staircase: add it at once after each ``step_size`` steps.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Source: https://arxiv.org/abs/1803.09820, DeepSpeed's ``LRRangeTest``.
    """
    size = whole_number("step_size", step_size, at_least=1)
    curve = spanned(Rising(real_number("step_rate", step_rate, above=0), size, staircase), min_lr, 0.0, ("min_lr", ""))
    return curve if num_training_steps is None else curve.until(whole_number("num_training_steps", num_training_steps))


@schedule("warmup_lr", "warm-up by the logarithm, then the initial learning rate", aliases=["warmuplr"], total=None)
def get_warmup_lr_schedule(
    lengths: Lengths, *, min_lr: float = 0.0, max_lr: float | None = None, warmup_type: str = "log"
) -> Curve:
    """``m + (lr - m) log(t + 1) / log(W)`` for t < W, m = ``min_lr``, then ``lr``. Step W - 1 has the full lr.

    Args:
        num_warmup_steps: W, steps of warm-up, or a share of T. DeepSpeed's default is 1000.
        num_training_steps: T; the learning rate stays from there on. None: no end.
        min_lr: m, the learning rate at step 0, the same in every group.
        max_lr: the learning rate after the warm-up, the same in every group. Default: each group's own.
        warmup_type: ``log``, or ``linear``: ``m + (lr - m) t / W``.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Source: DeepSpeed's ``WarmupLR``.
    """
    return spanned(_warmed(lengths, Constant(), warmup_type), max_lr, min_lr)


@schedule("warmup_decay_lr", "warm-up by the logarithm, then a line to min_lr", aliases=["warmupdecaylr"])
def get_warmup_decay_lr_schedule(
    lengths: Lengths, *, min_lr: float = 0.0, max_lr: float | None = None, warmup_type: str = "log"
) -> Curve:
    """Warm up as ``warmup_lr``, then fall to ``min_lr`` on a line: ``m + (lr - m) (T - t) / (T - W)``.

    Args:
        num_warmup_steps: W, steps of warm-up, or a share of T. DeepSpeed's default is 1000.
        num_training_steps: T, steps of the whole schedule, warm-up included.
        min_lr: m, the learning rate at both ends, the same in every group.
        max_lr: the learning rate after the warm-up, the same in every group. Default: each group's own. DeepSpeed's
            is 0.001.
        warmup_type: ``log`` or ``linear``, see :func:`schedules.get_warmup_lr_schedule`.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Source: DeepSpeed's ``WarmupDecayLR``.
    """
    return spanned(_warmed(lengths, Linear(lengths.rest), warmup_type), max_lr, min_lr)


@schedule("warmup_cosine_lr", "warm-up by the logarithm, then half a cosine to a share", aliases=["warmupcosinelr"])
def get_warmup_cosine_lr_schedule(
    lengths: Lengths, *, warmup_min_ratio: float = 0.0, cos_min_ratio: float = 1e-4, warmup_type: str = "log"
) -> Curve:
    """Warm up from a share of the learning rate, then half a cosine to another one.

    ``lr (r + (1 - r) log(t + 1) / log(W))`` for t < W, then ``lr (c + (1 - c) (1 + cos(pi (t - W) / (T - W))) / 2)``.

    Args:
        num_warmup_steps: W, steps of warm-up, or a share of T. DeepSpeed's default is 1000.
        num_training_steps: T, steps of the whole schedule, warm-up included.
        warmup_min_ratio: r, share of the learning rate at step 0, from 0 to 1.
        cos_min_ratio: c, share of the learning rate at the end, from 0 to 1.
        warmup_type: ``log`` or ``linear``, see :func:`schedules.get_warmup_lr_schedule`.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Source: DeepSpeed's ``WarmupCosineLR``.
    """
    start = real_number("warmup_min_ratio", warmup_min_ratio, at_least=0, at_most=1)
    end = real_number("cos_min_ratio", cos_min_ratio, at_least=0, at_most=1)
    return _warmed(lengths, Cosine(lengths.rest).floor(end), warmup_type, start)
