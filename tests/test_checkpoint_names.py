"""Which saved state goes to which parameter: by name across wrappers, and refusals that say which does not fit."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

import hfoptim
import schedules
from hfoptim import CombinedOptimizer, Lookahead


class Mlp(nn.Module):
    """Parameters of which several have the same shape."""

    def __init__(self, order=("first", "second", "third", "fc")):
        super().__init__()
        for name in order:
            self.add_module(name, nn.Linear(4, 4))
        for name, param in self.named_parameters():
            param.data = torch.linspace(-1, 1, param.numel()).reshape(param.shape) / len(name)

    def forward(self, x):
        return self.fc((self.first(x).tanh() + self.second(x)).tanh() + self.third(x))


def compiled(module):
    return torch.compile(module, backend="eager")


def compiled_parts(model):
    model.first, model.fc = compiled(model.first), compiled(model.fc)
    return model


WRAPPERS = {
    "compiled": compiled,
    "compiled-parts": compiled_parts,
    "ddp": lambda model: DistributedDataParallel(compiled_parts(model)),
    "averaged": AveragedModel,
}


def combined(model):
    named = list(model.named_parameters())
    return CombinedOptimizer([hfoptim.Lion(named[:3], lr=1e-3), torch.optim.AdamW(named[3:], lr=1e-2)])


def two_groups(model):
    named = list(model.named_parameters())
    return hfoptim.AdamW([{"params": named[:5], "lr": 1e-2}, {"params": named[5:], "lr": 1e-3}])


OPTIMIZERS = {
    "adamw": lambda model: hfoptim.AdamW(model.named_parameters(), lr=1e-2),
    "groups": two_groups,
    "muon": lambda model: hfoptim.Muon(model.named_parameters(), lr=1e-2),
    "adam_mini": lambda model: hfoptim.AdamMini(model.named_parameters(), lr=1e-2, dim=4, n_heads=2),
    "lookahead": lambda model: Lookahead(hfoptim.AdamW(model.named_parameters(), lr=1e-2), k=2),
    "lookahead-of-torch": lambda model: Lookahead(torch.optim.AdamW(model.named_parameters(), lr=1e-2), k=2),
    "combined": combined,
}
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
every_wrapper = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)


@pytest.fixture(scope="module", autouse=True)
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def train(model, optimizer, steps):
    """Steps with gradients that each parameter's own name decides."""
    for t in steps:
        for name, param in sorted(model.named_parameters()):
            seed = sum(map(ord, short(name))) + 1000 * t
            param.grad = torch.randn(param.shape, generator=torch.Generator().manual_seed(seed))
        optimizer.step()


def short(name):
    return ".".join(part for part in name.split(".") if part not in ("module", "_orig_mod"))


def content(model):
    return {short(name): param.detach().clone() for name, param in model.named_parameters()}


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def copied(model, onto):
    """Another model's parameters put into a model that is wrapped or ordered otherwise."""
    values = content(model)
    with torch.no_grad():
        for name, param in onto.named_parameters():
            param.copy_(values[short(name)])
    return onto


# -- wrappers ---------------------------------------------------------------------------------------------------------


@every_optimizer
@every_wrapper
@pytest.mark.parametrize("saved_by", ["plain", "wrapped"])
def test_a_checkpoint_goes_on_bit_for_bit_across_wrappers(wrap, make, saved_by):
    before, after = (lambda model: model, wrap) if saved_by == "plain" else (wrap, lambda model: model)
    model = before(Mlp())
    optimizer = make(model)
    train(model, optimizer, range(3))
    resumed = copied(model, after(Mlp()))
    again = make(resumed)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, range(3, 6))
    train(resumed, again, range(3, 6))
    same(content(resumed), content(model))
    # The names stay those of the run that loads.
    names = [name for group in again.param_groups for name in group["param_names"]]
    assert sorted(names) == sorted(name for name, _ in resumed.named_parameters())


def states(model, optimizer):
    """Every parameter's state by its name without wrappers, what wrapping optimizers keep included."""
    numbers = [key for group in optimizer.state_dict()["param_groups"] for key in group["params"]]
    params = [param for group in optimizer.param_groups for param in group["params"]]
    names = {param: short(name) for name, param in model.named_parameters()}
    saved = optimizer.state_dict()["state"]
    return {
        f"{names[param]}.{key}": torch.as_tensor(value)
        for number, param in zip(numbers, params, strict=True)
        for key, value in saved[number].items()
    }


OTHER_ORDER = ("third", "second", "first", "fc")


