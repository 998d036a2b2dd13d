"""ALI-G: gradient descent with the step size that would bring the loss to 0."""

from __future__ import annotations

from dataclasses import KW_ONLY
from functools import cache
from typing import Any

from torch import Tensor

from hfoptim.engine import ELEMENT, Group, Name, Probe, Rule, RuleOptimizer, RunState, Scalars, hyper, zeros
from hfoptim.engine.rule import add_scaled
from hfoptim.optimizers.shared.clipping import squared_norm


def _advance(state: Group, totals: Group, group: Group) -> dict[str, Any]:
    size = totals["loss"] / (totals["grad_sq"] + group["eps"])
    return {"step_size": size.clamp(max=float(group["lr"]))}


def _per_step(t: int, group: Group, **totals: Any) -> Scalars:
    size = group["step_size"]
    decay = {"decay": size * group["weight_decay"], "momentum": group["momentum"]}
    # Buffers hold steps, or sums of gradients that today's step size is for.
    return {**decay, "lr": size, "size": 1.0} if group["adjusted_momentum"] else {**decay, "lr": 1.0, "size": size}


@cache
def alig(momentum: bool) -> Rule:
    """The rule with or without momentum."""

    def plain(grad: Any, param: Any, h: Any) -> tuple[Any]:
        return (grad * h.size,)

    def nesterov(grad: Any, param: Any, momentum_buffer: Any, h: Any) -> tuple[Any, Any]:
        step = grad * h.size
        momentum_buffer = momentum_buffer * h.momentum - step
        return add_scaled(step, momentum_buffer, -h.momentum), momentum_buffer

    fn, state = (nesterov, {"momentum_buffer": zeros}) if momentum else (plain, {})
    return Rule(fn, ELEMENT, state, _per_step, Probe(squared_norm))


class AliG(RuleOptimizer):
    """Gradient descent with the loss over the gradient's squared norm as step size, for losses that can reach 0.

    With L the loss, G all gradients together, g the gradient, p the parameter:

        s = min(lr, L / (|G|^2 + eps))
        b = momentum b - s g                                     (adjusted_momentum: b = momentum b - g)
        p = p - s g + momentum b - s weight_decay p              (adjusted_momentum: momentum s b)

    Needs the loss: `step(loss=loss.detach())`, `step(closure)`, or `add_loss(loss)` before `step()`; the Trainer tells
    it. State: `momentum_buffer` (b) if momentum is not 0; in the groups `step_size` (s). Under `maximize` L is the loss
    told with the other sign, so that 0 is the most it can reach.

    The author's `max_lr` is lr here, and his class has none by default. His projection onto a ball in place of weight
    decay is the caller's business. pytorch_optimizer 4.1 has an eps of 1e-6 that cannot be changed.

    Source:
        Berrada, Zisserman and Kumar, arXiv 1906.05661; oval-group/ali-g.
    """

    needs_loss = True
    run_state = RunState({"step_size": 0.0}, _advance, totals=("grad_sq",))
    names = (
        Name("alig"),
        Name(
            "polyak_sgd",
            "Gradient descent with Polyak's step size, 1 at most",
            "https://arxiv.org/abs/2002.10542",
            {"lr": 1.0, "eps": 1e-30},
        ),
    )
    lr: float = hyper(0.1, "largest step size")
    momentum: float = hyper(0.0, "Nesterov's momentum", below=1.0)
    eps: float = hyper(1e-5, "added to the squared norm")
    adjusted_momentum: bool = hyper(False, "the buffer sums gradients, and the step size of today is for all of it")
    _: KW_ONLY
    weight_decay: float = hyper(0.0, "decoupled weight decay, per step and unit of the step size")

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        return alig(group["momentum"] != 0.0)
