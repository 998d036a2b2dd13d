"""The schedules against torch.optim.lr_scheduler, at every step, in two groups with unequal learning rates."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lr_trace import make, trace
from torch.optim import lr_scheduler as torch_lr

import schedules
from schedules.shapes import constant

LRS = (0.05, 0.2)
STEPS = 40
PAST = 20


def close(ours: Any, theirs: Any) -> None:
    assert len(ours) == len(theirs) > 0
    for step, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        assert mine == pytest.approx(other, rel=1e-12, abs=1e-16), f"step {step}"


def theirs_of(factory: Callable[[Any], Any], steps: int) -> list[list[float]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return trace(factory(make(*LRS)), steps)


def ours_of(name: str, kwargs: dict[str, Any], warmup: int = 0, total: int | None = None) -> Any:
    return schedules.get_scheduler(name, make(*LRS), warmup, total, kwargs)


def slowing(step: int) -> float:
    return 1.0 - 1.0 / (step + 5)


# name, our options, torch's class with its options: equal at every step, without an end.
ENDLESS: list[tuple[str, dict[str, Any], Callable[[Any], Any]]] = [
    ("constant_factor", {}, torch_lr.ConstantLR),
    ("constant_factor", {"factor": 0.1, "total_iters": 17}, lambda o: torch_lr.ConstantLR(o, 0.1, 17)),
    ("linear_factor", {}, torch_lr.LinearLR),
    (
        "linear_factor",
        {"start_factor": 0.9, "end_factor": 0.05, "total_iters": 23},
        lambda o: torch_lr.LinearLR(o, 0.9, 0.05, 23),
    ),
    ("exponential", {"gamma": 0.93}, lambda o: torch_lr.ExponentialLR(o, 0.93)),
    ("exponential", {"gamma": 1.02}, lambda o: torch_lr.ExponentialLR(o, 1.02)),
    ("multiplicative", {"factor": 0.97}, lambda o: torch_lr.MultiplicativeLR(o, lambda _: 0.97)),
    ("multiplicative", {"factor": slowing}, lambda o: torch_lr.MultiplicativeLR(o, slowing)),
    (
        "multiplicative",
        {"factor": [0.9, 0.5, 1.5]},
        lambda o: torch_lr.MultiplicativeLR(o, lambda t: [0.9, 0.5, 1.5][t - 1] if t < 4 else 1.0),
    ),
    ("cosine_annealing_with_warm_restarts", {"T_0": 7}, lambda o: torch_lr.CosineAnnealingWarmRestarts(o, 7)),
    (
        "cosine_annealing_with_warm_restarts",
        {"T_0": 3, "T_mult": 2, "eta_min": 0.01},
        lambda o: torch_lr.CosineAnnealingWarmRestarts(o, 3, 2, 0.01),
    ),
    (
        "cosine_annealing_with_warm_restarts",
        {"T_0": 1, "T_mult": 3},
        lambda o: torch_lr.CosineAnnealingWarmRestarts(o, 1, 3),
    ),
]


@pytest.mark.parametrize(("name", "kwargs", "factory"), ENDLESS)
def test_endless_schedules_equal_torch(name: str, kwargs: dict[str, Any], factory: Callable[[Any], Any]) -> None:
    ours = ours_of(name, kwargs)
    theirs = theirs_of(factory, STEPS + PAST + 1)
    close(trace(ours, STEPS + PAST + 1), theirs)
    # Any step, in any order.
    for step in (PAST, 3, STEPS, 0, 11):
        assert ours.lr_at(step) == pytest.approx(theirs[step], rel=1e-12)


@pytest.mark.parametrize(("name", "kwargs", "factory"), ENDLESS)
def test_after_a_warmup_and_with_an_end(name: str, kwargs: dict[str, Any], factory: Callable[[Any], Any]) -> None:
    """The warm-up leads to the first value, the curve follows as it was, and stays from T on."""
    theirs = theirs_of(factory, STEPS)
    ours = trace(ours_of(name, kwargs, 8, STEPS), STEPS + PAST)
    close(ours[:8], [[lr * step / 8 for lr in theirs[0]] for step in range(8)])
    close(ours[8:STEPS], theirs[: STEPS - 8])
    assert all(lrs == ours[STEPS] for lrs in ours[STEPS:])


ONE_CYCLE: list[dict[str, Any]] = [
    {},
    {"pct_start": 0.25, "anneal_strategy": "linear"},
    {"pct_start": 0.4, "three_phase": True},
    {"pct_start": 0.2, "three_phase": True, "anneal_strategy": "linear", "div_factor": 10.0, "final_div_factor": 100.0},
    {"div_factor": 5.0, "final_div_factor": 3.0, "pct_start": 0.77},
    {"pct_start": 1.0},
    {"pct_start": 0.0},
    {"pct_start": 0.7, "three_phase": True},
]


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("total", [1, 2, 7, 30])
@pytest.mark.parametrize("kwargs", ONE_CYCLE)
def test_one_cycle_equals_torch(kwargs: dict[str, Any], total: int, own: bool) -> None:
    """With each group's own lr as the maximum, and with one maximum for all."""
    peak = list(LRS) if own else 0.3
    if (kwargs.get("pct_start"), total) == (1.0, 1):  # torch divides by zero
        assert ours_of("one_cycle", kwargs, 0, 1).lr_at(0) == list(LRS)
        return
    theirs = theirs_of(lambda o: torch_lr.OneCycleLR(o, peak, total, cycle_momentum=False, **kwargs), total)
    ours = ours_of("one_cycle", kwargs if own else {"max_lr": 0.3, **kwargs}, 0, total)
    lrs = trace(ours, total + PAST)
    close(lrs[:total], theirs)
    assert all(each == lrs[total - 1] for each in lrs[total:])


