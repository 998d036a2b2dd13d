"""MARS with `is_approx=False`: the gradient of each batch at the parameters before the last step, by a closure."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import hfoptim

STEPS = 12


def batches(shape: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    """Losses: of each the slope and the curvature of every entry."""
    generator = torch.Generator().manual_seed(3)
    return [
        (
            torch.randn(shape, dtype=torch.float64, generator=generator),
            torch.rand(shape, dtype=torch.float64, generator=generator),
        )
        for _ in range(STEPS)
    ]


def closure_of(params: dict[str, Tensor], losses: dict[str, tuple[Tensor, Tensor]]) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        for param in params.values():
            param.grad = None
        parts = [(b * p + a * p * p / 2).sum() for p, (b, a) in zip(params.values(), losses.values(), strict=True)]
        loss: Tensor = torch.stack(parts).sum()
        loss.backward()
        return loss

    return closure


def trained(options: dict[str, Any], start: dict[str, Tensor], steps: int = STEPS, resume: int = 0) -> dict[str, Any]:
    """The parameters after some steps; with `resume` by a new optimizer from there on."""
    params = {name: torch.nn.Parameter(value.clone()) for name, value in start.items()}
    optimizer = hfoptim.Mars(list(params.items()), **options)
    given = {name: batches(tuple(value.shape)) for name, value in start.items()}
    for step in range(steps):
        if step and step == resume:
            saved = copy.deepcopy(optimizer.state_dict())
            params = {name: torch.nn.Parameter(value.detach().clone()) for name, value in params.items()}
            optimizer = hfoptim.Mars(list(params.items()), **options)
            optimizer.load_state_dict(saved)
        optimizer.step(closure_of(params, {name: each[step] for name, each in given.items()}))
    return {name: value.detach() for name, value in params.items()}


def start() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "model.a.weight": torch.randn(6, 4, dtype=torch.float64, generator=generator),
        "model.a.bias": torch.randn(6, dtype=torch.float64, generator=generator),
    }


def as_in_the_paper(x: Any, losses: Any, kind: str, lr: float, decay: float, gamma: float, sign: float = 1.0) -> Any:
    """Yuan et al., arXiv 2411.10438, algorithms 1 to 3: c with both gradients of the same batch."""
    beta1, beta2, eps = 0.9, 0.99, 1e-8
    before, m, v = x, np.zeros_like(x), np.zeros_like(x)
    for t, (b, a) in enumerate(losses, 1):
        g, g_before = sign * (b + a * x), sign * (b + a * before)
        c = g + gamma * beta1 / (1 - beta1) * (g - g_before)
        c = c / max(1.0, np.sqrt(np.sum(c**2)))
        m = beta1 * m + (1 - beta1) * c
        v = beta2 * v + (1 - beta2) * c**2
        u = np.sign(m) if kind == "lion" else m / (1 - beta1**t) / (np.sqrt(v / (1 - beta2**t)) + eps)
        before, x = x, x - lr * (u + decay * x)
    return x


@pytest.mark.parametrize("backend", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str)
@pytest.mark.parametrize("kind", ["adamw", "lion"])
def test_it_is_the_papers(kind, backend):
    first = start()
    options = {"lr": 1e-2, "gamma": 0.5, "weight_decay": 0.1, "mars_type": kind, "optimize_1d": True}
    found = trained({**options, "is_approx": False, **backend}, first)
    for name, value in first.items():
        losses = [(b.numpy(), a.numpy()) for b, a in batches(tuple(value.shape))]
        want = as_in_the_paper(value.numpy(), losses, kind, 1e-2, 0.1, 0.5)
        moved = np.abs(want - value.numpy()).max()
        assert np.abs(found[name].numpy() - want).max() <= 1e-12 * moved
        # And not the approximate form's.
        other = trained(options, first)[name].numpy()
        assert np.abs(other - want).max() > 1e-3 * moved


def test_under_maximize_both_gradients_are_turned():
    first = start()
    found = trained({"lr": 1e-2, "gamma": 0.5, "optimize_1d": True, "is_approx": False, "maximize": True}, first)
    for name, value in first.items():
        losses = [(b.numpy(), a.numpy()) for b, a in batches(tuple(value.shape))]
        want = as_in_the_paper(value.numpy(), losses, "adamw", 1e-2, 0.0, 0.5, -1.0)
        assert np.abs(found[name].numpy() - want).max() <= 1e-12 * np.abs(want - value.numpy()).max()


@pytest.mark.parametrize("more", [{}, {"mars_type": "shampoo"}, {"state_dtype": "bfloat16"}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_goes_on_after_a_checkpoint(more, dtype):
    options = {"lr": 1e-2, "gamma": 0.5, "is_approx": False, **more}
    first = {name: value.to(dtype) for name, value in start().items()}
    whole, resumed = trained(options, first), trained(options, first, resume=5)
    assert all(torch.equal(whole[name], resumed[name]) for name in first)


def test_the_parameters_are_where_they_were_if_the_closure_fails():
    params = {name: torch.nn.Parameter(value) for name, value in start().items()}
    optimizer = hfoptim.Mars(list(params.items()), is_approx=False)
    optimizer.step(closure_of(params, {name: batches(tuple(p.shape))[0] for name, p in params.items()}))
    before = [param.detach().clone() for param in params.values()]

    def fails() -> None:
        raise KeyError("batch")

    with pytest.raises(KeyError, match="batch"):
        optimizer.step(fails)
    assert all(torch.equal(param, kept) for param, kept in zip(params.values(), before, strict=True))


def test_what_it_cannot_do_is_refused():
    params = list(start().items())
    named = [(name, torch.nn.Parameter(value)) for name, value in params]
    optimizer = hfoptim.Mars(named, is_approx=False)
    named[0][1].grad = torch.ones(6, 4, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"call step\(closure\)"):
        optimizer.step()
    with pytest.raises(ValueError, match=r"is_approx=False with adaptive_clip=0\.01"):
        hfoptim.Mars(named, is_approx=False, adaptive_clip=0.01)


AROUND = {
    "ema": lambda inner: hfoptim.EMA(inner),
    "lookahead": lambda inner: hfoptim.Lookahead(inner, k=100),
}


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_wrappers_that_leave_gradients_alone_hand_the_closure_on(around):
    first, options = start(), {"lr": 1e-2, "gamma": 0.5, "is_approx": False}
    want, params = trained(options, first), {name: torch.nn.Parameter(value.clone()) for name, value in first.items()}
    optimizer = around(hfoptim.Mars(list(params.items()), **options))
    steps = zip(*(batches(tuple(param.shape)) for param in params.values()), strict=True)
    for batch in steps:
        optimizer.step(closure_of(params, dict(zip(params, batch, strict=True))))
    assert all(torch.equal(params[name], value) for name, value in want.items())


@pytest.mark.parametrize(
    "around",
    [
        hfoptim.GrokFast,
        hfoptim.ScheduleFree,
        hfoptim.Mechanic,
        hfoptim.SVRG,
        lambda inner: hfoptim.SAM(None, inner),
        lambda inner: hfoptim.CombinedOptimizer([inner]),
    ],
)
def test_others_refuse_it(around):
    inner = hfoptim.Mars([torch.nn.Parameter(torch.ones(2, 2))], is_approx=False)
    with pytest.raises(ValueError, match="is_approx=False"):
        around(inner)
