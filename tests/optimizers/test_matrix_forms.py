"""What a parameter is as matrices holds for every optimizer that takes hidden matrices unlike the rest."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import hfoptim

# Options under which a matrix that makes queries, keys and values at once steps as the three do by themselves. AdaGO
# has one step size for all three, NorMuon and NorDion2 one norm.
NAMES = {
    "adamuon": {},
    "dion": {"rank_fraction": 0.5},
    "dion2": {"fraction": 0.5},
    "muon": {},
    "muonclip": {},
    "muown": {},
    "polargrad": {},
    "scion": {},
    "sinkgd": {},
}
WIDTH = 8


def made(name, params):
    return hfoptim.get_optimizer_class(name)(
        params, **hfoptim.registry.resolve_options(name, {"lr": 1e-2, "weight_decay": 0.1, **NAMES[name]})
    )


@pytest.mark.parametrize(
    ("name", "across"),
    # Muown's lengths are those of whole rows.
    [(name, across) for name in NAMES for across in (False, True) if (name, across) != ("muown", True)],
)
def test_a_fused_matrix_steps_as_its_three_parts(name, across):
    g = torch.Generator().manual_seed(0)
    dim, shape = (1, (WIDTH, 3 * WIDTH)) if across else (0, (3 * WIDTH, WIDTH))
    whole = nn.Parameter(torch.randn(shape, generator=g, dtype=torch.float64))
    parts = [nn.Parameter(part.detach().clone()) for part in whole.chunk(3, dim)]
    fused = made(name, [("h.0.attn.c_attn.weight", whole)])
    apart = made(name, [(f"h.0.attn.{part}_proj.weight", each) for part, each in zip("qkv", parts, strict=True)])
    for t in range(5):
        # The first gradient is zero, so that states exist.
        grad = torch.randn(shape, generator=g, dtype=torch.float64) * min(t, 1)
        whole.grad = grad
        for part, each in zip(parts, grad.chunk(3, dim), strict=True):
            part.grad = each.clone()
        fused.step()
        apart.step()
        if t == 0 and name == "dion":  # whose noise is another one for each parameter
            for part, noise in zip(parts, fused.state[whole]["Q"].chunk(3), strict=True):
                apart.state[part]["Q"].copy_(noise)
    torch.testing.assert_close(whole.chunk(3, dim), tuple(parts), rtol=1e-9, atol=1e-10)


# Dion's noise goes by the place of a parameter.
@pytest.mark.parametrize("name", [name for name in NAMES if name != "dion"])
def test_experts_step_one_by_one_and_kernels_as_rows(name):
    g = torch.Generator().manual_seed(0)
    stack = nn.Parameter(torch.randn((3, 6, 4), generator=g, dtype=torch.float64))
    kernel = nn.Parameter(torch.randn((6, 2, 2, 3), generator=g, dtype=torch.float64))
    alone = [nn.Parameter(each.detach().clone()) for each in stack]
    flat = nn.Parameter(kernel.detach().reshape(6, 12).clone())
    options = {} if name != "scion" else {"norm_type": "Spectral"}
    cls, options = hfoptim.get_optimizer_class(name), hfoptim.registry.resolve_options(name, {**NAMES[name], **options})
    one = cls([("h.experts.up", stack), ("h.conv.weight", kernel)], lr=1e-2, **options)
    other = cls(
        [*((f"h.{i}.mlp.weight", each) for i, each in enumerate(alone)), ("h.flat.weight", flat)], lr=1e-2, **options
    )
    for _ in range(4):
        stack.grad = torch.randn(stack.shape, generator=g, dtype=torch.float64)
        kernel.grad = torch.randn(kernel.shape, generator=g, dtype=torch.float64)
        flat.grad = kernel.grad.reshape(6, 12).clone()
        for each, grad in zip(alone, stack.grad, strict=True):
            each.grad = grad.clone()
        one.step()
        other.step()
    torch.testing.assert_close(stack.detach(), torch.stack([each.detach() for each in alone]), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(kernel.detach().reshape(6, 12), flat.detach(), rtol=1e-9, atol=1e-10)
