"""timm's schedules against timm itself at every step, through its factory and by our names."""

from __future__ import annotations

import copy
import inspect
import io
import itertools
import math
import pickle
import warnings
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import peers
import pytest
import torch
from lr_trace import make, trace

import schedules
from schedules import create_scheduler, create_scheduler_v2, get_curve, get_scheduler, scheduler_kwargs
from schedules.curves import cycle_at
from schedules.patterns import Milestones, Stairs
from schedules.shapes import Cosine, KDecay, Tanh

FACTORY = "timm.scheduler.scheduler_factory"
needs_timm = pytest.mark.skipif(not peers.installed("timm"), reason="timm is not installed")
LRS = (0.05, 0.2)
BY_NAME = ["cosine_with_cycles", "tanh", "poly", "step", "multistep", "rsqrt"]


def theirs(name: str) -> Any:
    return peers.load(f"{FACTORY}.{name}")


def lrs_of(optimizer: Any) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def epochs(schedule: Any, steps: int, updates: bool = False, metrics: list[float] | None = None) -> list[list[float]]:
    """The learning rates after step(0), step(1), ... or step_update(0), ..."""
    lrs = []
    for t in range(steps):
        if updates:
            schedule.step_update(t)
        else:
            schedule.step(t, *([] if metrics is None else [metrics[t]]))
        lrs.append(lrs_of(schedule.optimizer))
    return lrs


def assert_same(ours: list[list[float]], theirs: list[list[float]], but: tuple[int, ...] = ()) -> None:
    assert len(ours) == len(theirs) > 0
    for step, pair in enumerate(zip(ours, theirs, strict=True)):
        if step not in but:
            for mine, other, top in zip(*pair, LRS, strict=True):
                # Near the end of a cosine 1 + cos(x) has no more digits than 1 has.
                assert mine == pytest.approx(other, rel=1e-12, abs=3e-16 * top), f"step {step}"


def timm_trace(steps: int, updates: bool = False, **options: Any) -> tuple[list[list[float]], int]:
    schedule, total = theirs("create_scheduler_v2")(make(*LRS), **options)
    return epochs(schedule, steps, updates), total


# --- the factory ------------------------------------------------------------------------------------------------------

WARMUPS: list[dict[str, Any]] = [
    {},
    {"warmup_epochs": 1},
    {"warmup_epochs": 5, "warmup_lr": 0.01},
    {"warmup_epochs": 5, "warmup_prefix": True},
    # The warm-up starts above the first group's learning rate, which timm allows.
    {"warmup_epochs": 3, "warmup_lr": 0.06, "warmup_prefix": True},
]
NOISES: list[dict[str, Any]] = [
    {"noise": 0.4},
    {"noise": [0.25, 0.75], "noise_pct": 0.3, "noise_std": 0.5, "noise_seed": 7},
]
SHAPES: list[dict[str, Any]] = [
    {"sched": "cosine"},
    {"sched": "cosine", "cycle_limit": 3, "min_lr": 0.001},
    {"sched": "cosine", "cycle_limit": 3, "cycle_decay": 1.0, "cycle_mul": 2.0},
    {"sched": "cosine", "cycle_limit": 4, "cycle_decay": 0.5, "cycle_mul": 1.5, "k_decay": 1.7, "min_lr": 0.002},
    {"sched": "cosine", "cycle_limit": 2, "cycle_mul": 0.75, "k_decay": 0.6},
    # The top of the third cycle is below min_lr.
    {"sched": "cosine", "cycle_limit": 3, "cycle_decay": 0.1, "min_lr": 0.01},
    {"sched": "tanh"},
    {"sched": "tanh", "cycle_limit": 3, "cycle_decay": 0.7, "min_lr": 0.001},
    {"sched": "tanh", "cycle_limit": 2, "cycle_mul": 1.5},
    {"sched": "poly"},
    {"sched": "poly", "decay_rate": 2.0, "min_lr": 0.003, "cycle_limit": 2, "cycle_decay": 0.8},
    {"sched": "poly", "decay_rate": 0.9, "k_decay": 1.5, "cycle_limit": 2, "cycle_mul": 2.0},
    {"sched": "step"},
    {"sched": "step", "decay_epochs": 7, "decay_rate": 0.5},
    {"sched": "step", "decay_epochs": 2.5, "decay_rate": 0.9},
    {"sched": "multistep", "decay_milestones": [4, 9, 9, 17], "decay_rate": 0.3},
    {"sched": "constant"},
    {"sched": "wsd"},
    {"sched": "wsd", "decay_epochs": 6, "min_lr": 0.001, "decay_fn": "linear"},
    {"sched": "wsd", "decay_epochs": 0.5, "decay_fn": "cosine"},
    {"sched": "wsd", "decay_epochs": 0.4, "decay_fn": "power", "min_lr": 0.01},
    {"sched": "wsd", "decay_epochs": 5, "decay_fn": "exp", "cooldown_epochs": 3},
    {"sched": "rsqrt", "stable_timescale": 4},
    # The stable part meets min_lr in the first group only.
    {"sched": "rsqrt", "stable_timescale": 2.5, "min_lr": 0.03, "decay_fn": "1-sqrt", "decay_epochs": 3},
]


