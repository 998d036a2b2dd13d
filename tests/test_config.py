"""Optimizers, groups and schedules from configurations: visdet's page, MMEngine, OmegaConf, Hydra and YAML."""

# ruff: noqa: C408 - configurations are written with dict(...)

from __future__ import annotations

import json
import re
from collections import UserDict
from pathlib import Path

import pytest
import torch
from torch import nn

import hfoptim
from hfoptim import OPTIMIZERS, from_config
from hfoptim.registry.catalogue import known_optimizers


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3)
        self.depthwise = nn.Conv2d(2, 2, 3, groups=2)
        self.bn = nn.BatchNorm2d(2)
        self.scale = nn.Parameter(torch.ones(2))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(Block(), Block())
        self.head = nn.Linear(4, 3)


def by_name(optimizer, *options):
    """The options of every parameter."""
    options = options or ("lr", "weight_decay")
    return {
        name: tuple(group[option] for option in options)
        for group in optimizer.param_groups
        for name in group["param_names"]
    }


# --- the page's dicts, as they are printed there ----------------------------------------------------------------------

PAGE = {
    "head": dict(type="AdamW", lr=1e-4, weight_decay=0.05),
    "standard": dict(
        type="AdamW",
        lr=1e-4,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.01,
    ),
    "lion": dict(
        type="Lion",
        lr=1e-4,  # 3-10x smaller than AdamW
        betas=(0.9, 0.99),
        weight_decay=0.1,  # 3-10x larger than AdamW
    ),
}
NAMED_ON_THE_PAGE = [
    *("SGD", "Adam", "AdamW", "Adagrad", "Adadelta", "RMSprop", "Lion", "RAdam", "NAdam", "Muon", "DAdaptAdam"),
    *("DAdaptAdaGrad", "DAdaptSGD", "Adafactor", "TorchAdafactor", "LAMB", "ASGD", "Rprop", "LBFGS", "Adamax"),
    "SparseAdam",
]


@pytest.mark.parametrize("name", PAGE)
def test_the_pages_dicts_run(name):
    optimizer = PAGE[name]
    model = Model()
    built = OPTIMIZERS.build(optimizer, model.parameters())
    placed = from_config(dict(optim_wrapper=dict(optimizer=optimizer)), model).optimizer
    alone = from_config(optimizer, model).optimizer
    named = from_config(dict(optimizer=optimizer), model).optimizer
    for made in (built, placed, alone, named):
        assert {key: value for key, value in made.param_groups[0].items() if key in optimizer} == {
            key: value for key, value in optimizer.items() if key != "type"
        }
        assert len(made.param_groups) == 1
        assert len(made.param_groups[0]["params"]) == len(list(model.parameters()))
    theirs = {"AdamW": torch.optim.AdamW}.get(optimizer["type"])
    if theirs is not None:
        options = {key: value for key, value in optimizer.items() if key != "type"}
        assert_same_steps(lambda params: OPTIMIZERS.build(optimizer, params), lambda params: theirs(params, **options))


def assert_same_steps(*makes):
    models = [nn.Linear(3, 2).double() for _ in makes]
    for model in models:
        model.load_state_dict(models[0].state_dict())
    optimizers = [make(model.parameters()) for make, model in zip(makes, models, strict=True)]
    for step in range(5):
        for model, optimizer in zip(models, optimizers, strict=True):
            model(torch.full((2, 3), 0.3 + step, dtype=torch.double)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


def test_the_page_lists_what_there_is():
    names = sorted(OPTIMIZERS.module_dict.keys())
    assert set(NAMED_ON_THE_PAGE) <= set(names)
    assert set(hfoptim.list_optimizers()) <= set(names)
    assert all(name in OPTIMIZERS for name in names)
    assert len(OPTIMIZERS) == len(names)
    assert "nothing" not in OPTIMIZERS
    assert OPTIMIZERS.get("nothing") is None
    params = [("weight", nn.Parameter(torch.ones(2, 2)))]
    for name in NAMED_ON_THE_PAGE:
        assert isinstance(OPTIMIZERS.module_dict[name](params), torch.optim.Optimizer)
        assert type(OPTIMIZERS.build({"type": name}, params)) is type(OPTIMIZERS.get(name)(params))


def test_class_names_and_short_names():
    params = list(Model().parameters())

    def momentum(kind, **options):
        return [OPTIMIZERS.build({"type": kind, **options}, params).defaults[key] for key in ("momentum", "nesterov")]

    assert momentum("SGD") == [0.0, False]  # torch's
    assert momentum("sgd") == [0.9, True]  # timm's
    assert momentum("SGD", momentum=0.9, nesterov=True) == [0.9, True]
    assert_same_steps(
        lambda given: OPTIMIZERS.build(dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=1e-4), given),
        lambda given: torch.optim.SGD(given, lr=0.1, momentum=0.9, weight_decay=1e-4),
    )
    assert type(OPTIMIZERS.build({"type": "Dadapt-Adam", "params": params})) is hfoptim.DAdaptAdam
    assert type(OPTIMIZERS.build({"type": torch.optim.AdamW, "lr": 1e-3}, params)) is torch.optim.AdamW
    assert OPTIMIZERS.build({"type": "A2Grad"}, params).defaults == hfoptim.A2Grad(params).defaults


