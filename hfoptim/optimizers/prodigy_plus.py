"""Prodigy without a learning-rate schedule: a distance for each parameter group, and an average of the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY
from functools import cache
from operator import itemgetter
from typing import Any

import torch
from torch import Size, Tensor

from hfoptim.engine import Group, Name, RunState, Scalars, hyper, rms
from hfoptim.engine.rule import TENSOR, Probe, Rule, clone
from hfoptim.optimizers.shared.averaging import Averaging, averaged
from hfoptim.optimizers.shared.distance import D0, LR_FACTOR, exact_zeros, sample_of, sampled
from hfoptim.optimizers.shared.factored import Factored
from hfoptim.optimizers.shared.moments import debiased_rates
from hfoptim.optimizers.shared.rectification import rectification

# Least size of a dimension for the second moment to be factored.
_FACTORED_FROM = 32


def _beta3(group: Group) -> float:
    return math.sqrt(group["betas"][1]) if group["beta3"] is None else float(group["beta3"])


def _sums_of(group: Group, d: Any) -> dict[str, Any]:
    """How s decays, and what gradients weigh in it."""
    return {"beta3": _beta3(group), "weight": d * d / math.sqrt(group["d0"])}


def _probing(t: int, group: Group) -> Scalars:
    return _sums_of(group, group["d"])


def _advance(state: Group, totals: Mapping[str, Tensor], group: Group) -> dict[str, Any]:
    """The step size and the average's share of this step, and d for the next one."""
    k, d, beta1 = state["k"] + 1, state["d"], group["betas"][0]
    trusted = rectification(group["betas"][1], k, above=4.0) if group["use_bias_correction"] else 1.0
    dlr = d * (float(group["lr"]) * (trusted or 0.0))
    weight_sum = state["weight_sum"] + dlr * dlr
    share = torch.where(weight_sum > 0.0, dlr * dlr / weight_sum, 0.0)
    if group["schedulefree_c"] > 0.0:
        share = (share * ((1.0 - beta1) * group["schedulefree_c"])).clamp(max=1.0)
    found = {"k": k, "weight_sum": weight_sum, "share": share, "dlr": dlr, "d_before": d}
    if 0 < group["prodigy_steps"] <= k:
        return found
    # Until d has grown, what speaks against it does not count.
    gained = torch.where(d > group["d0"], totals["numerator"], totals["numerator"].clamp(min=0.0))
    numerator = state["d_numerator"] * _beta3(group) + gained
    denominator = totals["denominator"]
    d_hat = numerator / denominator
    if group["d_limiter"]:
        d_hat = torch.minimum(d_hat, d * 2.0**0.25)
    d = torch.where(denominator > 0.0, torch.maximum(d, d_hat * group["d_coef"]), d)
    return {**found, "d": d, "d_numerator": numerator, "d_denom": denominator}


def _per_step(t: int, group: Group, d_before: Any, dlr: Any, share: Any, **totals: Any) -> Scalars:
    alpha2 = debiased_rates(group["k"], group)["alpha2"] if group["use_bias_correction"] else 1.0 - group["betas"][1]
    decay = float(group["weight_decay"]) if float(group["lr"]) else 0.0  # that group is frozen
    return {
        **_sums_of(group, d_before),
        "alpha2": alpha2,
        "d": d_before,
        "eps": d_before * (group["eps"] or 0.0),
        "dlr": dlr,
        # What is averaged is whole steps.
        "lr": 1.0,
        "weight_decay": dlr * decay if group["weight_decay_by_lr"] else decay,
        "share": share,
        "step_of_y": 1.0 - group["betas"][0] * (1.0 - share),
    }


