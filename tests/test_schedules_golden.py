"""Literal values, worked out by hand: they fix the conventions (what step 0 is, where the peak and the end are)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import schedules
from schedules.curves import Constant, Curve
from schedules.shapes import Cosine, Linear, Ramp

RISE = [0, 0.25, 0.5, 0.75]
HALF_COSINE = [1, 0.9330127018922193, 0.75, 0.5, 0.25, 0.06698729810778065, 0]
FLOORED_COSINE = [1, 0.9464101615137755, 0.8, 0.6, 0.4, 0.2535898384862245, 0.2]

# Warm-up 4, total 10, lr 1: steps 0, 1, 2, ...; the last value must stay.
GOLDEN: list[tuple[str, dict[str, Any], list[float]]] = [
    ("constant", {}, [1, 1, 1, 1, 1]),
    ("constant_with_warmup", {}, [*RISE, 1, 1, 1]),
    ("linear", {}, [*RISE, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0]),
    ("cosine", {}, [*RISE, *HALF_COSINE]),
    ("cosine", {"num_cycles": 1.0}, [*RISE, 1, 0.75, 0.25, 0, 0.25, 0.75, 1]),
    # One cycle has no restart; the second of two starts at step 7, at the peak.
    ("cosine_with_restarts", {}, [*RISE, *HALF_COSINE]),
    ("cosine_with_restarts", {"num_cycles": 2}, [*RISE, 1, 0.75, 0.25, 1, 0.75, 0.25, 0]),
    ("polynomial", {"lr_end": 0.1, "power": 2.0}, [*RISE, 1, 0.725, 0.5, 0.325, 0.2, 0.125, 0.1]),
    ("cosine_with_min_lr", {"min_lr_rate": 0.2}, [*RISE, *FLOORED_COSINE]),
    ("cosine_with_min_lr", {"min_lr": 0.2}, [*RISE, *FLOORED_COSINE]),
    # A step ahead: the first step has 1/4, the peak is at step 3, the floor at step 9.
    ("cosine_warmup_with_min_lr", {"min_lr_rate": 0.2}, [0.25, 0.5, 0.75, *FLOORED_COSINE]),
    ("cosine_warmup_with_min_lr", {"min_lr": 0.2, "warmup_lr_rate": 0.1}, [0.1, 0.4, 0.7, *FLOORED_COSINE]),
    # Two steps of the ten are left for the stable phase.
    ("warmup_stable_decay", {"decay_type": "linear"}, [*RISE, 1, 1, 1, 0.75, 0.5, 0.25, 0]),
    ("warmup_stable_decay", {}, [*RISE, 1, 1, 1, 0.8535533905932737, 0.5, 0.1464466094067263, 0]),
    (
        "warmup_stable_decay",
        {"decay_type": "1-sqrt", "warmup_type": "1-sqrt"},
        [0, 0.1339745962155614, 0.2928932188134524, 0.5, 1, 1, 1, 0.5, 0.2928932188134524, 0.1339745962155614, 0],
    ),
    (
        "warmup_stable_decay",
        {"decay_type": "linear", "warmup_type": "cosine", "min_lr_ratio": 0.2},
        [0.2, 0.3171572875253810, 0.6, 0.8828427124746190, 1, 1, 1, 0.8, 0.6, 0.4, 0.2],
    ),
]


def make(*lrs: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(2))], "lr": lr} for lr in lrs], lr=lrs[0])


@pytest.mark.parametrize(("name", "kwargs", "expected"), GOLDEN)
def test_golden_values_and_then_the_last_one_for_ever(name: str, kwargs: dict[str, Any], expected: list[float]) -> None:
    optimizer = make(1.0)
    if name == "warmup_stable_decay":
        kwargs = {"num_decay_steps": 4, **kwargs}
    schedule = schedules.get_scheduler(name, optimizer, 4, 10, kwargs)
    for step, value in enumerate([*expected, *[expected[-1]] * 25]):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(value, rel=1e-14, abs=1e-16), f"step {step}"
        optimizer.step()
        schedule.step()


def test_golden_inverse_sqrt() -> None:
    schedule = schedules.get_inverse_sqrt_schedule(make(1.0), 4)
    golden = {0: 0.0, 2: 0.5, 4: 1.0, 8: 0.7071067811865475, 12: 0.5773502691896258, 16: 0.5, 64: 0.25}
    assert {step: schedule.lr_at(step)[0] for step in golden} == pytest.approx(golden, rel=1e-14)
    # Without a warm-up the time scale is 10 000 steps.
    schedule = schedules.get_inverse_sqrt_schedule(make(1.0), 0)
    assert schedule.lr_at(30_000) == [0.5]
    schedule = schedules.get_inverse_sqrt_schedule(make(1.0), 4, timescale=12)
    assert schedule.lr_at(4 + 36) == [0.5]


def test_golden_plateau_and_greedy() -> None:
    optimizer = make(1.0)
    schedule = schedules.get_reduce_on_plateau_schedule(optimizer, patience=1, factor=0.5)
    lrs = []
    for metric in [3, 2, 2, 2, 2, 2, 1, 1]:
        schedule.step(metric)
        lrs.append(optimizer.param_groups[0]["lr"])
    assert lrs == [1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.25]

    optimizer = make(0.25)
    greedy = schedules.get_greedy_schedule(optimizer, patience=1, factor=0.5, min_lr=0.125, max_lr=0.75, reset_start=2)
    lrs = []
    for metric in [9, 8, 7, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6]:
        greedy.step(metric)
        lrs.append(optimizer.param_groups[0]["lr"])
    # Up after two improvements, capped at 0.75; down after two values without; at the floor twice: back to the start.
    assert lrs == [0.25, 0.5, 0.5, 0.75, 0.75, 0.375, 0.375, 0.1875, 0.1875, 0.125, 0.125, 0.25, 0.25, 0.25]


def test_curves_are_pure_functions_and_compose() -> None:
    curve = Ramp(4).then(Constant().then(Cosine(6).floor(0.5), at=2)).until(12)
    forwards = [curve(step) for step in range(20)]
    assert [curve(step) for step in reversed(range(20))] == forwards[::-1]
    assert forwards[:7] == [0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert forwards[9] == 0.75
    assert set(forwards[12:]) == {0.5}
    assert curve.length == 12
    assert Ramp(4).then(Linear(6)).length == 10
    assert Linear(6).ahead(2)(1) == 0.5
    assert Linear(6).ahead(2).length == 4
    assert all(isinstance(value, float) for value in forwards)
    assert curve == Ramp(4).then(Constant().then(Cosine(6).floor(0.5), at=2)).until(12)
    assert hash(Ramp(4)) != hash(Ramp(5))


def test_curves_reject_nonsense() -> None:
    curve: Curve = Cosine(10)
    for step in (-1, float("nan")):
        with pytest.raises(ValueError, match="finite and at least 0"):
            curve(step)
    with pytest.raises(ValueError, match="never ends"):
        Constant().then(curve)
    with pytest.raises(AttributeError):
        curve.steps = 5  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="bind"):
        curve.floor_lr(0.1)(3)
    with pytest.raises(ValueError, match="rate must be at most 1"):
        curve.floor(1.5)
    with pytest.raises(ValueError, match="steps must be at least 0"):
        Cosine(-1)
    with pytest.raises(ValueError, match="shape must be one of 'linear', 'cosine', '1-sqrt'"):
        Ramp(3, shape="sqrt")
