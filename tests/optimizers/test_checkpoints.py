"""state_dicts: of peers, of other optimizers, of other models. What is refused changes nothing."""

from __future__ import annotations

import copy
import dataclasses
import re

import peers
import pytest
import torch
from cases import ENTRIES
from cases.adam import ADAMW
from fingerprints import NAMES, cannot_be_told_apart, fingerprint, made, of_state_dict, others
from harness import (
    assert_goes_on_like,
    assert_moved,
    assert_same,
    feed,
    parameters,
    set_lr,
    snapshot,
    through_disk,
    train,
    values,
)
from tiers import every_entry, every_kind_of_entry, every_kind_of_variant, every_variant

import hfoptim
from hfoptim.engine import ENGINE_DEFAULTS

PEERS = [
    pytest.param(entry, checkpoint, id=f"{entry.name}-{checkpoint.who}-{i}")
    for entry in ENTRIES
    for i, checkpoint in enumerate(entry.checkpoints)
]


def build(entry, variant, params):
    return entry.cls(list(params.items()), **variant.options)


def assert_refused(optimizer, params, state_dict, match):
    before, given = snapshot(optimizer, params), copy.deepcopy(state_dict)
    with pytest.raises(ValueError, match=match):
        optimizer.load_state_dict(state_dict)
    assert_same(snapshot(optimizer, params), before)
    assert_same(state_dict, given)


# -- peers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stepped", [3, 0], ids=["stepped", "fresh"])
@pytest.mark.parametrize(("entry", "checkpoint"), PEERS)
def test_a_checkpoint_of_a_peer_loads_and_goes_on_identically(entry, checkpoint, stepped):
    layouts = ("scalar", "vector", "matrix", "conv", "transposed")
    mine, other = parameters(layouts, torch.float64, seed=1), parameters(layouts, torch.float64)
    try:
        theirs = peers.load(checkpoint.who)(list(other.values()), **checkpoint.theirs)
    except peers.MissingPeer as missing:
        pytest.skip(str(missing))
    if hasattr(theirs, "train"):  # schedule-free ones begin in evaluation mode
        theirs.train()
    train(theirs, other, range(1, 1 + stepped))
    ours = entry.cls(list(mine.values()), **checkpoint.ours)
    ours.load_state_dict(through_disk(theirs.state_dict()))
    for name in ("lr", "betas", "eps", "weight_decay", "momentum", "beta1", "warmup_init", "maximize"):
        if name in theirs.param_groups[0]:
            assert ours.param_groups[0][name] == theirs.param_groups[0][name], name
    with torch.no_grad():
        for name, param in mine.items():
            param.copy_(other[name])
    start = values(other)
    assert_goes_on_like(ours, mine, theirs, other, range(4, 14), checkpoint.tolerance)
    assert_moved(other, start)


def test_options_a_peer_does_not_know_stay_those_of_the_group():
    # torch.optim.AdamW knows one decoupling only: what the loading optimizer was built with, group by group, holds.
    def make(params):
        return hfoptim.Adam(
            [
                {"params": [params["matrix"]], "lr": 1e-2, "decouple_lr": True, "weight_decay": 0.01},
                {"params": [params["vector"]], "lr": 1e-3, "decouple_wd": True, "weight_decay": 0.01},
            ]
        )

    params = parameters(("matrix", "vector"))
    theirs = torch.optim.AdamW(
        [{"params": [params["matrix"]], "lr": 1e-2}, {"params": [params["vector"]], "lr": 1e-3}], weight_decay=0.01
    )
    train(theirs, params, range(1, 3))
    ours = make(params)
    ours.load_state_dict(theirs.state_dict())
    assert [(g["decouple_lr"], g["decouple_wd"], g["max_lr"]) for g in ours.param_groups] == [
        (True, False, 1e-2),
        (False, True, None),
    ]


