"""Tiger: the sign of the momentum, as long as the weights are large."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor

from hfoptim.engine import (
    ELEMENT,
    TENSOR,
    Decay,
    Group,
    Name,
    Rule,
    RuleOptimizer,
    Scalars,
    add_scaled,
    ema,
    hyper,
    zeros,
)
from hfoptim.engine.rule import rms


@cache
def tiger(scaled_by: str) -> Rule:
    """The rule for one kind of parameter.

    Args:
        scaled_by: what multiplies the learning rate: "half", the root mean square of each "row" or of the whole
            "tensor", or nothing ("").
    """

    def per_step(t: int, group: Group) -> Scalars:
        lr = float(group["lr"]) * (0.5 if scaled_by == "half" else 1.0)
        return {"alpha": 1.0 - group["beta"], "inside": float(group["weight_decay"]), "lr": lr}

    def fn(grad: Any, param: Any, exp_avg: Any, h: Any) -> tuple[Any, Any]:
        exp_avg = ema(exp_avg, grad, h.alpha)
        update = add_scaled(exp_avg.sign(), param, h.inside)
        if scaled_by == "row":
            update = update * (param * param).mean(-1, keepdim=True).sqrt()
        elif scaled_by == "tensor":
            update = update * rms(param)
        return update, exp_avg

    fn.__name__ = "tiger"
    return Rule(fn, TENSOR if scaled_by in ("row", "tensor") else ELEMENT, {"exp_avg": zeros}, per_step)


class Tiger(RuleOptimizer):
    """Sign of the momentum times the size of the weights: a step changes a matrix by a share lr of itself.

    With g the gradient, p the parameter:

        m = beta m + (1 - beta) g
        s = root mean square of p; of each row in embeddings; 1/2 in vectors
        p = p - lr s (sign(m) + weight_decay p)

    Embeddings are matrices with "embed" in their name. A matrix of zeros stays one. With scale_parameter=False s is 1
    everywhere, which is Signum (`signsgd`) and what pytorch_optimizer calls Tiger. State: `exp_avg` (m).

    Follows the author, for whom vectors are those called bias, beta or gamma and are not decayed; here groups decide.
    His class also leaves out a gradient with NaN and shrinks the weights by 1 % then.

    Raises:
        TypeError: a complex matrix, with scale_parameter.

    Source:
        Su, https://kexue.fm/archives/9512; bojone/tiger; pytorch_optimizer 4.1, `Tiger`.
    """

    decay = Decay.INSIDE
    names = (Name("tiger"),)
    lr: float = hyper(1e-3, "learning rate")
    beta: float = hyper(0.965, "decay rate of m", below=1.0)
    weight_decay: float = hyper(0.01, "decoupled weight decay, per step and unit of what multiplies the sign")
    scale_parameter: bool = hyper(True, "multiply the step by the size of the weights")

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        if not group["scale_parameter"]:
            return tiger("")
        if param.ndim < 2:
            return tiger("half")
        return tiger("row" if param.ndim == 2 and "embed" in (self.name_of(param, group) or "") else "tensor")
