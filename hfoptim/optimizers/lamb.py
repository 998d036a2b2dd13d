"""LAMB: Adam with a step size per tensor."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

from torch import Tensor

from hfoptim.engine import Group, Name, Scalars, hyper
from hfoptim.engine.rule import (
    ELEMENT,
    TENSOR,
    Probe,
    Rule,
    add_scaled,
    bias_correction,
    ema,
    masked_and_scale,
    nonnegative,
    zeros,
)
from hfoptim.optimizers.shared.clipping import clip_at, clip_factor, squared_norm
from hfoptim.optimizers.shared.decoupling import DECOUPLED_DECAY, DecouplingInside
from hfoptim.optimizers.shared.moments import moment_rates
from hfoptim.optimizers.shared.peer_flags import TIMM_DECAY
from hfoptim.optimizers.shared.trust_ratio import adapts, unless_zero


def _per_step(t: int, group: Group, grad_sq: Tensor | None = None) -> Scalars:
    """Bias corrections c1, c2 as one factor, `scale`; the weight decay is divided by it.

    (m / c1) / (sqrt(v / c2) + eps) + wd p
        =  scale (m / (sqrt(v) + eps sqrt(c2)) + wd / scale p),  scale = sqrt(c2) / c1
    """
    beta1, beta2 = group["betas"]
    root, scale = 1.0, 1.0
    if group["bias_correction"]:
        root = math.sqrt(bias_correction(beta2, t))
        scale = root / bias_correction(beta1, t)
    scalars: Scalars = {**moment_rates(t, group), "eps": group["eps"] * root}
    if not group["grad_averaging"]:
        scalars["beta1"] = beta1
    if adapts(group):
        scalars |= {"scale": scale, "inside": float(group["weight_decay"]) / scale}
    else:
        scalars["lr"] = float(group["lr"]) * scale
    if grad_sq is not None:
        scalars["clip"] = clip_factor(grad_sq, group["max_grad_norm"])
    return scalars


@cache
def lamb(adapted: bool, clipped: bool, grad_averaging: bool, trust_clip: bool, masked: bool, decoupled: bool) -> Rule:
    """The rule for one kind of group and options.

    Args:
        adapted: scale the update by a trust ratio; else this is Adam.
        clipped: by the norm of all gradients together.
        grad_averaging: the new gradient enters the first moment with a weight of 1 - beta1, not of 1.
        trust_clip: trust ratios of 1 at most.
        masked: caution before decay and trust ratio.
        decoupled: the decay comes before the update, which has none of it; the ratio is that of the decayed parameter.
    """

    # Passes over memory, in tensors of the parameter's size:
    #   probe: read grad                                                        1
    #   both norms: read grad, param, m, v; write m, v                          6
    #   update: read param, m, v; write param                                   4
    # or without storing in between: read 4, then read 4 and write 3            11 in place of 10
    # Not adapted: read 4, write 3                                              7
    def adam(grad: Any, param: Any, exp_avg: Any, exp_avg_sq: Any, h: Any) -> tuple[Any, Any, Any, Any]:
        """The update without its decay, what it is to be multiplied by if that is not 1, and the new state."""
        if clipped:
            grad = grad * h.clip
        exp_avg = ema(exp_avg, grad, h.alpha1) if grad_averaging else add_scaled(grad, exp_avg, h.beta1)
        exp_avg_sq = ema(exp_avg_sq, grad * grad, h.alpha2)
        update = exp_avg / (exp_avg_sq.sqrt() + h.eps)
        update, scale = masked_and_scale(update, grad) if masked else (update, None)
        return update, scale, exp_avg, exp_avg_sq

    def whole(update: Any, scale: Any, param: Any, h: Any) -> Any:
        """The update as it is, with its decay."""
        update = update if scale is None else update * scale
        return add_scaled(update, param, h.inside) if adapted and not decoupled else update

    def norm_of(update: Any, masked_update: Any, scale: Any, param: Any, weight_norm: Any, h: Any) -> Any:
        """The norm of an update: with a mask, whose scale is a mean, from sums without it, so one pass has both."""
        if scale is None:
            return update.norm()
        if decoupled:
            return masked_update.norm() * scale
        decay = weight_norm * h.inside
        mixed = (masked_update * param).sum() * (scale * h.inside * 2.0)
        squares = (masked_update * masked_update).sum() * (scale * scale) + decay * decay
        return (squares + mixed).clamp(min=0.0).sqrt()

    def scaled_ratio(update: Any, masked_update: Any, scale: Any, param: Any, h: Any) -> Any:
        """The trust ratio times h.scale, which the update lacks: it cancels but where the ratio is replaced."""
        weight_norm = param.norm()
        update_norm = norm_of(update, masked_update, scale, param, weight_norm, h)
        weight_norm = weight_norm * (1.0 - h.decay) if decoupled else weight_norm
        ratio = unless_zero(weight_norm / update_norm, weight_norm, update_norm, h.scale)
        return ratio.clamp(max=h.scale) if trust_clip else ratio

    def fn(grad: Any, param: Any, *args: Any) -> tuple[Any, Any, Any]:
        h = args[-1]
        masked_update, scale, exp_avg, exp_avg_sq = adam(grad, param, *args)
        update = whole(masked_update, scale, param, h)
        if adapted:
            update = update * scaled_ratio(update, masked_update, scale, param, h)
        return update, exp_avg, exp_avg_sq

    def report(grad: Any, param: Any, *args: Any) -> dict[str, Any]:
        h = args[-1]
        masked_update, scale, *_ = adam(grad, param, *args)
        update = whole(masked_update, scale, param, h)
        return {"trust_ratio": scaled_ratio(update, masked_update, scale, param, h) / h.scale}

    fn.__name__ = "lamb"
    state = {"exp_avg": zeros, "exp_avg_sq": nonnegative}
    probe = Probe(squared_norm) if clipped else None
    scope = TENSOR if adapted or masked else ELEMENT
    return Rule(fn, scope, state, _per_step, probe, report=report if adapted else None)


class Lamb(DecouplingInside):
    """Adam whose update has the norm of the parameter, tensor by tensor: for very large batches.

    With G all gradients together, g the gradient, p the parameter, t the step:

        g = g / max(1, |G| / max_grad_norm)
        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) g^2
        u = m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay p
        p = p - lr |p| / |u| u

    or under `decoupled_decay` p = (1 - lr weight_decay) p first, and u without its decay.

    The trust ratio |p| / |u| is 1 where one of the norms is 0, and for parameters without weight decay, unless
    `always_adapt`. State: `exp_avg` (m), `exp_avg_sq` (v); a state_dict of timm's Lamb loads.

    Follows timm, which has the numbers of NVIDIA's NVLAMB: with bias corrections inside the trust ratio, and the
    gradients clipped together. optax is the same with always_adapt and max_grad_norm=None. The paper clips |p| by a
    function that it leaves open; pytorch_optimizer clips it at 10, does not correct v and adds eps in the ratio;
    jettify's torch_optimizer clamps |p| too and corrects biases outside the ratio. `caution=True` masks the finished
    update, `caution="momentum"` Adam's part before decay and ratio, as timm.

    Raises:
        TypeError: a complex parameter.

    Source:
        You et al., arXiv 1904.00962; timm 1.0, `timm.optim.Lamb`.
    """

    masks_momentum = True
    peer_flags = TIMM_DECAY
    other_in_bitsandbytes = (
        "AdamW with updates of at most the parameter's norm (max_unorm), where LAMB's are scaled to it, up and down"
    )
    names = (
        Name("lamb"),
        Name("lambc", "LAMB with trust ratios of 1 at most", options={"trust_clip": True}),
        Name("clamb", "LAMB with caution before decay and trust ratio", options={"caution": "momentum"}),
        Name("lambw", "LAMB with decoupled weight decay", options={"decoupled_decay": True}),
        Name("lambcw", "LAMBC with decoupled decay", options={"trust_clip": True, "decoupled_decay": True}),
        Name("clambw", "LAMB with caution, decoupled", options={"caution": "momentum", "decoupled_decay": True}),
        Name(
            "lambcd",
            "LAMB with decoupled weight decay that falls with the square of lr",
            options={"decoupled_decay": True, "corrected_weight_decay": True},
        ),
    )
    lr: float = hyper(1e-3, "learning rate: the relative change of a tensor per step")
    bias_correction: bool = hyper(True, "False leaves out both bias corrections")
    betas: tuple[float, float] = hyper((0.9, 0.999), "decay rates of m and v")
    eps: float = hyper(1e-6, "added to the bias-corrected root of v")
    weight_decay: float = hyper(0.01, "weight decay, inside the trust ratio")
    grad_averaging: bool = hyper(True, "False lets the new gradient into m with a weight of 1, not of 1 - beta1")
    max_grad_norm: float | None = clip_at(1.0, "norm of all gradients together")
    trust_clip: bool = hyper(False, "trust ratios of 1 at most (LAMBC)")
    always_adapt: bool = hyper(False, "a trust ratio for parameters without weight decay, too")
    decoupled_decay: bool = DECOUPLED_DECAY

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        clipped = group["max_grad_norm"] is not None
        masked = group["caution"] == "momentum"
        decoupled = group["decoupled_decay"] and group["weight_decay"] != 0
        return lamb(adapts(group), clipped, group["grad_averaging"], group["trust_clip"], masked, decoupled)
