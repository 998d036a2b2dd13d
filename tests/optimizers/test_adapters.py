"""LoRA-RITE and LoRA-FA on pairs of factors: who follows whom, the order of parameters, resuming, what is refused."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from harness import assert_follows, assert_same, feed, flattened, parameters, through_disk, train, values
from torch import nn

import hfoptim

FACTORS = tuple(f"{layer}.lora_{side}.weight" for layer in ("q_proj", "o_proj") for side in "AB")
BOTH = pytest.mark.parametrize("cls", [hfoptim.LoRARite, hfoptim.LoraFAOptimizer])


def trained(params):
    return {name: param for name, param in params.items() if param.requires_grad}


@pytest.mark.parametrize("options", [{"weight_decay": 0.1}, {"lora_scaling": 2.0, "correct_bias": False}], ids=str)
def test_b_follows_pefts_lora_fa_and_a_stays(options):
    module = pytest.importorskip("peft.optimizers.lorafa")
    mine, other = (parameters((*FACTORS, "vector"), torch.float64) for _ in range(2))
    start = values(mine)
    ours = hfoptim.LoraFAOptimizer(list(mine.items()), lr=1e-2, **options)
    for name in other:
        other[name].requires_grad_("lora_A" not in name)
    scales = [options.pop("lora_scaling", 1.0)] * len(other)
    theirs = module.LoraFAOptimizer(
        [{"params": list(other.values()), "names": list(other), "scaling_factors": scales}], lr=1e-2, **options
    )
    rows = ([], [])
    # It multiplies in bfloat16 where it can.
    with mock.patch.object(module, "is_bf16_available", return_value=False):
        for t in range(1, 31):
            feed(trained(mine), t, follow=trained(other))
            feed(trained(other), t)
            ours.step()
            theirs.step()
            rows[0].append(flattened(trained(mine)))
            rows[1].append(flattened(trained(other)))
    assert_follows(*rows, trained({n: p.requires_grad_(mine[n].requires_grad) for n, p in start.items()}), 1e-10)
    for name in mine:
        assert torch.equal(mine[name], start[name]) == ("lora_A" in name)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_the_order_of_parameters_and_stacking_make_no_difference(cls, dtype):
    done = []
    for names, foreach in ((FACTORS, None), (FACTORS[::-1], False)):
        params = parameters(names, dtype)
        optimizer = cls(
            [{"params": [entry]} for entry in params.items()] if foreach is None else params.items(),
            lr=1e-2,
            foreach=foreach,
        )
        train(optimizer, trained(params), range(1, 6))
        done.append({name: params[name].detach() for name in FACTORS})
    for name in FACTORS:
        torch.testing.assert_close(done[0][name], done[1][name], rtol=1e-12, atol=1e-12)


def test_a_step_takes_both_factors_from_before_it():
    """The first step of A where B is zero leaves A as it is, although B has moved in the same step."""
    params = parameters(FACTORS, torch.float64)
    params["q_proj.lora_B.weight"].data.zero_()
    start = values(params)
    optimizer = hfoptim.LoRARite(list(params.items())[::-1], lr=1e-2, update_skipping=0.0)
    train(optimizer, params, [1])
    assert torch.equal(params["q_proj.lora_A.weight"], start["q_proj.lora_A.weight"])
    assert not torch.equal(params["q_proj.lora_B.weight"], start["q_proj.lora_B.weight"])


def test_the_product_moves_alike_however_it_is_divided():
    """B A = (B / s) (s A): the gradients of both factors scale with the other one, and the products stay together."""
    a, b = parameters(FACTORS[:2], torch.float64, seed=3).values()
    products = []
    for scale in (1.0, 8.0):
        params = {FACTORS[0]: nn.Parameter(a.detach() * scale), FACTORS[1]: nn.Parameter(b.detach() / scale)}
        optimizer = hfoptim.LoRARite(list(params.items()), lr=1e-2, eps=0.0, update_skipping=0.0)
        target = torch.arange(35.0, dtype=torch.float64).reshape(5, 7) / 10
        for _ in range(10):
            optimizer.zero_grad()
            (params[FACTORS[1]] @ params[FACTORS[0]] - target).square().sum().backward()
            optimizer.step()
        products.append((params[FACTORS[1]] @ params[FACTORS[0]]).detach())
    moved = (products[0] - (b @ a).detach()).abs().max()
    assert (products[0] - products[1]).abs().max() < 1e-10 * moved


@BOTH
def test_a_run_goes_on_bit_for_bit(cls):
    params, other = (parameters((*FACTORS, "vector")) for _ in range(2))
    whole, half = cls(params.items(), lr=1e-2), cls(other.items(), lr=1e-2)
    train(whole, trained(params), range(1, 9))
    train(half, trained(other), range(1, 5))
    resumed = cls(other.items(), lr=1e-2)
    resumed.load_state_dict(through_disk(half.state_dict()))
    train(resumed, trained(other), range(5, 9))
    assert_same(values(other), values(params))
    assert_same(resumed.state_dict()["state"], whole.state_dict()["state"])


@BOTH
def test_a_gradient_that_is_not_finite_raises_nothing_and_one_of_zero_moves_nothing(cls):
    params = parameters(FACTORS, torch.float64)
    optimizer = cls(params.items(), lr=1e-2)
    start = values(params)
    for param in trained(params).values():
        param.grad = torch.zeros_like(param)
    optimizer.step()
    assert_same(values(params), start)
    for param in trained(params).values():
        param.grad.fill_(float("nan"))
    optimizer.step()


@BOTH
def test_what_is_no_pair_is_refused_and_no_adapter_is_said(cls):
    params = parameters(FACTORS)
    lone = {name: param for name, param in params.items() if name != "q_proj.lora_A.weight"}
    with pytest.raises(ValueError, match=r"q_proj.lora_B.weight is one factor .* q_proj.lora_A.weight, is not among"):
        cls(lone.items())
    with pytest.raises(ValueError, match="are no factors of a product"):
        cls([("lora_A.weight", params[FACTORS[0]]), ("lora_B.weight", params[FACTORS[3]])])
    with pytest.raises(ValueError, match="a rank above a side"):
        cls([("lora_A.weight", nn.Parameter(torch.ones(4, 3))), ("lora_B.weight", nn.Parameter(torch.ones(9, 4)))])
    with pytest.warns(UserWarning, match="none of the 2 parameters is called lora_A or lora_B"):
        cls([nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(3, 4))])
    released = cls(params.items(), gradient_release=True)
    with pytest.raises(ValueError, match="needs another one's value from before"):
        hfoptim.prepare_for_gradient_release(nn.ParameterList(params.values()), released)


@pytest.mark.parametrize("name", ["lora_rite", "lora_fa"])
def test_a_model_of_peft_trains_by_name(name):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["0", "2"]))
    optimizer = hfoptim.create_optimizer_v2(model, name, lr=1e-2)
    x, y = torch.randn(32, 6), torch.randn(32, 3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    frozen = {n for n, p in model.named_parameters() if "lora_A" in n and not p.requires_grad}
    assert len(frozen) == (2 if name == "lora_fa" else 0)
