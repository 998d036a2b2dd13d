"""What has a name of timm's has timm's contract: signatures, keys, order and plain parameters, group by group."""

from __future__ import annotations

import copy
import importlib
import inspect
import itertools
import logging
import os
import sys
from argparse import Namespace
from types import ModuleType

import numpy as np
import peers
import pytest
import torch
from test_grouping import Vit, bert, gpt2
from torch import nn

import hfoptim
import hfoptim.param_groups.timm
from hfoptim.param_groups.selection import decayed_names


class Timms(Vit):
    """With what timm's models say of themselves."""

    def group_matcher(self, coarse=False):
        blocks = [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))]
        return {"stem": r"^cls_token|pos_embed|patch_embed", "blocks": blocks}

    def no_weight_decay(self):
        return {"pos_embed", "cls_token", "blocks.1.mlp.weight"}


class Plain(nn.Module):
    """Without layers of its own, so that timm counts parameters."""

    def __init__(self, classifier="head"):
        super().__init__()
        self.body = nn.Sequential(*[nn.Linear(3, 3) for _ in range(8)])
        self.head = nn.Linear(3, 2)
        self.pretrained_cfg = {"classifier": classifier}


def frozen():
    model = Timms()
    model.patch_embed.requires_grad_(False)
    model.blocks[1].mlp.weight.requires_grad_(False)
    return model


MODELS = {
    **{"timm's": Timms, "frozen": frozen, "plain": Plain, "two heads": lambda: Plain(("head", "body.7"))},
    **{"no classifier": lambda: Plain(None), "tied": gpt2, "bert": bert},
}
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


@pytest.fixture(scope="module")
def theirs():
    """timm's factory. Its models want torchvision, of which nothing is used here."""
    if not peers.installed("timm"):
        pytest.skip("timm is not installed")
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "timm"}
    patch = pytest.MonkeyPatch()
    if "torchvision" not in sys.modules:
        for name in ("torchvision", "torchvision.ops", "torchvision.ops.misc"):
            patch.setitem(sys.modules, name, ModuleType(name))
        sys.modules["torchvision.ops.misc"].FrozenBatchNorm2d = nn.Identity
    try:
        for name in ("timm", "timm.models", "timm.optim"):
            bare = sys.modules[name] = ModuleType(name)
            bare.__path__ = [os.path.join(peers.BARE_FOLDER, *name.split("."))]
        manipulate = importlib.import_module("timm.models._manipulate")
        sys.modules["timm.models"].group_parameters = manipulate.group_parameters
        return importlib.import_module("timm.optim._optim_factory")
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "timm"]:
            del sys.modules[name]
        sys.modules.update(before)
        patch.undo()


def grouping(theirs, name):
    return theirs.param_groups_layer_decay.__globals__[name]


def listed(groups, model):
    """Groups with the names of their parameters in place of these."""
    names = {id(param): name for name, param in model.named_parameters()}
    return [
        [(key, [names[id(p)] for p in v] if key == "params" else v) for key, v in group.items()] for group in groups
    ]


def same_groups(ours, other, model, their_model):
    found, expected = listed(ours, model), listed(other, their_model)
    assert [dict(group) for group in found] == [dict(group) for group in expected]
    assert all(isinstance(param, nn.Parameter) for group in ours for param in group["params"])


@pytest.mark.parametrize("name", ["param_groups_weight_decay", "param_groups_layer_decay", "auto_group_layers"])
def test_signatures_are_timms(theirs, name):
    ours = inspect.signature(getattr(hfoptim, name)).parameters.values()
    other = inspect.signature(grouping(theirs, name)).parameters.values()
    positional = [(p.name, p.default) for p in ours if p.kind is not p.KEYWORD_ONLY]
    assert positional == [(p.name, p.default) for p in other]
    # What timm had before, and has no more.
    assert [p.name for p in ours if p.kind is p.KEYWORD_ONLY] == ["end_layer_decay"] * (
        name == "param_groups_layer_decay"
    )


def test_the_factorys_first_arguments_are_timms(theirs):
    ours = list(inspect.signature(hfoptim.create_optimizer_v2).parameters.values())
    other = [
        p for p in inspect.signature(theirs.create_optimizer_v2).parameters.values() if p.kind is not p.VAR_KEYWORD
    ]
    assert [p.name for p in ours[: len(other)]] == [p.name for p in other]
    differ = {p.name: q.default for p, q in zip(other, ours, strict=False) if p.default != q.default}
    assert differ == {"momentum": None}  # 0.9 where the optimizer's own is 0


