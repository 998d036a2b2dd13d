"""Adagrad."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor

from hfoptim.engine import ELEMENT, Decay, Group, Name, Rule, RuleOptimizer, Scalars, hyper
from hfoptim.optimizers.shared.filled import filled


def _per_step(t: int, group: Group) -> Scalars:
    return {"eps": group["eps"], "lr": float(group["lr"]) / (1.0 + (t - 1) * group["lr_decay"])}


def adagrad_step(grad: Any, param: Any, total: Any, h: Any) -> tuple[Any, Any]:
    """The gradient over the root of the sum of all squares so far."""
    total = total + grad * grad
    return grad / (total.sqrt() + h.eps), total


@cache
def adagrad(initial: float) -> Rule:
    """The rule whose sum of squares begins at `initial`."""
    return Rule(adagrad_step, ELEMENT, {"sum": filled(initial)}, _per_step, sparse=True)


class Adagrad(RuleOptimizer):
    """Steps divided by the root of the sum of all squared gradients, with torch.optim.Adagrad's numbers.

    With g the gradient, p the parameter, t the step:

        g = g + weight_decay p
        s = s + g^2                                     (s begins at initial_accumulator_value)
        p = p - lr / (1 + (t - 1) lr_decay) g / (sqrt(s) + eps)

    State: `sum` (s). A state_dict of torch.optim.Adagrad loads. (timm's factory gives it eps 1e-8; optax has eps inside
    the root.) Gradients may be sparse, without weight decay: only the rows that they have move, and only their s.

    Raises:
        TypeError: from `step()`, a sparse gradient with weight decay.

    Source:
        Duchi, Hazan and Singer, https://jmlr.org/papers/v12/duchi11a.html; torch.optim.Adagrad.
    """

    decay = Decay.COUPLED
    names = (Name("adagrad"),)
    peer_state = {"state1": "sum"}  # of bitsandbytes
    lr: float = hyper(1e-2, "learning rate")
    lr_decay: float = hyper(0.0, "decay of the learning rate")
    weight_decay: float = hyper(0.0, "L2 penalty")
    initial_accumulator_value: float = hyper(0.0, "first value of the sum")
    eps: float = hyper(1e-10, "added to the root of the sum")

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        return adagrad(group["initial_accumulator_value"])
