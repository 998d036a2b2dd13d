"""EMA-Nesterov: its numbers, and the weights that are evaluated."""

from __future__ import annotations

import pytest
import torch
from harness import assert_moved, feed, flattened, parameters, values
from torch import nn

import hfoptim
from hfoptim import EMA, EMANesterov

NAMES = ("vector", "matrix", "conv")
INNER = {
    "SGD": lambda params: torch.optim.SGD(params, lr=1e-2, momentum=0.9, weight_decay=0.1),
    "hfoptim.AdamW": lambda params: hfoptim.AdamW(params, lr=1e-2, weight_decay=0.1),
}
STEPS, WARMUP, REST = 30, 4, 20


@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize("make", INNER.values(), ids=INNER)
def test_follows_the_paper(make, scheduled):
    """The recurrence with its point ahead made before each gradient, as the paper and its authors' code go."""
    mine, other = parameters(NAMES, torch.float64), parameters(NAMES, torch.float64)
    start = values(mine)
    beta, gamma = 1.5, 0.8
    ours = EMANesterov(
        make(list(mine.values())),
        beta,
        gamma,
        use_scheduled_lookahead_stepsize=scheduled,
        warmup_step=WARMUP,
        rest_step=REST,
    )
    theirs = make(list(other.values()))
    curves = [torch.optim.lr_scheduler.LambdaLR(each, lambda t: 1.0 - t / STEPS) for each in (ours, theirs)]
    way = {name: torch.zeros_like(param) for name, param in other.items()}
    quotient = 1.0
    for t in range(STEPS):
        before = values(other)
        share = beta * quotient if WARMUP <= t < REST else 0.0
        with torch.no_grad():
            for name, param in other.items():
                param += share * way[name]
        torch.testing.assert_close(flattened(mine), flattened(other), rtol=1e-12, atol=1e-12)
        feed(mine, t, follow=other)
        feed(other, t)
        quotient = 1.0 - t / STEPS if scheduled else 1.0  # that of this step is the next one's
        ours.step()
        theirs.step()
        for curve in curves:
            curve.step()
        for name, param in other.items():
            way[name] = gamma * way[name] + (1.0 - gamma) * (param.detach() - before[name])
        ahead = flattened(mine)
        ours.eval()
        torch.testing.assert_close(flattened(mine), flattened(other), rtol=1e-12, atol=1e-12)
        assert torch.equal(ahead, flattened(mine)) is not (WARMUP <= t + 1 < REST)
        ours.train()
        assert torch.equal(ahead, flattened(mine))
    assert_moved(mine, start)


def test_no_lookahead_is_the_inner_optimizer():
    mine, other = parameters(NAMES), parameters(NAMES)
    ours, theirs = EMANesterov(INNER["SGD"](list(mine.values())), 0.0), INNER["SGD"](list(other.values()))
    for t in range(5):
        for optimizer, params in ((ours, mine), (theirs, other)):
            feed(params, t)
            optimizer.step()
    assert torch.equal(flattened(mine), flattened(other))


def test_weights_of_few_bits_keep_what_rounding_takes():
    few, whole = parameters(NAMES, torch.bfloat16), parameters(NAMES)
    with torch.no_grad():
        for name, param in few.items():
            whole[name].copy_(param)
    ours, theirs = (EMANesterov(hfoptim.Lion(list(p.values()), lr=1e-4), 2.0, 0.8) for p in (few, whole))
    start = values(whole)
    for t in range(20):
        feed(few, t)
        for name, param in few.items():
            whole[name].grad = param.grad.float()
        ours.step()
        theirs.step()
    for optimizer in (ours, theirs):
        optimizer.eval()
    way = max((param.detach() - start[name]).abs().max() for name, param in whole.items())
    for name, param in whole.items():
        kept = ours.kept["ema_nesterov_weights"][few[name]]
        assert kept.dtype == torch.float32
        assert (kept - param).abs().max() < 0.05 * way


def test_what_it_is_called_and_cannot_go_around():
    model = nn.Linear(3, 3)
    for name, cls in (("EMA-Nesterov-AdamW", EMANesterov), ("ema_adamw", EMA)):
        optimizer = hfoptim.create_optimizer_v2(model, name, lr=1e-2)
        assert type(optimizer).__mro__[1] is cls
    with pytest.raises(ValueError, match="LBFGS takes its curvature"):
        EMANesterov(torch.optim.LBFGS(model.parameters()))
    with pytest.raises(ValueError, match="has an evaluation mode"):
        EMANesterov(EMA(torch.optim.SGD(model.parameters(), lr=0.1)))
