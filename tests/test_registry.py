"""Names to optimizers: lookup, listing, creation."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect

import peers
import pytest
import torch
from torch import nn

import hfoptim
from hfoptim import registry
from hfoptim.engine import RuleOptimizer, unwrap_all

NAMES = hfoptim.list_optimizers()
# Those with the engine's options, weight decay and dense gradients.
OURS = [name for name in NAMES if name not in ("bsam", "lbfgs", "sparse_adam")]


def tiny():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2))


def train(model, optimizer, steps, before_step=None):
    for t in range(steps):
        g = torch.Generator().manual_seed(t)
        if before_step is not None:
            before_step(t)
        for param in model.parameters():
            noise = torch.randn(param.shape, generator=g, dtype=torch.float64).to(param.dtype)
            param.grad = noise + 0.0 * param  # with a graph, for those that differentiate it
        for inner in unwrap_all(optimizer, RuleOptimizer):
            inner.add_loss(1.0)
        optimizer.step()


# -- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        ("adamw", "adamw"),
        ("AdamW", "adamw"),
        ("ADAM_W", "adamw"),
        ("adam-w", "adamw"),
        ("AdamWeightDecay", "adam_weight_decay"),
        ("adam-weight-decay", "adam_weight_decay"),
        ("ADAM_WEIGHT_DECAY", "adam_weight_decay"),
        ("Lion", "lion"),
        ("AdaFactor", "adafactor"),
        ("SGD", "sgd"),
    ],
)
def test_names_work_in_any_case_and_with_either_separator(given, canonical):
    assert registry.canonical_name(given) == canonical
    assert hfoptim.get_optimizer_info(given) is hfoptim.get_optimizer_info(canonical)
    assert hfoptim.get_optimizer_class(given, bind_defaults=False) is hfoptim.get_optimizer_info(canonical).opt_class


@pytest.mark.parametrize("name", NAMES)
def test_every_listed_name_can_be_used(name):
    assert registry.canonical_name(name) == name
    for spelling in (name.upper(), name.replace("_", "-"), name.title()):
        assert registry.canonical_name(spelling) == name
    optimizer = hfoptim.create_optimizer_v2(tiny(), name, lr=1e-3)
    assert type(optimizer) is hfoptim.get_optimizer_info(name).opt_class


@pytest.mark.parametrize(
    ("given", "closest"), [("adamww", "adamw"), ("Loin", "lion"), ("ada-factory", "adafactor"), ("sgdd", "sgd")]
)
@pytest.mark.parametrize(
    "use",
    [
        registry.canonical_name,
        hfoptim.get_optimizer_info,
        hfoptim.get_optimizer_class,
        lambda name: hfoptim.create_optimizer_v2(tiny(), name),
        lambda name: registry.check_options(name, {}),
    ],
    ids=["canonical_name", "info", "class", "create", "check_options"],
)
def test_an_unknown_name_is_refused_with_the_closest_ones(use, given, closest):
    with pytest.raises(ValueError, match=f"unknown optimizer '{given}'.*'{closest}'"):
        use(given)


def test_a_name_like_no_other_gets_the_whole_list():
    with pytest.raises(ValueError, match=r"known are.*adafactor.*sgd"):
        hfoptim.get_optimizer_info("zzzzqqqq")
    with pytest.raises((TypeError, ValueError), match="None"):
        hfoptim.get_optimizer_info(None)
    with pytest.raises(ValueError, match="''"):
        hfoptim.get_optimizer_info("")


# -- listing ---------------------------------------------------------------------------------------------------------


def test_lists_all_names_sorted():
    assert sorted(NAMES) == NAMES
    assert len(set(NAMES)) == len(NAMES)
    assert {"adafactor", "adam", "adam_weight_decay", "adamw", "lion", "sgd"} <= set(NAMES)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("adam_w*", {"adam_weight_decay"}),
        ("*factor", {"adafactor", "cadafactor", "galore_adafactor"}),
        ("li?n", {"lion"}),
        ("[ls][ig][od]", {"sgd"}),
        ("ADAM-W*", {"adam_weight_decay"}),
        (["li?n", "adam_w*"], {"lion", "adam_weight_decay"}),
        ("nothing*", set()),
        ([], set(NAMES)),
        ("", set(NAMES)),
    ],
)
def test_lists_by_wildcards(pattern, expected):
    listed = hfoptim.list_optimizers(pattern)
    assert set(listed) == expected
    assert listed == sorted(listed)


def test_a_pattern_without_wildcards_finds_what_contains_it():
    assert hfoptim.list_optimizers("weight") == ["adam_weight_decay"]
    assert set(hfoptim.list_optimizers("adam")) == {name for name in NAMES if "adam" in name}


def test_exclusions():
    assert hfoptim.list_optimizers(["li?n", "adam_w*"], exclude_filters=["*decay"]) == ["lion"]
    assert set(hfoptim.list_optimizers(exclude_filters=["ada*", "s*"])) == {
        name for name in NAMES if not name.startswith(("ada", "s"))
    }


def test_descriptions():
    pairs = hfoptim.list_optimizers("adam*", exclude_filters=["adam"], with_description=True)
    assert all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs)
    for name, description in hfoptim.list_optimizers(with_description=True):
        assert description == hfoptim.get_optimizer_info(name).description
        assert len(description) > 10
        assert "\n" not in description


@pytest.mark.parametrize("name", NAMES)
def test_infos_are_complete_and_immutable(name):
    info = hfoptim.get_optimizer_info(name)
    assert info.name == name
    assert issubclass(info.opt_class, torch.optim.Optimizer)
    assert info.source.startswith("https://")
    registry.check_options(name, info.defaults)
    for alias in info.aliases:
        assert hfoptim.get_optimizer_info(alias) is info
    with pytest.raises(dataclasses.FrozenInstanceError):
        info.name = "other"


# -- classes ---------------------------------------------------------------------------------------------------------


def test_bound_defaults():
    plain = hfoptim.get_optimizer_class("sgd", bind_defaults=False)
    assert plain is hfoptim.SGD
    bound = hfoptim.get_optimizer_class("sgd")
    assert isinstance(bound, functools.partial)
    assert bound.func is hfoptim.SGD
    params = [nn.Parameter(torch.ones(2))]
    assert bound(params, lr=0.1).defaults["nesterov"] is True  # as timm's "sgd"
    assert bound(params, lr=0.1, nesterov=False).defaults["nesterov"] is False
    assert plain(params, lr=0.1).defaults["nesterov"] is False
    assert hfoptim.get_optimizer_class("momentum")(params).defaults["nesterov"] is False
    assert hfoptim.get_optimizer_class("momentum")(params).defaults["momentum"] == 0.9
    assert hfoptim.get_optimizer_class("nesterov")(params).defaults["nesterov"] is True


# What a user of torch expects of a name, unless a document says otherwise: "sgd" has Nesterov's momentum, as timm's.
TORCHS = {
    **{"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "adagrad": torch.optim.Adagrad},
    **{"adadelta": torch.optim.Adadelta, "adamax": torch.optim.Adamax, "nadam": torch.optim.NAdam},
    **{"radam": torch.optim.RAdam, "rmsprop": torch.optim.RMSprop},
}


@pytest.mark.parametrize("name", TORCHS)
def test_a_name_of_torch_has_the_defaults_and_the_numbers_of_torch(name):
    model, other = tiny().double(), tiny().double()
    ours, theirs = hfoptim.get_optimizer_class(name)(model.parameters()), TORCHS[name](other.parameters())
    own = ours.defaults.keys() & theirs.defaults.keys() - {"foreach", "fused"}
    assert {option: ours.defaults[option] for option in own} == {option: theirs.defaults[option] for option in own}
    assert theirs.defaults.keys() - own <= {
        "foreach",
        "fused",
        "capturable",
        "differentiable",
        "decoupled_weight_decay",
    }
    start = [param.detach().clone() for param in model.parameters()]
    train(model, ours, 20)
    train(other, theirs, 20)
    for mine, their, begin in zip(model.parameters(), other.parameters(), start, strict=True):
        moved = (their - begin).abs().max()
        assert moved > 0
        assert (mine - their).abs().max() <= (1e-6 if name == "nadam" else 1e-11) * moved  # torch keeps a float32


def test_adamw_is_torchs_and_adamw_hf_is_the_class_of_that_name():
    assert hfoptim.get_optimizer_class("adamw_hf") is hfoptim.AdamW
    assert hfoptim.get_optimizer_class("AdamW", bind_defaults=False) is hfoptim.Adam
    assert "torch.optim.AdamW" in hfoptim.get_optimizer_info("adamw").description
    assert "adamw_hf" in hfoptim.get_optimizer_info("adamw").description
    with pytest.raises(ValueError, match="adamw has no option 'correct_bias'"):
        hfoptim.create_optimizer_v2(tiny(), "adamw", correct_bias=False)


def test_bound_defaults_cannot_leak_into_the_registry():
    hfoptim.get_optimizer_class("momentum").keywords.clear()
    assert hfoptim.get_optimizer_class("momentum").keywords["momentum"] == 0.9


@pytest.mark.parametrize("name", OURS)
def test_options_are_checked_against_the_signature(name):
    own = list(inspect.signature(hfoptim.get_optimizer_info(name).opt_class).parameters)[1:-1]
    registry.check_options(name, dict.fromkeys([*own, "maximize", "foreach", "fused", "caution", "kahan_sum"]))
    with pytest.raises(ValueError, match=r"'wieght_decay'.*'weight_decay"):
        registry.check_options(name, {"wieght_decay": 0.1})
    with pytest.raises(ValueError, match="'params'"):
        registry.check_options(name, {"params": []})
    with pytest.raises(ValueError, match="'options'"):
        registry.check_options(name, {"options": {}})


# -- create_optimizer_v2 ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OURS)
def test_weight_decay_goes_to_matrices_only(name):
    model = tiny()
    optimizer = hfoptim.create_optimizer_v2(model, name, lr=1e-3, weight_decay=0.1)
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert {n: decay[id(p)] for n, p in model.named_parameters()} == {
        "0.weight": 0.1,
        "0.bias": 0.0,
        "1.weight": 0.0,
        "1.bias": 0.0,
        "2.weight": 0.1,
        "2.bias": 0.0,
    }
    assert all(group["lr"] == 1e-3 for group in optimizer.param_groups)


def test_all_parameters_are_decayed_when_nothing_is_filtered():
    optimizer = hfoptim.create_optimizer_v2(tiny(), "adamw", weight_decay=0.1, filter_bias_and_bn=False)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1]
    assert len(optimizer.param_groups[0]["params"]) == 6
    optimizer = hfoptim.create_optimizer_v2(tiny(), "adamw")
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.0]


def test_parameters_are_taken_as_they_are():
    model = tiny()
    optimizer = hfoptim.create_optimizer_v2(model.parameters(), "adamw", weight_decay=0.1)
    assert [(len(g["params"]), g["weight_decay"]) for g in optimizer.param_groups] == [(6, 0.1)]
    optimizer = hfoptim.create_optimizer_v2(
        [{"params": model[0].parameters(), "lr": 0.5}, {"params": model[2].parameters(), "weight_decay": 0.0}],
        "lion",
        lr=0.1,
        weight_decay=0.1,
    )
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [(0.5, 0.1), (0.1, 0.0)]
    optimizer = hfoptim.create_optimizer_v2(list(model.named_parameters()), "lion")
    assert optimizer.param_groups[0]["param_names"] == [name for name, _ in model.named_parameters()]


def test_a_param_group_fn_is_used_alone():
    model = tiny()
    seen = []

    def groups(given):
        seen.append(given)
        return [{"params": given[0].parameters(), "lr": 1e-4}, {"params": given[2].parameters(), "weight_decay": 0.3}]

    optimizer = hfoptim.create_optimizer_v2(
        model, "adamw", lr=1e-3, weight_decay=0.1, layer_decay=0.5, param_group_fn=groups
    )
    assert seen == [model]
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [(1e-4, 0.1), (1e-3, 0.3)]


def layered():
    class Blocks(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(5, 4)
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
            self.norm = nn.LayerNorm(4)

    return Blocks()


@pytest.mark.parametrize("lr", [1e-2, None])
@pytest.mark.parametrize("name", OURS)
def test_layer_decay_shrinks_the_learning_rates_downwards(name, lr):
    model = layered()
    if name in ("adafactor", "cadafactor") and lr is None:
        # Without an lr Adafactor sets its own step sizes: nothing to scale, which must not pass in silence.
        with pytest.raises(ValueError, match=r"lr|layer_decay"):
            hfoptim.create_optimizer_v2(model, name, lr=lr, layer_decay=0.5)
        return
    optimizer = hfoptim.create_optimizer_v2(model, name, lr=lr, layer_decay=0.5, weight_decay=0.1)
    top = lr if lr is not None else hfoptim.create_optimizer_v2(tiny(), name).defaults["lr"]
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    depth = {"embed": 0, "layers.0": 1, "layers.1": 2, "layers.2": 3, "norm": 4}
    for parameter, param in model.named_parameters():
        part = parameter.rsplit(".", 1)[0]
        assert rates[id(param)] == pytest.approx(top * 0.5 ** (4 - depth[part])), parameter
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert {n for n, p in model.named_parameters() if decay[id(p)]} == {
        "embed.weight",
        "layers.0.weight",
        "layers.1.weight",
        "layers.2.weight",
    }


@pytest.mark.parametrize("name", NAMES)
def test_momentum_is_given_to_optimizers_that_have_one(name):
    optimizer = hfoptim.create_optimizer_v2(tiny(), name, lr=1e-3, momentum=0.77)
    if "momentum" in inspect.signature(type(optimizer)).parameters:
        assert optimizer.defaults["momentum"] == 0.77
        own = hfoptim.get_optimizer_class(name)([nn.Parameter(torch.ones(2, 2))])
        assert hfoptim.create_optimizer_v2(tiny(), name, lr=1e-3).defaults["momentum"] == own.defaults["momentum"]
    else:
        assert "momentum" not in optimizer.defaults


@pytest.mark.parametrize("name", OURS)
def test_without_a_learning_rate_the_optimizers_own_default_holds(name):
    optimizer = hfoptim.create_optimizer_v2(tiny(), name)
    own = hfoptim.get_optimizer_class(name)([nn.Parameter(torch.ones(2, 2))])
    assert optimizer.defaults == {**own.defaults, "weight_decay": 0.0}
    model = tiny()
    start = copy.deepcopy(model)
    train(model, hfoptim.create_optimizer_v2(model, name), 11)  # AdaShift's first ten only look
    moved = [not torch.equal(p, q) for p, q in zip(model.parameters(), start.parameters(), strict=True)]
    assert all(moved) or name == "sara"  # moves what begins near zero


def test_a_learning_rate_given_to_adafactor_is_used():
    optimizer = hfoptim.create_optimizer_v2(tiny(), "adafactor", lr=1e-3)
    assert (optimizer.defaults["lr"], optimizer.defaults["relative_step"]) == (1e-3, False)
    optimizer = hfoptim.create_optimizer_v2(tiny(), "adafactor")
    assert (optimizer.defaults["lr"], optimizer.defaults["relative_step"]) == (None, True)
    with pytest.raises(ValueError, match="exclude each other"):
        hfoptim.create_optimizer_v2(tiny(), "adafactor", lr=1e-3, relative_step=True)


def test_further_options_reach_the_optimizer():
    optimizer = hfoptim.create_optimizer_v2(tiny(), "adamw", betas=(0.8, 0.9), eps=1e-4, foreach=False, maximize=True)
    wanted = {"betas": (0.8, 0.9), "eps": 1e-4, "foreach": False, "maximize": True}
    assert {k: optimizer.defaults[k] for k in wanted} == wanted
    assert all(group[k] == v for group in optimizer.param_groups for k, v in wanted.items())
    optimizer = hfoptim.create_optimizer_v2(tiny(), "sgd", nesterov=False, dampening=0.1)
    assert (optimizer.defaults["nesterov"], optimizer.defaults["dampening"]) == (False, 0.1)


def test_what_timms_scripts_give_to_all_optimizers_is_left_out_with_a_warning():
    with pytest.warns(UserWarning, match="lion has no eps, so eps=1e-08 is left out"):
        assert "eps" not in hfoptim.create_optimizer_v2(tiny(), "lion", eps=1e-8).defaults
    with pytest.warns(UserWarning, match="sgd has no betas"):
        hfoptim.create_optimizer_v2(tiny(), "sgd", betas=(0.9, 0.99))


_BETAS = {"adafactor": 1, "adam_weight_decay": 2, "adan": 3, "sgd": 0}


def test_betas_of_one_name_take_the_place_of_what_it_binds():
    optimizer = hfoptim.create_optimizer_v2(tiny(), "cadafactor", lr=1e-3, betas=(0.5,))
    assert optimizer.defaults["beta1"] == 0.5
    assert [hfoptim.get_optimizer_info(name).num_betas for name in _BETAS] == [*_BETAS.values()]


def test_unknown_options_and_bad_values_are_refused():
    with pytest.raises(ValueError, match=r"lion has no option 'betta'.*'betas'"):
        hfoptim.create_optimizer_v2(tiny(), "lion", betta=(0.9, 0.99))
    with pytest.raises(ValueError, match="has no option 'momentum_dtype'"):
        hfoptim.create_optimizer_v2(tiny(), "lion", momentum_dtype="float32")
    with pytest.raises(ValueError, match=r"lr=-1\.0"):
        hfoptim.create_optimizer_v2(tiny(), "lion", lr=-1.0)
    with pytest.raises(ValueError, match=r"weight_decay=-0\.1"):
        hfoptim.create_optimizer_v2(tiny(), "lion", weight_decay=-0.1)
    for layer_decay in (0.0, -0.5, 1.5, float("nan")):
        with pytest.raises(ValueError, match="layer_decay"):
            hfoptim.create_optimizer_v2(layered(), "lion", layer_decay=layer_decay)
    with pytest.raises(ValueError, match="empty parameter list"):
        hfoptim.create_optimizer_v2([], "lion")
    frozen = tiny().requires_grad_(False)
    with pytest.raises(ValueError, match="param"):
        hfoptim.create_optimizer_v2(frozen, "lion")
    with pytest.raises(ValueError, match="param"):
        hfoptim.create_optimizer_v2(frozen, "lion", weight_decay=0.1)


def test_frozen_parameters_are_left_out():
    model = tiny()
    model[0].requires_grad_(False)
    for options in ({}, {"weight_decay": 0.1}, {"layer_decay": 0.5}):
        optimizer = hfoptim.create_optimizer_v2(model, "lion", **options)
        held = {id(p) for g in optimizer.param_groups for p in g["params"]}
        assert held == {id(p) for p in model.parameters() if p.requires_grad}, options


# -- create_optimizer --------------------------------------------------------------------------------------------------


def lr_by_hand(t, lr, total, warmup, ratio=0.0, power=1.0):
    if t < warmup:
        return lr * t / warmup
    done = min(t - warmup, total - warmup) / (total - warmup) if total > warmup else 1.0
    return (lr - lr * ratio) * (1 - done) ** power + lr * ratio


@pytest.mark.parametrize(("warmup", "ratio", "power"), [(3, 0.0, 1.0), (0, 0.1, 2.0), (5, 0.5, 0.5), (10, 0.1, 1.0)])
def test_the_schedule_warms_up_and_decays(warmup, ratio, power):
    optimizer, schedule = hfoptim.create_optimizer(tiny(), 1e-2, 10, warmup, min_lr_ratio=ratio, power=power)
    assert isinstance(optimizer, hfoptim.AdamWeightDecay)
    for t in range(15):
        expected = lr_by_hand(t, 1e-2, 10, warmup, ratio, power)
        assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([expected] * len(optimizer.param_groups))
        assert schedule.get_last_lr() == pytest.approx([expected] * len(optimizer.param_groups))
        optimizer.step()
        schedule.step()


def test_the_schedule_is_keras():
    keras = pytest.importorskip("keras")
    theirs = keras.optimizers.schedules.PolynomialDecay(1e-2, 7, end_learning_rate=1e-3, power=2.0)
    optimizer, schedule = hfoptim.create_optimizer(tiny(), 1e-2, 10, 3, min_lr_ratio=0.1, power=2.0)
    for t in range(13):
        if t >= 3:
            assert optimizer.param_groups[0]["lr"] == pytest.approx(float(theirs(t - 3)), rel=1e-6)
        optimizer.step()
        schedule.step()


class Names(nn.Module):
    """Parameters with the names of PyTorch models."""

    def __init__(self):
        super().__init__()
        for name in ("encoder", "decoder"):
            block = nn.Module()
            block.dense = nn.Linear(3, 3)
            block.LayerNorm = nn.LayerNorm(3)
            self.add_module(name, block)
        self.ln_f = nn.LayerNorm(3)
        self.layer_norm = nn.LayerNorm(3)
        self.final_norm = nn.LayerNorm(3)
        self.input_layernorm = nn.LayerNorm(3)
        self.lm_head = nn.Linear(3, 4)


def test_biases_and_norms_are_not_decayed():
    model = Names()
    optimizer, _ = hfoptim.create_optimizer(model, 1e-2, 10, 2, weight_decay_rate=0.1)
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    decayed = {name for name, p in model.named_parameters() if decay[id(p)]}
    assert decayed == {"encoder.dense.weight", "decoder.dense.weight", "lm_head.weight"}
    assert len(decay) == len(list(model.parameters()))
    optimizer, _ = hfoptim.create_optimizer(model, 1e-2, 10, 2, weight_decay_rate=0.1, include_in_weight_decay=["bias"])
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert {n for n, p in model.named_parameters() if decay[id(p)]} == decayed | {
        n for n, _ in model.named_parameters() if "bias" in n
    }


@pytest.mark.parametrize("clip", [{}, {"adam_clipnorm": 0.5}, {"adam_global_clipnorm": 0.5}], ids=str)
def test_steps_follow_keras_adam_under_the_schedule(clip):
    model = Names().double()
    twin = copy.deepcopy(model)
    optimizer, schedule = hfoptim.create_optimizer(
        model, 1e-2, 12, 3, weight_decay_rate=0.25, adam_beta1=0.8, adam_beta2=0.99, adam_epsilon=1e-6, **clip
    )
    try:
        theirs = peers.KerasOptimizer(
            list(twin.named_parameters()),
            lambda t: lr_by_hand(t, 1e-2, 12, 3),
            lambda name: "dense.weight" in name or name == "lm_head.weight",
            weight_decay=0.25,
            beta_1=0.8,
            beta_2=0.99,
            epsilon=1e-6,
            **{name.removeprefix("adam_"): value for name, value in clip.items()},
        )
    except peers.MissingPeer as missing:
        pytest.skip(str(missing))
    start = [p.detach().clone() for p in model.parameters()]
    for t in range(15):
        train_once = torch.Generator().manual_seed(t)
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            p.grad = torch.randn(p.shape, generator=train_once, dtype=torch.float64)
            q.grad = p.grad.clone()
        optimizer.step()
        schedule.step()
        theirs.step()
        for p, q, first in zip(model.parameters(), twin.parameters(), start, strict=True):
            difference, moved = (p - q).abs().max(), (q - first).abs().max()
            assert difference <= 1e-6 * moved, t
            assert moved > 0 or t == 0


def test_numbers_reach_the_optimizer():
    optimizer, _ = hfoptim.create_optimizer(
        tiny(), 1e-2, 10, 2, adam_beta1=0.8, adam_beta2=0.9, adam_epsilon=1e-5, adam_clipnorm=0.3
    )
    group = optimizer.param_groups[0]
    assert (group["betas"], group["eps"], group["clipnorm"]) == ((0.8, 0.9), 1e-5, 0.3)
    assert all(g["weight_decay"] == 0.0 for g in optimizer.param_groups)


def test_resuming_repeats_the_rest():
    def start():
        model = tiny()
        return model, *hfoptim.create_optimizer(model, 1e-2, 10, 3, weight_decay_rate=0.1)

    def go_on(model, optimizer, schedule, steps):
        trace = []
        for t in steps:
            g = torch.Generator().manual_seed(t)
            for param in model.parameters():
                param.grad = torch.randn(param.shape, generator=g)
            trace.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return trace

    whole, first, again = start(), start(), start()
    trace = go_on(*whole, range(8))
    go_on(*first, range(4))
    for target, source in zip(again, first, strict=True):
        target.load_state_dict(copy.deepcopy(source.state_dict()))
    assert go_on(*again, range(4, 8)) == trace[4:]
    assert all(torch.equal(p, q) for p, q in zip(again[0].parameters(), whole[0].parameters(), strict=True))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"num_warmup_steps": 11}, "num_warmup_steps=11"),
        ({"num_warmup_steps": -1}, "num_warmup_steps|warmup_steps"),
        ({"num_train_steps": -1, "num_warmup_steps": -2}, "num_train_steps|steps"),
        ({"init_lr": -1e-3}, "-0.001"),
        ({"init_lr": float("nan")}, "nan"),
        ({"min_lr_ratio": -0.1}, "min_lr_ratio|end_learning_rate"),
        ({"power": 0.0}, "power"),
        ({"adam_beta1": 1.0}, "beta_1"),
        ({"adam_epsilon": -1.0}, "eps"),
        ({"weight_decay_rate": -0.1}, "weight_decay"),
        ({"adam_clipnorm": 1.0, "adam_global_clipnorm": 1.0}, "clipnorm"),
        ({"include_in_weight_decay": ["(unclosed"], "weight_decay_rate": 0.1}, "include_in_weight_decay"),
    ],
    ids=str,
)
def test_bad_input_is_refused(arguments, named):
    usual = {"init_lr": 1e-3, "num_train_steps": 10, "num_warmup_steps": 2}
    with pytest.raises((TypeError, ValueError), match=named):
        hfoptim.create_optimizer(tiny(), **{**usual, **arguments})


def test_weight_decay_needs_names():
    params = list(tiny().parameters())
    hfoptim.create_optimizer(params, 1e-3, 10, 2)
    with pytest.raises(ValueError, match="names"):
        hfoptim.create_optimizer(params, 1e-3, 10, 2, weight_decay_rate=0.1)
