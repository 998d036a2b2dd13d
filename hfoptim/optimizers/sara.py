"""SaRA: AdamW for the weights that begin near zero, and for no others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import ELEMENT, Group, Name, Rule, RuleOptimizer, Scalars, State, hyper, in_bfloat16
from hfoptim.engine.checks import plain
from hfoptim.optimizers.shared.moments import adam_state, corrected, moments_step


@cache
def _below(threshold: float) -> State:
    """Which entries are below it at first: 1 for each that is, else 0."""

    def init(param: Tensor, dtype: torch.dtype) -> Tensor:
        return torch.zeros_like(param, dtype=dtype).copy_(param.abs() < threshold)

    return in_bfloat16(State(init))


def _scalars(t: int, group: Group) -> Scalars:
    now = t == group["progressive_iter"] + 1
    return {**corrected(t, group), "rate": float(group["lr"]), "within": group["threshold"] if now else math.inf}


@cache
def sara(threshold: float, amsgrad: bool, refined: bool) -> Rule:
    """The rule for a threshold.

    Args:
        threshold: of the first weights' sizes.
        amsgrad: divide by the largest second moment so far.
        refined: whether weights are left out later on that have grown beyond it.
    """

    def fn(grad: Any, param: Any, mask: Any, *args: Any) -> tuple[Any, ...]:
        h = args[-1]
        mask = torch.where(abs(param) < h.within, mask, 0.0) if refined else mask
        update, *moments = moments_step(torch.where(mask > 0, grad, 0.0), param, *args)
        return update * (mask * h.lr), mask * h.rate, mask if refined else None, *moments

    fn.__name__ = "sara"
    return Rule(fn, ELEMENT, {"mask": _below(threshold), **adam_state(amsgrad)}, _scalars, returns_step_size=True)


def _rate(threshold: float) -> float:
    """The authors' learning rate: the lower, the more weights are moved."""
    return 1e-3 * math.exp(-350.0 * threshold)


class SaRA(RuleOptimizer):
    """AdamW for the weights whose first value is near zero; the others stay as they are.

    With g the gradient, p the parameter, t the step, for the entries with |p| < threshold at first:

        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) g^2;  with amsgrad, w = max(w, v) takes its place below
        p = p - lr m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps) - lr weight_decay p

    The default lr is the authors' 1e-3 exp(-350 threshold); by name it follows the threshold given. With
    `progressive_iter` = n, of step n + 1 on only those of them are moved that are still below the threshold then.
    State: `mask` (1 for each entry that is moved, in bfloat16), `exp_avg` (m), `exp_avg_sq` (v), `max_exp_avg_sq` (w).
    They are made at the first step: what is to begin from other weights has to have them by then.

    The author's code and pytorch_optimizer keep moments of the chosen entries only; here they have the parameter's
    shape, so that they can be sharded and kept in fewer bits (`state_dtype="8bit"`). Their penalty on the nuclear norm
    of one matrix drawn at each step (`lambda_rank`, by default none) is not here.

    Raises:
        TypeError: a complex parameter.

    Source:
        Hu et al., SaRA: High-Efficient Diffusion Model Fine-tuning with Progressive Sparse Low-Rank Adaptation, arXiv
        2409.06633; pytorch_optimizer 4.1, whose defaults these are.
    """

    names = (Name("sara"),)
    lr: float = hyper(_rate(1e-3), "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.999), "decay rates of m and v")
    threshold: float = hyper(1e-3, "what the size of a weight that is moved is below")
    progressive_iter: int = hyper(-1, "steps after which the weights are chosen anew; -1: never", low=-1)
    weight_decay: float = hyper(1e-2, "decoupled weight decay, per step and unit of lr")
    _: KW_ONLY
    amsgrad: bool = hyper(False, "divide by the largest v so far (AMSGrad)", in_peers=False)
    eps: float = hyper(1e-8, "added to the bias-corrected root of v")

    @classmethod
    def defaults_by_name(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """The learning rate that goes with a threshold."""
        threshold = plain(given.get("threshold"))
        return {"lr": _rate(threshold)} if isinstance(threshold, (int, float)) else {}

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        if param.is_complex():
            raise TypeError("SaRA compares the sizes of weights entry by entry, and does not take complex parameters")
        return sara(group["threshold"], group["amsgrad"], group["progressive_iter"] >= 0)