def test_one_cycle_past_its_end_differs_on_purpose() -> None:
    """torch's cosine climbs, its line falls below 0 at step T; after that it raises."""
    for strategy, holds in (("cos", lambda now, last: now > last), ("linear", lambda now, _: now < 0)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = torch_lr.OneCycleLR(make(0.1), 0.1, 20, cycle_momentum=False, anneal_strategy=strategy)
            lrs = trace(theirs, 21)
            assert holds(lrs[20][0], lrs[19][0])
            with pytest.raises(ValueError, match="Tried to step 21 times"):
                theirs.step()
        ours = schedules.get_one_cycle_schedule(make(0.1), 0, 20, anneal_strategy=strategy)
        assert ours.lr_at(20) == ours.lr_at(500) == ours.lr_at(19)


def test_the_warmup_of_one_cycle_is_its_way_up() -> None:
    schedule = schedules.get_one_cycle_schedule(make(0.1), 5, 20)
    assert schedule.lr_at(5) == [0.1]
    assert schedule.lr_at(0) == pytest.approx([0.1 / 25])
    assert schedules.get_one_cycle_schedule(make(0.1), 0.25, 20).lr_at(5) == [0.1]
    with pytest.raises(ValueError, match=r"num_warmup_steps=5 and pct_start=0.3 both say where the peak is"):
        schedules.get_one_cycle_schedule(make(0.1), 5, 20, pct_start=0.3)


CYCLIC: list[dict[str, Any]] = [
    {"step_size_up": 5},
    {"step_size_up": 3, "step_size_down": 8},
    {"step_size_up": 4, "mode": "triangular2"},
    {"step_size_up": 4, "mode": "exp_range", "gamma": 0.96},
    {"step_size_up": 7, "step_size_down": 2, "scale_fn": lambda cycle: 1 / cycle},
    {"step_size_up": 6, "scale_fn": lambda step: 1 / (1 + step), "scale_mode": "iterations"},
    {"step_size_up": 5, "step_size_down": 0},
]


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("kwargs", CYCLIC)
def test_cyclic_equals_torch(kwargs: dict[str, Any], own: bool) -> None:
    peak = list(LRS) if own else 0.3
    theirs = theirs_of(lambda o: torch_lr.CyclicLR(o, 0.01, peak, cycle_momentum=False, **kwargs), STEPS + PAST)
    ours = ours_of("cyclic", {"base_lr": 0.01, **({} if own else {"max_lr": 0.3}), **kwargs})
    close(trace(ours, STEPS + PAST), theirs)
    for step in (17, 2, 55, 0):
        assert ours.lr_at(step) == pytest.approx(theirs[step], rel=1e-12)


def test_cyclic_begins_at_a_quarter_by_default_and_the_warmup_leads_there() -> None:
    schedule = schedules.get_cyclic_schedule(make(0.4), 4, step_size_up=10)
    assert [schedule.lr_at(step)[0] for step in (0, 2, 4, 14, 24)] == pytest.approx([0, 0.05, 0.1, 0.4, 0.1])
    schedule = schedules.get_cyclic_schedule(make(0.4), max_lr=0.8, step_size_up=10)
    assert [schedule.lr_at(step)[0] for step in (0, 10)] == pytest.approx([0.2, 0.8])


def momentum_trace(schedule: Any, steps: int) -> list[float]:
    values = []
    for step in range(steps):
        if step:
            schedule.optimizer.step()
            schedule.step()
        values.append(schedule.optimizer.param_groups[0]["momentum"])
    return values


def with_momentum() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1, momentum=0.5)


