"""Schedule-free AdamW: a running average of the weights in place of a learning-rate schedule."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from hfoptim.engine import Decay, Group, Name, Scalars, hyper
from hfoptim.engine.rule import ELEMENT, add_scaled, bias_correction, clone, ema, nonnegative, rule
from hfoptim.optimizers.shared.averaging import Averaging


def _per_step(t: int, group: Group, weight: float) -> Scalars:
    beta1, beta2 = group["betas"]
    lr = group["scheduled_lr"]
    # A learning rate of 0 from the start leaves nothing to average.
    share = weight / group["weight_sum"] if group["weight_sum"] else 0.0
    root = math.sqrt(bias_correction(beta2, group["k"]))
    return {
        "alpha2": 1.0 - beta2,
        "root": root,
        "eps": group["eps"] * root,
        "weight_decay": float(group["weight_decay"]),
        "lr": lr,
        "share": share,
        "step_of_y": lr * (1.0 - beta1 * (1.0 - share)),
    }


@rule(ELEMENT, per_step=_per_step, returns_step_size=True, z=clone, exp_avg_sq=nonnegative)
def schedule_free(grad: Any, param: Any, z: Any, exp_avg_sq: Any, h: Any) -> tuple[Any, Any, Any, Any]:
    """z takes Adam's step without momentum; the parameter is pulled towards z as the average moves."""
    exp_avg_sq = ema(exp_avg_sq, grad * grad, h.alpha2)
    direction = add_scaled(grad / (exp_avg_sq.sqrt() + h.eps) * h.root, param, h.weight_decay)
    update = add_scaled(direction * h.step_of_y, param - z, h.share)
    return update, h.lr, add_scaled(z, direction, -h.lr), exp_avg_sq


class AdamWScheduleFree(Averaging):
    """AdamW with an average of the weights in place of a learning-rate schedule.

    It trains at one point and evaluates at an average of where it has been. With g the gradient, p the parameter, t the
    step, and z = p at the start:

        a = lr min(1, t / warmup_steps);  w = t^r max(a so far)^weight_lr_power;  c = w / sum(w)
        v = beta2 v + (1 - beta2) g^2
        u = g / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay p
        p = p - c (p - z) - a (1 - beta1 (1 - c)) u;  z = z - a u
        x = p + (1 - 1 / beta1) (z - p)

    x is the average of all z, weighted by w; p lies between it and z, at (1 - beta1) z + beta1 x. The parameter holds x
    from `eval()` to `train()`: call `eval()` before evaluating and before saving the model, also at the end, and
    `train()` before training goes on. transformers' Trainer does so around evaluations, and for optimizers chosen by
    hfoptim's names before it saves, too. A new optimizer is in training mode. The switch is exact: p is kept aside,
    also in a state_dict. Batch norm's statistics are those at p; a few forward passes at x refresh them.

    Wants a constant lr, about AdamW's or up to ten times as large, and `warmup_steps` in place of a schedule's warm-up.
    Where lr changes all the same, the average weighs each step by the largest lr so far. Steps are counted per group:
    in each, `k` steps taken, `weight_sum`, `lr_max`, `scheduled_lr` (a) and `train_mode`.

    State: `z`, `exp_avg_sq` (v), in evaluation mode `y` (p). Follows schedulefree, whose state_dict loads, and where an
    optimizer begins in evaluation mode.

    Raises:
        RuntimeError: from `step()` in evaluation mode.

    Source:
        Defazio et al., The Road Less Scheduled, arXiv 2405.15682; facebookresearch/schedule_free (schedulefree 1.4).
    """

    rule = schedule_free
    decay = Decay.INSIDE
    names = (Name("adamw_schedule_free", aliases=("schedule_free_adamw",)),)
    lr: float = hyper(0.0025, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.999), "share of x in p, above 0, and decay rate of v")
    eps: float = hyper(1e-8, "added to the bias-corrected root of v")
    weight_decay: float = hyper(0.0, "weight decay, per step and unit of lr, taken at p")
    warmup_steps: int = hyper(0, "steps over which lr grows linearly")
    r: float = hyper(0.0, "power of t in the weights of the average")
    weight_lr_power: float = hyper(2.0, "power of lr in them")

    def adapt_loaded(self, param: Tensor, state: dict[str, Any], group: dict[str, Any]) -> dict[str, Any]:
        # schedulefree counts steps by group only.
        return {"step": group["k"], **state}
