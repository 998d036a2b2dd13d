"""StableAdamW: AdamW with Adafactor's clipping of updates."""

from __future__ import annotations

from typing import Any

from hfoptim.engine import TENSOR, Decay, Group, Name, Scalars, hyper, nonnegative, rule, zeros
from hfoptim.optimizers.shared.decoupling import DECOUPLE_LR, MAX_LR, FullyDecoupling
from hfoptim.optimizers.shared.moments import debiased_rates, moments, normed


def _per_step(t: int, group: Group) -> Scalars:
    eps = group["eps"]
    decay = float(group["weight_decay"]) / (group["max_lr"] if group["decouple_lr"] else 1.0)
    return {**debiased_rates(t, group), "eps": eps, "eps_sq": eps * eps, "weight_decay": decay}


# Passes over memory, in tensors of the parameter's size:
#   the mean: read grad, v                                                      2
#   update: read grad, param, m, v; write param, m, v                           7
@rule(TENSOR, per_step=_per_step, returns_step_size=True, exp_avg=zeros, exp_avg_sq=nonnegative)
def stable_adamw(grad: Any, param: Any, exp_avg: Any, exp_avg_sq: Any, h: Any) -> tuple[Any, ...]:
    """AdamW's update, divided by how much larger the gradients are than the second moment says."""
    exp_avg, exp_avg_sq = moments(grad, exp_avg, exp_avg_sq, h)
    rms = (grad * grad / exp_avg_sq.clamp(min=h.eps_sq)).mean().sqrt()
    size = h.lr / rms.clamp(min=1.0)
    (update,) = normed(exp_avg, exp_avg_sq, h)
    return update * size, size, exp_avg, exp_avg_sq


class StableAdamW(FullyDecoupling):
    """AdamW whose step size falls for a tensor while its gradients are larger than its second moment knows.

    With g the gradient, p the parameter, t the step, b1 and b2 the decay rates beta (1 - beta^(t-1)) / (1 - beta^t):

        m = b1 m + (1 - b1) g
        v = b2 v + (1 - b2) g^2
        s = lr / max(1, sqrt(mean(g^2 / max(v, eps^2))))
        p = p - s m / (sqrt(v) + eps) - s weight_decay p        (decouple_lr: - s / max_lr weight_decay p)

    In place of clipping gradients. State: `exp_avg` (m), `exp_avg_sq` (v), which need no bias correction.

    Follows optimi, which pytorch_optimizer agrees with. (timm's `clipping_threshold` is the same but for the decay,
    which it does not clip.)

    Raises:
        TypeError: a complex parameter.

    Source:
        Wortsman et al., Stable and low-precision training for large-scale vision-language models, arXiv 2304.13013;
        optimi.StableAdamW 0.3.
    """

    rule = stable_adamw
    decay = Decay.DECOUPLED
    names = (Name("stable_adamw"),)
    lr: float = hyper(1e-3, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.99), "decay rates of m and v")
    weight_decay: float = hyper(1e-2, "decoupled weight decay, per step and unit of s")
    eps: float = hyper(1e-6, "added to the root of v", above=0.0, excluded="would divide 0 by 0")
    decouple_lr: bool = DECOUPLE_LR
    max_lr: float | None = MAX_LR