@needs_timm
@pytest.mark.parametrize("updates", [False, True])
@pytest.mark.parametrize(
    ("warmup", "noise"), [*((warmup, {}) for warmup in WARMUPS), *((WARMUPS[2], noise) for noise in NOISES)]
)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_factory_equals_timms(shape: Any, warmup: Any, noise: Any, updates: bool) -> None:
    options = {"num_epochs": 20, **shape, **warmup, **noise}
    if updates:
        options |= {"step_on_epochs": False, "updates_per_epoch": 3}
    schedule, total = create_scheduler_v2(make(*LRS), **options)
    steps = total * (3 if updates else 1) + 20
    other, other_total = timm_trace(steps, updates, **options)
    assert (total, type(total)) == (other_total, int)
    assert_same(epochs(schedule, steps, updates), other)
    if "noise" in noise:  # it is there, and the comparison without it would fail
        plain, _ = create_scheduler_v2(make(*LRS), **{**options, "noise": None})
        assert epochs(plain, steps, updates) != other


@needs_timm
def test_the_factorys_signatures_are_timms() -> None:
    for name in ("create_scheduler_v2", "create_scheduler", "scheduler_kwargs"):
        ours = inspect.signature(getattr(schedules, name)).parameters
        other = inspect.signature(theirs(name)).parameters
        assert [(p.name, p.kind, p.default) for p in ours.values()] == [
            (p.name, p.kind, p.default) for p in other.values()
        ]


@needs_timm
@pytest.mark.parametrize(
    "cfg",
    [
        {"sched": "cosine"},
        {"sched": "plateau", "eval_metric": "loss", "seed": 3},
        {"sched": "step", "epochs": 20, "decay_epochs": 4, "decay_rate": 0.5, "lr_noise": [0.2, 0.6], "min_lr": 1e-4},
        {"sched": "tanh", "epochs": 15, "lr_cycle_limit": 2, "lr_cycle_mul": 2.0, "warmup_prefix": True},
        {"sched": "wsd", "epochs": 20, "decay_epochs": 5, "sched_on_updates": True, "lr_decay_fn": "exp"},
    ],
)
def test_configurations_are_read_as_timm_reads_them(cfg: dict[str, Any]) -> None:
    args = SimpleNamespace(**cfg)
    for decreasing in (None, True, False):
        ours, other = scheduler_kwargs(args, decreasing), theirs("scheduler_kwargs")(args, decreasing)
        assert {**ours, "decay_milestones": list(ours["decay_milestones"])} == other
    if cfg["sched"] != "plateau":
        updates = cfg.get("sched_on_updates", False)
        ours, total = create_scheduler(args, make(*LRS), 2)  # type: ignore[assignment]
        other, other_total = theirs("create_scheduler")(args, make(*LRS), 2)
        assert total == other_total
        assert_same(epochs(ours, 60, updates), epochs(other, 60, updates))
    with pytest.raises(AttributeError, match="sched"):
        scheduler_kwargs(SimpleNamespace())


@needs_timm
def test_no_schedule() -> None:
    for options in ({}, {"warmup_epochs": 3}, {"warmup_epochs": 3, "warmup_prefix": True}):
        assert create_scheduler_v2(make(0.1), "none", 20, **options) == theirs("create_scheduler_v2")(
            make(0.1), "none", 20, **options
        )


def test_only_one_of_the_two_calls_counts() -> None:
    by_epoch, _ = create_scheduler_v2(make(1.0), "step", 20, decay_epochs=5)
    by_update, _ = create_scheduler_v2(make(1.0), "step", 20, decay_epochs=5, step_on_epochs=False, updates_per_epoch=2)
    by_epoch.step(7)
    by_epoch.step_update(0)
    by_update.step_update(7)
    by_update.step(17)
    assert (by_epoch.get_last_lr(), by_update.get_last_lr()) == ([0.1], [1.0])
    by_update.step_update(10, metric=0.5)
    by_epoch.step(4, metric=0.5)
    assert (by_epoch.get_last_lr(), by_update.get_last_lr()) == ([1.0], [0.1])
    # Without a number both go one on, as torch's do.
    by_epoch.optimizer.step()
    by_epoch.step()
    by_update.optimizer.step()
    by_update.step()
    assert (by_epoch.last_epoch, by_update.last_epoch) == (5, 11)
    assert by_epoch.get_last_lr() == [0.1]


# --- where we differ --------------------------------------------------------------------------------------------------


@needs_timm
@pytest.mark.parametrize(("mul", "length", "boundary", "cycle"), [(3.0, 5, 605, 5), (0.8, 5, 9, 2), (1.2, 50, 182, 3)])
def test_exact_boundaries(mul: float, length: int, boundary: int, cycle: int) -> None:
    """Where a cycle ends exactly on a step, timm's logarithm may be rounded down: min_lr in place of the top."""
    assert cycle_at(boundary, length, mul) == (cycle, boundary, mul**cycle)
    options: dict[str, Any] = {"num_epochs": length, "cycle_mul": mul, "cycle_limit": cycle + 1, "cycle_decay": 1.0}
    schedule, _ = create_scheduler_v2(make(*LRS), **options)
    ours, (other, _) = epochs(schedule, boundary + 10), timm_trace(boundary + 10, **options)
    assert ours[boundary] == pytest.approx(LRS, rel=1e-12)
    assert other[boundary][0] < 1e-12
    assert_same(ours, other, but=(boundary,))


