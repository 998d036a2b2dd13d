"""Kourkoutas-beta: Adam whose second moment forgets faster while gradients are larger than usual."""

from __future__ import annotations

from dataclasses import KW_ONLY
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import Group, Name, RuleOptimizer, Scalars, hyper
from hfoptim.engine.rule import TENSOR, Rule, State, bias_correction, ema, nonnegative, scalar, zeros


def _one(param: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.ones((), dtype=dtype, device=param.device)


def _per_step(t: int, group: Group) -> Scalars:
    beta1, low, high = group["beta1"], group["beta2_min"], group["beta2_max"]
    warm = t > group["warmup_steps"]
    corrects = group["bias_correction"] != "none"
    return {
        "alpha1": 1.0 - beta1,
        "alpha_norm": 1.0 - group["alpha"],
        # beta2 = calm - spread * s
        "calm": high if warm else 0.5 * (low + high),
        "spread": high - low if warm else 0.0,
        "tiny_spike": group["tiny_spike"],
        "leak": 1.0 if group["max_decay"] is None else group["max_decay"],
        "c1": bias_correction(beta1, t) if corrects else 1.0,
        "c2": bias_correction(high, t) if corrects else 1.0,
        "eps": group["eps"],
        "tiny_denom": group["tiny_denom"],
        "most": 1.0 if group["max_ratio"] is None else group["max_ratio"],
    }


@cache
def kourkoutas(bounded: bool, capped: bool, adaptive_tiny: bool, exact: bool) -> Rule:
    """The rule for one choice of options.

    Args:
        bounded: keep the largest second moment, which may leak.
        capped: no entry moves by more than lr times a number.
        adaptive_tiny: what is added to the root grows with the parameter.
        exact: correct the bias of the second moment by the decay rates there were.
    """

    # Passes over memory, in tensors of the parameter's size:
    #   the gradient's norm: read grad                                          1
    #   update: read grad, param, m, v; write param, m, v                       7
    def fn(grad: Any, param: Any, exp_avg: Any, exp_avg_sq: Any, norm: Any, *args: Any) -> tuple[Any, ...]:
        *more, h = args
        now = grad.norm()
        norm = ema(norm, now, h.alpha_norm)
        raw = now / (norm + h.tiny_spike)
        beta2 = h.calm - raw / (raw + 1.0) * h.spread
        exp_avg = ema(exp_avg, grad, h.alpha1)
        exp_avg_sq = exp_avg_sq * beta2 + grad * grad * (1.0 - beta2)
        second, c2 = exp_avg_sq, h.c2
        if bounded:
            more[0] = second = torch.maximum(more[0] * h.leak, exp_avg_sq)
        if exact:
            more[-1] = more[-1] * beta2
            c2 = 1.0 - more[-1]
        root = (second / c2).sqrt()
        if adaptive_tiny:
            root = root + param.abs().mean().clamp(min=1.0) * h.tiny_denom
        update = exp_avg / h.c1 / (root + h.eps)
        if capped:
            update = update.clamp(min=-h.most, max=h.most)
        return (update, exp_avg, exp_avg_sq, norm, *more)

    fn.__name__ = "kourkoutas"
    state = {"exp_avg": zeros, "exp_avg_sq": nonnegative, "grad_norm": scalar}
    state |= {"max_exp_avg_sq": nonnegative} if bounded else {}
    state |= {"beta2_product": State(_one)} if exact else {}
    return Rule(fn, TENSOR, state, _per_step)


class Kourkoutas(RuleOptimizer):
    """Adam whose second moment forgets faster, tensor by tensor, while gradients are larger than they lately were.

    With g the gradient of a tensor, p the parameter, t the step:

        e = alpha e + (1 - alpha) |g|
        s = q / (1 + q),  q = |g| / (e + tiny_spike)
        b = beta2_max - (beta2_max - beta2_min) s               (for warmup_steps steps their mean)
        m = beta1 m + (1 - beta1) g
        v = b v + (1 - b) g^2
        u = m / (sqrt(v) + eps)
        p = p - lr u - lr weight_decay p

    with m and v divided by their bias corrections under `bias_correction`: that of v is 1 - beta2_max^t for "beta2max",
    1 minus the product of all b for "exact". With `max_decay` v is replaced in u by w = max(max_decay w, v), which
    `max_ratio` does too, as with 1, and clips u at max_ratio. With `adaptive_tiny`, tiny_denom max(1, mean(|p|)) is
    added to the root of v.

    State: `exp_avg` (m), `exp_avg_sq` (v), `grad_norm` (e, one number), and `max_exp_avg_sq` (w) and `beta2_product`
    where they are needed.

    Follows the author's MLX code, with a layer for each tensor, which is its default without names; it has no weight
    decay, and calls max_decay `decay`.

    Raises:
        TypeError: a complex parameter.
        ValueError: beta2_min above beta2_max.

    Source:
        Kassinos, Kourkoutas-beta: A Sunspike-Driven Adam Optimizer with Desert Flair, arXiv 2508.12996;
        sck-at-ucy/kbeta.
    """

    names = (Name("kourkoutas", aliases=("kourkoutas_beta", "kourkoutas_softmax_flex", "kbeta")),)
    lr: float = hyper(1e-3, "learning rate")
    beta1: float = hyper(0.9, "decay rate of m", below=1.0)
    beta2_max: float = hyper(0.999, "largest decay rate of v", below=1.0)
    beta2_min: float = hyper(0.9, "smallest decay rate of v", below=1.0)
    eps: float = hyper(1e-8, "added to the root of v")
    alpha: float = hyper(0.9, "decay rate of the norm", below=1.0)
    _: KW_ONLY
    weight_decay: float = hyper(0.0, "decoupled weight decay, per step and unit of lr")
    tiny_spike: float = hyper(1e-8, "added to the norm", above=0.0, excluded="would divide 0 by 0")
    tiny_denom: float = hyper(1e-8, "added to the root of v, per unit of the mean size of the parameter")
    max_decay: float | None = hyper(
        None, "how slowly the largest v is forgotten; 1: never. None divides by v", most=1.0
    )
    max_ratio: float | None = hyper(
        None, "largest entry of u; None does not clip", above=0.0, excluded="would take no step"
    )
    adaptive_tiny: bool = hyper(False, "whether tiny_denom is added")
    bias_correction: str = hyper("none", "of m and v", choices=("none", "beta2max", "exact"))
    warmup_steps: int = hyper(0, "steps with the mean of both decay rates of v")

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        if group["beta2_min"] > group["beta2_max"]:
            raise ValueError(
                f"beta2_min={group['beta2_min']} is above beta2_max={group['beta2_max']}; give one that is not"
            )

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        capped = group["max_ratio"] is not None
        bounded = capped or group["max_decay"] is not None
        return kourkoutas(bounded, capped, group["adaptive_tiny"], group["bias_correction"] == "exact")
