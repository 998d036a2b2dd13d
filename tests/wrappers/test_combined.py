"""Several optimizers as one: steps, groups, checkpoints and copies are those of the optimizers inside."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

import hfoptim
from hfoptim import CombinedOptimizer
from hfoptim.engine import RuleOptimizer, unwrap, unwrap_all


def model_of(seed=0):
    torch.manual_seed(seed)
    return nn.ModuleDict({"body": nn.Linear(4, 6), "mid": nn.Linear(6, 6), "head": nn.Linear(6, 3)})


def loss_of(model, t):
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(t))
    return model["head"](model["mid"](model["body"](x)).tanh()).square().mean()


def train(model, optimizers, steps, scheduler=None):
    for t in steps:
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss_of(model, t).backward()
        for optimizer in optimizers:
            optimizer.step()
        if scheduler is not None:
            scheduler.step()


def named(model, *parts):
    return [(name, param) for name, param in model.named_parameters() if name.split(".")[0] in parts]


# Two optimizers, of hfoptim and of torch, with and without names and state, around others and on their own.
PAIRS = {
    "lion, adamw": lambda m: [
        hfoptim.Lion([{"params": named(m, "body")}, {"params": named(m, "mid"), "lr": 1e-2}], lr=1e-3),
        hfoptim.AdamW(named(m, "head"), lr=1e-2, weight_decay=0.1),
    ],
    "muon, torch": lambda m: [
        hfoptim.Muon([p for p in m.parameters() if p.ndim == 2], lr=1e-2),
        torch.optim.AdamW([p for p in m.parameters() if p.ndim == 1], lr=1e-3, amsgrad=True),
    ],
    "torch sgd, prodigy": lambda m: [
        torch.optim.SGD(named(m, "body"), lr=1e-1, momentum=0.9),
        hfoptim.Prodigy(named(m, "mid", "head")),
    ],
    "plain sgd, adafactor": lambda m: [
        torch.optim.SGD(named(m, "head"), lr=1e-1),  # no state at all
        hfoptim.Adafactor(named(m, "body", "mid")),
    ],
    "lookahead, schedule-free, adam": lambda m: [
        hfoptim.Lookahead(hfoptim.AdamW(named(m, "body"), lr=1e-2), k=2, pullback_momentum="pullback"),
        hfoptim.AdamWScheduleFree(named(m, "mid"), lr=1e-2),
        hfoptim.Adam(named(m, "head"), lr=1e-2),
    ],
}


@pytest.fixture(params=PAIRS)
def make(request):
    return PAIRS[request.param]


def same_params(one, other):
    for (name, p), (_, q) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(p, q), name


def same(one, other):
    """Whether two state_dicts hold the same, bit for bit."""
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() - {"differentiable"} == other.keys() - {"differentiable"}
        for key in one.keys() - {"differentiable"}:  # torch's own, added whenever it loads something
            same(one[key], other[key])
    elif isinstance(one, list):
        for a, b in zip(one, other, strict=True):
            same(a, b)
    else:
        assert one == other


def test_the_steps_are_those_of_the_optimizers_one_by_one(make):
    model, other = model_of(), model_of()
    start = copy.deepcopy(model)
    combined = CombinedOptimizer(make(model))
    train(model, [combined], range(5))
    train(other, make(other), range(5))
    same_params(model, other)
    assert not any(torch.equal(p, q) for p, q in zip(model.parameters(), start.parameters(), strict=True))


def test_groups_are_live_and_a_schedule_moves_them(make):
    model, other = model_of(), model_of()
    members, alone = make(model), make(other)
    combined = CombinedOptimizer(members)
    assert [id(g) for g in combined.param_groups] == [id(g) for m in members for g in m.param_groups]
    if any(group["lr"] is None for group in combined.param_groups):
        return
    trace = []
    scheduler = LambdaLR(combined, lambda t: 0.5**t)
    schedulers = [LambdaLR(member, lambda t: 0.5**t) for member in alone]
    first = [group["lr"] for group in combined.param_groups]
    for t in range(3):
        trace.append([group["lr"] for group in combined.param_groups])
        train(model, [combined], [t], scheduler)
        train(other, alone, [t])
        for one in schedulers:
            one.step()
    assert trace == [[lr * 0.5**t for lr in first] for t in range(3)]
    same_params(model, other)


def test_the_state_dict_has_torchs_layout():
    model = model_of()
    members = PAIRS["lion, adamw"](model)
    combined = CombinedOptimizer(members)
    train(model, [combined], range(2))
    saved = combined.state_dict()
    assert set(saved) == {"state", "param_groups"}
    assert [group["params"] for group in saved["param_groups"]] == [[0, 1], [2, 3], [4, 5]]
    assert list(saved["state"]) == list(range(6))
    ordered = [p for group in combined.param_groups for p in group["params"]]
    assert [id(p) for p in ordered] == [id(p) for p in model.parameters()]
    for number, param in enumerate(ordered):
        owner = members[0] if number < 4 else members[1]
        assert saved["state"][number]["exp_avg"] is owner.state[param]["exp_avg"]
    # What torch itself makes of groups and state, where no optimizer inside keeps anything apart.
    same(torch.optim.Optimizer.state_dict(combined), saved)


def test_a_checkpoint_goes_on_bit_for_bit(make):
    model = model_of()
    combined = CombinedOptimizer(make(model))
    train(model, [combined], range(3))
    file = io.BytesIO()
    torch.save((model.state_dict(), combined.state_dict()), file)
    file.seek(0)
    weights, saved = torch.load(file, weights_only=True)
    train(model, [combined], range(3, 6))
    resumed = model_of(seed=1)
    resumed.load_state_dict(weights)
    again = CombinedOptimizer(make(resumed))
    again.load_state_dict(saved)
    same(again.state_dict(), saved)
    train(resumed, [again], range(3, 6))
    same_params(model, resumed)
    same(combined.state_dict(), again.state_dict())


def test_parameters_in_another_order_are_found_by_name():
    for kind in (hfoptim.AdamW, torch.optim.AdamW):

        def make(model, turn, kind=kind):
            return CombinedOptimizer([hfoptim.Lion(named(model, "body")[::turn]), kind(named(model, "head")[::turn])])

        model, other = model_of(), model_of()
        combined, turned = make(model, 1), make(other, -1)
        train(model, [combined], range(3))
        other.load_state_dict(model.state_dict())
        turned.load_state_dict(copy.deepcopy(combined.state_dict()))
        assert turned.param_groups[1]["param_names"] == ["head.bias", "head.weight"]
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            if p in combined.state:
                same(dict(combined.state[p]), dict(turned.state[q]))
        train(model, [combined], range(3, 5))
        train(other, [turned], range(3, 5))
        same_params(model, other)


def test_what_does_not_fit_changes_nothing():
    model = model_of()
    members = PAIRS["lion, adamw"](model)
    combined = CombinedOptimizer(members)
    train(model, [combined], range(2))
    before = copy.deepcopy(combined.state_dict())
    wrong = copy.deepcopy(before)
    for entry in wrong["state"].values():
        entry["exp_avg"] += 1.0
    wrong["state"][5]["exp_avg_sq"] = torch.zeros(7)  # the last optimizer's: the first one has loaded by then
    with pytest.raises(ValueError, match=r"head.bias.*: exp_avg_sq has the shape"):
        combined.load_state_dict(wrong)
    same(combined.state_dict(), before)
    assert members[0].state[model["body"].weight]["exp_avg"] is combined.state_dict()["state"][0]["exp_avg"]
    with pytest.raises(ValueError, match=r"has 2 parameter groups .*, CombinedOptimizer has 3"):
        combined.load_state_dict({**before, "param_groups": before["param_groups"][:2]})
    # Whole groups in another order are found by their parameters' names.
    CombinedOptimizer(members[::-1]).load_state_dict(before)
    same(combined.state_dict(), before)


def test_a_failed_load_undoes_what_a_wrapper_inside_has_loaded():
    model = model_of()
    lookahead = hfoptim.Lookahead(hfoptim.Lion(named(model, "body")), k=2)
    combined = CombinedOptimizer([lookahead, hfoptim.AdamW(named(model, "head"))])
    train(model, [combined], range(3))
    before = copy.deepcopy(combined.state_dict())
    wrong = copy.deepcopy(before)
    wrong["state"][0]["lookahead_slow_buff"] += 1.0
    wrong["param_groups"][1]["betas"] = (2.0, 2.0)
    with pytest.raises(ValueError, match="betas"):
        combined.load_state_dict(wrong)
    same(combined.state_dict(), before)


def test_the_closure_is_called_once_with_gradients():
    model, calls = model_of(), []
    combined = CombinedOptimizer(PAIRS["lion, adamw"](model))

    def closure():
        calls.append(torch.is_grad_enabled())
        combined.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        return loss

    with torch.no_grad():
        loss = combined.step(closure)
    assert calls == [True]
    assert loss.requires_grad
    assert combined.step() is None
    combined.zero_grad(set_to_none=False)
    assert all(not param.grad.any() for param in model.parameters())
    combined.zero_grad()
    assert all(param.grad is None for param in model.parameters())


def test_hooks_are_called():
    model = model_of()
    combined = CombinedOptimizer(PAIRS["lion, adamw"](model))
    seen = []
    combined.register_step_pre_hook(lambda *args: seen.append("before"))
    combined.register_step_post_hook(lambda *args: seen.append("after"))
    combined.optimizers[1].register_step_post_hook(lambda *args: seen.append("inside"))
    combined.register_state_dict_pre_hook(lambda optimizer: seen.append("saving"))
    combined.register_state_dict_post_hook(lambda optimizer, state_dict: {**state_dict, "more": 1})
    combined.register_load_state_dict_pre_hook(lambda optimizer, state_dict: {**state_dict, "param_groups": groups})
    combined.register_load_state_dict_post_hook(lambda optimizer: seen.append("loaded"))
    train(model, [combined], range(1))
    assert seen == ["before", "inside", "after"]
    saved = combined.state_dict()
    assert saved.pop("more") == 1
    groups = copy.deepcopy(saved["param_groups"])
    groups[0]["lr"] = 0.5
    combined.load_state_dict(saved)
    assert combined.param_groups[0]["lr"] == 0.5
    assert seen[3:] == ["saving", "loaded"]


def test_an_added_group_comes_last_and_goes_to_the_optimizer_that_is_named():
    model = model_of()
    lion, adamw = hfoptim.Lion(named(model, "body"), lr=1e-3), hfoptim.AdamW(named(model, "head"), lr=1e-2)
    combined = CombinedOptimizer([lion, adamw])
    combined.add_param_group({"params": [("mid.weight", model["mid"].weight)], "lr": 0.3})
    assert [group["lr"] for group in combined.param_groups] == [1e-3, 1e-2, 0.3]
    assert len(lion.param_groups) == 2
    combined.add_param_group({"params": [("mid.bias", model["mid"].bias)]}, optimizer=1)
    assert [group["lr"] for group in combined.param_groups] == [1e-3, 1e-2, 0.3, 1e-2]
    assert len(adamw.param_groups) == 2
    train(model, [combined], range(1), LambdaLR(combined, lambda t: 0.5**t))
    assert [group["lr"] for group in combined.param_groups] == [5e-4, 5e-3, 0.15, 5e-3]
    saved = combined.state_dict()
    assert [group["params"] for group in saved["param_groups"]] == [[0, 1], [2, 3], [4], [5]]
    assert "exp_avg_sq" not in saved["state"][4]
    assert "exp_avg_sq" in saved["state"][5]
    before = copy.deepcopy(saved)
    combined.load_state_dict(before)
    same(combined.state_dict(), saved)
    with pytest.raises(ValueError, match="one of the optimizers has already"):
        combined.add_param_group({"params": model["head"].weight})
    with pytest.raises(ValueError, match="gradient_release=True"):
        combined.add_param_group({"params": [nn.Parameter(torch.ones(2))], "gradient_release": True})
    with pytest.raises(IndexError):
        combined.add_param_group({"params": [("more", nn.Parameter(torch.ones(2)))]}, optimizer=2)
    assert len(combined.param_groups) == 4
    # One that was given to an optimizer directly is noticed.
    lion.add_param_group({"params": [("more", nn.Parameter(torch.ones(2)))], "lr": 0.7})
    assert [group["lr"] for group in combined.param_groups] == [5e-4, 5e-3, 0.15, 5e-3, 0.7]


def test_copies_and_pickles_stand_on_their_own(make):
    model = model_of()
    combined = CombinedOptimizer(make(model))
    train(model, [combined], range(2))
    for both in (copy.deepcopy((model, combined)), pickle.loads(pickle.dumps((model, combined)))):
        twin, other = both
        same(other.state_dict(), combined.state_dict())
        assert [id(p) for g in other.param_groups for p in g["params"]] != [
            id(p) for g in combined.param_groups for p in g["params"]
        ]
        ahead, leader = copy.deepcopy((model, combined))
        train(twin, [other], range(2, 4))
        train(ahead, [leader], range(2, 4))
        same_params(twin, ahead)
    same_params(model, copy.deepcopy(model))
    assert "CombinedOptimizer" in repr(combined)


def test_training_and_evaluation_modes_reach_those_that_have_them():
    model = model_of()
    members = PAIRS["lookahead, schedule-free, adam"](model)
    combined = CombinedOptimizer(members)
    train(model, [combined], range(3))
    at_y = copy.deepcopy(model.state_dict())
    combined.eval()
    assert not members[1].param_groups[0]["train_mode"]
    assert not torch.equal(model["mid"].weight, at_y["mid.weight"])
    assert torch.equal(model["head"].weight, at_y["head.weight"])
    combined.train()
    assert all(torch.equal(value, at_y[name]) for name, value in model.state_dict().items())
    combined.eval()
    with pytest.raises(RuntimeError):  # of the optimizer inside
        combined.step()


def test_accelerate_prepares_saves_and_loads_it():
    model, other = model_of(), model_of()
    accelerator = Accelerator(cpu=True)
    members = PAIRS["lion, adamw"](model)
    combined = CombinedOptimizer(members)
    prepared = accelerator.prepare(combined)  # saves the state_dict and loads it
    assert not combined.state
    assert unwrap(prepared, CombinedOptimizer) is combined
    assert unwrap(prepared, RuleOptimizer) is None
    assert unwrap_all(prepared, RuleOptimizer) == members
    scheduler = accelerator.prepare(LambdaLR(combined, lambda t: 0.5**t))
    train(model, [prepared], range(3), scheduler)
    alone = PAIRS["lion, adamw"](other)
    for t in range(3):
        train(other, alone, [t])
        for group in alone[0].param_groups + alone[1].param_groups:
            group["lr"] *= 0.5
    same_params(model, other)
    saved = copy.deepcopy(prepared.state_dict())
    prepared.load_state_dict(saved)
    same(prepared.state_dict(), saved)


def test_gradscaler_scales_and_skips_for_all():
    model, other = model_of(), model_of()
    combined, alone = CombinedOptimizer(PAIRS["lion, adamw"](model)), PAIRS["lion, adamw"](other)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(loss_of(model, 0)).backward()
    scaler.step(combined)
    scaler.update()
    train(other, alone, [0])
    same_params(model, other)
    combined.zero_grad()
    scaler.scale(loss_of(model, 1)).backward()
    model["head"].bias.grad.fill_(float("inf"))
    scaler.step(combined)
    same_params(model, other)


def test_the_state_is_a_mapping_from_parameters():
    model = model_of()
    members = PAIRS["lion, adamw"](model)
    combined = CombinedOptimizer(members)
    assert not combined.state
    assert combined.state.get(model["head"].bias) is None
    assert not combined.state  # asking has made nothing
    combined.state[model["head"].bias]["mine"] = 1  # as in any optimizer's state
    assert members[1].state[model["head"].bias] == {"mine": 1}
    del combined.state[model["head"].bias]
    with pytest.raises(KeyError):
        combined.state[nn.Parameter(torch.ones(1))]
    train(model, [combined], range(1))
    assert {id(p) for p in combined.state} == {id(p) for p in model.parameters()}
    assert combined.state[model["head"].weight] is members[1].state[model["head"].weight]
    kept = dict(combined.state)
    combined.state = {}
    assert not members[0].state
    combined.state = kept
    assert combined.state[model["mid"].bias] is kept[model["mid"].bias]
    assert combined.defaults is members[0].defaults
    groups = combined.param_groups
    combined.param_groups = [{**group, "lr": 0.25} for group in groups]
    assert [len(member.param_groups) for member in members] == [2, 1]
    assert {group["lr"] for member in members for group in member.param_groups} == {0.25}
    with pytest.raises(ValueError, match="1 parameter groups, expected the 3"):
        combined.param_groups = groups[:1]


def test_it_goes_inside_of_others_and_around_itself():
    model, other = model_of(), model_of()
    inside = CombinedOptimizer(PAIRS["lion, adamw"](model))
    outside = CombinedOptimizer([hfoptim.Lookahead(inside, k=2)])
    alone = [hfoptim.Lookahead(member, k=2) for member in PAIRS["lion, adamw"](other)]
    train(model, [outside], range(3))
    train(other, alone, range(3))
    same_params(model, other)
    saved = copy.deepcopy(outside.state_dict())
    outside.load_state_dict(saved)
    same(outside.state_dict(), saved)
    assert [type(found) for found in unwrap_all(outside, RuleOptimizer)] == [hfoptim.Lion, hfoptim.AdamW]
    second = CombinedOptimizer([hfoptim.Adahessian([nn.Parameter(torch.ones(2))])])
    assert second.is_second_order
    assert not inside.is_second_order


def test_each_ascends_or_descends_as_it_was_made_to():
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    combined = CombinedOptimizer([hfoptim.SGD([p], lr=0.1), hfoptim.SGD([q], lr=0.1, maximize=True)])
    (p.sum() + q.sum()).backward()
    combined.step()
    assert (p < 1).all()
    assert (q > 1).all()


def test_bad_input_is_refused():
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    sgd = hfoptim.SGD([p], lr=0.1)
    with pytest.raises(TypeError, match="optimizers is a SGD, expected a list of optimizers"):
        CombinedOptimizer(sgd)
    with pytest.raises(TypeError, match="optimizers holds 'sgd', a str"):
        CombinedOptimizer([sgd, "sgd"])
    with pytest.raises(ValueError, match="optimizers is empty"):
        CombinedOptimizer([])
    with pytest.raises(ValueError, match="1 parameters are in more than one of the optimizers"):
        CombinedOptimizer([sgd, hfoptim.Lion([q, p])])
    with pytest.raises(ValueError, match="more than one"):
        CombinedOptimizer([sgd, sgd])
    for closing in (torch.optim.LBFGS([q]), hfoptim.SAM([q], "sgd", lr=0.1), hfoptim.Lookahead(torch.optim.LBFGS([q]))):
        with pytest.raises(ValueError, match=r"(LBFGS|SAM) evaluates the model anew"):
            CombinedOptimizer([sgd, closing])
    with pytest.raises(ValueError, match="gradient_release=True steps parameters of one optimizer"):
        CombinedOptimizer([sgd, hfoptim.Lion([q], gradient_release=True)])
    with pytest.raises(ValueError, match="CombinedOptimizer does not work with gradient release"):
        hfoptim.prepare_for_gradient_release(nn.ParameterList([p, q]), CombinedOptimizer([sgd, hfoptim.Lion([q])]))

    class Chatty(torch.optim.SGD):
        def state_dict(self):
            return {**super().state_dict(), "mood": "good"}

    with pytest.raises(ValueError, match="Chatty keeps mood in its state_dict"):
        CombinedOptimizer([sgd, Chatty([q], lr=0.1)])
