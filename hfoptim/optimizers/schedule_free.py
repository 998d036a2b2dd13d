"""Schedule-free SGD, AdamW and RAdam: a running average of the weights in place of a learning-rate schedule."""

from __future__ import annotations

import math
from typing import Any

from hfoptim.engine import Group, Name, Scalars, hyper
from hfoptim.engine.rule import ELEMENT, Rule, bias_correction, clone, ema, nonnegative, rule
from hfoptim.optimizers.shared.averaging import Averaging, average_of, average_rates, averaged
from hfoptim.optimizers.shared.rectification import rectification


def _of_adamw(t: int, group: Group, weight: float) -> Scalars:
    beta1, beta2 = group["betas"]
    root = math.sqrt(bias_correction(beta2, group["k"]))
    own = {"alpha2": 1.0 - beta2, "root": root, "eps": group["eps"] * root, "adapted": 1.0}
    return {**average_rates(group, weight, beta1), **own}


def _rectified(k: int, group: Group) -> float | None:
    return rectification(group["betas"][1], k, above=4.0)


def _of_radam(t: int, group: Group, weight: float) -> Scalars:
    scalars = _of_adamw(t, group, weight)
    known = _rectified(group["k"], group) is not None
    return scalars if known else {**scalars, "root": 1.0, "eps": 1.0, "adapted": 0.0}


def _rectified_rate(k: int, group: Group) -> float:
    factor = _rectified(k, group)
    return float(group["lr"]) * (float(not group["silent_sgd_phase"]) if factor is None else factor)


def _of_sgd(t: int, group: Group, weight: float) -> Scalars:
    return average_rates(group, weight, group["momentum"])


def _schedule_free(grad: Any, param: Any, z: Any, exp_avg_sq: Any, h: Any) -> tuple[Any, Any, Any, Any]:
    """z takes Adam's step without momentum."""
    exp_avg_sq = ema(exp_avg_sq, grad * grad, h.alpha2)
    direction = grad / (exp_avg_sq.sqrt() * h.adapted + h.eps) * h.root
    return *averaged(direction, param, z, h), exp_avg_sq


@rule(ELEMENT, per_step=_of_sgd, returns_step_size=True, z=clone)
def schedule_free_sgd(grad: Any, param: Any, z: Any, h: Any) -> tuple[Any, Any, Any]:
    """z takes the step of gradient descent."""
    return averaged(grad, param, z, h)


_adaptive = {"z": clone, "exp_avg_sq": nonnegative}


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

    rule = Rule(_schedule_free, ELEMENT, _adaptive, _of_adamw, returns_step_size=True)
    names = (Name("adamw_schedule_free", aliases=("schedule_free_adamw",)),)
    lr: float = hyper(0.0025, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.999), "share of x in p, above 0, and decay rate of v")
    eps: float = hyper(1e-8, "added to the bias-corrected root of v")
    weight_decay: float = hyper(0.0, "weight decay, per step and unit of lr, taken at p")
    warmup_steps: int = hyper(0, "steps over which lr grows linearly")
    r: float = hyper(0.0, "power of t in the weights of the average")
    weight_lr_power: float = hyper(2.0, "power of lr in them")


class RAdamScheduleFree(Averaging):
    """RAdam with an average of the weights in place of a learning-rate schedule, and of a warm-up.

    It trains at one point and evaluates at an average of where it has been. With g the gradient, p the parameter, t the
    step, R the rectification of RAdam, and z = p at the start:

        a = lr R;  w = t^r max(a so far)^weight_lr_power;  c = w / sum(w)
        v = beta2 v + (1 - beta2) g^2
        u = g / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay p
        p = p - c (p - z) - a (1 - beta1 (1 - c)) u;  z = z - a u
        x = p + (1 - 1 / beta1) (z - p)

    In the first steps, before R is known (the first 5 with beta2 = 0.999), v alone moves; with `silent_sgd_phase` off
    a = lr and u = g + weight_decay p.

    x is the average of all z, weighted by w. `eval()` and `train()` switch between p and x as in AdamWScheduleFree,
    where all of it is told. Wants a constant lr, and no warm-up. In each group: `k` steps taken, `weight_sum`,
    `lr_max`, `scheduled_lr` (a) and `train_mode`.

    State: `z`, `exp_avg_sq` (v), in evaluation mode `y` (p). Follows schedulefree, whose state_dict loads, and where an
    optimizer begins in evaluation mode.

    Raises:
        RuntimeError: from `step()` in evaluation mode.
        ValueError: silent_sgd_phase with a beta2 up to 0.6, for which no step is ever taken.

    Source:
        Defazio et al., The Road Less Scheduled, arXiv 2405.15682; facebookresearch/schedule_free (schedulefree 1.4);
        Liu et al., arXiv 1908.03265.
    """

    rule = Rule(_schedule_free, ELEMENT, _adaptive, _of_radam, returns_step_size=True)
    names = (Name("radam_schedule_free", aliases=("schedule_free_radam",)),)
    run_state = average_of(_rectified_rate)
    lr: float = hyper(0.0025, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.999), "share of x in p, above 0, and decay rate of v")
    eps: float = hyper(1e-8, "added to the bias-corrected root of v")
    weight_decay: float = hyper(0.0, "weight decay, per step and unit of lr, taken at p")
    r: float = hyper(0.0, "power of t in the weights of the average")
    weight_lr_power: float = hyper(2.0, "power of a in them")
    silent_sgd_phase: bool = hyper(True, "no steps before the rectification is known; False takes those of SGD")

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        if group["silent_sgd_phase"] and group["betas"][1] <= 0.6:
            raise ValueError(
                f"betas={group['betas']!r}: with betas[1] up to 0.6 there never is a rectification, so that nothing "
                f"would move; give a larger one, or silent_sgd_phase=False"
            )


class SGDScheduleFree(Averaging):
    """SGD with an average of the weights in place of a learning-rate schedule and of momentum.

    It trains at one point and evaluates at an average of where it has been. With g the gradient, p the parameter, t the
    step, and z = p at the start:

        a = lr min(1, t / warmup_steps);  w = t^r max(a so far)^weight_lr_power;  c = w / sum(w)
        u = g + weight_decay p
        p = p - c (p - z) - a (1 - momentum (1 - c)) u;  z = z - a u
        x = p + (1 - 1 / momentum) (z - p)

    x is the average of all z, weighted by w. `eval()` and `train()` switch between p and x as in AdamWScheduleFree,
    where all of it is told. Wants a constant lr, 10 to 50 times that of SGD with a schedule. In each group: `k` steps
    taken, `weight_sum`, `lr_max`, `scheduled_lr` (a) and `train_mode`.

    State: `z`, in evaluation mode `y` (p). Follows schedulefree, whose state_dict loads, and where an optimizer begins
    in evaluation mode.

    Raises:
        RuntimeError: from `step()` in evaluation mode.

    Source:
        Defazio et al., The Road Less Scheduled, arXiv 2405.15682; facebookresearch/schedule_free (schedulefree 1.4).
    """

    rule = schedule_free_sgd
    names = (Name("sgd_schedule_free", aliases=("schedule_free_sgd",)),)
    share_option = "momentum"
    lr: float = hyper(1.0, "learning rate")
    momentum: float = hyper(0.9, "share of x in p, above 0", below=1.0)
    weight_decay: float = hyper(0.0, "weight decay, per step and unit of lr, taken at p")
    warmup_steps: int = hyper(0, "steps over which lr grows linearly")
    r: float = hyper(0.0, "power of t in the weights of the average")
    weight_lr_power: float = hyper(2.0, "power of lr in them")
