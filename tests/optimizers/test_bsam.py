"""bSAM with gradients at two places: as its author writes it, by closure, by hand, and where neither can be."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import peers
import pytest
import torch
from torch import Tensor

import hfoptim
from hfoptim.engine import storage

STEPS = 30
SHAPES: dict[str, tuple[int, ...]] = {"scalar": (), "bias": (5,), "weight": (4, 3), "kernel": (2, 3, 2, 2)}
OPTIONS: dict[str, Any] = {"lr": 0.05, "weight_decay": 0.1, "rho": 0.05, "num_data": 300.0, "betas": (0.9, 0.99)}


def start() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, dtype=torch.float64, generator=generator) for name, shape in SHAPES.items()}


def losses(name: str) -> list[tuple[Tensor, Tensor]]:
    """Of each step the slope and the curvature of every entry."""
    generator = torch.Generator().manual_seed(len(name))
    shape = (STEPS, 2, *SHAPES[name])
    drawn = torch.randn(shape, dtype=torch.float64, generator=generator)
    return [(slope, curvature.abs() * 3.0) for slope, curvature in drawn]


def closure_of(params: dict[str, Tensor], step: int, calls: list[int] | None = None) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        if calls is not None:
            calls.append(step)
        for param in params.values():
            param.grad = None
        parts = []
        for name, p in params.items():
            slope, curvature = (each.to(p.dtype) for each in losses(name)[step])
            parts.append((slope * p + curvature * p * p / 2).sum())
        loss = torch.stack(parts).sum()
        loss.backward()
        return loss

    return closure


def made(values: dict[str, Tensor], **options: Any) -> tuple[dict[str, Tensor], hfoptim.BSAM]:
    params: dict[str, Tensor] = {name: torch.nn.Parameter(value.clone()) for name, value in values.items()}
    return params, hfoptim.BSAM(list(params.items()), **{**OPTIONS, **options})


def as_its_author_writes_it(values: dict[str, Tensor], sign: float = 1.0, **options: Any) -> dict[str, Any]:
    """team-approx-bayes/bayesian-sam, `build_bsam_optimizer`, with one part of the batch, and the noise given."""
    o = {"damping": 0.1, "s_init": 1.0, **OPTIONS, **options}
    ends = {}
    for place, (name, value) in enumerate(values.items()):
        w, gm, s = value.numpy(), np.zeros(SHAPES[name]), o["s_init"] * np.ones(SHAPES[name])
        for step in range(STEPS):
            slope, curvature = (each.numpy() for each in losses(name)[step])
            seed = storage.drawing_seed(step + 1, place)
            noise = storage.normal(SHAPES[name], seed, torch.float64, torch.device("cpu")).numpy()
            noisy = w + np.sqrt(1.0 / (o["num_data"] * s)) * noise
            grad = sign * (slope + curvature * noisy)
            perturbed = w + o["rho"] * grad / s
            gs = np.sqrt(s * grad**2.0)
            grad = sign * (slope + curvature * perturbed)
            gm = o["betas"][0] * gm + (1 - o["betas"][0]) * (grad + o["weight_decay"] * w)
            w = w - o["lr"] * gm / s
            s = o["betas"][1] * s + (1 - o["betas"][1]) * (gs + o["damping"] + o["weight_decay"])
        ends[name] = w
    return ends


@pytest.mark.parametrize("backend", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str)
@pytest.mark.parametrize("more", [{}, {"weight_decay": 0.0, "s_init": 0.5, "damping": 0.5}], ids=str)
def test_it_is_its_authors(more, backend):
    values = start()
    params, optimizer = made(values, **more, **backend)
    for step in range(STEPS):
        optimizer.step(closure_of(params, step))
    for name, want in as_its_author_writes_it(values, **more).items():
        moved = np.abs(want - values[name].numpy()).max()
        assert np.abs(params[name].detach().numpy() - want).max() <= 1e-11 * moved
        # The neighbourhood and the noise are seen.
        for other in ({"rho": 0.0}, {"num_data": 1e9}):
            assert np.abs(as_its_author_writes_it(values, **{**more, **other})[name] - want).max() > 1e-4 * moved


def test_under_maximize_both_gradients_are_turned():
    values = start()
    params, optimizer = made(values, maximize=True, lr=0.01)
    for step in range(STEPS):
        optimizer.step(closure_of(params, step))
    for name, want in as_its_author_writes_it(values, -1.0, lr=0.01).items():
        moved = np.abs(want - values[name].numpy()).max()
        assert np.abs(params[name].detach().numpy() - want).max() <= 1e-11 * moved


@pytest.mark.parametrize("way", ["by hand", "sampled"])
def test_by_hand_it_is_the_same(way):
    calls: list[int] = []
    (params, optimizer), (others, by_closure) = made(start()), made(start())
    for step in range(4):
        closure = closure_of(params, step, calls)
        optimizer.sample()
        closure()
        if way == "by hand":
            optimizer.perturb()
            closure()
            optimizer.step()
        else:
            optimizer.step(closure)
        by_closure.step(closure_of(others, step))
    assert calls == [0, 0, 1, 1, 2, 2, 3, 3]
    assert all(torch.equal(params[name], others[name]) for name in SHAPES)


@pytest.mark.parametrize(
    ("dtype", "more"),
    [
        (torch.float32, {}),
        (torch.float32, {"state_dtype": "8bit"}),
        (torch.bfloat16, {"state_dtype": "8bit"}),
        (torch.complex64, {}),
    ],
    ids=str,
)
def test_it_goes_on_after_a_checkpoint(dtype, more):
    generator = torch.Generator().manual_seed(2)
    first = {"w": torch.randn(72, 64, dtype=dtype, generator=generator), "b": torch.ones(3, dtype=dtype)}

    def ends(resume: bool) -> list[Tensor]:
        params: list[Tensor] = [torch.nn.Parameter(value.clone()) for value in first.values()]
        optimizer = hfoptim.BSAM(params, **{**OPTIONS, **more})

        def closure() -> None:
            for index, param in enumerate(params):
                param.grad = (param.detach() * (1.0 + index) - 0.3).to(dtype)

        for step in range(6):
            if resume and step == 3:
                saved = copy.deepcopy(optimizer.state_dict())
                params = [torch.nn.Parameter(param.detach().clone()) for param in params]
                optimizer = hfoptim.BSAM(params, **{**OPTIONS, **more})
                optimizer.load_state_dict(saved)
            optimizer.step(closure)
        return params

    whole, resumed = ends(False), ends(True)
    assert all(map(torch.equal, whole, resumed))
    assert not any(map(torch.equal, whole, first.values()))


@pytest.mark.parametrize("call", [1, 2])
def test_the_weights_are_where_they_were_if_the_closure_fails(call):
    params, optimizer = made(start())
    optimizer.step(closure_of(params, 0))
    before = [param.detach().clone() for param in params.values()]
    calls: list[int] = []

    def closure() -> Tensor:
        if len(calls) == call - 1:
            raise ZeroDivisionError
        return closure_of(params, 1, calls)()

    with pytest.raises(ZeroDivisionError):
        optimizer.step(closure)
    assert all(map(torch.equal, params.values(), before))
    optimizer.step(closure_of(params, 1))  # and a step can be taken


def test_samples_are_the_posteriors():
    param = torch.nn.Parameter(torch.full((40000,), 3.0))
    optimizer = hfoptim.BSAM([param], num_data=100.0, s_init=4.0)
    optimizer.sample()
    spread = param.detach() - 3.0
    assert float(spread.mean()) == pytest.approx(0.0, abs=1e-3)
    assert float(spread.std()) == pytest.approx(1.0 / 20.0, rel=0.02)
    optimizer.restore()
    assert torch.equal(param.detach(), torch.full((40000,), 3.0))


def test_what_cannot_be_is_refused():
    params, optimizer = made(start())
    closure_of(params, 0)()
    with pytest.raises(RuntimeError, match="two gradients per step"):
        optimizer.step()
    with pytest.raises(RuntimeError, match="sample"):
        optimizer.perturb()
    optimizer.sample()
    with pytest.raises(RuntimeError, match="called twice"):
        optimizer.sample()
    optimizer.zero_grad()
    with pytest.raises(RuntimeError, match="no parameter has a gradient"):
        optimizer.perturb()
    module = torch.nn.Linear(2, 2)
    released = hfoptim.BSAM(module.parameters(), gradient_release=True)
    with pytest.raises(ValueError, match="gradients at two points"):
        hfoptim.prepare_for_gradient_release(module, released)
    for around in (lambda: hfoptim.SAM(None, made(start())[1]), lambda: hfoptim.GrokFast(made(start())[1])):
        with pytest.raises(ValueError, match="BSAM"):
            around()


@pytest.mark.skipif(not peers.installed("pytorch_optimizer"), reason="needs pytorch_optimizer")
def test_pytorch_optimizers_is_another_method():
    """One step without noise or neighbourhood, both beside the formulas that their docstrings name."""
    value, grad = torch.tensor([1.0, -2.0], dtype=torch.float64), torch.tensor([0.5, 3.0], dtype=torch.float64)
    options = {"lr": 0.5, "betas": (0.9, 0.999), "weight_decay": 0.1, "rho": 0.0, "damping": 0.1}
    moved = {}
    for who, num_data in ((hfoptim.BSAM, 1e60), (peers.load("pytorch_optimizer.BSAM"), 1e60)):
        param = torch.nn.Parameter(value.clone())
        optimizer = who([param], num_data=num_data, **options)

        def closure(param: Tensor = param) -> Tensor:
            param.grad = grad.clone()
            return torch.zeros(())

        closure()
        optimizer.step(closure)
        moved[who] = param.detach() - value
    ours, theirs = moved.values()
    assert torch.allclose(ours, -0.5 * 0.1 * (grad + 0.1 * value), rtol=1e-12, atol=0.0)
    precision = 0.999 + 0.001 * (grad.abs() + 0.2) ** 2
    assert torch.allclose(theirs, -0.5 * 0.1 * 0.1 * grad / precision, rtol=1e-12, atol=0.0)
