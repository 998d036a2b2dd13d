"""RMSprop, as torch has it and as TensorFlow has it: one rule, two classes."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor

from hfoptim.engine import ELEMENT, Decay, Group, Name, Rule, RuleOptimizer, Scalars, add_scaled, ema, hyper, zeros
from hfoptim.optimizers.shared.filled import filled
from hfoptim.optimizers.shared.peer_flags import any_value


def _per_step(t: int, group: Group) -> Scalars:
    """`size` multiplies what enters the momentum, `lr` what leaves it: one of them is the learning rate."""
    scalars: Scalars = {"alpha": 1.0 - group["alpha"], "eps": group["eps"], "momentum": group["momentum"], "size": 1.0}
    if group["momentum"] and group.get("lr_in_momentum"):
        scalars |= {"size": float(group["lr"]), "lr": 1.0}
    return scalars


@cache
def rmsprop(centered: bool, momentum: bool, tensorflow: bool) -> Rule:
    """The rule for one choice of options.

    Args:
        centered: divide by the deviation from the average gradient.
        momentum: the normalised gradient goes through a momentum.
        tensorflow: eps is inside of the root, and the average of squares begins at 1.
    """

    def fn(grad: Any, param: Any, square_avg: Any, *args: Any) -> tuple[Any, ...]:
        *rest, h = args
        square_avg = ema(square_avg, grad * grad, h.alpha)
        state, power = [square_avg], square_avg
        if centered:
            grad_avg = ema(rest[0], grad, h.alpha)
            # Where all gradients were alike, rounding may leave less than 0.
            power = (square_avg - grad_avg * grad_avg).clamp(min=0.0)
            state.append(grad_avg)
        update = grad / ((power + h.eps).sqrt() if tensorflow else power.sqrt() + h.eps)
        if momentum:
            update = add_scaled(rest[-1] * h.momentum, update, h.size)
            state.append(update)
        return (update, *state)

    fn.__name__ = "rmsprop"
    state = {"square_avg": filled(1.0 if tensorflow else 0.0)}
    state |= {"grad_avg": zeros} if centered else {}
    state |= {"momentum_buffer": zeros} if momentum else {}
    return Rule(fn, ELEMENT, state, _per_step)


class RMSprop(RuleOptimizer):
    """Steps divided by the root of a moving average of squared gradients, with torch.optim.RMSprop's numbers.

    With g the gradient, p the parameter:

        g = g + weight_decay p
        v = alpha v + (1 - alpha) g^2
        a = alpha a + (1 - alpha) g                     (centered; else a = 0)
        b = momentum b + g / (sqrt(v - a^2) + eps)
        p = p - lr b

    State: `square_avg` (v), `grad_avg` (a) if centered, `momentum_buffer` (b) if momentum is not 0. A state_dict of
    torch.optim.RMSprop loads. Where v - a^2 would be below 0 by rounding it is 0 here; torch's steps become NaN then.

    timm's factory gives it an alpha of 0.9.

    Source:
        Tieleman and Hinton, https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf; centered: Graves,
        arXiv 1308.0850; torch.optim.RMSprop.
    """

    decay = Decay.COUPLED
    names = (Name("rmsprop"),)
    peer_state = {"state1": "square_avg"}  # of bitsandbytes
    lr: float = hyper(1e-2, "learning rate")
    alpha: float = hyper(0.99, "decay rate of v and a", most=1.0)
    eps: float = hyper(1e-8, "added to the root")
    weight_decay: float = hyper(0.0, "L2 penalty")
    momentum: float = hyper(0.0, "decay rate of b")
    centered: bool = hyper(False, "divide by an estimate of the gradient's deviation, not of its size")

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        return rmsprop(group["centered"], group["momentum"] != 0, tensorflow=False)


class RMSpropTF(RuleOptimizer):
    """RMSprop with TensorFlow's numbers: eps inside of the root, an average that begins at 1, lr inside the momentum.

    With g the gradient, p the parameter, v = 1 at first:

        g = g + weight_decay p
        v = alpha v + (1 - alpha) g^2
        a = alpha a + (1 - alpha) g                     (centered; else a = 0)
        b = momentum b + lr g / sqrt(v - a^2 + eps)
        p = p - b

    With lr_in_momentum=False, lr multiplies b in the last line instead. Under `decoupled_decay` the gradient stays as
    it is, and p = p - b - lr weight_decay p.

    State: `square_avg` (v), `grad_avg` (a) if centered, `momentum_buffer` (b) if momentum is not 0. A state_dict of
    timm's RMSpropTF loads. Where v - a^2 would be below 0 by rounding it is 0 here. optax' rmsprop with
    initial_scale=1 has the same numbers.

    Source:
        Tieleman and Hinton, https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf; timm 1.0,
        `timm.optim.RMSpropTF`.
    """

    decay = Decay.COUPLED
    decoupled_by = "decoupled_decay"
    names = (
        Name("rmsproptf", options={"momentum": 0.9}),
        Name(
            "rmsproptfw",
            "TensorFlow's RMSprop with decoupled weight decay",
            options={"momentum": 0.9, "decoupled_decay": True},
        ),
        Name(
            "rmsproptfc",
            "TensorFlow's RMSprop with decoupled and corrected weight decay",
            options={"momentum": 0.9, "decoupled_decay": True, "corrected_weight_decay": True},
        ),
        Name("crmsproptf", "TensorFlow's RMSprop with caution", options={"momentum": 0.9, "caution": True}),
    )
    peer_flags = {"max_lr_snapshot": any_value}
    lr: float = hyper(1e-2, "learning rate")
    alpha: float = hyper(0.9, "decay rate of v and a", most=1.0)
    eps: float = hyper(1e-10, "added inside of the root")
    weight_decay: float = hyper(0.0, "L2 penalty, or decoupled weight decay, per step and unit of lr")
    momentum: float = hyper(0.0, "decay rate of b")
    centered: bool = hyper(False, "divide by an estimate of the gradient's deviation, not of its size")
    decoupled_decay: bool = hyper(False, "decoupled weight decay")
    lr_in_momentum: bool = hyper(True, "lr goes into b; False multiplies b by it")

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        return rmsprop(group["centered"], group["momentum"] != 0, tensorflow=True)