@pytest.mark.parametrize("kwargs", [{}, {"three_phase": True}, {"anneal_strategy": "linear", "pct_start": 0.45}])
def test_one_cycle_momentum_equals_torch(kwargs: dict[str, Any]) -> None:
    theirs = momentum_trace(torch_lr.OneCycleLR(with_momentum(), 0.1, 30, **kwargs), 30)
    assert min(theirs) < 0.87
    curve = schedules.one_cycle_momentum(0, 30, **kwargs)
    assert curve.bind(1.0).values(30) == pytest.approx(theirs, rel=1e-14)
    optimizer = with_momentum()
    ours = schedules.schedule_hyperparameter(optimizer, "momentum", curve)
    assert momentum_trace(ours, 30) == pytest.approx(theirs, rel=1e-14)


@pytest.mark.parametrize("kwargs", CYCLIC)
def test_cyclic_momentum_equals_torch(kwargs: dict[str, Any]) -> None:
    theirs = momentum_trace(torch_lr.CyclicLR(with_momentum(), 0.01, 0.1, **kwargs), 40)
    assert min(theirs) < max(theirs) == 0.9
    ours = schedules.schedule_hyperparameter(with_momentum(), "momentum", schedules.cyclic_momentum(**kwargs))
    assert momentum_trace(ours, 40) == pytest.approx(theirs, rel=1e-14)


@pytest.mark.parametrize("eta_min", [0.0, 0.01])
def test_cosine_annealing_equals_torch_and_then_stays(eta_min: float) -> None:
    theirs = theirs_of(lambda o: torch_lr.CosineAnnealingLR(o, STEPS, eta_min), STEPS + PAST + 1)
    ours = trace(ours_of("cosine_annealing", {"eta_min": eta_min}, 0, STEPS), STEPS + PAST + 1)
    close(ours[:STEPS], theirs[:STEPS])
    assert all(lrs == pytest.approx([eta_min] * 2, abs=1e-17) for lrs in ours[STEPS:])
    assert theirs[STEPS + PAST][0] > 2 * theirs[STEPS][0]  # on purpose: torch climbs again
    short = ours_of("cosine_annealing", {"T_max": 10, "eta_min": eta_min}, 0, STEPS)
    assert short.lr_at(10) == short.lr_at(33) == pytest.approx([eta_min] * 2, abs=1e-17)


def test_polynomial_is_torchs() -> None:
    for power in (1.0, 2.5):
        theirs = theirs_of(lambda o, p=power: torch_lr.PolynomialLR(o, STEPS, p), STEPS + PAST)  # type: ignore[misc]
        ours = ours_of("polynomial", {"lr_end": 0.0, "power": power}, 0, STEPS)
        close(trace(ours, STEPS + PAST), theirs)


@pytest.mark.parametrize(
    ("name", "kwargs", "factory"),
    [
        ("step", {"decay_steps": 7, "decay_rate": 0.3}, lambda o: torch_lr.StepLR(o, 7, 0.3)),
        (
            "multistep",
            {"milestones": [5, 6, 30], "decay_rate": 0.3},
            lambda o: torch_lr.MultiStepLR(o, [5, 6, 30], 0.3),
        ),
    ],
)
def test_steps_are_torchs(name: str, kwargs: dict[str, Any], factory: Callable[[Any], Any]) -> None:
    ours = trace(ours_of(name, kwargs, 0, STEPS), STEPS + PAST)
    close(ours[:STEPS], theirs_of(factory, STEPS))
    assert all(lrs == ours[STEPS] for lrs in ours[STEPS:])


