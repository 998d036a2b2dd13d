"""What only ADOPT, Adan, AdEMAMix or Adagrad have."""

from __future__ import annotations

import math

import pytest
import torch
from harness import assert_same, feed, parameters, through_disk, train, values

import hfoptim

NAMES = ("matrix", "vector", "conv")


def test_adopts_first_step_only_sets_the_second_moment():
    for options in ({}, {"decoupled": True}, {"clip_exp": None, "eps": 0.0}, {"clip_exp": 0.0, "caution": True}):
        params = parameters(NAMES)
        start = values(params)
        optimizer = hfoptim.Adopt(list(params.items()), lr=0.1, weight_decay=0.1, **options)
        feed(params, 1)
        params["vector"].grad.zero_()
        seen = {
            name: param.grad + (0.0 if "decoupled" in options else 0.1) * start[name] for name, param in params.items()
        }
        optimizer.step()
        assert_same(values(params), start)
        for name, param in params.items():
            torch.testing.assert_close(optimizer.state[param]["exp_avg_sq"], seen[name] ** 2)
            assert not optimizer.state[param]["exp_avg"].any()


def test_adopt_moves_by_no_more_than_its_clip():
    param = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = hfoptim.Adopt([param], lr=1.0, betas=(0.0, 0.5), clip_exp=0.5)
    for t, size in enumerate((1e-3, 1e3, 1e6, 1e9), 1):
        before = param.detach().clone()
        param.grad = torch.tensor([size, -size, 0.0], dtype=torch.float64)
        optimizer.step()
        clip = math.sqrt(t - 1)  # of the gradients before this one
        torch.testing.assert_close(before - param.detach(), torch.tensor([clip, -clip, 0.0], dtype=torch.float64))


def test_names_bind_where_the_decay_enters():
    params = parameters(NAMES)
    for name, option in (("adoptw", "decoupled"), ("adanw", "no_prox")):
        plain = name[:-1]
        assert hfoptim.create_optimizer_v2(params.values(), name).defaults[option] is True
        assert hfoptim.create_optimizer_v2(params.values(), plain).defaults[option] is False
        assert hfoptim.get_optimizer_class(plain) is hfoptim.get_optimizer_class(name, bind_defaults=False)


def test_adans_proximal_decay_minimises_what_it_should():
    # p / (1 + lr wd) is where lr wd / 2 |q|^2 + 1/2 |q - p|^2 is least; without a gradient nothing else moves.
    param = torch.nn.Parameter(torch.tensor([2.0, -3.0], dtype=torch.float64))
    optimizer = hfoptim.Adan([param], lr=0.5, weight_decay=2.0)
    param.grad = torch.zeros_like(param)
    optimizer.step()
    torch.testing.assert_close(param.detach(), torch.tensor([1.0, -1.5], dtype=torch.float64))


def test_a_step_count_of_the_group_counts_for_its_parameters():
    # timm's Adan counts there.
    params, other = parameters(NAMES), parameters(NAMES)
    theirs, ours = hfoptim.Adan(list(params.values())), hfoptim.Adan(list(other.values()))
    train(theirs, params, range(1, 4))
    saved = through_disk(theirs.state_dict())
    expected = through_disk(theirs.state_dict())
    for state in saved["state"].values():
        del state["step"]
    saved["param_groups"][0]["step"] = 3
    ours.load_state_dict(saved)
    assert_same(ours.state_dict(), expected)
    with pytest.raises(ValueError, match="step"):
        ours.load_state_dict({**saved, "param_groups": expected["param_groups"]})


def test_ademamix_takes_the_authors_checkpoint_if_the_warm_up_is_the_same():
    def authors(params, alpha_warmup, beta3_warmup):
        optimizer = hfoptim.AdEMAMix(list(params.values()), t_alpha_beta3=20)
        train(optimizer, params, range(1, 4))
        state_dict = through_disk(optimizer.state_dict())
        for state in state_dict["state"].values():
            state["step"] = int(state["step"])
        options = {"lr": 1e-2, "betas": (0.8, 0.9, 0.99), "eps": 1e-8, "alpha": 2.0, "weight_decay": 0.1}
        warmups = {"alpha_warmup": alpha_warmup, "beta3_warmup": beta3_warmup}
        state_dict["param_groups"] = [{**options, **warmups, "params": state_dict["param_groups"][0]["params"]}]
        return optimizer, state_dict

    params, other = parameters(NAMES), parameters(NAMES)
    theirs, saved = authors(params, 20, 20)
    ours = hfoptim.AdEMAMix(list(other.values()), t_alpha_beta3=20)
    ours.load_state_dict(saved)
    group = ours.param_groups[0]
    assert (group["alpha"], group["betas"], group["t_alpha_beta3"]) == (2.0, (0.8, 0.9, 0.99), 20)
    assert_same({n: dict(ours.state[other[n]]) for n in NAMES}, {n: dict(theirs.state[params[n]]) for n in NAMES})
    for wrong in ((20, None), (30, 30)):
        with pytest.raises(ValueError, match="_warmup="):
            ours.load_state_dict(authors(parameters(NAMES), *wrong)[1])


def test_ademamixs_warm_up_needs_betas_it_can_take_the_logarithm_of():
    params = list(parameters(("matrix",)).values())
    for betas in ((1 - 1e-9, 0.9, 0.99), (0.9, 0.9, 1 - 1e-9)):
        hfoptim.AdEMAMix(params, betas=betas)
        with pytest.raises(ValueError, match=r"betas\[[02]\]=0.999999999 is too close to 1 for a warm-up"):
            hfoptim.AdEMAMix(params, betas=betas, t_alpha_beta3=10)


def test_adagrads_groups_begin_where_they_are_told():
    params = parameters(("matrix", "vector"))
    optimizer = hfoptim.Adagrad(
        [{"params": [params["matrix"]], "initial_accumulator_value": 0.5}, {"params": [params["vector"]]}]
    )
    train(optimizer, params, range(1, 2))
    for name, first in (("matrix", 0.5), ("vector", 0.0)):
        torch.testing.assert_close(optimizer.state[params[name]]["sum"], first + params[name].grad ** 2)


def test_adabounds_bounds_are_relative_to_the_lr_that_a_group_was_made_with():
    alone, among = (parameters(NAMES) for _ in range(2))
    optimizer = hfoptim.AdaBound([among["vector"], among["conv"]], lr=0.1)
    optimizer.add_param_group({"params": [among["matrix"]], "lr": 1e-3})
    train(optimizer, among, range(1, 6))
    train(hfoptim.AdaBound([alone["matrix"]], lr=1e-3), alone, range(1, 6))
    assert [group["base_lr"] for group in optimizer.param_groups] == [0.1, 1e-3]
    assert_same({"matrix": among["matrix"].detach()}, {"matrix": alone["matrix"].detach()})
