"""Gravity."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Any

from hfoptim.engine import TENSOR, Group, Name, RuleOptimizer, RunState, Scalars, ema, hyper, noise, rule
from hfoptim.optimizers.shared.decay_options import OWN_DECAY


def _per_step(t: int, group: Group) -> Scalars:
    base = group["base_lr"]
    begins = group["alpha"] / base if base else 0.0
    return {"alpha": 1.0 - (group["beta"] * t + 1.0) / (t + 2.0), "begins": begins if t == 1 else 1.0}


# Passes over memory, in tensors of the parameter's size:
#   the largest magnitude: read grad                                            1
#   update: read grad, param, v; write param, v                                 5
@rule(TENSOR, per_step=_per_step, v=noise)
def gravity(grad: Any, param: Any, v: Any, h: Any) -> tuple[Any, Any]:
    """A velocity that takes in gradients, the large ones among the entries of a tensor weakened."""
    v = ema(v * h.begins, grad / ((grad * grad.abs().amax()).square() + 1.0), h.alpha)
    return v, v


class Gravity(RuleOptimizer):
    """Momentum of gradients whose large entries are weakened, like a ball on a slope that is not pulled any faster.

    With g the gradient, p the parameter, t the step, b = (beta t + 1) / (t + 2):

        z = g / (1 + (g max|g|)^2)                              (the largest magnitude in the tensor)
        v = b v + (1 - b) z
        p = p - lr v

    v begins as normal noise of standard deviation alpha / lr, with the lr that the group was made with, so that the
    first steps are as long as alpha; alpha=0, and a group made with lr 0, begin at 0. The noise of an entry goes by its
    index and by the place of its parameter in the optimizer: the same on every rank, and after a checkpoint. State:
    `v`, which is not kept in fewer bits.

    Has the author's numbers. pytorch_optimizer 4.1 has them, too, but for its default of lr, 1e-2, and the noise: from
    torch's generator, by the lr of the first step, which is 0 under a warm-up.

    Raises:
        TypeError: a complex parameter.

    Source:
        Bahrami and Zadeh, arXiv 2101.09192; dariush-bahrami/gravity.optimizer.
    """

    rule = gravity
    names = (Name("gravity"),)
    run_state = RunState({"base_lr": lambda options: float(options["lr"])}, lambda state, totals, group: {})
    lr: float = hyper(0.1, "learning rate")
    alpha: float = hyper(0.01, "standard deviation of the first step")
    beta: float = hyper(0.9, "decay rate of the velocity in the long run", most=1.0)
    _: KW_ONLY
    weight_decay: float = OWN_DECAY
