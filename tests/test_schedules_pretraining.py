"""Noam, power, infinite, the decays of warmup_stable_decay, and annealing on demand."""

from __future__ import annotations

import io
import itertools
import math
from typing import Any

import pytest
import torch
from lr_trace import make, trace

import schedules
from schedules.shapes import DECAYS, annealed, falling

LRS = (0.05, 0.2)


# --- noam -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d_model", [512, 1024])
@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_noam_is_the_papers(d_model: int, factor: float) -> None:
    curve = schedules.get_noam_schedule(make(*LRS), 400, d_model=d_model, factor=factor)
    for step in (0, 1, 17, 398, 399, 400, 1000, 99999):
        number = step + 1
        lr = factor * d_model**-0.5 * min(number**-0.5, number * 400**-1.5)
        assert curve.lr_at(step) == pytest.approx([lr, lr], rel=1e-12)


def test_noam_without_a_width_has_its_peak_at_each_groups_lr() -> None:
    schedule = schedules.get_noam_schedule(make(*LRS), 100, 1000)
    assert schedule.lr_at(99) == list(LRS)
    assert schedule.lr_at(399) == pytest.approx([0.025, 0.1])
    assert schedule.lr_at(1000) == schedule.lr_at(5000)
    with pytest.raises(ValueError, match="num_warmup_steps must be at least 1"):
        schedules.get_noam_schedule(make(0.1), 0)
    with pytest.raises(ValueError, match="d_model must be at least 1"):
        schedules.get_noam_schedule(make(0.1), 10, d_model=0)


# --- power ------------------------------------------------------------------------------------------------------------


def test_power_is_the_papers() -> None:
    batch, length, warmup, total, decay = 8, 512, 50, 1000, 100
    options = {"batch_size": batch, "sequence_length": length, "max_lr": 0.02}

    def law(step: int) -> float:
        return min(0.02, batch * 4 * (step * batch * length) ** -0.51)

    schedule = schedules.get_power_schedule(make(*LRS), warmup, total, num_decay_steps=decay, **options)
    for step in (1, 25, 50, 51, 700, 900):
        expected = law(step) if step >= warmup else step / warmup * law(warmup)
        assert schedule.lr_at(step) == pytest.approx([expected] * 2, rel=1e-12)
    assert law(50) == 0.02 > law(900)  # both sides of the maximum are seen
    assert schedule.lr_at(total) == schedule.lr_at(total + 20) == pytest.approx([0, 0], abs=1e-17)
    assert law(900) > schedule.lr_at(950)[0] > 0
    own = schedules.get_power_schedule(make(*LRS), warmup, batch_size=batch, sequence_length=length)
    assert own.lr_at(warmup) == pytest.approx([0.05, min(0.2, batch * 4 * (warmup * batch * length) ** -0.51)])
    # Without a total, or with another one, the same lr at the same step: that is its point.
    assert own.lr_at(900) == pytest.approx([law(900)] * 2)


def test_power_refuses_a_decay_without_an_end() -> None:
    options: dict[str, Any] = {"batch_size": 4, "sequence_length": 8}
    with pytest.raises(ValueError, match="num_training_steps, which is not given"):
        schedules.get_power_schedule(make(0.1), 5, num_decay_steps=10, **options)
    with pytest.raises(ValueError, match="b must be below 0"):
        schedules.get_power_schedule(make(0.1), 5, b=0.5, **options)
    with pytest.raises(ValueError, match="power requires 'batch_size'"):
        schedules.get_scheduler("power", make(0.1), 5, 10)
    short = schedules.get_power_schedule(make(0.1), 5, 8, num_decay_steps=20, **options)
    assert short.lr_at(8)[0] == pytest.approx(0, abs=1e-17)


# --- infinite ---------------------------------------------------------------------------------------------------------


def test_infinite_is_the_papers() -> None:
    warmup, cooldown, constant, least, start, anneal = 20, 60, 0.6, 0.1, 200, 50
    curve = schedules.get_curve(
        "infinite",
        warmup,
        None,
        {
            "num_cooldown_steps": cooldown,
            "constant_lr_rate": constant,
            "min_lr_rate": least,
            "anneal_start": start,
            "num_anneal_steps": anneal,
        },
    )
    for step in range(300):
        if step < warmup:
            expected = step / warmup
        elif step < warmup + cooldown:
            expected = constant + (1 - constant) * (1 + math.cos(math.pi * (step - warmup) / cooldown)) / 2
        elif step < start:
            expected = constant
        else:
            expected = constant * (least / constant) ** min(1.0, (step - start) / anneal)
        assert curve(step) == pytest.approx(expected, rel=1e-12), step


