"""Hooks around steps, saving and loading run when torch says, with what torch hands them, over every name."""

from __future__ import annotations

import copy

import torch
from matrix_rows import every_kind_of_row, parameters, quartic
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook


@every_kind_of_row
def test_hooks_of_a_step_run_around_it_until_they_are_removed(row):
    params = parameters()
    optimizer, seen = row.make(params), []

    def noted(what):
        def hook(opt, args, kwargs):
            assert opt is optimizer
            assert isinstance(args, tuple)
            assert isinstance(kwargs, dict)
            seen.append((what, [param.detach().clone() for param in params.values()]))

        return hook

    handles = [
        optimizer.register_step_pre_hook(noted("before")),
        optimizer.register_step_post_hook(noted("after")),
    ]
    row.advance(optimizer, params, 2)
    assert [what for what, _ in seen] == ["before", "after"] * 2
    assert torch.equal(seen[1][1][0], seen[2][1][0])
    assert not torch.equal(seen[0][1][0], seen[3][1][0])
    for handle in handles:
        handle.remove()
    row.advance(optimizer, params)
    assert len(seen) == 4


@every_kind_of_row
def test_global_hooks_of_steps_run_outside_of_the_optimizers_own(row):
    params = parameters()
    optimizer, seen = row.make(params), []

    def noted(number):
        return lambda opt, args, kwargs: seen.append(number) if opt is optimizer else None

    handles = [
        register_optimizer_step_pre_hook(noted(0)),
        register_optimizer_step_post_hook(noted(5)),
        optimizer.register_step_pre_hook(noted(1)),
        optimizer.register_step_post_hook(noted(2)),
    ]
    try:
        row.advance(optimizer, params, 2)
        assert seen == [0, 1, 2, 5] * 2
    finally:
        for handle in handles:
            handle.remove()
    row.advance(optimizer, params)
    assert seen == [0, 1, 2, 5] * 2


@every_kind_of_row
def test_a_hook_before_a_step_may_change_its_arguments(row):
    params = parameters()
    optimizer, called = row.make(params), []

    def closure():
        called.append(1)
        optimizer.zero_grad()
        loss = quartic(params)
        row.backward(loss)
        return loss

    optimizer.register_step_pre_hook(lambda opt, args, kwargs: (args[:1], {"closure": closure}))
    assert optimizer.step(lambda: 1 / 0) is not None
    assert called


@every_kind_of_row
def test_hooks_of_saving_see_the_state_and_may_replace_the_state_dict(row):
    optimizer = row.make(parameters())

    def before(opt):
        opt.state["note"] = 1

    def after(opt, state_dict):
        assert opt is optimizer
        return {**state_dict, "found": state_dict["state"].pop("note")}

    handle = optimizer.register_state_dict_pre_hook(before)
    assert optimizer.state_dict()["state"]["note"] == 1
    optimizer.register_state_dict_post_hook(after)
    saved = optimizer.state_dict()
    assert saved["found"] == 1
    assert "note" not in saved["state"]
    handle.remove()
    order = []
    optimizer.register_state_dict_post_hook(lambda opt, state_dict: order.append("last"))
    optimizer.register_state_dict_post_hook(lambda opt, state_dict: order.append("first"), prepend=True)
    optimizer.state_dict()
    assert order == ["first", "last"]


@every_kind_of_row
def test_hooks_of_loading_run_in_their_order_and_may_replace_the_state_dict(row):
    optimizer = row.make(parameters())
    saved = optimizer.state_dict()

    def second(opt, state_dict):
        state_dict["param_groups"] = [{**group, "lr": 0.002} for group in state_dict["param_groups"]]

    def first(opt, state_dict):
        changed = copy.deepcopy(state_dict)
        for group in changed["param_groups"]:
            group["lr"] = 0.003
        return changed

    given = copy.deepcopy(saved)
    assert saved["param_groups"][0]["lr"] != 0.002
    optimizer.register_load_state_dict_pre_hook(second)
    optimizer.load_state_dict(given)
    assert optimizer.param_groups[0]["lr"] == 0.002
    assert given["param_groups"][0]["lr"] == saved["param_groups"][0]["lr"]  # the caller's own is left alone
    optimizer.register_load_state_dict_pre_hook(first, prepend=True)
    optimizer.load_state_dict(given)
    assert optimizer.param_groups[0]["lr"] == 0.002


@every_kind_of_row
def test_a_hook_after_loading_sees_what_was_loaded(row):
    params = parameters()
    optimizer = row.make(params)
    row.advance(optimizer, params)
    again = row.make({name: nn.Parameter(param.detach().clone()) for name, param in params.items()})
    seen = []
    again.register_load_state_dict_post_hook(lambda opt: seen.append(len([s for s in opt.state.values() if s])))
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert seen == [len([state for state in optimizer.state.values() if state])]


@every_kind_of_row
def test_steps_and_zero_grad_have_names_in_a_profile(row):
    params = parameters()
    optimizer = row.make(params)
    row.advance(optimizer, params)
    with torch.autograd.profiler.profile() as profile:
        row.advance(optimizer, params)
    names = {event.name for event in profile.function_events}
    assert f"Optimizer.step#{row.cls.__name__}.step" in names
    assert f"Optimizer.zero_grad#{row.cls.__name__}.zero_grad" in names


@every_kind_of_row
def test_a_step_calls_the_place_where_profilers_hang_their_code(row):
    params = parameters()
    optimizer, called = row.make(params), []
    optimizer._optimizer_step_code = lambda: called.append(1)
    row.advance(optimizer, params, 2)
    assert called == [1, 1]
