"""Our schedules as members of torch's SequentialLR and ChainedScheduler, and beside other schedules.

Whatever a composite does with torch's LambdaLR over a function, it does with ours over the same function: the learning
rates, what `get_last_lr` says, and what comes after a checkpoint.
"""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_schedules_resume import KWARGS
from torch.optim import lr_scheduler as torch_lr
from torch.optim.swa_utils import SWALR

import schedules
from schedules.groups import MARK
from schedules.scheduler import STEP_UPDATES

# torch's SequentialLR makes a chain in it step before the optimizer, and warns of itself.
pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")

NAMES = [name for name in schedules.list_schedules() if schedules.get_schedule_info(name).curve]
W, T = 5, 14
STEPS = 20
LRS = (0.05, 0.2)
Make = Callable[[Any], Any]


def optimizer_of(tensors: bool = False) -> torch.optim.Optimizer:
    lrs = [torch.tensor(lr, dtype=torch.float64) if tensors else lr for lr in LRS]
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in lrs]
    return torch.optim.SGD(groups, lr=1.0, momentum=0.9)


def ours(name: str) -> Make:
    return lambda optimizer: schedules.get_scheduler(name, optimizer, W, T, KWARGS.get(name))


def theirs(name: str) -> Make:
    curve = schedules.get_curve(name, W, T, KWARGS.get(name))
    return lambda optimizer: torch_lr.LambdaLR(optimizer, [curve.bind(lr).__call__ for lr in LRS])


def sequential(*members: Make, at: list[int]) -> Make:
    return lambda optimizer: torch_lr.SequentialLR(optimizer, [member(optimizer) for member in members], at)


def chained(*members: Make) -> Make:
    return lambda optimizer: torch_lr.ChainedScheduler([member(optimizer) for member in members], optimizer)


def falling(optimizer: Any) -> Any:
    return torch_lr.ExponentialLR(optimizer, 0.9)


def rising(optimizer: Any) -> Any:
    return torch_lr.LinearLR(optimizer, 0.1, 1.0, 4)


def level(optimizer: Any) -> Any:
    return torch_lr.ConstantLR(optimizer, 0.5, 3)


def annealing(optimizer: Any) -> Any:
    return torch_lr.CosineAnnealingLR(optimizer, 9)


def restarts(optimizer: Any) -> Any:
    return torch_lr.CosineAnnealingWarmRestarts(optimizer, 3, 2)


def cyclic(optimizer: Any) -> Any:
    return torch_lr.CyclicLR(optimizer, 0.01, 0.1, 3, cycle_momentum=False)


def averaging(optimizer: Any) -> Any:
    return SWALR(optimizer, swa_lr=0.02, anneal_epochs=6)


COMPOSITES: dict[str, Callable[[Make], Make]] = {
    "first": lambda member: sequential(member, annealing, at=[7]),
    "second": lambda member: sequential(rising, member, at=[4]),
    "in the middle": lambda member: sequential(level, member, falling, at=[3, 11]),
    "before ours": lambda member: sequential(member, ours("rex"), at=[6]),
    "after ours": lambda member: sequential(ours("linear"), member, at=[6]),
    "before restarts": lambda member: sequential(member, restarts, at=[5]),
    "before cycles": lambda member: sequential(member, cyclic, at=[5]),
    "chained first": lambda member: chained(member, falling),
    "chained last": lambda member: chained(falling, member),
    "chained with an average": lambda member: chained(member, averaging),
    "a chain in a sequence": lambda member: sequential(chained(member, level), falling, at=[6]),
    "a sequence in a chain": lambda member: chained(sequential(rising, member, at=[4]), level),
    "a sequence in a sequence": lambda member: sequential(sequential(member, falling, at=[4]), ours("cosine"), at=[9]),
}

# All names in these, and some names in all of them.
USUAL = ("first", "in the middle", "after ours", "chained last")
THOROUGH = ("cosine_with_cycles", "cosine_with_min_lr", "linear", "rex")


