"""What torch promises of its schedulers, kept by ours, over every name.

The subjects are those of torch's own tests of its schedulers (test/optim/test_lrscheduler.py of PyTorch) that concern
the public contract, asked anew of ours. Composites are in test_schedules_composites.py.
"""

from __future__ import annotations

import copy
import gc
import io
import pickle
import warnings
import weakref
from typing import Any

import pytest
import torch
from test_schedules_resume import KWARGS, METRICS
from torch.optim import lr_scheduler as torch_lr
from torch.optim.swa_utils import SWALR

import schedules

NAMES = schedules.list_schedules()
BY_STEP = [name for name in NAMES if schedules.get_schedule_info(name).curve]
LRS = (0.05, 0.2)


def optimizer_of(*lrs: Any) -> torch.optim.Optimizer:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in lrs or LRS]
    return torch.optim.SGD(groups, lr=1.0, momentum=0.9)


def make(name: str, optimizer: Any, **options: Any) -> Any:
    return schedules.get_scheduler(name, optimizer, 5, 14, {**KWARGS.get(name, {}), **options})


def advance(name: str, schedule: Any, start: int, stop: int) -> list[list[float]]:
    lrs = []
    for step in range(start, stop):
        schedule.optimizer.step()
        schedule.step(*([METRICS[step]] if schedules.get_schedule_info(name).needs_metric else []))
        lrs.append(lrs_of(schedule.optimizer))
    return lrs


def lrs_of(optimizer: Any) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


