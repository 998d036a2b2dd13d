"""What the schedules promise beyond transformers: ends, groups, edges, names, errors."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lr_trace import make, trace
from ranks import run_code

import schedules
from schedules.shapes import CosineRestarts

ENDING: list[tuple[str, dict[str, Any]]] = [
    ("linear", {}),
    ("cosine", {}),
    ("cosine", {"num_cycles": 1.3}),
    ("cosine_with_restarts", {"num_cycles": 3}),
    ("polynomial", {"lr_end": 1e-4, "power": 2}),
    ("cosine_with_min_lr", {"min_lr": 1e-4}),
    ("cosine_with_min_lr", {"min_lr_rate": 0.1, "num_cycles": 2.2}),
    ("cosine_warmup_with_min_lr", {"min_lr": 1e-4}),
    ("cosine_warmup_with_min_lr", {"min_lr_rate": 0.1, "warmup_lr_rate": 0.3}),
    ("warmup_stable_decay", {"num_decay_steps": 4, "min_lr_ratio": 0.1}),
]
LENGTHS = [(0, 0), (0, 1), (0, 12), (5, 12), (12, 12), (20, 12), (1, 0)]
REQUIRED: dict[str, dict[str, Any]] = {
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
    "warmup_stable_decay": {"num_decay_steps": 4},
    "linear_factor": {"end_factor": 0.5},
    "exponential": {"gamma": 0.9},
    "inverse_time": {"decay_steps": 3, "decay_rate": 1.0},
    "piecewise_interpolate": {"boundaries_and_scales": {4: 0.3}},
    "multiplicative": {"factor": 0.9},
    "cosine_annealing_with_warm_restarts": {"T_0": 4},
    "infinite": {"num_cooldown_steps": 4},
    "power": {"batch_size": 4, "sequence_length": 100},
    "proportion": {"schedule": "cosine", "max_value": 0.3, "min_value": 0.1},
    "sequential": {"schedules": ["linear", "cosine"], "milestones": [6]},
}


@pytest.mark.parametrize(("warmup", "total"), LENGTHS)
@pytest.mark.parametrize(("name", "kwargs"), ENDING)
def test_lr_stays_at_its_end_value(name: str, kwargs: dict[str, Any], warmup: int, total: int) -> None:
    lrs = trace(schedules.get_scheduler(name, make(0.05, 0.2), warmup, total, kwargs), total + 40)
    assert all(after == lrs[total] for after in lrs[total:])
    assert all(math.isfinite(lr) and 0 <= lr <= top for each in lrs for lr, top in zip(each, (0.05, 0.2), strict=True))


@pytest.mark.parametrize(("name", "end"), [("linear", 0.0), ("cosine", 0.0), ("polynomial", 1e-7)])
def test_end_values(name: str, end: float) -> None:
    schedule = schedules.get_scheduler(name, make(0.05, 0.2), 3, 12)
    assert isinstance(schedule, schedules.ScheduleLR)
    for step in (12, 13, 10**9):
        assert schedule.lr_at(step) == pytest.approx([end, end], rel=1e-15)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("polynomial", {"lr_end": 1e-3}),
        ("cosine_with_min_lr", {"min_lr": 1e-3}),
        ("cosine_warmup_with_min_lr", {"min_lr": 1e-3}),
    ],
)
def test_an_absolute_floor_holds_in_every_group(name: str, kwargs: dict[str, float]) -> None:
    optimizer = make(0.05, 0.2, 0.001, 0.0)
    # A default lr that no group uses must not matter.
    optimizer.defaults["lr"] = 7.0
    lrs = trace(schedules.get_scheduler(name, optimizer, 3, 12, kwargs), 15)
    assert lrs[-1] == pytest.approx([1e-3, 1e-3, 1e-3, 0.0], rel=1e-15)
    assert lrs[6][0] == pytest.approx(1e-3 + (0.05 - 1e-3) / (0.2 - 1e-3) * (lrs[6][1] - 1e-3), rel=1e-12)
    assert {each[2] for each in lrs[3:]} == {1e-3}
    with pytest.raises(ValueError, match=r"param group 1: .* 0.001 is above the initial lr 0.0005"):
        schedules.get_scheduler(name, make(0.05, 5e-4), 3, 12, kwargs)


def test_a_floor_rate_is_a_share_of_each_groups_lr() -> None:
    kwargs = {"min_lr_rate": 0.1}
    lrs = trace(schedules.get_scheduler("cosine_with_min_lr", make(0.05, 0.2), 3, 12, kwargs), 20)
    assert lrs[-1] == pytest.approx([0.005, 0.02], rel=1e-15)


def test_polynomial_without_decay_steps_reaches_its_end() -> None:
    lrs = trace(schedules.get_polynomial_decay_schedule_with_warmup(make(0.4), 4, 4, lr_end=0.1), 8)
    assert [lr for (lr,) in lrs] == pytest.approx([0, 0.1, 0.2, 0.3, 0.1, 0.1, 0.1, 0.1], rel=1e-15)


def test_a_warmup_longer_than_the_total_stops_at_the_total() -> None:
    for name in ("linear", "cosine", "polynomial", "cosine_with_restarts"):
        lrs = [lr for (lr,) in trace(schedules.get_scheduler(name, make(1.0), 8, 4), 12)]
        assert lrs == [0, 0.125, 0.25, 0.375] + [0.5] * 8


@pytest.mark.parametrize("cycles", [2, 3, 7, 10, 49, 98, 103])
def test_every_restart_is_at_the_peak(cycles: int) -> None:
    for length in (1, 2, 5):
        curve = CosineRestarts(cycles * length, cycles)
        assert [curve(k * length) for k in range(cycles + 1)] == [1.0] * cycles + [0.0]


def test_wsd_total_and_stable_steps() -> None:
    with pytest.raises(ValueError, match="num_training_steps or num_stable_steps is required"):
        schedules.get_wsd_schedule(make(0.1), 2, 3)
    with pytest.warns(UserWarning, match="num_stable_steps=1 wins over num_training_steps=10.*ends at step 6"):
        schedules.get_wsd_schedule(make(0.1), 2, 3, num_training_steps=10, num_stable_steps=1)
    with pytest.raises(ValueError, match=r"decay_type must be one of 'linear', .*'exponential'; got 'exp'"):
        schedules.get_wsd_schedule(make(0.1), 2, 3, 10, decay_type="exp")
    # A total too short for both phases: the decay ends in time, its beginning is cut off.
    curve = schedules.get_wsd_schedule(make(1.0), 4, 8, num_training_steps=8, decay_type="linear")
    assert [curve.lr_at(step)[0] for step in range(10)] == [0, 0.25, 0.5, 0.75, 0.5, 0.375, 0.25, 0.125, 0, 0]


# --- tensor learning rates --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", schedules.list_schedules())
def test_a_tensor_lr_is_filled_in_place(name: str) -> None:
    tensors = [torch.tensor(0.05), torch.tensor(0.2, dtype=torch.float64)]
    optimizer, plain = make(*tensors), make(0.05, 0.2)
    held = [group["lr"] for group in optimizer.param_groups]
    kwargs = dict(REQUIRED.get(name, {}))
    if schedules.get_schedule_info(name).needs_metric:
        kwargs = {"patience": 0, "factor": 0.5, "min_lr": 0.01}
    if name == "polynomial":
        kwargs = {"lr_end": 0.01}
    schedule = schedules.get_scheduler(name, optimizer, 3, 12, kwargs)
    reference = schedules.get_scheduler(name, plain, 3, 12, kwargs)
    for _ in range(15):
        for each in (schedule, reference):
            each.optimizer.step()
            each.step(1.0) if schedules.get_schedule_info(name).needs_metric else each.step()
        assert all(group["lr"] is lr for group, lr in zip(optimizer.param_groups, held, strict=True))
        values = [float(lr) for lr in held]
        assert values[0] == pytest.approx(plain.param_groups[0]["lr"], rel=1e-6, abs=1e-8)
        assert values[1] == pytest.approx(plain.param_groups[1]["lr"], rel=1e-14)
    assert values != [0.05, 0.2] or name.startswith("constant")
    assert not any(last is lr for last, lr in zip(schedule.get_last_lr(), held, strict=True))


def test_plateau_repairs_a_torch_that_replaces_the_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    def old_reduce(self: Any, epoch: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = float(group["lr"]) * self.factor

    monkeypatch.setattr(torch.optim.lr_scheduler.ReduceLROnPlateau, "_reduce_lr", old_reduce)
    optimizer = make(torch.tensor(0.5))
    held = optimizer.param_groups[0]["lr"]
    schedule = schedules.get_reduce_on_plateau_schedule(optimizer, patience=0, factor=0.5)
    schedule.step(1.0)
    schedule.step(1.0)
    assert optimizer.param_groups[0]["lr"] is held
    assert held == 0.25
    assert schedule.get_last_lr() == [torch.tensor(0.25)]


# --- greedy -----------------------------------------------------------------------------------------------------------


def test_greedy_counts_as_a_plateau_schedule_and_warns_of_its_floor() -> None:
    with pytest.warns(UserWarning, match=r"param group 0 starts at lr=5e-05, below min_lr=0.001"):
        schedule = schedules.get_greedy_schedule(make(5e-5))
    assert isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau)


def test_greedy_smoothing_survives_a_nan() -> None:
    optimizer = make(0.1)
    schedule = schedules.get_greedy_schedule(optimizer, min_lr=1e-3, patience=0, smooth=True, window_size=2, factor=0.5)
    for metric in (5.0, float("nan"), 4.0, 3.0):
        schedule.step(metric)
    low = optimizer.param_groups[0]["lr"]
    schedule.step(2.0)
    assert optimizer.param_groups[0]["lr"] == 2 * low


def test_greedy_verbose_prints(capsys: pytest.CaptureFixture[str]) -> None:
    schedule = schedules.get_greedy_schedule(make(0.1), min_lr=1e-3, patience=0, verbose=True)
    schedule.step(1.0)
    assert "learning rate of group 0 set to" in capsys.readouterr().out


# --- names and arguments ----------------------------------------------------------------------------------------------


def test_names_in_any_case_with_hyphens() -> None:
    assert schedules.canonical_schedule_name("Cosine-With_RESTARTS") == "cosine_with_restarts"
    assert schedules.SchedulerType("INVERSE-sqrt") is schedules.SchedulerType.INVERSE_SQRT
    assert str(schedules.SchedulerType.LINEAR) == f"{schedules.SchedulerType.LINEAR}" == "linear"
    assert schedules.get_scheduler("Constant-With-Warmup", make(0.5), 2).lr_at(1) == [0.25]  # type: ignore[attr-defined]
    assert len(schedules.list_schedules()) == len(set(schedules.list_schedules())) >= 12
    assert {member.value for member in schedules.SchedulerType} <= set(schedules.list_schedules())


def test_unknown_names_raise_with_the_closest() -> None:
    with pytest.raises(ValueError, match="unknown schedule 'cosin'; the closest names are 'cosine'"):
        schedules.get_scheduler("cosin", make(0.1), 1, 10)
    with pytest.raises(ValueError, match="'reduce_lr_on_plateau'"):
        schedules.canonical_schedule_name("reduce_on_plateau")
    with pytest.raises(ValueError, match=r"the names are .*'warmup_stable_decay'"):
        schedules.canonical_schedule_name("xyz")
    assert schedules.canonical_schedule_name("WSD") == "warmup_stable_decay"
    with pytest.raises(ValueError, match="unknown schedule"):
        schedules.SchedulerType("linnear")
    with pytest.raises(TypeError, match="must be a str"):
        schedules.canonical_schedule_name(3)  # type: ignore[arg-type]


def test_schedule_info() -> None:
    for name in schedules.list_schedules():
        info = schedules.get_schedule_info(name)
        assert info.name == name
        assert info.description
        assert set(info.required_kwargs) <= set(info.kwargs)
        assert not {"optimizer", "num_warmup_steps", "num_training_steps"} & set(info.kwargs)
    info = schedules.get_schedule_info("Warmup-Stable-Decay")
    assert (info.needs_warmup, info.needs_total, info.required_kwargs) == (True, False, ("num_decay_steps",))
    info = schedules.get_schedule_info("inverse_sqrt")
    assert (info.needs_warmup, info.needs_total, info.kwargs) == (True, False, ("timescale", "last_epoch"))
    info = schedules.get_schedule_info("reduce_lr_on_plateau")
    assert (info.needs_warmup, info.needs_total, info.needs_metric) == (False, False, True)
    assert {"patience", "factor", "min_lr"} <= set(info.kwargs)
    assert schedules.get_schedule_info("linear").factory is schedules.get_linear_schedule_with_warmup


@pytest.mark.parametrize("name", schedules.list_schedules())
def test_no_argument_is_ever_dropped(name: str) -> None:
    kwargs = {**REQUIRED.get(name, {}), "no_such_option": 1}
    with pytest.raises(TypeError, match=f"{name} takes no argument 'no_such_option'.*it takes "):
        schedules.get_scheduler(name, make(0.1), 1, 10, kwargs)
    with pytest.raises(TypeError, match="num_warmup_steps is an argument of get_scheduler itself"):
        schedules.get_scheduler(name, make(0.1), 1, 10, {"num_warmup_steps": 3})


def test_arguments_reach_the_schedule() -> None:
    schedule = schedules.get_scheduler("inverse_sqrt", make(1.0), 4, 100, {"timescale": 12})
    assert schedule.lr_at(40) == [0.5]  # type: ignore[attr-defined]
    optimizer = make(1.0)
    optimizer.param_groups[0]["initial_lr"] = 1.0
    schedules.get_scheduler("constant_with_warmup", optimizer, 10, None, {"last_epoch": 4})
    assert optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("factory", [schedules.get_greedy_schedule, schedules.get_reduce_on_plateau_schedule])
def test_metric_schedules_name_a_wrong_option(factory: Any) -> None:
    with pytest.raises(TypeError, match="takes no option 'patiense'; the closest names are 'patience'"):
        factory(make(0.1), patiense=3)
    for wrong in ({"factor": 1.0}, {"factor": math.nan}, {"patience": -1}, {"cooldown": 1.5}, {"mode": "least"}):
        with pytest.raises(ValueError):
            factory(make(0.1), **wrong)
    with pytest.raises(ValueError):
        factory(make(0.1), min_lr=[0.1, 0.2])


def test_missing_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="linear requires num_warmup_steps"):
        schedules.get_scheduler("linear", make(0.1), None, 10)
    with pytest.raises(ValueError, match="cosine requires num_training_steps"):
        schedules.get_scheduler("cosine", make(0.1), 1)
    with pytest.raises(ValueError, match="warmup_stable_decay requires 'num_decay_steps' in scheduler_specific_kwargs"):
        schedules.get_scheduler("warmup_stable_decay", make(0.1), 1, 10)
    for name in ("cosine_with_min_lr", "cosine_warmup_with_min_lr"):
        with pytest.raises(ValueError, match=r"min_lr .* or min_lr_rate .* is required"):
            schedules.get_scheduler(name, make(0.1), 1, 10)
        with pytest.raises(ValueError, match="not both"):
            schedules.get_scheduler(name, make(0.1), 1, 10, {"min_lr": 0.01, "min_lr_rate": 0.1})


@pytest.mark.parametrize(
    ("error", "match", "args", "kwargs"),
    [
        (ValueError, "num_warmup_steps must be at least 0, got -1", (-1, 10), {}),
        (ValueError, "num_training_steps must be at least 0, got -5", (1, -5), {}),
        (ValueError, "num_warmup_steps must be a whole number, got 1.5", (1.5, 10), {}),
        (ValueError, "num_training_steps must be a whole number, got nan", (1, math.nan), {}),
        (ValueError, "num_training_steps must be a whole number, got inf", (1, math.inf), {}),
        (TypeError, "num_training_steps must be an int, got 'ten' of type str", (1, "ten"), {}),
        (TypeError, "num_warmup_steps must be an int, got the bool True", (True, 10), {}),
        (ValueError, "num_cycles must be finite, got nan", (1, 10), {"num_cycles": math.nan}),
        (ValueError, "num_cycles must be at least 0", (1, 10), {"num_cycles": -0.5}),
        (TypeError, "num_cycles must be a number, got 'half'", (1, 10), {"num_cycles": "half"}),
        (ValueError, "last_epoch must be at least -1", (1, 10), {"last_epoch": -2}),
    ],
)
def test_bad_arguments_are_named(error: type[Exception], match: str, args: Any, kwargs: dict[str, Any]) -> None:
    optimizer = make(0.1)
    with pytest.raises(error, match=match):
        schedules.get_cosine_schedule_with_warmup(optimizer, *args, **kwargs)
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert "initial_lr" not in optimizer.param_groups[0]


def test_more_bad_arguments_are_named() -> None:
    bad: list[tuple[str, dict[str, Any], str]] = [
        ("polynomial", {"power": 0}, "power must be above 0"),
        ("polynomial", {"power": math.inf}, "power must be finite"),
        ("polynomial", {"lr_end": -1e-7}, "lr_end must be at least 0"),
        ("polynomial", {"lr_end": 0.2}, "0.2 is above the initial lr 0.1"),
        ("cosine_with_min_lr", {"min_lr_rate": 1.5}, "min_lr_rate must be at most 1"),
        ("cosine_with_min_lr", {"min_lr": -1.0}, "min_lr must be at least 0"),
        ("cosine_warmup_with_min_lr", {"min_lr_rate": 0.1, "warmup_lr_rate": 2}, "warmup_lr_rate must be at most 1"),
        ("cosine_with_restarts", {"num_cycles": 0}, "num_cycles must be at least 1"),
        ("cosine_with_restarts", {"num_cycles": 1.5}, "num_cycles must be a whole number"),
        ("inverse_sqrt", {"timescale": 0}, "timescale must be above 0"),
        ("warmup_stable_decay", {"num_decay_steps": -1}, "num_decay_steps must be at least 0"),
        ("warmup_stable_decay", {"num_decay_steps": 2, "num_stable_steps": -1}, "num_stable_steps must be at least 0"),
        ("warmup_stable_decay", {"num_decay_steps": 2, "min_lr_ratio": -0.1}, "min_lr_ratio must be at least 0"),
        ("greedy", {"min_lr": 0.5, "max_lr": 0.2}, "min_lr=0.5 is above max_lr=0.2"),
        ("greedy", {"window_size": 0}, "window_size must be at least 1"),
    ]
    for name, kwargs, match in bad:
        with pytest.raises(ValueError, match=match):
            schedules.get_scheduler(name, make(0.1), 1, 10, kwargs)


def test_whole_floats_are_taken_as_ints() -> None:
    assert schedules.get_linear_schedule_with_warmup(make(1.0), 0.0, 4.0).lr_at(1) == [0.75]  # type: ignore[arg-type]
    assert schedules.get_linear_schedule_with_warmup(make(1), 0, torch.tensor(4)).lr_at(1) == [0.75]  # type: ignore[arg-type]


def test_what_no_schedule_can_drive() -> None:
    class LayerWise(torch.optim.SGD):
        optimizer_dict: dict[Any, Any] = {}

    with pytest.raises(TypeError, match="one optimizer per parameter"):
        schedules.get_scheduler("linear", LayerWise([torch.nn.Parameter(torch.zeros(1))], lr=0.1), 0, 10)
    with pytest.raises(TypeError, match=r"optimizer must be a torch.optim.Optimizer, got list"):
        schedules.get_scheduler("linear", [], 0, 10)  # type: ignore[arg-type]
    optimizer = make(0.1)
    optimizer.param_groups[0]["lr"] = None
    for name in ("linear", "reduce_lr_on_plateau"):
        with pytest.raises(ValueError, match="param group 0 has lr=None"):
            schedules.get_scheduler(name, optimizer, 0, 10)
    with pytest.raises(TypeError, match="scheduler_specific_kwargs must be a dict"):
        schedules.get_scheduler("linear", make(0.1), 0, 10, "power=2")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="curve must be"):
        schedules.ScheduleLR(make(0.1), lambda step: 1.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["cosine", "plateau"])
def test_a_group_that_came_later_is_named_and_nothing_is_changed(name: str) -> None:
    optimizer = make(0.5)
    schedule = schedules.get_scheduler(name, optimizer, 0, 10)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))]})
    before = schedule.state_dict()
    with pytest.raises(ValueError, match="has 2 param groups, its schedule was made for 1"):
        schedule.step(*([1.0] if name == "plateau" else []))
    assert schedule.state_dict() == before


def test_the_documents_code_runs(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "schedules.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.S)).replace("range(1000)", "range(3)")
    run_code(code + DOCUMENT_CHECK, folder=tmp_path)


DOCUMENT_CHECK = """
assert warmup(50) == 2.5e-05
assert [curve(step) for step in (0, 50, 100, 150, 600, 900)] == [0.0, 0.5, 1.0, 0.55, curve(600), curve(600)]
assert schedule.lr_at(150)[0] == 0.55 * schedule.base_lrs[0]
"""


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"factor": "x"}, TypeError, "factor must be a number"),
        ({"mode": 1}, ValueError, "mode must be one of 'min', 'max'"),
        ({"threshold_mode": "relative"}, ValueError, "threshold_mode must be one of 'rel', 'abs'"),
        ({"min_lr": [0.1, "a"]}, TypeError, "min_lr must be a number"),
        ({"patience": 1.5}, ValueError, "patience must be a whole number"),
    ],
)
def test_reduce_on_plateau_names_the_option_that_is_wrong(options, error, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        schedules.get_scheduler("reduce_lr_on_plateau", make(0.1, 0.2), scheduler_specific_kwargs=options)