def composites(name: str) -> list[tuple[str, Callable[[Make], Make]]]:
    return [(what, COMPOSITES[what]) for what in (COMPOSITES if name in THOROUGH else USUAL)]


def advance(schedule: Any, steps: int) -> list[Any]:
    """What the groups and the schedule say after each of some steps."""
    seen = []
    for _ in range(steps):
        schedule.optimizer.step()
        schedule.step()
        seen.append((lrs_of(schedule), [float(lr) for lr in schedule.get_last_lr()]))
    return seen


def lrs_of(schedule: Any) -> list[float]:
    return [float(group["lr"]) for group in schedule.optimizer.param_groups]


def through_torch(*states: Any) -> Any:
    file = io.BytesIO()
    torch.save(states, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def without_marks(state: Any) -> Any:
    """A state as the versions before wrote it, which did not say whose the learning rate was."""
    if isinstance(state, dict):
        return {key: without_marks(value) for key, value in state.items() if key != MARK}
    return [without_marks(each) for each in state] if isinstance(state, list) else state


@pytest.mark.parametrize(
    ("name", "tensors"), [*((name, False) for name in NAMES), *((name, True) for name in THOROUGH)]
)
def test_a_member_is_what_torchs_own_would_be(name: str, tensors: bool) -> None:
    if tensors and not STEP_UPDATES:
        pytest.skip("SequentialLR of torch before 2.10 fills the tensors that its own members multiply")
    for what, composite in composites(name):
        mine, other = composite(ours(name))(optimizer_of(tensors)), composite(theirs(name))(optimizer_of(tensors))
        assert lrs_of(mine) == lrs_of(other), what
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # torch before 2.10 warns of its own step at a milestone.
            warnings.filterwarnings("ignore", "The epoch parameter")
            assert advance(mine, STEPS) == advance(other, STEPS), what
        if tensors:
            assert all(isinstance(group["lr"], torch.Tensor) for group in mine.optimizer.param_groups)
        assert [float(group["initial_lr"]) for group in mine.optimizer.param_groups] == list(LRS)


@pytest.mark.parametrize("name", NAMES)
def test_a_composite_is_resumed(name: str) -> None:
    for what, composite in composites(name):
        make = composite(ours(name))
        whole = advance(make(optimizer_of()), STEPS)
        for cut in (0, 2, 5, 8, 12) if name in THOROUGH else (2, 8):
            first = make(optimizer_of())
            advance(first, cut)
            before = lrs_of(first)
            state, optimizer_state = through_torch(first.state_dict(), first.optimizer.state_dict())

            first.load_state_dict(copy.deepcopy(state))  # torch's CyclicLR takes something out of what it loads
            assert lrs_of(first) == before, (what, cut)

            second = make(optimizer_of())
            second.optimizer.load_state_dict(optimizer_state)
            second.load_state_dict(copy.deepcopy(state))
            assert lrs_of(second) == before, (what, cut)
            assert advance(second, STEPS - cut) == whole[cut:], (what, cut)

            third = make(optimizer_of())
            third.load_state_dict(without_marks(state))
            third.optimizer.load_state_dict(optimizer_state)
            assert advance(third, STEPS - cut) == whole[cut:], (what, cut)


@pytest.mark.parametrize("name", THOROUGH)
def test_a_composite_is_resumed_from_a_state_that_does_not_say_whose_the_lr_was(name: str) -> None:
    for what, composite in COMPOSITES.items():
        make = composite(ours(name))
        whole = advance(make(optimizer_of()), STEPS)
        for cut in (2, 8, 12):
            first = make(optimizer_of())
            advance(first, cut)
            second = make(optimizer_of())
            second.optimizer.load_state_dict(first.optimizer.state_dict())
            second.load_state_dict(without_marks(first.state_dict()))
            assert lrs_of(second) == lrs_of(first), (what, cut)
            assert advance(second, STEPS - cut) == whole[cut:], (what, cut)


def test_a_waiting_member_leaves_the_lr_alone() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    members = [schedules.get_linear_schedule_with_warmup(optimizer, 0, 10), schedules.get_constant_schedule(optimizer)]
    schedule = torch_lr.SequentialLR(optimizer, members, [5])
    advance(schedule, 2)
    assert lrs_of(schedule) == [0.8]
    waiting = members[1].state_dict()
    assert waiting["last_epoch"] == -1
    for state in (waiting, without_marks(waiting), {k: v for k, v in waiting.items() if k != "_last_lr"}):
        members[1].load_state_dict(state)
        assert (lrs_of(schedule), members[1].last_epoch) == ([0.8], -1)
    schedule.load_state_dict(schedule.state_dict())
    assert lrs_of(schedule) == [0.8]
    assert [lrs for lrs, _ in advance(schedule, 4)] == [[0.7], [0.6], [1.0], [1.0]]


def test_a_member_whose_turn_is_over_leaves_the_lr_alone_even_where_it_began_with_the_same() -> None:
    # Restarts take the lr back to 1.0, which is also what the member began with.
    make = sequential(lambda optimizer: schedules.get_linear_schedule_with_warmup(optimizer, 0, 10), restarts, at=[4])
    first = make(optimizer_of())
    advance(first, 7)
    assert lrs_of(first) == list(LRS)
    second = make(optimizer_of())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.load_state_dict(first.state_dict())
    assert lrs_of(second) == list(LRS)
    assert advance(second, 9) == advance(first, 9)


def test_other_hyperparameters_follow_at_a_milestone() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, weight_decay=0.4)
    members = []
    for curve in (schedules.linear(10), schedules.linear(20)):
        member = schedules.get_constant_schedule(optimizer)
        members.append(schedules.schedule_hyperparameter(optimizer, "weight_decay", curve, member))
    schedule = torch_lr.SequentialLR(optimizer, members, [5])
    decays = []
    for _ in range(7):
        decays.append(optimizer.param_groups[0]["weight_decay"])
        advance(schedule, 1)
    assert decays == pytest.approx([0.4, 0.36, 0.32, 0.28, 0.24, 0.4, 0.38])

    # One that waits takes nothing back when it is loaded, also from the state of a schedule of the lr alone.
    waiting = schedules.get_constant_schedule(optimizer)
    schedules.schedule_hyperparameter(optimizer, "weight_decay", schedules.linear(20), waiting)
    torch_lr.SequentialLR(optimizer, [falling(optimizer), waiting], [5])
    assert waiting.last_epoch == -1
    optimizer.param_groups[0]["weight_decay"] = 0.3
    for state in (waiting.state_dict(), {k: v for k, v in waiting.state_dict().items() if k != "hyperparameters"}):
        waiting.load_state_dict(state)
        assert optimizer.param_groups[0]["weight_decay"] == 0.3