@every_optimizer
def test_named_parameters_of_the_same_shape_are_found_in_another_order(make):
    model, other = compiled_parts(Mlp()), Mlp(OTHER_ORDER)
    if make in (combined, two_groups):  # the order within their groups
        other = Mlp(("first", "second", "third", "fc"))
        first = other._modules.pop("first")
        first.bias, first.weight = first._parameters.pop("bias"), first._parameters.pop("weight")
        other._modules = {"first": first, **other._modules}
        assert next(iter(content(other))) == "first.bias"
    optimizer, again = make(model), make(other)
    train(model, optimizer, range(3))
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    same(states(other, again), states(model, optimizer))
    assert list(content(other)) != list(content(model))


@every_optimizer
@pytest.mark.parametrize("way", ["set", "raw"])
def test_torchs_distributed_checkpoints_are_loaded_by_name(make, way):
    # set_optimizer_state_dict has its keys in the order of the model here, and `param_names` in the saved one.
    model, other = compiled_parts(Mlp()), DistributedDataParallel(Mlp(OTHER_ORDER))
    if make in (combined, two_groups):
        other = DistributedDataParallel(Mlp())
    optimizer, again = make(model), make(other)
    train(model, optimizer, range(3))
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer))
    names = [group["param_names"] for group in again.param_groups]
    if way == "set":
        set_optimizer_state_dict(other, again, saved)
    else:
        again.load_state_dict(saved)
    same(states(other, again), states(model, optimizer))
    assert [group["param_names"] for group in again.param_groups] == names


def test_keys_of_distributed_checkpoints_are_names_where_there_are_no_others():
    model, other = compiled(Mlp()), Mlp(OTHER_ORDER)
    optimizer = hfoptim.AdamW(model.parameters())
    train(model, optimizer, range(3))
    again = hfoptim.AdamW(other.named_parameters())
    again.load_state_dict(copy.deepcopy(get_optimizer_state_dict(model, optimizer)))
    same(states(other, again), states(model, optimizer))


@pytest.mark.parametrize("way", ["set", "raw"])
def test_distributed_checkpoints_of_a_part_of_a_model_are_loaded_by_the_names_in_the_part(way):
    model, other = (
        nn.ModuleDict({"part": Mlp(order), "rest": nn.Linear(4, 4)}) for order in (OTHER_ORDER, OTHER_ORDER[::-1])
    )
    optimizer, again = (hfoptim.AdamW(one["part"].named_parameters()) for one in (model, other))
    train(model["part"], optimizer, range(3))
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer))
    if way == "set":
        set_optimizer_state_dict(other, again, saved)
    else:
        again.load_state_dict(saved)
    same(states(other["part"], again), states(model["part"], optimizer))


def test_the_same_name_with_and_without_module_in_two_groups_is_not_mixed_up():
    def make(prefix, swapped=False):
        params = {name: nn.Parameter(torch.ones(2)) for name in ("a", "module.a")}
        groups = [{"params": [(f"{prefix}{name}", param)]} for name, param in params.items()]
        return params, hfoptim.AdamW(groups[::-1] if swapped else groups)

    params, optimizer = make("")
    for number, param in enumerate(params.values()):
        param.grad = torch.full((2,), 1.0 + number)
    optimizer.step()
    others, again = make("_orig_mod.")
    again.load_state_dict(optimizer.state_dict())
    for name, param in others.items():
        assert torch.equal(again.state[param]["exp_avg"], optimizer.state[params[name]]["exp_avg"])
    _, swapped = make("", swapped=True)
    with pytest.raises(ValueError, match=r"only the state_dict has 'a' of shape \(2,\) \(group 1 here\)"):
        swapped.load_state_dict(optimizer.state_dict())


def test_names_that_come_in_two_groups_are_taken_group_by_group():
    def make(order):
        pairs = [[(name, nn.Parameter(torch.ones(2))) for name in order] for _ in range(2)]
        return pairs, hfoptim.AdamW([{"params": named} for named in pairs])

    pairs, optimizer = make(("a", "b"))
    for number, (_, param) in enumerate(pairs[0] + pairs[1]):
        param.grad = torch.full((2,), 1.0 + number)
    optimizer.step()
    others, again = make(("b", "a"))
    again.load_state_dict(optimizer.state_dict())
    for group, other in zip(pairs, others, strict=True):
        for name, param in group:
            assert torch.equal(again.state[dict(other)[name]]["exp_avg"], optimizer.state[param]["exp_avg"])


# -- names on one side -------------------------------------------------------------------------------------------------


