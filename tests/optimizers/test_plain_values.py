"""Hyper-parameters in whatever class they come: what is stored is Python's own, so checkpoints can be read back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cases import ENTRIES
from foreign_numbers import FORMS, Listed, assert_plain, given_as, saved_and_read
from harness import assert_same, feed, parameters
from tiers import every_kind_of_entry

import hfoptim
from hfoptim import registry
from hfoptim.engine import ENGINE_DEFAULTS
from hfoptim.engine.checks import plain, portable

# Of those that take gradients of every kind.
NAMES = [
    *(name for name in map(str, hfoptim.list_optimizers()) if not hfoptim.get_optimizer_info(name).sparse_only),
    *("lookahead_adamw", "lookahead_muon", "sam_sgd", "sam_lamb"),
]
every_name = pytest.mark.parametrize("name", NAMES)
# Numbers that are None unless given, or that a default leaves without effect.
MORE = {
    "beta1": 0.9,
    "beta1_warmup": 10.0,
    "beta2": 0.99,
    "beta3": 0.98,
    "clip_exp": 0.25,
    "clip_grad_norm": 1.0,
    "clip_grad_value": 0.5,
    "clipping_threshold": 1.0,
    "clipnorm": 2.0,
    "dampening": 0.1,
    "eta": 0.5,
    "growth_rate": math.inf,
    "init_estim_sq_dist": 1e-4,
    "init_eta": 1e-2,
    "init_lr": 1e-3,
    "max_decay": 0.9,
    "max_lr": 0.02,
    "max_ratio": 2.0,
    "min_dim_size_to_factor": 2,
    "n_kv_heads": 8,
    "preconditioner_max_size": 5,
    "preconditioner_update_probability": 0.5,
    "split": (2, 2),
    "t_alpha_beta3": 7.0,
    "t_max": 10,
    "warmup_steps": 3,
    "weight_decay": 0.05,
}
# The same for some names: their defaults exclude others, or there is more than one form.
OF_NAME = {
    "adafactor": {"lr": 1e-2, "relative_step": False},
    "cadafactor": {"lr": 1e-2, "relative_step": False},
    "muon": {"ns_coefficients": [[4.0848, -6.8946, 2.927], [3.9505, -6.3029, 2.6377]]},
    "sgd": {"dampening": 0.0},
    "sgdw": {"dampening": 0.0},
    "csgdw": {"dampening": 0.0},
    "sgdc": {"dampening": 0.0},
    "csgdc": {"dampening": 0.0},
    "nlars": {"dampening": 0.0},
    "nlarc": {"dampening": 0.0},
}


def options_of(name):
    """Every option of a name that is a number or numbers, with a value."""
    first = {**registry.group_defaults(name), **registry.resolve_options(name, {})}
    if registry.engine_class_of(registry.get_optimizer_info(name).opt_class) is None:
        first |= registry.dummy(registry.get_optimizer_info(name).opt_class, {}).defaults
    more = {option: value for option, value in MORE.items() if option in first}
    chosen = {**first, **more, **OF_NAME.get(name.removeprefix("lookahead_").removeprefix("sam_"), {})}
    kept = {k: v for k, v in chosen.items() if k not in ENGINE_DEFAULTS and v is not None and not isinstance(v, str)}
    return {k: v for k, v in kept.items() if not isinstance(v, bool) or k == "relative_step"}


def named():
    g = torch.Generator().manual_seed(0)
    shapes = {"h.0.mlp.weight": (4, 4), "h.0.mlp.bias": (4,), "h.1.mlp.weight": (4, 4)}
    return {name: torch.nn.Parameter(torch.randn(shape, generator=g)) for name, shape in shapes.items()}


def build(name, options, groups=False):
    params = list(named().items())
    cls = registry.get_optimizer_class(name)
    if registry.engine_class_of(registry.get_optimizer_info(name).opt_class) is None:  # torch's own
        options = registry.resolve_options(name, options)
    return cls([{"params": params, **options}]) if groups else cls(params, **options)


def stepped(name, optimizer, steps=2):
    second_order = registry.get_optimizer_info(name).second_order
    params = [param for group in optimizer.param_groups for param in group["params"]]

    def closure():
        optimizer.zero_grad()
        loss = sum((param - 0.3).pow(4).sum() for param in params)
        loss.backward(create_graph=second_order)
        return loss

    for _ in range(steps):
        optimizer.step(closure)
    optimizer.zero_grad()
    return optimizer


def state_of(optimizer):
    """The state_dict after a save and a load, with a tensor lr as the number in it."""
    state = saved_and_read(optimizer.state_dict())
    assert_plain(state["param_groups"])
    for group in state["param_groups"]:
        group["lr"] = None if group["lr"] is None else float(group["lr"])
    return state


@pytest.mark.filterwarnings("ignore:lr=")
@every_name
def test_every_number_of_every_optimizer_in_every_form(name):
    options = options_of(name)
    plainly = state_of(stepped(name, build(name, options)))
    for form in FORMS:
        given = {option: given_as(form, value) for option, value in options.items()}
        if name == "lbfgs":  # torch's own puts what it computes with lr into its state
            given["lr"] = given_as("numpy", options["lr"])
        ours = build(name, given)
        if registry.engine_class_of(registry.get_optimizer_info(name).opt_class):
            assert_plain(ours.defaults)
            assert isinstance(ours.param_groups[0]["lr"], torch.Tensor) is (form == "tensor")
        assert_same(state_of(stepped(name, ours)), plainly, form)


@pytest.mark.filterwarnings("ignore:lr=")
@pytest.mark.parametrize("name", [name for name in NAMES if name != "lbfgs"])  # torch's own takes one group
def test_every_number_in_a_group(name):
    class_of = registry.get_optimizer_info(name).opt_class
    own = registry.dummy(class_of, registry.resolve_options(name, {})).param_groups[0]
    options = {option: value for option, value in options_of(name).items() if option in own}
    plainly = state_of(stepped(name, build(name, options, groups=True)))
    for form in ("numpy", "text"):
        given = {option: given_as(form, value) for option, value in options.items()}
        assert_same(state_of(stepped(name, build(name, given, groups=True))), plainly, form)


def test_the_table_reaches_every_number():
    """A new option without a number as its default has to be put into MORE."""
    reached = {option for name in NAMES for option in options_of(name)}
    wanted = {option for entry in ENTRIES for option in entry.numbers}
    keras = {"learning_rate", "beta_1", "beta_2", "epsilon", "weight_decay_rate", "eps_scale"}
    others = {"clipvalue", "global_clipnorm"}  # excluded by clipnorm
    assert wanted - keras - others <= reached, sorted(wanted - reached)


@pytest.mark.parametrize(
    ("option", "value", "stored"),
    [
        ("betas", Listed(["0.8", np.float32(0.5)]), (0.8, 0.5)),
        ("betas", np.array([0.8, 0.99]), (0.8, 0.99)),
        ("betas", torch.tensor([0.5, 0.75]), (0.5, 0.75)),
        ("lr", "1e-6", 1e-6),
        ("lr", 1, 1.0),
        ("lr", torch.tensor(2), 2.0),  # a tensor of whole numbers could not hold what a schedule writes
        ("lr", np.array(0.5), 0.5),
        ("weight_decay", " 1E-2 ", 0.01),
        ("master_weights", "8", 8),
        ("master_weights", np.int64(16), 16),
        ("state_dtype", np.str_("bfloat16"), "bfloat16"),
    ],
)
def test_what_is_stored(option, value, stored):
    optimizer = hfoptim.Adam(named().values(), **{option: value})
    for found in (optimizer.defaults[option], optimizer.param_groups[0][option]):
        assert found == stored
        assert type(found) is type(stored)


def test_a_tensor_learning_rate_stays_the_tensor_it_is():
    lr = torch.tensor(0.1)
    optimizer = hfoptim.AdamW([{"params": list(named().values())}], lr=lr)
    assert optimizer.param_groups[0]["lr"] is lr
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    stepped("adamw", optimizer, 1)
    schedule.step()
    assert lr.item() == pytest.approx(0.05)


def test_torchs_dictionary_of_a_group_stays_the_callers():
    group = {"params": list(named().values()), "lr": np.float64(0.25)}
    optimizer = hfoptim.Lion([group])
    assert optimizer.param_groups[0] is group
    assert type(group["lr"]) is float


# -- text ------------------------------------------------------------------------------------------------------------


def test_text_that_is_no_number_is_refused_by_name_and_value():
    params = list(named().values())
    for options, said in (
        ({"lr": "fast"}, "lr='fast' is a str, expected a number"),
        ({"lr": "1e-3x"}, "lr='1e-3x'"),
        ({"betas": ("0.9", "most")}, r"betas\[1\]='most'"),
        ({"betas": "(0.9, 0.98)"}, "betas="),  # a literal is read where text is all there is: optim_args
        ({"foreach": "False"}, "foreach='False'"),
        ({"maximize": "true"}, "maximize='true'"),
    ):
        with pytest.raises(TypeError, match=said):
            hfoptim.Adam(params, **options)
    for options, said in (
        ({"lr": "nan"}, "lr='nan' is out of range"),
        ({"lr": "-1"}, "lr='-1' is out of range"),
        ({"betas": ("0.9", "1.0")}, r"betas\[1\]='1.0' is out of range"),
    ):
        with pytest.raises(ValueError, match=said):
            hfoptim.Adam(params, **options)
    with pytest.raises(ValueError, match=r"ns_steps='2\.5' is not a whole number"):
        hfoptim.Muon(named().items(), ns_steps="2.5")


@pytest.mark.parametrize(
    ("text", "number"), [("1e-6", 1e-6), ("300", 300), ("+2.", 2.0), ("1_000", 1000), ("inf", math.inf)]
)
def test_what_text_stands_for(text, number):
    assert plain(text) == number
    assert type(plain(text)) is type(number)
    for more in (text + " steps", f"({text})", text + ",", ""):
        assert plain(more) == more


def test_text_in_factories_patterns_and_wrappers():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))
    ours = hfoptim.create_optimizer_v2(
        model,
        "sgd",
        lr="1e-2",
        weight_decay="0.1",
        momentum="0.8",
        param_options={"2.*": {"lr": "1e-3"}, "0.bias": {"lr_scale": "0.5"}},
    )
    plainly = hfoptim.create_optimizer_v2(
        model,
        "sgd",
        lr=1e-2,
        weight_decay=0.1,
        momentum=0.8,
        param_options={"2.*": {"lr": 1e-3}, "0.bias": {"lr_scale": 0.5}},
    )
    assert ours.state_dict() == plainly.state_dict()
    assert_plain(ours.state_dict())
    # No weight decay is no weight decay: the text "0" is true.
    assert len(hfoptim.create_optimizer_v2(model, "sgd", weight_decay="0").param_groups) == 1
    muon = hfoptim.create_optimizer_v2(model, "lookahead_muon", lookahead_k="3", lookahead_alpha=np.float64(0.25))
    assert {(g["lookahead_k"], g["lookahead_alpha"]) for g in muon.param_groups} == {(3, 0.25)}
    assert_plain(muon.own)
    assert hfoptim.SAM(model.parameters(), "sgd", rho="0.1", lr="0.1").param_groups[0]["rho"] == 0.1
    groups = hfoptim.param_groups.param_groups_options(model, lr="0.1", weight_decay="0.01", head_lr=None)
    assert {group["lr"] for group in groups} == {0.1}
    optimizer, schedule = hfoptim.create_optimizer(
        model, "1e-3", "10", "2", min_lr_ratio="0.1", weight_decay_rate="0.01", power="1.0"
    )
    assert schedule.lr_at(10) == pytest.approx([1e-4] * len(optimizer.param_groups))


# -- what somebody writes into the groups later ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "lookahead", "combined", "around torch"])
def test_foreign_values_written_into_a_group_are_saved_as_plain_ones(kind):
    params = named()
    if kind == "plain":
        optimizer = hfoptim.AdamW(params.items())
    elif kind == "lookahead":
        optimizer = hfoptim.Lookahead(hfoptim.AdamW(params.items()))
    elif kind == "around torch":
        optimizer = hfoptim.Lookahead(torch.optim.AdamW(params.values(), lr=np.float64(0.1), betas=Listed([0.5, 0.9])))
    else:
        first, *rest = params.values()
        optimizer = hfoptim.CombinedOptimizer([hfoptim.Lion(rest), torch.optim.SGD([first], lr=np.float64(0.1))])
    for group in optimizer.param_groups:
        group["lr"] = np.float64(0.5)  # what schedulers and sweeps do
        group["betas"] = Listed([np.float32(0.5), 0.9])
        group["mine"] = {"sizes": np.arange(2), "on": np.True_, "name": np.str_("a")}
    before = [dict(group) for group in optimizer.param_groups]
    state = saved_and_read(optimizer.state_dict())
    assert_plain(state["param_groups"])
    for group in state["param_groups"]:
        assert (group["lr"], group["betas"]) == (0.5, (0.5, 0.9))
        assert group["mine"] == {"sizes": (0, 1), "on": True, "name": "a"}
    # The run goes on with what it has.
    assert [group["betas"] is old["betas"] for group, old in zip(optimizer.param_groups, before, strict=True)]
    stepped("adamw", optimizer, 1)


def test_a_checkpoint_that_holds_foreign_values_is_loaded_as_plain_ones():
    """Written before the values were kept clean, and read with ``weights_only=False``."""
    saved = stepped("adamw", build("adamw", {})).state_dict()
    saved["param_groups"][0].update(
        lr=np.float64(0.5), betas=Listed([0.5, np.float64(0.9)]), initial_lr=np.float64(1.0)
    )
    optimizer = build("adamw", {})
    optimizer.load_state_dict(saved)
    assert type(optimizer.param_groups[0]["lr"]) is float
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.9)
    assert_plain(saved_and_read(optimizer.state_dict())["param_groups"])


def test_the_schedule_of_adafactors_own_steps_keeps_plain_numbers():
    params = named()
    optimizer = hfoptim.Adafactor(params.values())
    schedule = hfoptim.AdafactorSchedule(optimizer, initial_lr=np.float64(0.25))
    assert_plain(saved_and_read(schedule.state_dict()))
    assert schedule.get_last_lr() == [0.25]
    stepped("adafactor", optimizer, 1)
    schedule.step()
    assert_plain(saved_and_read(schedule.state_dict()))


def test_portable_leaves_what_is_plain():
    value = {"a": [1, 2.0, None, "x", True], "b": (1, (2,)), "c": torch.ones(2)}
    assert portable(value) == value
    assert portable(value)["c"] is value["c"]


def test_no_step_cleans_anything(monkeypatch):
    optimizer = build("adamw", {})
    monkeypatch.setattr(type(optimizer), "check_group", lambda *_: pytest.fail("checked in a step"))
    monkeypatch.setattr("hfoptim.engine.checks.plain", lambda *_: pytest.fail("read in a step"))
    monkeypatch.setattr("hfoptim.engine.checks.portable", lambda *_: pytest.fail("cleaned in a step"))
    stepped("adamw", optimizer, 3)


# -- older checkpoints -------------------------------------------------------------------------------------------------

IDENTITY = {"lr", "betas", "eps", "weight_decay", "momentum", "rank"}


def without(state_dict, option):
    groups = [{key: value for key, value in group.items() if key != option} for group in state_dict["param_groups"]]
    return {**state_dict, "param_groups": groups}


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "stepped"])
@every_kind_of_entry
def test_an_option_that_a_state_dict_of_ours_lacks_has_its_default(entry, fresh):
    """Whatever option is added to a class, checkpoints from before it load, and go on as they would have then."""
    params = parameters(("matrix", "vector"))
    optimizer = entry.cls(list(params.items()))
    if not fresh:
        feed(params, 1)
        optimizer.step() if entry.name != "adahessian" else None
    saved = saved_and_read(optimizer.state_dict())
    own = [option for option in optimizer.defaults if option not in {*IDENTITY, "differentiable", *ENGINE_DEFAULTS}]
    for option in own:
        again = entry.cls(list(parameters(("matrix", "vector")).items()))
        again.load_state_dict(without(saved, option))
        assert again.param_groups[0][option] == optimizer.defaults[option], option
    for option in IDENTITY & optimizer.defaults.keys() - entry.cls.absent_from_peers:
        with pytest.raises(ValueError, match=f"not one of {entry.cls.__name__}: .*lacks '{option}'"):
            optimizer.load_state_dict(without(saved, option))


def test_the_default_is_that_of_the_class_not_of_the_run_that_loads():
    def made(**options):
        return hfoptim.Adan(list(parameters(("matrix",)).items()), weight_decay=0.1, **options)

    saved = without(made().state_dict(), "decouple_lr")  # from before there was such an option
    resumed = made(decouple_lr=True, max_lr=0.5)
    resumed.load_state_dict(saved)
    assert resumed.param_groups[0]["decouple_lr"] is False
    # A peer's has never had it: there the run decides, as ever.
    theirs = {key: value for key, value in saved["param_groups"][0].items() if key not in ENGINE_DEFAULTS}
    theirs.pop("max_lr")
    resumed = made(decouple_lr=True, max_lr=0.5)
    resumed.load_state_dict({**saved, "param_groups": [theirs]})
    assert resumed.param_groups[0]["decouple_lr"] is True


def test_a_bare_state_dict_of_nobody_known_is_held_to_every_option():
    """Adam's moments under Adam's names: without ADOPT's own options it is not told apart from Adam's."""
    params = parameters(("matrix",))
    adam = torch.optim.Adam(params.values())
    feed(params, 1)
    adam.step()
    saved = adam.state_dict()
    saved["param_groups"][0] = {
        k: saved["param_groups"][0][k] for k in ("params", "lr", "betas", "eps", "weight_decay")
    }
    with pytest.raises(ValueError, match="not one of Adopt: group 0 lacks 'clip_exp', lacks 'decoupled'"):
        hfoptim.Adopt(list(parameters(("matrix",)).values())).load_state_dict(saved)


def test_adopt_asks_for_no_capturable():
    params = parameters(("matrix",))
    saved = hfoptim.Adopt(params.values()).state_dict()
    assert "capturable" not in saved["param_groups"][0]
    hfoptim.Adopt(params.values()).load_state_dict(saved)
    old = {**saved, "param_groups": [{**saved["param_groups"][0], "capturable": False, "differentiable": False}]}
    hfoptim.Adopt(params.values()).load_state_dict(old)
