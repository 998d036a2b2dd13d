"""ScheduleFree+: AdamC between its weights and their average, with Polyak's step size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import Group, Name, Scalars, hyper
from hfoptim.engine.rule import ELEMENT, Probe, Rule, clone, nonnegative, zeros
from hfoptim.engine.run_state import RunState
from hfoptim.optimizers.shared.averaging import Averaging, averaged
from hfoptim.optimizers.shared.moments import corrected, moments_step

# The expected ratio of the 2-norm and the 1-norm times the root of the size, for normal numbers.
_NORMS = math.sqrt(math.pi / 2.0)


def _share_of_average(k: int, group: Mapping[str, Any]) -> float:
    """The share of x in the y that step k ends at, steps counted from 1; it is annealed in its distance from 1."""
    first, steps = group["sf_beta1"], group["sf_beta1_anneal_steps"]
    if not steps:
        return float(first)
    progress = min(max(k - 1, 0) / steps, 1.0)
    return 1.0 - float((1.0 - first) ** (1.0 - progress) * (1.0 - group["sf_beta1_max"]) ** progress)


def _advance(state: Group, totals: Mapping[str, Tensor], group: Group) -> dict[str, Any]:
    """Polyak's step size, and what the step weighs in the average; `group` is the group before the step."""
    k, beta = state["k"] + 1, group["polyak_beta"]
    norm = state["grad_l1_ema"] * beta + totals["grad_l1"] * ((1.0 - beta) * _NORMS)
    ahead = _share_of_average(k, group) / _share_of_average(state["k"], group)  # z - x of z - y
    gap = (totals["loss"] + totals["inner"] * ahead).clamp(min=0.0)
    lr = torch.where(norm > 0.0, gap / norm * ((1.0 - beta**k) * float(group["lr"])), 0.0)
    lr_max = torch.maximum(state["lr_max"], lr)
    found = {"k": k, "grad_l1_ema": norm, "scheduled_lr": lr, "lr_max": lr_max}
    if k <= group["c_warmup"]:
        return {**found, "share": 1.0}
    weight = lr_max ** group["weight_lr_power"] * float(k ** group["r"])
    weight_sum = state["weight_sum"] + weight
    return {**found, "weight_sum": weight_sum, "share": weight / weight_sum}


def _per_step(t: int, group: Group, share: Any, **totals: Any) -> Scalars:
    """In terms of y, z and z's step s: y goes by (1 - q / b) (y - z) + (1 - q) s, with q = b' (1 - c)."""
    k, lr = group["k"], group["scheduled_lr"]
    moments = corrected(k, {**group, "lr": 1.0})
    kept = _share_of_average(k, group) * (1.0 - share)
    return {
        **moments,
        "root": moments["lr"],
        "lr": lr,
        "share": 1.0 - kept / _share_of_average(k - 1, group),
        "step_of_y": lr * (1.0 - kept),
        "weight_decay": lr * group["weight_decay"],
    }


def _sums(grad: Any, param: Any, z: Any, exp_avg: Any, exp_avg_sq: Any, h: Any) -> dict[str, Any]:
    return {"grad_l1": grad.abs().sum(), "inner": (grad * (z - param)).sum()}


def _fn(grad: Any, param: Any, z: Any, exp_avg: Any, exp_avg_sq: Any, h: Any) -> tuple[Any, ...]:
    direction, exp_avg, exp_avg_sq = moments_step(grad, param, exp_avg, exp_avg_sq, h)
    return *averaged(direction * h.root, param, z, h), exp_avg, exp_avg_sq