@pytest.mark.parametrize("name", NAMES)
def test_no_warning_in_the_right_order_and_torchs_in_the_wrong_one(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        advance(name, make(name, optimizer_of()), 0, 12)
        tensors = optimizer_of(*(torch.tensor(lr) for lr in LRS))
        advance(name, make(name, tensors), 0, 12)
    if name in BY_STEP:
        with pytest.warns(UserWarning, match="how-to-adjust-learning-rate"):
            make(name, optimizer_of()).step()
        overridden = make(name, optimizer_of())
        step = overridden.optimizer.step
        overridden.optimizer.step = lambda: step()
        with pytest.warns(UserWarning, match="has been overridden"):
            advance(name, overridden, 0, 1)


@pytest.mark.parametrize("name", BY_STEP)
def test_the_optimizers_step_is_wrapped_once(name: str) -> None:
    optimizer = optimizer_of()
    make(name, optimizer)
    step = optimizer.step
    make(name, optimizer)
    torch_lr.ExponentialLR(optimizer, 0.9)
    assert vars(optimizer)["step"] is step
    assert step._wrapped_by_lr_sched


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_kept_alive(name: str) -> None:
    def run() -> list[weakref.ref[Any]]:
        optimizer = optimizer_of()
        schedule = make(name, optimizer)
        advance(name, schedule, 0, 3)
        assert schedule.total_steps > 0 or name not in BY_STEP  # what Accelerate asks, which begins to count
        advance(name, schedule, 3, 4)
        return [weakref.ref(schedule), weakref.ref(optimizer)]

    gc.disable()
    try:
        assert [ref() for ref in run()] == [None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize("name", BY_STEP)
def test_a_step_by_number_is_the_same_as_counted(name: str) -> None:
    counted = advance(name, make(name, optimizer_of()), 0, 18)
    by_number = make(name, optimizer_of())
    by_number.optimizer.step()
    for step in (3, 17, 1, 1, 9, 18):
        with pytest.warns(UserWarning, match="epoch parameter"):
            by_number.step(step)
        assert lrs_of(by_number.optimizer) == counted[step - 1] == by_number.get_last_lr()
        assert by_number.last_epoch == step
    by_number.go_to(2)
    assert lrs_of(by_number.optimizer) == counted[1] == by_number.get_last_lr()


@pytest.mark.parametrize("name", NAMES)
def test_get_last_lr_is_the_optimizers_and_no_alias(name: str) -> None:
    schedule = make(name, optimizer_of(torch.tensor(0.05), 0.2))
    for step in range(6):
        last = schedule.get_last_lr()
        assert [float(lr) for lr in last] == lrs_of(schedule.optimizer)
        assert isinstance(last[0], torch.Tensor)
        assert last[0] is not schedule.optimizer.param_groups[0]["lr"]
        advance(name, schedule, step, step + 1)
    assert [type(group["lr"]) for group in schedule.optimizer.param_groups] == [torch.Tensor, float]


@pytest.mark.parametrize("name", BY_STEP)
def test_last_epoch_resumes_and_needs_the_initial_lr(name: str) -> None:
    first = make(name, optimizer_of())
    whole = advance(name, first, 0, 9)
    second = optimizer_of()
    second.load_state_dict(first.optimizer.state_dict())
    schedule = make(name, second, last_epoch=8)
    assert (lrs_of(second), schedule.last_epoch) == (whole[-1], 9)
    assert advance(name, schedule, 9, 14) == advance(name, first, 9, 14)
    with pytest.raises(KeyError, match="initial_lr"):
        make(name, optimizer_of(), last_epoch=8)


@pytest.mark.parametrize("name", BY_STEP)
def test_the_initial_lr_stays_whatever_happens_to_the_lr(name: str) -> None:
    lr = torch.tensor(0.1)
    optimizer = optimizer_of(lr)
    schedule = make(name, optimizer)
    for step in range(4):
        advance(name, schedule, step, step + 1)
        assert optimizer.param_groups[0]["lr"] is lr
        assert float(lr) == pytest.approx(schedule.lr_at(step + 1)[0])
        lr.mul_(0.1)  # by somebody else: the next step has the curve's again
        assert (optimizer.param_groups[0]["initial_lr"], schedule.base_lrs) == (torch.tensor(0.1), [torch.tensor(0.1)])
    assert schedule.base_lrs[0] is not optimizer.param_groups[0]["initial_lr"]
    optimizer.param_groups[0]["initial_lr"].fill_(7.0)
    assert schedule.base_lrs == [torch.tensor(0.1)]


# The curve is code, as torch's functions are: no part of a state.
CODE = {"optimizer", "curve", "lr_lambdas", "hyperparameters", "_window"}


@pytest.mark.parametrize("weights_only", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_a_state_is_all_there_is(name: str, weights_only: bool) -> None:
    first = make(name, optimizer_of(torch.tensor(0.05), 0.2))
    advance(name, first, 0, 6)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=weights_only)
    assert state == first.state_dict()
    second = make(name, optimizer_of(torch.tensor(0.3), 0.7))
    second.load_state_dict(state)
    assert second.state_dict() == state == first.state_dict()
    for key in vars(first).keys() - CODE:
        assert vars(second)[key] == vars(first)[key], key
    # What was loaded is a copy: the next steps leave the state as it is.
    kept = copy.deepcopy(state)
    advance(name, second, 6, 9)
    assert state == kept


@pytest.mark.parametrize("name", NAMES)
def test_copies_go_on_by_themselves(name: str) -> None:
    whole = advance(name, make(name, optimizer_of()), 0, 16)
    first = make(name, optimizer_of())
    advance(name, first, 0, 7)
    for second in (copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        assert second.optimizer is not first.optimizer
        assert advance(name, second, 7, 16) == whole[7:]
    assert advance(name, first, 7, 16) == whole[7:]


@pytest.mark.parametrize("name", BY_STEP)
def test_an_average_and_torchs_plateau_beside(name: str) -> None:
    def run(schedule: Any) -> list[list[float]]:
        optimizer, lrs = schedule.optimizer, []
        average, plateau = SWALR(optimizer, swa_lr=0.01, anneal_epochs=3), torch_lr.ReduceLROnPlateau(optimizer)
        for step in range(12):
            optimizer.step()
            (schedule if step < 7 else average).step()
            plateau.step(METRICS[step])
            lrs.append(lrs_of(optimizer))
        return lrs

    curve = schedules.get_curve(name, 5, 14, KWARGS.get(name))
    mine, optimizer = run(make(name, optimizer_of())), optimizer_of()
    assert mine == run(torch_lr.LambdaLR(optimizer, [curve.bind(lr).__call__ for lr in LRS]))
    assert mine[-1] == [0.01, 0.01]


def test_what_is_no_optimizer_is_refused() -> None:
    for name in NAMES:
        with pytest.raises(TypeError, match="optimizer"):
            make(name, torch.nn.Linear(1, 1))
