"""What timm's factory makes of a name, this package makes of it, too: the same steps, from the same options."""

from __future__ import annotations

import peers
import pytest
import torch
from harness import assert_follows, feed, flattened, parameters, set_lr, values

import hfoptim

# Names of timm 1.0.31 whose options differ from those of a class that test_reference.py follows.
NAMES = (
    *("cadafactor", "cadamw", "cadan", "cadanw", "cadopt", "cadoptw", "clamb", "clambw", "clion", "cmars"),
    *("adamc", "adoptc", "cadamc", "cadoptc", "clionc", "csgdc", "lambcd", "lionc", "novogradc", "sgdc"),
    *("lambcw", "lambw", "larc", "lars", "nlarc", "nlars", "novogradw"),
    *("rmsprop", "rmsproptf", "rmsproptfw", "rmsproptfc", "crmsproptf"),
    *("adadelta", "adamp", "cadamp", "sgdp", "csgdp", "sgdw", "csgdw"),
    *("adamw", "adamwlegacy", "cnadamc", "cnadamw", "nadamc", "nadamlegacy", "radamw"),
)
LAYOUTS = ("scalar", "vector", "matrix", "conv", "wide")
STEPS = 12


@pytest.mark.parametrize("weight_decay", [0.0, 0.25])
@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_timms_has_timms_steps(name: str, weight_decay: float) -> None:
    if not peers.installed("timm"):
        pytest.skip("timm is not installed")
    mine, other = (parameters(LAYOUTS, torch.float64) for _ in range(2))
    start, rows = values(mine), ([], [])
    options = {"lr": 1e-2, "weight_decay": weight_decay}
    optimizer = hfoptim.create_optimizer_v2(list(mine.items()), name, **options)
    peer = peers.load("timm.optim._optim_factory.create_optimizer_v2")(list(other.values()), name, **options)
    for t in range(1, STEPS + 1):
        for each in (optimizer, peer):
            set_lr(each, t, 1e-2)
        feed(mine, t, follow=other)
        feed(other, t)
        for param in other.values():
            param.grad = param.grad.contiguous()
        optimizer.step()
        peer.step()
        for row, params in zip(rows, (mine, other), strict=True):
            row.append(flattened(params))
    # timm keeps NovoGrad's second moment in float32.
    assert_follows(*rows, start, 1e-6 if name.startswith("novograd") else 1e-10)
