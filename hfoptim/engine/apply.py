"""How an update reaches a parameter: sign, weight decay, learning rate, caution.

Written once, for tensors and for `TensorList`s, eager and traced.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

from hfoptim.engine import storage
from hfoptim.engine.rule import Rule, Scope, add_scaled
from hfoptim.engine.storage import Rounding, Storage


class Decay(enum.Enum):
    """Where weight decay enters a step.

    With update u, parameter p, learning rate lr and coefficient wd:
    """

    NONE = "nowhere"
    COUPLED = "L2: grad + wd * p, before the rule"
    DECOUPLED = "p - lr * u - lr * wd * p"
    DECOUPLED_AFTER = "(p - lr * u) * (1 - lr * wd): the decay sees the parameter after the update"
    INSIDE = "where the rule puts it, which reads h.weight_decay: inside a trust ratio, for example"
    FULLY_DECOUPLED = "p - lr * u - wd * lr / max_lr * p: wd does not depend on the peak learning rate"


@dataclass(frozen=True, eq=False)
class Plan:
    """All that fixes the computation of a step, apart from numbers: a compiled kernel is made for one plan.

    `plan_of` makes them: equal plans are one object, so that looking things up by plan costs nothing.

    Args:
        rule: the rule.
        decay: where weight decay enters.
        dtype: what is computed in.
        maximize, caution: the options.
        rounding: how new parameters get into their dtype.
        storage: how each of the rule's states is kept.

    Attributes:
        kahan: whether rows end with what rounding cost the parameter so far.
        plain: whether casts are all that lies between a row's tensors and what is computed, Kahan's term apart.
        ordered: whether an entry's place in its tensor counts: blocks share scales, random bits go by the index.
        keys: those of a parameter's state that are in its row, in that order.
    """

    rule: Rule
    decay: Decay
    dtype: torch.dtype
    maximize: bool
    caution: bool
    rounding: Rounding
    storage: tuple[Storage, ...]
    kahan: bool = field(init=False)
    plain: bool = field(init=False)
    ordered: bool = field(init=False)
    keys: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        rounding, kept = self.rounding, self.storage
        keys = [key for name, how in zip(self.rule.state, kept, strict=True) for key in how.names(name)]
        kahan = rounding is Rounding.KAHAN
        for name, value in {
            "kahan": kahan,
            "plain": (kahan or rounding is Rounding.NEAREST) and all(how is storage.FULL for how in kept),
            "ordered": rounding is Rounding.STOCHASTIC or any(how.bits or how.stochastic for how in kept),
            "keys": (*keys, rounding.residual) if rounding.residual else tuple(keys),
        }.items():
            object.__setattr__(self, name, value)

    @property
    def scope(self) -> Scope:
        """The rule's scope; caution needs a mean over the tensor."""
        return Scope.TENSOR if self.caution and self.rule.scope is Scope.ELEMENT else self.rule.scope


@cache
def plan_of(
    rule: Rule,
    decay: Decay,
    dtype: torch.dtype,
    maximize: bool = False,
    caution: bool = False,
    rounding: Rounding = Rounding.NEAREST,
    kept: tuple[Storage, ...] | None = None,
) -> Plan:
    """The plan with these options; the same object every time. `kept` None: all states in the compute dtype."""
    return Plan(rule, decay, dtype, maximize, caution, rounding, storage.full(rule) if kept is None else kept)


def decay_scalars(plan: Plan, group: Mapping[str, Any]) -> dict[str, float]:
    """The scalars that `moved` needs for a plan's decay placement."""
    decay = plan.decay
    if decay is Decay.NONE:
        return {}
    weight_decay = float(group["weight_decay"])
    if decay in (Decay.COUPLED, Decay.INSIDE) or plan.rule.returns_step_size:
        return {"weight_decay": weight_decay}
    lr = float(group["lr"])
    if decay in (Decay.DECOUPLED, Decay.DECOUPLED_AFTER):
        return {"decay": lr * weight_decay}
    max_lr = float(group["max_lr"])
    return {"decay": weight_decay * lr / max_lr if max_lr else 0.0}


def step_in_place(plan: Plan, h: Any, row: Any, seed: int = 0, start: int = 0) -> None:
    """One step of one parameter, in place.

    Args:
        plan: the rule and the options.
        h: scalars by name.
        row: a row of a `Bucket`, or a piece of one.
        seed: of the random bits.
        start: index of the piece's first entry in the parameter, in logical order.
    """
    parts = storage.split(plan, row)
    weight, state = storage.decode(plan, parts)
    new, *new_state = moved(plan, h, parts.grad, weight, state)
    storage.encode(plan, parts, new, new_state, seed, start)


def entering(plan: Plan, h: Any, grad: Any, param: Any) -> tuple[Any, Any]:
    """(parameter, gradient) as a rule sees them: in the compute dtype, signed, with coupled decay."""
    weight, grad = param.to(plan.dtype), grad.to(plan.dtype)
    if plan.maximize:
        grad = -grad
    if plan.decay is Decay.COUPLED:
        grad = add_scaled(grad, weight, h.weight_decay)
    return weight, grad


def moved(plan: Plan, h: Any, grad: Any, param: Any, state: Any) -> tuple[Any, ...]:
    """(new parameter, *new state) of one tensor, symbol or `TensorList`, all in the compute dtype, before rounding.

    Args:
        plan: the rule and the options.
        h: scalars by name.
        grad, param: tensors of one shape, in any floating dtype.
        state: the values of the rule's state, in any floating dtype. A new state of None means: as it was.
    """
    weight, grad = entering(plan, h, grad, param)
    state = [s.to(plan.dtype) for s in state]
    update, *new_state = plan.rule.fn(grad, weight, *state, h)
    if plan.rule.returns_step_size:
        size, *new_state = new_state
    # A state that moves on to another's place must not be overwritten before it is read.
    new_state = [new.clone() if any(new is old for old in state) else new for new in new_state]
    if plan.caution:
        # Cautious Optimizers, arXiv 2411.16085: drop what points against the gradient, keep the mean step size.
        mask = ((update * grad) > 0).to(plan.dtype)
        update = update * (mask / mask.mean().clamp(min=1e-3))
    new = weight - update if plan.rule.returns_step_size else add_scaled(weight, update, -h.lr)
    if plan.decay in (Decay.DECOUPLED, Decay.DECOUPLED_AFTER, Decay.FULLY_DECOUPLED):
        decayed = new if plan.decay is Decay.DECOUPLED_AFTER else weight
        new = add_scaled(new, decayed, -(size * h.weight_decay) if plan.rule.returns_step_size else -h.decay)
    return (new, *new_state)
