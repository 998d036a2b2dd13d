"""AdaBelief."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor

from hfoptim.engine import ELEMENT, Decay, Group, Name, Rule, RuleOptimizer, Scalars, ema, hyper, nonnegative, zeros
from hfoptim.optimizers.shared.decay_options import FIXED_DECAY, fixed_decay
from hfoptim.optimizers.shared.moments import corrected, with_largest
from hfoptim.optimizers.shared.rectification import rectified


def _per_step(t: int, group: Group) -> Scalars:
    scalars = {**corrected(t, group), **fixed_decay(group), "eps_of_s": group["eps"]}
    return {**scalars, **rectified(t, group)} if group["rectify"] else scalars


@cache
def adabelief(amsgrad: bool, rectify: bool) -> Rule:
    """The rule, with or without AMSGrad and rectification."""

    def fn(grad: Any, param: Any, exp_avg: Any, exp_avg_var: Any, *args: Any) -> tuple[Any, ...]:
        *state, h = args
        exp_avg = ema(exp_avg, grad, h.alpha1)
        surprise = grad - exp_avg
        exp_avg_var = ema(exp_avg_var, surprise * surprise, h.alpha2) + h.eps_of_s
        largest, kept = with_largest(exp_avg_var, state)
        divisor = exp_avg_var.sqrt() * h.adapted if rectify else largest.sqrt()
        return (exp_avg / (divisor + h.eps), exp_avg, exp_avg_var, *kept)

    fn.__name__ = "adabelief"
    state = {"exp_avg": zeros, "exp_avg_var": nonnegative}
    return Rule(fn, ELEMENT, {**state, "max_exp_avg_var": nonnegative} if amsgrad else state, _per_step)


class AdaBelief(RuleOptimizer):
    """Adam that divides by how far gradients are from their average: long steps where they were foreseen.

    With g the gradient, p the parameter, t the step:

        m = beta1 m + (1 - beta1) g
        s = beta2 s + (1 - beta2) (g - m)^2 + eps
        u = m / (1 - beta1^t) / (sqrt(s / (1 - beta2^t)) + eps)
        p = p - lr u - lr weight_decay p                        (fixed_decay: - weight_decay p)

    with g = g + weight_decay p before it in place of the decay without `decoupled_decay`, and the largest s so far in u
    with `amsgrad`. With `rectify` and r RAdam's rectification, from where there is one (with betas[1] = 0.999 the sixth
    step):

        u = r sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(s) + eps),  before that m / (1 - beta1^t), or nothing

    The class has `rectify` on, as timm's; the name "adabelief" has it off. State: `exp_avg` (m), `exp_avg_var` (s),
    `max_exp_avg_var` with amsgrad; a state_dict of timm's AdaBelief loads.

    Author, timm, optax and pytorch_optimizer agree. With both options `rectify` divides by s, not by the largest one.

    Source:
        Zhuang et al., arXiv 2010.07468; juntang-zhuang/Adabelief-Optimizer; timm 1.0, `timm.optim.AdaBelief`.
    """

    decay = Decay.COUPLED
    decoupled_by = "decoupled_decay"
    names = (
        Name("adabelief", options={"rectify": False}),
        Name("radabelief", "AdaBelief with RAdam's rectification", options={"rectify": True}),
    )
    lr: float = hyper(1e-3, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.999), "decay rates of m and s")
    eps: float = hyper(1e-16, "added to s at every step, and to its root")
    weight_decay: float = hyper(0.0, "weight decay, per step and unit of lr, or L2 penalty")
    amsgrad: bool = hyper(False, "divide by the largest s so far")
    decoupled_decay: bool = hyper(True, "decoupled weight decay; False adds it to the gradient")
    fixed_decay: bool = FIXED_DECAY
    rectify: bool = hyper(True, "RAdam's rectification")
    degenerated_to_sgd: bool = hyper(True, "steps along m where `rectify` has no number yet; False takes none")

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        return adabelief(group["amsgrad"], group["rectify"])
