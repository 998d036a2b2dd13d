"""Names are compared without what wrappers put in: torch.compile, DDP, checkpoint wrappers, averaged models."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

import hfoptim
from hfoptim import create_optimizer_v2, decay_groups, param_groups_muon, param_groups_options
from hfoptim.engine.parameter_names import aligned, bare, bare_names, bare_names_of, matched, searched, unwrapped
from hfoptim.param_groups.selection import decayed_names, head_names, layer_scales


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.query = nn.Linear(4, 4)
        self.c_attn = nn.Linear(4, 12)

    def forward(self, x):
        return x + self.query(self.norm(x)) + self.c_attn(x)[..., :4]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(3, 4))
        self.blocks = nn.ModuleList([Block(), Block()])
        self.fc = nn.Linear(4, 4)

    def no_weight_decay(self):
        return {"table", "blocks.1.query.weight", "fc.*"}

    def forward(self, x):
        x = x + self.table
        for block in self.blocks:
            x = block(x)
        return self.fc(x)


def net():
    torch.manual_seed(0)
    return Net()


def compiled(module):
    return torch.compile(module, backend="eager")


def with_parts(around, names):
    """A wrapper around some parts of a model, each by itself."""

    def wrap(model):
        for name in names:
            above, _, own = name.rpartition(".")
            setattr(model.get_submodule(above), own, around(model.get_submodule(name)))
        return model

    return wrap


class Fabric(nn.Module):
    """Has its model twice, as Lightning Fabric's has."""

    def __init__(self, model):
        super().__init__()
        self._forward_module = DataParallel(model)
        self._original_module = model


BLOCKS = ("blocks.0", "blocks.1")
WRAPPERS = {
    "compiled": compiled,
    "compiled-layers": with_parts(compiled, BLOCKS),
    "compiled-leaves": with_parts(compiled, ("blocks", "blocks.1.query", "blocks.0.norm", "blocks.0.c_attn", "fc")),
    "data-parallel": DataParallel,
    "ddp": DistributedDataParallel,
    "ddp-of-compiled": lambda model: DistributedDataParallel(compiled(model)),
    "compiled-ddp": lambda model: compiled(DistributedDataParallel(model)),
    "ddp-parts": with_parts(DistributedDataParallel, ("blocks.0.query", "fc")),
    "checkpointed": with_parts(checkpoint_wrapper, BLOCKS),
    "checkpointed-and-compiled": with_parts(lambda block: checkpoint_wrapper(compiled(block)), BLOCKS),
    "averaged": AveragedModel,
    "averaged-compiled": lambda model: AveragedModel(compiled(model)),
    "fabric": Fabric,
}
every_wrapper = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)


@pytest.fixture(scope="module", autouse=True)
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def entries(groups):
    """(bare name, what its group says) of every parameter, group by group."""
    found = []
    for group in groups:
        said = {key: value for key, value in group.items() if key not in ("params", "param_names")}
        names = group.get("param_names") or [name for name, _ in group["params"]]
        found.append(([bare(name) for name in names], said))
    return found


# -- names themselves -------------------------------------------------------------------------------------------------


@every_wrapper
def test_bare_names_are_those_of_the_model(wrap):
    model = wrap(net())
    names = bare_names_of(model)
    assert [names[name] for name, _ in model.named_parameters()] == [name for name, _ in net().named_parameters()]
    assert {name: bare(name) for name in names} == names
    assert type(unwrapped(model)) is Net


def test_a_part_that_is_called_module_is_told_from_a_wrapper():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(2, 2)
            self.other = nn.Linear(2, 2)

    model = compiled(Own())
    assert [*bare_names_of(model).values()] == ["module.weight", "module.bias", "other.weight", "other.bias"]
    assert unwrapped(model) is model._orig_mod
    assert [*bare_names_of(DataParallel(model)).values()] == [*bare_names_of(model).values()]
    # A parameter beside it makes it a part, too.
    model = Own()
    model.module.module = nn.Linear(2, 2)
    assert bare_names_of(model)["module.module.weight"] == "module.module.weight"
    assert {bare(name) for name in bare_names_of(model)} == {"weight", "bias", "other.weight", "other.bias"}


def test_names_that_would_become_equal_keep_what_tells_them_apart():
    assert bare_names(["module.a", "a", "module.b"]) == {"module.a": "module.a", "a": "a", "module.b": "b"}
    names = ["_orig_mod.module.a", "_orig_mod.a"]
    assert bare_names(names) == {"_orig_mod.module.a": "module.a", "_orig_mod.a": "a"}
    assert aligned(["a", "module.a"], names) == {"a": "_orig_mod.a", "module.a": "_orig_mod.module.a"}
    assert aligned(["a", "b"], ["module.b", "module.a"]) == {"a": "module.a", "b": "module.b"}
    assert aligned(["a"], ["module.a", "a"]) is None
    assert aligned(["a", "b"], ["a", "module.a"]) is None
    assert bare("module.x._orig_mod.module._checkpoint_wrapped_module.module") == "x.module"


