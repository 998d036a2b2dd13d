"""Mechanic and TRAC: their numbers, and the function that TRAC needs."""

from __future__ import annotations

import math

import peers
import pytest
import torch
from harness import feed, flattened, parameters, values
from torch import nn

import hfoptim
from hfoptim import TRAC, Mechanic
from hfoptim.wrappers.tuned import BETAS, erfi

NAMES = ("vector", "matrix", "conv")
INNER = {
    "SGD": lambda params: torch.optim.SGD(params, lr=1.0, momentum=0.9),
    "hfoptim.AdamW": lambda params: hfoptim.AdamW(params, lr=1.0, weight_decay=0.1),
}
every_inner = pytest.mark.parametrize("make", INNER.values(), ids=INNER)


class MechanicOfThePaper:
    """Algorithm 1 of arXiv 2306.00144, with the first values of its authors' code, in numbers of Python."""

    def __init__(self, make, params, decay, s_init, eps=1e-8):
        self.params, self.inner = params, make(params)
        self.decay, self.s_init, self.eps = decay, s_init, eps
        self.start = torch.cat([param.detach().flatten() for param in params])
        self.known = [[beta, 0.0, 1e-6, 0.0, 0.0] for beta in BETAS]  # beta, s, m, v, r

    def step(self):
        x, g = (torch.cat([each.detach().flatten() for each in some]) for some in zip(*self.pairs(), strict=True))
        total = sum(s for _, s, *_ in self.known)
        delta = (x - self.start) / (total + self.eps)
        push = g + self.decay * total * g.norm() * x / (x.norm() + self.eps)
        h = float(delta @ push)
        for tuner in self.known:
            beta, s, m, v, r = tuner
            m, v, r = max(beta * m, abs(h)), beta**2 * v + h**2, max(0.0, beta * r - s * h)
            tuner[1:] = [(self.s_init * m / len(self.known) + r) / (math.sqrt(v) + self.eps), m, v, r]
        self.inner.step()
        after = torch.cat([param.detach().flatten() for param in self.params])
        new = self.start + sum(s for _, s, *_ in self.known) * (delta + after - x)
        for param, part in zip(self.params, new.split([param.numel() for param in self.params]), strict=True):
            param.detach().copy_(part.view_as(param))

    def pairs(self):
        return [(param, param.grad) for param in self.params]


def exact_trac(inner, s_init):
    """pytorch_optimizer's, with an exact erfi: its own is off by up to 1 %."""

    class Exact(peers.load("pytorch_optimizer.TRAC")):
        def erf_imag(self, x):
            return erfi(x.double())

    return Exact(inner, s_prev=s_init)


@every_inner
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_mechanic_is_that_of_the_paper(make, decay):
    mine, other = parameters(NAMES, torch.float64), parameters(NAMES, torch.float64)
    theirs = MechanicOfThePaper(make, list(other.values()), decay, 1e-3)
    _together(Mechanic(make(list(mine.values())), s_decay=decay, s_init=1e-3), theirs, mine, other, 1e-10)


@every_inner
def test_trac_follows_pytorch_optimizer(make):
    # Its tuners' numbers are float32.
    mine, other = parameters(NAMES, torch.float64), parameters(NAMES, torch.float64)
    theirs = exact_trac(make(list(other.values())), 1e-3)
    _together(TRAC(make(list(mine.values())), s_init=1e-3), theirs, mine, other, 1e-4)


def _together(ours, theirs, mine, other, tolerance):
    start = values(mine)
    far = 0.0
    for t in range(1, 51):
        feed(mine, t, follow=other)
        feed(other, t)
        ours.step()
        theirs.step()
        far = max(far, (flattened(mine) - torch.cat([start[name].flatten() for name in mine])).abs().max().item())
        assert (flattened(mine) - flattened(other)).abs().max() < tolerance * far, t
    assert far > 1e-3  # TRAC may come back to its start


def test_erfi():
    assert erfi(torch.tensor([0.0], dtype=torch.float64)).item() == 0.0
    for x in (1e-9, 0.1, math.sqrt(0.5), -1.0, 3.0, 10.0, 25.0):
        term, series, n = x, 0.0, 0
        while abs(term) > 1e-18 * abs(series):
            series += term / (2 * n + 1)
            n += 1
            term *= x * x / n
        found = erfi(torch.tensor([x], dtype=torch.float64)).item()
        assert found == pytest.approx(2.0 / math.sqrt(math.pi) * series, rel=1e-13)


@pytest.mark.parametrize("wrapper", [Mechanic, TRAC])
def test_what_is_found_is_of_all_groups(wrapper):
    params = parameters(NAMES)
    first, *rest = params.values()
    optimizer = wrapper(torch.optim.SGD([{"params": [first]}, {"params": rest}], lr=1.0))
    alone, twins = parameters(NAMES), None
    twins = wrapper(torch.optim.SGD(alone.values(), lr=1.0))
    for t in range(1, 6):
        for some, each in ((params, optimizer), (alone, twins)):
            feed(some, t)
            each.step()
    assert torch.equal(flattened(params), flattened(alone))
    name = f"{wrapper.prefix}_tuner"
    assert optimizer.param_groups[0][name] == optimizer.param_groups[1][name] == twins.param_groups[0][name]
    optimizer.param_groups[1][f"{wrapper.prefix}_eps"] = 1e-3
    with pytest.raises(ValueError, match="must be the same in all groups"):
        optimizer.step()


@pytest.mark.parametrize("wrapper", [Mechanic, TRAC])
def test_maximize_ascends(wrapper):
    mine, other = parameters(NAMES, torch.float64), parameters(NAMES, torch.float64)
    up = wrapper(hfoptim.SGD(mine.values(), lr=1.0, maximize=True))
    down = wrapper(hfoptim.SGD(other.values(), lr=1.0))
    for t in range(1, 11):
        feed(mine, t, follow=other)
        feed(other, t)
        for param in mine.values():
            param.grad.neg_()
        up.step()
        down.step()
    torch.testing.assert_close(flattened(mine), flattened(other))


def test_mechanic_finds_a_step_size():
    torch.manual_seed(0)
    model, data = nn.Linear(8, 1), torch.randn(64, 8)
    target = data @ torch.randn(8, 1)
    losses = []
    optimizer = Mechanic(hfoptim.AdamW(model.parameters(), lr=1.0))
    for _ in range(200):
        loss = (model(data) - target).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 1e-2 * losses[0]
