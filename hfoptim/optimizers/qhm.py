"""Quasi-hyperbolic momentum and QHAdam: steps between the gradient and its average."""

from __future__ import annotations

from typing import Any

from hfoptim.engine import (
    ELEMENT,
    Decay,
    Group,
    Name,
    RuleOptimizer,
    Scalars,
    checks,
    ema,
    hyper,
    nonnegative,
    rule,
    zeros,
)
from hfoptim.engine.rule import bias_correction


def _momentum(t: int, group: Group) -> Scalars:
    return {"alpha": 1.0 - group["momentum"], "nu": group["nu"]}


@rule(ELEMENT, per_step=_momentum, momentum_buffer=zeros)
def qhm(grad: Any, param: Any, momentum_buffer: Any, h: Any) -> tuple[Any, Any]:
    """A weighted mean of the gradient and of its average."""
    momentum_buffer = ema(momentum_buffer, grad, h.alpha)
    return ema(grad, momentum_buffer, h.nu), momentum_buffer


def _moments(t: int, group: Group) -> Scalars:
    """Averages of all gradients so far from the first step on: the newest one weighs (1 - beta) / (1 - beta^t)."""
    (beta1, beta2), (nu1, nu2) = group["betas"], group["nus"]
    alpha1, alpha2 = ((1.0 - beta) / bias_correction(beta, t) for beta in (beta1, beta2))
    return {"alpha1": alpha1, "alpha2": alpha2, "nu1": nu1, "nu2": nu2, "eps": group["eps"]}


@rule(ELEMENT, per_step=_moments, exp_avg=zeros, exp_avg_sq=nonnegative)
def qhadam(grad: Any, param: Any, exp_avg: Any, exp_avg_sq: Any, h: Any) -> tuple[Any, Any, Any]:
    """Adam, with a weighted mean of the newest gradient and the average for each moment."""
    squared = grad * grad
    exp_avg, exp_avg_sq = ema(exp_avg, grad, h.alpha1), ema(exp_avg_sq, squared, h.alpha2)
    return ema(grad, exp_avg, h.nu1) / (ema(squared, exp_avg_sq, h.nu2).sqrt() + h.eps), exp_avg, exp_avg_sq


def _nus(name: str, value: Any) -> tuple[float, float]:
    found = checks.entries(value)
    if found is None or len(found) != 2:
        raise ValueError(f"{name}={value!r}, expected two numbers in [0, 1]")
    nu1, nu2 = (checks.number(f"{name}[{i}]", each, 0.0, 1.0, high_open=False) for i, each in enumerate(found))
    return nu1, nu2


class QHM(RuleOptimizer):
    """Gradient descent by a weighted mean of the gradient and its average.

    With g the gradient, p the parameter:

        b = momentum b + (1 - momentum) g
        p = p - lr ((1 - nu) g + nu b)

    with g = g + weight_decay p before it, or under weight_decay_type="direct" p = p - ... - lr weight_decay p.
    nu = 0 is plain descent, nu = 1 momentum, nu = momentum Nesterov's. As b is an average, lr is 1 / (1 - momentum)
    times that of `SGD`. State: `momentum_buffer` (b).

    The author's class wants lr, momentum and nu; the defaults of the last two here are those that the paper advises.
    pytorch_optimizer has 0 and 1: plain descent.

    Source:
        Ma and Yarats, arXiv 1810.06801; facebookresearch/qhoptim, `qhoptim.pyt.QHM`.
    """

    rule = qhm
    names = (Name("qhm"),)
    lr: float = hyper(1e-3, "learning rate")
    momentum: float = hyper(0.999, "decay rate of b", below=1.0)
    nu: float = hyper(0.7, "share of b in a step", most=1.0)
    weight_decay: float = hyper(0.0, "L2 penalty, or decoupled weight decay, per step and unit of lr")
    weight_decay_type: str = hyper("grad", '"direct" decouples the decay', choices=("grad", "direct"))

    def decay_for(self, group: dict[str, Any]) -> Decay:
        return Decay.DECOUPLED if group["weight_decay_type"] == "direct" else Decay.COUPLED


class QHAdam(RuleOptimizer):
    """Adam by weighted means of each moment and of what enters it.

    With g the gradient, p the parameter, t the step:

        m = the average of all g so far, each weighing beta1 times what the next one does
        v = that of all g^2, with beta2
        p = p - lr ((1 - nu1) g + nu1 m) / (sqrt((1 - nu2) g^2 + nu2 v) + eps)

    with g = g + weight_decay p before it, or under `decouple_weight_decay` p = p - ... - lr weight_decay p. With
    nus=(1, 1) it is Adam, with nus=(beta1, 1) about NAdam; the paper advises (0.7, 1) and betas (0.995, 0.999). State:
    `exp_avg` (m) and `exp_avg_sq` (v), which need no bias correction.

    Follows the author. pytorch_optimizer 4.1 keeps the weights of m and v in float32, which is 1e-8 of the steps.

    Source:
        Ma and Yarats, arXiv 1810.06801; facebookresearch/qhoptim, `qhoptim.pyt.QHAdam`.
    """

    decay = Decay.COUPLED
    decoupled_by = "decouple_weight_decay"
    rule = qhadam
    names = (
        Name("qhadam"),
        Name("qhadamw", "QHAdam with decoupled weight decay", options={"decouple_weight_decay": True}),
    )
    lr: float = hyper(1e-3, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.999), "decay rates of m and v")
    nus: tuple[float, float] = hyper((1.0, 1.0), "shares of m and v in a step, each in [0, 1]", check=_nus)
    weight_decay: float = hyper(0.0, "L2 penalty, or decoupled weight decay, per step and unit of lr")
    decouple_weight_decay: bool = hyper(False, "decoupled weight decay")
    eps: float = hyper(1e-8, "added to the root")
