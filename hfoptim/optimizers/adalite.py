"""Adalite: Adam with a trust ratio whose moments of matrices have rank one."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor

from hfoptim.engine import (
    TENSOR,
    Group,
    Name,
    Rule,
    Scalars,
    bias_correction,
    ema,
    hyper,
    nonnegative,
    scalar,
    zeros,
    zeros_over,
)
from hfoptim.optimizers.shared.decay_options import FIXED_DECAY, Decoupling, decoupling, fixed_decay
from hfoptim.optimizers.shared.matrices import as_matrix


def _per_step(t: int, group: Group) -> Scalars:
    beta1, beta2 = group["betas"]
    return {
        **fixed_decay(group),
        "alpha1": 1.0 - beta1,
        "alpha2": 1.0 - beta2,
        "correction": 1.0 / bias_correction(beta2, t),
        **{name: group[name] for name in ("eps1", "eps2", "tau", "g_norm_min", "ratio_min")},
    }


def _softmax(x: Any) -> Any:
    powers = (x - x.amax()).exp()
    return powers / powers.sum()


def _trusted(grad: Any, param: Any, h: Any) -> Any:
    return grad * (param.norm() / grad.norm().clamp(min=h.g_norm_min)).clamp(min=h.ratio_min)


def _update(grad: Any, m: Any, v: Any, h: Any) -> Any:
    return ema(m, grad, h.alpha1) / (v * h.correction + h.eps1).sqrt()


@cache
def adalite_whole(trusts: bool) -> Rule:
    """The rule of parameters that are no matrices, whose moments are kept whole."""

    def fn(grad: Any, param: Any, m_avg: Any, v_avg: Any, h: Any) -> tuple[Any, ...]:
        grad = _trusted(grad, param, h) if trusts else grad
        m = ema(m_avg, grad, h.alpha1)
        v = ema(v_avg, (grad - m).square(), h.alpha2)
        return _update(grad, m, v, h), m, v

    fn.__name__ = "adalite"
    return Rule(fn, TENSOR, {"m_avg": zeros, "v_avg": nonnegative}, _per_step)


def _factored(grad: Any, param: Any, *args: Any) -> tuple[Any, ...]:
    """The rule of matrices, whose moments are products of a column and a row."""
    rows, columns, left, right, size, h = args
    grad = _trusted(grad, param, h)
    m = ema(left * right * size, grad, h.alpha1)
    v = ema(rows * columns / rows.sum().clamp(min=h.eps2), (grad - m).square(), h.alpha2)
    row_means, column_means = v.mean(1, keepdim=True), v.mean(0, keepdim=True)
    m = m + (grad - m) * (1.0 - _softmax(row_means) * _softmax(column_means))
    left = (m * _softmax(column_means / h.tau)).sum(1, keepdim=True)
    right = (m * _softmax(row_means / h.tau)).sum(0, keepdim=True)
    size = (m * left * right).sum() / (left.square().sum() * right.square().sum()).clamp(min=h.eps2)
    columns = v.sum(0, keepdim=True) / v.sum().clamp(min=h.eps2)
    return _update(grad, m, v, h), v.sum(1, keepdim=True), columns, left, right, size


_factored.__name__ = "adalite"


_FACTORS = {
    "v_avg_0": zeros_over(1),
    "v_avg_1": zeros_over(0),
    "m_avg_c": zeros_over(1, signed=True),
    "m_avg_r": zeros_over(0, signed=True),
    "m_avg_u": scalar,
}
adalite_factored = Rule(_factored, TENSOR, _FACTORS, _per_step, shape=as_matrix)


class Adalite(Decoupling):
    """Adam with a trust ratio whose moments, of matrices, are kept as a column and a row: little state.

    With G the gradient, P the parameter, t the step, m and v the moments as far as a column and a row keep them:

        G = G max(ratio_min, |P| / max(|G|, g_norm_min))
        M = beta1 m + (1 - beta1) G
        V = beta2 v + (1 - beta2) (G - M)^2
        M = S M + (1 - S) G,    S = softmax(mean_row(V)) softmax(mean_col(V))
        U = (beta1 M + (1 - beta1) G) / sqrt(V / (1 - beta2^t) + eps1)
        P = P - lr U - lr weight_decay P                        (fixed_decay: - weight_decay P)
        c = M softmax(mean_col(V) / tau);    r = softmax(mean_row(V) / tau) M
        m = c r (c M r) / max(|c|^2 |r|^2, eps2);    v = sum_row(V) sum_col(V) / sum(V)

    Kernels of a convolution count as matrices of a row per output channel; vectors keep both moments whole, without S.
    `weight_decouple=False` adds the decay to G instead. State: `v_avg_0`, `v_avg_1` (rows and columns of v), `m_avg_c`,
    `m_avg_r`, `m_avg_u` (c, r and the number before them), or `m_avg` and `v_avg`.

    No kernel is generated for matrices (a softmax over columns): the multi-tensor backend steps them.

    Follows VatsaDev/adalite, whose numbers pytorch_optimizer 4.1 has, but for its weight decay: 4.1 counts steps by
    group. What the author's own repository (euclaise/SlimTrainer) calls Adalite today is another method, Adafactor with
    one factor and a trust ratio.

    Raises:
        TypeError: a complex parameter.

    Source:
        https://github.com/VatsaDev/adalite, after euclaise/SlimTrainer; pytorch_optimizer 4.1, `Adalite`.
    """

    names = (Name("adalite", paper="https://github.com/VatsaDev/adalite"),)
    lr: float = hyper(1e-3, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.999), "decay rates of both moments")
    weight_decay: float = hyper(1e-2, "weight decay, per step and unit of lr")
    weight_decouple: bool = decoupling(True)
    fixed_decay: bool = FIXED_DECAY
    g_norm_min: float = hyper(1e-10, "least norm of a gradient that is divided by", above=0.0)
    ratio_min: float = hyper(1e-4, "least trust ratio")
    tau: float = hyper(1.0, "temperature of the weights of rows and columns in c and r", above=0.0)
    eps1: float = hyper(1e-6, "added to V before its root")
    eps2: float = hyper(1e-10, "least sum that is divided by", above=0.0)

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        return adalite_factored if param.ndim > 1 else adalite_whole(sum(param.shape) > 1)
