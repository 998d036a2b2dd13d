"""Rules that hand a state on to another one's place: every runner reads all of them before it writes one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from harness import SMALL, assert_same, feed, optimizer_of, parameters, values

from hfoptim.engine import ELEMENT, TENSOR, clone, rule, zeros

STEPS, LR = 4, 0.1


@rule(ELEMENT, first=zeros, second=clone)
def trading(grad, param, first, second, h):
    return grad + 0.5 * first, second, first


@rule(ELEMENT, first=zeros, second=clone, third=clone)
def passing_on(grad, param, first, second, third, h):
    return grad + 0.5 * first - 0.25 * third, second, third, first


@rule(ELEMENT, first=zeros, second=clone)
def remembering(grad, param, first, second, h):
    """The parameter as it was before the step, and the state that it takes the place of."""
    return grad + 0.5 * second, param, first


@rule(TENSOR, first=zeros, second=clone)
def trading_by_norm(grad, param, first, second, h):
    return grad / (1.0 + first.norm()), second, first


RULES = [trading, passing_on, remembering, trading_by_norm]


def by_hand(chosen, params):
    """The rule on copies of everything, so that no order of writing matters."""
    number = len(chosen.state)
    state = {
        name: [torch.zeros_like(p) if i == 0 else p.detach().clone() for i in range(number)]
        for name, p in params.items()
    }
    for t in range(1, STEPS + 1):
        feed(params, t)
        for name, param in params.items():
            weight = param.detach()
            update, *new = chosen.fn(param.grad, weight.clone(), *(s.clone() for s in state[name]), SimpleNamespace())
            state[name] = [value.clone() for value in new]
            param.data = weight.add(update, alpha=-LR)
    return {name: dict(zip(chosen.state, kept, strict=True)) for name, kept in state.items()}


# A kernel is compiled for each rule and dtype: those of float64 show as much.
RUNS = [
    pytest.param(dtype, options, id=f"{runner}-{dtype}")
    for runner, options in {"loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}.items()
    for dtype in (torch.float64, torch.float32)
    if (runner, dtype) != ("fused", torch.float32)
]


@pytest.mark.parametrize(("dtype", "options"), RUNS)
@pytest.mark.parametrize("chosen", RULES, ids=lambda chosen: chosen.name)
def test_states_that_trade_places_are_read_before_they_are_written(chosen, dtype, options):
    mine, other = parameters((*SMALL, "large"), dtype), parameters((*SMALL, "large"), dtype)
    optimizer = optimizer_of(chosen)(list(mine.items()), lr=LR, **options)
    start = values(mine)
    want = by_hand(chosen, other)
    for t in range(1, STEPS + 1):
        feed(mine, t)
        optimizer.step()
    tolerance = {"rtol": 1e-10, "atol": 1e-12} if dtype is torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    for name, param in mine.items():
        torch.testing.assert_close(param.detach(), other[name].detach(), **tolerance)
        for key, value in want[name].items():
            torch.testing.assert_close(optimizer.state[param][key], value, **tolerance)
    if chosen is trading:  # nothing is computed: the states are the very zeros and weights they began as
        for name, param in mine.items():
            assert_same(optimizer.state[param]["first"], torch.zeros_like(start[name]))
            assert_same(optimizer.state[param]["second"], start[name])