def test_fully_decoupled_decay_survives_a_checkpoint_of_torch():
    params = parameters(("matrix",))
    theirs = torch.optim.AdamW([params["matrix"]], lr=1e-2, weight_decay=0.01)
    train(theirs, params, range(1, 3))
    ours = hfoptim.Adam([params["matrix"]], lr=1e-2, weight_decay=0.01, decouple_lr=True)
    ours.load_state_dict(theirs.state_dict())
    before = params["matrix"].detach().clone()
    undecayed = copy.deepcopy(ours)
    undecayed.param_groups[0]["weight_decay"] = 0.0
    feed(params, 3)
    twin = {"matrix": undecayed.param_groups[0]["params"][0]}
    feed(twin, 3, follow={"matrix": before})
    ours.step()
    undecayed.step()
    torch.testing.assert_close(twin["matrix"].detach() - params["matrix"].detach(), 0.01 * before, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (torch.optim.AdamW, lambda p, **o: hfoptim.Adam(p, **o)),
        (torch.optim.Adam, lambda p, **o: hfoptim.Adam(p, decouple_wd=True, **o)),
        (torch.optim.Adam, lambda p, **o: hfoptim.AdamW(p, **o)),
    ],
    ids=["AdamW-to-l2", "Adam-to-decoupled", "Adam-to-AdamW"],
)
def test_a_checkpoint_whose_weight_decay_meant_something_else_is_refused_or_obeyed(theirs, ours):
    params = parameters(("matrix",), torch.float64)
    saved = theirs([params["matrix"]], lr=1e-2, weight_decay=0.5, eps=1e-12)
    train(saved, params, range(1, 3))
    other = {"matrix": torch.nn.Parameter(params["matrix"].detach().clone())}
    optimizer = ours([other["matrix"]], lr=1e-2, weight_decay=0.5, eps=1e-12)
    try:
        optimizer.load_state_dict(through_disk(saved.state_dict()))
    except ValueError:
        return
    start = values(params)
    train(saved, params, range(3, 6))
    for t in range(3, 6):
        feed(other, t, follow=params)
        optimizer.step()
    moved = (params["matrix"].detach() - start["matrix"]).abs().max()
    assert (params["matrix"] - other["matrix"]).detach().abs().max() < 1e-3 * moved, "loaded, and decays otherwise"


