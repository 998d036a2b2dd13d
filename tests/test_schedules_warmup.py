"""WarmUp and PolynomialDecay: the documented TensorFlow classes as plain functions of the step."""

from __future__ import annotations

import dataclasses
import os
import pickle
from typing import Any

import pytest
import torch

from schedules import PolynomialDecay, WarmUp
from schedules.shapes import Cosine

DECAY = PolynomialDecay(1e-3, 90, end_learning_rate=1e-5, power=2.0)


def half(step: float) -> float:
    return 0.5 / (1 + step)


def make(*lrs: Any) -> torch.optim.Optimizer:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(2))], "lr": lr} for lr in lrs]
    return torch.optim.SGD(groups, lr=1.0)


def trace(schedule: Any, steps: int) -> list[list[float]]:
    lrs = []
    for _ in range(steps):
        lrs.append([group["lr"] for group in schedule.optimizer.param_groups])
        schedule.optimizer.step()
        schedule.step()
    return lrs


def test_golden_values() -> None:
    warmup = WarmUp(1e-3, PolynomialDecay(1e-3, 8, end_learning_rate=0.0), 4)
    expected = [0, 0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 0.875e-3, 0.75e-3]
    assert [warmup(step) for step in range(7)] == pytest.approx(expected, rel=1e-15)
    assert [warmup(step) for step in (8, 12, 13, 1000)] == pytest.approx([0.5e-3, 0, 0, 0], rel=1e-15)
    assert warmup(2.5) == pytest.approx(0.625e-3)
    assert WarmUp(1.0, half, 4, power=2.0)(2) == 0.25
    assert WarmUp(1.0, half, 4)(4) == 0.5
    assert WarmUp(1.0, half, 4)(7) == 0.125
    assert WarmUp(1.0, half, 0)(0) == 0.5
    decay = PolynomialDecay(1.0, 10, end_learning_rate=0.2, power=2.0)
    assert [decay(step) for step in (0, 5, 10, 11)] == pytest.approx([1, 0.4, 0.2, 0.2])
    assert PolynomialDecay(1.0, 10)(10) == 1e-4
    assert PolynomialDecay(1.0, 0, end_learning_rate=0.3)(0) == 0.3


def test_polynomial_decay_equals_keras() -> None:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    for power in (0.5, 1.0, 2.5):
        theirs = keras.optimizers.schedules.PolynomialDecay(1e-3, 50, end_learning_rate=1e-5, power=power)
        ours = PolynomialDecay(1e-3, 50, end_learning_rate=1e-5, power=power)
        for step in range(60):
            # Keras computes in float32.
            assert ours(step) == pytest.approx(float(theirs(step)), rel=2e-6)


def test_config_pickle_and_value() -> None:
    warmup = WarmUp(1e-3, DECAY, 10, 1.5, "warm")
    config = warmup.get_config()
    assert config == {
        "initial_learning_rate": 1e-3,
        "decay_schedule_fn": DECAY,
        "warmup_steps": 10,
        "power": 1.5,
        "name": "warm",
    }
    assert WarmUp.from_config(config) == warmup
    assert PolynomialDecay.from_config(DECAY.get_config()) == DECAY
    again = pickle.loads(pickle.dumps(warmup))
    assert again == warmup
    assert [again(step) for step in range(120)] == [warmup(step) for step in range(120)]
    with pytest.raises(dataclasses.FrozenInstanceError):
        warmup.power = 2.0  # type: ignore[misc]


def test_scheduler_gives_the_learning_rate_itself() -> None:
    warmup = WarmUp(1e-3, DECAY, 10)
    # The optimizer's own lr does not matter: the schedule is the learning rate.
    lrs = trace(warmup.scheduler(make(0.7, 0.7)), 130)
    for step, each in enumerate(lrs):
        assert each == pytest.approx([warmup(step)] * 2, rel=1e-15, abs=0)
    assert lrs[-1] == pytest.approx([1e-5, 1e-5])


def test_scheduler_with_unequal_groups() -> None:
    warmup = WarmUp(1e-3, DECAY, 10)
    with pytest.raises(ValueError, match=r"unequal learning rates \[0.001, 0.0001\].*relative=True"):
        warmup.scheduler(make(1e-3, 1e-4))
    lrs = trace(warmup.scheduler(make(1e-3, 1e-4), relative=True), 130)
    for step, each in enumerate(lrs):
        assert each == pytest.approx([warmup(step), warmup(step) / 10], rel=1e-14, abs=0)
    with pytest.raises(ValueError, match="cannot scale a learning rate of 0"):
        warmup.scheduler(make(0.0))


def test_scheduler_resumes_and_takes_tensor_lrs() -> None:
    warmup = WarmUp(1e-3, DECAY, 10)
    whole = trace(warmup.scheduler(make(0.7)), 50)
    first = warmup.scheduler(make(0.7))
    trace(first, 20)
    second = warmup.scheduler(make(0.7))
    second.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
    assert trace(second, 30) == whole[20:]

    lr = torch.tensor(0.7)
    schedule = warmup.scheduler(make(lr))
    trace(schedule, 15)
    assert schedule.optimizer.param_groups[0]["lr"] is lr
    assert float(lr) == pytest.approx(warmup(15), rel=1e-6)


@pytest.mark.parametrize(
    ("error", "match", "args"),
    [
        (ValueError, "initial_learning_rate must be at least 0", (-1e-3, half, 4)),
        (ValueError, "initial_learning_rate must be finite", (float("nan"), half, 4)),
        (TypeError, "decay_schedule_fn must be a function of the step, got 0.1", (1e-3, 0.1, 4)),
        (TypeError, "a Curve returns a multiplier", (1e-3, Cosine(10), 4)),
        (ValueError, "warmup_steps must be at least 0", (1e-3, half, -4)),
        (ValueError, "warmup_steps must be a whole number", (1e-3, half, 4.5)),
        (ValueError, "power must be above 0", (1e-3, half, 4, 0.0)),
    ],
)
def test_bad_arguments_are_named(error: type[Exception], match: str, args: Any) -> None:
    with pytest.raises(error, match=match):
        WarmUp(*args)


def test_bad_steps_and_decays() -> None:
    for schedule in (WarmUp(1e-3, half, 4), DECAY):
        with pytest.raises(ValueError, match="step must be at least 0"):
            schedule(-1)
        with pytest.raises(ValueError, match="step must be finite"):
            schedule(float("nan"))
    with pytest.raises(ValueError, match="decay_steps must be at least 0"):
        PolynomialDecay(1e-3, -1)
    with pytest.raises(ValueError, match="end_learning_rate must be at least 0"):
        PolynomialDecay(1e-3, 10, -1.0)
    with pytest.raises(ValueError, match="power must be above 0"):
        PolynomialDecay(1e-3, 10, 0.0, -1.0)
