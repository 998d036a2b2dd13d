"""The engine's options for the gradient of any optimizer, and the one for the norm of its matrices."""

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


def orthogonal(params: dict[str, torch.nn.Parameter]) -> None:
    for param in params.values():
        param.grad = param.grad.contiguous()
    peers.load("pytorch_optimizer.base.optimizer.BaseOptimizer").apply_orthogonal_gradients(params.values(), eps=1e-30)


CHANGES = {
    "gradient_centralization": (True, lambda params, decay: centralized(params, decay)),
    "adaptive_clip": (0.05, lambda params, decay: clipped(params, 0.05)),
    "orthograd": (True, lambda params, decay: orthogonal(params)),
}
BACKENDS = pytest.mark.parametrize(
    ("name", "backend"),
    [
        *(("adam", backend) for backend in ({"foreach": False}, {"foreach": True}, {"fused": True})),
        *((name, {"foreach": True}) for name in ("sgd", "adafactor", "muon")),
        ("lamb", {"fused": True}),
    ],
    ids=str,
)


@BACKENDS
@pytest.mark.parametrize("option", CHANGES)
@pytest.mark.usefixtures("quick_compiler")
def test_the_gradient_is_changed_as_its_authors_do(option: str, name: str, backend: dict[str, bool]) -> None:
    if option == "adaptive_clip" and not peers.installed("timm"):
        pytest.skip("timm is not installed")
    cls, options = OF[name]
    decay = options.get("weight_decay", 0.0)
    mine, other = (parameters(LAYOUTS, torch.float64) for _ in range(2))
    start, rows = values(mine), ([], [])
    value, change = CHANGES[option]
    give = _named if name == "muon" else lambda params: list(params.items())
    optimizer = cls(give(mine), **options, **{option: value}, **backend)
    plain = cls(give(other), **options, foreach=False)
    changed = 0.0
    for t in range(1, STEPS + 1):
        for each in (optimizer, plain):
            set_lr(each, t, 1e-2)
        feed(mine, t, follow=other)
        feed(other, t)
        before = {key: param.grad.clone() for key, param in other.items() if param.grad is not None}
        change(other, decay)
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


def _named(params: dict[str, torch.nn.Parameter]) -> list[Any]:
    return [(f"layers.0.{key}", param) for key, param in params.items()]


@pytest.mark.parametrize(
    ("cls", "backend"),
    [
        *((hfoptim.AdamW, backend) for backend in ({"foreach": False}, {"foreach": True}, {"fused": True})),
        (hfoptim.Lion, {"fused": True}),
        *((hfoptim.Muon, backend) for backend in ({"foreach": True}, {"fused": True})),
    ],
    ids=str,
)
def test_matrices_stay_on_their_spheres(cls: Any, backend: dict[str, bool]) -> None:
    """The directions are those of the optimizer alone, lengths and norms those of arXiv 2606.16899."""
    mine, other = (parameters(LAYOUTS, torch.float64) for _ in range(2))
    optimizer = cls(_named(mine), lr=1e-2, weight_decay=0.3, hyperball=True, **backend)
    plain = cls(_named(other), lr=1e-2, weight_decay=0.0, foreach=False)
    radius = {key: param.detach().norm() for key, param in other.items()}
    for t in range(1, STEPS + 1):
        for each in (optimizer, plain):
            set_lr(each, t, 1e-2)
        lr = plain.param_groups[0]["lr"]
        feed(mine, t, follow=other)
        feed(other, t)
        old = {key: param.detach().clone() for key, param in other.items()}
        optimizer.step()
        plain.step()
        for key, param in other.items():
            if param.ndim > 1:
                way = param.detach() - old[key]
                new = old[key] + way * (lr * radius[key] / way.norm())
                param.detach().copy_(new * (radius[key] / new.norm()))
                torch.testing.assert_close(mine[key].detach(), param.detach(), rtol=1e-10, atol=1e-12)
                torch.testing.assert_close(mine[key].detach().norm(), radius[key], rtol=1e-12, atol=0)


def test_a_wrapper_hyperball_and_8_bit_state_are_one_line() -> None:
    torch.manual_seed(0)
    model: Any = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64))
    norms = [param.detach().norm() for param in model.parameters()]
    optimizer: Any = hfoptim.create_optimizer_v2(
        model, "ema_adamw", lr=0.1, ema_decay=0.5, hyperball=True, state_dtype="8bit"
    )
    for _ in range(5):
        model(torch.randn(8, 64)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert optimizer.state[model[0].weight]["exp_avg"].dtype is torch.uint8
    for param, norm in zip(model.parameters(), norms, strict=True):
        assert (param.ndim > 1) == torch.allclose(param.detach().norm(), norm, rtol=1e-5)
    optimizer.eval()
    assert not torch.allclose(model[0].weight.detach().norm(), norms[0], rtol=1e-5)  # an average is inside of the ball


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda params: hfoptim.Prodigy(params, hyperball=True), "finds it by itself"),
        (lambda params: hfoptim.Adafactor(params, hyperball=True), "finds it by itself"),
        (lambda params: hfoptim.AdamWScheduleFree(params, hyperball=True), "keeps others beside them"),
        (lambda params: hfoptim.Lion(params, hyperball=True, stochastic_rounding=True), "the norm would grow"),
    ],
)
def test_where_no_norm_can_be_kept_it_is_refused(make: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make([torch.nn.Parameter(torch.ones(3, 3))])


def test_a_matrix_of_zeros_has_no_sphere() -> None:
    zero = torch.nn.Parameter(torch.zeros(3, 3))
    optimizer = hfoptim.Lion([("a", torch.nn.Parameter(torch.zeros(3)))], hyperball=True)
    with pytest.raises(ValueError, match="parameter 'b' is zero"):
        optimizer.add_param_group({"params": [("b", zero)]})
    assert len(optimizer.param_groups) == 1


def test_a_gradient_along_the_parameter_has_nothing_at_right_angles() -> None:
    param = torch.nn.Parameter(torch.randn(5))
    before = param.detach().clone()
    param.grad = 3.0 * before
    hfoptim.SGD([param], lr=1.0, orthograd=True).step()
    assert torch.equal(param.detach(), before)


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
    of_tensors: tuple[dict[str, Any], ...] = ({"orthograd": True}, {"hyperball": True})
    for options in ({"adaptive_clip": 0.01}, {"gradient_centralization": True}, *of_tensors):
        with pytest.raises(ValueError, match="FSDP1"):
            hfoptim.Lion([param], **options)


@pytest.mark.parametrize("value", [0.0, -0.01, float("nan"), "much"])
def test_a_clip_that_is_no_number_above_0_is_refused(value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="adaptive_clip"):
        hfoptim.Lion([torch.nn.Parameter(torch.ones(8))], adaptive_clip=value)