def test_a_restart_at_the_end_stays_low() -> None:
    """torch restarts at step T; a run longer than planned should not heat up."""
    for kwargs, total in (({"T_0": 7}, 21), ({"T_0": 3, "T_mult": 2, "eta_min": 0.01}, 21), ({"T_0": 7}, 7)):
        ours = ours_of("cosine_annealing_with_warm_restarts", kwargs, 0, total)
        theirs = theirs_of(lambda o, k=kwargs: torch_lr.CosineAnnealingWarmRestarts(o, **k), total + 1)  # type: ignore[misc]
        close(trace(ours, total), theirs[:total])
        assert theirs[total] == pytest.approx(list(LRS))
        floor = [kwargs.get("eta_min", 0.0)] * 2
        assert ours.lr_at(total) == ours.lr_at(total + PAST) == pytest.approx(floor, abs=1e-17)


# --- SequentialLR and ChainedScheduler --------------------------------------------------------------------------------


def torch_sequence(optimizer: Any) -> Any:
    parts = [
        torch_lr.LinearLR(optimizer, 0.1, 1.0, 10),
        torch_lr.ConstantLR(optimizer, 1.0, 1),
        torch_lr.CosineAnnealingWarmRestarts(optimizer, 6),
        torch_lr.ExponentialLR(optimizer, 0.9),
    ]
    return torch_lr.SequentialLR(optimizer, parts, [10, 15, 27])


SEQUENCE: dict[str, Any] = {
    "schedules": [
        ["linear_factor", {"start_factor": 0.1, "total_iters": 10}],
        "constant",
        ["cosine_annealing_with_warm_restarts", {"T_0": 6, "num_training_steps": None}],
        ["exponential", {"gamma": 0.9, "num_training_steps": None}],
    ],
    "milestones": [10, 15, 27],
}


def test_sequential_does_the_job_of_torch() -> None:
    ours = ours_of("sequential", SEQUENCE, 0, STEPS)
    theirs = theirs_of(torch_sequence, STEPS + PAST)
    close(trace(ours, STEPS)[:STEPS], theirs[:STEPS])
    assert ours.lr_at(STEPS) == ours.lr_at(STEPS + PAST) == pytest.approx(theirs[STEPS])
    close(trace(ours_of("sequential", SEQUENCE), STEPS + PAST), theirs)