@needs_timm
def test_no_epoch_is_lost_by_rounding() -> None:
    options: dict[str, Any] = {"num_epochs": 30, "cycle_mul": 0.8}
    assert create_scheduler_v2(make(*LRS), **options)[1] == 30
    assert timm_trace(1, **options)[1] == 29


@needs_timm
def test_after_all_cycles_of_a_shrinking_series() -> None:
    options: dict[str, Any] = {"num_epochs": 10, "cycle_mul": 0.5, "cycle_limit": 2, "min_lr": 0.01}
    schedule, total = create_scheduler_v2(make(*LRS), **options)
    assert total == 15
    assert_same(epochs(schedule, 20), timm_trace(20, **options)[0])
    assert schedule.lr_at(20) == schedule.lr_at(10**6) == [0.01, pytest.approx(0.01)]
    with pytest.raises(ValueError, match="math domain error"):
        timm_trace(21, **options)


@needs_timm
def test_a_floor_above_a_learning_rate_is_refused() -> None:
    for sched in ("cosine", "tanh", "poly", "wsd"):
        assert timm_trace(20, sched=sched, num_epochs=20, min_lr=0.1)[0][19][0] > LRS[0]
        with pytest.raises(ValueError, match=r"param group 0: .*0.1 is above the initial lr 0.05"):
            create_scheduler_v2(make(*LRS), sched, 20, min_lr=0.1)
    # step, multistep and constant have no floor: timm's do not look at min_lr, and no more do ours.
    create_scheduler_v2(make(*LRS), "step", 20, min_lr=0.1)


@needs_timm
def test_a_group_with_lr_0_stays_frozen() -> None:
    options: dict[str, Any] = {"num_epochs": 10, "warmup_epochs": 3, "min_lr": 0.01}
    for make_one, frozen in ((create_scheduler_v2, {0.0}), (theirs("create_scheduler_v2"), {0.01, 1e-5})):
        schedule, _ = make_one(make(0.1, 0.0), **options)
        assert {lrs[1] for lrs in epochs(schedule, 15)} >= frozen
    schedule, _ = create_scheduler_v2(make(0.1, 0.0), **options)
    assert {lrs[1] for lrs in epochs(schedule, 15)} == {0.0}


@needs_timm
def test_the_constructor_sets_step_0() -> None:
    """timm's leaves the base lr (or warmup_lr) until the first call, whatever its curve has at 0."""
    for options in ({"sched": "tanh"}, {"sched": "cosine", "noise": 0.0}):
        ours, _ = create_scheduler_v2(make(0.05), **options)
        other, _ = theirs("create_scheduler_v2")(make(0.05), **options)
        assert lrs_of(other.optimizer) == [0.05] != lrs_of(ours.optimizer)
        other.step(0)
        assert lrs_of(ours.optimizer) == pytest.approx(lrs_of(other.optimizer), rel=1e-12)


@needs_timm
def test_options_that_make_no_sense_are_refused() -> None:
    bad: list[tuple[dict[str, Any], str]] = [
        ({"sched": "cosin"}, "unknown schedule 'cosin'; the closest names are 'cosine'"),
        ({"sched": "plateu"}, "'plateau'"),
        ({"num_epochs": 0}, "num_epochs must be at least 1"),
        ({"cycle_limit": 0}, "cycle_limit must be at least 1"),
        ({"cycle_mul": 0}, "mul must be above 0"),
        ({"min_lr": -1e-3}, "min_lr must be at least 0"),
        ({"k_decay": 0}, "k_decay must be above 0"),
        ({"warmup_epochs": -1}, "warmup_epochs must be at least 0"),
        ({"warmup_epochs": 2, "warmup_lr": -1.0}, "warmup_lr must be at least 0"),
        ({"noise": [0.1, 0.2, 0.3]}, "noise must be where the noise starts"),
        ({"noise": [0.5, 0.2]}, "noise must not stop before it starts"),
        ({"noise": 0.5, "noise_pct": 0.0}, "noise_pct must be above 0"),  # timm draws for ever
        ({"noise": 0.5, "noise_pct": 1e-4}, r"std \(noise_std\) 1 is more than 1000 times"),  # nearly so
        ({"step_on_epochs": False}, "needs updates_per_epoch"),
        ({"sched": "plateau", "step_on_epochs": False, "updates_per_epoch": 2}, "plateau counts epochs"),
        ({"sched": "wsd", "decay_epochs": 400}, "must come to 1 step or more, and fit"),
        ({"sched": "wsd", "decay_fn": "expo"}, "decay_fn must be one of .*'exp'"),
        ({"sched": "rsqrt"}, "needs stable_timescale above 0, or a warm-up"),
        ({"sched": "multistep", "decay_milestones": [9, 4]}, "milestones must be in ascending order"),
        ({"sched": "step", "decay_epochs": 0}, "every must be above 0"),
    ]
    for options, match in bad:
        optimizer = make(0.1)
        with pytest.raises(ValueError, match=match):
            create_scheduler_v2(optimizer, **options)
        assert lrs_of(optimizer) == [0.1]