@pytest.mark.parametrize("options", [{}, {"amsgrad": True, "weight_decay": 0.2}, {"maximize": True}], ids=str)
@pytest.mark.parametrize(("name", "cls"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_torch_loads_ours_of_its_name_and_goes_on_identically(name, cls, options):
    mine, other = parameters(NAMES, torch.float64), parameters(NAMES, torch.float64)
    ours = hfoptim.create_optimizer_v2(list(mine.values()), name, lr=1e-2, **options)
    train(ours, mine, range(1, 4))
    theirs = cls(list(other.values()))
    theirs.load_state_dict(through_disk(ours.state_dict()))
    with torch.no_grad():
        for key, param in other.items():
            param.copy_(mine[key])
    assert_goes_on_like(ours, mine, theirs, other, range(4, 10), 1e-10)


def test_amsgrad_of_torch_is_refused_where_its_numbers_would_differ():
    params = parameters(NAMES)
    theirs = torch.optim.Adam(list(params.values()), amsgrad=True)
    train(theirs, params, range(1, 3))
    ours = hfoptim.Adopt(list(params.values()))
    assert_refused(ours, params, theirs.state_dict(), "amsgrad=True")


@every_kind_of_entry
def test_how_a_step_is_computed_belongs_to_the_run_that_loads(entry):
    params, other = parameters(NAMES), parameters(NAMES)
    variant = next(iter(entry.variants.values()))
    saved = entry.cls(list(params.items()), **{**variant.options, "foreach": False})
    train(saved, params, range(1, 3))
    loading = entry.cls(list(other.items()), **{**variant.options, "foreach": True})
    loading.load_state_dict(through_disk(saved.state_dict()))
    assert all(group["foreach"] is True for group in loading.param_groups)


# -- precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@every_kind_of_variant
def test_state_of_low_precision_parameters_stays_float32(entry, variant, dtype):
    # torch's own loader casts floating state to the parameter's dtype (pytorch#43706).
    params, other = parameters(NAMES, dtype), parameters(NAMES, dtype)
    optimizer, again = build(entry, variant, params), build(entry, variant, other)
    train(optimizer, params, range(1, 3))
    again.load_state_dict(through_disk(optimizer.state_dict()))
    for name in NAMES:
        ours, theirs = again.state[other[name]], optimizer.state[params[name]]
        assert_same(dict(ours), dict(theirs))
        assert ours["step"].dtype is torch.float32
        for key, value in ours.items():
            assert value.dtype == (dtype if key == "kahan_comp" else torch.float32), key


@every_kind_of_variant
def test_the_step_count_stays_exact_for_low_precision_parameters(entry, variant):
    params, other = parameters(NAMES, torch.bfloat16), parameters(NAMES, torch.bfloat16)
    optimizer, again = build(entry, variant, params), build(entry, variant, other)
    train(optimizer, params, range(1, 2))
    saved = optimizer.state_dict()
    for state in saved["state"].values():
        state["step"] = torch.tensor(1_000_001.0)  # no bfloat16 number
    again.load_state_dict(saved)
    train(again, other, range(2, 3))
    assert all(again.state[p]["step"].item() == 1_000_002.0 for p in other.values())


# -- another optimizer's, another model's -----------------------------------------------------------------------------


def assert_told_from(source, target, saved, into):
    """The state_dict of another optimizer is refused, and leaves everything as it was."""
    other = made(source, saved)[1]
    params, optimizer = made(target, into)
    assert_refused(
        optimizer,
        params,
        other.state_dict(),
        f"not one of {target.cls.__name__}|parameter groups|of the state_dict: (betas|eps)=",
    )


@every_entry
def test_a_state_dict_has_the_options_and_the_state_that_the_class_declares(entry):
    # What other optimizers tell it by: see fingerprints.py.
    params, optimizer = made(entry, 2)
    found = fingerprint(entry)
    assert found == of_state_dict(through_disk(optimizer.state_dict()))
    assert found.options == set(optimizer.defaults) - {*ENGINE_DEFAULTS, "differentiable"}
    assert sum(found.groups) == len(found.state) == len(params)
    for (name, param), state in zip(params.items(), by_parameter(optimizer, params, found), strict=True):
        group = next(g for g in optimizer.param_groups if any(p is param for p in g["params"]))
        rule = optimizer.rule_for(param, group)
        declared = {key: tuple(rule.first(key, param.detach(), param.dtype).shape) for key in rule.state}
        assert dict(state) == {"step": (), **declared}, name


def by_parameter(optimizer, params, found):
    """The fingerprint's state in the order of the parameters, which groups may have changed."""
    order = [param for group in optimizer.param_groups for param in group["params"]]
    return [found.state[next(i for i, p in enumerate(order) if p is param)] for param in params.values()]


@every_entry
def test_the_state_dict_of_another_optimizer_is_refused(entry):
    for saved in (0, 2):
        for other in others(entry, saved > 0):
            assert_told_from(other, entry, saved, 0)
            assert_told_from(other, entry, saved, 2)


class Twin(hfoptim.AdamW):
    """An optimizer of another name whose state_dicts are AdamW's."""


@pytest.mark.parametrize("saved", [0, 2], ids=["fresh", "stepped"])
def test_a_state_dict_that_cannot_be_told_from_ones_own_is_obeyed(saved):
    # Moments by the same names, and no option more: what is loaded holds.
    twin = dataclasses.replace(ADAMW, name="twin", cls=Twin)
    assert fingerprint(ADAMW) == fingerprint(twin)
    for source, target in [(twin, ADAMW), (ADAMW, twin), *cannot_be_told_apart(saved > 0)]:
        state_dict = through_disk(made(source, saved)[1].state_dict())
        params, optimizer = made(target, 2)
        try:
            optimizer.load_state_dict(state_dict)
        except ValueError as error:  # the same options, with values that only the other one takes
            if not re.search(r"of the state_dict: \w+=", str(error)):
                raise
            continue
        for mine, theirs in zip(optimizer.param_groups, state_dict["param_groups"], strict=True):
            for option in fingerprint(source).options:
                assert_same(mine[option], theirs[option])
        assert_same(optimizer.state_dict()["state"], state_dict["state"])
        train(optimizer, params, range(3, 5))


@pytest.mark.slow
@pytest.mark.parametrize("saved", [0, 2], ids=["fresh", "stepped"])
@every_entry
def test_the_state_dict_of_every_other_optimizer_is_refused(entry, saved):
    alike = {(source.name, target.name) for source, target in cannot_be_told_apart(saved > 0)}
    for source in ENTRIES:
        if source is not entry and (source.name, entry.name) not in alike:
            assert_told_from(source, entry, saved, 0)
            assert_told_from(source, entry, saved, 2)


@pytest.mark.parametrize("stepped", [0, 2])
@every_kind_of_entry
def test_the_state_dict_of_an_unrelated_torch_optimizer_is_refused(entry, stepped):
    for make in (torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Adadelta, torch.optim.NAdam):
        if entry.cls.__name__ == make.__name__:
            continue
        theirs = parameters(NAMES)
        other = make(list(theirs.values()))
        train(other, theirs, range(1, 1 + stepped))
        params, optimizer = made(entry)
        train(optimizer, params, range(1, 2))
        assert_refused(optimizer, params, other.state_dict(), "not one of|parameter groups")


@every_kind_of_entry
def test_other_shapes_are_refused(entry):
    source = parameters(NAMES)
    other = build(entry, next(iter(entry.variants.values())), source)
    train(other, source, range(1, 3))
    params = {**parameters(NAMES), "matrix": torch.nn.Parameter(torch.ones(5, 4))}
    optimizer = build(entry, next(iter(entry.variants.values())), params)
    train(optimizer, {k: v for k, v in params.items() if k != "matrix"}, range(1, 2))
    if other.state[source["matrix"]].keys() == {"step"} or entry.name == "nero":  # Nero's is one number per row
        pytest.skip("it has no state that has a shape")
    assert_refused(optimizer, params, other.state_dict(), "shape")


@every_kind_of_variant
def test_other_numbers_of_groups_and_parameters_are_refused(entry, variant):
    params = parameters(NAMES)
    optimizer = build(entry, variant, params)
    train(optimizer, params, range(1, 3))
    saved = through_disk(optimizer.state_dict())
    fewer = copy.deepcopy(saved)
    fewer["param_groups"] = fewer["param_groups"][:-1]
    assert_refused(optimizer, params, fewer, "parameter groups")
    shorter = copy.deepcopy(saved)
    shorter["param_groups"][0]["params"].pop()
    assert_refused(optimizer, params, shorter, "parameters")


@every_variant
def test_missing_unknown_and_bad_values_are_refused(entry, variant):
    params = parameters(NAMES)
    optimizer = build(entry, variant, params)
    train(optimizer, params, range(1, 3))
    saved = through_disk(optimizer.state_dict())

    def changed(change):
        state_dict = copy.deepcopy(saved)
        change(state_dict)
        return state_dict

    def state(state_dict):
        return state_dict["state"][0]

    assert_refused(optimizer, params, changed(lambda s: s["param_groups"][0].update(lr=-1.0)), r"lr=-1\.0")
    assert_refused(optimizer, params, changed(lambda s: s["param_groups"][0].update(lr=float("nan"))), "lr=nan")
    assert_refused(optimizer, params, changed(lambda s: s["param_groups"][0].update(radius=0.9)), "radius=0.9")
    if "weight_decay" in optimizer.defaults and "weight_decay" not in entry.cls.absent_from_peers:
        assert_refused(optimizer, params, changed(lambda s: s["param_groups"][0].pop("weight_decay")), "weight_decay")
    assert_refused(optimizer, params, changed(lambda s: state(s).update(hessian=torch.ones(2))), "hessian")
    if entry.counted and len(saved["state"][0]) > 1:
        assert_refused(optimizer, params, changed(lambda s: state(s).pop("step")), "step")
    for name in set(saved["state"][0]) - {"step"}:
        assert_refused(optimizer, params, changed(lambda s, n=name: state(s).pop(n)), name)
    assert_refused(optimizer, params, {"state": {}}, "param_groups")


@every_kind_of_variant
def test_a_refused_state_dict_leaves_the_run_as_it_was(entry, variant):
    mine, other = parameters(NAMES), parameters(NAMES)
    ours, theirs = build(entry, variant, mine), build(entry, variant, other)
    wrong = torch.optim.RMSprop([torch.nn.Parameter(torch.ones(1))]).state_dict()
    for t in range(1, 6):
        with pytest.raises(ValueError, match="state_dict"):
            ours.load_state_dict(wrong)
        train(ours, mine, range(t, t + 1))
        train(theirs, other, range(t, t + 1))
    assert_same(values(mine), values(other))


# -- names -----------------------------------------------------------------------------------------------------------


@every_kind_of_variant
def test_named_parameters_in_another_order_load_by_name(entry, variant):
    if entry.name == "grokadamw" and variant.options.get("gamma") != 0.0:
        pytest.skip("its decay rates go by the order of the optimizer that loads")
    if entry.name == "apollo_adamw" and variant.options.get("proj") != "svd":
        pytest.skip("the random numbers of parameters without state go by the order of the optimizer that loads")
    if entry.name == "kron":
        pytest.skip("its noise goes by the place at which the state of a parameter was made")
    params = parameters(NAMES)
    optimizer = build(entry, variant, params)
    train(optimizer, params, range(1, 4), only=("matrix", "vector"))  # conv has no state
    saved = through_disk(optimizer.state_dict())
    # Where a pattern made two groups of them, the order inside the first one may change.
    order = ("conv", "matrix", "vector")
    again = {name: torch.nn.Parameter(params[name].detach().clone()) for name in order}
    resumed = build(entry, variant, again)
    resumed.load_state_dict(saved)
    for name in NAMES:
        assert_same(dict(resumed.state[again[name]]), dict(optimizer.state[params[name]]), name)
    train(resumed, again, range(4, 6))
    train(optimizer, params, range(4, 6))
    for name in NAMES:
        torch.testing.assert_close(again[name], params[name], rtol=1e-6, atol=1e-7)


@every_kind_of_entry
def test_other_names_are_refused(entry):
    params, optimizer = made(entry)
    train(optimizer, params, range(1, 3))
    other = dict(zip(("matrix", "vector", "kernel"), parameters(NAMES).values(), strict=True))
    renamed = build(entry, next(iter(entry.variants.values())), other)
    assert_refused(renamed, other, optimizer.state_dict(), "kernel")


def test_without_names_the_order_counts():
    params = parameters(NAMES)
    optimizer = hfoptim.Adam(list(params.values()))
    train(optimizer, params, range(1, 3))
    again = hfoptim.Adam(list(reversed(params.values())))
    with pytest.raises(ValueError, match="shape"):
        again.load_state_dict(optimizer.state_dict())


# -- wrappers --------------------------------------------------------------------------------------------------------


@every_kind_of_variant
def test_a_round_trip_before_any_step_is_harmless(entry, variant):
    # What accelerate's AcceleratedOptimizer does in its constructor.
    mine, other = parameters(NAMES), parameters(NAMES)
    ours, theirs = build(entry, variant, mine), build(entry, variant, other)
    ours.load_state_dict(ours.state_dict())
    ours.load_state_dict(copy.deepcopy(ours.state_dict()))
    assert not any(ours.state.values())
    assert [len(g["params"]) for g in ours.param_groups] == [len(g["params"]) for g in theirs.param_groups]
    train(ours, mine, range(1, 4))
    train(theirs, other, range(1, 4))
    assert_same(values(mine), values(other))
    # A checkpoint written by an optimizer that was never wrapped loads into the wrapped one, and the other way round.
    ours.load_state_dict(through_disk(theirs.state_dict()))
    theirs.load_state_dict(through_disk(ours.state_dict()))


@every_kind_of_variant
def test_accelerate_prepares_and_resumes_it(entry, variant):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    mine, other = parameters(NAMES), parameters(NAMES)
    wrapped = accelerator.prepare(build(entry, variant, mine))
    plain = build(entry, variant, other)
    for t in range(1, 4):
        set_lr(wrapped, t, variant.lr)
        feed(mine, t)
        wrapped.step()
        train(plain, other, range(t, t + 1), variant.lr)
    assert_same(values(mine), values(other))
    again = accelerator.prepare(build(entry, variant, parameters(NAMES)))
    again.load_state_dict(through_disk(plain.state_dict()))
    assert_same(again.state_dict()["state"], plain.state_dict()["state"])


def test_what_a_schedule_wrote_into_the_groups_loads_before_the_schedule_is_made():
    params = parameters(("matrix",))
    first = hfoptim.Lion(list(params.values()))
    schedule = torch.optim.lr_scheduler.OneCycleLR(first, max_lr=1e-3, total_steps=10, base_momentum=0.8)
    train(first, params, range(1, 3))
    schedule.step()
    saved = through_disk(first.state_dict())
    assert {"initial_lr", "max_lr", "max_momentum"} <= saved["param_groups"][0].keys()
    second = hfoptim.Lion(list(params.values()))
    second.load_state_dict(saved)
    assert_same(second.state_dict(), first.state_dict())