def test_hyperparameters_alone_are_a_member_too() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, weight_decay=0.4)
    decay = schedules.schedule_hyperparameter(optimizer, "weight_decay", schedules.linear(10))
    schedule = torch_lr.ChainedScheduler([falling(optimizer), decay], optimizer)
    advance(schedule, 3)
    assert (lrs_of(schedule), optimizer.param_groups[0]["weight_decay"]) == (
        pytest.approx([0.729]),
        pytest.approx(0.28),
    )
    state, optimizer_state = through_torch(schedule.state_dict(), optimizer.state_dict())
    whole = advance(schedule, 3)
    optimizer.load_state_dict(optimizer_state)
    schedule.load_state_dict(state)
    assert optimizer.param_groups[0]["weight_decay"] == pytest.approx(0.28)
    assert advance(schedule, 3) == whole


# -- schedules that follow a metric -----------------------------------------------------------------------------------

METRICS = [1.0, 0.9, 0.9, 0.9, 0.9, 0.8, 0.8, 0.8, 0.8, 0.8, 0.7, 0.7, 0.7, 0.7]
FOLLOWING = ["reduce_lr_on_plateau", "plateau", "greedy"]


@pytest.mark.parametrize("name", FOLLOWING)
def test_composites_refuse_what_follows_a_metric_as_they_refuse_torchs(name: str) -> None:
    optimizer = optimizer_of()
    members = [ours(name)(optimizer), falling(optimizer)]
    with pytest.raises(ValueError, match="does not support `ReduceLROnPlateau`"):
        torch_lr.SequentialLR(optimizer, members, [5])
    with pytest.raises(ValueError, match="does not support `ReduceLROnPlateau`"):
        torch_lr.ChainedScheduler(members, optimizer)


