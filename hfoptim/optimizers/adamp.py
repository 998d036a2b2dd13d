"""AdamP: Adam that does not lengthen weights whose length does not matter."""

from __future__ import annotations

from typing import Any

from hfoptim.engine import ELEMENT, Name, Rule, ema, hyper, nonnegative, rule, zeros
from hfoptim.optimizers.adam import adam
from hfoptim.optimizers.shared.moments import corrected, moments
from hfoptim.optimizers.shared.projection import Projecting


@rule(ELEMENT, per_step=corrected, exp_avg=zeros, exp_avg_sq=nonnegative)
def adam_ahead(grad: Any, param: Any, exp_avg: Any, exp_avg_sq: Any, h: Any) -> tuple[Any, Any, Any]:
    """Adam with its momentum one step ahead."""
    exp_avg, exp_avg_sq = moments(grad, exp_avg, exp_avg_sq, h)
    return ema(exp_avg, grad, h.alpha1) / (exp_avg_sq.sqrt() + h.eps), exp_avg, exp_avg_sq


class AdamP(Projecting):
    """Adam without the part of the update that only lengthens weights which a normalisation follows.

    With g the gradient, p the parameter, t the step:

        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) g^2
        n = m, or with nesterov beta1 m + (1 - beta1) g
        u = n / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)
        c = |cos(g, p)|
        w = weight_decay
        if c < delta / sqrt(size of p):  u = u - (p . u) / |p|^2 p,  w = wd_ratio w
        p = p - lr u - lr w p

    in parameters of two and more dimensions: c and the projection first for each row (output channel), where the
    largest c of all rows decides; if that does not hold, for the parameter as one vector. Gradients are orthogonal to
    weights whose scale changes nothing. State: `exp_avg` (m), `exp_avg_sq` (v); a state_dict of timm's AdamP loads.

    `caution="momentum"` is timm's caution: where an update is projected, it compares what is left of it with what is
    left of the gradient, and projects once more. `caution=True` compares the projected update with the whole gradient.

    Follows the author's package and timm; the registry's name "adamp" has the wd_ratio and nesterov of timm's factory.
    pytorch_optimizer 4.1 adds eps before the bias correction of v.

    Raises:
        TypeError: a complex parameter of two or more dimensions.

    Source:
        Heo et al., arXiv 2006.08217; clovaai/AdamP; timm 1.0, `timm.optim.AdamP`.
    """

    names = (
        Name("adamp", options={"wd_ratio": 0.01, "nesterov": True}),
        Name(
            "cadamp",
            "AdamP with caution on the sphere and Nesterov's momentum",
            options={"wd_ratio": 0.01, "nesterov": True, "caution": "momentum"},
        ),
    )
    lr: float = hyper(1e-3, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.999), "decay rates of m and v")
    eps: float = hyper(1e-8, "added to the bias-corrected root of v, and to the norm of weights")
    weight_decay: float = hyper(0.0, "decoupled weight decay, per step and unit of lr")
    delta: float = hyper(0.1, "how near to orthogonal a gradient is to be")
    wd_ratio: float = hyper(0.1, "what multiplies the decay of weights whose update is projected")
    nesterov: bool = hyper(False, "Nesterov's momentum")

    def inner_rule(self, group: dict[str, Any]) -> Rule:
        return adam_ahead if group["nesterov"] else adam
