"""What timm's factory makes of a name, this package makes of it, too: the same steps, from the same options."""

from __future__ import annotations

import peers
import pytest
import torch
from following import stepped_together
from harness import assert_follows, parameters

import hfoptim

# Names of timm 1.0.31. Not among them: `adafactor`, `adagrad` and `rmsprop`, which have the documents' and torch's
# defaults here, `adahessian`, which needs a graph, `radamlegacy`, and Muon's, which has other defaults.
NAMES = (
    *("adabelief", "adadelta", "adam", "adamax", "adamc", "adamp", "adamw", "adamwlegacy", "adan", "adanw"),
    *("adopt", "adoptc", "adoptw", "cadafactor", "cadamc", "cadamp", "cadamw", "cadan", "cadanw"),
    *("cadopt", "cadoptc", "cadoptw", "clamb", "clambw", "claprop", "clion", "clionc", "cnadamc", "cnadamw"),
    *("crmsproptf", "csgdc", "csgdp", "csgdw", "lamb", "lambc", "lambcd", "lambcw", "lambw"),
    *("laprop", "lapropc", "larc", "lars", "lion", "lionc", "madgrad", "madgradw", "mars", "cmars", "momentum"),
    *("nadam", "nadamc", "nadamlegacy", "nadamw", "nlarc", "nlars", "novograd", "novogradc", "novogradw"),
    *("radabelief", "radam", "radamw", "rmsproptf", "rmsproptfc", "rmsproptfw"),
    *("sgd", "sgdc", "sgdp", "sgdw"),
)
# Of these timm and torch keep numbers in float32.
IN_FLOAT32 = ("laprop", "claprop", "novograd", "nadam")
LAYOUTS = ("vector", "matrix", "conv", "wide")
STEPS = 8


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_timms_has_timms_steps(name: str) -> None:
    if not peers.installed("timm"):
        pytest.skip("timm is not installed")
    mine, other = (parameters(LAYOUTS, torch.float64) for _ in range(2))
    options = {"lr": 1e-2, "weight_decay": 0.25}
    optimizer = hfoptim.create_optimizer_v2(list(mine.items()), name, **options)
    peer = peers.load("timm.optim._optim_factory.create_optimizer_v2")(list(other.values()), name, **options)
    both = stepped_together(optimizer, peer, mine, other, [1e-2, 1e-2], STEPS)
    assert_follows(both.ours, both.theirs, both.start, 1e-6 if name.startswith(IN_FLOAT32) else 1e-10)