# --- layer-wise learning rates ----------------------------------------------------------------------------------------

SCALES = (0.25, 0.5, 1.0)


def layered(lrs: Any, scales: Any = SCALES, default: float = 0.2) -> torch.optim.Optimizer:
    groups = [
        {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr, "lr_scale": scale}
        for lr, scale in zip(lrs, scales, strict=True)
    ]
    return torch.optim.SGD(groups, lr=default)


@needs_timm
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("sched", ["cosine", "tanh", "wsd", "constant", "plateau"])
def test_lr_scale_is_applied_once(sched: str, scaled: bool) -> None:
    options: dict[str, Any] = {"sched": sched, "num_epochs": 20, "warmup_epochs": 4, "min_lr": 0.01}
    metrics = [1.0] * 40 if sched == "plateau" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other, _ = theirs("create_scheduler_v2")(layered([0.2] * 3), **options)
    ours, _ = create_scheduler_v2(layered([0.2 * s for s in SCALES] if scaled else [0.2] * 3), **options)
    for mine, their in zip(epochs(ours, 40, metrics=metrics), epochs(other, 40, metrics=metrics), strict=True):
        assert mine == pytest.approx(their, rel=1e-12)


def test_lr_scale_with_groups_of_hfoptim() -> None:
    from hfoptim import layer_decay_groups

    model = torch.nn.ModuleDict({"0": torch.nn.Linear(2, 2), "1": torch.nn.Linear(2, 2), "head": torch.nn.Linear(2, 2)})
    named = torch.nn.Sequential(model["0"], model["1"], model["head"])
    traces = []
    for lr in (None, 0.2):
        optimizer = torch.optim.SGD(layer_decay_groups(named, layer_decay=0.5, lr=lr), lr=0.2)
        schedule, _ = create_scheduler_v2(optimizer, num_epochs=10, warmup_epochs=2, min_lr=0.01)
        scales = [group["lr_scale"] for group in optimizer.param_groups]
        assert len(set(scales)) > 1
        traces.append(epochs(schedule, 15))
        assert traces[-1][12] == pytest.approx([0.01 * scale for scale in scales])
    assert traces[0] == [pytest.approx(lrs, rel=1e-12) for lrs in traces[1]]


def test_lr_scale_that_cannot_be_told_is_refused() -> None:
    # One kind of lr_scale: the optimizer's default lr tells.
    for lr, default, first in ((0.2, 0.2, 0.1), (0.1, 0.2, 0.1)):
        schedule, _ = create_scheduler_v2(layered([lr, lr], [0.5, 0.5], default), "constant", 20)
        assert lrs_of(schedule.optimizer) == [first, first]
    for lrs, scales in (([0.3, 0.3], [0.5, 0.5]), ([0.2, 0.3], [0.5, 0.25])):
        with pytest.raises(ValueError, match="do not say whether it is applied"):
            create_scheduler_v2(layered(lrs, scales), "constant", 20)
    # A group without one, or with 1, may have any lr.
    schedule, _ = create_scheduler_v2(layered([0.2, 0.2, 7.0], [0.25, 0.5, 1.0]), "constant", 20)
    assert lrs_of(schedule.optimizer) == [0.05, 0.1, 7.0]
    # A frozen layer.
    schedule, _ = create_scheduler_v2(layered([0.2, 0.2, 0.2], [0.0, 0.5, 0.25]), "cosine", 20, min_lr=0.1)
    assert schedule.lr_at(20) == pytest.approx([0.0, 0.05, 0.025])
    with pytest.raises(ValueError, match="lr_scale must be at least 0"):
        create_scheduler_v2(layered([0.2], [-1.0]), "constant", 20)


def test_lr_scale_survives_a_checkpoint() -> None:
    for lrs in ([0.2] * 3, [0.2 * scale for scale in SCALES]):
        first, _ = create_scheduler_v2(layered(lrs), num_epochs=20)
        first.step(7)
        second, _ = create_scheduler_v2(layered(lrs), num_epochs=20)
        second.optimizer.load_state_dict(first.optimizer.state_dict())
        second.load_state_dict(first.state_dict())
        third, _ = create_scheduler_v2(second.optimizer, num_epochs=20)  # made after the optimizer was loaded
        for schedule in (second, third):
            schedule.step(8)
            assert lrs_of(schedule.optimizer) == first.lr_at(8)


# --- by name ----------------------------------------------------------------------------------------------------------

