"""Big Vision's Adafactor: Adam's step with a factored second moment and a short momentum."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Size, Tensor

from hfoptim.engine import TENSOR, Group, Name, Rule, RuleOptimizer, Scalars, ema, hyper, in_bfloat16, zeros
from hfoptim.engine.checks import choice
from hfoptim.optimizers.shared.clipping import clip_at
from hfoptim.optimizers.shared.factored import Factored, inverse_clip, scaled


def _per_step(t: int, group: Group) -> Scalars:
    beta2 = min(group["beta2_cap"], 1.0 - max(1, t - group["decay_offset"]) ** -group["decay_rate"])
    scalars: Scalars = {"alpha2": 1.0 - beta2, "eps": 1e-30 if group["eps"] is None else group["eps"]}
    if group["momentum"] is not None:
        scalars["alpha1"] = 1.0 - group["momentum"]
    if group["clipping_threshold"] is not None:
        scalars["inverse_clip"] = 1.0 / group["clipping_threshold"]
    if group["unscaled_wd"]:
        scalars["decay"] = float(group["weight_decay"])
    return scalars


@cache
def adafactor_bv(moment: Factored, clipped: bool, momentum_dtype: str | None) -> Rule:
    """The rule for one kind of parameter and options; `momentum_dtype` None is without momentum."""
    second = moment.state("exp_avg_sq", "_r", "_c")

    def fn(grad: Any, param: Any, *args: Any) -> tuple[Any, ...]:
        *state, h = args
        squared, size = grad * grad, 1.0
        factors, moments = moment.averaged(squared, state[: len(second)], h.alpha2, h.eps)
        if clipped:
            size = 1.0 / inverse_clip(moment.mean_square(squared, factors), h.inverse_clip)
        update = scaled(grad, factors, size)
        if momentum_dtype is None:
            return update, *moments
        update = ema(state[-1], update, h.alpha1)
        return update, *moments, update

    fn.__name__ = "adafactor_bv"
    first = {None: {}, "float32": {"exp_avg": zeros}, "bfloat16": {"exp_avg": in_bfloat16(zeros)}}
    return Rule(fn, TENSOR, {**second, **first[momentum_dtype]}, _per_step)


def _dtype(name: str, value: Any) -> str:
    """A dtype's name, given it or the dtype."""
    known = {torch.bfloat16: "bfloat16", torch.float32: "float32"}
    return choice(name, known.get(value, str(value)) if isinstance(value, torch.dtype) else value, known.values())


class AdafactorBigVision(RuleOptimizer):
    """Adafactor for vision models: no relative steps, a cap on the moment's decay, momentum kept in bfloat16.

    With G the gradient, P the parameter, t the step, R and C the means over the two largest dimensions:

        b2 = min(beta2_cap, 1 - max(1, t - decay_offset)^-decay_rate)
        R = b2 R + (1 - b2) mean_row(G^2 + eps);  C = b2 C + (1 - b2) mean_col(G^2 + eps)
        U = G / sqrt(R C / mean(R))
        U = U / max(1, rms(U) / clipping_threshold)                  (if that is given)
        M = momentum M + (1 - momentum) U                            (momentum None: M = U)
        P = P - lr M - lr weight_decay P                             (unscaled_wd: - weight_decay P)

    What has less than two dimensions of `min_dim_size_to_factor` and more keeps the whole second moment.
    State: `exp_avg_sq_r` (R) and `exp_avg_sq_c` (C), or `exp_avg_sq`; `exp_avg` (M).

    Follows timm. M is rounded to bfloat16 between steps only: a step takes it as it was computed, timm's the rounded
    one. Parameters in double precision keep it in theirs. timm 1.0.31 factors from 16 on, its document says 32. For
    float16 timm takes an eps of 1e-7; here everything is computed in float32, with 1e-30. With `unscaled_wd` weights
    shrink also while lr is 0.

    Raises:
        TypeError: a complex parameter.
        ValueError: a momentum_dtype of float16, whose range is too small.

    Source:
        Zhai et al., Scaling Vision Transformers, arXiv 2106.04560; google-research/big_vision; timm 1.0,
        `timm.optim.AdafactorBigVision`.
    """

    names = (
        Name("adafactorbv", aliases=("adafactorbigvision",)),
        Name("cadafactorbv", "Big Vision's Adafactor with caution", options={"caution": True}),
        Name(
            "adafactorbvc",
            "Big Vision's Adafactor with decay that falls with the square of lr",
            options={"corrected_weight_decay": True},
        ),
        Name("cadafactorbvc", "adafactorbvc with caution", options={"caution": True, "corrected_weight_decay": True}),
    )
    lr: float = hyper(1.0, "learning rate")
    min_dim_size_to_factor: int = hyper(32, "least size of dimensions that are factored", low=0)
    decay_rate: float = hyper(0.8, "exponent of the moment's decay")
    decay_offset: int = hyper(0, "steps before that decay starts", low=0)
    beta2_cap: float = hyper(0.999, "largest decay rate of the moment", below=1.0)
    momentum: float | None = hyper(0.9, "decay rate of M; None keeps none", below=1.0)
    momentum_dtype: str = hyper("bfloat16", 'in what M is kept, "bfloat16" or "float32", or the dtype', check=_dtype)
    eps: float | None = hyper(None, "added to the squared gradient; None is 1e-30")
    weight_decay: float = hyper(0.0, "decoupled weight decay, per step and unit of lr")
    clipping_threshold: float | None = clip_at(None, "root mean square of U")
    unscaled_wd: bool = hyper(False, "weight decay is not multiplied by lr")

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        moment = _largest_two(param.shape, group["min_dim_size_to_factor"])
        kept = None if group["momentum"] is None else group["momentum_dtype"]
        return adafactor_bv(moment, group["clipping_threshold"] is not None, kept)


def _largest_two(shape: Size, least: int) -> Factored:
    """A moment factored by the two largest dimensions, of equal ones the last, if both are large enough."""
    if len(shape) < 2:
        return Factored(None)
    dims = sorted(sorted(range(len(shape)), key=lambda i: (shape[i], i))[-2:])
    return Factored((dims[0], dims[1]) if min(shape[i] for i in dims) >= least else None)