def test_a_class_of_ones_own():
    @OPTIMIZERS.register_module()
    class ConfiguredSign(torch.optim.SGD):
        """Steps by the sign."""

    @OPTIMIZERS.register_module(name="configured_lion")
    class Other(hfoptim.Lion):
        pass

    @OPTIMIZERS.register_module
    class Named(hfoptim.Lion):
        names = (hfoptim.Name("configured_named"),)

    try:
        model = Model()
        assert type(from_config(dict(type="ConfiguredSign", lr=0.1), model).optimizer) is ConfiguredSign
        assert type(from_config("{type: configured_lion, lr: 0.1}", model).optimizer) is Other
        assert type(from_config(dict(optimizer="configured-named"), model).optimizer) is Named
        assert {"ConfiguredSign", "configured_lion", "Named"} <= set(OPTIMIZERS.module_dict)
        assert type(hfoptim.create_optimizer_v2(model, "configured_sign", lr=0.1)) is ConfiguredSign
        with pytest.raises(ValueError, match=r"claims the name 'Lion', which hfoptim.optimizers.lion.Lion has"):
            OPTIMIZERS.register_module("Lion", module=ConfiguredSign)
        with pytest.raises(TypeError, match=r"no class that derives from torch\.optim\.Optimizer"):
            OPTIMIZERS.register_module(module=Model)
    finally:
        known_optimizers.cache_clear()


# --- MMEngine ---------------------------------------------------------------------------------------------------------

BASE = dict(type="SGD", lr=0.01, momentum=0.9, weight_decay=0.1)


def wrapped(model=None, **paramwise_cfg):
    cfg = dict(optim_wrapper=dict(type="OptimWrapper", optimizer=BASE, paramwise_cfg=paramwise_cfg))
    return by_name(from_config(cfg, model or Model()).optimizer)


def test_kinds_of_parameters():
    found = wrapped(
        norm_decay_mult=0.0, bias_lr_mult=2.0, bias_decay_mult=0.5, dwconv_decay_mult=0.25, flat_decay_mult=0.2
    )
    block = {
        "scale": (0.01, 0.1 * 0.2),
        "conv.weight": (0.01, 0.1),
        "conv.bias": (0.02, 0.05),
        "depthwise.weight": (0.01, 0.025),
        "depthwise.bias": (0.02, 0.05),
        "bn.weight": (0.01, 0.0),
        "bn.bias": (0.01, 0.0),
    }
    expected = {f"backbone.{index}.{name}": options for index in range(2) for name, options in block.items()}
    assert found == {**expected, "head.weight": (0.01, 0.1), "head.bias": (0.02, 0.05)}
    # Norms and depthwise convolutions without a word of their own are biases and vectors.
    others = wrapped(bias_decay_mult=0.5, flat_decay_mult=0.2)
    assert [others[f"backbone.0.{name}"][1] for name in ("bn.weight", "bn.bias", "depthwise.bias")] == [
        0.1 * 0.2,
        0.05,
        0.05,
    ]


def test_keys_decide_alone_the_longest_first():
    keys = {
        "backbone": dict(lr_mult=0.1, decay_mult=0.9),
        "backbone.0": dict(lr_mult=0.5),
        ".bn": dict(decay_mult=0.0, momentum=0.5),
    }
    model = Model()
    optimizer = from_config(
        dict(optimizer=BASE, paramwise_cfg=dict(custom_keys=keys, bias_lr_mult=9.0)), model
    ).optimizer
    found = by_name(optimizer, "lr", "weight_decay", "momentum")
    assert found["backbone.1.conv.bias"] == pytest.approx((0.001, 0.09, 0.9))
    assert found["backbone.0.bn.weight"] == pytest.approx((0.005, 0.1, 0.9))
    assert found["backbone.1.bn.weight"] == pytest.approx((0.001, 0.09, 0.9))
    assert found["head.weight"] == (0.01, 0.1, 0.9)
    assert found["head.bias"] == pytest.approx((0.09, 0.1, 0.9))


