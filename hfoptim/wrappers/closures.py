"""Closures, of wrappers that evaluate the model before anything moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import LBFGS

from hfoptim.engine import RuleOptimizer, unwrap_all
from hfoptim.engine.optimizer import take_loss
from hfoptim.wrappers.two_points import TwoPoints


def evaluate(optimizer: Any, closure: Callable[[], Any] | None) -> Any:
    """Call a step's closure once, with gradients enabled, and tell its loss to those inside that want it.

    Returns:
        The closure's loss, or None.
    """
    if closure is None:
        return None
    with torch.enable_grad():
        loss = closure()
    take_loss(optimizer, loss)
    return loss


def refuse_those_with_closures(optimizer: Any, why: str) -> None:
    """Raise a ValueError if an optimizer, or one inside of it, evaluates the model in its step.

    So do LBFGS, SAM, SVRG, bSAM, and MARS in its exact form.
    """
    found = unwrap_all(optimizer, (LBFGS, TwoPoints))
    if found:
        raise ValueError(f"{type(found[0]).__name__} evaluates the model anew in its step, {why}")
    for each in unwrap_all(optimizer, RuleOptimizer):
        if each.calls_closure_twice:
            raise ValueError(f"{each.two_points} evaluates the model at two points, {why}")
