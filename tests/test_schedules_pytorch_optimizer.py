"""The schedules against pytorch_optimizer: at every step where we follow it, and by how much where we do not.

pytorch_optimizer gives all groups the same learning rate, so each group is compared with a run of its own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lr_trace import make, trace

import schedules
from schedules.patterns import Chebyshev, fractal_order

po = pytest.importorskip("pytorch_optimizer.lr_scheduler")

LRS = (0.05, 0.2)
PAST = 20


def theirs_of(factory: Callable[[Any, float], Any], steps: int) -> list[list[float]]:
    """Their learning rates, each group by a run with its own lr as the maximum."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traces = [trace(factory(make(lr), lr), steps) for lr in LRS]
    return [[each[0] for each in step] for step in zip(*traces, strict=True)]


def ours_of(name: str, kwargs: dict[str, Any], warmup: int, total: int) -> Any:
    return schedules.get_scheduler(name, make(*LRS), warmup, total, kwargs)


def close(ours: Any, theirs: Any) -> None:
    assert len(ours) == len(theirs) > 0
    for step, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        assert mine == pytest.approx(other, rel=1e-12, abs=1e-16), f"step {step}"


# --- rex --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("min_lr", [0.0, 0.01])
@pytest.mark.parametrize("total", [1, 2, 30])
def test_rex_is_equal_from_step_1_on(total: int, min_lr: float) -> None:
    theirs = theirs_of(lambda o, lr: po.REXScheduler(o, total, max_lr=lr, min_lr=min_lr), total + PAST)
    ours = ours_of("rex", {"min_lr": min_lr}, 0, total)
    close(trace(ours, total + PAST)[1:], theirs[1:])
    # On purpose: theirs has its lowest lr before the first step, so that this step is lost.
    assert theirs[0] == [min_lr] * 2
    assert ours.lr_at(0) == list(LRS)
    one_for_all = ours_of("rex", {"min_lr": min_lr, "max_lr": 0.3}, 0, total)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        same = trace(po.REXScheduler(make(*LRS), total, max_lr=0.3, min_lr=min_lr), total)
    close(trace(one_for_all, total)[1:] or [[0.0]], same[1:] or [[0.0]])


def test_rex_warms_up() -> None:
    ours = ours_of("rex", {"min_lr": 0.01, "max_lr": 0.4}, 4, 24)
    without = ours_of("rex", {"min_lr": 0.01, "max_lr": 0.4}, 0, 20)
    assert [ours.lr_at(step)[0] for step in range(4)] == pytest.approx([0, 0.1, 0.2, 0.3])
    close([ours.lr_at(step + 4) for step in range(30)], [without.lr_at(step) for step in range(30)])


# --- chebyshev --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("total", [5, 8, 9, 30, 64, 100])
def test_chebyshev_is_theirs_two_steps_earlier(total: int) -> None:
    """On purpose: theirs gives the first three steps the first value, and never gets to the last two."""
    theirs = theirs_of(lambda o, lr: po.get_chebyshev_schedule(o, total), total + 2)
    ours = trace(ours_of("chebyshev", {}, 0, total), total + PAST)
    close(ours[:total], theirs[2:])
    assert theirs[0] == theirs[1] == theirs[2] == pytest.approx(ours[0])
    assert all(each == ours[total - 1] for each in ours[total:])


def test_chebyshev_past_the_end() -> None:
    """Theirs goes on to the next power of two."""
    theirs = theirs_of(lambda o, lr: po.get_chebyshev_schedule(o, 20), 20 + PAST)
    assert len({lr for lr, _ in theirs[20:]}) > 5


@pytest.mark.parametrize("total", [2, 3, 4])
def test_a_short_chebyshev_uses_all_its_nodes(total: int) -> None:
    """Theirs leaves out half of the nodes where there are at most four."""
    theirs = theirs_of(lambda o, lr: po.get_chebyshev_schedule(o, total), 20)
    ours = trace(ours_of("chebyshev", {}, 0, total), total)
    assert len({lr for lr, _ in ours}) == total
    assert len({lr for lr, _ in theirs}) == {2: 1, 3: 2, 4: 2}[total]


def test_the_fractal_order_is_that_of_the_paper() -> None:
    orders: dict[int, list[int]] = {0: [0]}
    for bits in range(1, 11):
        before = orders[bits - 1]
        orders[bits] = [node for each in before for node in (each, 2 * len(before) - 1 - each)]
    for bits, order in orders.items():
        assert [fractal_order(index, bits) for index in range(2**bits)] == order
        assert sorted(order) == list(range(2**bits))
    # 8 steps multiplied are the reciprocal of a Chebyshev polynomial's value, in whatever order.
    product = 1.0
    for value in Chebyshev(8).values(8):
        product *= 1.0 - value * 0.05  # the polynomial at the spectrum's lower end: 1 / T_8(21 / 19)
    assert product == pytest.approx(1.0 / cheb(8, 1.05 / 0.95), rel=1e-12)


