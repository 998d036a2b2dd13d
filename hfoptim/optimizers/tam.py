"""Torque-aware momentum: TAM and AdaTAM."""

from __future__ import annotations

from typing import Any

from hfoptim.engine import Group, Name, Scalars, hyper
from hfoptim.engine.rule import TENSOR, ema, nonnegative, rule, scalar, zeros
from hfoptim.optimizers.shared.decay_options import FIXED_DECAY, Decoupling, decoupling, fixed_decay
from hfoptim.optimizers.shared.trust_ratio import unless_zero


def _per_step(t: int, group: Group) -> Scalars:
    scalars = {"alpha_s": 1.0 - group["decay_rate"], "eps": group["eps"], **fixed_decay(group)}
    if "momentum" in group:
        return {**scalars, "momentum": group["momentum"]}
    beta1, beta2 = group["betas"]
    return {**scalars, "momentum": beta1, "alpha2": 1.0 - beta2}


# Passes over memory, in tensors of the parameter's size:
#   the cosine: read grad, m                                                    2
#   update: read grad, param, m; write param, m                                 5   (AdaTAM: and v, both ways)
def _momentum(grad: Any, moment: Any, s: Any, h: Any) -> tuple[Any, Any]:
    """The momentum with the gradient in it, by how far both agree, and the average of that."""
    norm, grad_norm = moment.norm(), grad.norm()
    s = ema(s, unless_zero((moment * grad).sum() / (norm * grad_norm), norm, grad_norm, 0.0), h.alpha_s)
    return moment * h.momentum + grad * ((s + 1.0) * 0.5 + h.eps), s


@rule(TENSOR, per_step=_per_step, s=scalar, momentum_buffer=zeros)
def tam(grad: Any, param: Any, s: Any, momentum_buffer: Any, h: Any) -> tuple[Any, Any, Any]:
    """Momentum of gradients damped where they turn it."""
    momentum_buffer, s = _momentum(grad, momentum_buffer, s, h)
    return momentum_buffer, s, momentum_buffer


@rule(TENSOR, per_step=_per_step, s=scalar, exp_avg=zeros, exp_avg_sq=nonnegative)
def adatam(grad: Any, param: Any, s: Any, exp_avg: Any, exp_avg_sq: Any, h: Any) -> tuple[Any, Any, Any, Any]:
    """The same over the root of the second moment."""
    exp_avg, s = _momentum(grad, exp_avg, s, h)
    exp_avg_sq = ema(exp_avg_sq, grad * grad, h.alpha2)
    return exp_avg / (exp_avg_sq.sqrt() + h.eps), s, exp_avg, exp_avg_sq


class TAM(Decoupling):
    """SGD with momentum that takes little of a gradient which would turn it.

    With g the gradient and m the momentum of a tensor, p the parameter:

        s = decay_rate s + (1 - decay_rate) <m, g> / (|m| |g|)          (0 where a norm is 0)
        m = momentum m + (eps + (1 + s) / 2) g
        p = p - lr m - lr weight_decay p                                (fixed_decay: - weight_decay p)

    or without `weight_decouple`, g = g + weight_decay p before it. State: `momentum_buffer` (m), `s`.

    Follows the paper. pytorch_optimizer takes products of entries, normalised along the first dimension, where the
    paper has the cosine; its momentum begins at the first gradient, and without `weight_decouple` it does not decay.

    Raises:
        TypeError: a complex parameter.

    Source:
        Malviya et al., Torque-Aware Momentum, arXiv 2412.18790; names after pytorch_optimizer 4.1, `TAM`.
    """

    rule = tam
    names = (Name("tam"),)
    lr: float = hyper(1e-3, "learning rate")
    momentum: float = hyper(0.9, "decay rate of m", below=1.0)
    decay_rate: float = hyper(0.9, "decay rate of s", below=1.0)
    weight_decay: float = hyper(0.0, "weight decay, per step and unit of lr, or L2 penalty")
    weight_decouple: bool = decoupling(True)
    fixed_decay: bool = FIXED_DECAY
    eps: float = hyper(1e-8, "least share of a gradient")


class AdaTAM(Decoupling):
    """Adam with torque-aware momentum.

    With g the gradient and m the momentum of a tensor, p the parameter:

        s = decay_rate s + (1 - decay_rate) <m, g> / (|m| |g|)          (0 where a norm is 0)
        m = beta1 m + (eps + (1 + s) / 2) g
        v = beta2 v + (1 - beta2) g^2
        p = p - lr m / (sqrt(v) + eps) - lr weight_decay p              (fixed_decay: - weight_decay p)

    or without `weight_decouple`, g = g + weight_decay p before it. State: `exp_avg` (m), `exp_avg_sq` (v), `s`.

    Follows the paper in s, as `TAM`, and pytorch_optimizer in the rest: no bias corrections.

    Raises:
        TypeError: a complex parameter.

    Source:
        Malviya et al., Torque-Aware Momentum, arXiv 2412.18790; names after pytorch_optimizer 4.1, `AdaTAM`.
    """

    rule = adatam
    names = (Name("adatam"),)
    lr: float = hyper(1e-3, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.999), "decay rates of m and v")
    decay_rate: float = hyper(0.9, "decay rate of s", below=1.0)
    weight_decay: float = hyper(0.0, "weight decay, per step and unit of lr, or L2 penalty")
    weight_decouple: bool = decoupling(True)
    fixed_decay: bool = FIXED_DECAY
    eps: float = hyper(1e-8, "least share of a gradient, and added to the root of v")
