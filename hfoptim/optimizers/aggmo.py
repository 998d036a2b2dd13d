"""Aggregated momentum."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor

from hfoptim.engine import ELEMENT, Decay, Group, Name, Rule, RuleOptimizer, Scalars, add_scaled, checks, hyper, zeros


@cache
def aggmo(count: int) -> Rule:
    """The rule with so many momenta."""

    def per_step(t: int, group: Group) -> Scalars:
        return {**{f"beta{i}": beta for i, beta in enumerate(group["betas"])}, "share": 1.0 / count}

    def fn(grad: Any, param: Any, *args: Any) -> tuple[Any, ...]:
        *buffers, h = args
        buffers = [add_scaled(grad, buffer, getattr(h, f"beta{i}")) for i, buffer in enumerate(buffers)]
        return (sum(buffers[1:], buffers[0]) * h.share, *buffers)

    fn.__name__ = "aggmo"
    return Rule(fn, ELEMENT, {f"momentum_buffer_{i}": zeros for i in range(count)}, per_step)


def _betas(name: str, value: Any) -> tuple[float, ...]:
    found = checks.entries(value)
    if not found:
        raise ValueError(f"{name}={value!r}, expected one or more numbers in [0, 1)")
    return checks.betas(name, found, len(found))


class AggMo(RuleOptimizer):
    """The mean of several momenta: the slow ones speed up, the fast ones damp their oscillation.

    With g the gradient, p the parameter:

        g = g + weight_decay p
        b_i = betas[i] b_i + g                          (for every i)
        p = p - lr mean(b)

    State: `momentum_buffer_0`, `momentum_buffer_1`, ... (b). Author and pytorch_optimizer agree. The author's betas are
    1 - 0.1^i, for i from 0.

    Source:
        Lucas et al., arXiv 1804.00325; AtheMathmo/AggMo.
    """

    decay = Decay.COUPLED
    names = (Name("aggmo"),)
    lr: float = hyper(1e-3, "learning rate")
    betas: tuple[float, ...] = hyper((0.0, 0.9, 0.99), "decay rates of the momenta, as many as there are", check=_betas)
    weight_decay: float = hyper(0.0, "L2 penalty")

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        return aggmo(len(group["betas"]))
