"""Numbers as text, of NumPy, as tensors and in foreign sequences mean what they say, and are stored as Python's own."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from foreign_numbers import FORMS, assert_plain, every_form, given_as, saved_and_read
from test_schedules_resume import KWARGS, METRICS

import schedules
from schedules.checks import plain, real_number, whole_number

NAMES = schedules.list_schedules()
# Options without a default that is a number, beside those that the resume test gives.
MORE: dict[str, dict[str, Any]] = {
    "one_cycle": {"max_lr": 0.3, "pct_start": 0.3},
    "cyclic": {"base_lr": 0.01, "max_lr": 0.3, "step_size_down": 3},
    "rex": {"max_lr": 0.3},
    "noam": {"d_model": 64},
    "power": {"max_lr": 0.3},
    "infinite": {"constant_lr_rate": 0.5, "anneal_start": 12},
    "cosine_annealing": {"T_max": 9, "eta_min": 1e-3},
    "cosine_annealing_with_warmup": {"max_lr": 0.3},
    "cosine_with_cycles": {"cycle_steps": 6.5, "noise_range": [3, 9]},
    "tanh": {"noise_range": 3},
    "rsqrt": {"stable_timescale": 7.5},
    "greedy": {"min_lr": [1e-3, 2e-3], "max_lr": 0.5},
    "plateau": {"min_lr": [1e-3, 2e-3], "warmup_lr": [1e-3, 2e-3]},
    "cosine_with_min_lr": {"min_lr": 1e-3},
}


def options_of(name: str) -> dict[str, Any]:
    """Every option that is a number, or numbers, with a value."""
    info = schedules.get_schedule_info(name)
    signature = inspect.signature(info.factory).parameters
    if any(p.kind is p.VAR_KEYWORD for p in signature.values()):
        signature = inspect.signature(type(schedules.get_scheduler(name, optimizer()))).parameters
    usual = {
        key: p.default
        for key, p in signature.items()
        if isinstance(p.default, int | float) and not isinstance(p.default, bool) and key in info.kwargs
    }
    usual.pop("last_epoch", None)
    return {**usual, **KWARGS.get(name, {}), **MORE.get(name, {})}


def optimizer(lrs: Any = (0.05, 0.2)) -> torch.optim.SGD:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(2))], "lr": lr} for lr in lrs]
    return torch.optim.SGD(groups, lr=1.0)


def run(name: str, schedule: Any) -> list[list[float]]:
    lrs = []
    for metric in METRICS[:30]:
        schedule.optimizer.step()
        schedule.step(*([metric] if schedules.get_schedule_info(name).needs_metric else []))
        lrs.append([float(group["lr"]) for group in schedule.optimizer.param_groups])
    return lrs


@every_form
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_number_of_every_schedule(name: str, form: str) -> None:
    number = FORMS[form][0]
    given = {key: given_as(form, value) for key, value in options_of(name).items()}
    warmup = 0 if name == "one_cycle" else 5  # its pct_start says the same
    plainly = schedules.get_scheduler(name, optimizer(), warmup, 25, options_of(name))
    schedule = schedules.get_scheduler(name, optimizer(), number(warmup), number(25), given)
    if schedules.get_schedule_info(name).curve:
        assert isinstance(schedule, schedules.ScheduleLR)
        assert isinstance(plainly, schedules.ScheduleLR)
        assert schedule.curve == plainly.curve
        assert schedules.get_curve(name, number(warmup / 25), number(25), given) == plainly.curve
    assert run(name, schedule) == run(name, plainly)
    state = saved_and_read(schedule.state_dict())
    assert_plain(state)
    assert state == plainly.state_dict()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_learning_rate_of_numpy_stays_in_no_state_dict(name: str) -> None:
    """A learning rate from ``np.logspace``, in an optimizer that keeps it as it is, such as torch's own."""
    plainly, schedule = (
        schedules.get_scheduler(name, optimizer(lrs), 5, 25, KWARGS.get(name))
        for lrs in ((0.05, 0.2), (np.float64(0.05), np.float64(0.2)))
    )
    assert run(name, schedule) == run(name, plainly)
    for state in (schedule.state_dict(), schedule.optimizer.state_dict()):
        assert_plain(saved_and_read(state))
    assert schedule.state_dict() == plainly.state_dict()