class AdamCScheduleFreePlus(Averaging):
    """Schedule-free Adam with momentum inside, whose learning rate is how far the loss is above 0: leave lr at 1.

    It trains at one point and evaluates at an average of where it has been. With L the loss, g the gradient, p the
    parameter, t the step, sums over all entries of all parameters, and z = x = p at the start:

        n = polyak_beta n + (1 - polyak_beta) sqrt(pi / 2) sum |g|
        a = lr max(0, L + b sum(g (z - x))) / (n / (1 - polyak_beta^t))
        m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
        u = m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps) + a weight_decay p
        w = t^r max(a so far)^weight_lr_power;  c = w / sum(w)                    (t <= c_warmup: c = 1, and no w)
        q = b (1 - c);  p = p - (1 - q / b') (p - z) - a (1 - q) u;  z = z - a u
        x = p + (1 - 1 / b) (z - p)

    x is the average of all z, weighted by w. b is `sf_beta1`, or goes from there to `sf_beta1_max` over
    `sf_beta1_anneal_steps` steps, 1 - b geometrically; b' is that of the step before. The parameter holds x from
    `eval()` to `train()`, as in AdamWScheduleFree, where all of it is told. Weight decay is in units of a squared
    (AdamC): the authors write of 20 to 50. A warm-up of lr goes well with it, with `c_warmup` once or twice as long.
    Needs the loss: `step(loss=loss.detach())`, `step(closure)`, or `add_loss(loss)` before `step()`; the Trainer tells
    it. Under `maximize` the loss counts with the other sign.

    State: `z`, `exp_avg` (m), `exp_avg_sq` (v), in evaluation mode `y` (p). In each group `k` (t), `grad_l1_ema` (n),
    `scheduled_lr` (a), `lr_max`, `weight_sum` and `train_mode`; for parameters that are not on a CPU they are 0-d
    tensors on their device, so that no step waits for it.

    Follows the paper. The author's file keeps the corrected n in place of n, so that with polyak_beta it corrects again
    at every step and a falls; it differs, too, in an lr below eps, which is eps there, and in gradients of 0
    everywhere, at which it divides by 0. Where groups disagree in b or n's rate, that has the first group's.

    Raises:
        RuntimeError: from `step()` in evaluation mode, or without a loss.

    Source:
        Defazio, ScheduleFree+: Scaling Learning-Rate-Free & Schedule-Free Learning to Large Language Models, arXiv
        2605.19095; facebookresearch/schedule_free, AdamCScheduleFreePlusPaper.
    """

    names = (Name("adamc_schedule_free_plus", aliases=("schedule_free_plus",)),)
    needs_loss = True
    lr_is_factor = True
    share_option = "sf_beta1"
    rule = Rule(
        _fn,
        ELEMENT,
        {"z": clone, "exp_avg": zeros, "exp_avg_sq": nonnegative},
        _per_step,
        Probe(_sums),
        returns_step_size=True,
        exact_weights=True,
    )
    run_state = RunState(
        {
            "k": 0,
            "grad_l1_ema": 0.0,
            "scheduled_lr": 0.0,
            "lr_max": itemgetter("eps"),
            "weight_sum": 0.0,
            "train_mode": True,
        },
        _advance,
        totals=("grad_l1", "inner"),
    )
    lr: float = hyper(1.0, "factor of the step size found; for a warm-up")
    betas: tuple[float, float] = hyper((0.9, 0.95), "decay rates of m and v")
    sf_beta1: float = hyper(0.9, "share of x in p, above 0", below=1.0)
    eps: float = hyper(1e-8, "added to the bias-corrected root of v")
    weight_decay: float = hyper(0.0, "weight decay, per step and unit of a squared, taken at p")
    r: float = hyper(0.0, "power of t in the weights of the average")
    polyak_beta: float = hyper(0.0, "decay rate of n", below=1.0)
    c_warmup: int = hyper(0, "first steps in which the average is z")
    sf_beta1_anneal_steps: int = hyper(0, "steps over which b goes to sf_beta1_max; 0: it stays")
    sf_beta1_max: float = hyper(0.965, "b at the end of them, above 0", above=0.0, below=1.0)
    weight_lr_power: float = hyper(2.0, "power of the largest a in the weights of the average")

    def _share(self, group: Mapping[str, Any]) -> float:
        return _share_of_average(group["k"], group) if "k" in group else float(group["sf_beta1"])
