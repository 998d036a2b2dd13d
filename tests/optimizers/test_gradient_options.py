"""Gradient centralisation and adaptive gradient clipping: the engine's options for the gradient of any optimizer."""

from __future__ import annotations

import copy
from typing import Any

import peers
import pytest
import torch
from harness import SMALL, assert_follows, feed, flattened, parameters, set_lr, values

import hfoptim

STEPS = 12
# Rules of entries, of rows and columns, of whole tensors and of matrices.
OF = {
    "adam": (hfoptim.Adam, {"lr": 1e-2, "weight_decay": 0.2}),
    "sgd": (hfoptim.SGD, {"lr": 1e-2, "momentum": 0.9, "weight_decay": 0.2}),
    "adafactor": (hfoptim.Adafactor, {"lr": 1e-2, "relative_step": False}),
    "lamb": (hfoptim.Lamb, {"lr": 1e-2}),
    "muon": (hfoptim.Muon, {"lr": 1e-2}),
}
# Of a column nothing is left but rounding, which Adam would make much of.
LAYOUTS = tuple(name for name in SMALL if name not in ("scalar", "one", "column"))


def centralized(params: dict[str, torch.nn.Parameter], decay: float) -> None:
    """As the authors' code has it: the mean of gradient and coupled decay over all dimensions but the first."""
    for param in params.values():
        if param.ndim > 1:
            assert param.grad is not None
            grad = param.grad + decay * param.detach()
            grad = grad - grad.mean(dim=tuple(range(1, param.ndim)), keepdim=True)
            param.grad = grad - decay * param.detach()


def clipped(params: dict[str, torch.nn.Parameter], factor: float) -> None:
    for param in params.values():
        param.grad = param.grad.contiguous()
    peers.load("timm.utils.agc.adaptive_clip_grad")(list(params.values()), factor)


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        *(("adam", backend) for backend in ({"foreach": False}, {"foreach": True}, {"fused": True})),
        *((name, {"foreach": True}) for name in ("sgd", "adafactor", "muon")),
        ("lamb", {"fused": True}),
    ],
    ids=str,
)
@pytest.mark.parametrize("option", ["gradient_centralization", "adaptive_clip"])
def test_the_gradient_is_changed_as_its_authors_do(option: str, name: str, backend: dict[str, bool]) -> None:
    if option == "adaptive_clip" and not peers.installed("timm"):
        pytest.skip("timm is not installed")
    cls, options = OF[name]
    decay = options.get("weight_decay", 0.0)
    mine, other = (parameters(LAYOUTS, torch.float64) for _ in range(2))
    start, rows = values(mine), ([], [])
    more = {"gradient_centralization": True} if option == "gradient_centralization" else {"adaptive_clip": 0.05}
    named = {"muon": lambda params: [(f"layers.0.{key}", param) for key, param in params.items()]}
    give: Any = named.get(name, lambda params: list(params.items()))
    optimizer = cls(give(mine), **options, **more, **backend)
    plain = cls(give(other), **options, foreach=False)
    changed = 0.0
    for t in range(1, STEPS + 1):
        for each in (optimizer, plain):
            set_lr(each, t, 1e-2)
        feed(mine, t, follow=other)
        feed(other, t)
        before = {key: param.grad.clone() for key, param in other.items() if param.grad is not None}
        if option == "adaptive_clip":
            clipped(other, 0.05)
        else:
            centralized(other, decay)
        for key, grad in before.items():
            now = other[key].grad
            assert now is not None
            changed = max(changed, float((now - grad).abs().max()))
        optimizer.step()
        plain.step()
        for row, params in zip(rows, (mine, other), strict=True):
            row.append(flattened(params))
    assert changed > 1e-2
    assert_follows(*rows, start, 1e-9)


def test_clipping_comes_before_a_coupled_decay_and_centralisation_after_it() -> None:
    param = torch.nn.Parameter(torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64))
    before = param.detach().clone()
    optimizer = hfoptim.SGD([param], lr=1.0, weight_decay=0.1, adaptive_clip=0.1, gradient_centralization=True)
    param.grad = torch.tensor([[30.0, 40.0], [0.3, -0.4]], dtype=torch.float64)
    optimizer.step()
    # The first row is clipped to a norm of 0.5, the second, whose parameter counts as 1e-3 long, to 1e-4.
    clipped = torch.tensor([[0.3, 0.4], [0.6e-4, -0.8e-4]], dtype=torch.float64) + 0.1 * before
    torch.testing.assert_close(before - param.detach(), clipped - clipped.mean(1, keepdim=True))


def test_lambs_norm_of_all_gradients_is_that_of_the_changed_ones() -> None:
    param = torch.nn.Parameter(torch.ones(2, 3, dtype=torch.float64))
    other = copy.deepcopy(param)
    param.grad = torch.tensor([[5.0, 5.0, 5.5], [1.0, 2.0, 3.0]], dtype=torch.float64)
    other.grad = param.grad - param.grad.mean(1, keepdim=True)
    hfoptim.Lamb([param], max_grad_norm=1.0, gradient_centralization=True).step()
    hfoptim.Lamb([other], max_grad_norm=1.0).step()
    torch.testing.assert_close(param, other)


def test_rows_that_a_rule_divides_are_refused() -> None:
    # Adam-mini takes the embedding's rows one by one, and attention's in heads.
    named = [("layers.0.self_attn.q_proj.weight", torch.nn.Parameter(torch.ones(8, 8)))]
    options = {"dim": 8, "n_heads": 2}
    with pytest.raises(ValueError, match=r"takes a parameter of shape \(8, 8\) as .* leave these out"):
        hfoptim.AdamMini(named, **options, gradient_centralization=True)
    assert not hfoptim.AdamMini(named, **options).param_groups[0]["gradient_centralization"]


def test_parts_that_do_not_say_so_are_refused() -> None:
    param = torch.nn.Parameter(torch.ones(8))
    param._fsdp_flattened = True  # type: ignore[attr-defined]
    for options in ({"adaptive_clip": 0.01}, {"gradient_centralization": True}):
        with pytest.raises(ValueError, match="FSDP1"):
            hfoptim.Lion([param], **options)


@pytest.mark.parametrize("value", [0.0, -0.01, float("nan"), "much"])
def test_a_clip_that_is_no_number_above_0_is_refused(value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="adaptive_clip"):
        hfoptim.Lion([torch.nn.Parameter(torch.ones(8))], adaptive_clip=value)
