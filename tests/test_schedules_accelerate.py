"""Under Accelerate and the Trainer each step of the optimizer has the numbers it has in one plain process."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate import scheduler as accelerates
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.scheduler import AcceleratedScheduler
from accelerate.state import AcceleratorState, GradientState
from lr_trace import make, trace
from ranks import run_ranks
from schedules_accelerate_worker import CUT, MAKERS, STEPS, TOTAL, main, plain

import schedules

WORKER = Path(__file__).with_name("schedules_accelerate_worker.py")


def launch(world: int, folder: Path) -> list[dict[str, Any]]:
    """Runs the worker on so many processes, one being this, and returns what each of them found."""
    if world == 1:
        main(folder)
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
    else:
        run_ranks(WORKER, str(folder), ranks=world, output=folder, timeout=240)
    return [json.loads(path.read_text()) for path in sorted(folder.glob("rank-*.json"))]


@pytest.mark.parametrize("world", [1, 2])
def test_the_numbers_of_each_optimizer_step_do_not_depend_on_processes_and_accumulation(
    world: int, tmp_path: Path
) -> None:
    expected = {name: plain(name) for name in MAKERS}
    results = launch(world, tmp_path)
    assert [result["world"] for result in results] == [world] * world
    for result in results:
        for accumulation in (1, 4):
            traces = {
                key.replace(f", accumulation {accumulation}", ""): each
                for key, each in result["traces"].items()
                if f"accumulation {accumulation}" in key
            }
            for name, whole in expected.items():
                assert traces.pop(name) == whole, (name, accumulation)
                assert traces.pop(f"{name}, resumed") == whole, (name, accumulation)
            assert traces.pop("cosine, stepped by hand") == expected["cosine"]
            assert traces.pop("cosine, split batches") == expected["cosine"]
            # The Trainer has one lr, and puts the matrix first: the first group is the same.
            lrs = [step["lr"][0] for step in expected["cosine"][:TOTAL]]
            trained, resumed = traces.pop("trainer"), traces.pop("trainer, resumed")
            assert [step["lr"] for step in trained] == [[lr, lr] for lr in lrs]
            for step, wanted in zip(trained, expected["cosine"], strict=False):
                assert step["decay"] == wanted["decay"]
                assert step["betas"] == wanted["betas"]
            assert resumed == trained[CUT:]
            assert not traces
    # The plain numbers do move, all of them, and each schedule in its own way.
    assert len({tuple(step["lr"]) for step in expected["cosine"]}) == TOTAL - 1
    assert len({tuple(step["decay"]) for step in expected["cosine"]}) == TOTAL + 1
    assert len({tuple(step["betas"]) for step in expected["cosine"]}) == TOTAL + 1
    assert all(len({tuple(step["lr"]) for step in whole}) > 2 for whole in expected.values())
    assert len(expected["cosine"]) == STEPS


# -- Accelerate's classes alone, with as many processes as we say -----------------------------------------------------


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes accelerate's scheduler believe in a number of processes; gradients are synchronised at every step."""
    monkeypatch.setattr(accelerates, "AcceleratorState", lambda: SimpleNamespace(num_processes=3))
    Accelerator(cpu=True)
    yield lambda number: monkeypatch.setattr(
        accelerates, "AcceleratorState", lambda: SimpleNamespace(num_processes=number)
    )
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def step(optimizer: Any, value: float = 1.0) -> None:
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = torch.full_like(param, value)
    optimizer.step()


def lr(optimizer: Any) -> float:
    return float(optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize("number", [1, 2, 7])
@pytest.mark.parametrize("split", [False, True])
def test_one_advance_per_step_whatever_the_number_of_processes(processes: Any, number: int, split: bool) -> None:
    processes(number)
    expected = trace(schedules.get_scheduler("cosine", make(0.5), 2, 10), 12)
    optimizer = make(0.5)
    wrapped = AcceleratedScheduler(
        schedules.get_scheduler("cosine", optimizer, 2, 10), AcceleratedOptimizer(optimizer), split_batches=split
    )
    seen = [[lr(optimizer)]]
    for _ in range(11):
        step(optimizer)
        wrapped.step()
        seen.append([lr(optimizer)])
    assert seen == expected


def test_a_second_call_for_the_same_step_changes_nothing(processes: Any) -> None:
    optimizer = make(0.5)
    schedule = schedules.get_scheduler("linear", optimizer, 0, 10)
    wrapped = AcceleratedScheduler(schedule, AcceleratedOptimizer(optimizer))
    for done in range(1, 4):
        step(optimizer)
        wrapped.step()
        wrapped.step()
        assert schedule.last_epoch == done


def test_torchs_own_schedule_is_stepped_once_per_process(processes: Any) -> None:
    """What is repaired here is still so in accelerate; if not, StepsWithOptimizer can go."""
    optimizer = make(0.5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    wrapped = AcceleratedScheduler(schedule, AcceleratedOptimizer(optimizer))
    step(optimizer)
    wrapped.step()
    assert schedule.last_epoch == 3


def test_several_schedules_on_one_optimizer_and_one_on_each_of_two(processes: Any) -> None:
    one, other = (torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))]) for _ in range(2))
    first, second = (schedules.get_scheduler("linear", each, 0, 10) for each in (one, other))
    third = schedules.schedule_hyperparameter(one, "beta1", schedules.constant(0.5))
    wrapped = [AcceleratedScheduler(each, AcceleratedOptimizer(each.optimizer)) for each in (first, second, third)]
    for _ in range(4):
        step(one)
        step(one)  # twice for one call of the schedules
        for each in wrapped:
            each.step()
    assert (first.last_epoch, third.last_epoch) == (4, 4)
    # Its optimizer took no step after the first call.
    assert second.last_epoch == 1


