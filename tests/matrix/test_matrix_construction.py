"""How an optimizer is made, printed and given groups: what torch.optim's do, over every name."""

from __future__ import annotations

import copy
import re
import warnings

import pytest
import torch
from harness import assert_same, values
from matrix_rows import every_kind_of_row, every_row, parameters, quartic
from torch import nn

import schedules


def matrix():
    return nn.Parameter(torch.ones(2, 2))


SAME = matrix()
# What nobody takes: parameters, the error and a part of its message, which is torch's.
REFUSED = {
    "a tensor": (SAME, TypeError, "should be an iterable of Tensors or dicts"),
    "nothing": ([], ValueError, "empty parameter list"),
    "no tensor": ([("a", "b")], TypeError, "can only optimize Tensors"),
    "not a leaf": ([("a", matrix() * 2)], ValueError, "leaf Tensor"),
    "a set": ([{"params": {SAME}}], TypeError, "ordered collections"),
    "twice": ([{"params": [("a", SAME)]}, {"params": [("b", SAME)]}], ValueError, "more than one parameter group"),
    "some names": ([("a", SAME), matrix()], ValueError, "with/without names"),
    "names of some groups": (
        [{"params": [("a", SAME)], "weight_decay": 0.0}, {"params": [matrix()]}],
        ValueError,
        "with/without names",
    ),
}


@every_kind_of_row
def test_bad_parameters_are_refused_in_torchs_words(row):
    for what, (params, error, message) in REFUSED.items():
        with pytest.raises(error) as raised:
            row.make([{**g} if isinstance(g, dict) else g for g in params] if isinstance(params, list) else params)
        assert re.search(message, str(raised.value)), (what, str(raised.value))


@every_kind_of_row
def test_a_group_that_is_no_dict_is_refused(row):
    optimizer = row.make(parameters())
    with pytest.raises(TypeError, match="param_group must be a dict"):
        optimizer.add_param_group([matrix()])


@every_kind_of_row
def test_a_parameter_given_twice_in_a_group_is_warned_of(row):
    with pytest.warns(UserWarning, match="duplicate parameters"):
        row.make([("a", SAME), ("b", SAME)])


@every_kind_of_row
def test_a_learning_rate_tensor_has_one_entry(row):
    with pytest.raises(ValueError, match=r"(?s)lr.*(1-element|one number)"):
        row.make(parameters(), lr=torch.tensor([1e-3, 1e-3]))


@every_row
def test_it_prints(row):
    for options in ({}, *row.variants):
        optimizer = row.make(parameters(), **options)
        text = repr(optimizer)
        assert text.startswith(f"{row.cls.__name__} (")
        group = optimizer.param_groups[0]
        assert "Parameter Group 0" in text
        for name in group.keys() - {"params"}:
            assert f"    {name}: {group[name]}\n" in text


@every_row
def test_the_loss_falls_and_rises_with_maximize(row):
    for options in ({}, *({"maximize": up, "foreach": False} for up in (True, False) if "maximize" in row.options)):
        for contiguous in (True, False):
            params = parameters(torch.float64)
            if not contiguous:
                params = {n: nn.Parameter(torch.stack([p.detach()] * 2, -1)[..., 0]) for n, p in params.items()}
                assert not params["body.weight"].is_contiguous()
            row.advance(row.make(params, lr=row.lr, **options), params, 4)
            start, end = quartic(parameters(torch.float64)), quartic(params)
            assert (end > start) == bool(options.get("maximize")), (options, contiguous)
            assert end != start


@every_row
def test_schedules_move_it(row):
    makes = (
        lambda o: torch.optim.lr_scheduler.StepLR(o, 1, gamma=0.5),
        lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0, factor=0.5, threshold=1e9),
        lambda o: schedules.get_scheduler("cosine", o, num_warmup_steps=0, num_training_steps=8),
    )
    for make in makes:
        params = parameters(torch.float64)
        optimizer = row.make(params, lr=row.lr)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # such as that a schedule has not seen a step
            warnings.filterwarnings("ignore", message="Using backward")
            scheduler = make(optimizer)
            rates = []
            for _ in range(3):
                row.advance(optimizer, params)
                if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
                    scheduler.step(1.0)
                else:
                    scheduler.step()
                rates.append([float(group["lr"]) for group in optimizer.param_groups])
        assert rates[-1] < rates[0]
        assert quartic(params) < quartic(parameters(torch.float64))


