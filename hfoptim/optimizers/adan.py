"""Adan."""

from __future__ import annotations

from dataclasses import KW_ONLY
from functools import cache
from typing import Any

from torch import Tensor

from hfoptim.engine import Decay, Group, Name, Scalars, hyper
from hfoptim.engine.rule import ELEMENT, TENSOR, Rule, add_scaled, bias_correction, cautious, ema, nonnegative, zeros
from hfoptim.optimizers.shared.clipping import clip_at, clipped
from hfoptim.optimizers.shared.decoupling import DECOUPLE_LR, MAX_LR, FullyDecoupling
from hfoptim.optimizers.shared.moments import corrected


def _per_step(t: int, group: Group) -> Scalars:
    """Bias corrections c1, c2, c3 as factors of the three scalars the update has anyway.

    (m / c1 + beta2 d / c2) / (sqrt(n / c3) + eps)
        =  (sqrt(c3) / c1) (m + (beta2 c1 / c2) d) / (sqrt(n) + eps sqrt(c3))
    """
    beta1, beta2, beta3 = group["betas"]
    # At the first step there is no gradient before, so no difference: both its weights are 0.
    first = t == 1
    scalars = {
        **corrected(t, {**group, "betas": (beta1, beta3)}),
        "alpha_diff": 0.0 if first else 1.0 - beta2,
        "ahead": 0.0 if first else beta2,
        "share": beta2 * bias_correction(beta1, t) / bias_correction(beta2, t),
    }
    if not group["no_prox"]:
        # Dividing by 1 + x is a decay by x / (1 + x).
        lr = float(group["lr"])
        decay = group["weight_decay"] * (lr / group["max_lr"] if group["decouple_lr"] else lr)
        scalars["decay"] = decay / (1.0 + decay)
    return scalars


@cache
def adan(masked: bool) -> Rule:
    """The rule, with caution for m or without."""

    def fn(grad: Any, param: Any, exp_avg: Any, exp_avg_diff: Any, exp_avg_sq: Any, *args: Any) -> tuple[Any, ...]:
        neg_pre_grad, h = args
        change = grad + neg_pre_grad
        look_ahead = add_scaled(grad, change, h.ahead)
        exp_avg = ema(exp_avg, grad, h.alpha1)
        exp_avg_diff = ema(exp_avg_diff, change, h.alpha_diff)
        exp_avg_sq = ema(exp_avg_sq, look_ahead * look_ahead, h.alpha2)
        momentum = cautious(exp_avg, grad) if masked else exp_avg
        update = add_scaled(momentum, exp_avg_diff, h.share) / (exp_avg_sq.sqrt() + h.eps)
        return update, exp_avg, exp_avg_diff, exp_avg_sq, -grad

    fn.__name__ = "adan"
    state = {"exp_avg": zeros, "exp_avg_diff": zeros, "exp_avg_sq": nonnegative, "neg_pre_grad": zeros}
    return Rule(fn, TENSOR if masked else ELEMENT, state, _per_step)


class Adan(FullyDecoupling):
    """Adam with Nesterov's momentum from the change of the gradient.

    With g the gradient, g' the one before (at the first step g), p the parameter, t the step:

        m = beta1 m + (1 - beta1) g
        d = beta2 d + (1 - beta2) (g - g')
        n = beta3 n + (1 - beta3) (g + beta2 (g - g'))^2
        u = (m / (1 - beta1^t) + beta2 d / (1 - beta2^t)) / (sqrt(n / (1 - beta3^t)) + eps)
        p = (p - lr u) / (1 + lr weight_decay)
        p = p - lr u - lr weight_decay p                        (no_prox)

    with lr / max_lr in place of lr before weight_decay under `decouple_lr`. With `max_grad_norm` gradients whose norm,
    of all together, is larger are brought to it before all else.

    State: `exp_avg` (m), `exp_avg_diff` (d), `exp_avg_sq` (n), `neg_pre_grad` (-g); a state_dict of timm's Adan loads.

    Author, timm, optimi and pytorch_optimizer agree. `caution=True` masks the whole update,
    `caution="momentum"` m alone, as timm.

    Source:
        Xie et al., arXiv 2208.06677; sail-sg/Adan; timm 1.0, `timm.optim.Adan`; `decouple_lr` after optimi.Adan 0.3.
    """

    masks_momentum = True
    names = (
        Name("adan"),
        Name("adanw", "Adan with AdamW's weight decay", options={"no_prox": True}),
        Name("cadan", "Adan with caution for its first momentum", options={"caution": "momentum"}),
        Name("cadanw", "Adan with caution and AdamW's decay", options={"caution": "momentum", "no_prox": True}),
    )
    lr: float = hyper(1e-3, "learning rate; the paper's are 5 to 10 times AdamW's")
    betas: tuple[float, float, float] = hyper((0.98, 0.92, 0.99), "decay rates of m, d and n")
    eps: float = hyper(1e-8, "added to the bias-corrected root of n")
    weight_decay: float = hyper(0.0, "decoupled weight decay, per step and unit of lr")
    no_prox: bool = hyper(False, "decay as AdamW does, instead of the proximal step")
    _: KW_ONLY
    decouple_lr: bool = DECOUPLE_LR
    max_lr: float | None = MAX_LR
    max_grad_norm: float | None = clip_at(None, "norm of all gradients together", in_peers=False)

    def decay_for(self, group: dict[str, Any]) -> Decay:
        # The proximal step decays what the update has left.
        return super().decay_for(group) if group["no_prox"] else Decay.DECOUPLED_AFTER

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        by_norm = None if group["max_grad_norm"] is None else "max_grad_norm"
        return clipped(adan(group["caution"] == "momentum"), None, by_norm)