# timm's options of a schedule -> its name here and its options.
MAPPED: list[tuple[dict[str, Any], str, dict[str, Any]]] = [
    ({"sched": "cosine"}, "cosine_with_cycles", {}),
    (
        {"sched": "cosine", "cycle_limit": 3, "cycle_decay": 0.5, "min_lr": 0.001},
        "cosine_with_cycles",
        {"cycle_limit": 3, "cycle_decay": 0.5, "min_lr": 0.001},
    ),
    (
        {"sched": "cosine", "cycle_limit": 3, "cycle_decay": 1.0, "cycle_mul": 2.0, "k_decay": 1.6},
        "cosine_with_cycles",
        {"cycle_limit": 3, "cycle_mul": 2, "k_decay": 1.6},
    ),
    (
        {"sched": "cosine", "cycle_limit": 2, "cycle_decay": 0.5, "cycle_mul": 0.75},
        "cosine_with_cycles",
        {"cycle_limit": 2, "cycle_decay": 0.5, "cycle_mul": 0.75, "cycle_steps": 20},
    ),
    ({"sched": "tanh", "min_lr": 0.001}, "tanh", {"min_lr": 0.001}),
    (
        {"sched": "tanh", "cycle_limit": 3, "cycle_decay": 0.9, "cycle_mul": 2.0},
        "tanh",
        {"cycle_limit": 3, "cycle_decay": 0.9, "cycle_mul": 2.0},
    ),
    ({"sched": "poly", "decay_rate": 0.5}, "poly", {}),
    (
        {"sched": "poly", "decay_rate": 2.0, "k_decay": 0.7, "cycle_limit": 2, "cycle_decay": 0.5, "min_lr": 0.002},
        "poly",
        {"power": 2.0, "k_decay": 0.7, "cycle_limit": 2, "cycle_decay": 0.5, "min_lr": 0.002},
    ),
]
DECAYING: list[tuple[dict[str, Any], str, dict[str, Any]]] = [
    ({"sched": "step", "decay_epochs": 6}, "step", {"decay_steps": 6}),
    ({"sched": "step", "decay_epochs": 7, "decay_rate": 0.5}, "step", {"decay_steps": 7, "decay_rate": 0.5}),
    # timm's milestones are one step early.
    ({"sched": "multistep", "decay_milestones": [5, 9, 19]}, "multistep", {"milestones": [4, 8, 18]}),
]


@needs_timm
@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize(
    ("warmup", "warmup_lr", "noise"),
    [(0, 0.0, None), (1, 0.0, None), (6, 0.0, None), (6, 0.01, 0.5), (6, 0.01, [0.25, 0.75])],
)
@pytest.mark.parametrize(("options", "name", "ours"), MAPPED + DECAYING)
def test_by_name_equals_timm(
    options: Any, name: str, ours: Any, warmup: int, warmup_lr: float, prefix: bool, noise: Any
) -> None:
    given = {"num_epochs": 20, **options, "warmup_epochs": warmup, "warmup_lr": warmup_lr, "warmup_prefix": prefix}
    _, total = create_scheduler_v2(make(*LRS), **given)
    steps = None if noise is None else [round(share * 20) for share in ([noise] if isinstance(noise, float) else noise)]
    schedule = get_scheduler(
        name,
        make(*LRS),
        warmup,
        total,
        {**ours, "warmup_lr": warmup_lr, "warmup_prefix": prefix, "noise_range": steps, "noise_seed": 3},
    )
    other, _ = timm_trace(total + 20, **given, noise=noise, noise_seed=3)
    lrs = trace(schedule, total + 20)
    assert_same(lrs[:total], other[:total])
    if noise is None and options["sched"] not in ("step", "multistep"):
        assert_same(lrs, other)
    # Beyond the total ours stays; timm's step goes on falling, and its noise goes on.
    assert all(after == lrs[total] for after in lrs[total:])


@needs_timm
@pytest.mark.parametrize("decay_fn", ["linear", "1-sqrt", "cosine", "power", "exp"])
@pytest.mark.parametrize(("warmup", "timescale", "min_lr"), [(5, None, 0.0), (5, 3, 0.02), (0, 8, 0.03)])
def test_rsqrt_by_name_equals_timm(warmup: int, timescale: Any, min_lr: float, decay_fn: str) -> None:
    options = {"stable_timescale": timescale, "min_lr": min_lr, "decay_fn": decay_fn}
    other, _ = timm_trace(
        45, sched="rsqrt", num_epochs=25, decay_epochs=7, warmup_epochs=warmup, warmup_lr=0.004, **options
    )
    schedule = get_scheduler("rsqrt", make(*LRS), warmup, 25, {**options, "decay_steps": 7, "warmup_lr": 0.004})
    assert_same(trace(schedule, 45), other)


@needs_timm
def test_timms_wsd_is_warmup_stable_decay() -> None:
    other, _ = timm_trace(45, sched="wsd", num_epochs=25, warmup_epochs=5, warmup_lr=0.0, decay_epochs=8)
    options = {"num_decay_steps": 8, "decay_type": "1-sqrt"}
    assert_same(trace(get_scheduler("wsd", make(*LRS), 5, 25, options), 45), other)


def test_multistep_by_name_equals_torch_and_not_timm() -> None:
    options = {"milestones": [4, 9, 17], "decay_rate": 0.3}
    ours = trace(get_scheduler("multi_step", make(*LRS), 0, 20, options), 21)
    reference = torch.optim.lr_scheduler.MultiStepLR(make(*LRS), [4, 9, 17], 0.3)
    assert ours == [pytest.approx(lrs, rel=1e-12) for lrs in trace(reference, 21)]
    early, _ = create_scheduler_v2(make(*LRS), "multistep", 20, decay_milestones=[4, 9, 17], decay_rate=0.3)
    assert [early.lr_at(step) for step in range(20)] == ours[1:]