@pytest.mark.parametrize("optimizer_first", [True, False])
@pytest.mark.parametrize("plateau_last", [True, False])
@pytest.mark.parametrize("name", FOLLOWING)
def test_beside_another_schedule(name: str, plateau_last: bool, optimizer_first: bool) -> None:
    def fresh() -> tuple[Any, Any]:
        optimizer = optimizer_of()
        return ours(name)(optimizer), falling(optimizer)

    def run(pair: tuple[Any, Any], metrics: list[float]) -> list[Any]:
        lrs = []
        for metric in metrics:
            pair[0].optimizer.step()
            if not plateau_last:
                pair[0].step(metric)
            pair[1].step()
            if plateau_last:
                pair[0].step(metric)
            lrs.append(lrs_of(pair[0]))
        return lrs

    whole = run(fresh(), METRICS)
    for cut in (1, 6, 9):
        first = fresh()
        run(first, METRICS[:cut])
        *states, optimizer_state = through_torch(
            *(each.state_dict() for each in first), first[0].optimizer.state_dict()
        )
        second = fresh()
        if optimizer_first:
            second[0].optimizer.load_state_dict(optimizer_state)
        for schedule, state in zip(second, states, strict=True):
            schedule.load_state_dict(state)
        if not optimizer_first:
            second[0].optimizer.load_state_dict(optimizer_state)
        assert lrs_of(second[0]) == lrs_of(first[0])
        assert run(second, METRICS[cut:]) == whole[cut:]


def test_a_plateau_that_reduced_after_another_schedule_is_loaded_alone() -> None:
    # Nothing but the two states of the schedules: the last to have set the lr puts it back.
    def fresh() -> tuple[Any, Any]:
        optimizer = optimizer_of()
        return schedules.get_constant_schedule(optimizer), ours("reduce_lr_on_plateau")(optimizer)

    first = fresh()
    for metric in METRICS[:4]:
        first[0].optimizer.step()
        first[0].step()
        first[1].step(metric)
    assert lrs_of(first[0]) == pytest.approx([0.035, 0.14])
    second = fresh()
    for schedule, state in zip(second, copy.deepcopy([each.state_dict() for each in first]), strict=True):
        schedule.load_state_dict(state)
    assert lrs_of(second[0]) == lrs_of(first[0])


def test_a_plateau_takes_a_group_that_came_later_and_is_resumed_before_the_next_reduction() -> None:
    def fresh() -> Any:
        optimizer = optimizer_of()
        return schedules.get_reduce_on_plateau_schedule(optimizer, patience=1, factor=0.5)

    schedule = fresh()
    schedule.step(1.0)
    schedule.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.8})
    schedule.step(1.0)
    state = copy.deepcopy(schedule.state_dict())
    schedule.step(1.0)
    assert lrs_of(schedule) == [0.025, 0.1, 0.4]

    second = fresh()
    second.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.8})
    second.load_state_dict(state)
    second.step(1.0)
    assert lrs_of(second) == [0.025, 0.1, 0.4]