UNNAMED = {
    "adamw": lambda params: hfoptim.AdamW(params),
    "lookahead": lambda params: Lookahead(hfoptim.AdamW(params)),
    "lookahead-of-torch": lambda params: Lookahead(torch.optim.AdamW(params)),
    "combined": lambda params: CombinedOptimizer([hfoptim.AdamW(params[:3]), torch.optim.AdamW(params[3:])]),
}


@pytest.mark.parametrize("make", UNNAMED.values(), ids=UNNAMED)
def test_names_of_a_state_dict_are_kept_where_there_are_none(make):
    model, other = Mlp(), Mlp()
    optimizer, again = make(list(model.named_parameters())), make(list(other.parameters()))
    train(model, optimizer, range(2))
    saved = optimizer.state_dict()
    again.load_state_dict(saved)
    assert [group["param_names"] for group in again.param_groups] == [
        group["param_names"] for group in saved["param_groups"]
    ]
    assert again.state_dict()["param_groups"] == saved["param_groups"]
    if isinstance(again, CombinedOptimizer):
        return
    # From then on they tell the order.
    third = Mlp(OTHER_ORDER)
    resumed = make(list(third.named_parameters()))
    resumed.load_state_dict(again.state_dict())
    same(states(third, resumed), states(model, optimizer))


def test_names_that_come_with_a_checkpoint_decide_as_they_did_when_it_was_saved():
    def resumed(cls, names, **options):
        params = {name: nn.Parameter(torch.linspace(-1, 1, 16).reshape(4, 4)) for name in names}
        saved = cls(params.items(), lr=1e-2, **options)
        others = {name: nn.Parameter(param.detach().clone()) for name, param in params.items()}
        again = cls(others.values(), lr=1e-2, **options)
        for step in range(4):
            if step == 2:
                again.load_state_dict(copy.deepcopy(saved.state_dict()))
                with torch.no_grad():
                    for name, param in params.items():
                        others[name].copy_(param)
            for number, name in enumerate(params):
                grad = torch.randn(4, 4, generator=torch.Generator().manual_seed(10 * step + number))
                params[name].grad, others[name].grad = grad.clone(), grad.clone()
            saved.step()
            again.step()
        same(others, params)
        return again

    # Without names all are matrices inside the network, with them the embeddings are not.
    muon = resumed(hfoptim.Muon, ("embed.weight", "layers.0.weight"))
    assert ["exp_avg" in state for state in muon.state.values()] == [True, False]
    mini = resumed(hfoptim.AdamMini, ("attn.q_proj.weight", "attn.v_proj.weight", "other.weight"), dim=4, n_heads=2)
    assert [state["vmean"].numel() for state in mini.state.values()] == [2, 4, 1]


# -- refusals ---------------------------------------------------------------------------------------------------------


SHAPES = {"a": (2, 3), "b": (3,), "c": (3, 2), "d": (4,)}


def made(names, cls=hfoptim.AdamW, named=True, stepped=True, groups=(slice(None),), **options):
    """An optimizer over parameters of these names, in the groups that slices of them make."""
    pairs = [(name, nn.Parameter(torch.ones(SHAPES.get(name, (2, 2))))) for name in names]
    entries = pairs if named else [param for _, param in pairs]
    optimizer = cls([{"params": entries[part]} for part in groups], **options)
    if stepped:
        for _, param in pairs:
            param.grad = torch.ones_like(param)
        optimizer.step()
    return optimizer


