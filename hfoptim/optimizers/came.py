"""CAME: Adafactor whose momentum is trusted as far as the updates agree with it."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor

from hfoptim.engine import TENSOR, Group, Name, Rule, RuleOptimizer, Scalars, ema, hyper, zeros
from hfoptim.optimizers.shared.factored import Factored, inverse_clip, last_two, pair, scaled


def _per_step(t: int, group: Group) -> Scalars:
    beta1, beta2, beta3 = group["betas"]
    return {
        "alpha1": 1.0 - beta1,
        "alpha2": 1.0 - beta2,
        "alpha3": 1.0 - beta3,
        "eps": group["eps"][0],
        "eps_residual": group["eps"][1],
        "inverse_clip": 1.0 / group["clip_threshold"],
    }


@cache
def came(moment: Factored) -> Rule:
    """The rule for parameters whose moments are kept in that way."""
    second = moment.state("exp_avg_sq")

    def fn(grad: Any, param: Any, exp_avg: Any, *args: Any) -> tuple[Any, ...]:
        *state, h = args
        squared = grad * grad
        factors, moments = moment.averaged(squared, state[: len(second)], h.alpha2, h.eps)
        clip = inverse_clip(moment.mean_square(squared, factors), h.inverse_clip)
        update = scaled(grad, factors, 1.0 / clip)
        exp_avg = ema(exp_avg, update, h.alpha1)
        if moment.dims is None:
            return exp_avg, exp_avg, *moments
        residual = update - exp_avg
        factors, residuals = moment.averaged(residual * residual, state[len(second) :], h.alpha3, h.eps_residual)
        return scaled(exp_avg, factors, 1.0), exp_avg, *moments, *residuals

    fn.__name__ = "came"
    residual = {} if moment.dims is None else moment.state("exp_avg_res")
    return Rule(fn, TENSOR, {"exp_avg": zeros, **second, **residual}, _per_step)


class CAME(RuleOptimizer):
    """Adafactor with a momentum that is divided by how far updates have been from it.

    With G the gradient, P the parameter, R, C and S, D means over columns and rows:

        R = beta2 R + (1 - beta2) mean_row(G^2 + eps1);  C = beta2 C + (1 - beta2) mean_col(G^2 + eps1)
        U = G / sqrt(R C / mean(R));                     U = U / max(1, rms(U) / clip_threshold)
        M = beta1 M + (1 - beta1) U
        S = beta3 S + (1 - beta3) mean_row((U - M)^2 + eps2);  D = the same with mean_col
        P = P - lr weight_decay P - lr M / sqrt(S D / mean(S))

    The last two dimensions are factored. Parameters with less keep the whole second moment and step by M alone.
    State: `exp_avg` (M), `exp_avg_sq_row` (R), `exp_avg_sq_col` (C), `exp_avg_res_row` (S), `exp_avg_res_col` (D), or
    `exp_avg` and `exp_avg_sq`. There are no bias corrections: the first update is 1 / sqrt(1 - beta2) times the
    gradient's sign, of which clip_threshold leaves a root mean square of 1.

    The author and pytorch_optimizer 4.1 agree. The author's class has no default of lr, this one has the 2e-4 of its
    README.

    Raises:
        TypeError: a complex parameter.

    Source:
        Luo et al., arXiv 2307.02047; yangluo7/CAME.
    """

    names = (Name("came"),)
    lr: float = hyper(2e-4, "learning rate")
    eps: Any = hyper(
        (1e-30, 1e-16), "eps1, added to the squared gradient, and eps2, to the squared residual", check=pair
    )
    clip_threshold: float = hyper(1.0, "largest root mean square of U", above=0.0, excluded="would stop every step")
    betas: tuple[float, float, float] = hyper((0.9, 0.999, 0.9999), "decay rates of M, of R and C, and of S and D")
    weight_decay: float = hyper(0.0, "decoupled weight decay, per step and unit of lr")

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        return came(last_two(param.shape))
