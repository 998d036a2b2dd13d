"""Prodigy: Adam whose step size follows an estimate of the distance to the solution."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import Decay, Group, Name, RuleOptimizer, RunState, Scalars, hyper
from hfoptim.engine.rule import ELEMENT, TENSOR, Probe, Rule, clone, ema, nonnegative, zeros
from hfoptim.optimizers.shared.distance import (
    D0,
    FSDP_IN_USE,
    GROWTH_RATE,
    LR_FACTOR,
    exact_zeros,
    rate,
    sample_of,
    sampled,
)
from hfoptim.optimizers.shared.moments import moment_rates


def _beta3(group: Group) -> float:
    return math.sqrt(group["betas"][1]) if group["beta3"] is None else float(group["beta3"])


def _weights(group: Group, d: Any, dlr: Any) -> dict[str, Any]:
    """How s decays, and what gradients weigh in it; both sums are kept divided by d0, as d itself is tiny at first."""
    return {"beta3": _beta3(group), "weight": (d / group["d0"]) * (d if group["safeguard_warmup"] else dlr)}


def _probing(t: int, group: Group) -> Scalars:
    d = group["d"]
    dlr = d * rate(group)
    return {**_weights(group, d, dlr), "pull": (d / group["d0"]) * dlr}


def _per_step(t: int, group: Group, d_before: Any, dlr: Any, **sums: Tensor) -> dict[str, Any]:
    """`d_before` and `dlr` are the estimate and the step size from before this step, `group["d"]` the new estimate."""
    return {
        **moment_rates(t, group),
        **_weights(group, d_before, dlr),
        "d": d_before,
        "d_new": group["d"],
        "eps": group["d"] * group["eps"],
        "lr": dlr,
        "decay": dlr * float(group["weight_decay"]),
    }


def _estimate(state: Group, totals: Mapping[str, Tensor], group: Group) -> dict[str, Any]:
    """The distance after a step, in units of the step size; `group` is that of the largest lr."""
    d, denominator = state["d"], totals["denominator"]
    numerator = state["d_numerator"] * _beta3(group) + totals["numerator"]
    # Without any gradient that is not 0 nothing is known, and nothing moves.
    known = denominator > 0
    d_hat = torch.where(known, group["d_coef"] * numerator / denominator, d)
    largest = torch.maximum(state["d_max"], d_hat)
    grown = torch.where(d == group["d0"], torch.maximum(d, d_hat), d) * group["growth_rate"]
    return {
        "dlr": torch.where(known, d * rate(group), 0.0),
        "d_before": d,
        "d": torch.minimum(largest, grown),
        "d_max": largest,
        "d_hat": d_hat,
        "d_numerator": numerator,
        "d_denom": denominator,
        "k": state["k"] + 1,
    }


@cache
def prodigy(first_moment: bool, every: int) -> Rule:
    """The rule for one kind of group.

    Args:
        first_moment: keep one; not for beta1 = 0.
        every: make the estimate from every so many-th entry of a tensor.
    """

    def new_s(grad: Any, s: Any, h: Any) -> Any:
        return s * h.beta3 + sampled(grad, every) * h.weight

    def sums(grad: Any, param: Any, *args: Any) -> dict[str, Any]:
        p0, s, h = args[-3:]
        gone = p0 - sampled(param, every)
        return {
            "numerator": (sampled(grad, every) * gone).sum() * h.pull,
            "denominator": new_s(grad, s, h).abs().sum(),
        }

    def fn(grad: Any, param: Any, *args: Any) -> tuple[Any, ...]:
        *moments, _, s, h = args
        scaled = grad * h.d
        exp_avg_sq = ema(moments[-1], scaled * scaled, h.alpha2)
        exp_avg = [ema(moments[0], scaled, h.alpha1)] if first_moment else []
        direction = exp_avg[0] if first_moment else grad * h.d_new
        return (direction / (exp_avg_sq.sqrt() + h.eps), *exp_avg, exp_avg_sq, None, new_s(grad, s, h))

    fn.__name__ = "prodigy"
    first = {"exp_avg": zeros} if first_moment else {}
    own = {"p0": sample_of(clone, every), "s": sample_of(exact_zeros, every)}
    states = {**first, "exp_avg_sq": nonnegative, **own}
    scope = ELEMENT if every == 1 else TENSOR
    return Rule(fn, scope, states, _per_step, Probe(sums, _probing), whole=every > 1, exact_weights=True)


class Prodigy(RuleOptimizer):
    """Adam that finds its step size by itself, from the distance it has come: leave lr at 1.

    With g the gradient, p the parameter, p0 where it started, sums over all entries of all parameters:

        a = d lr c,  c = sqrt(1 - beta2^t) / (1 - beta1^t) with use_bias_correction, else 1
        r = beta3 r + d a <g, p0 - p>;  s = beta3 s + d a g         (safeguard_warmup: s = beta3 s + d^2 g)
        D = max(D, d_coef r / |s|_1);   d' = min(D, growth_rate d)
        m = beta1 m + (1 - beta1) d g;  v = beta2 v + (1 - beta2) d^2 g^2
        p = p - a m / (sqrt(v) + d' eps) - a weight_decay p;        d = d'

    The groups share d, so they must agree in lr and in the options it depends on; a group with lr=0 is frozen and takes
    no part. At lr=0 everywhere, as at the start of a warm-up, nothing happens. A schedule that falls from 1, such as a
    cosine, goes well with it. Every group holds `d`, `d_max`, `d_hat`, `d_numerator`, `d_denom` and `k`: numbers for
    parameters on a CPU, else 0-d tensors on their device, so that no step waits for it.

    Follows prodigyopt, whose state_dict loads, but for two things: there a group with lr=0 still decays, and goes on
    with the momentum it had; and options that groups disagree in are those of the first group. optax has
    `use_bias_correction=True` only. With slice_p > 1 a sharded parameter (DTensor) goes to one rank for each step, as
    those entries are the whole tensor's. State: `exp_avg` (m), unless beta1 is 0, `exp_avg_sq` (v), `p0`, `s`.

    Raises:
        ValueError: groups that disagree.
        TypeError: a complex parameter with slice_p > 1.

    Source:
        Mishchenko and Defazio, Prodigy: An Expeditiously Adaptive Parameter-Free Learner, arXiv 2306.06101;
        konstmish/prodigy (prodigyopt 1.1).
    """

    decay = Decay.COUPLED
    decoupled_by = "decouple"
    names = (Name("prodigy"),)
    run_state = RunState(
        {**dict.fromkeys(("d", "d_max", "d_hat"), itemgetter("d0")), "d_numerator": 0.0, "d_denom": 0.0, "k": 0},
        _estimate,
        totals=("numerator", "denominator"),
        shared=True,
        common=("betas", "beta3", "use_bias_correction", "d0", "d_coef", "growth_rate"),
    )
    absent_from_peers = frozenset({"d_hat", "d_denom"})
    one_lr = True
    lr_is_factor = True
    lr: float = LR_FACTOR
    betas: tuple[float, float] = hyper((0.9, 0.999), "decay rates of m and v")
    beta3: float | None = hyper(None, "decay rate of r and s; None is sqrt(beta2)", below=1.0)
    eps: float = hyper(1e-8, "added to the root of v in units of d", above=0.0)
    weight_decay: float = hyper(0.0, "weight decay, per step and unit of step size")
    decouple: bool = hyper(True, "decoupled weight decay; False adds it to the gradient")
    use_bias_correction: bool = hyper(False, "Adam's bias corrections")
    safeguard_warmup: bool = hyper(False, "keep lr out of s, so that a long warm-up does not inflate d")
    d0: float = D0
    d_coef: float = hyper(1.0, "factor of the estimate; the knob to turn, say from 0.5 to 2")
    growth_rate: float = GROWTH_RATE
    fsdp_in_use: bool = FSDP_IN_USE
    slice_p: int = hyper(
        1, "estimate d from every slice_p-th entry of each parameter, which makes `p0` and `s` smaller", low=1
    )

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        return prodigy(group["betas"][0] > 0, group["slice_p"])

    def adapt_loaded(self, param: Tensor, state: dict[str, Any], group: dict[str, Any]) -> dict[str, Any]:
        # prodigyopt keeps p0 and s flat, and a start of zeros as one number.
        for name in state.keys() & {"p0", "s"}:
            wanted = self.rule_for(param, group).first(name, param.detach(), param.dtype)
            saved = torch.as_tensor(state[name], dtype=None if isinstance(state[name], Tensor) else wanted.dtype)
            if saved.shape != wanted.shape and (saved.ndim == 0 or saved.numel() == wanted.numel()):
                state[name] = wanted.to(saved.dtype).copy_(saved if saved.ndim == 0 else saved.reshape(wanted.shape))
        return state