def test_keys_of_one_length_go_by_the_alphabet_and_may_have_other_options():
    keys = {"head": dict(momentum=0.5), "bone": dict(lr_mult=0.0)}
    optimizer = from_config(dict(optimizer=BASE, paramwise_cfg=dict(custom_keys=keys)), Model()).optimizer
    found = by_name(optimizer, "lr", "momentum")
    assert [found["head.weight"], found["backbone.0.scale"]] == [(0.01, 0.5), (0.0, 0.9)]
    both = wrapped(custom_keys={"head": dict(lr_mult=2.0), "ead.": dict(lr_mult=3.0), "back": dict(lr_mult=1.0)})
    assert both["head.weight"][0] == pytest.approx(0.03)


def test_duplicates_and_frozen_parameters():
    model = Model()
    model.tied = nn.Linear(4, 3)
    model.tied.weight = model.head.weight
    model.backbone.requires_grad_(False)
    with pytest.raises(ValueError, match=r"tied.weight is the parameter head.weight, .* bypass_duplicate=True"):
        wrapped(model, norm_decay_mult=0.0)
    assert wrapped(model, norm_decay_mult=0.0, bypass_duplicate=True).keys() == {
        "head.weight",
        "head.bias",
        "tied.bias",
    }
    # Without paramwise_cfg every parameter is taken once, as by model.parameters().
    assert len(by_name(from_config(dict(optimizer=BASE), model).optimizer)) == 3


def test_offsets_of_deformable_convolutions():
    class DeformConv2d(nn.Conv2d):
        __module__ = "mmcv.ops.deform_conv"

    class Deforming(DeformConv2d):
        __module__ = "mmcv.ops.deform_conv"

        def __init__(self):
            super().__init__(1, 1, 3)
            self.conv_offset = nn.Conv2d(1, 2, 3)

    found = wrapped(nn.Sequential(Deforming()), dcn_offset_lr_mult=0.1, bias_lr_mult=2.0, bias_decay_mult=0.0)
    assert found == {
        "0.weight": (0.01, 0.1),
        "0.bias": (0.02, 0.0),
        "0.conv_offset.weight": (0.001, 0.1),
        "0.conv_offset.bias": (0.001, 0.1),
    }


def test_the_wrappers_other_entries():
    cfg = dict(type="OptimWrapper", optimizer=BASE, clip_grad=dict(max_norm=0.5, norm_type=2), accumulative_counts=4)
    model = Model()
    made = from_config(cfg, model)
    assert (made.clip_grad, made.accumulative_counts, made.schedule) == ({"max_norm": 0.5, "norm_type": 2}, 4, None)
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    norm = made.clip_gradients()
    assert float(norm) == pytest.approx(sum(param.numel() for param in model.parameters()) ** 0.5)
    assert sum(float(param.grad.square().sum()) for param in model.parameters()) == pytest.approx(0.25, rel=1e-4)
    by_value = from_config(dict(optimizer=BASE, clip_grad=dict(type="value", clip_value=1e-3)), model)
    assert by_value.clip_gradients() is None
    assert max(float(param.grad.max()) for param in model.parameters()) == pytest.approx(1e-3)
    assert from_config(BASE, model).clip_gradients() is None


# --- groups and schedules ---------------------------------------------------------------------------------------------