def test_step_by_name_equals_torch() -> None:
    ours = trace(get_scheduler("step", make(*LRS), 0, 20, {"decay_steps": 7, "decay_rate": 0.3}), 21)
    assert ours == [
        pytest.approx(lrs, rel=1e-12) for lrs in trace(torch.optim.lr_scheduler.StepLR(make(*LRS), 7, 0.3), 21)
    ]


def values(name: str, warmup: int, total: int, steps: int, **options: Any) -> list[float]:
    return get_curve(name, warmup, total, options).values(steps)


def test_golden_values() -> None:
    # Two cycles of six steps after four of warm-up.
    half = [1, 0.9330127018922193, 0.75, 0.5, 0.25, 0.06698729810778065]
    expected = [0, 0.25, 0.5, 0.75, *half, *(0.5 * each for each in half), 0, 0]
    assert values("cosine_with_cycles", 4, 16, 18, cycle_limit=2, cycle_decay=0.5) == pytest.approx(expected, abs=1e-15)
    # A line of power 1, thrice, each twice as long: 2 + 4 + 8 steps.
    expected = [1, 0.5, 1, 0.75, 0.5, 0.25, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0, 0]
    assert values("poly", 0, 14, 16, power=1, cycle_limit=3, cycle_mul=2) == pytest.approx(expected, abs=1e-15)
    # The cycles count from step 0, and the warm-up hides the beginning of the first.
    assert values("poly", 2, 8, 9, power=1, warmup_prefix=False) == pytest.approx(
        [0, 0.5, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0], abs=1e-15
    )
    # Without the prefix a warm-up to tanh ends where the tangent is.
    tangent = [0.5 * (1 - math.tanh(-7 + 10 * step / 8)) for step in range(8)]
    assert values("tanh", 2, 8, 9, warmup_prefix=False) == pytest.approx(
        [0, tangent[2] / 2, *tangent[2:], 0], rel=1e-14
    )
    assert values("step", 2, 10, 12, decay_steps=4, decay_rate=0.5) == [0, 0.5, 1, 1, *[0.5] * 4, *[0.25] * 4]
    assert values("step", 2, 10, 12, decay_steps=4, decay_rate=0.5, warmup_prefix=True) == [
        *[0, 0.5],
        *[1] * 4,
        *[0.5] * 4,
        *[0.25] * 2,
    ]
    # Shares of the total, rounded up.
    assert values("multistep", 0, 10, 12, decay_rate=0.5) == [*[1] * 3, *[0.5] * 3, *[0.25] * 3, *[0.125] * 3]
    assert values("step", 0, 10, 10, decay_rate=0.5) == values("multistep", 0, 10, 10, decay_rate=0.5)
    assert values("rsqrt", 4, 40, 50, decay_steps=12)[16] == pytest.approx(0.5)
    assert values("rsqrt", 4, 40, 50, decay_steps=12)[28] == pytest.approx(1 / math.sqrt(7))
    assert values("rsqrt", 4, 40, 50, decay_steps=12)[34] == pytest.approx(0.5 / math.sqrt(34 / 4))
    assert set(values("rsqrt", 4, 40, 50, decay_steps=12)[40:]) == {0.0}


@pytest.mark.parametrize("mul", [1, 2, 1.5, 1.1, 0.8])
@pytest.mark.parametrize("limit", [1, 2, 3, 7, 49])
@pytest.mark.parametrize("total", [10, 98, 343])
@pytest.mark.parametrize("name", ["cosine_with_cycles", "tanh", "poly"])
def test_the_cycles_fill_the_total(name: str, total: int, limit: int, mul: float) -> None:
    """Every start of a cycle that lies on a step has the top, and the total has the end, whatever is rounded."""
    ratio = Fraction(str(mul))
    whole = sum(ratio**i for i in range(limit))
    curve = get_curve(name, 0, total, {"cycle_limit": limit, "cycle_mul": mul})
    starts = [sum((ratio**i for i in range(cycle)), Fraction(0)) * total / whole for cycle in range(limit)]
    exact = [int(start) for start in starts if start.denominator == 1]
    assert [curve(start) for start in exact] == [pytest.approx(1.0, abs=1e-6)] * len(exact)
    assert curve(total) == curve(total + 5) == 0.0
    assert len(exact) == limit or mul != 1 or total % limit
    assert all(0.0 <= value <= 1.0 for value in curve.values(total + 1))


def test_cycles_of_a_given_length() -> None:
    # As many as fit; the last is cut off at the total, where the lr stays.
    curve = get_curve("poly", 2, 12, {"power": 1, "cycle_steps": 4, "cycle_limit": None})
    assert curve.values(14) == pytest.approx([0, 0.5, 1, 0.75, 0.5, 0.25, 1, 0.75, 0.5, 0.25, 1, 0.75, 0.5, 0.5])
    # One of them, then min_lr.
    assert values("poly", 2, 12, 9, power=1, cycle_steps=4)[6:] == [0, 0, 0]
    with pytest.raises(ValueError, match="needs cycle_steps"):
        get_curve("poly", 2, 12, {"cycle_limit": None})