@every_kind_of_row
def test_a_group_with_its_own_learning_rate_follows_a_schedule(row):
    params = parameters(torch.float64)
    optimizer = row.make([{"params": [item]} for item in params.items()], lr=row.lr)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    for _ in range(3):
        row.advance(optimizer, params)
        scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [row.lr / 8] * 2
    assert quartic(params) < quartic(parameters(torch.float64))


@every_kind_of_row
def test_a_learning_rate_may_be_a_tensor(row):
    for shape in ((), (1,)):
        mine, other = parameters(), parameters()
        ours = row.make(mine, lr=torch.full(shape, row.lr, dtype=torch.float64))
        theirs = row.make(other, lr=row.lr)
        row.advance(ours, mine, 3)
        row.advance(theirs, other, 3)
        torch.testing.assert_close(values(mine), values(other), rtol=1e-6, atol=1e-8)
        assert isinstance(ours.param_groups[0]["lr"], torch.Tensor)


@every_row
def test_groups_have_options_of_their_own_and_the_rest_of_the_defaults(row):
    params = parameters()
    first, second = params.items()
    optimizer = row.make([{"params": [first], "weight_decay": 0.25}, {"params": [second]}], lr=row.lr, weight_decay=0.0)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.25, 0.0]
    start = quartic(params).item()
    row.advance(optimizer, params, 3)
    assert quartic(params) < start


@every_kind_of_row
def test_a_group_with_a_learning_rate_of_zero_stays(row):
    params = parameters()
    start = values(params)
    first, second = params.items()
    optimizer = row.make([{"params": [first]}, {"params": [second], "lr": 0.0}], lr=row.lr)
    row.advance(optimizer, params, 3)
    assert_same(params["body.bias"].detach(), start["body.bias"])
    assert not torch.equal(params["body.weight"], start["body.weight"])


@every_kind_of_row
def test_a_learning_rate_of_zero_changes_nothing(row):
    params = parameters()
    start = values(params)
    row.advance(row.make(params, lr=0.0), params, 2)
    assert_same(values(params), start)


@every_kind_of_row
def test_a_group_added_later_takes_the_defaults_and_trains(row):
    params = parameters()
    (name, first), *rest = params.items()
    optimizer = row.make({name: first}, lr=row.lr)
    row.advance(optimizer, {name: first}, 2)
    lr = row.lr * (1.0 if getattr(row.cls, "one_lr", False) else 0.5)
    optimizer.add_param_group({"params": rest, "lr": lr})
    before = values(params)
    row.advance(optimizer, params, 2)
    assert len(optimizer.param_groups) == 2
    assert optimizer.param_groups[1]["lr"] == lr
    assert optimizer.param_groups[1].keys() == optimizer.param_groups[0].keys()
    assert not torch.equal(params["body.bias"], before["body.bias"])
    again = row.make([{"params": [(name, first)]}, {"params": rest}], lr=row.lr)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert_same(again.state_dict(), optimizer.state_dict())


@every_kind_of_row
def test_names_of_parameters_are_kept(row):
    params = parameters()
    optimizer = row.make(params)
    assert [name for group in optimizer.param_groups for name in group["param_names"]] == list(params)
    assert optimizer.state_dict()["param_groups"][0]["param_names"][0] == "body.weight"
    assert "param_names" not in row.make(params, named=False).state_dict()["param_groups"][0]


@every_kind_of_row
def test_gradients_are_removed_or_set_to_zero(row):
    for options in ({}, *(({"foreach": True}, {"fused": True}) if row.engine else ())):
        params = parameters()
        optimizer = row.make(params, **options)
        quartic(params).backward()
        grads = [param.grad for param in params.values()]
        optimizer.zero_grad(set_to_none=False)
        assert all(param.grad is grad and not grad.any() for param, grad in zip(params.values(), grads, strict=True))
        optimizer.zero_grad()
        assert all(param.grad is None for param in params.values())