def test_sequential_fills_in_what_is_not_given() -> None:
    kwargs = {"schedules": ["linear", ["cosine", {"num_warmup_steps": 2}], constant(0.5)], "milestones": [10, 20]}
    ours = ours_of("sequential", kwargs, 4, 30)
    linear, cosine = (schedules.get_curve(name, warmup, 10) for name, warmup in (("linear", 4), ("cosine", 2)))
    expected = [*linear.values(10), *cosine.values(10), *[0.5] * 20]
    assert [lr / LRS[1] for lr in (ours.lr_at(step)[1] for step in range(40))] == pytest.approx(expected)
    inner = {"schedules": ["sequential"], "milestones": []}
    nested = {"schedules": [["sequential", kwargs], "constant"], "milestones": [25]}
    assert ours_of("sequential", nested, 4, 30).lr_at(22) == pytest.approx(ours.lr_at(22))
    with pytest.raises(ValueError, match=r"schedules\[0\]: sequential requires 'schedules'"):
        ours_of("sequential", inner)


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"schedules": []}, TypeError, "schedules must be a list of schedules"),
        ({"schedules": "linear"}, TypeError, "schedules must be a list of schedules, got 'linear'"),
        ({"schedules": ["linear"], "milestones": [3]}, ValueError, "1 schedules need 0 milestones"),
        ({"schedules": ["linear"] * 3, "milestones": [5, 5]}, ValueError, "milestones must be ascending"),
        (
            {"schedules": ["linear", "cosin"], "milestones": [5]},
            ValueError,
            r"schedules\[1\]: unknown schedule 'cosin'",
        ),
        ({"schedules": [["linear", {"power": 2}]]}, TypeError, r"schedules\[0\]: linear takes no argument 'power'"),
        ({"schedules": [["linear", 2]]}, TypeError, "arguments of 'linear' in .* must be a dict"),
        ({"schedules": [3]}, TypeError, r"schedules\[0\] must be a name"),
        ({"schedules": ["greedy"]}, ValueError, "greedy follows a metric"),
        ({"schedules": [constant(1.0)]}, ValueError, "num_warmup_steps=2 is of no use to a curve"),
    ],
)
def test_wrong_sequences_are_named(kwargs: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        ours_of("sequential", kwargs, 2, 20)


def test_a_product_of_curves_is_a_chained_scheduler() -> None:
    def chained(optimizer: Any) -> Any:
        parts = [torch_lr.ConstantLR(optimizer, 0.1, 20), torch_lr.ExponentialLR(optimizer, 0.9)]
        return torch_lr.ChainedScheduler(parts, optimizer)

    curve = schedules.get_curve("constant_factor", 0, None, {"factor": 0.1, "total_iters": 20}) * schedules.get_curve(
        "exponential", 0, None, {"gamma": 0.9}
    )
    close(trace(schedules.ScheduleLR(make(*LRS), curve), STEPS), theirs_of(chained, STEPS))


def test_every_class_of_torch_has_a_row_in_the_document() -> None:
    text = (Path(__file__).parents[1] / "docs" / "schedules.md").read_text(encoding="utf-8")
    classes = set(torch_lr.__all__) - {"LRScheduler"}
    missing = {name for name in classes if f"| `{name}`" not in text}
    assert not missing


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kwargs", "match"),
    [
        ("one_cycle", {"pct_start": 1.5}, "pct_start must be at most 1"),
        ("one_cycle", {"anneal_strategy": "exp"}, "anneal_strategy must be one of 'cos', 'cosine', 'linear'"),
        ("one_cycle", {"div_factor": 0}, "div_factor must be above 0"),
        ("one_cycle", {"max_lr": 0.0}, "max_lr must be above 0"),
        ("cyclic", {"base_lr": 0.3}, r"param group 0: .* 0.3 is above the initial lr 0.05"),
        ("cyclic", {"base_lr": 0.3, "max_lr": 0.2}, "base_lr=0.3 is above max_lr=0.2"),
        ("cyclic", {"step_size_up": 0}, "step_size_up must be at least 1"),
        ("cyclic", {"mode": "square"}, "mode must be one of 'triangular', 'triangular2', 'exp_range'"),
        ("cyclic", {"scale_mode": "steps"}, "scale_mode must be one of 'cycle', 'iterations'"),
        ("exponential", {}, "exponential requires 'gamma'"),
        ("exponential", {"gamma": 0}, "gamma must be above 0"),
        ("multiplicative", {"factor": -1.0}, "factor must be at least 0"),
        ("multiplicative", {"factor": [1.0, -1.0]}, "factor 1 must be at least 0"),
        ("cosine_annealing_with_warm_restarts", {"T_0": 0}, "T_0 must be at least 1"),
        ("cosine_annealing_with_warm_restarts", {"T_0": 5, "T_mult": 0.5}, "T_mult must be at least 1"),
        ("cosine_annealing", {"eta_min": 0.1}, r"param group 0: .* 0.1 is above the initial lr 0.05"),
        ("constant_factor", {"factor": -0.1}, "factor must be at least 0"),
        ("linear_factor", {"total_iters": 1.5}, "total_iters must be a whole number"),
    ],
)
def test_bad_options_are_named(name: str, kwargs: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        ours_of(name, kwargs, 0, 20)


def test_wrong_types_are_named() -> None:
    with pytest.raises(TypeError, match="scale_fn must be a function"):
        ours_of("cyclic", {"scale_fn": 3})
    with pytest.raises(TypeError, match="factor must be a number, got 'half'"):
        ours_of("multiplicative", {"factor": "half"})
    with pytest.raises(ValueError, match=r"the factor of step 1 must be at least 0, got -1\.0"):
        ours_of("multiplicative", {"factor": lambda _: -1.0}).lr_at(1)
