"""Adadelta."""

from __future__ import annotations

from typing import Any

from hfoptim.engine import ELEMENT, Decay, Group, Name, RuleOptimizer, Scalars, ema, hyper, nonnegative, rule


def _per_step(t: int, group: Group) -> Scalars:
    return {"alpha": 1.0 - group["rho"], "eps": group["eps"]}


@rule(ELEMENT, per_step=_per_step, square_avg=nonnegative, acc_delta=nonnegative)
def adadelta(grad: Any, param: Any, square_avg: Any, acc_delta: Any, h: Any) -> tuple[Any, Any, Any]:
    """The gradient times the typical size of steps over that of gradients."""
    square_avg = ema(square_avg, grad * grad, h.alpha)
    update = grad * ((acc_delta + h.eps).sqrt() / (square_avg + h.eps).sqrt())
    return update, square_avg, ema(acc_delta, update * update, h.alpha)


class Adadelta(RuleOptimizer):
    """Steps as large as the steps before them, relative to the gradients: lr is 1, with torch.optim.Adadelta's numbers.

    With g the gradient, p the parameter:

        g = g + weight_decay p
        v = rho v + (1 - rho) g^2
        u = sqrt(a + eps) / sqrt(v + eps) g
        a = rho a + (1 - rho) u^2
        p = p - lr u

    State: `square_avg` (v), `acc_delta` (a). A state_dict of torch.optim.Adadelta loads. eps sets how large the first
    steps are, since a begins at 0.

    Source:
        Zeiler, arXiv 1212.5701; torch.optim.Adadelta.
    """

    rule = adadelta
    decay = Decay.COUPLED
    names = (Name("adadelta"),)
    lr: float = hyper(1.0, "learning rate: a factor, 1 in the paper")
    rho: float = hyper(0.9, "decay rate of v and a", most=1.0)
    eps: float = hyper(1e-6, "added inside of both roots")
    weight_decay: float = hyper(0.0, "L2 penalty")