def test_noise_ends_at_the_total() -> None:
    plain = values("poly", 0, 10, 15, power=0.5, cycle_steps=20)
    for noise_range, first, stop in (
        (0.5, 5, 10),
        (5, 5, 10),
        ([5], 5, 10),
        ([0.2, 0.6], 2, 6),
        ([2, 6], 2, 6),
        ([0.2, 1], 2, 10),
        ([3, 99], 3, 10),
        ([12, 14], 12, 12),
        (0, 0, 10),
    ):
        noisy = values("poly", 0, 10, 15, power=0.5, cycle_steps=20, noise_range=noise_range)
        assert [step for step in range(15) if noisy[step] != plain[step]] == list(range(first, stop))
        assert all(abs(a / b - 1) < 0.67 for a, b in zip(noisy, plain, strict=True))
    other = values("poly", 0, 10, 15, power=0.5, cycle_steps=20, noise_range=[3, 99], noise_seed=43)
    assert other != values("poly", 0, 10, 15, power=0.5, cycle_steps=20, noise_range=[3, 99])


def test_by_name_bad_options_are_named() -> None:
    bad: list[tuple[str, dict[str, Any], str]] = [
        ("cosine_with_cycles", {"cycle_limit": 0}, "cycle_limit must be at least 1"),
        ("cosine_with_cycles", {"cycle_limit": 1.5}, "cycle_limit must be a whole number"),
        ("cosine_with_cycles", {"cycle_mul": 0}, "cycle_mul must be above 0"),
        ("cosine_with_cycles", {"cycle_decay": -1}, "cycle_decay must be at least 0"),
        ("cosine_with_cycles", {"cycle_steps": 0}, "cycle_steps must be above 0"),
        ("cosine_with_cycles", {"k_decay": 0}, "k_decay must be above 0"),
        ("cosine_with_cycles", {"min_lr": -1}, "min_lr must be at least 0"),
        ("cosine_with_cycles", {"min_lr": 0.2}, "param group 0: .*0.2 is above the initial lr 0.1"),
        ("cosine_with_cycles", {"warmup_lr": -1}, "warmup_lr must be at least 0"),
        ("tanh", {"lb": 3, "ub": 3}, "lb must be below ub"),
        ("poly", {"power": 0}, "power must be above 0"),
        ("step", {"decay_steps": 0}, "decay_steps must be at least 1"),
        ("step", {"decay_steps": 2.5}, "decay_steps must be a whole number"),
        ("step", {"decay_rate": -0.1}, "decay_rate must be at least 0"),
        ("multistep", {"milestones": [5, 3]}, "milestones must be in ascending order"),
        ("multistep", {"milestones": [-1]}, "milestones must be at least 0"),
        ("rsqrt", {"decay_steps": 10}, "decay_steps=10 is more than the 9 steps after the warm-up"),
        ("rsqrt", {"decay_fn": "sqrt"}, "decay_fn must be one of"),
        ("rsqrt", {"stable_timescale": 0}, "stable_timescale must be above 0"),
        ("tanh", {"noise_range": [1, 2, 3]}, "noise_range must be where the noise starts"),
        ("tanh", {"noise_range": [3, 2]}, "must not stop before it starts"),
        ("tanh", {"noise_range": [0.5, 4]}, "noise_range must be a whole number, got 0.5"),
    ]
    for name, options, match in bad:
        with pytest.raises(ValueError, match=match):
            get_scheduler(name, make(0.1), 1, 10, options)
    with pytest.raises(TypeError, match="milestones must be a list of steps, got 5"):
        get_scheduler("multistep", make(0.1), 1, 10, {"milestones": 5})
    with pytest.raises(TypeError, match="warmup_prefix must be True or False, got 'no'"):
        get_scheduler("tanh", make(0.1), 1, 10, {"warmup_prefix": "no"})
    with pytest.raises(TypeError, match="rsqrt takes no argument 'warmup_prefix'"):
        get_scheduler("rsqrt", make(0.1), 1, 10, {"warmup_prefix": True})
    with pytest.raises(TypeError, match="unexpected keyword argument 'cycles'"):
        schedules.get_tanh_schedule(make(0.1), 1, 10, cycles=3)


# --- pure functions of the step ---------------------------------------------------------------------------------------

OPTIONS: dict[str, dict[str, Any]] = {
    "cosine_with_cycles": {"cycle_limit": 2, "cycle_mul": 1.5, "cycle_decay": 0.5, "min_lr": 0.001, "k_decay": 1.3},
    "tanh": {"warmup_prefix": False, "warmup_lr": 0.001},
    "poly": {"noise_range": [0.2, 0.9]},
    "step": {"decay_steps": 4, "noise_range": 3},
    "multistep": {"milestones": [7, 9]},
    "rsqrt": {"min_lr": 0.01, "decay_fn": "exp"},
}


