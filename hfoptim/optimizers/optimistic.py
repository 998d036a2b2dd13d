"""Optimistic gradient descent and Adam: steps that expect the next gradient to change as the last one did."""

from __future__ import annotations

from dataclasses import KW_ONLY, replace
from functools import cache
from typing import Any

from torch import Tensor

from hfoptim.engine import (
    ELEMENT,
    Group,
    Name,
    Rule,
    RuleOptimizer,
    Scalars,
    add_scaled,
    bias_correction,
    hyper,
    zeros,
)
from hfoptim.optimizers.shared.decay_options import OWN_DECAY
from hfoptim.optimizers.shared.moments import adam_state, corrected, mixed, moments_step, nesterov_moments_step
from hfoptim.optimizers.shared.momentum import sgd


def _dozat(t: int, group: Group) -> Scalars:
    """Nesterov's momentum by Dozat, with a momentum that stays."""
    beta1 = group["betas"][0]
    return mixed(t, group, (1.0 - beta1) / bias_correction(beta1, t), beta1 / bias_correction(beta1, t + 1))


@cache
def optimistic(inner: Rule) -> Rule:
    """A rule whose updates are extended by how far they have changed."""

    def per_step(t: int, group: Group) -> Scalars:
        # What is kept is the update without lr, bias corrections in it.
        scalars = {"lr": 1.0, **inner.per_step(t, {**group, "lr": 1.0})}
        beta = group["beta"] if t > 1 else 0.0
        return {
            **scalars,
            "size": scalars["lr"],
            "now": group["alpha"] + beta,
            "before": beta,
            "lr": float(group["lr"]),
        }

    def fn(grad: Any, param: Any, *args: Any) -> tuple[Any, ...]:
        *state, previous, h = args
        update, *state = inner.fn(grad, param, *state, h)
        update = update * h.size
        return add_scaled(update * h.now, previous, -h.before), *state, update

    fn.__name__ = f"optimistic_{inner.name}"
    return replace(inner, fn=fn, per_step=per_step, state={**inner.state, "previous": zeros})


_ADAM = {
    False: optimistic(Rule(moments_step, ELEMENT, adam_state(amsgrad=False), corrected)),
    True: optimistic(Rule(nesterov_moments_step, ELEMENT, adam_state(amsgrad=False), _dozat)),
}


class OptimisticGradientDescent(RuleOptimizer):
    """Gradient descent that expects the gradient to change once more as it just did: for games of two players, GANs.

    With g the gradient, g' the one before (at the first step g), p the parameter:

        p = p - lr (alpha g + beta (g - g')) - lr weight_decay p

    State: `previous` (g'). Follows optax, which has no weight decay.

    Source:
        Mokhtari, Ozdaglar and Pattathil, A Unified Analysis of Extra-gradient and Optimistic Gradient Methods, arXiv
        1901.08511; optax, `optimistic_gradient_descent`.
    """

    rule = optimistic(sgd)
    names = (Name("optimistic_gradient_descent"),)
    lr: float = hyper(1e-3, "learning rate")
    alpha: float = hyper(1.0, "weight of the gradient")
    beta: float = hyper(1.0, "weight of its change")
    _: KW_ONLY
    weight_decay: float = OWN_DECAY


class OptimisticAdam(RuleOptimizer):
    """Adam that expects its update to change once more as it just did: for games of two players, GANs.

    With g the gradient, p the parameter, t the step, u' the u of the step before (at the first step u):

        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) g^2
        u = (beta1 m / (1 - beta1^(t+1)) + (1 - beta1) g / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)
        u = m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)                             (nesterov=False)
        p = p - lr (alpha u + beta (u - u')) - lr weight_decay p

    State: `exp_avg` (m), `exp_avg_sq` (v), `previous` (u'). Follows `optimistic_adam_v2` of optax, which has no weight
    decay; its older `optimistic_adam` is this with an lr of 1, and the learning rate as alpha.

    Source:
        Daskalakis et al., Training GANs with Optimism, arXiv 1711.00141; optax, `optimistic_adam_v2`.
    """

    names = (Name("optimistic_adam", aliases=("optimistic_adam_v2",)),)
    lr: float = hyper(1e-3, "learning rate")
    alpha: float = hyper(1.0, "weight of Adam's update")
    beta: float = hyper(1.0, "weight of its change")
    betas: tuple[float, float] = hyper((0.9, 0.999), "decay rates of m and v")
    eps: float = hyper(1e-8, "added to the bias-corrected root of v")
    nesterov: bool = hyper(True, "Nesterov's momentum, as Dozat has it")
    _: KW_ONLY
    weight_decay: float = OWN_DECAY

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        return _ADAM[group["nesterov"]]
