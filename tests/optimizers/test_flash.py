"""The name flashadamw: AdamW with FlashOptim's choice of memory, 8-bit state and 24 bits of bfloat16 weights."""

from __future__ import annotations

import pytest
import torch
from harness import assert_same, through_disk, train, values

import hfoptim


def params(dtype=torch.bfloat16):
    g = torch.Generator().manual_seed(0)
    shapes = {"matrix": (64, 128), "norm": (128,)}
    return {name: torch.nn.Parameter(torch.randn(shape, generator=g).to(dtype)) for name, shape in shapes.items()}


def flash(given, **options):
    return hfoptim.get_optimizer_class("flashadamw")(list(given.items()), **options)


def test_it_is_adamw_with_these_options():
    mine, other = params(), params()
    options = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1, "decouple_wd": True}
    ours = flash(mine, lr=1e-3, weight_decay=0.1)
    theirs = hfoptim.Adam(list(other.items()), lr=1e-3, **options, state_dtype="8bit", master_weights=8)
    train(ours, mine, range(1, 6))
    train(theirs, other, range(1, 6))
    assert_same(values(mine), values(other))
    assert_same(ours.state_dict()["state"], theirs.state_dict()["state"])
    assert hfoptim.get_optimizer_info("Flash_AdamW").opt_class is hfoptim.Adam


def test_what_it_keeps():
    for dtype, more in ((torch.bfloat16, 1), (torch.float32, 0)):
        given = params(dtype)
        optimizer = flash(given, lr=1e-3)
        train(optimizer, given, range(1, 3))
        state = optimizer.state[given["matrix"]]
        kept = sum(value.numel() * value.element_size() for value in state.values() if value.ndim)
        assert kept / given["matrix"].numel() == pytest.approx(2 + more + 2 * 4 / 128)  # a scale per row and state
        assert optimizer.state[given["norm"]]["exp_avg"].dtype == torch.float32


def test_it_stays_near_float32_weights_and_state():
    short, exact = params(), params(torch.float32)
    with torch.no_grad():
        for name, param in short.items():
            exact[name].copy_(param)
    start = values(exact)
    ours = flash(short, lr=1e-3)
    theirs = torch.optim.AdamW(exact.values(), lr=1e-3)
    follow = params(torch.float32)
    train(ours, short, range(1, 31), follow=follow)
    train(theirs, exact, range(1, 31), follow=follow)
    for name, param in short.items():
        far, moved = (param.detach().float() - exact[name].detach()).norm(), (exact[name].detach() - start[name]).norm()
        assert far < 0.2 * moved + param.detach().float().norm() / 256


def test_a_run_that_resumes_goes_on_bit_for_bit():
    whole, first = params(), params()
    a, b = flash(whole, lr=1e-3), flash(first, lr=1e-3)
    train(a, whole, range(1, 7))
    train(b, first, range(1, 4))
    again = {name: torch.nn.Parameter(param.detach().clone()) for name, param in first.items()}
    c = flash(again, lr=1e-3)
    c.load_state_dict(through_disk(b.state_dict()))
    train(c, again, range(4, 7))
    assert_same(values(again), values(whole))
    assert_same(c.state_dict()["state"], a.state_dict()["state"])


def test_flashoptims_names_of_options_and_double_precision():
    with pytest.raises(TypeError, match="here it is called 'master_weights'"):
        flash(params(), lr=1e-3, master_weight_bits=24)
    with pytest.raises(TypeError, match="here it is called 'state_dtype'"):
        flash(params(), lr=1e-3, quantize=False)
    given = params(torch.float64)
    with pytest.raises(ValueError, match="state_dtype='8bit' is for float32, bfloat16 and float16"):
        train(flash(given, lr=1e-3), given, range(1, 2))
