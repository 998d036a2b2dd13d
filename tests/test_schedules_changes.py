"""A schedule replaced or extended in mid-run: from which step, without a jump or with one, saved and resumed."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from lr_trace import make

import schedules
from schedules.changes import read, written
from schedules.drawing import EXAMPLES

LRS = (0.05, 0.2)
NAMES = [name for name in schedules.list_schedules() if schedules.get_schedule_info(name).curve]


def scheduler(name: str, *args: Any, **kwargs: Any) -> Any:
    return schedules.get_scheduler(name, *args, **kwargs)


def cosine_schedule(total: int = 100) -> Any:
    return scheduler("cosine", make(*LRS), 10, total)


def advance(schedule: Any, steps: int) -> list[list[float]]:
    """The learning rates that so many steps are taken with, from the current one on."""
    lrs = []
    for _ in range(steps):
        lrs.append([float(group["lr"]) for group in schedule.optimizer.param_groups])
        schedule.optimizer.step()
        schedule.step()
    return lrs


def saved_and_read(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_replaced_by_a_curve_that_has_counted_all_the_time() -> None:
    schedule, longer = cosine_schedule(), cosine_schedule(200)
    before = advance(schedule, 40)
    assert before == advance(cosine_schedule(), 40)
    schedule.replace(schedules.get_curve("cosine", 10, 200))
    assert schedule.get_last_lr() == longer.lr_at(40) != cosine_schedule().lr_at(40)
    assert advance(schedule, 180) == [longer.lr_at(step) for step in range(40, 220)]
    assert schedule.lr_at(30) == before[30]  # what was, was


def test_replaced_by_a_curve_that_counts_from_here() -> None:
    schedule = cosine_schedule()
    advance(schedule, 40)
    schedule.replace(schedules.get_curve("cosine_with_min_lr", 0, 50, {"min_lr": 0.02}), restart=True)
    other = scheduler("cosine_with_min_lr", make(*LRS), 0, 50, {"min_lr": 0.02})
    assert advance(schedule, 60) == [other.lr_at(step) for step in range(60)]


def test_extended_without_a_jump() -> None:
    schedule, planned = cosine_schedule(), cosine_schedule()
    advance(schedule, 40)
    schedule.extend(160)  # two steps for each
    assert schedule.get_last_lr() == planned.lr_at(40)
    assert advance(schedule, 120)[::2] == [planned.lr_at(step) for step in range(40, 100)]
    assert schedule.lr_at(160) == schedule.lr_at(500) == planned.lr_at(100)
    squeezed = cosine_schedule()
    advance(squeezed, 40)
    squeezed.extend(70)
    assert squeezed.lr_at(55) == planned.lr_at(70)
    assert squeezed.lr_at(70) == planned.lr_at(100)


def changed(schedule: Any, kind: str) -> None:
    if kind == "replace":
        schedule.replace(schedules.get_curve("polynomial", 5, 60, {"lr_end": 1e-3, "power": 2.0}), restart=True)
    elif kind == "extend":
        schedule.extend(130)
    elif kind == "all":
        for each in ("extend", "replace", "extend"):
            changed(schedule, each)
            advance(schedule, 3)
        schedule.anneal(30)


@pytest.mark.parametrize("cut", [0, 7])
@pytest.mark.parametrize("kind", ["replace", "extend", "all"])
@pytest.mark.parametrize("name", ["cosine", "warmup_stable_decay", "seesaw"])
def test_resumed_it_goes_on_bit_for_bit(name: str, kind: str, cut: int) -> None:
    def fresh() -> Any:
        return scheduler(name, make(*LRS), 10, 100, {"num_decay_steps": 30} if "decay" in name else {})

    whole = fresh()
    advance(whole, 25)
    changed(whole, kind)
    advance(whole, cut)
    state = saved_and_read(whole.state_dict())
    resumed = fresh()
    resumed.load_state_dict(state)
    assert [group["lr"] for group in resumed.optimizer.param_groups] == whole.get_last_lr()
    assert advance(resumed, 120) == advance(whole, 120)
    assert resumed.state_dict() == whole.state_dict()
    # A checkpoint from before the change goes on as it was planned.
    resumed.load_state_dict(saved_and_read(fresh().state_dict()))
    assert resumed.changes == []
    assert advance(resumed, 40) == advance(fresh(), 40)


def test_tensor_lrs_stay_the_tensors_they_are() -> None:
    lr = torch.tensor(0.1, dtype=torch.float64)
    schedule = scheduler("linear", make(lr), 0, 10)
    schedule.replace(schedules.constant(0.5), restart=True)
    assert schedule.optimizer.param_groups[0]["lr"] is lr
    assert float(lr) == 0.05


def test_the_lr_of_somebody_else_is_left_alone() -> None:
    schedule = cosine_schedule()
    advance(schedule, 20)
    schedule.optimizer.param_groups[0]["lr"] = 0.7
    schedule.replace(schedules.constant(0.5))
    assert schedule.optimizer.param_groups[0]["lr"] == 0.7
    schedule.optimizer.step()
    schedule.step()
    assert schedule.get_last_lr() == [0.025, 0.1]


def test_what_cannot_be_changes_nothing() -> None:
    schedule = cosine_schedule()
    advance(schedule, 40)
    state = schedule.state_dict()
    function = schedules.get_curve("multiplicative", 0, None, {"factor": lambda step: 0.9})
    wrong: list[tuple[Any, type[Exception], str]] = [
        (lambda: schedule.replace("cosine"), TypeError, "curve must be a schedules.curves.Curve, such as get_curve"),
        (lambda: schedule.replace(function), TypeError, "a curve that holds <function .* cannot be"),
        (lambda: schedule.replace(schedules.cosine(9).floor_lr(0.1)), ValueError, "param group 0: .*0.1 is above"),
        (lambda: schedule.replace(schedules.cosine(9), restart=1), TypeError, "restart must be True or False, got 1"),
        (lambda: schedule.extend(40), ValueError, "after the current step 40, got 40"),
        (lambda: schedule.extend(99.5), ValueError, "total must be a whole number"),
        (lambda: schedule.load_state_dict({**state, "changes": [{"kind": "shrink"}]}), ValueError, "none of anneal, r"),
        (
            lambda: schedule.load_state_dict(
                {**state, "changes": [{"kind": "replace", "start": 4, "restart": True, "following": {"class": "x.Y"}}]}
            ),
            ValueError,
            "class 'x.Y', which is not known: import its module",
        ),
    ]
    for call, error, message in wrong:
        with pytest.raises(error, match=message):
            call()
        assert schedule.state_dict() == state
    advance(schedule, 70)
    with pytest.raises(ValueError, match="ended at step 100, and at step 110 nothing"):
        schedule.extend(200)
    with pytest.raises(ValueError, match="no end that could be put off"):
        scheduler("constant", make(0.1)).extend(200)


@pytest.mark.parametrize("name", NAMES)
def test_the_curve_of_every_name_can_be_written_and_read(name: str) -> None:
    curve = schedules.get_curve(name, 100, 1000, EXAMPLES.get(name, {}))
    text = saved_and_read(written(curve))
    assert read(text) == curve
    assert hash(read(text)) == hash(curve)


@dataclass(frozen=True)
class Halving(schedules.Curve):
    every: int

    def value(self, step: float) -> float:
        return float(0.5 ** (step // self.every))


def test_curves_of_ones_own_are_found_again() -> None:
    schedule = cosine_schedule()
    schedule.replace(Halving(4).floor(0.1))
    other = cosine_schedule()
    other.load_state_dict(saved_and_read(schedule.state_dict()))
    assert other.lr_at(9) == schedule.lr_at(9) == pytest.approx([0.05 * 0.325, 0.2 * 0.325])


def test_a_member_of_a_sequence_changes_by_itself() -> None:
    optimizer = make(*LRS)
    members = [scheduler("linear", optimizer, 0, 20), scheduler("cosine", optimizer, 0, 20)]
    whole = torch.optim.lr_scheduler.SequentialLR(optimizer, members, milestones=[10])
    members[1].replace(schedules.constant(0.5))  # its turn is yet to come
    assert optimizer.param_groups[0]["lr"] == 0.05
    for _ in range(12):
        optimizer.step()
        whole.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.025, 0.1]


# -- groups that come later --------------------------------------------------------------------------------------------


def add(schedule: Any, **group: Any) -> None:
    schedule.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], **group})


@pytest.mark.parametrize("tensor", [False, True])
def test_groups_that_come_later_follow_the_curve_from_their_own_lr(tensor: bool) -> None:
    schedule, whole = cosine_schedule(), scheduler("cosine", make(*LRS, 0.3, 0.7), 10, 100)
    before = advance(schedule, 40)
    add(schedule, lr=torch.tensor(0.3, dtype=torch.float64) if tensor else 0.3)
    add(schedule, lr=5.0, initial_lr=0.7)  # a group that has been scheduled elsewhere
    with pytest.raises(ValueError, match=r"take_on\(\) lets new groups follow"):
        schedule.step()
    schedule.take_on()
    assert schedule.get_last_lr() == whole.lr_at(40)
    after = advance(schedule, 80)
    assert [lrs[:2] for lrs in before + after] == advance(cosine_schedule(), 120)
    assert after == [whole.lr_at(step) for step in range(40, 120)]
    assert isinstance(schedule.optimizer.param_groups[2]["lr"], torch.Tensor) == tensor
    state = schedule.state_dict()
    schedule.take_on()  # of no group
    assert schedule.state_dict() == state


def test_a_resumed_run_adds_the_groups_before_it_loads() -> None:
    schedule = cosine_schedule()
    advance(schedule, 40)
    add(schedule, lr=0.3)
    schedule.take_on()
    schedule.extend(150)
    advance(schedule, 5)
    state = saved_and_read(schedule.state_dict())
    resumed = cosine_schedule()
    with pytest.raises(ValueError, match="the state has 3 param groups"):
        resumed.load_state_dict(state)
    add(resumed, lr=1.0)
    resumed.take_on()
    resumed.load_state_dict(state)
    assert advance(resumed, 120) == advance(schedule, 120)


def test_a_group_that_cannot_be_taken_on_changes_nothing() -> None:
    schedule = scheduler("cosine_with_min_lr", make(*LRS), 10, 100, {"min_lr": 0.02})
    advance(schedule, 40)
    state = schedule.state_dict()
    add(schedule, lr=0.3)
    add(schedule, lr=0.01)
    with pytest.raises(ValueError, match=r"0\.02.*0\.01"):
        schedule.take_on()
    assert schedule.state_dict() == {**state, "lr_in_force": False}
    assert [group["lr"] for group in schedule.optimizer.param_groups[2:]] == [0.3, 0.01]
    del schedule.optimizer.param_groups[1:]
    with pytest.raises(ValueError, match="has 1 param groups, its schedule was made for 2"):
        schedule.take_on()
