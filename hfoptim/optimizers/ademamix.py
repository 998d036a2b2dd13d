"""AdEMAMix."""

from __future__ import annotations

from typing import Any

from hfoptim.engine import Group, Name, RuleOptimizer, Scalars, hyper
from hfoptim.engine.rule import ELEMENT, add_scaled, bias_correction, ema, nonnegative, rule, zeros
from hfoptim.optimizers.shared.half_lives import check_warmup, slower_beta
from hfoptim.optimizers.shared.moments import corrected


def _per_step(t: int, group: Group) -> Scalars:
    """Bias corrections c1, c2 as factors of the scalars the update has anyway.

    (m1 / c1 + a m2) / (sqrt(v / c2) + eps)  =  (sqrt(c2) / c1) (m1 + c1 a m2) / (sqrt(v) + eps sqrt(c2))
    """
    beta1, beta2, beta3 = group["betas"]
    alpha, warmup = group["alpha"], group["t_alpha_beta3"]
    if warmup is not None and t < warmup:
        alpha, beta3 = alpha * t / warmup, slower_beta(beta1, beta3, t / warmup)
    scalars = corrected(t, {**group, "betas": (beta1, beta2)})
    return {**scalars, "alpha3": 1.0 - beta3, "mix": alpha * bias_correction(beta1, t)}


@rule(ELEMENT, per_step=_per_step, exp_avg_fast=zeros, exp_avg_slow=zeros, exp_avg_sq=nonnegative)
def ademamix(
    grad: Any, param: Any, exp_avg_fast: Any, exp_avg_slow: Any, exp_avg_sq: Any, h: Any
) -> tuple[Any, Any, Any, Any]:
    """Adam's update with a second, much slower momentum added to the first."""
    exp_avg_fast = ema(exp_avg_fast, grad, h.alpha1)
    exp_avg_slow = ema(exp_avg_slow, grad, h.alpha3)
    exp_avg_sq = ema(exp_avg_sq, grad * grad, h.alpha2)
    update = add_scaled(exp_avg_fast, exp_avg_slow, h.mix) / (exp_avg_sq.sqrt() + h.eps)
    return update, exp_avg_fast, exp_avg_slow, exp_avg_sq


def _same_warmup(optimizer: RuleOptimizer, value: Any, group: Group) -> bool:
    """Whether one of the authors' two warm-ups is the one here."""
    return bool(value == group["t_alpha_beta3"])


class AdEMAMix(RuleOptimizer):
    """Adam with a second, much slower momentum: over tens of thousands of steps.

    With g the gradient, p the parameter, t the step:

        m1 = beta1 m1 + (1 - beta1) g
        m2 = b3 m2 + (1 - b3) g
        v = beta2 v + (1 - beta2) g^2
        u = (m1 / (1 - beta1^t) + a m2) / (sqrt(v / (1 - beta2^t)) + eps)
        p = p - lr u - lr weight_decay p

    with a = alpha and b3 = beta3, or during a warm-up of T = t_alpha_beta3 steps

        a = alpha t / T,    1 / log(b3) = (1 - t / T) / log(beta1) + t / T / log(beta3)

    State: `exp_avg_fast` (m1), `exp_avg_slow` (m2), `exp_avg_sq` (v). A state_dict of the authors' AdEMAMix loads into
    an optimizer with the same warm-up, unless its beta1 is 0; one of bitsandbytes' with one
    warm-up for both.

    Follows the authors, who add 1e-8 to the betas in the logarithms; pytorch_optimizer does not, a difference of about
    2e-6 of the way during a warm-up. alpha is 5 by default as there, 2 in the authors' code.

    Source:
        Pagliardini et al., arXiv 2409.03137; apple/ml-ademamix.
    """

    rule = ademamix
    names = (Name("ademamix"),)
    peer_flags = {"alpha_warmup": _same_warmup, "beta3_warmup": _same_warmup}
    peer_state = {"state1[0]": "exp_avg_fast", "state1[1]": "exp_avg_slow", "state2": "exp_avg_sq"}  # of bitsandbytes
    lr: float = hyper(1e-3, "learning rate")
    betas: tuple[float, float, float] = hyper((0.9, 0.999, 0.9999), "decay rates of m1, v and m2")
    alpha: float = hyper(5.0, "weight of m2")
    t_alpha_beta3: float | None = hyper(
        None,
        "steps over which alpha grows from 0 and beta3 from beta1; the paper takes all steps of the training. None: no "
        "warm-up",
        in_peers=False,
    )
    eps: float = hyper(1e-8, "added to the bias-corrected root of v")
    weight_decay: float = hyper(0.0, "decoupled weight decay, per step and unit of lr")

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        if group["t_alpha_beta3"] is not None:
            check_warmup({f"betas[{i}]": group["betas"][i] for i in (0, 2)}, "t_alpha_beta3")