def test_patterns_match_names_as_they_are_and_bare():
    names = bare_names(["_orig_mod.a.0._orig_mod.weight", "_orig_mod.b.weight"])
    first, second = names
    assert matched("a.0.weight", names) == matched("_orig_mod.a.0._orig_mod.weight", names) == [first]
    assert matched("a.*", names) == matched("*._orig_mod.weight", names) == [first]
    assert matched("*.weight", names) == [first, second]
    # Written for a model that was wrapped, of one that is not.
    assert matched("module.b.*", names) == matched("_fsdp_wrapped_module.b.*", names) == [second]
    assert (
        searched(r"^b\.", names) == searched(r"^_orig_mod\.b\.", names) == searched(r"^module\.b\.", names) == [second]
    )
    assert matched("c.*", names) == matched("*.module.weight", names) == []
    # Where the part is there, the pattern means it.
    assert matched("module.*", bare_names(["module.a", "a", "b"])) == ["module.a"]


# -- groups -----------------------------------------------------------------------------------------------------------


@every_wrapper
def test_what_a_model_exempts_from_decay_stays_exempt(wrap):
    plain = decayed_names(net(), ["blocks.0.c_attn.weight"])
    assert plain == {"blocks.0.query.weight", "blocks.1.c_attn.weight"}
    assert {bare(name) for name in decayed_names(wrap(net()), ["blocks.0.c_attn.weight"])} == plain


@every_wrapper
def test_what_a_part_of_a_model_exempts_from_decay_is_exempt(wrap):
    larger = nn.ModuleDict({"encoder": wrap(net()), "top": nn.Linear(4, 4)})
    assert {bare(name) for name in decayed_names(larger)} == {
        *("encoder.blocks.0.query.weight", "encoder.blocks.0.c_attn.weight", "encoder.blocks.1.c_attn.weight"),
        "top.weight",
    }


@every_wrapper
def test_heads_layers_and_patterns_are_found(wrap):
    def groups(model):
        chosen = {"blocks.1.c_attn.*": {"lr": 3e-4}, "*.query.bias": {"weight_decay": 0.3}}
        return param_groups_options(model, 1e-3, 0.1, layer_decay=0.5, head_lr=1e-2, param_options=chosen)

    model = wrap(net())
    assert [bare(name) for name in head_names(model)] == ["fc.weight", "fc.bias"]
    assert {bare(name): scale for name, scale in layer_scales(model, 0.5).items()} == layer_scales(net(), 0.5)
    assert entries(groups(model)) == entries(groups(net()))
    assert entries(decay_groups(model)) == entries(decay_groups(net()))


@every_wrapper
def test_hidden_matrices_are_the_same(wrap):
    model = wrap(net())
    assert entries(param_groups_muon(model)) == entries(param_groups_muon(net()))
    # By names alone: a classifier that is called fc stands at the end, c_attn makes queries, keys and values.
    ours, plain = (
        hfoptim.Muon([(name, p.detach().clone().requires_grad_()) for name, p in one.named_parameters()])
        for one in (model, net())
    )
    forms = [
        [optimizer._form_of(p, group) for group in optimizer.param_groups for p in group["params"]]
        for optimizer in (ours, plain)
    ]
    assert forms[0] == forms[1]
    assert len(set(forms[1])) == 3


@every_wrapper
@pytest.mark.parametrize("name", ["adam_weight_decay", "adam_mini"])
def test_rules_by_name_are_the_same(wrap, name):
    def make(model):
        named = [(name, p.detach().clone().requires_grad_()) for name, p in model.named_parameters()]
        if name == "adam_mini":
            return hfoptim.AdamMini(named, dim=4, n_heads=2, weight_decay=0.1)
        return hfoptim.AdamWeightDecay(
            named,
            weight_decay_rate=0.1,
            exclude_from_weight_decay=[r"^table", r"blocks\.\d\.(norm|query)", r"^fc\."],
            include_in_weight_decay=[r"blocks\.0\.query"],
        )

    ours, plain = make(wrap(net())), make(net())
    assert entries(ours.param_groups) == entries(plain.param_groups)
    rules = [
        [optimizer.rule_for(p, group) for group in optimizer.param_groups for p in group["params"]]
        for optimizer in (ours, plain)
    ]
    assert rules[0] == rules[1]


def test_attn_proj_is_one_name_for_adam_mini_whatever_stands_between():
    weight = torch.nn.Parameter(torch.ones(4, 4))
    plain = hfoptim.AdamMini([("attn.proj.weight", weight)], dim=4, n_heads=2)
    wrapped = hfoptim.AdamMini([("attn._orig_mod.proj.weight", weight)], dim=4, n_heads=2)
    assert wrapped.rule_for(weight, wrapped.param_groups[0]) is plain.rule_for(weight, plain.param_groups[0])


def test_a_pattern_that_matches_nothing_is_told_names_without_wrappers():
    with pytest.raises(ValueError, match=r"did you mean 'fc.weight'"):
        create_optimizer_v2(compiled(net()), "adamw", param_options={"fc.weigt": {"lr": 1.0}})
    frozen = net()
    frozen.fc.weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"_orig_mod.fc.weight is frozen"):
        create_optimizer_v2(compiled(frozen), "adamw", param_options={"fc.weight": {"lr": 1.0}})


# -- gradient accumulation ---------------------------------------------------------------------------------------------


@every_wrapper
def test_accumulated_gradients_go_on_in_a_model_wrapped_otherwise(wrap):
    model = net()
    accumulator = hfoptim.GradientAccumulator(model)
    model(torch.ones(2, 3, 4)).sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    accumulator()
    wrapped = wrap(copy.deepcopy(model))
    other = hfoptim.GradientAccumulator(wrapped)
    other.load_state_dict(accumulator.state_dict())
    other.apply_to()
    for name, param in wrapped.named_parameters():
        assert torch.equal(param.grad, expected[bare(name)]), name
