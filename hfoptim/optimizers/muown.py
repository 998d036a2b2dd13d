"""Muown: Muon for the directions of a matrix's rows, Adam for their lengths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import (
    MATRIX,
    Group,
    MatrixFunction,
    Name,
    Rule,
    Scalars,
    State,
    bias_correction,
    ema,
    hyper,
    zeros,
    zeros_over,
)
from hfoptim.optimizers.shared import newton_schulz
from hfoptim.optimizers.shared.matrices import Form, MatrixOptimizer
from hfoptim.optimizers.shared.newton_schulz import NewtonSchulz, Triple, newton_schulz_of
from hfoptim.optimizers.shared.spectral import LR_SCALES, by_shape

# The least norm that Newton-Schulz divides by, and the least length of a row at first.
_LEAST_NORM, _LEAST_ROW = 1e-15, 1e-12


def _rates(t: int, group: Group) -> Scalars:
    beta1, beta2 = group["betas"]
    lr, root = float(group["lr"]), math.sqrt(bias_correction(beta2, t))
    return {
        "alpha": 1.0 - group["momentum"],
        "alpha1": 1.0 - beta1,
        "alpha2": 1.0 - beta2,
        "rate": lr,
        "length_rate": lr * root / bias_correction(beta1, t),
        "eps": group["eps"] * root,
        "kept": 1.0 - lr * group["weight_decay"],
        "lr": 1.0 if lr else 0.0,  # rounding alone would move what a learning rate of 0 freezes
        "decay": 0.0,  # what decays are the lengths
    }


def _lengths(param: Tensor, dtype: torch.dtype) -> Tensor:
    lengths: Tensor = param.to(dtype).norm(dim=-1, keepdim=True)
    return lengths.clamp(min=_LEAST_ROW)


_LENGTHS = State(_lengths, of_shaped=True, of_values=True)
_STATE = {
    "g": _LENGTHS,
    "v_norm": _LENGTHS,
    "momentum_buffer": zeros,
    "m_g": zeros_over(-1, signed=True),
    "v_g": zeros_over(-1),
}


def _length(x: Any) -> Any:
    """Of every row."""
    return (x * x).sum(dim=-1, keepdim=True).sqrt()


@cache
def muown(form: Form, iteration: NewtonSchulz, scale: str) -> Rule:
    """The rule for matrices of one form."""

    @MatrixFunction
    def orthogonal(stacks: Sequence[Tensor]) -> list[Tensor]:
        def sized(parts: Sequence[Tensor]) -> list[Tensor]:
            return [by_shape(part, scale) for part in iteration.each(parts, _LEAST_NORM)]

        return form.all(sized, stacks)

    def fn(
        grad: Any, param: Any, g: Any, v_norm: Any, momentum_buffer: Any, m_g: Any, v_g: Any, h: Any
    ) -> tuple[Any, ...]:
        unit = param / g
        along = (grad * unit).sum(dim=-1, keepdim=True)
        across = (grad - unit * along) * (g / v_norm)
        momentum_buffer = ema(momentum_buffer, across, h.alpha)
        row = unit * v_norm - orthogonal(momentum_buffer) * h.rate
        m_g, v_g = ema(m_g, along, h.alpha1), ema(v_g, along * along, h.alpha2)
        g = (g - m_g / (v_g.sqrt() + h.eps) * h.length_rate) * h.kept
        v_norm = _length(row)
        return param - row * (g / v_norm), g, v_norm, momentum_buffer, m_g, v_g

    fn.__name__ = "muown"
    return Rule(fn, MATRIX, _STATE, _rates, shape=form.shape, exact_weights=True)


class Muown(MatrixOptimizer):
    """Muon for the directions of a matrix's rows, Adam for their lengths, which weight decay shrinks.

    A matrix P of r rows and c columns is g V / |V|, row by row, with lengths g and directions V. With G the gradient:

        w = row of P / g;  dg = <G, w>;  dV = g / |V| (G - dg w)
        B = momentum B + (1 - momentum) dV
        V = V - lr s NewtonSchulz(B),  s = 0.2 sqrt(max(r, c)) ("match_rms_adamw") or sqrt(max(1, r / c))
        m = beta1 m + (1 - beta1) dg;  v = beta2 v + (1 - beta2) dg^2
        g = (1 - lr weight_decay) (g - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps))
        P = P - (P - g V / |V|), that is g V / |V|

    V itself is not kept: it is P |V| / g. Matrices that make queries, keys and values at once are made orthogonal in
    three parts. Everything else takes AdamW's step with lr f, f = `fallback_lr_scale`, see `Muon`, which also says what
    is a hidden matrix.

    State: `g`, `v_norm` (|V|), `momentum_buffer` (B), `m_g` (m), `v_g` (v); for everything else `exp_avg`,
    `exp_avg_sq`.

    Raises:
        ValueError: no hidden matrix among the parameters, one with fewer than two dimensions, or parameters that need
            names and have none.
        TypeError: a complex matrix.

    Source:
        Lion et al., Muown: Row-Norm Control for Muon Optimization, arXiv 2605.10797; NVIDIA Emerging-Optimizers,
        `contrib.Muown`, whose factor s is sqrt(max(r, c)), 5 times the one here unless its `extra_scale_factor` is 0.2.
    """

    hidden_matrices = True
    names = (Name("muown"),)
    lr: float = hyper(3e-4, "learning rate")
    momentum: float = hyper(0.95, "decay rate of B", below=1.0)
    weight_decay: float = hyper(0.0, "decay of the lengths, per step and unit of lr; AdamW's for everything else")
    _: KW_ONLY
    eps: float = hyper(1e-8, "Adam's and AdamW's eps")
    adjust_lr_fn: str = hyper("match_rms_adamw", "the factor s", choices=LR_SCALES)
    ns_coefficients: str | Triple | Sequence[Triple] = newton_schulz.coefficients_option("quintic")
    ns_steps: int = newton_schulz.STEPS
    safety_factor: float = newton_schulz.SAFETY_FACTOR
    ns_dtype: torch.dtype | str | None = newton_schulz.DTYPE

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        for name in ("cautious_weight_decay", "corrected_weight_decay"):
            if group[name]:
                raise ValueError(f"{name}=True is not for Muown, whose weight decay is that of the lengths of rows")

    def matrix_rule(self, form: Form, group: dict[str, Any]) -> Rule:
        return muown(form, newton_schulz_of(group), group["adjust_lr_fn"])
