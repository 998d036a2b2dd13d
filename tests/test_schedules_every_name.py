"""What every schedule promises, over all names: a pure function of the step, picklable, constant after its end."""

from __future__ import annotations

import inspect
import json
import math
import pickle
import random
from typing import Any

import pytest
from lr_trace import make, trace

import schedules
from schedules.drawing import EXAMPLES

W, T, PAST = 100, 1000, 20
LRS = (0.05, 0.2)
NAMES = [name for name in schedules.list_schedules() if schedules.get_schedule_info(name).curve]
# transformers' own: no T stops it.
ENDLESS = {"inverse_sqrt"}


def kwargs_of(name: str) -> dict[str, Any]:
    kwargs = EXAMPLES.get(name, {})
    missing = set(schedules.get_schedule_info(name).required_kwargs) - set(kwargs)
    assert not missing, f"{name} needs {sorted(missing)}: add them to EXAMPLES in schedules/drawing.py"
    return kwargs


def curve_of(name: str) -> schedules.Curve:
    return schedules.get_curve(name, W, T, kwargs_of(name))


@pytest.mark.parametrize("lr", LRS)
@pytest.mark.parametrize("name", NAMES)
def test_any_step_in_any_order(name: str, lr: float) -> None:
    steps = list(range(T + PAST + 1))
    values = curve_of(name).bind(lr).values(steps)
    assert all(math.isfinite(value) and value >= 0 for value in values)
    shuffled = random.Random(0).sample(steps, len(steps))
    fresh = curve_of(name).bind(lr)
    assert [fresh(step) for step in shuffled] == [values[step] for step in shuffled]
    assert fresh.values(T) == values[:T]
    assert len(set(values)) > 3 or name.startswith("constant")


@pytest.mark.parametrize("name", NAMES)
def test_the_stepped_schedule_is_the_curve(name: str) -> None:
    schedule = schedules.get_scheduler(name, make(*LRS), 10, 100, at_a_tenth(name))
    assert isinstance(schedule, schedules.ScheduleLR)
    lrs = trace(schedule, 100 + PAST)
    curve = schedules.get_curve(name, 10, 100, at_a_tenth(name))
    for group, lr in enumerate(LRS):
        values = curve.bind(lr).values(100 + PAST)
        assert [each[group] for each in lrs] == [lr * value for value in values]
    assert [schedule.lr_at(step) for step in range(100 + PAST)] == lrs


def at_a_tenth(name: str) -> dict[str, Any]:
    """The same options for a tenth of the steps."""
    kwargs = json.loads(json.dumps(kwargs_of(name)))  # JSON holds them all: Trainer's lr_scheduler_kwargs
    for key, value in kwargs.items():
        if isinstance(value, int) and value >= 10 and ("steps" in key or key in ("T_0", "total_iters", "step_size_up")):
            kwargs[key] = value // 10
        if key == "milestones":
            kwargs[key] = [each // 10 for each in value]
    return kwargs


@pytest.mark.parametrize("name", NAMES)
def test_it_stays_where_it_is_at_the_end(name: str) -> None:
    curve = curve_of(name).bind(0.05)
    if name in ENDLESS:
        assert curve(T + PAST) < curve(T)
        return
    assert {curve(step) for step in (T, T + 1, T + PAST, T * 50, T + 0.5)} == {curve(T)}
    # A run that goes on should not heat up: what stays is not far above the last step of the run.
    assert curve(T) <= curve(T - 1) * 1.2 + 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_it_pickles_compares_and_hashes_by_value(name: str) -> None:
    curve, again = curve_of(name), curve_of(name)
    curve.bind(0.05).values(50)
    copy = pickle.loads(pickle.dumps(curve))
    assert copy == curve == again
    assert hash(copy) == hash(curve) == hash(again)
    assert repr(copy) == repr(curve)
    assert copy.bind(0.05).values(200) == again.bind(0.05).values(200)


def options_of(name: str) -> set[str]:
    """What the function behind a schedule's curve takes."""
    info = schedules.get_schedule_info(name)
    assert info.curve is not None
    return set(inspect.signature(info.curve).parameters)


@pytest.mark.parametrize("name", [name for name in NAMES if "num_warmup_steps" in options_of(name)])
def test_a_warmup_may_be_a_share_of_the_total(name: str) -> None:
    info = schedules.get_schedule_info(name)
    assert info.curve is not None
    assert schedules.get_curve(name, 0.1, T, kwargs_of(name)) == curve_of(name)
    if "num_training_steps" in options_of(name):
        assert info.curve(num_warmup_steps=0.1, num_training_steps=T, **kwargs_of(name)) == curve_of(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_frozen_group_stays_frozen(name: str) -> None:
    schedule = schedules.get_scheduler(name, make(0.05, 0.0), 10, 100, at_a_tenth(name))
    assert all(lr == 0 for _, lr in trace(schedule, 100 + PAST))


@pytest.mark.parametrize("name", NAMES)
def test_no_step_before_the_first(name: str) -> None:
    with pytest.raises(ValueError, match="finite and at least 0"):
        curve_of(name).bind(0.05)(-1)