def cheb(n: int, x: float) -> float:
    before, now = 1.0, x
    for _ in range(n - 1):
        before, now = now, 2 * x * now - before
    return now


def test_one_step_of_chebyshev_is_cheap() -> None:
    curve = schedules.get_curve("chebyshev", 0, 10**12)
    assert 1.0 < curve(10**12 - 7) < 20.0


# --- cosine_annealing_with_warmup -------------------------------------------------------------------------------------

CYCLES: list[dict[str, Any]] = [
    {"first_cycle_steps": 10},
    {"first_cycle_steps": 10, "gamma": 0.5},
    {"first_cycle_steps": 6, "cycle_mult": 2.0, "gamma": 0.8},
    {"first_cycle_steps": 20, "cycle_mult": 0.5},
    {"first_cycle_steps": 7, "cycle_mult": 1.3, "min_lr": 0.004},
    {"first_cycle_steps": 9, "gamma": 1.0},
]


@pytest.mark.parametrize("warmup", [0, 1, 4])
@pytest.mark.parametrize("kwargs", CYCLES)
def test_warmed_cycles_are_equal_at_every_step(kwargs: dict[str, Any], warmup: int) -> None:
    total = 60
    theirs = theirs_of(
        lambda o, lr: po.CosineAnnealingWarmupRestarts(o, max_lr=lr, warmup_steps=warmup, **kwargs), total + PAST
    )
    ours = ours_of("cosine_annealing_with_warmup", kwargs, warmup, total + PAST + 5)
    start = 0 if warmup else 1
    close(trace(ours, total + PAST)[start:], theirs[start:])
    if not warmup:  # on purpose: theirs has its lowest lr before the first step
        assert theirs[0] == [kwargs.get("min_lr", 1e-6)] * 2
        assert ours.lr_at(0) == pytest.approx(list(LRS))
    for step in (70, 3, 41, 12):
        assert ours.lr_at(step) == pytest.approx(theirs[step], rel=1e-12)
    ends = ours_of("cosine_annealing_with_warmup", kwargs, warmup, total)
    assert ends.lr_at(total) == ends.lr_at(total + PAST)


def test_warmed_cycles_end_low_where_a_cycle_ends() -> None:
    schedule = ours_of("cosine_annealing_with_warmup", {"first_cycle_steps": 10}, 0, 30)
    assert schedule.lr_at(30) == schedule.lr_at(99) == pytest.approx([1e-6, 1e-6])
    assert schedule.lr_at(20) == pytest.approx([0.05 * 0.81, 0.2 * 0.81])
    one = ours_of("cosine_annealing_with_warmup", {"max_lr": 0.4, "min_lr": 0.1}, 3, 30)
    assert [one.lr_at(step)[1] for step in (0, 3, 30)] == pytest.approx([0.1, 0.4, 0.1])


def test_a_peak_below_the_floor_is_the_floor() -> None:
    """On purpose: theirs turns upside down, and its lr falls below min_lr."""
    kwargs = {"first_cycle_steps": 5, "gamma": 0.1, "min_lr": 0.01}
    theirs = theirs_of(lambda o, lr: po.CosineAnnealingWarmupRestarts(o, max_lr=lr, warmup_steps=2, **kwargs), 20)
    ours = trace(ours_of("cosine_annealing_with_warmup", kwargs, 2, 40), 20)
    assert min(lr for lr, _ in theirs) < 0.01
    assert min(lr for lr, _ in ours) == pytest.approx(0.01)


# --- proportion -------------------------------------------------------------------------------------------------------


def test_proportion_equals_theirs_over_any_schedule() -> None:
    for name in ("cosine", "linear", "polynomial"):
        mine, other = (schedules.get_scheduler(name, make(*LRS), 3, 25) for _ in range(2))
        ours = schedules.ProportionScheduler(mine, 0.05, 1e-3, max_value=2.0, min_value=0.5)
        theirs = po.ProportionScheduler(other, 0.05, 1e-3, max_value=2.0, min_value=0.5)
        assert ours.get_lr() == theirs.get_lr()
        values = []
        for _ in range(25 + PAST):
            mine.optimizer.step()
            mine.step()
            other.optimizer.step()
            other.step()
            values.append(ours.step())
            assert values[-1] == ours.get_lr() == pytest.approx(theirs.step(), rel=1e-14)
        assert max(values) == pytest.approx(2.0)
        assert ours.step_t == theirs.step_t
        assert ours.last_lr == pytest.approx(theirs.last_lr, rel=1e-14)
        kwargs = {"schedule": name, "max_value": 2.0, "min_value": 0.5, "max_lr": 0.05, "min_lr": 1e-3}
        curve = schedules.get_curve("proportion", 3, 25, kwargs)
        assert [curve.bind(1.0)(step) for step in range(1, 26 + PAST)] == pytest.approx(values, rel=1e-12)