def test_groups_and_a_schedule_in_one_go():
    cfg = dict(
        optimizer=dict(type="adamw", lr=1e-3, weight_decay=0.1),
        groups=dict(head_lr=1e-2, param_options={"backbone.0.*": {"lr_scale": 0.5}}),
        schedule=dict(type="cosine", num_warmup_steps=2, num_training_steps=10, num_cycles=0.5),
    )
    model = Model()
    optimizer, schedule, *_ = from_config(cfg, model)
    assert schedule.optimizer is optimizer
    assert schedule.base_lrs == [group["initial_lr"] for group in optimizer.param_groups]
    same = hfoptim.create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.1, **cfg["groups"])
    assert by_name(optimizer, "initial_lr", "weight_decay") == by_name(same)
    assert type(schedule) is hfoptim.schedules.ScheduleLR
    # The optimizer's own weight decay where none is given; torch's classes have groups, too.
    own = from_config(dict(optimizer="adamw", groups={}), model).optimizer
    assert by_name(own)["head.weight"][1] == 0.01
    torchs = dict(optimizer={"_target_": "torch.optim.AdamW", "lr": 1e-3, "weight_decay": 0.1}, groups=cfg["groups"])
    assert by_name(from_config(torchs, model).optimizer) == by_name(same)
    torch_schedule = {"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 3}
    made = from_config(dict(optimizer=BASE, schedule=torch_schedule), model)
    assert isinstance(made.schedule, torch.optim.lr_scheduler.StepLR)


def test_matrices_of_muon_are_found():
    model = nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 4), nn.Linear(4, 8))
    groups = from_config(dict(type="Muon", lr=1e-3), model).optimizer.param_groups
    assert {group["use_muon"] for group in groups} == {True, False}
    assert [name for group in groups if group["use_muon"] for name in group["param_names"]] == ["1.weight", "2.weight"]


WRONG = [
    (dict(optimzer=dict(type="AdamW")), "has no entry 'optimzer'; did you mean 'optimizer'"),
    (dict(optimizer=dict(type="AdamV")), "unknown optimizer 'AdamV'; did you mean 'adam'"),
    (dict(optimizer=dict(type="AdamW", lrr=1)), "has no option 'lrr'; did you mean 'lr'"),
    (dict(optimizer=dict(lr=1)), "names none"),
    (dict(schedule="cosine"), "has no optimizer"),
    (dict(optimizer=BASE, schedule="cosin"), "unknown schedule 'cosin'; the closest names are 'cosine'"),
    (dict(optimizer=BASE, schedule=dict(num_cycles=1)), "schedule has no type"),
    (dict(optimizer=BASE, schedule=dict(type="constant", cycles=1)), "schedule constant has no entry 'cycles'"),
    (dict(optimizer=BASE, paramwise_cfg=dict(norm_decay=0)), "did you mean 'norm_decay_mult'"),
    (dict(optimizer=BASE, paramwise_cfg=dict(custom_keys=dict(neck=1))), "expected a mapping"),
    (dict(optimizer=BASE, paramwise_cfg=dict(custom_keys=dict(head=dict(lr_mul=1)))), "did you mean 'lr_mult'"),
    (dict(optimizer="SGD", paramwise_cfg=dict(bias_lr_mult=2)), "bias_lr_mult=2 multiplies the lr, which is not given"),
    (dict(optimizer="SGD", paramwise_cfg=dict(norm_decay_mult=0)), "multiplies the weight_decay, which is not given"),
    (dict(optimizer=BASE, paramwise_cfg=dict(bias_lr_mult=-1)), "bias_lr_mult=-1 is out of range"),
    (dict(optimizer=BASE, groups={}, paramwise_cfg={}), "groups and paramwise_cfg both"),
    (dict(optimizer=BASE, groups=dict(layer_deca=0.5)), "did you mean 'layer_decay'"),
    (dict(optimizer=BASE, clip_grad=dict(norm_type=2)), "clip_grad needs max_norm"),
    (dict(optimizer=BASE, clip_grad=dict(max_nrm=2)), "did you mean 'max_norm'"),
    (dict(optimizer=BASE, accumulative_counts=0), "accumulative_counts=0 is out of range"),
    (dict(type="AmpOptimWrapper", optimizer=BASE), "type='AmpOptimWrapper' also does what is the training loop's"),
    (dict(optimizer=BASE, constructor="LayerDecay"), "constructor='LayerDecay' is not known"),
    (dict(optim_wrapper=dict(optimizer=BASE), schedul="x"), "did you mean 'schedule'"),
    (dict(optimizer={"_target_": "hfoptim.Lyon"}), "there is no 'hfoptim.Lyon'"),
    (dict(optimizer={"_target_": "builtins.dict"}), "names none, got <class 'dict'>"),
    (dict(optimizer={"_target_": "hfoptim.Lion", "_args_": [1]}), "_args_ are not taken"),
    (7, "expected a mapping"),
]


@pytest.mark.parametrize(("cfg", "message"), WRONG, ids=str)
def test_what_is_wrong_is_named(cfg, message):
    with pytest.raises((ValueError, TypeError), match=message):
        from_config(cfg, Model())


# --- nodes of others --------------------------------------------------------------------------------------------------