@cache
def prodigy_plus(moment: Factored, atan2: bool, stable: bool, every: int) -> Rule:
    """The rule for one kind of parameter.

    Args:
        moment: how the second moment is kept.
        atan2: divide by way of the arc tangent.
        stable: shorten updates by their root mean square.
        every: make the estimate from every so many-th entry of a tensor.
    """

    def new_s(grad: Any, s: Any, h: Any) -> Any:
        return s * h.beta3 + sampled(grad, every) * h.weight

    def sums(grad: Any, param: Any, z: Any, *args: Any) -> dict[str, Any]:
        *_, p0, s, h = args
        gone = p0 - sampled(z, every)
        return {
            "numerator": (sampled(grad, every) * gone).sum() * h.weight,
            "denominator": new_s(grad, s, h).abs().sum(),
        }

    def fn(grad: Any, param: Any, z: Any, *args: Any) -> tuple[Any, ...]:
        *moments, _, s, h = args
        scaled = grad * h.d
        moments = moment.moved(scaled * scaled, moments, h.alpha2, 0.0)
        root = moment.product(moments, 1e-30).sqrt()
        update = scaled.atan2(root) * (4.0 / math.pi) if atan2 else scaled / (root + h.eps)
        if stable:
            update = update * rms(update).clamp(min=1.0).rsqrt()
        return *averaged(update * h.dlr, param, z, h), *moments, None, new_s(grad, s, h)

    fn.__name__ = "prodigy_plus"
    own = {"p0": sample_of(clone, every), "s": sample_of(exact_zeros, every)}
    state = {"z": clone, **moment.state("exp_avg_sq"), **own}
    return Rule(fn, TENSOR, state, _per_step, Probe(sums, _probing), returns_step_size=True, whole=every > 1)


