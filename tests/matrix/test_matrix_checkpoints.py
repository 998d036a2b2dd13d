"""state_dicts, copies and what torch's users do to them, over every name."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from harness import assert_same, through_disk, values
from matrix_rows import every_kind_of_row, every_row, parameters, quartic
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

# Options that torch's optimizers, or ours, have been given after their first checkpoints were written.
LATER = (
    *("maximize", "foreach", "fused", "differentiable", "capturable", "caution", "kahan_sum", "stochastic_rounding"),
    *("master_weights", "state_dtype", "state_rounding", "gradient_release"),
    *("cautious_weight_decay", "corrected_weight_decay", "gradient_centralization", "adaptive_clip"),
    *("orthograd", "hyperball"),
)


def trained(row, named=True, steps=2):
    params = parameters()
    optimizer = row.make(params, named=named)
    row.advance(optimizer, params, steps)
    return params, optimizer


def twin_of(params):
    return {name: nn.Parameter(param.detach().clone()) for name, param in params.items()}


def nameless(state_dict):
    groups = [{k: v for k, v in group.items() if k != "param_names"} for group in state_dict["param_groups"]]
    return {**state_dict, "param_groups": groups}


def assert_goes_on(row, ours, mine, theirs, other):
    """Both take the same steps, and have the same state_dict then."""
    row.advance(ours, mine, 2)
    row.advance(theirs, other, 2)
    assert_same(values(mine), values(other))
    assert_same(nameless(ours.state_dict()), nameless(theirs.state_dict()))


@every_kind_of_row
def test_a_state_dict_is_deterministic_with_and_without_names(row):
    for named in (False, True):
        params, optimizer = trained(row, named)
        other = twin_of(params)
        again = row.make(other, named)
        again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        assert_goes_on(row, optimizer, params, again, other)


@every_kind_of_row
def test_names_survive_if_one_side_has_them(row):
    for saved_names, own_names in ((True, False), (False, True)):
        params = parameters()
        optimizer = row.make(row.groups(params, saved_names))
        row.advance(optimizer, params, 2)
        other = twin_of(params)
        again = row.make(row.groups(other, own_names))
        again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        saved = again.state_dict()["param_groups"]
        assert [name for group in saved for name in group["param_names"]] == list(params)
        assert_goes_on(row, optimizer, params, again, other)


@every_kind_of_row
def test_equal_groups_are_written_alike(row):
    params, optimizer = trained(row)
    other = twin_of(params)
    again = row.make(other)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    again.param_groups.extend(again.param_groups)
    assert_same(again.state_dict()["param_groups"][-1], optimizer.state_dict()["param_groups"][-1])


@every_kind_of_row
def test_saving_and_loading_leave_the_state_dict_as_it_was(row):
    params, optimizer = trained(row)
    saved = optimizer.state_dict()
    before = copy.deepcopy(saved)
    again = row.make(twin_of(params))
    again.load_state_dict(saved)
    for group in again.param_groups:
        group["lr"] = 0.125
        group["added"] = 1
    assert_same(saved, before)
    assert_same(optimizer.state_dict(), before)


@every_row
def test_an_older_state_dict_loads(row):
    params, optimizer = trained(row)
    older = copy.deepcopy(optimizer.state_dict())
    for group in older["param_groups"]:
        for name in LATER:
            group.pop(name, None)
    other = twin_of(params)
    again = row.make(other)
    again.load_state_dict(older)
    for group, own in zip(again.param_groups, row.make(parameters()).param_groups, strict=True):
        assert {name: group.get(name) or None for name in LATER} == {name: own.get(name) or None for name in LATER}
    row.advance(again, other, 2)
    row.advance(optimizer, params, 2)
    assert_same(values(other), values(params))


@every_kind_of_row
def test_a_step_count_that_is_a_plain_number_loads(row):
    params, optimizer = trained(row)
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"] = state["step"].item()
    other = twin_of(params)
    again = row.make(other)
    again.load_state_dict(saved)
    row.advance(again, other)
    row.advance(optimizer, params)
    assert_same(values(other), values(params))


@every_kind_of_row
def test_what_is_saved_is_read_back_equal_without_leave_to_unpickle(row):
    _, optimizer = trained(row)
    assert_same(through_disk(optimizer.state_dict()), optimizer.state_dict())


@every_kind_of_row
def test_every_parameter_that_stepped_has_state(row):
    params, optimizer = trained(row, steps=1)
    assert set(optimizer.state_dict()) >= {"state", "param_groups"}
    held = [state for state in optimizer.state.values() if state]
    assert len(held) == (1 if row.closure and row.name.endswith(("lbfgs", "LBFGS")) else len(params))


@every_kind_of_row
def test_state_loads_into_parameters_of_another_dtype(row):
    params, optimizer = trained(row)
    other = {name: nn.Parameter(param.detach().double()) for name, param in params.items()}
    again = row.make(other)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    row.advance(again, other)
    row.advance(optimizer, params)
    for name, param in params.items():
        torch.testing.assert_close(other[name].detach().float(), param.detach(), rtol=1e-4, atol=1e-6)


@every_row
def test_deepcopy_and_pickle_have_all_public_attributes(row):
    params, optimizer = trained(row)
    public = {name for name in vars(optimizer) if not name.startswith("_")}
    for copied in (copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))):
        other, twin = copied((params, optimizer))
        assert type(twin) is type(optimizer)
        assert {name for name in vars(twin) if not name.startswith("_")} == public
        row.advance(twin, other)
    row.advance(optimizer, params)
    assert_same(values(other), values(params))


@every_kind_of_row
def test_an_averaged_model_and_its_schedule_go_with_it(row):
    model = nn.Module()
    params = parameters()
    for name, param in params.items():
        model.register_parameter(name.replace(".", "_"), param)
    optimizer = row.make(params, lr=row.lr)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    schedule = torch.optim.swa_utils.SWALR(optimizer, swa_lr=row.lr / 2, anneal_epochs=2)
    seen = []
    for _ in range(3):
        row.advance(optimizer, params)
        averaged.update_parameters(model)
        schedule.step()
        seen.append(values(params))
    for name in params:
        mean = torch.stack([each[name] for each in seen]).mean(0)
        torch.testing.assert_close(getattr(averaged.module, name.replace(".", "_")).detach(), mean)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(row.lr / 2)
    again = row.make(parameters(), lr=row.lr)
    again.load_state_dict(through_disk(optimizer.state_dict()))
    assert again.param_groups[0]["swa_lr"] == row.lr / 2


class Model(nn.Module):
    """The matrix's two parameters in a module."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(2, 3)
        with torch.no_grad():
            for name, param in parameters().items():
                self.get_parameter(name).copy_(param)


@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flat"])
@every_kind_of_row
def test_torchs_distributed_state_dict_goes_through(row, flat):
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    model, other = Model(), Model()
    params, others = dict(model.named_parameters()), dict(other.named_parameters())
    optimizer, again = row.make(params, lr=row.lr), row.make(others, lr=row.lr)
    row.advance(optimizer, params, 2)
    other.load_state_dict(model.state_dict())
    start = values(others)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about its own calls
        saved = through_disk(get_optimizer_state_dict(model, optimizer, options=options))
        if flat and getattr(row.cls, "expects", None):  # torch goes by the inner optimizer's state alone
            with pytest.raises(ValueError, match="flatten_optimizer_state_dict=False"):
                set_optimizer_state_dict(other, again, saved, options=options)
            return
        set_optimizer_state_dict(other, again, saved, options=options)
    assert_same(values(others), start)
    optimizer.zero_grad()
    again.zero_grad()
    assert quartic(params) == quartic(others)
    row.advance(optimizer, params, 2)
    row.advance(again, others, 2)
    assert_same(values(others), values(params))
