"""GaLore, APOLLO and Fira: what is projected, what state that is, and what the subspaces are made of."""

from __future__ import annotations

import pytest
import torch
from harness import assert_same, feed, through_disk, train, values
from torch import nn

import hfoptim
from hfoptim.compare.runs import state_bytes_per_param

MATRICES = {"mlp.weight": (80, 64), "attn.weight": (64, 96)}
EVERY = ["galore_adamw", "galore_adafactor", "apollo_adamw", "apollo_mini", "fira"]


def made(name, shapes=MATRICES, dtype=torch.float32, **options):
    g = torch.Generator().manual_seed(0)
    params = {key: nn.Parameter(torch.randn(shape, generator=g).to(dtype)) for key, shape in shapes.items()}
    return params, hfoptim.create_optimizer_v2(list(params.items()), name, lr=1e-3, **options)


@pytest.mark.parametrize("state_dtype", ["8bit", "4bit", "bfloat16"])
@pytest.mark.parametrize("name", ["galore_adamw", "apollo_adamw"])
def test_projected_moments_are_kept_in_fewer_bits(name, state_dtype):
    options = {"rank": 16, "update_proj_gap": 4}
    params, narrow = made(name, state_dtype=state_dtype, **options)
    other, full = made(name, **options)
    start = values(other)
    for optimizer, own in ((narrow, params), (full, other)):
        train(optimizer, own, range(1, 10))
    sizes = [state_bytes_per_param(optimizer) for optimizer in (narrow, full)]
    moments = {"8bit": 1 + 4 / 256, "4bit": 0.5 + 4 / 128, "bfloat16": 2}[state_dtype]
    low, bases = 16 * (80 + 96), 16 * (64 + 64)
    assert sizes[1] * (80 * 64 + 64 * 96) == pytest.approx(4 * (2 * low + bases), abs=32)
    assert sizes[0] * (80 * 64 + 64 * 96) == pytest.approx(2 * moments * low + 4 * bases, rel=0.01)
    for key in params:
        moved = (other[key] - start[key]).norm()
        assert 0 < (params[key] - other[key]).norm() < {"4bit": 0.5}.get(state_dtype, 0.1) * moved
    again, resumed = {key: nn.Parameter(param.detach().clone()) for key, param in params.items()}, None
    resumed = hfoptim.create_optimizer_v2(list(again.items()), name, lr=1e-3, state_dtype=state_dtype, **options)
    resumed.load_state_dict(through_disk(narrow.state_dict()))
    train(resumed, again, range(10, 14))
    train(narrow, params, range(10, 14))
    assert_same(values(again), values(params))
    wide = hfoptim.create_optimizer_v2(list(again.items()), name, lr=1e-3, **options)
    wide.load_state_dict(through_disk(narrow.state_dict()))
    state = wide.state[again["mlp.weight"]]
    assert (state["exp_avg"].dtype, state["exp_avg"].shape) == (torch.float32, (80, 16))


def test_rank_in_groups_is_for_all_of_their_parameters():
    embedding, matrix = nn.Parameter(torch.randn(9, 6)), nn.Parameter(torch.randn(6, 9))
    optimizer = hfoptim.GaLoreAdamW([{"params": [embedding], "rank": 2}, {"params": [matrix]}])
    feed({"embedding": embedding, "matrix": matrix}, 1)
    optimizer.step()
    assert optimizer.state[embedding]["exp_avg"].shape == (9, 2)
    assert optimizer.state[matrix]["exp_avg"].shape == (6, 9)
    with pytest.raises(ValueError, match=r"of shape \(3,\), which is no matrix"):
        hfoptim.GaLoreAdamW([{"params": [nn.Parameter(torch.zeros(3))], "rank": 2}])
    with pytest.raises(ValueError, match="is a matrix inside a network, all would get steps without a projection"):
        hfoptim.GaLoreAdamW([("embed.weight", nn.Parameter(torch.zeros(3, 3)))], rank=2)


@pytest.mark.parametrize("name", EVERY)
def test_stacks_of_matrices_are_projected_one_by_one(name):
    options = {"rank": 2, "update_proj_gap": 2, **({"proj": "svd"} if name.startswith("apollo") else {})}
    stack, optimizer = made(name, {"experts.weight": (3, 7, 5)}, torch.float64, **options)
    alone, others = made(name, {f"expert{i}.weight": (7, 5) for i in range(3)}, torch.float64, **options)
    with torch.no_grad():
        for part, whole in zip(alone.values(), stack["experts.weight"], strict=True):
            part.copy_(whole)
    for t in range(1, 6):
        feed(stack, t)
        for part, grad in zip(alone.values(), stack["experts.weight"].grad, strict=True):
            part.grad = grad.clone()
        optimizer.step()
        others.step()
    torch.testing.assert_close(stack["experts.weight"].detach(), torch.stack([*alone.values()]).detach())


@pytest.mark.parametrize("name", EVERY)
def test_gradients_of_zeros_and_without_a_number_do_not_stop_a_step(name):
    params, optimizer = made(name, rank=4, update_proj_gap=1)
    for value in (0.0, None, float("nan")):
        for key, param in params.items():
            param.grad = torch.randn_like(param) if value is None else torch.full_like(param, value)
            if value != value:
                param.grad = None if key == "mlp.weight" else param.grad
        optimizer.step()
        if value == value:
            assert all(param.isfinite().all() for param in params.values())
    assert params["mlp.weight"].isfinite().all()
    assert params["attn.weight"].isnan().all()


def test_random_subspaces_differ_between_parameters_and_in_time_and_not_between_runners():
    shapes = {f"layer{i}.weight": (8, 6) for i in range(3)}
    found = []
    for foreach in (True, False):
        params, optimizer = made("apollo_adamw", shapes, rank=3, update_proj_gap=2, foreach=foreach)
        for t in (1, 2, 3):
            train(optimizer, params, [t])
            found.append([optimizer.state[param]["ortho_matrix"].clone() for param in params.values()])
    first, second, third = found[:3]
    assert_same(found[:3], found[3:])
    assert_same(first, second)
    kinds = [*first, *third]
    assert all(not torch.equal(a, b) for i, a in enumerate(kinds) for b in kinds[:i])
    many = made("apollo_adamw", {"wide.weight": (400, 900)}, rank=64)
    train(many[1], many[0], [1])
    drawn = many[1].state[many[0]["wide.weight"]]["ortho_matrix"]
    assert (drawn.mean().abs().item(), drawn.std().item()) == pytest.approx((0.0, 1.0), abs=0.02)


def test_the_rank_is_at_most_that_of_the_matrix_and_stays_what_it_was():
    params, optimizer = made("galore_adamw", {"mlp.weight": (5, 3)}, rank=128)
    train(optimizer, params, [1])
    assert optimizer.state[params["mlp.weight"]]["ortho_matrix"].shape == (3, 3)
    optimizer.param_groups[0]["rank"] = 2
    train(optimizer, params, [2])
    assert optimizer.state[params["mlp.weight"]]["ortho_matrix"].shape == (3, 3)