@pytest.mark.parametrize("name", BY_NAME)
def test_curves_are_values(name: str) -> None:
    curve = get_curve(name, 3, 20, OPTIONS[name]).bind(0.05)
    again = get_curve(name, 3, 20, copy.deepcopy(OPTIONS[name])).bind(0.05)
    assert curve == again == pickle.loads(pickle.dumps(curve))
    assert hash(curve) == hash(again)
    assert len({curve, again, get_curve(name, 4, 20, OPTIONS[name]).bind(0.05)}) == 2
    forwards = curve.values(40)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0)).tolist()
    assert curve.values(order) == [forwards[step] for step in order]
    assert trace(get_scheduler(name, make(0.05), 3, 20, OPTIONS[name]), 40) == [[0.05 * value] for value in forwards]


TIMM = [{"sched": sched, "num_epochs": 12} for sched in ("cosine", "tanh", "poly", "step", "multistep", "constant")]
TIMM += [{"sched": "wsd", "num_epochs": 12}, {"sched": "rsqrt", "num_epochs": 12, "warmup_prefix": True}]


@pytest.mark.parametrize("updates", [False, True])
@pytest.mark.parametrize("options", TIMM)
def test_a_timm_schedule_resumes_and_pickles(options: dict[str, Any], updates: bool) -> None:
    given = {"warmup_epochs": 2, "noise": 0.3, "decay_epochs": 4, "decay_milestones": [5, 8], **options}
    if updates:
        given |= {"step_on_epochs": False, "updates_per_epoch": 2}

    def fresh(*lrs: Any) -> Any:
        return create_scheduler_v2(make(*(lrs or LRS)), **given)[0]

    whole = epochs(fresh(), 40, updates)
    assert len({tuple(lrs) for lrs in whole}) > 10
    first = fresh()
    assert epochs(first, 17, updates) == whole[:17]
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = fresh()
    second.load_state_dict(torch.load(file, weights_only=True))
    third = pickle.loads(pickle.dumps(first))
    for schedule in (second, third):
        assert lrs_of(schedule.optimizer) == whole[16] == schedule.get_last_lr()
        call = schedule.step_update if updates else schedule.step
        for step in (17, 35, 2, 18):
            call(step)
            assert lrs_of(schedule.optimizer) == whole[step]
        schedule.optimizer.step()
        schedule.step()
        assert lrs_of(schedule.optimizer) == whole[19]
    assert schedule.lr_at(5) == whole[5]

    tensors = fresh(torch.tensor(0.05), torch.tensor(0.2, dtype=torch.float64))
    held = [group["lr"] for group in tensors.optimizer.param_groups]
    for step, lrs in enumerate(epochs(tensors, 40, updates)):
        assert lrs[0] == pytest.approx(whole[step][0], rel=1e-6, abs=1e-9)
        # The tensor's own float32 base is what differs, not the curve.
        assert lrs[1] == pytest.approx(whole[step][1], rel=1e-12, abs=1e-16)
    assert all(group["lr"] is lr for group, lr in zip(tensors.optimizer.param_groups, held, strict=True))


def test_shapes() -> None:
    assert Stairs(4, 0.5).values(10) == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25]
    assert Stairs(2, 0.5, 2).values(7) == [1, 1, 0.5, 0.5, 0.5, 0.5, 0.25]
    assert Stairs(2, 0.5, 0.5).values([0, 2, 3, 4, 5]) == [1, 0.5, 0.25, 0, 0]
    assert Milestones((2, 2, 5), 0.5).values(7) == [1, 1, 0.25, 0.25, 0.25, 0.125, 0.125]
    assert Tanh(4).values(6)[4:] == [0, 0]
    assert KDecay(Cosine(4), 1).values(6) == Cosine(4).values(6)
    assert KDecay(Cosine(4), 2)(2) == Cosine(4)(1)
    assert KDecay(Cosine(4), 2).length == 4
    with pytest.raises(ValueError, match="only a curve with an end"):
        KDecay(Stairs(4, 0.5), 2)
    # 0.3 // 0.1 is 2.
    assert [Stairs(0.1, 0.5)(step / 10) for step in range(8)] == [0.5**step for step in range(8)]


@pytest.mark.parametrize(("length", "mul"), itertools.product([1, 5, 0.1, 7.5], [1.0, 2.0, 1.1, 0.8, 0.5]))
def test_cycle_at(length: float, mul: float) -> None:
    for index in range(8):
        start = length * sum(mul**i for i in range(index))
        assert cycle_at(start, length, mul) == (index, start, pytest.approx(mul**index))
        assert cycle_at(start + 0.5 * length * mul**index, length, mul)[0] == index
        if index:
            assert cycle_at(start - 1e-6 * length, length, mul)[0] == index - 1
    if mul < 1:
        assert cycle_at(length / (1 - mul), length, mul)[0] == -1
        assert cycle_at(length / (1 - mul) * (1 - 1e-14), length, mul)[0] == -1
        assert cycle_at(length / (1 - mul) * (1 - 1e-9), length, mul)[0] > 10


def test_cycles_that_grow_beyond_all_numbers_are_refused() -> None:
    options = {"cycle_limit": 3000, "cycle_mul": 2.0}
    with pytest.raises(ValueError, match=r"cycle_limit=3000 with cycle_mul=2.0 leaves no step"):
        schedules.get_curve("cosine_with_cycles", 10, 1000, options)
    with pytest.raises(ValueError, match="longer than can be counted"):
        schedules.create_scheduler_v2(make(0.1), "cosine", **options)