@every_model
def test_groups_by_decay(theirs, make):
    lists = [(), ["blocks.*", "*.h.1.*"], {"pos_embed"}]
    fallbacks = [((), False), (("*head*", "*wte*"), False), (("*norm*",), True)]
    for decay, exclude, names, (fallback, joined) in [
        *(
            (0.05, True, lists[0], fallbacks[0]),
            (0.05, True, lists[1], fallbacks[1]),
            (0.05, False, lists[2], fallbacks[2]),
        ),
        *(
            (0.0, True, lists[1], fallbacks[2]),
            (None, True, lists[0], fallbacks[1]),
            (0.05, False, lists[1], fallbacks[0]),
        ),
    ]:
        model, other = make(), make()
        same_groups(
            hfoptim.param_groups_weight_decay(model, decay, exclude, names, fallback, joined),
            theirs.param_groups_weight_decay(other, decay, exclude, names, fallback, joined),
            *(model, other),
        )
    model, other = make(), make()
    groups = hfoptim.param_groups_weight_decay(model)
    same_groups(groups, theirs.param_groups_weight_decay(other), model, other)
    assert groups[0]["weight_decay"] == 0.0  # timm's order
    torch.optim.AdamW(groups, lr=1e-3)


@every_model
def test_groups_by_layer(theirs, make):
    options = [
        *({}, {"weight_decay": 0.1, "layer_decay": 0.5}, {"no_weight_decay_list": ["*mlp*", "pos_embed"]}),
        *({"weight_decay_exclude_1d": False}, {"min_scale": 0.3, "layer_decay": 0.5}, {"layer_decay": 1.0}),
        *({"fallback_list": ["*head*"]}, {"no_weight_decay_list": ["*mlp*"], "fallback_no_weight_decay": True}),
        *({"layer_decay": 0.5, "no_opt_scale": 0.2}, {"verbose": True}),
    ]
    for given in options:
        model, other = make(), make()
        same_groups(
            hfoptim.param_groups_layer_decay(model, **given),
            theirs.param_groups_layer_decay(other, **given),
            *(model, other),
        )
        trained = [param.requires_grad for param in model.parameters()]
        assert trained == [param.requires_grad for param in other.parameters()], given


@every_model
def test_layers_of_models_that_do_not_say_theirs(theirs, make):
    other = grouping(theirs, "auto_group_layers")
    for given in ((), (3,), (12, 4)):
        assert hfoptim.auto_group_layers(make(), *given) == other(make(), *given)


@every_model
@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_the_factorys_groups_are_timms(theirs, make, layer_decay):
    """The same parameters with the same decay, in the same order; learning rates come scaled."""
    if layer_decay and not hasattr(make(), "group_matcher"):
        pytest.skip("timm knows no layers of this model, and makes others")
    for decay, exclude, more in itertools.product((0.1, 0.0), (True, False), ({}, {"layer_decay_min_scale": 0.3})):
        model, other = make(), make()
        given = {"lr": 1e-3, "weight_decay": decay, "filter_bias_and_bn": exclude, "layer_decay": layer_decay, **more}
        ours = hfoptim.create_optimizer_v2(model, "adamw", **given).param_groups
        expected = theirs.create_optimizer_v2(other, "adamw", **given).param_groups
        names = {id(param): name for name, param in other.named_parameters()}
        for mine, group in zip(ours, expected, strict=True):
            assert mine["param_names"] == [names[id(param)] for param in group["params"]]
            assert mine["weight_decay"] == group["weight_decay"]
            assert mine["lr"] == pytest.approx(group["lr"] * group.get("lr_scale", 1.0))


def test_a_checkpoint_of_timms_factory_goes_on(theirs):
    torch.manual_seed(0)
    model = Timms()
    other = Timms()
    other.load_state_dict(model.state_dict())
    given = {"lr": 1e-2, "weight_decay": 0.1, "layer_decay": 0.5}
    ours = hfoptim.create_optimizer_v2(model, "adamw", eps=1e-8, **given)
    reference = theirs.create_optimizer_v2(other, "adamw", **given)
    for group in reference.param_groups:
        group["lr"] *= group["lr_scale"]  # as timm's schedules do
    for step in range(3):
        for one, two in zip(model.parameters(), other.parameters(), strict=True):
            one.grad = torch.randn(one.shape, generator=torch.Generator().manual_seed(step))
            two.grad = one.grad.clone()
        reference.step()
        if step:
            ours.step()
        else:
            ours.load_state_dict(copy.deepcopy(reference.state_dict()))
            model.load_state_dict(other.state_dict())
    # Ours decays the new parameter, by less than lr squared elsewhere.
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0.0, atol=1e-4)