class ProdigyPlusScheduleFree(Averaging):
    """Schedule-free Adam that finds its step size by itself, for each parameter group: leave lr at 1.

    It trains at one point and evaluates at an average of where it has been. With g the gradient, p the parameter, t the
    step, z = p at the start, p0 where it started, and <,> and |.|_1 sums over all parameters of a group:

        a = d lr R;  c = a^2 / sum(a^2)                 (schedulefree_c: c = min(1, c (1 - beta1) schedulefree_c))
        v = beta2 v + (1 - beta2) d^2 g^2
        u = d g / (sqrt(v) + d eps)                     (eps=None: u = 4 / pi atan2(d g, sqrt(v)))
        u = u / sqrt(max(1, rms(u)))                    (use_stableadamw, with an eps)
        u = u + weight_decay p                          (weight_decay_by_lr=False: z and p go by weight_decay p apart)
        r = beta3 r + d^2 / sqrt(d0) <g, p0 - z>;  s = beta3 s + d^2 / sqrt(d0) g
        p = p - c (p - z) - a (1 - beta1 (1 - c)) u;  z = z - a u
        d = max(d, d_coef min(r / |s|_1, 2^(1/4) d))    (without d_limiter: d_coef r / |s|_1)

    R is 1, or with `use_bias_correction` RAdam's rectification, beta2 then being corrected, too. As long as d = d0,
    steps back towards p0 do not count in r. `factored` keeps of v the means over either of the two largest dimensions,
    if one of them has 32 entries. The parameter holds x from `eval()` to `train()`, as in AdamWScheduleFree, where all
    of it is told. Wants a constant lr, no clipping, and with `split_groups=False` one d for all groups.

    A sharded parameter (DTensor) goes to one rank for each step unless slice_p is 1, as every 11th entry is one of the
    whole tensor's; with slice_p=1 its parts stay where they are.

    State: `z`, `p0`, `s`, `exp_avg_sq` (v) or its factors `exp_avg_sq_row`, `exp_avg_sq_col`, in evaluation mode `y`
    (p). In each group `d`, `d_numerator` (r), `d_denom`, `weight_sum`, `k` (t) and `train_mode`; for parameters that
    are not on a CPU 0-d tensors on their device, so that no step waits for it.

    Follows the author's class with use_schedulefree, also in the root of the rms. That divides the factored v by a mean
    over the wrong dimension where the larger one comes first, so that it is the row means alone, and has 8 digits of
    4 / pi. `stochastic_rounding` is the engine's here, `p0` and `s` are kept in full precision,
    and stay after `prodigy_steps`. Not here: use_schedulefree=False, use_speed, use_adopt, use_focus, use_cautious,
    use_grams, use_orthograd, split_groups_mean, fused_back_pass.

    Raises:
        ValueError: groups with split_groups=False that disagree in what d depends on.
        RuntimeError: from `step()` in evaluation mode.
        TypeError: a complex parameter.

    Source:
        LoganBooker/prodigy-plus-schedule-free 2.0.1; Mishchenko and Defazio, arXiv 2306.06101; Defazio et al., arXiv
        2405.15682; schedulefree_c: arXiv 2507.09846.
    """

    names = (
        Name(
            "prodigy_plus_schedule_free",
            paper="https://github.com/LoganBooker/prodigy-plus-schedule-free",
            aliases=("prodigy_plus",),
        ),
    )
    lr_is_factor = True
    run_state = RunState(
        {
            "d": itemgetter("d0"),
            "d_numerator": 0.0,
            "d_denom": 0.0,
            "weight_sum": 0.0,
            "k": 0,
            "train_mode": True,
        },
        _advance,
        totals=("numerator", "denominator"),
        split_by="split_groups",
    )
    lr: float = LR_FACTOR
    betas: tuple[float, float] = hyper((0.9, 0.99), "share of x in p, above 0, and decay rate of v")
    beta3: float | None = hyper(None, "decay rate of r and s; None is sqrt(beta2)", below=1.0)
    weight_decay: float = hyper(0.0, "weight decay, taken at p")
    weight_decay_by_lr: bool = hyper(True, "per unit of step size")
    d0: float = D0
    d_coef: float = hyper(1.0, "factor of the estimate; the knob to turn, say from 0.5 to 2")
    d_limiter: bool = hyper(True, "let d grow by a factor of 2^(1/4) per step at most")
    prodigy_steps: int = hyper(0, "step from which d stays; 0: it never does")
    schedulefree_c: float = hyper(0.0, "how short the average is, say from 6 to 200; 0 is schedule-free's")
    eps: float | None = hyper(1e-8, "added to the root of v in units of d; None divides by an arc tangent", above=0.0)
    split_groups: bool = hyper(True, "a d for each group; False is one for all")
    _: KW_ONLY
    factored: bool = hyper(True, "keep v of matrices as row and column means")
    use_bias_correction: bool = hyper(False, "RAdam's corrections and warm-up")
    use_stableadamw: bool = hyper(True, "shorten updates by the root of their rms")
    slice_p: int = hyper(
        11, "estimate d from every slice_p-th entry of each parameter, which makes `p0` and `s` smaller", low=1
    )

    def check_added(self, group: dict[str, Any]) -> None:
        super().check_added(group)
        if group["split_groups"]:
            return
        first = self.param_groups[0]
        for name in ("split_groups", "betas", "beta3", "d0", "d_coef", "d_limiter", "prodigy_steps"):
            if group[name] != first[name]:
                raise ValueError(
                    f"{name}={group[name]!r} in one group and {first[name]!r} in another: with split_groups=False "
                    f"there is one estimate for all groups, so they must agree"
                )

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        moment = _largest_two(param.shape) if group["factored"] else Factored(None)
        atan2 = group["eps"] is None
        return prodigy_plus(moment, atan2, group["use_stableadamw"] and not atan2, group["slice_p"])


def _largest_two(shape: Size) -> Factored:
    """A moment factored by the two largest dimensions, if one of them is large enough."""
    if len(shape) < 2 or max(shape) < _FACTORED_FROM:
        return Factored(None)
    first, second = sorted(sorted(range(len(shape)), key=lambda i: (shape[i], i))[-2:])
    return Factored((first, second))
