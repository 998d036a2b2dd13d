"""`check_options`: what a schedule would refuse is refused before there is an optimizer, and nothing else."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from lr_trace import make
from test_schedules_resume import KWARGS

import schedules
from schedules.drawing import EXAMPLES

NAMES = schedules.list_schedules()

# Options that only some numbers of steps go with, or that one might think too many.
MORE: list[tuple[str, dict[str, Any]]] = [
    ("cosine_annealing_with_warmup", {"first_cycle_steps": 1}),
    ("cosine_annealing_with_warmup", {"first_cycle_steps": 7, "cycle_mult": 1.5}),
    ("rsqrt", {"decay_steps": 5000}),
    ("step", {"decay_steps": 10**6}),
    ("multistep", {"milestones": [10, 5000, 10**6]}),
    ("warmup_stable_decay", {"num_decay_steps": 5000}),
    ("warmup_stable_decay", {"num_decay_steps": 0.1, "num_stable_steps": 40}),
    ("infinite", {"num_cooldown_steps": 0.5, "num_anneal_steps": 5000}),
    ("infinite", {"num_cooldown_steps": 3, "num_anneal_steps": 5, "anneal_start": 0}),
    ("power", {"batch_size": 8, "sequence_length": 64, "num_decay_steps": 5000}),
    ("sequential", {"schedules": ["linear", "cosine", "rex"], "milestones": [100, 5000]}),
    ("sequential", {"schedules": ["noam", "cosine"], "milestones": [4000]}),
    ("one_cycle", {"pct_start": 0.2}),
    ("noam", {"d_model": 512}),
    ("proportion", {"schedule": ["noam", {"d_model": 512}], "max_value": 1.0, "min_value": 0.0, "max_lr": 0.01}),
    ("cyclic", {"step_size_up": 10**6, "scale_fn": lambda cycle: 0.9**cycle}),
    ("exponential", {"gamma": 1.5}),
    ("multiplicative", {"factor": lambda step: 1.0 / step}),
    ("cosine_with_cycles", {"cycle_limit": None, "cycle_steps": 10**5, "noise_range": [10**4, 10**6]}),
    ("greedy", {"min_lr": [1e-3, 1e-4], "max_lr": [1.0, 2.0]}),
    ("plateau", {"min_lr": [1e-3, 1e-4], "warmup_lr": [0.0, 0.1], "warmup_epochs": 3, "noise_range": [5, 9]}),
]


def cases() -> list[tuple[str, dict[str, Any]]]:
    usual = [(name, options.get(name, {})) for name in NAMES for options in (EXAMPLES, KWARGS)]
    return [(name, options) for name, options in usual if complete(name, options)] + MORE


def complete(name: str, options: dict[str, Any]) -> bool:
    needs_floor = name in ("cosine_with_min_lr", "cosine_warmup_with_min_lr") and not options
    return set(schedules.get_schedule_info(name).required_kwargs) <= set(options) and not needs_floor


@pytest.mark.parametrize(("name", "options"), cases())
def test_what_some_number_of_steps_goes_with_is_taken(name: str, options: dict[str, Any]) -> None:
    went = 0
    for warmup in (0, 1, 5, 0.1):
        for total in (1, 30, 20_000):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    schedules.get_scheduler(name, make(0.05, 0.2), warmup, total, options)
                except ValueError:
                    continue
            went += 1
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                schedules.check_options(name, options, num_warmup_steps=warmup, num_training_steps=total)
                schedules.check_options(name, options, num_warmup_steps=warmup)
                schedules.check_options(name, options, num_training_steps=total)
    assert went
    schedules.check_options(name, options)
    schedules.check_options(name, options, [0.05, 0.2])


WRONG: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("rex", {"min_lr": "1e-6 or so"}, TypeError, "min_lr must be a number, got '1e-6 or so'"),
    ("rex", {"min_lr": -1e-6}, ValueError, "min_lr must be at least 0"),
    ("rex", {"max_lr": 1e-4, "min_lr": 1e-3}, ValueError, "min_lr=0.001 is above max_lr=0.0001"),
    ("rex", {"minlr": 0.1}, TypeError, "takes no argument 'minlr'; the closest names are 'min_lr'"),
    ("warmup_stable_decay", {}, ValueError, "requires 'num_decay_steps'"),
    (
        "warmup_stable_decay",
        {"num_decay_steps": 10, "decay_type": "lineer"},
        ValueError,
        "decay_type must be one of .*; got 'lineer': did you mean 'linear'[?]",
    ),
    (
        "infinite",
        {"num_cooldown_steps": 3, "cooldown_type": "Cosine"},
        ValueError,
        "'Cosine': did you mean 'cosine'[?]",
    ),
    ("one_cycle", {"anneal_strategy": "sine"}, ValueError, "anneal_strategy must be one of"),
    ("noam", {"factor": -1}, ValueError, "^factor must be above 0"),
    ("cosine_annealing_with_warmup", {"first_cycle_steps": 0}, ValueError, "first_cycle_steps=0 must be more than"),
    ("cosine_with_min_lr", {}, ValueError, "min_lr .* or min_lr_rate .* is required"),
    ("infinite", {"num_cooldown_steps": 3, "anneal_start": 9}, ValueError, "needs num_anneal_steps"),
    (
        "sequential",
        {"schedules": ["linear", "cosin"], "milestones": [9]},
        ValueError,
        r"schedules\[1\]: unknown .*'cosine'",
    ),
    (
        "reduce_lr_on_plateau",
        {"mode": "mxa"},
        ValueError,
        "mode must be one of 'min', 'max'; got 'mxa': did you mean 'max'",
    ),
    ("reduce_lr_on_plateau", {"patience": "a few"}, TypeError, "patience must be an int"),
    ("plateau", {"min_lr": [0.1, 0.2], "warmup_lr": [0.1]}, ValueError, "warmup_lr must be a number or 2 numbers"),
    ("greedy", {"factor": 1.5}, ValueError, "factor must be below 1"),
    ("greedy", {"min_lr": 2.0, "max_lr": 1.0}, ValueError, "min_lr=2.0 is above max_lr=1.0"),
]


@pytest.mark.parametrize(("name", "options", "error", "match"), WRONG)
def test_what_none_goes_with_is_refused(name: str, options: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        schedules.check_options(name, options)
    with pytest.raises(error, match=match):
        schedules.check_options(name, options, 1e-2, num_warmup_steps=5, num_training_steps=100)


FLOORS: list[tuple[str, dict[str, Any]]] = [
    ("polynomial", {"lr_end": "1e-3"}),
    ("cosine_with_min_lr", {"min_lr": 1e-3}),
    ("cosine_warmup_with_min_lr", {"min_lr": 1e-3}),
    ("cosine_annealing", {"eta_min": 1e-3}),
    ("cosine_annealing_with_warm_restarts", {"T_0": 9, "eta_min": 1e-3}),
    ("cosine_annealing_with_warmup", {"min_lr": 1e-3}),
    ("cyclic", {"base_lr": 1e-3}),
    ("rex", {"min_lr": 1e-3}),
    ("cosine_with_cycles", {"min_lr": 1e-3}),
    ("tanh", {"min_lr": 1e-3}),
    ("poly", {"min_lr": 1e-3}),
    ("rsqrt", {"min_lr": 1e-3}),
    ("warmup_lr", {"min_lr": 1e-3}),
    ("warmup_decay_lr", {"min_lr": 1e-3}),
    ("sequential", {"schedules": ["linear", ["rex", {"min_lr": 1e-3}]], "milestones": [9]}),
]


@pytest.mark.parametrize(("name", "options"), FLOORS)
def test_a_floor_is_seen_where_the_lr_is_known(name: str, options: dict[str, Any]) -> None:
    schedules.check_options(name, options)
    schedules.check_options(name, options, "1e-2")  # type: ignore[arg-type]
    schedules.check_options(name, options, [1e-3, torch.tensor(0.1), 0.0])  # type: ignore[list-item]
    for lr in (1e-4, [1e-2, 1e-4], "1e-4"):
        with pytest.raises(ValueError, match=r"0\.001 is above the initial lr 0\.0001"):
            schedules.check_options(name, options, lr)  # type: ignore[arg-type]


def test_no_floor_is_forgotten() -> None:
    floors = {"lr_end", "min_lr", "eta_min", "base_lr"}
    found = {name for name in NAMES if floors & set(schedules.get_schedule_info(name).kwargs)}
    # The last three follow a metric and never raise a learning rate; proportion's min_lr is a number of its own, and
    # lr_range_test's is where it starts.
    others = {"lr_range_test", "proportion", "greedy", "plateau", "reduce_lr_on_plateau"}
    assert found - others == {name for name, _ in FLOORS} - {"sequential"}


def test_known_steps_are_what_counts() -> None:
    schedules.check_options("noam")
    with pytest.raises(ValueError, match="num_warmup_steps must be at least 1"):
        schedules.check_options("noam", num_warmup_steps=0)
    first = {"first_cycle_steps": 30}
    schedules.check_options("cosine_annealing_with_warmup", first)
    with pytest.raises(ValueError, match="first_cycle_steps=30 must be more than num_warmup_steps=50"):
        schedules.check_options("cosine_annealing_with_warmup", first, num_warmup_steps=50)
    with pytest.raises(ValueError, match="decay_steps=50 is more than the 40 steps"):
        schedules.check_options("rsqrt", {"decay_steps": 50}, num_training_steps=40)
    with pytest.raises(TypeError, match="num_training_steps must be an int"):
        schedules.check_options("linear", num_training_steps="many")  # type: ignore[arg-type]


def test_functions_are_called_for_the_first_steps() -> None:
    with pytest.raises(TypeError, match="the factor of step 1 must be a number, got 'x'"):
        schedules.check_options("multiplicative", {"factor": lambda step: "x"})


def test_unknown_names_and_rates() -> None:
    with pytest.raises(ValueError, match=r"unknown schedule 'cosin'.*'cosine'"):
        schedules.check_options("cosin")
    with pytest.raises(TypeError, match="lr must be a number"):
        schedules.check_options("cosine", lr="fast")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"decay_rate": "fast", "sched": "step"}, "must be a number"),
        ({"min_lr": 1.0}, "is above the initial lr"),
        ({"sched": "wsd", "decay_fn": "lineer"}, "did you mean 'linear'"),
        ({"sched": "cosin"}, "unknown schedule 'cosin'.*'cosine'"),
    ],
)
def test_timms_factory_refuses_at_once(options: dict[str, Any], match: str) -> None:
    with pytest.raises((TypeError, ValueError), match=match):
        schedules.create_scheduler_v2(make(0.05), **options)