TEXT = """
optimizer:
  type: Lion
  lr: 1e-4
  betas: [0.9, 0.98]
  weight_decay: 1e-1
paramwise_cfg:
  custom_keys: {backbone: {lr_mult: 1e-1}}
  norm_decay_mult: 0
schedule: {type: linear, num_warmup_steps: 2, num_training_steps: 10}
"""
PLAIN = dict(
    optimizer=dict(type="Lion", lr=1e-4, betas=(0.9, 0.98), weight_decay=0.1),
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1)), norm_decay_mult=0.0),
    schedule=dict(type="linear", num_warmup_steps=2, num_training_steps=10),
)


def assert_as_plain(config, tmp_path):
    made, plain = from_config(config, Model()), from_config(PLAIN, Model())
    options = ("lr", "initial_lr", "weight_decay", "betas")
    assert by_name(made.optimizer, *options) == by_name(plain.optimizer, *options)
    assert made.schedule.curve == plain.schedule.curve
    torch.save([made.optimizer.state_dict(), made.schedule.state_dict()], tmp_path / "state.pt")
    torch.load(tmp_path / "state.pt", weights_only=True)


def test_yaml_and_json(tmp_path):
    pytest.importorskip("yaml")
    assert_as_plain(TEXT, tmp_path)
    (tmp_path / "optim.yaml").write_text(TEXT)
    assert_as_plain(tmp_path / "optim.yaml", tmp_path)
    assert_as_plain(str(tmp_path / "optim.yaml"), tmp_path)
    (tmp_path / "optim.json").write_text(json.dumps(PLAIN))
    assert_as_plain(str(tmp_path / "optim.json"), tmp_path)
    with pytest.raises(ValueError, match="is no YAML"):
        from_config("optimizer: {type: [", Model())
    with pytest.raises(FileNotFoundError):
        from_config("nothing.yaml", Model())


def test_mappings_of_whatever_class(tmp_path):
    class Config:  # as MMEngine's, which is no Mapping
        def __init__(self, node):
            self.node = node

        def keys(self):
            return self.node.keys()

        def __getitem__(self, key):
            value = self.node[key]
            return Config(value) if isinstance(value, dict) else value

    assert_as_plain(UserDict(PLAIN), tmp_path)
    assert_as_plain(Config(PLAIN), tmp_path)


def test_omegaconf(tmp_path):
    omegaconf = pytest.importorskip("omegaconf")
    node = omegaconf.OmegaConf.create({**PLAIN, "optimizer": {**PLAIN["optimizer"], "betas": [0.9, 0.98]}})
    node.optimizer.weight_decay = "${paramwise_cfg.decay}"
    node.paramwise_cfg.decay = 0.1
    resolved = omegaconf.OmegaConf.create(node)
    resolved.optimizer.weight_decay = node.optimizer.weight_decay  # an interpolation, read where it stands
    del resolved.paramwise_cfg["decay"]
    assert_as_plain(resolved, tmp_path)
    optimizer = OPTIMIZERS.build(node.optimizer, Model().parameters())
    assert (optimizer.defaults["betas"], optimizer.defaults["weight_decay"]) == ((0.9, 0.98), 0.1)


def test_hydra():
    hydra = pytest.importorskip("hydra.utils")
    omegaconf = pytest.importorskip("omegaconf")
    node = omegaconf.OmegaConf.create({"_target_": "hfoptim.Lion", "lr": 1e-4, "betas": [0.9, 0.98], "_partial_": True})
    model = Model()
    theirs = hydra.instantiate(node)(params=list(model.parameters()))
    ours = from_config({"optimizer": node}, model).optimizer
    assert type(ours) is type(theirs) is hfoptim.Lion
    assert ours.defaults == theirs.defaults
    # The class itself: without what a name of it stands for.
    sgd = from_config({"_target_": "hfoptim.SGD", "lr": 0.1}, model).optimizer
    assert (sgd.defaults["momentum"], sgd.defaults["nesterov"]) == (0.0, False)
    torchs = from_config({"_target_": "torch.optim.AdamW", "_partial_": True}, model).optimizer
    assert type(torchs) is torch.optim.AdamW
    call = {"_target_": "hfoptim.from_config", "config": PLAIN, "_recursive_": False}
    assert isinstance(hydra.instantiate(call, model=model).optimizer, hfoptim.Lion)


def test_the_documents_code_runs():
    text = (Path(__file__).parents[1] / "docs" / "config.md").read_text(encoding="utf-8")
    try:
        exec("\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)), {"__name__": "docs"})
    finally:
        known_optimizers.cache_clear()
