"""torch.optim's Adafactor, which differs from the paper's."""

from __future__ import annotations

import math
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import TENSOR, Group, Name, Rule, RuleOptimizer, Scalars, ema, hyper, nonnegative, zeros_over
from hfoptim.engine.checks import entries, number
from hfoptim.engine.rule import rms


def _per_step(least: float, t: int, group: Group) -> Scalars:
    eps1, eps2 = group["eps"]
    return {
        "lr": min(float(group["lr"]), 1.0 / math.sqrt(t)),
        "alpha2": t ** group["beta2_decay"],
        "eps": least if eps1 is None else eps1,
        "eps_scale": eps2,
        "inverse_clip": 1.0 / group["d"],
    }


@cache
def torch_adafactor(matrix: bool, least: float) -> Rule:
    """The rule for matrices or vectors of a dtype, which `least` is the resolution of."""

    def fn(grad: Any, param: Any, *args: Any) -> tuple[Any, ...]:
        *state, h = args
        squared = grad * grad
        if matrix:
            rows = ema(state[0], squared.mean(-1, keepdim=True), h.alpha2)
            columns = ema(state[1], squared.mean(-2, keepdim=True), h.alpha2)
            moment, state = rows / rows.mean(-2, keepdim=True).clamp(min=h.eps) * columns, [rows, columns]
        else:
            moment = ema(state[0], squared, h.alpha2)
            state = [moment]
        update = grad * moment.clamp(min=h.eps * h.eps).rsqrt()
        size = rms(param).clamp(min=h.eps_scale) / (rms(update) * h.inverse_clip).clamp(min=1.0)
        return update * size, *state

    fn.__name__ = "torch_adafactor"
    state = {"row_var": zeros_over(-1), "col_var": zeros_over(-2)} if matrix else {"variance": nonnegative}
    return Rule(fn, TENSOR, state, partial(_per_step, least))


def _pair(name: str, value: Any) -> tuple[float | None, float]:
    found = entries(value)
    if found is None or len(found) != 2:
        raise ValueError(f"{name}={value!r}, expected two numbers, of which the first may be None")
    eps1, eps2 = found
    return None if eps1 is None else number(f"{name}[0]", eps1), number(f"{name}[1]", eps2)


class TorchAdafactor(RuleOptimizer):
    """Adafactor with the numbers of torch.optim.Adafactor.

    With G the gradient, P the parameter, t the step, R and C the kept means over columns and rows:

        b2 = 1 - t^beta2_decay
        R = b2 R + (1 - b2) mean_row(G^2);  C = b2 C + (1 - b2) mean_col(G^2)
        U = G / sqrt(max(R C / max(mean(R), eps1), eps1^2))
        a = max(eps2, rms(P)) min(lr, 1 / sqrt(t))
        P = P - lr weight_decay P - a U / max(1, rms(U) / d)

    `Adafactor` is the paper's as transformers has it. Here lr is a bound of the relative step, eps1 is not added to the
    squares but bounds what is divided by, and weight decay goes by lr alone. eps1 None is the resolution of the
    parameter's dtype (float32: 1.2e-7), so that gradients below it hardly move anything. Vectors keep the whole second
    moment. State: `row_var` and `col_var`, or `variance`; a state_dict of torch.optim.Adafactor loads.

    Raises:
        TypeError: a complex parameter.

    Source:
        Shazeer and Stern, arXiv 1804.04235; torch.optim.Adafactor.
    """

    names = (Name("adafactor_torch"),)
    lr: float = hyper(1e-2, "largest relative step size")
    beta2_decay: float = hyper(-0.8, "exponent of the moment's decay", low=-math.inf, most=0.0)
    eps: Any = hyper((None, 1e-3), "eps1, which bounds divisors, and eps2, least scale of a parameter", check=_pair)
    d: float = hyper(1.0, "largest root mean square of U", low=1.0)
    weight_decay: float = hyper(0.0, "decoupled weight decay, per step and unit of lr")

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        return torch_adafactor(param.ndim > 1, 0.0 if param.is_complex() else torch.finfo(param.dtype).eps)