def test_proportion_drives_a_hyperparameter() -> None:
    optimizer = make(*LRS)
    for group in optimizer.param_groups:
        group["rho"] = 0.3
    schedule = schedules.get_scheduler("cosine", optimizer, 0, 20)
    kwargs = {"schedule": "cosine", "max_value": 0.2, "min_value": 0.1, "num_warmup_steps": 0, "num_training_steps": 20}
    schedules.schedule_hyperparameter(optimizer, "rho", ("proportion", kwargs), schedule)
    assert optimizer.param_groups[1]["rho"] == pytest.approx(0.2)
    for _ in range(30):
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[1]["rho"] == pytest.approx(0.1)


def test_proportion_refuses_what_it_cannot_divide_by() -> None:
    schedule = schedules.get_scheduler("cosine", make(0.1), 0, 20)
    with pytest.raises(ValueError, match=r"min_lr must be below 0\.1"):
        schedules.ProportionScheduler(schedule, 0.1, 0.1)
    with pytest.raises(TypeError, match="lr_scheduler must drive an optimizer"):
        schedules.ProportionScheduler(make(0.1), 0.1)  # type: ignore[arg-type]
    options = {"schedule": "cosine", "max_value": 2, "min_value": 1, "min_lr": 1.0}
    with pytest.raises(ValueError, match="min_lr must be below 1"):
        schedules.get_curve("proportion", 0, 20, options)


# --- warmup_stable_decay ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cosine", "1-sqrt", "linear", "1-square"])
def test_wsd_equals_theirs(kind: str) -> None:
    theirs = theirs_of(lambda o, lr: po.get_wsd_schedule(o, 4, 8, 10, cooldown_type=kind), 22 + PAST)
    ours = schedules.get_wsd_schedule(make(*LRS), 4, 10, num_stable_steps=8, decay_type=kind)
    close(trace(ours, 22 + PAST), theirs)


def test_wsd_with_a_floor_differs_on_purpose() -> None:
    """Theirs falls to 0 and jumps up to the floor at the end, and warms up from 0."""
    theirs = theirs_of(lambda o, lr: po.get_wsd_schedule(o, 4, 8, 10, 0.3, cooldown_type="linear"), 30)
    assert theirs[21][0] < 0.3 * 0.05 < theirs[22][0] + 1e-12
    ours = trace(
        schedules.get_wsd_schedule(make(*LRS), 4, 10, num_stable_steps=8, decay_type="linear", min_lr_ratio=0.3), 30
    )
    assert min(lr for lr, _ in ours) == pytest.approx(0.3 * 0.05)


# --- their linear, cosine, poly, constant -----------------------------------------------------------------------------


@pytest.mark.parametrize("warmup", [0, 5])
@pytest.mark.parametrize(
    ("theirs_name", "name", "option"),
    [("LinearScheduler", "polynomial", "lr_end"), ("CosineScheduler", "cosine_with_min_lr", "min_lr")],
)
def test_linear_and_cosine_are_one_step_behind(theirs_name: str, name: str, option: str, warmup: int) -> None:
    """On purpose: theirs has its lowest lr before the first step, then is a step late, and goes on after the end."""
    total = 30
    factory = getattr(po, theirs_name)
    theirs = theirs_of(lambda o, lr: factory(o, total, lr, min_lr=0.01, warmup_steps=warmup), total + PAST)
    ours = ours_of(name, {option: 0.01}, warmup, total)
    close(trace(ours, total + 1), theirs[1 : total + 2])
    assert theirs[0] == [0.01, 0.01]
    past = theirs[total + 10]
    assert past[0] < 0 if theirs_name == "LinearScheduler" else past[0] > 0.012
    assert ours.lr_at(total + 10) == pytest.approx([0.01, 0.01])


def test_their_poly_grows_without_end() -> None:
    """It multiplies by a power of the number of steps, not of a share of them; ours is timm's."""
    theirs = theirs_of(lambda o, lr: po.PolyScheduler(o, poly_order=0.5, t_max=30, max_lr=lr), 30 + PAST)
    assert theirs[30][0] > 5 * LRS[0]


def test_their_constant_is_torchs() -> None:
    theirs = theirs_of(lambda o, lr: po.load_lr_scheduler("constant")(o), 30)
    close(trace(ours_of("constant_factor", {}, 0, 30), 30), theirs)


def test_every_name_of_theirs_is_known_or_explained() -> None:
    text = (Path(__file__).parents[1] / "docs" / "schedules.md").read_text(encoding="utf-8")
    missing = {name for name in po.get_supported_lr_schedulers() if f"| `{name}`" not in text}
    assert not missing