def test_a_checkpoint_with_groups_in_another_order_goes_on():
    """As the factory had them before: the decayed ones first, layers from the bottom up."""
    model, other = Timms(), Timms()
    other.load_state_dict(model.state_dict())
    for given in ({"weight_decay": 0.1}, {"weight_decay": 0.1, "layer_decay": 0.5}):
        ours = hfoptim.create_optimizer_v2(model, "lion", 1e-2, **given)
        named = dict(other.named_parameters())
        groups = [
            {"params": [(name, named[name]) for name in group["param_names"]], "lr": group["lr"]}
            for group in reversed(ours.param_groups)
        ]
        before = hfoptim.Lion(groups)
        for step in range(3):
            for one, two in zip(model.parameters(), other.parameters(), strict=True):
                one.grad = torch.randn(one.shape, generator=torch.Generator().manual_seed(step))
                two.grad = one.grad.clone()
            if step:
                ours.step()
            before.step()
            if not step:
                ours.load_state_dict(copy.deepcopy(before.state_dict()))
                model.load_state_dict(other.state_dict())
        assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))
    # Without names there is nothing to go by.
    plain = hfoptim.Lion([{"params": group["params"]} for group in before.param_groups])
    with pytest.raises(ValueError, match="group 0"):
        ours.load_state_dict(plain.state_dict())


def test_parameters_that_decay_leaves_too_little_are_frozen():
    for more in ({}, {"head_lr": 1e-2}):
        model = Timms()
        optimizer = hfoptim.create_optimizer_v2(
            *(model, "adamw", 1e-3), layer_decay=0.5, layer_decay_no_opt_scale=0.2, **more
        )
        kept = {name for group in optimizer.param_groups for name in group["param_names"]}
        assert kept == {name for name, param in model.named_parameters() if param.requires_grad}
        assert kept == {
            n for n, _ in model.named_parameters() if n.startswith(("blocks.1", "blocks.2", "norm", "head"))
        }
        scaled = hfoptim.create_optimizer_v2(
            *(Timms(), "adamw", 1.0), layer_decay=0.5, layer_decay_min_scale=0.2, **more
        )
        assert min(group["lr"] for group in scaled.param_groups if "lr_scale" in group) == 0.2


def test_what_no_matrix_rule_shall_take():
    def of_muon(**given):
        groups = hfoptim.create_optimizer_v2(Timms(), "muon", 1e-3, **given).param_groups
        return {name for group in groups if group["use_muon"] for name in group["param_names"]}

    mlps = {f"blocks.{i}.mlp.weight" for i in range(3)}
    for more in ({}, {"weight_decay": 0.1}, {"layer_decay": 0.5}, {"head_lr": 1e-2}):
        usual = of_muon(**more)
        assert mlps <= usual
        assert of_muon(fallback_list=["blocks.0.*"], **more) == usual - {"blocks.0.mlp.weight"}
        assert of_muon(fallback_no_weight_decay=True, **more) == usual - {"blocks.1.mlp.weight"}


def test_what_timm_does_not_look_at():
    """`no_weight_decay()` counts in the factory and in our functions; timm's want it as an argument."""
    model = Timms()
    undecayed = {name for name, param in model.named_parameters() if param.ndim > 1} - decayed_names(model)
    assert undecayed == model.no_weight_decay()
    for groups in (hfoptim.decay_groups(model, 0.1), hfoptim.layer_decay_groups(model, 0.1)):
        decays = {name: group["weight_decay"] for group in groups for name, _ in group["params"]}
        assert {decays[name] for name in undecayed} == {0.0}
    (_, decayed) = hfoptim.param_groups_weight_decay(model, 0.1)
    assert any(param is model.pos_embed for param in decayed["params"])


