"""How an update reaches a parameter: sign, weight decay, learning rate, caution, compensated rounding.

Written once, for tensors and for `TensorList`s, eager and traced.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from hfoptim.engine.rule import Rule, Scope, add_scaled


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
    """

    rule: Rule
    decay: Decay
    dtype: torch.dtype
    maximize: bool = False
    caution: bool = False
    kahan: bool = False

    @property
    def scope(self) -> Scope:
        """The rule's scope; caution needs a mean over the tensor."""
        return Scope.TENSOR if self.caution and self.rule.scope is Scope.ELEMENT else self.rule.scope


@cache
def plan_of(rule: Rule, decay: Decay, dtype: torch.dtype, maximize: bool, caution: bool, kahan: bool) -> Plan:
    """The plan with these options; the same object every time."""
    return Plan(rule, decay, dtype, maximize, caution, kahan)


def decay_scalars(plan: Plan, group: Mapping[str, Any]) -> dict[str, float]:
    """The scalars that `advance` needs for a plan's decay placement."""
    decay = plan.decay
    if decay is Decay.NONE:
        return {}
    weight_decay = float(group["weight_decay"])
    if decay in (Decay.COUPLED, Decay.INSIDE) or plan.rule.scaled:
        return {"weight_decay": weight_decay}
    lr = float(group["lr"])
    if decay in (Decay.DECOUPLED, Decay.DECOUPLED_AFTER):
        return {"decay": lr * weight_decay}
    max_lr = float(group["max_lr"])
    return {"decay": weight_decay * lr / max_lr if max_lr else 0.0}


def step_in_place(plan: Plan, h: Any, row: Any) -> None:
    """One step of one parameter, in place; `row` is a row of a `Bucket`."""
    param, grad, *state = row
    compensation = state.pop() if plan.kahan else None
    new_param, new_compensation, *new_state = advance(plan, h, grad, param, state, compensation)
    param.copy_(new_param)
    if compensation is not None:
        compensation.copy_(new_compensation)
    for old, new in zip(state, new_state, strict=True):
        if new is not None:
            old.copy_(new)


def entering(plan: Plan, h: Any, grad: Any, param: Any) -> tuple[Any, Any]:
    """(parameter, gradient) as a rule sees them: in the compute dtype, signed, with coupled decay."""
    weight, grad = param.to(plan.dtype), grad.to(plan.dtype)
    if plan.maximize:
        grad = -grad
    if plan.decay is Decay.COUPLED:
        grad = add_scaled(grad, weight, h.weight_decay)
    return weight, grad


def advance(plan: Plan, h: Any, grad: Any, param: Any, state: Any, compensation: Any = None) -> tuple[Any, ...]:
    """One step of one tensor (or `TensorList`), out of place.

    Args:
        plan: the rule and the options.
        h: scalars by name.
        grad, param: tensors of one shape, in any floating dtype.
        state: the rule's state tensors, in the dtype they are kept in.
        compensation: what rounding cost the parameter so far (Kahan), in the parameter's dtype, or None.

    Returns:
        (new parameter in its own dtype, new compensation or None, *new state in the compute dtype or None).
    """
    dtype = plan.dtype
    weight, grad = entering(plan, h, grad, param)
    update, *new_state = plan.rule.fn(grad, weight, *(s.to(dtype) for s in state), h)
    if plan.rule.scaled:
        size, *new_state = new_state
    if plan.caution:
        # Cautious Optimizers, arXiv 2411.16085: drop what points against the gradient, keep the mean step size.
        mask = ((update * grad) > 0).to(dtype)
        update = update * (mask / mask.mean().clamp(min=1e-3))
    moved = weight - update if plan.rule.scaled else add_scaled(weight, update, -h.lr)
    if plan.decay in (Decay.DECOUPLED, Decay.DECOUPLED_AFTER, Decay.FULLY_DECOUPLED):
        decayed = moved if plan.decay is Decay.DECOUPLED_AFTER else weight
        moved = add_scaled(moved, decayed, -(size * h.weight_decay) if plan.rule.scaled else -h.decay)
    if not plan.kahan:
        return (moved.to(param.dtype), None, *new_state)
    moved = moved + compensation.to(dtype)
    rounded = moved.to(param.dtype)
    return (rounded, (moved - rounded.to(dtype)).to(param.dtype), *new_state)
