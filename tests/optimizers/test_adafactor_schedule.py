"""AdafactorSchedule shows the step sizes Adafactor really takes."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from harness import assert_same, feed, parameters, through_disk, train, values

import hfoptim
from hfoptim import Adafactor, AdafactorSchedule, get_adafactor_schedule

NAMES = ("matrix", "vector", "conv")
OPTIONS = [
    pytest.param({"warmup_init": w, "scale_parameter": s, "weight_decay": 0.0}, id=f"warmup={w},scale={s}")
    for w in (False, True)
    for s in (False, True)
]


def groups(params):
    return [{"params": [(name, param)]} for name, param in params.items()]


def applied(before, params, name, update_rms):
    """The step size that moved a parameter: the root mean square of its movement, over that of the clipped update."""
    return float((params[name].detach() - before[name]).square().mean().sqrt()) / update_rms


@pytest.mark.parametrize("options", OPTIONS)
def test_shows_the_learning_rate_that_was_applied(options):
    # A gradient of one magnitude everywhere: the first update then has a root mean square of 1, and is not clipped.
    params = parameters(("matrix", "vector"), torch.float64)
    optimizer = Adafactor(groups(params), **options)
    schedule = AdafactorSchedule(optimizer)
    for t in range(1, 6):
        before = values(params)
        for param in params.values():
            param.grad = torch.full_like(param, 0.5)
        optimizer.step()
        schedule.step()
        for i, name in enumerate(params):
            shown = schedule.get_last_lr()[i]
            assert shown == pytest.approx(applied(before, params, name, 1.0), rel=1e-9), (t, name)
            assert shown == optimizer.param_groups[i]["lr"]
            scale = max(1e-3, float(before[name].square().mean().sqrt())) if options["scale_parameter"] else 1.0
            relative = min(1e-6 * t if options["warmup_init"] else 1e-2, t**-0.5)
            assert shown == pytest.approx(relative * scale, rel=1e-9)


@pytest.mark.parametrize("options", OPTIONS)
def test_equals_transformers_where_all_parameters_have_gradients(options):
    transformers = pytest.importorskip("transformers")
    mine, other = parameters(NAMES, torch.float64), parameters(NAMES, torch.float64)
    ours = Adafactor([{"params": list(mine.values())[:2]}, {"params": list(mine.values())[2:]}], **options)
    theirs = transformers.Adafactor(
        [{"params": list(other.values())[:2]}, {"params": list(other.values())[2:]}], **options
    )
    show, shown = AdafactorSchedule(ours, 0.25), transformers.optimization.AdafactorSchedule(theirs, 0.25)
    assert show.get_last_lr() == shown.get_last_lr() == [0.25, 0.25]
    for t in range(1, 21):
        feed(mine, t)
        feed(other, t, follow=mine)
        ours.step()
        theirs.step()
        show.step()
        shown.step()
        assert show.get_last_lr() == pytest.approx([float(lr) for lr in shown.get_last_lr()], rel=1e-9), t
        assert all(isinstance(lr, float) for lr in show.get_last_lr())


def test_the_first_parameter_of_a_group_may_have_no_gradient():
    # transformers leaves such a group out, and shows the others' step sizes one group too early.
    params = parameters(NAMES, torch.float64)
    frozen = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = Adafactor(
        [{"params": [frozen, params["matrix"]]}, {"params": [params["vector"]]}, {"params": [params["conv"]]}]
    )
    schedule = AdafactorSchedule(optimizer, initial_lr=0.5)
    assert schedule.get_last_lr() == [0.5, 0.5, 0.5]
    for t in range(1, 4):
        before = values(params)
        feed(params, t, only=("matrix", "conv"))
        optimizer.step()
        schedule.step()
        rms = {name: float(before[name].square().mean().sqrt()) for name in params}
        first, second, third = schedule.get_last_lr()
        assert first == pytest.approx(1e-2 * rms["matrix"], rel=1e-9)
        assert second == 0.5  # has not stepped yet
        assert third == pytest.approx(1e-2 * rms["conv"], rel=1e-9)
    feed(params, 4, only=("vector",))
    before = values(params)
    optimizer.step()
    schedule.step()
    assert schedule.get_last_lr()[1] == pytest.approx(1e-2 * float(before["vector"].square().mean().sqrt()), rel=1e-9)


def test_changes_nothing():
    mine, other = parameters(NAMES), parameters(NAMES)
    watched, plain = Adafactor(groups(mine), warmup_init=True), Adafactor(groups(other), warmup_init=True)
    schedule = get_adafactor_schedule(watched)
    assert isinstance(schedule, AdafactorSchedule)
    for t in range(1, 6):
        train(watched, mine, range(t, t + 1))
        schedule.step()
        train(plain, other, range(t, t + 1))
    assert_same(values(mine), values(other))


def test_resumes_through_state_dicts():
    def start(seed=0):
        params = parameters(NAMES, seed=seed)
        optimizer = Adafactor(groups(params), warmup_init=True)
        return params, optimizer, AdafactorSchedule(optimizer)

    def go_on(params, optimizer, schedule, steps):
        trace = []
        for t in steps:
            feed(params, t)
            optimizer.step()
            schedule.step()
            trace.append(schedule.get_last_lr())
        return trace

    whole = start()
    trace = go_on(*whole, range(1, 7))
    first = start()
    assert go_on(*first, range(1, 4)) == trace[:3]
    again = start(seed=1)
    with torch.no_grad():
        for name, param in again[0].items():
            param.copy_(first[0][name])
    again[1].load_state_dict(through_disk(first[1].state_dict()))
    again[2].load_state_dict(through_disk(first[2].state_dict()))
    assert again[2].get_last_lr() == trace[2]
    assert again[2].last_epoch == 3
    assert go_on(*again, range(4, 7)) == trace[3:]
    assert_same(values(again[0]), values(whole[0]))


def test_a_checkpoint_of_transformers_with_its_schedule_loads():
    transformers = pytest.importorskip("transformers")
    other, mine = parameters(NAMES), parameters(NAMES)
    theirs = transformers.Adafactor(list(other.values()))
    shown = transformers.optimization.AdafactorSchedule(theirs)
    for t in range(1, 4):
        train(theirs, other, range(t, t + 1))
        shown.step()
    ours = Adafactor(list(mine.values()))
    show = AdafactorSchedule(ours)
    ours.load_state_dict(through_disk(theirs.state_dict()))
    with torch.no_grad():
        for name, param in mine.items():
            param.copy_(other[name])
    for t in range(4, 7):
        feed(mine, t)
        feed(other, t, follow=mine)
        for step in (ours, theirs, show, shown):
            step.step()
        assert show.get_last_lr() == pytest.approx([float(lr) for lr in shown.get_last_lr()], rel=1e-5)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"]
)
def test_copies_go_on_alike(duplicate):
    params = parameters(NAMES)
    optimizer = Adafactor(groups(params))
    schedule = AdafactorSchedule(optimizer, 0.1)
    train(optimizer, params, range(1, 3))
    schedule.step()
    other, twin, shown = duplicate((params, optimizer, schedule))
    assert shown.optimizer is twin
    for p, o, s in ((params, optimizer, schedule), (other, twin, shown)):
        train(o, p, range(3, 5))
        s.step()
    assert schedule.get_last_lr() == shown.get_last_lr()
    assert_same(values(params), values(other))


def test_reads_through_accelerates_wrapper():
    accelerate = pytest.importorskip("accelerate")
    params = parameters(NAMES)
    wrapped = accelerate.Accelerator(cpu=True).prepare(Adafactor(groups(params)))
    schedule = AdafactorSchedule(wrapped)
    feed(params, 1)
    before = values(params)
    wrapped.step()
    schedule.step()
    expected = [1e-2 * float(before[name].square().mean().sqrt()) for name in NAMES]
    assert schedule.get_last_lr() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "optimizer",
    [
        hfoptim.Lion([torch.nn.Parameter(torch.ones(2))]),
        hfoptim.AdamW([torch.nn.Parameter(torch.ones(2))]),
        torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1),
        None,
    ],
    ids=lambda o: type(o).__name__,
)
def test_other_optimizers_are_refused(optimizer):
    with pytest.raises(TypeError, match=f"Adafactor, got {type(optimizer).__name__}"):
        AdafactorSchedule(optimizer)


def test_an_optimizer_with_a_learning_rate_of_its_own_is_refused():
    # The schedule would overwrite that learning rate with what it shows: with 0 before the first step.
    params = parameters(NAMES)
    optimizer = Adafactor(groups(params), lr=1e-2, relative_step=False)
    with pytest.raises((TypeError, ValueError), match="relative_step"):
        AdafactorSchedule(optimizer)
    assert all(group["lr"] == 1e-2 for group in optimizer.param_groups)


@pytest.mark.parametrize("initial_lr", [-1.0, float("nan"), "fast", None])
def test_a_bad_initial_lr_is_refused(initial_lr):
    optimizer = Adafactor(groups(parameters(NAMES)))
    with pytest.raises((TypeError, ValueError), match=f"initial_lr={initial_lr!r}"):
        AdafactorSchedule(optimizer, initial_lr)
    assert all("initial_lr" not in group and group["lr"] is None for group in optimizer.param_groups)
