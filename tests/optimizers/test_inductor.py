"""The runner of the devices without generated kernels: the rule under torch.compile, tried here on a CPU."""

from __future__ import annotations

import pytest
import torch
from cases.adafactor import ADAFACTOR
from cases.adam import ADAMW
from harness import SMALL, assert_follows, assert_moved, feed, flattened, parameters, set_lr, train, values
from torch._dynamo.utils import counters

from hfoptim.engine import backends
from hfoptim.engine.backends import inductor

pytestmark = pytest.mark.skipif(
    inductor.missing("cpu") is not None, reason=f"torch.compile needs {inductor.missing('cpu')}"
)


@pytest.fixture(autouse=True)
def in_place_of_generated_kernels(monkeypatch):
    monkeypatch.setattr(backends.KERNELS_ASKED, "step", backends.INDUCTOR.step)


def graphs():
    return counters["stats"]["unique_graphs"]


def set_numbers(optimizer, t, lr):
    set_lr(optimizer, t, lr)
    for group in optimizer.param_groups:
        group["weight_decay"] = (0.0, 0.1, 0.2)[t % 3]
        if "betas" in group:
            group["betas"] = ((0.9, 0.99), (0.8, 0.9), (0.5, 0.999))[t % 3]


@pytest.mark.parametrize(
    ("entry", "variant", "layouts"),
    [
        (ADAMW, "decay", (*SMALL, "large")),
        # Smaller matrices are left to the loop, as are rows and vectors of one entry.
        (ADAFACTOR, "relative", ("vector", "matrix", "row", "large", "mlp.large")),
    ],
    ids=["element", "tensor"],
)
def test_equals_the_loop_and_compiles_once_whatever_number_changes(entry, variant, layouts):
    variant = entry.variants[variant]
    mine, other = parameters(layouts), parameters(layouts)
    start = values(mine)
    before = inductor.compilations(), graphs()
    fused = entry.cls(list(mine.items()), **variant.options, fused=True)
    loop = entry.cls(list(other.items()), **variant.options, foreach=False)
    rows = ([], [])
    for t in range(1, 7):
        for optimizer, params, row in zip((fused, loop), (mine, other), rows, strict=True):
            set_numbers(optimizer, t, variant.lr)
            feed(params, t, follow=other)
            with torch._dynamo.config.patch(error_on_recompile=t > 1):
                optimizer.step()
            row.append(flattened(params))
    assert_follows(*rows, start, 1e-5)
    assert_moved(other, start)
    # One kernel and one graph for all layouts that have one, in the first step.
    assert (inductor.compilations() - before[0], graphs() - before[1]) == (1, 1)
    for name in mine:
        for key, value in loop.state[other[name]].items():
            torch.testing.assert_close(fused.state[mine[name]][key], value, rtol=1e-5, atol=1e-6)


def test_other_shapes_compile_nothing():
    shapes = ((2,), (3, 2), (97, 89), (2, 2), (64, 1), (1 << 16,), (2, 2, 2, 2), (), (1,), (0, 3))
    params = {f"{i}": torch.nn.Parameter(torch.ones(shape)) for i, shape in enumerate(shapes)}
    usual = parameters(("matrix",))
    options = ADAMW.variants["decay"].options
    train(ADAMW.cls(list(usual.items()), **options, fused=True), usual, range(1, 2))
    before = inductor.compilations(), graphs()
    with torch._dynamo.config.patch(error_on_recompile=True):
        train(ADAMW.cls(list(params.items()), **options, fused=True), params, range(1, 3))
    assert (inductor.compilations(), graphs()) == before
    assert all(not torch.equal(p.detach(), torch.ones_like(p)) for p in params.values() if p.numel())


def test_kahan_compensation_survives_the_compiler():
    # A compiler that drops a cast to bfloat16 and back as pointless computes a compensation of 0.
    mine, other = parameters(("large",), torch.bfloat16), parameters(("large",), torch.bfloat16)
    fused = ADAMW.cls(list(mine.items()), lr=1e-4, fused=True)
    loop = ADAMW.cls(list(other.items()), lr=1e-4, foreach=False)
    for optimizer, params in ((loop, other), (fused, mine)):
        train(optimizer, params, range(1, 21))
    ours, theirs = fused.state[mine["large"]]["kahan_comp"].float(), loop.state[other["large"]]["kahan_comp"].float()
    assert float(ours.abs().mean()) > 0.5 * float(theirs.abs().mean()) > 0.0
    torch.testing.assert_close(mine["large"].float() + ours, other["large"].float() + theirs, rtol=1e-4, atol=1e-5)