@every_form
def test_hyperparameters_that_follow_curves(form: str) -> None:
    def made(number: Any) -> Any:
        betas = given_as(form, (0.9, 0.95)) if number is not float else (0.9, 0.95)
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=0.1, weight_decay=0.1)
        optimizer.param_groups[0].update(weight_decay=number(0.1), betas=betas)
        schedule = schedules.schedule_hyperparameter(
            optimizer, "weight_decay", ("linear", {"num_warmup_steps": number(0), "num_training_steps": number(10)})
        )
        schedules.schedule_hyperparameter(optimizer, "beta2", schedules.constant(number(0.5)), schedule)
        return schedule

    schedule, plainly = made(FORMS[form][0]), made(float)
    for each in (schedule, plainly):
        each.optimizer.step()
        each.step()
    assert saved_and_read(schedule.state_dict()) == plainly.state_dict()


def test_timms_factory_reads_numbers_too() -> None:
    options = {
        "num_epochs": 20,
        "decay_epochs": 4.0,
        "decay_milestones": [3, 6],
        "decay_rate": 0.5,
        "min_lr": 1e-3,
        "warmup_lr": 1e-4,
        "warmup_epochs": 2,
        "cooldown_epochs": 1,
        "cycle_mul": 1.0,
        "cycle_decay": 0.5,
        "cycle_limit": 2,
        "k_decay": 1.0,
        "stable_timescale": 3.0,
        "noise": [0.5, 0.9],
        "noise_pct": 0.3,
        "noise_std": 1.0,
        "noise_seed": 3,
        "updates_per_epoch": 7,
        "patience_epochs": 2,
    }
    for sched in ("cosine", "tanh", "poly", "step", "multistep", "wsd", "rsqrt", "plateau"):
        for form in FORMS:
            given = {key: given_as(form, value) for key, value in options.items()}
            ours, epochs = schedules.create_scheduler_v2(optimizer(), sched, **given)
            plainly, expected = schedules.create_scheduler_v2(optimizer(), sched, **options)
            assert epochs == expected
            for epoch in range(1, 12):
                ours.step(epoch, 1.0)
                plainly.step(epoch, 1.0)
            assert saved_and_read(ours.state_dict()) == plainly.state_dict()


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("1e-6", 1e-6),
        (" 300 ", 300),
        ("-2", -2),
        ("9007199254740993", 9007199254740993),
        ("1_000", 1000),
        ("0.5", 0.5),
    ],
)
def test_text_that_holds_exactly_a_number(given: str, found: float) -> None:
    assert plain(given) == found
    assert type(plain(given)) is type(found)


@pytest.mark.parametrize("given", ["", "half", "1,5", "True", "0x10", "1e-6; 2", "--1", "None"])
def test_text_that_holds_more_or_less_is_no_number(given: str) -> None:
    with pytest.raises(TypeError, match="x must be a number"):
        real_number("x", given)
    with pytest.raises(TypeError, match="x must be an int"):
        whole_number("x", given)


def test_text_is_held_to_the_same_bounds() -> None:
    for wrong in ("nan", "inf", "-Infinity"):
        with pytest.raises(ValueError, match="x must be finite"):
            real_number("x", wrong)
    with pytest.raises(ValueError, match="x must be at least 0"):
        real_number("x", "-1e-6", at_least=0)
    with pytest.raises(ValueError, match=r"x must be a whole number, got '1\.5'"):
        whole_number("x", "1.5")
    assert whole_number("x", "1e3") == 1000
    with pytest.raises(TypeError, match="must be"):
        real_number("x", np.True_)
