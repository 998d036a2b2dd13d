"""The schedules against the installed transformers: values at every step, signatures, state dicts both ways."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import pytest
import torch
import transformers.optimization as hf
import transformers.trainer_utils as hf_utils
from lr_trace import make, trace
from torch.optim.lr_scheduler import ReduceLROnPlateau as TorchReduceLROnPlateau

import schedules

has_greedy = hasattr(hf, "GreedyLR")
needs_greedy = pytest.mark.skipif(not has_greedy, reason="this transformers has no greedy schedule")

FACTORIES = [
    name for name in schedules.__all__ if name.startswith("get_") and name.endswith(("schedule", "warmup", "rate"))
]

LENGTHS = [(0, 10), (1, 10), (3, 10), (9, 10), (10, 10), (7, 200), (100, 1000), (0, 1), (0, 0), (1, 1), (15, 10)]

# name, scheduler_specific_kwargs
TIMED: list[tuple[str, dict[str, Any]]] = [
    ("linear", {}),
    ("cosine", {}),
    ("cosine", {"num_cycles": 1.0}),
    ("cosine", {"num_cycles": 2.25}),
    ("cosine_with_restarts", {}),
    ("cosine_with_restarts", {"num_cycles": 2}),
    ("cosine_with_restarts", {"num_cycles": 7}),
    ("polynomial", {}),
    ("polynomial", {"lr_end": 3e-3, "power": 2.0}),
    ("polynomial", {"lr_end": 0.0, "power": 0.5}),
    ("cosine_with_min_lr", {"min_lr_rate": 0.1}),
    ("cosine_with_min_lr", {"min_lr_rate": 0.3, "num_cycles": 1.5}),
    ("cosine_with_min_lr", {"min_lr": 2e-3}),
    ("cosine_warmup_with_min_lr", {"min_lr_rate": 0.1}),
    ("cosine_warmup_with_min_lr", {"min_lr": 2e-3}),
    ("cosine_warmup_with_min_lr", {"min_lr_rate": 0.25, "warmup_lr_rate": 0.05, "num_cycles": 1.5}),
    ("warmup_stable_decay", {"num_decay_steps": 3}),
    ("warmup_stable_decay", {"num_decay_steps": 0, "min_lr_ratio": 0.2}),
    ("warmup_stable_decay", {"num_decay_steps": 8, "decay_type": "linear", "min_lr_ratio": 0.1}),
    ("warmup_stable_decay", {"num_decay_steps": 5, "decay_type": "1-sqrt", "warmup_type": "1-sqrt"}),
    ("warmup_stable_decay", {"num_decay_steps": 6, "warmup_type": "cosine", "num_cycles": 1.0, "min_lr_ratio": 0.1}),
]
ENDLESS: list[tuple[str, dict[str, Any]]] = [
    ("constant", {}),
    ("constant_with_warmup", {}),
    ("inverse_sqrt", {}),
    ("inverse_sqrt", {"timescale": 25}),
]


def assert_same(ours: list[list[float]], theirs: list[list[float]]) -> None:
    assert len(ours) == len(theirs) > 0
    for step, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        assert mine == pytest.approx(other, rel=1e-12, abs=0), f"step {step}"


def steps_to_compare(name: str, warmup: int, total: int) -> int:
    """Steps 0..total, without those where transformers is wrong; see the table in docs/schedules.md."""
    if name == "cosine_warmup_with_min_lr" and warmup < total:
        return total  # it is at its floor one step early and climbs from there
    if name == "polynomial" and warmup == total:
        return total  # it divides by zero
    return total + 1


@pytest.mark.parametrize(
    ("name", "kwargs", "warmup", "total"),
    # Not polynomial without any step: there transformers divides by zero in the constructor.
    [(*case, *each) for case in TIMED for each in LENGTHS if not (case[0] == "polynomial" and each == (0, 0))],
)
def test_timed_schedules_equal_transformers(name: str, kwargs: dict[str, Any], warmup: int, total: int) -> None:
    # With an absolute floor transformers is right only for groups that have the optimizer's default lr.
    lrs = (0.05,) if name == "polynomial" or "min_lr" in kwargs else (0.05, 0.2)
    ours = schedules.get_scheduler(name, make(*lrs), warmup, total, kwargs)
    theirs = hf.get_scheduler(name, make(*lrs), warmup, total, kwargs)
    steps = steps_to_compare(name, warmup, total)
    assert_same(trace(ours, steps), trace(theirs, steps))


@pytest.mark.parametrize("warmup", [0, 1, 30])
@pytest.mark.parametrize(("name", "kwargs"), ENDLESS)
def test_endless_schedules_equal_transformers(name: str, kwargs: dict[str, Any], warmup: int) -> None:
    ours = schedules.get_scheduler(name, make(0.05, 0.2), warmup, 100, kwargs)
    if name == "inverse_sqrt":  # get_scheduler of transformers 4.57 drops the timescale
        theirs = hf.get_inverse_sqrt_schedule(make(0.05, 0.2), warmup, **kwargs)
    else:
        theirs = hf.get_scheduler(name, make(0.05, 0.2), warmup, 100, kwargs)
    assert_same(trace(ours, 300), trace(theirs, 300))


@pytest.mark.parametrize(("stable", "decay", "total"), [(3, 5, None), (0, 4, None), (3, 5, 10), (6, 0, None)])
def test_wsd_with_stable_steps_equals_transformers(stable: int, decay: int, total: int | None) -> None:
    args = {"num_warmup_steps": 2, "num_decay_steps": decay, "num_stable_steps": stable, "num_training_steps": total}
    ours = schedules.get_wsd_schedule(make(0.05), **args)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers warns of every total, also of the right one
        theirs = hf.get_wsd_schedule(make(0.05), **args)
    assert_same(trace(ours, 20), trace(theirs, 20))


@pytest.mark.parametrize("factory", [name for name in FACTORIES if hasattr(hf, name)])
def test_signatures_are_those_of_transformers(factory: str) -> None:
    def shape(function: Any) -> list[tuple[Any, ...]]:
        return [(each.name, each.kind, each.default) for each in inspect.signature(function).parameters.values()]

    assert shape(getattr(schedules, factory)) == shape(getattr(hf, factory))


def test_every_function_and_name_of_transformers_is_here() -> None:
    theirs = {name for name in dir(hf) if name.startswith("get_") and "schedule" in name} - {"get_adafactor_schedule"}
    assert theirs <= set(schedules.__all__)
    assert theirs - {"get_scheduler"} <= set(FACTORIES)
    for member in hf_utils.SchedulerType:
        assert schedules.canonical_schedule_name(member) == member.value
        assert schedules.SchedulerType(member.value).name == member.name


def test_scheduler_types_interchange() -> None:
    theirs = hf_utils.SchedulerType.COSINE_WITH_RESTARTS
    assert schedules.SchedulerType(theirs) is schedules.SchedulerType.COSINE_WITH_RESTARTS
    assert hf_utils.SchedulerType(schedules.SchedulerType.COSINE_WITH_RESTARTS) is theirs
    assert theirs == schedules.SchedulerType.COSINE_WITH_RESTARTS
    schedule = schedules.get_scheduler(theirs, make(0.1), 0, 10)
    assert isinstance(schedule, torch.optim.lr_scheduler.LambdaLR)


@pytest.mark.parametrize("step", [0, 4, 9])
def test_last_epoch_resumes_like_transformers(step: int) -> None:
    def resumed(module: Any) -> list[list[float]]:
        optimizer = make(0.05, 0.2)
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        return trace(module.get_cosine_schedule_with_warmup(optimizer, 3, 20, last_epoch=step), 10)

    assert_same(resumed(schedules), resumed(hf))
    with pytest.raises(KeyError, match="initial_lr"):
        schedules.get_cosine_schedule_with_warmup(make(0.05), 3, 20, last_epoch=step)


ONE_OF_EACH = [
    ("linear", {}),
    ("cosine", {}),
    ("cosine_with_restarts", {"num_cycles": 2}),
    ("polynomial", {"power": 2.0}),
    ("constant", {}),
    ("constant_with_warmup", {}),
    ("inverse_sqrt", {}),
    ("cosine_with_min_lr", {"min_lr": 1e-3}),
    ("cosine_warmup_with_min_lr", {"min_lr_rate": 0.1}),
    ("warmup_stable_decay", {"num_decay_steps": 5}),
]


@pytest.mark.parametrize("direction", ["from transformers", "to transformers"])
@pytest.mark.parametrize(("name", "kwargs"), ONE_OF_EACH)
def test_state_dicts_interchange(name: str, kwargs: dict[str, Any], direction: str) -> None:
    writer, reader = (hf, schedules) if direction == "from transformers" else (schedules, hf)
    whole = trace(writer.get_scheduler(name, make(0.05), 3, 20, kwargs), 20)

    first = writer.get_scheduler(name, make(0.05), 3, 20, kwargs)
    trace(first, 9)
    second = reader.get_scheduler(name, make(0.05), 3, 20, kwargs)
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.load_state_dict(first.state_dict())
    # Up to step 19: at step 20 cosine_warmup_with_min_lr differs on purpose.
    assert_same(trace(second, 12), whole[8:])


METRICS = [
    5.0,
    4.0,
    4.5,
    4.4,
    4.3,
    4.2,
    3.0,
    2.9,
    2.8,
    2.7,
    2.6,
    2.6,
    2.6,
    2.61,
    2.7,
    2.8,
    2.9,
    3.0,
    3.0,
    2.0,
    1.9,
    1.8,
]
GREEDY = [
    {"min_lr": 1e-4},
    {"min_lr": 1e-4, "patience": 1, "factor": 0.5},
    {"min_lr": 0.02, "max_lr": 0.3, "patience": 0, "factor": 0.5, "reset_start": 2},
    {"min_lr": [0.01, 0.1], "max_lr": [0.1, 0.4], "patience": 0, "factor": 0.7, "cooldown": 2, "warmup": 1},
    {"min_lr": 1e-4, "patience": 1, "mode": "max", "threshold": 0.05, "threshold_mode": "rel"},
    {"min_lr": 1e-4, "patience": 0, "smooth": True, "window_size": 3, "factor": 0.8},
    {"min_lr": 0.04, "patience": 0, "reset_start": 1, "cooldown": 3, "factor": 0.5, "eps": 1e-3},
    {"min_lr": 1e-4, "patience": 2, "threshold_mode": "rel", "threshold": 0.01},
    {"min_lr": [0.04, 0.15], "patience": 0, "reset_start": 1, "factor": 0.5, "smooth": True, "window_size": 3},
]


@needs_greedy
@pytest.mark.parametrize("kwargs", GREEDY)
def test_greedy_equals_transformers_step_by_step(kwargs: dict[str, Any]) -> None:
    ours = schedules.get_scheduler("greedy", make(0.05, 0.2), scheduler_specific_kwargs=kwargs)
    theirs = hf.get_scheduler("greedy", make(0.05, 0.2), scheduler_specific_kwargs=kwargs)
    seen = set()
    for metric in METRICS * 4:
        ours.step(metric)
        theirs.step(metric)
        assert [g["lr"] for g in ours.optimizer.param_groups] == [g["lr"] for g in theirs.optimizer.param_groups]
        assert ours.get_last_lr() == theirs.get_last_lr()
        assert ours.state_dict() == theirs.state_dict()
        seen.add(ours.get_last_lr()[0])
    assert len(seen) > 1 or kwargs.get("patience", 10) > 5


@needs_greedy
@pytest.mark.parametrize("direction", ["from transformers", "to transformers"])
def test_greedy_state_dicts_interchange(direction: str) -> None:
    writer, reader = (hf, schedules) if direction == "from transformers" else (schedules, hf)
    kwargs = {"min_lr": 1e-3, "patience": 1, "smooth": True, "window_size": 4, "factor": 0.7}
    whole = writer.get_greedy_schedule(make(0.05, 0.2), **kwargs)
    first = writer.get_greedy_schedule(make(0.05, 0.2), **kwargs)
    for metric in METRICS:
        whole.step(metric)
        first.step(metric)
    second = reader.get_greedy_schedule(make(0.05, 0.2), min_lr=1e-6)
    second.load_state_dict(first.state_dict())
    assert second.get_last_lr() == whole.get_last_lr() != [0.05, 0.2]
    for metric in METRICS[::-1]:
        whole.step(metric)
        second.step(metric)
        assert [g["lr"] for g in whole.optimizer.param_groups] == [g["lr"] for g in second.optimizer.param_groups]


@needs_greedy
def test_greedy_class_has_the_signature_of_transformers() -> None:
    theirs = inspect.signature(hf.GreedyLR).parameters
    ours = inspect.signature(schedules.GreedyLR).parameters
    assert [(p.name, p.default) for p in ours.values()] == [(p.name, p.default) for p in theirs.values()]


@pytest.mark.parametrize(
    "kwargs", [{"patience": 1}, {"patience": 0, "factor": 0.5, "min_lr": [0.01, 0.02], "cooldown": 1}, {"mode": "max"}]
)
def test_plateau_equals_torch(kwargs: dict[str, Any]) -> None:
    ours = schedules.get_scheduler("reduce_lr_on_plateau", make(0.05, 0.2), 3, 20, kwargs)
    theirs = TorchReduceLROnPlateau(make(0.05, 0.2), **kwargs)
    for metric in METRICS * 2:
        ours.step(metric)
        theirs.step(metric)
        assert ours.get_last_lr() == theirs.get_last_lr()
    assert ours.get_last_lr()[0] < 0.05
    assert ours.state_dict() == theirs.state_dict()
