"""The Emo family: steps of Adam, Lion and sign descent with a learning rate that follows the trend of the loss."""

from __future__ import annotations

from dataclasses import KW_ONLY, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import (
    ELEMENT,
    Group,
    Name,
    Rule,
    RuleOptimizer,
    RunState,
    Scalars,
    add_scaled,
    clone,
    ema,
    hyper,
    nonnegative,
    rule,
    zeros,
)
from hfoptim.optimizers.shared.moments import moment_rates, moments_step

# The weights of a loss in its averages.
_RATES = {"short": 0.3, "long": 0.01}


def _felt(state: Group, totals: Group, group: Group) -> dict[str, Any]:
    """The averages of the loss, and the factor of lr that their distance stands for."""
    loss, first = totals["loss"], state["k"] == 0
    short, long = (ema(state[name], loss, 1.0 if first else rate) for name, rate in _RATES.items())
    scalar = torch.tanh((long - short) / long.clamp(min=1e-5))
    size = scalar.abs()
    trust = 1.0 - size
    turbo = 8.0 * trust * (1.0 + 0.1 * torch.copysign(trust, scalar))
    drive = torch.where(size > 0.75, trust, torch.where((size > 0.25) & (size < 0.5), turbo, 1.0))
    back = torch.where(size > 0.625, trust, 0.0)
    follow = torch.where(size > 0.625, 0.0, 0.1 * trust)
    return {"short": short, "long": long, "drive": drive, "k": state["k"] + 1, "back": back, "follow": follow}


def _driven(t: int, group: Group, **told: Any) -> Scalars:
    rates = moment_rates(t, group) if "betas" in group else {}
    return {**rates, "eps": group.get("eps", 0.0), "lr": group["drive"] * float(group["lr"])}


@cache
def _shadowed(inner: Rule) -> Rule:
    """A rule with a shadow of the weights, towards which they are drawn back while the loss changes a lot."""

    def per_step(t: int, group: Group, back: Any, follow: Any, **told: Any) -> Scalars:
        scalars = inner.per_step(t, group)
        # The weights are drawn back before they decay.
        back = back * (1.0 - float(group["lr"]) * group["weight_decay"])
        return {**scalars, "size": scalars["lr"], "back": back, "follow": follow, "lr": 1.0}

    def fn(grad: Any, param: Any, *args: Any) -> tuple[Any, ...]:
        *state, shadow, h = args
        update, *state = inner.fn(grad, param, *state, h)
        return add_scaled(update * h.size, param - shadow, h.back), *state, ema(shadow, param, h.follow)

    fn.__name__ = f"{inner.name}_shadowed"
    return replace(inner, fn=fn, per_step=per_step, state={**inner.state, "shadow": clone}, exact_weights=True)


@rule(ELEMENT, per_step=_driven)
def _sign(grad: Any, param: Any, h: Any) -> tuple[Any]:
    return (grad.sign(),)


@rule(ELEMENT, per_step=_driven, exp_avg=zeros)
def _lynx(grad: Any, param: Any, exp_avg: Any, h: Any) -> tuple[Any, Any]:
    return ema(exp_avg, grad, h.alpha1).sign(), ema(exp_avg, grad, h.alpha2)


class Emo(RuleOptimizer):
    """What the Emo family shares: a factor of lr from two averages of the loss, and the shadow of the weights."""

    needs_loss = True
    run_state = RunState({"short": 0.0, "long": 0.0, "drive": 1.0, "k": 0}, _felt, shared=True)
    _: KW_ONLY
    use_shadow: bool = hyper(
        False, "keep a slow copy of the weights, and draw them back to it while the loss changes a lot"
    )

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        return _shadowed(self.rule) if group["use_shadow"] else self.rule


class EmoNavi(Emo):
    """Adam with a learning rate that rises while the loss changes moderately, and falls while it changes a lot.

    With L the loss, g the gradient, p the parameter; at the first step a = b = L:

        a = 0.7 a + 0.3 L;  b = 0.99 b + 0.01 L
        s = tanh((b - a) / max(b, 1e-5))
        d = 8 (1 - |s|) (1 + 0.1 sign(s) (1 - |s|))  where 0.25 < |s| < 0.5;  1 - |s|  where |s| > 0.75;  else 1
        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) g^2
        p = p - lr weight_decay p - lr d m / (sqrt(v) + eps)

    With `use_shadow` there is a slow copy S of the weights, p at first, and before all that has a p in it

        p = |s| p + (1 - |s|) S                      where |s| > 0.625
        S = S + (1 - |s|) / 10 (p - S)               elsewhere

    Needs the loss: `step(loss=loss.detach())`, `step(closure)`, or `add_loss(loss)` before `step()`; the Trainer tells
    it. State: `exp_avg` (m), `exp_avg_sq` (v), `shadow` (S); in the groups `short` (a), `long` (b), `drive` (d), `k`.

    Follows version 3.6 of the author's code. That chooses between b and an
    average in between as the divisor of s by a comparison whose sides are equal but for rounding; here it is b.
    pytorch_optimizer 4.1 advances the averages once per group, and with `use_shadow` it decays first, and moves S in
    both cases.

    Source:
        https://github.com/muooon/EmoNavi
    """

    rule = Rule(moments_step, ELEMENT, {"exp_avg": zeros, "exp_avg_sq": nonnegative}, _driven)
    names = (Name("emonavi"),)
    lr: float = hyper(1e-3, "learning rate")
    eps: float = hyper(1e-8, "added to the root of v")
    betas: tuple[float, float] = hyper((0.9, 0.995), "decay rates of m and v")
    weight_decay: float = hyper(0.01, "decoupled weight decay, per step and unit of lr")


class EmoLynx(Emo):
    """Lion with a learning rate that rises while the loss changes moderately, and falls while it changes a lot.

    With g the gradient, p the parameter, d the factor that `EmoNavi` has from the loss:

        p = p - lr weight_decay p - lr d sign(beta1 m + (1 - beta1) g)
        m = beta2 m + (1 - beta2) g

    Needs the loss: `step(loss=loss.detach())`, `step(closure)`, or `add_loss(loss)` before `step()`; the Trainer tells
    it. State: `exp_avg` (m); in the groups `short`, `long`, `drive` (d), `k`. See `EmoNavi` for what is followed.

    Source:
        https://github.com/muooon/EmoNavi
    """

    rule = _lynx
    names = (Name("emolynx"),)
    lr: float = hyper(1e-3, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.995), "interpolation weights of the update and of the momentum")
    weight_decay: float = hyper(0.01, "decoupled weight decay, per step and unit of lr")


class EmoFact(Emo):
    """Sign descent with a learning rate that rises while the loss changes moderately, and falls while it changes a lot.

    With g the gradient, p the parameter, d the factor that `EmoNavi` has from the loss:

        p = p - lr weight_decay p - lr d sign(g)

    The author's code keeps averages of rows and columns (of vectors a second moment) and takes the sign of the gradient
    over them, which is the sign of the gradient: they are not kept here, and there are no betas and eps.
    pytorch_optimizer 4.1 has the sign of a momentum for vectors.

    Needs the loss: `step(loss=loss.detach())`, `step(closure)`, or `add_loss(loss)` before `step()`; the Trainer tells
    it. No state of the parameters; in the groups `short`, `long`, `drive` (d), `k`.

    Source:
        https://github.com/muooon/EmoNavi
    """

    rule = _sign
    names = (Name("emofact"),)
    lr: float = hyper(1e-3, "learning rate")
    weight_decay: float = hyper(0.01, "decoupled weight decay, per step and unit of lr")
