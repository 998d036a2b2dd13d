"""AdaBound and AMSBound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY
from functools import cache
from typing import Any

from torch import Tensor

from hfoptim.engine import ELEMENT, Group, Name, Rule, RunState, Scalars, hyper
from hfoptim.optimizers.shared.decay_options import FIXED_DECAY, Decoupling, decoupling, fixed_decay
from hfoptim.optimizers.shared.moments import adam_state, folded, moments, with_largest


def _per_step(t: int, group: Group) -> Scalars:
    scalars = folded(t, group)
    final = group["final_lr"] * float(group["lr"]) / group["base_lr"] if group["base_lr"] else 0.0
    speed = group["gamma"] * t
    bounds = {"least": final * (1.0 - 1.0 / (speed + 1.0)), "most": final * (1.0 + 1.0 / speed)}
    return {**scalars, **bounds, **fixed_decay(group), "size": scalars["lr"], "lr": 1.0}


def _first_lr(state: Group, totals: Mapping[str, Tensor], group: Group) -> Scalars:
    """The lr that the bounds are relative to: the first one that is not 0."""
    return {"base_lr": state["base_lr"] or float(group["lr"])}


@cache
def adabound(amsbound: bool) -> Rule:
    """The rule, with or without AMSGrad."""

    def fn(grad: Any, param: Any, exp_avg: Any, exp_avg_sq: Any, *args: Any) -> tuple[Any, ...]:
        *state, h = args
        exp_avg, exp_avg_sq = moments(grad, exp_avg, exp_avg_sq, h)
        largest, kept = with_largest(exp_avg_sq, state)
        rate = (h.size / (largest.sqrt() + h.eps)).clamp(min=h.least, max=h.most)
        return (rate * exp_avg, exp_avg, exp_avg_sq, *kept)

    fn.__name__ = "adabound"
    return Rule(fn, ELEMENT, adam_state(amsbound), _per_step)


class AdaBound(Decoupling):
    """Adam whose step sizes are clipped ever closer to one number: from Adam at the start to SGD at the end.

    With g the gradient, p the parameter, t the step, a = lr / (lr at the start):

        g = g + weight_decay p
        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) g^2
        r = lr sqrt(1 - beta2^t) / (1 - beta1^t) / (sqrt(v) + eps)
        r = clip(r, a final_lr (1 - 1 / (gamma t + 1)), a final_lr (1 + 1 / (gamma t)))
        p = p - r m

    or with `weight_decouple`, g as it is, p - r m - lr weight_decay p (fixed_decay: - weight_decay p). With `amsbound`
    the largest v so far. The lr at the start is the one that a group was made with, kept in it as `base_lr`; where that
    is 0, the first other one.

    The names "adabound" and "amsbound" follow the author's AdaBound, "adaboundw" the author's AdaBoundW, whose decay lr
    does not multiply. pytorch_optimizer decouples by default and has sqrt(v + 1e-15). State: `exp_avg` (m),
    `exp_avg_sq` (v), `max_exp_avg_sq` with amsbound.

    Source:
        Luo et al., arXiv 1902.09843; Luolc/AdaBound.
    """

    run_state = RunState({"base_lr": lambda options: float(options["lr"])}, _first_lr)
    names = (
        Name("adabound"),
        Name("amsbound", "AdaBound with the largest second moment so far", options={"amsbound": True}),
        Name(
            "adaboundw",
            "AdaBound with decoupled weight decay, not multiplied by lr",
            options={"weight_decouple": True, "fixed_decay": True},
        ),
    )
    lr: float = hyper(1e-3, "Adam's learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.999), "decay rates of m and v")
    final_lr: float = hyper(0.1, "learning rate at the end, that of SGD")
    gamma: float = hyper(1e-3, "how fast the bounds close", above=0.0, below=1.0, excluded="never closes the bounds")
    eps: float = hyper(1e-8, "added to the root of v")
    weight_decay: float = hyper(0.0, "L2 penalty, or the coefficient of the decoupled decay")
    amsbound: bool = hyper(False, "divide by the largest v so far")
    _: KW_ONLY
    weight_decouple: bool = decoupling(False)
    fixed_decay: bool = FIXED_DECAY

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        return adabound(group["amsbound"])
