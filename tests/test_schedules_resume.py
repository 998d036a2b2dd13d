"""N + M steps equal N steps, save, load into a fresh optimizer and schedule, M steps: bit for bit, for every name."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

import schedules

NAMES = schedules.list_schedules()
KWARGS: dict[str, dict[str, Any]] = {
    "cosine_with_restarts": {"num_cycles": 3},
    "polynomial": {"lr_end": 1e-3, "power": 1.7},
    "inverse_sqrt": {"timescale": 7},
    "cosine_with_min_lr": {"min_lr": 1e-3},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1, "warmup_lr_rate": 0.2},
    "warmup_stable_decay": {"num_decay_steps": 9, "decay_type": "1-sqrt", "min_lr_ratio": 0.01},
    "constant_factor": {"total_iters": 8},
    "linear_factor": {"end_factor": 0.5, "total_iters": 12},
    "exponential": {"gamma": 0.9},
    "multiplicative": {"factor": [0.9, 0.8, 0.9, 0.8, 0.7]},
    "cosine_annealing_with_warm_restarts": {"T_0": 4, "T_mult": 2, "eta_min": 1e-3},
    "cosine_annealing_with_warmup": {"first_cycle_steps": 9, "cycle_mult": 1.2},
    "cyclic": {"step_size_up": 4, "mode": "triangular2"},
    "sequential": {"schedules": ["linear", ["rex", {"max_lr": 0.03}]], "milestones": [9]},
    "proportion": {"schedule": "cosine", "max_value": 0.3, "min_value": 0.1},
    "lr_range_test": {"step_size": 7, "min_lr": 1e-3},
    "warmup_lr": {"min_lr": 1e-3, "max_lr": 0.3},
    "warmup_decay_lr": {"min_lr": 1e-3},
    "warmup_cosine_lr": {"warmup_min_ratio": 0.1},
    "inverse_time": {"decay_steps": 4, "decay_rate": 0.7},
    "piecewise_interpolate": {"boundaries_and_scales": {6: 0.3, 14: 2.0}, "interpolate_type": "cosine"},
    "power_decay": {"num_decay_steps": 8},
    "seesaw": {"cut": 1.5},
    "power": {"batch_size": 4, "sequence_length": 100, "num_decay_steps": 6},
    "infinite": {"num_cooldown_steps": 6, "num_anneal_steps": 5},
    "cosine_with_cycles": {"cycle_limit": 3, "cycle_mul": 1.5, "cycle_decay": 0.5, "min_lr": 1e-3, "noise_range": 3},
    "tanh": {"warmup_prefix": False, "warmup_lr": 1e-3},
    "rsqrt": {"min_lr": 1e-3},
    "reduce_lr_on_plateau": {"patience": 1, "factor": 0.7, "cooldown": 1},
    "plateau": {"patience": 1, "factor": 0.7, "warmup_epochs": 4, "noise_range": [6, 30], "cooldown": 1},
    "greedy": {"patience": 1, "factor": 0.7, "min_lr": 1e-3, "smooth": True, "window_size": 3, "cooldown": 1},
}
METRICS = [5, 4, 3, 3, 3, 3, 2, 2, 2, 2, 2, 1, 0.9, 0.8, 0.7, 0.7, 0.7, 0.7, 0.7, 0.6] * 2


def build(name: str, *lrs: Any) -> Any:
    lrs = lrs or (0.05, 0.2)
    groups = [{"params": [torch.nn.Parameter(torch.zeros(2))], "lr": lr} for lr in lrs]
    return schedules.get_scheduler(name, torch.optim.SGD(groups, lr=1.0), 5, 25, KWARGS.get(name))


def lrs_of(schedule: Any) -> list[float]:
    return [float(group["lr"]) for group in schedule.optimizer.param_groups]


def run(name: str, schedule: Any, start: int, stop: int) -> list[list[float]]:
    lrs = []
    for step in range(start, stop):
        schedule.optimizer.step()
        if schedules.get_schedule_info(name).needs_metric:
            schedule.step(METRICS[step])
        else:
            schedule.step()
        lrs.append(lrs_of(schedule))
    return lrs


def through_torch(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def through_pickle(state: Any) -> Any:
    return pickle.loads(pickle.dumps(state))


@pytest.mark.parametrize("save", [through_torch, through_pickle, copy.deepcopy])
@pytest.mark.parametrize("cut", [0, 1, 13, 30])
@pytest.mark.parametrize("name", NAMES)
def test_resume_is_exact(name: str, cut: int, save: Callable[[Any], Any]) -> None:
    whole = run(name, build(name), 0, 40)
    first = build(name)
    assert run(name, first, 0, cut) == whole[:cut]
    state = save(first.state_dict())

    second = build(name)
    second.load_state_dict(state)
    assert lrs_of(second) == lrs_of(first)
    assert second.get_last_lr() == first.get_last_lr()
    assert run(name, second, cut, 40) == whole[cut:]
    assert len({tuple(each) for each in whole}) > 3 or name == "constant"


@pytest.mark.parametrize("optimizer_first", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_resume_with_the_optimizers_state(name: str, optimizer_first: bool) -> None:
    whole = run(name, build(name), 0, 40)
    first = build(name)
    run(name, first, 0, 17)
    state, optimizer_state = through_torch(first.state_dict()), through_torch(first.optimizer.state_dict())

    second = build(name)
    if optimizer_first:
        second.optimizer.load_state_dict(optimizer_state)
    second.load_state_dict(state)
    if not optimizer_first:
        second.optimizer.load_state_dict(optimizer_state)
    assert run(name, second, 17, 40) == whole[17:]


@pytest.mark.parametrize("name", NAMES)
def test_resume_with_tensor_lrs(name: str) -> None:
    def fresh() -> Any:
        return build(name, torch.tensor(0.05), torch.tensor(0.2, dtype=torch.float64))

    whole = run(name, fresh(), 0, 40)
    first = fresh()
    run(name, first, 0, 17)
    state = through_torch(first.state_dict())
    second = fresh()
    tensors = [group["lr"] for group in second.optimizer.param_groups]
    second.load_state_dict(state)
    assert lrs_of(second) == lrs_of(first)
    assert run(name, second, 17, 40) == whole[17:]
    assert all(group["lr"] is lr for group, lr in zip(second.optimizer.param_groups, tensors, strict=True))

    # A group keeps its own kind of lr, whatever the checkpoint holds.
    third = build(name)
    third.load_state_dict(state)
    run(name, third, 17, 20)
    assert all(type(group["lr"]) is float for group in third.optimizer.param_groups)


@pytest.mark.parametrize("name", NAMES)
def test_a_pickled_schedule_goes_on(name: str) -> None:
    whole = run(name, build(name), 0, 40)
    first = build(name)
    run(name, first, 0, 17)
    second = pickle.loads(pickle.dumps(first))
    assert second.optimizer is not first.optimizer
    assert run(name, second, 17, 40) == whole[17:]
    assert run(name, first, 17, 40) == whole[17:]


@pytest.mark.parametrize("name", [each for each in NAMES if not schedules.get_schedule_info(each).needs_metric])
def test_any_step_may_be_asked_for(name: str) -> None:
    schedule = build(name)
    asked = [schedule.lr_at(step) for step in (39, 3, 17)]
    whole = run(name, schedule, 0, 40)
    assert asked == [whole[38], whole[2], whole[16]]
    assert [schedule.lr_at(step) for step in range(1, 41)] == whole
    for curve in schedule.lr_lambdas:
        again = pickle.loads(pickle.dumps(curve))
        assert again == curve
        assert [again(step) for step in range(30)] == [curve(step) for step in range(30)]


@pytest.mark.parametrize("name", NAMES)
def test_a_foreign_state_is_refused_and_changes_nothing(name: str) -> None:
    schedule = build(name)
    run(name, schedule, 0, 7)
    before, lrs = copy.deepcopy(schedule.state_dict()), lrs_of(schedule)
    foreign = build("cosine" if schedules.get_schedule_info(name).needs_metric else "greedy")
    with pytest.raises(ValueError, match=r"not the state of .* missing"):
        schedule.load_state_dict(foreign.state_dict())
    with pytest.raises(ValueError, match=r"the state has 1 param groups .*, the optimizer has 2"):
        schedule.load_state_dict(build(name, 0.05).state_dict())
    assert schedule.state_dict() == before
    assert lrs_of(schedule) == lrs


def test_a_plateau_does_not_take_the_state_of_greedy() -> None:
    with pytest.raises(ValueError, match="mode_worse missing"):
        build("reduce_lr_on_plateau").load_state_dict(build("greedy").state_dict())


def test_the_floor_is_that_of_the_loaded_base_lr() -> None:
    # The checkpoint's base lr replaces the one in the code; the floor stays where it was asked for.
    first = build("polynomial")
    run("polynomial", first, 0, 7)
    second = build("polynomial", 0.5, 0.01)
    second.load_state_dict(first.state_dict())
    assert second.lr_at(8) == first.lr_at(8)
    assert run("polynomial", second, 7, 30)[-1] == pytest.approx([1e-3, 1e-3], rel=1e-15)
    # A checkpoint whose base lr is below the floor is refused as a whole.
    low = build("constant", 0.05, 1e-4)
    before = second.state_dict()
    with pytest.raises(ValueError, match=r"param group 1: .* above the initial lr 0.0001"):
        second.load_state_dict(low.state_dict())
    assert second.state_dict() == before


def test_a_longer_schedule_takes_over_at_the_saved_step() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=1.0)
    first = schedules.get_linear_schedule_with_warmup(optimizer, 0, 10)
    run("linear", first, 0, 5)
    again = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=1.0)
    second = schedules.get_linear_schedule_with_warmup(again, 0, 20)
    second.load_state_dict(first.state_dict())
    assert again.param_groups[0]["lr"] == 0.5  # the saved lr until the next step, as with transformers
    assert run("linear", second, 5, 6) == [[0.7]]
