"""LOMO and AdaLOMO: gradient descent and Adafactor that are meant to step inside of backward."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from torch import Tensor

from hfoptim.engine import Group, Name, Rule, RuleOptimizer, Scalars, hyper
from hfoptim.optimizers.adafactor import adafactor, moment_scalars
from hfoptim.optimizers.shared.clipping import clip_at, clipped
from hfoptim.optimizers.shared.factored import Factored, last_two, pair
from hfoptim.optimizers.shared.momentum import sgd


def _adalomo_scalars(t: int, group: Group) -> Scalars:
    return {**moment_scalars(t, group), "lr": float(group["lr"])}


@cache
def _adalomo(moment: Factored) -> Rule:
    return replace(adafactor(moment, scale_parameter=True, first_moment=False), per_step=_adalomo_scalars)


class _Clipping(RuleOptimizer):
    """An optimizer with LOMO's two clippings, of which the norm is of the gradients before the other one."""

    def inner_rule(self, param: Tensor) -> Rule:
        """What steps with the clipped gradient."""
        raise NotImplementedError

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        by_value, by_norm = (None if group[name] is None else name for name in ("clip_grad_value", "clip_grad_norm"))
        return clipped(self.inner_rule(param), by_value, by_norm)


class Lomo(_Clipping):
    """Gradient descent without state, for gradients that are released in backward.

    With N the norm of all gradients together, g the gradient, p the parameter:

        g = clip(g, -clip_grad_value, clip_grad_value) min(1, clip_grad_norm / N)        (what is given of both)
        p = p - lr g - lr weight_decay p

    What makes it LOMO is that a gradient is used up as soon as it is complete: give `gradient_release=True`, and call
    `hfoptim.training.prepare_for_gradient_release(model, optimizer)`; the Trainer does that by itself. Then no more
    than one gradient is in memory. `clip_grad_norm` needs all of them first, so it excludes that; the authors' code
    runs backward twice for it. They add 1e-6 to N.

    Source:
        Lv et al., Full Parameter Fine-tuning for Large Language Models with Limited Resources, arXiv 2306.09782;
        OpenLMLab/LOMO.
    """

    names = (Name("lomo"),)
    lr: float = hyper(1e-3, "learning rate")
    clip_grad_norm: float | None = clip_at(None, "norm of all gradients together")
    clip_grad_value: float | None = clip_at(None, "entry of a gradient")
    weight_decay: float = hyper(0.0, "decoupled weight decay, per step and unit of lr")

    def inner_rule(self, param: Tensor) -> Rule:
        return sgd


class AdaLomo(_Clipping):
    """Adafactor without relative steps and momentum, for gradients that are released in backward.

    With N the norm of all gradients together, G the gradient, P the parameter, t the step, R and C the kept means over
    columns and rows:

        G = clip(G, -clip_grad_value, clip_grad_value) min(1, clip_grad_norm / N)        (what is given of both)
        b2 = 1 - t^decay_rate
        R = b2 R + (1 - b2) mean_row(G^2 + eps1);  C = b2 C + (1 - b2) mean_col(G^2 + eps1)
        U = G / sqrt(R C / mean(R));                U = U / max(1, rms(U) / clip_threshold)
        a = lr max(eps2, rms(P))
        P = P - a U - a weight_decay P

    The numbers of `Adafactor(relative_step=False)`. What makes it LOMO is that a gradient is used up as soon as it is
    complete: give `gradient_release=True`, and call `hfoptim.training.prepare_for_gradient_release(model, optimizer)`;
    the Trainer does that by itself. `clip_grad_norm` needs all gradients first, so it excludes that. Loss scaling is
    left to the caller. State: as `Adafactor`. The authors take no more than two dimensions; of more, the last two are
    factored here.

    Raises:
        TypeError: a complex parameter.

    Source:
        Lv et al., AdaLomo: Low-memory Optimization with Adaptive Learning Rate, arXiv 2310.10195; OpenLMLab/LOMO.
    """

    names = (Name("adalomo"),)
    lr: float = hyper(1e-3, "learning rate, relative to a parameter's root mean square")
    eps: Any = hyper(
        (1e-30, 1e-3), "eps1, added to the squared gradient, and eps2, least scale of a parameter", check=pair
    )
    clip_threshold: float = hyper(1.0, "largest root mean square of U", above=0.0, excluded="would stop every step")
    decay_rate: float = hyper(-0.8, "exponent of the moment's decay", low=float("-inf"), most=0.0)
    clip_grad_norm: float | None = clip_at(None, "norm of all gradients together")
    clip_grad_value: float | None = clip_at(None, "entry of a gradient")
    weight_decay: float = hyper(0.0, "weight decay, per step and unit of step size")

    def inner_rule(self, param: Tensor) -> Rule:
        return _adalomo(last_two(param.shape))
