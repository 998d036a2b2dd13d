"""The schedules of DeepSpeed, Keras and optax at every step, power decay, Seesaw's pair and WSM's weights."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from lr_trace import make

import schedules
from schedules.drawing import EXAMPLES
from schedules.shapes import falling

LRS = (0.05, 0.2)
W, T = 10, 60


def scheduler(name: str, *args: Any, **kwargs: Any) -> Any:
    return schedules.get_scheduler(name, *args, **kwargs)


def multipliers(name: str, warmup: int | None, total: int | None, **options: Any) -> list[float]:
    return schedules.get_curve(name, warmup, total, options).bind(LRS[0]).values(90)


# --- DeepSpeed --------------------------------------------------------------------------------------------------------
# deepspeed/runtime/lr_schedules.py of https://github.com/deepspeedai/DeepSpeed (0.19), in NumPy; i is its
# `last_batch_iteration`, which is -1 in the first step of the optimizer and 0 in the second.


def warmup_gamma(i: int, kind: str) -> float:
    return float(np.log(i + 1) / np.log(max(2, W))) if kind == "log" else i / W


def warmup_lr(i: int, kind: str) -> float:
    return warmup_gamma(i, kind) if i < W else 1.0


def warmup_decay_lr(i: int, kind: str) -> float:
    return warmup_gamma(i, kind) if i < W else max(0.0, (T - i) / max(1.0, T - W))


def warmup_cosine_lr(i: int, kind: str, first: float, last: float) -> float:
    if i < W:
        return first + (1 - first) * warmup_gamma(i, kind)
    progress = min(1.0, (i - W + 1) / max(1, T - W))
    return last + (1 - last) * (1 + float(np.cos(np.pi * progress))) / 2


@pytest.mark.parametrize("kind", ["log", "linear"])
def test_deepspeeds_warmups(kind: str) -> None:
    """Theirs at i are ours at step i, which is one step of the optimizer earlier."""
    for name, theirs, total in (("WarmupLR", warmup_lr, None), ("WarmupDecayLR", warmup_decay_lr, T)):
        ours = multipliers(name, W, total, warmup_type=kind)
        assert ours == pytest.approx([theirs(i, kind) for i in range(90)], rel=1e-12, abs=1e-15)
    ours = multipliers("WarmupCosineLR", W, T, warmup_type=kind, warmup_min_ratio=0.1, cos_min_ratio=0.01)
    of_theirs = [warmup_cosine_lr(i, kind, 0.1, 0.01) for i in range(90)]
    assert ours[:W] == pytest.approx(of_theirs[:W], rel=1e-12)
    assert ours[W] == 1.0
    # Their cosine is one step ahead of their count, and so on time.
    assert ours[W + 1 :] == pytest.approx(of_theirs[W:-1], rel=1e-12)


def test_deepspeeds_absolute_learning_rates() -> None:
    schedule = scheduler("warmup_decay_lr", make(*LRS), W, T, {"min_lr": 0.01, "max_lr": 0.1})
    for i in range(T):
        lr = 0.01 + (0.1 - 0.01) * warmup_decay_lr(i, "log")
        assert schedule.lr_at(i) == pytest.approx([lr, lr], rel=1e-12)
    own = scheduler("warmup_lr", make(*LRS), W, None, {"min_lr": 0.01})
    assert own.lr_at(0) == pytest.approx([0.01, 0.01])
    assert own.lr_at(W - 1) == own.lr_at(500) == pytest.approx(LRS)
    one = scheduler("warmup_lr", make(*LRS), 1)
    assert [one.lr_at(0), one.lr_at(1)] == [[0, 0], list(LRS)]


@pytest.mark.parametrize("staircase", [False, True])
def test_deepspeeds_range_test(staircase: bool) -> None:
    def theirs(i: int) -> float:
        interval = (i + 1) / 7
        return 1e-3 * (1 + 0.5 * (math.floor(interval) if staircase else interval))

    options = {"min_lr": 1e-3, "step_size": 7, "step_rate": 0.5, "staircase": staircase}
    schedule = scheduler("LRRangeTest", make(*LRS), scheduler_specific_kwargs=options)
    for step in range(90):  # the first step is taken at min_lr, before their first count
        assert schedule.lr_at(step) == pytest.approx([1e-3 if step == 0 else theirs(step - 1)] * 2, rel=1e-12)
    assert multipliers("lr_range_test", None, None, step_size=7)[14] == 3.0


# --- Keras and optax --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("staircase", [False, True])
def test_inverse_time_is_that_of_keras(staircase: bool) -> None:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    theirs = keras.optimizers.schedules.InverseTimeDecay(LRS[0], 7, 0.4, staircase=staircase)
    ours = multipliers("InverseTimeDecay", None, None, decay_steps=7, decay_rate=0.4, staircase=staircase)
    # Theirs are float32.
    assert [LRS[0] * each for each in ours] == pytest.approx([float(theirs(step)) for step in range(90)], rel=1e-6)
    warmed = multipliers("inverse_time", W, T, decay_steps=7, decay_rate=0.4, staircase=staircase)
    assert warmed[W:T] == ours[: T - W]
    assert warmed[T:] == [warmed[T]] * 30


def optax_piecewise_interpolate(kind: str, boundaries_and_scales: dict[int, float]) -> Callable[[int], float]:
    """`optax.schedules.piecewise_interpolate_schedule` (0.2) with an initial value of 1, in NumPy."""
    boundaries, scales = zip(*sorted(boundaries_and_scales.items()), strict=True)
    bounds, values = np.stack((0, *boundaries)), np.cumprod(np.stack((1.0, *scales)))

    def schedule(count: int) -> float:
        inside = (bounds[:-1] <= count) & (count < bounds[1:])
        share = (count - bounds[:-1]) / (bounds[1:] - bounds[:-1])
        start, end = values[:-1], values[1:]
        cosine = (start - end) / 2.0 * (np.cos(np.pi * share) + 1) + end
        between = start + share * (end - start) if kind == "linear" else cosine
        return float(inside.dot(between) + (bounds[-1] <= count) * values[-1])

    return schedule


@pytest.mark.parametrize("kind", ["linear", "cosine"])
@pytest.mark.parametrize("points", [{20: 0.5}, {50: 2.0, 5: 0.1, 17: 3.0}])
def test_piecewise_interpolate_is_that_of_optax(kind: str, points: dict[int, float]) -> None:
    theirs = optax_piecewise_interpolate(kind, points)
    ours = multipliers("piecewise_interpolate", 0, None, boundaries_and_scales=points, interpolate_type=kind)
    assert ours == pytest.approx([theirs(step) for step in range(90)], rel=1e-12)


def test_boundaries_may_be_shares_and_text() -> None:
    as_text = multipliers("piecewise_interpolate", W, T, boundaries_and_scales={"0.5": 0.5, "40": "0.1"})
    assert as_text == multipliers("piecewise_interpolate", W, T, boundaries_and_scales={25: 0.5, 40: 0.1})
    for wrong, error, message in (
        ([1], TypeError, "must be a dict"),
        ({25: 1, "0.5": 2}, ValueError, "different steps"),
        ({0: 1.0}, ValueError, "after step 0"),
        ({5: -1.0}, ValueError, "the scale at 5 must be at least 0"),
        ({"five": 1.0}, TypeError, "a boundary must be an int"),
    ):
        with pytest.raises(error, match=message):
            multipliers("piecewise_interpolate", W, T, boundaries_and_scales=wrong)


# --- power decay ------------------------------------------------------------------------------------------------------


def test_power_decay_is_the_papers() -> None:
    ours = multipliers("power_decay", W, T, capacity=1.7)
    assert ours[W:T] == pytest.approx([(1 - z / (T - W)) ** 2.4 for z in range(T - W)], rel=1e-12)
    late = multipliers("power_decay", W, T, capacity=1.7, num_decay_steps=20)
    assert late[W : T - 20] == [1.0] * (T - W - 20)
    assert late[T - 20 : T] == pytest.approx([(1 - z / 20) ** 2.4 for z in range(20)], rel=1e-12)
    assert multipliers("power_decay", W, T, capacity=1) == pytest.approx(multipliers("linear", W, T))
    with pytest.raises(ValueError, match="num_decay_steps=51 is more than the 50"):
        multipliers("power_decay", W, T, num_decay_steps=51)


# --- Seesaw -----------------------------------------------------------------------------------------------------------


def pair(warmup: int, total: int, **options: Any) -> tuple[list[float], list[float], int]:
    lr = schedules.get_curve("seesaw", warmup, total, options)
    batch = schedules.seesaw_batch_factor(warmup, total, **options)
    assert lr.length == batch.length
    steps = int(lr.length or 0)
    return lr.values(steps), batch.values(steps), steps


@pytest.mark.parametrize("cut", [1.1, 2.0])
@pytest.mark.parametrize("name", ["cosine", "linear", "cosine_with_min_lr"])
def test_seesaw_cuts_where_the_other_schedule_has_fallen(name: str, cut: float) -> None:
    warmup, total = 50, 1000
    options = EXAMPLES.get(name, {})
    lrs, batches, steps = pair(warmup, total, schedule=[name, options], cut=cut)
    reference = schedules.get_curve(name, warmup, total, options)
    assert lrs[:warmup] == reference.values(warmup)
    assert batches[:warmup] == [1.0] * warmup
    data = 0.0
    for step in range(warmup, steps):
        # lr sqrt(batch) never changes; their quotient is the other's learning rate over its batch of 1, in cuts.
        assert lrs[step] * math.sqrt(batches[step]) == pytest.approx(1.0)
        at = reference(min(total, warmup + data))
        assert lrs[step] / math.sqrt(batches[step]) >= at * 0.999
        # A cut comes at the end of a step, at the end of all of them none.
        if total - warmup - data >= 2 * cut * batches[step]:
            assert lrs[step] / math.sqrt(batches[step]) <= reference(max(0, warmup + data - batches[step])) * cut
        data += batches[step]
    assert total <= warmup + data < total + batches[-1]  # all of the data, and not a batch more
    share = (steps - warmup) / sum(reference.values(total)[warmup:])
    assert 1.0 <= share < (1.08 if cut == 1.1 else 1.5)


def test_the_papers_limit() -> None:
    """A quarter of a cosine takes 2 / pi of the steps: 36 % less."""
    levels = [math.cos(math.pi * step / 2 / 10_000) for step in range(10_000)]
    points = {step: levels[step] / levels[step - 100] for step in range(100, 10_000, 100)}
    curve = schedules.get_curve("piecewise_interpolate", 0, 10_000, {"boundaries_and_scales": points})
    _, _, steps = pair(0, 10_000, schedule=curve, cut=1.02)
    assert steps / 10_000 == pytest.approx(2 / math.pi, abs=0.02)


def test_seesaw_bounded() -> None:
    lrs, batches, steps = pair(0, 1000, max_batch_factor=4)
    assert max(batches) == 4.0
    assert sorted(set(lrs), reverse=True)[:4] == pytest.approx([1, 0.5**0.5, 0.5, 0.25])  # later cuts in full
    assert pair(0, 1000, max_batch_factor=1)[1:] == ([1.0] * 1000, 1000)
    assert steps < 1000


def test_seesaw_refuses_what_rises() -> None:
    with pytest.raises(ValueError, match="must not rise after its warm-up"):
        pair(10, 100, schedule=["cosine_with_restarts", {"num_cycles": 2}])
    with pytest.raises(ValueError, match="must be made of shares of the learning rate"):
        pair(10, 100, schedule=["cosine_with_min_lr", {"min_lr": 1e-3}])
    for wrong in ({"cut": 1.0}, {"max_batch_factor": 0.5}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            pair(10, 100, **wrong)


# --- WSM --------------------------------------------------------------------------------------------------------------


def decayed(starts: Sequence[float], updates: Sequence[float], levels: Sequence[float]) -> float:
    return starts[0] - sum(level * update for level, update in zip(levels, updates, strict=True))


@pytest.mark.parametrize("decay", ["linear", "cosine", "1-sqrt", "1-square", "exponential", schedules.cosine(30)])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_merged_checkpoints_are_those_of_a_decay(decay: Any, count: int) -> None:
    weights = schedules.merge_weights(count, decay)
    assert len(weights) == count
    assert min(weights) >= 0
    assert sum(weights) == pytest.approx(1.0, rel=1e-12)
    # Checkpoints of a run with a constant learning rate, and the sum of its updates as a decay would have scaled them.
    updates = np.random.default_rng(0).normal(size=count - 1)
    checkpoints = [*itertools.accumulate((5.0, *updates), lambda point, update: point - update)]
    shape = decay if isinstance(decay, schedules.Curve) else falling(decay, 1)
    levels = [shape(j / count * float(shape.length or 0)) for j in range(1, count)]
    merged = sum(weight * point for weight, point in zip(weights, checkpoints, strict=True))
    assert merged == pytest.approx(decayed(checkpoints, updates, levels), rel=1e-12)


def test_a_line_is_the_mean_and_wrong_decays_are_refused() -> None:
    assert schedules.merge_weights(4) == [0.25] * 4
    assert schedules.merge_weights(2, "linear", to=0.5) == [0.25, 0.75]
    for decay, message in (
        (schedules.constant(), "must have an end"),
        (schedules.warmup(5), "must begin with 1"),
        (schedules.cosine(9, 2.0), "must not rise"),
        ("stairs", "did you mean|must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            schedules.merge_weights(5, decay)
    with pytest.raises(ValueError, match="count must be at least 1"):
        schedules.merge_weights(0)
    assert schedules.canonical_schedule_name("WSM") == "constant_with_warmup"