def test_layers_that_timm_does_not_know_are_said(caplog):
    with caplog.at_level(logging.WARNING, logger="hfoptim.param_groups.timm"):
        groups = hfoptim.param_groups_layer_decay(bert())
    assert {group["lr_scale"] for group in groups} == {1.0}
    assert "layer_decay has no effect: BertForSequenceClassification has no group_matcher" in caplog.text
    assert "hfoptim.layer_decay_groups" in caplog.text
    caplog.records.clear()
    with caplog.at_level(logging.INFO, logger="hfoptim.param_groups.timm"):
        hfoptim.param_groups_layer_decay(Timms(), verbose=True)
    assert '"layer_0_no_decay"' in caplog.text
    assert '"blocks.2.mlp.weight"' in caplog.text
    with pytest.warns(UserWarning, match="end_layer_decay=0.9 has no effect, here and in timm"):
        hfoptim.param_groups_layer_decay(Timms(), end_layer_decay=0.9)


def test_groups_of_a_wrapped_model_are_the_models():
    for group, given in (
        (hfoptim.param_groups_layer_decay, {"no_weight_decay_list": ["blocks.1.*"]}),
        (hfoptim.param_groups_weight_decay, {"fallback_list": ["head.*"]}),
    ):
        found, expected = (
            [{**entry, "params": len(entry["params"])} for entry in group(model, **given)]
            for model in (nn.DataParallel(Timms()), Timms())
        )
        assert found == expected
    compiled = nn.DataParallel(Plain())
    layers = {name.removeprefix("module."): layer for name, layer in hfoptim.auto_group_layers(compiled).items()}
    assert layers == hfoptim.auto_group_layers(Plain())


def test_arguments_of_a_script(theirs):
    required = {"opt": "adamw", "lr": 1e-3, "weight_decay": 0.05, "momentum": 0.9}
    optional = {"opt_eps": 1e-6, "opt_betas": (0.8, 0.9), "layer_decay": 0.5, "layer_decay_min_scale": 0.1}
    optional |= {"layer_decay_no_opt_scale": 0.2, "opt_args": {"amsgrad": True, "lr": 1.0}, "opt_foreach": False}
    for names in ((), optional, *((name,) for name in optional)):
        args = Namespace(**required, **{name: optional[name] for name in names})
        assert hfoptim.optimizer_kwargs(args) == theirs.optimizer_kwargs(args)
        given = dict.fromkeys(optional, None) | {name: optional[name] for name in names}
        assert hfoptim.optimizer_kwargs(Namespace(**required, **given)) == theirs.optimizer_kwargs(args)
    args = Namespace(**required, opt_eps=1e-6, layer_decay=0.5)
    optimizer = hfoptim.create_optimizer_v2(Timms(), **hfoptim.optimizer_kwargs(args))
    assert optimizer.defaults["eps"] == 1e-6
    assert {group["lr"] for group in optimizer.param_groups} == {1e-3 * 0.5**i for i in range(5)}


def test_groups_hold_pythons_own_numbers():
    """What a checkpoint can hold: weights_only loading knows no scalars of NumPy."""
    values = {"weight_decay": np.float64(0.1), "layer_decay": torch.tensor(0.5), "min_scale": np.float32(0.25)}
    groups = [
        *hfoptim.param_groups_layer_decay(Timms(), **values),
        *hfoptim.layer_decay_groups(Timms(), lr=np.float64(0.1), **values),
        *hfoptim.param_groups_weight_decay(Timms(), np.float64(0.1)),
        *hfoptim.decay_groups(Timms(), np.float64(0.1)),
    ]
    kinds = {key: {type(group[key]) for group in groups if key in group} for key in ("lr", "lr_scale", "weight_decay")}
    assert kinds == {"lr": {float}, "lr_scale": {float}, "weight_decay": {float}}


def test_bad_values_are_refused():
    for wrong in ({"weight_decay": -1.0}, {"layer_decay": 0.0}, {"layer_decay": 1.5}, {"min_scale": 2.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            hfoptim.param_groups_layer_decay(Timms(), **wrong)
    with pytest.raises(ValueError, match="weight_decay=-1"):
        hfoptim.param_groups_weight_decay(Timms(), -1.0)
    with pytest.raises(
        TypeError, match=r"weight_decay_exclude_1d=\['norm'\] is a list.*give no_weight_decay_list by its"
    ):
        hfoptim.param_groups_weight_decay(Timms(), 0.1, ["norm"])  # timm's order before 1.0.16
    with pytest.raises(TypeError, match="fallback_list='head'"):
        hfoptim.param_groups_weight_decay(Timms(), 0.1, fallback_list="head")
    with pytest.raises(TypeError, match="verbose=1"):
        hfoptim.param_groups_layer_decay(Timms(), verbose=1)