TWO = (slice(0, 2), slice(2, None))
REFUSED = {
    "names": (
        {"names": "abcd"},
        {"names": "abc"},
        "group 0 of the state_dict has 4 parameters, here it has 3: only the state_dict has 'd' of shape (4,)",
    ),
    "other names": (
        {"names": "abc"},
        {"names": "abd"},
        "group 0 of the state_dict has other parameters: only the state_dict has 'c' of shape (3, 2); only here are "
        "'d' of shape (4,)",
    ),
    "names, no state": ({"names": "abcd", "stepped": False}, {"names": "abc"}, "only the state_dict has 'd'"),
    "many": (
        {"names": [f"layers.{i}.weight" for i in range(9)]},
        {"names": ["layers.0.weight"]},
        "only the state_dict has 'layers.1.weight' of shape (2, 2), 'layers.2.weight' of shape (2, 2), "
        "'layers.3.weight' of shape (2, 2), 'layers.4.weight' of shape (2, 2), 'layers.5.weight' of shape (2, 2) and 3 "
        "more",
    ),
    "moved": (
        {"names": "abcd", "groups": TWO},
        {"names": "cbad", "groups": TWO},
        "only the state_dict has 'a' of shape (2, 3) (group 1 here); only here are",
    ),
    "groups": (
        {"names": "abcd", "groups": TWO},
        {"names": "abcd"},
        "the state_dict has 2 parameter groups (of 2, 2 parameters), AdamW has 1 parameter group (of 4 parameters): "
        "the parameters are the same, in other groups",
    ),
    "groups and names": (
        {"names": "abcd", "groups": TWO},
        {"names": "abc"},
        "AdamW has 1 parameter group (of 3 parameters): only the state_dict has 'd' of shape (4,)",
    ),
    "no names": (
        {"names": "abcd", "named": False},
        {"names": "abc", "named": False},
        "here it has 3: only the state_dict has shape (4,)",
    ),
    "no names here": (
        {"names": "abcd"},
        {"names": "abb", "named": False},
        "only the state_dict has shape (3, 2) ('c')",
    ),
    "names here": (
        {"names": "bb", "named": False},
        {"names": "bcd"},
        "only the state_dict has shape (3,); only here are shape (3, 2) ('c'), shape (4,) ('d')",
    ),
    "nothing known": (
        {"names": "abcd", "named": False, "stepped": False},
        {"names": "abc"},
        "it does not say which; here are 'a' of shape (2, 3), 'b' of shape (3,), 'c' of shape (3, 2)",
    ),
    "order": (
        {"names": "abcd", "named": False},
        {"names": "bacd"},
        "parameter 'b' of shape (3,): exp_avg has the shape (2, 3) in the state_dict, expected (3,); the state_dict "
        "has no names, so parameters were taken in their order",
    ),
    "order without names": (
        {"names": "abcd", "named": False},
        {"names": "bacd", "named": False},
        "parameter 0 of group 0 of shape (3,): exp_avg has the shape (2, 3) in the state_dict, expected (3,); the "
        "state_dict and the optimizer have no names",
    ),
}


@pytest.mark.parametrize(("saved", "loading", "words"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize(
    "around", [None, Lookahead, lambda inner: CombinedOptimizer([inner])], ids=["alone", "lookahead", "combined"]
)
def test_a_refusal_says_which_parameters(saved, loading, words, around):
    optimizer, state_dict = made(**loading, stepped=False), made(**saved).state_dict()
    if around is not None:
        optimizer = around(optimizer)
        words = words.replace("AdamW has", f"{type(optimizer).__name__} has")
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=re.escape(words)):
        optimizer.load_state_dict(state_dict)
    assert optimizer.state_dict() == before


def test_a_refused_value_says_in_which_group():
    saved = made("abcd", groups=TWO).state_dict()
    saved["param_groups"][1]["lr"] = -1.0
    with pytest.raises(ValueError, match=r"^group 1 of the state_dict: lr=-1\.0"):
        made("abcd", groups=TWO).load_state_dict(saved)


def test_a_member_that_refuses_its_part_is_named():
    one, other = made("ab"), made("cd")
    saved = CombinedOptimizer([one, other]).state_dict()
    loading = CombinedOptimizer([made("ab"), made("cd", cls=hfoptim.Lion)])
    with pytest.raises(ValueError, match=r"^optimizer 1 \(Lion\): the state_dict is not one of Lion"):
        loading.load_state_dict(saved)


@pytest.mark.parametrize("name", ["linear", "greedy", "reduce_lr_on_plateau"])
def test_a_schedule_says_which_groups_there_are(name):
    def scheduled(optimizer):
        options = {"num_warmup_steps": 0, "num_training_steps": 10} if name == "linear" else {}
        return schedules.get_scheduler(name, optimizer, **options)

    one, two = made("abcd", named=False, lr=0.25), made("abcd", groups=(slice(0, 3), slice(3, None)), lr=0.5)
    with pytest.raises(
        ValueError, match=re.escape("1 param groups (lr 0.25), the optimizer has 2: 3 parameters ('a', ")
    ):
        scheduled(two).load_state_dict(scheduled(one).state_dict())
    words = "2 param groups (lr 0.5, 0.5), the optimizer has 1: 4 parameters with lr 0.25"
    with pytest.raises(ValueError, match=re.escape(words)):
        scheduled(one).load_state_dict(scheduled(two).state_dict())


def test_an_accumulators_refusal_names_the_first_five():
    names = [f"layers.{i}" for i in range(8)]
    saved = hfoptim.GradientAccumulator([(name, nn.Parameter(torch.ones(2))) for name in names]).state_dict()
    loading = hfoptim.GradientAccumulator([("layers.0", nn.Parameter(torch.ones(2)))])
    with pytest.raises(ValueError, match=r"unknown \['layers.1', .*, 'layers.5' and 2 more\]"):
        loading.load_state_dict(saved)