def test_a_step_skipped_by_the_gradient_scaler_does_not_count(processes: Any) -> None:
    optimizer = make(0.5)
    schedule = schedules.get_scheduler("linear", optimizer, 0, 10)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    prepared = AcceleratedOptimizer(optimizer, scaler=scaler)
    wrapped = AcceleratedScheduler(schedule, prepared)
    epochs = []
    for gradient in (1.0, float("inf"), float("inf"), 1.0, 1.0, float("inf"), 1.0):
        scaler.scale(torch.ones(()))
        step(prepared, gradient)
        wrapped.step()
        epochs.append(schedule.last_epoch)
    assert epochs == [1, 1, 1, 2, 3, 3, 4]


def test_micro_batches_that_are_accumulated_do_not_count(processes: Any) -> None:
    optimizer = make(0.5)
    schedule = schedules.get_scheduler("linear", optimizer, 0, 10)
    metric = schedules.get_scheduler("greedy", optimizer, None, None, {"patience": 1, "factor": 0.5, "min_lr": 1e-9})
    prepared = AcceleratedOptimizer(optimizer)
    wrapped, following = AcceleratedScheduler(schedule, prepared), AcceleratedScheduler(metric, prepared)
    for index in range(12):
        GradientState()._set_sync_gradients(index % 4 == 3)
        step(prepared)
        wrapped.step()
        following.step(1.0)
    assert (schedule.last_epoch, metric.last_epoch) == (3, 3)


def test_an_optimizer_inside_of_wrappers(processes: Any) -> None:
    """DeepSpeed steps the optimizer it was given from inside of its own, once for each part of the parameters."""
    optimizer = make(0.5, 0.5)
    engine = SimpleNamespace(optimizer=optimizer)
    wrapper = SimpleNamespace(optimizer=engine, step_was_skipped=False)
    schedule = schedules.get_scheduler("linear", optimizer, 0, 10)
    wrapped = AcceleratedScheduler(schedule, wrapper)
    for done in range(1, 4):
        step(optimizer)
        step(optimizer)
        wrapped.step()
        assert schedule.last_epoch == done


def test_a_schedule_made_over_the_prepared_optimizer(processes: Any) -> None:
    optimizer = make(0.5)
    prepared = AcceleratedOptimizer(optimizer)
    schedule = schedules.get_scheduler("linear", prepared, 0, 10)
    wrapped = AcceleratedScheduler(schedule, prepared)
    for done in range(1, 4):
        step(prepared)
        wrapped.step()
        assert schedule.last_epoch == done


def test_an_optimizer_that_steps_in_backward_is_not_waited_for(processes: Any) -> None:
    """accelerate never calls step() of LOMO's optimizers; their schedules move as all others do there."""

    class InBackward(torch.optim.SGD):
        def fused_backward(self) -> None: ...

    processes(1)
    optimizer = InBackward([torch.nn.Parameter(torch.ones(2))], lr=0.5)
    schedule = schedules.get_scheduler("linear", optimizer, 0, 10)
    wrapped = AcceleratedScheduler(schedule, AcceleratedOptimizer(optimizer))
    for done in range(1, 4):
        wrapped.step()
        assert schedule.last_epoch == done


def test_plain_calls_all_count() -> None:
    optimizer = make(0.5)
    schedule = schedules.get_scheduler("linear", optimizer, 0, 10)
    for done in range(1, 4):
        schedule.step()
        assert schedule.last_epoch == done
    metric = schedules.get_scheduler("reduce_lr_on_plateau", optimizer, None, None, {"patience": 0, "factor": 0.5})
    for _ in range(3):
        metric.step(1.0)
    assert metric.last_epoch == 3


def test_being_asked_leaves_no_trace_in_checkpoints_and_copies() -> None:
    optimizer = make(0.5)
    for name in ("linear", "reduce_lr_on_plateau", "greedy"):
        options = {"min_lr": 1e-9} if name == "greedy" else None
        schedule: Any = schedules.get_scheduler(name, optimizer, 0, 10, options)
        before = schedule.state_dict()
        assert schedule.total_steps >= schedule._step_count
        assert schedule.state_dict() == before
    assert "_schedule" not in str(vars(optimizer).keys())