def test_infinite_stays_until_it_is_told_to_anneal() -> None:
    schedule = schedules.get_infinite_schedule(make(*LRS), 10, num_cooldown_steps=30, constant_lr_rate=0.5)
    assert schedule.lr_at(40) == schedule.lr_at(10**6) == pytest.approx([0.025, 0.1])
    planned = schedules.get_infinite_schedule(make(*LRS), 10, 100, num_cooldown_steps=0.3, num_anneal_steps=0.2)
    assert planned.lr_at(80) == pytest.approx([0.55 * lr for lr in LRS])
    assert planned.lr_at(100) == planned.lr_at(120) == pytest.approx([0.1 * lr for lr in LRS])


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({}, "infinite requires 'num_cooldown_steps'"),
        ({"num_cooldown_steps": 5, "anneal_start": 9}, "anneal_start=9 needs num_anneal_steps"),
        ({"num_cooldown_steps": 5, "num_anneal_steps": 3}, "needs anneal_start, or num_training_steps"),
        ({"num_cooldown_steps": 5, "num_anneal_steps": 3, "anneal_start": 2}, "cut off the warm-up of 4 steps"),
        ({"num_cooldown_steps": 5, "constant_lr_rate": 0.05}, "constant_lr_rate must be at least 0.1"),
        ({"num_cooldown_steps": 0.5}, "num_cooldown_steps=0.5 is a share of num_training_steps, which is not given"),
        ({"num_cooldown_steps": 5, "cooldown_type": "exp"}, "cooldown_type must be one of 'linear', 'cosine'"),
    ],
)
def test_wrong_infinite_schedules_are_named(kwargs: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        schedules.get_scheduler("infinite", make(0.1), 4, None, kwargs)


# --- decays -----------------------------------------------------------------------------------------------------------

FORMULAS = {
    "linear": lambda x: 1 - x,
    "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
    "1-sqrt": lambda x: 1 - math.sqrt(x),
    "1-square": lambda x: 1 - x * x,
    "exponential": lambda x: (0.1**x - 0.1) / 0.9,
}


@pytest.mark.parametrize("kind", DECAYS)
def test_every_decay_has_its_formula_and_ends_at_its_floor(kind: str) -> None:
    curve = falling(kind, 40)
    for step in range(41):
        assert curve(step) == pytest.approx(FORMULAS[kind](step / 40), rel=1e-12, abs=1e-15)
    for end in (0.0, 0.2, 1.0):
        floored = falling(kind, 40, end)
        values = floored.values(60)
        assert values[0] == pytest.approx(1.0)
        assert values[40:] == pytest.approx([end] * 20, abs=1e-15)
        assert all(late <= early + 1e-15 for early, late in itertools.pairwise(values))
    # An exponential with a floor is a power of it, so that its logarithm is a line.
    assert falling("exponential", 40, 0.2)(10) == pytest.approx(0.2**0.25, rel=1e-12)


@pytest.mark.parametrize("kind", DECAYS)
@pytest.mark.parametrize("ratio", [0.0, 0.3])
def test_wsd_by_shares(kind: str, ratio: float) -> None:
    options: dict[str, Any] = {"decay_type": kind, "min_lr_ratio": ratio}
    shares = schedules.get_scheduler("wsd", make(*LRS), 0.1, 200, {"num_decay_steps": 0.25, **options})
    counts = schedules.get_scheduler("wsd", make(*LRS), 20, 200, {"num_decay_steps": 50, **options})
    lrs = trace(shares, 220)
    assert lrs == trace(counts, 220)
    assert lrs == trace(schedules.get_wsd_schedule(make(*LRS), 0.1, 0.25, 200, **options), 220)
    assert {tuple(each) for each in lrs[20:151]} == {LRS}
    assert lrs[175][0] / LRS[0] == pytest.approx(falling(kind, 50, ratio)(25))
    assert lrs[200] == lrs[219] == pytest.approx([ratio * lr for lr in LRS], abs=1e-17)


def test_a_share_is_rounded_up_and_needs_a_total() -> None:
    curve = schedules.get_wsd_schedule(make(1.0), 0.001, 0.5, 10).curve
    assert (curve(0), curve(1)) == (0.0, 1.0)
    with pytest.raises(ValueError, match=r"num_decay_steps=0\.5 is a share of num_training_steps, which is not given"):
        schedules.get_wsd_schedule(make(0.1), 2, 0.5, num_stable_steps=4)
    with pytest.raises(ValueError, match=r"num_warmup_steps must be a whole number, got 1\.5"):
        schedules.get_cosine_schedule_with_warmup(make(0.1), 1.5, 10)
    half = schedules.get_cosine_schedule_with_warmup(make(1.0), 0.25, 10)
    assert half.lr_at(3) == [1.0] != half.lr_at(2)


# --- annealing on demand ----------------------------------------------------------------------------------------------


def advance(schedule: Any, steps: int) -> list[list[float]]:
    lrs = []
    for _ in range(steps):
        schedule.optimizer.step()
        schedule.step()
        lrs.append([float(group["lr"]) for group in schedule.optimizer.param_groups])
    return lrs


def running(name: str = "infinite") -> Any:
    kwargs = {"infinite": {"num_cooldown_steps": 10}, "polynomial": {"lr_end": 1e-3}}
    return schedules.get_scheduler(name, make(*LRS), 5, None if name == "infinite" else 60, kwargs.get(name))


@pytest.mark.parametrize("name", ["infinite", "cosine", "polynomial", "inverse_sqrt"])
@pytest.mark.parametrize("shape", DECAYS)
def test_anneal_leaves_from_where_it_is(name: str, shape: str) -> None:
    schedule, plain = running(name), running(name)
    assert advance(schedule, 30) == advance(plain, 30)
    before = [float(group["lr"]) for group in schedule.optimizer.param_groups]
    schedule.anneal(20, shape, to=0.25)
    assert schedule.get_last_lr() == before
    lrs = advance(schedule, 40)
    share = falling(shape, 20, 0.25)
    for step, each in enumerate(lrs, start=1):
        assert each == pytest.approx([lr * share(step) for lr in before], rel=1e-12)
    assert lrs[19] == lrs[-1] == pytest.approx([0.25 * lr for lr in before])
    # The steps before are still those of the curve.
    assert schedule.lr_at(29) == plain.lr_at(29)


@pytest.mark.parametrize("cut", [1, 12, 20, 30])
def test_a_resumed_annealing_goes_on(cut: int) -> None:
    whole = running()
    advance(whole, 25)
    whole.anneal(20)
    expected = advance(whole, 40)

    first = running()
    advance(first, 25)
    first.anneal(20)
    assert advance(first, cut) == expected[:cut]
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = running()
    second.load_state_dict(torch.load(file, weights_only=True))
    assert second.get_last_lr() == first.get_last_lr()
    assert advance(second, 40 - cut) == expected[cut:]


def test_annealing_again_and_going_back() -> None:
    schedule, plain = running(), running()
    advance(schedule, 20)
    state = schedule.state_dict()
    assert "changes" not in state  # the layout of LambdaLR, as long as nothing was annealed
    schedule.anneal(10, "linear")
    advance(schedule, 5)
    middle = schedule.get_last_lr()
    schedule.anneal(10, "linear", to=0.5)
    assert advance(schedule, 10)[-1] == pytest.approx([0.5 * lr for lr in middle])
    schedule.load_state_dict(state)  # the checkpoint from before: the constant again
    assert schedule.lr_at(300) == plain.lr_at(300)
    assert schedule.changes == []


def test_a_wrong_annealing_changes_nothing() -> None:
    schedule = running()
    advance(schedule, 20)
    for wrong, error, match in (
        ({"num_steps": 0}, ValueError, "num_steps must be at least 1"),
        ({"num_steps": 1.5}, ValueError, "num_steps must be a whole number"),
        ({"num_steps": 5, "shape": "exp"}, ValueError, "shape must be one of 'linear', 'cosine'"),
        ({"num_steps": 5, "to": 1.5}, ValueError, "to must be at most 1"),
        ({"num_steps": "five"}, TypeError, "num_steps must be an int"),
    ):
        with pytest.raises(error, match=match):
            schedule.anneal(**wrong)
    assert schedule.lr_at(100) == running().lr_at(100)
    with pytest.raises(TypeError, match="unexpected keyword argument 'steps'"):
        schedule.load_state_dict({**schedule.state_dict(), "changes": [{"kind": "anneal", "steps": 3}]})
    assert schedule.changes == []


def test_a_curve_may_be_annealed_too() -> None:
    curve = schedules.get_curve("cosine", 0, 100)
    fallen = annealed(curve, 50, 10, "linear")
    assert fallen.values([49, 50, 55, 60, 99]) == pytest.approx([curve(49), 0.5, 0.25, 0, 0])
    assert fallen.length == 60


def test_annealed_again_and_again_it_stays_small() -> None:
    schedule = running()
    sizes = []
    for _ in range(12):
        schedule.step()
        schedule.anneal(50, "linear", 0.5)
        sizes.append(len(repr(schedule.lr_lambdas[0])))
    assert sizes[-1] < 12 * sizes[0]  # not twice as large each time
    fresh = running()
    fresh.load_state_dict(schedule.state_dict())
    assert fresh.lr_at(300) == schedule.lr_at(300)
    assert fresh.lr_at(300)[0] == pytest.approx(schedule.get_last_lr()[0] / 2)


def test_an_annealing_longer_than_the_run_still_ends_at_its_end() -> None:
    curve = schedules.get_curve("infinite", 0, 10, {"num_cooldown_steps": 2, "num_anneal_steps": 20})
    assert curve(10) == pytest.approx(0.1, rel=1e-12)
    assert curve(0) == 1.0
