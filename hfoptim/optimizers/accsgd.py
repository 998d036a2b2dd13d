"""Accelerated stochastic gradient descent."""

from __future__ import annotations

from typing import Any

from hfoptim.engine import ELEMENT, Decay, Group, Name, RuleOptimizer, Scalars, add_scaled, clone, ema, hyper, rule


def _per_step(t: int, group: Group) -> Scalars:
    lr, small = float(group["lr"]), group["small_const"]
    beta = small**2 * group["xi"] / group["kappa"]
    towards = beta / (small + beta)
    return {"beta": beta, "long": -beta * lr * group["kappa"] / small, "short": -lr, "towards": towards, "lr": 1.0}


@rule(ELEMENT, per_step=_per_step, exact_weights=True, momentum_buffer=clone)
def accsgd(grad: Any, param: Any, momentum_buffer: Any, h: Any) -> tuple[Any, Any]:
    """A short step, and from there towards weights that take long steps."""
    momentum_buffer = add_scaled(ema(momentum_buffer, param, h.beta), grad, h.long)
    return param - ema(add_scaled(param, grad, h.short), momentum_buffer, h.towards), momentum_buffer


class AccSGD(RuleOptimizer):
    """Gradient descent by short steps and weights that take long ones, accelerated also where gradients are noisy.

    With g the gradient, p the parameter, b = p at first, beta = small_const^2 xi / kappa:

        g = g + weight_decay p
        b = (1 - beta) b + beta (p - lr kappa / small_const g)
        p = p - lr g
        p = p + beta / (small_const + beta) (b - p)

    State: `momentum_buffer` (b), kept exact. Author and pytorch_optimizer agree.

    Raises:
        ValueError: small_const^2 xi above kappa.

    Source:
        Jain et al., arXiv 1704.08227, and Kidambi et al., arXiv 1803.05591; rahulkidambi/AccSGD.
    """

    rule = accsgd
    decay = Decay.COUPLED
    names = (Name("accsgd"),)
    lr: float = hyper(1e-3, "learning rate: the short step's")
    kappa: float = hyper(1000.0, "how much longer a long step is", above=0.0, excluded="divides the step")
    xi: float = hyper(10.0, "statistical advantage: how fast the long steps are followed")
    small_const: float = hyper(0.7, "the long step is this much shorter than kappa says", above=0.0, most=1.0)
    weight_decay: float = hyper(0.0, "L2 penalty")

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        if group["small_const"] ** 2 * group["xi"] > group["kappa"]:
            raise ValueError(
                f"small_const^2 xi must be at most kappa, got small_const={group['small_const']}, xi={group['xi']} and "
                f"kappa={group['kappa']}"
            )
