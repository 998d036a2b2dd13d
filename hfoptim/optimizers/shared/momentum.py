"""Gradient descent with momentum: its rules, and what the optimizers made of them share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hfoptim.engine import ELEMENT, Group, Rule, RuleOptimizer, Scalars, add_scaled, rule, zeros
from hfoptim.engine.checks import plain


@rule(ELEMENT, sparse=True)
def sgd(grad: Any, param: Any, h: Any) -> tuple[Any]:
    """The gradient."""
    return (grad,)


def _momentum(t: int, group: Group) -> Scalars:
    # The first step takes the gradient whole: a weight, not a branch.
    return {"momentum": group["momentum"], "weight": 1.0 - group["dampening"] if t > 1 else 1.0}


@rule(ELEMENT, per_step=_momentum, momentum_buffer=zeros)
def sgd_momentum(grad: Any, param: Any, momentum_buffer: Any, h: Any) -> tuple[Any, Any]:
    """Heavy ball (Polyak): the buffer is the update."""
    momentum_buffer = add_scaled(momentum_buffer * h.momentum, grad, h.weight)
    return momentum_buffer, momentum_buffer


@rule(ELEMENT, per_step=_momentum, momentum_buffer=zeros)
def sgd_nesterov(grad: Any, param: Any, momentum_buffer: Any, h: Any) -> tuple[Any, Any]:
    """Nesterov's momentum in the form of Sutskever et al.: one step ahead of the buffer."""
    momentum_buffer = add_scaled(momentum_buffer * h.momentum, grad, h.weight)
    return add_scaled(grad, momentum_buffer, h.momentum), momentum_buffer


class Momentum(RuleOptimizer):
    """An optimizer with torch.optim.SGD's options `momentum`, `dampening` and `nesterov`."""

    rule = sgd_momentum

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ValueError(
                f"nesterov=True needs momentum > 0 and dampening=0, got momentum={group['momentum']} and "
                f"dampening={group['dampening']}"
            )

    @classmethod
    def defaults_by_name(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Without momentum there is no Nesterov momentum, whatever the name stands for."""
        return {"nesterov": False} if plain(given.get("momentum")) == 0 else {}

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        if group["momentum"] == 0:
            return sgd
        return sgd_nesterov if group["nesterov"] else sgd_momentum

    def adapt_loaded(self, param: Tensor, state: dict[str, Any], group: dict[str, Any]) -> dict[str, Any]:
        # torch.optim.SGD counts no steps and writes None before the first one; a buffer means there was one.
        if "step" in state or set(state) - {"momentum_buffer"}:
            return state
        return {} if state.get("momentum_buffer") is None else {"step": 1.0, **state}
