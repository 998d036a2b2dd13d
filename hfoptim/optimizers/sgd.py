"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from hfoptim.engine import ELEMENT, Decay, EngineOptions, Rule, add_scaled, rule, zeros
from hfoptim.engine.checks import flag, number, plain
from hfoptim.optimizers.decoupling import FullyDecoupling


@rule(ELEMENT)
def sgd(grad: Any, param: Any, h: Any) -> tuple[Any]:
    """The gradient."""
    return (grad,)


def _momentum(t: int, group: Mapping[str, Any]) -> dict[str, float]:
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


class SGD(FullyDecoupling):
    """Stochastic gradient descent, with momentum, dampening and Nesterov's form, with torch.optim.SGD's numbers.

    With g the gradient, p the parameter:

        g = g + weight_decay p
        b = momentum b + (1 - dampening) g              (first step: b = g)
        p = p - lr b, or with nesterov p - lr (g + momentum b)

    or, with the gradient as it is, p - ... - lr weight_decay p under `decouple_wd` (SGDW), and
    p - ... - lr / max_lr weight_decay p under `decouple_lr`.

    State: `momentum_buffer` (b) if momentum is not 0. A state_dict of torch.optim.SGD loads.

    Args:
        params: parameters, named parameters, or dicts that define parameter groups.
        lr (default 1e-3): learning rate.
        momentum (0.0): decay rate of the buffer, >= 0.
        dampening (0.0): share of the gradient kept out of the buffer, in [0, 1].
        weight_decay (0.0): L2 penalty, or the coefficient of the decay that the options below select.
        nesterov (False): Nesterov's momentum; needs momentum > 0 and no dampening.
        decouple_wd (False): decoupled weight decay.
        decouple_lr (False): fully decoupled weight decay; wants a much smaller `weight_decay`, since lr no longer
            multiplies it.
        max_lr (None): peak learning rate of the schedule, for `decouple_lr`; None takes the `lr` given here.
        **options: `maximize`, `foreach`, `fused`, `caution`, `kahan_sum`, see `RuleOptimizer`.

    Raises:
        ValueError: a hyper-parameter out of range, nesterov without momentum or with dampening, or no parameters.
        TypeError: a hyper-parameter of the wrong type, or an unknown option.

    Source:
        Sutskever et al., On the importance of initialization and momentum in deep learning, ICML 2013; torch.optim.SGD;
        the other weight decays: Loshchilov and Hutter, arXiv 1711.05101, and optimi.SGD 0.3.
    """

    rule = sgd_momentum
    decay = Decay.COUPLED
    absent_from_peers = FullyDecoupling.absent_from_peers | {"decouple_wd"}

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        decouple_wd: bool = False,
        decouple_lr: bool = False,
        max_lr: float | None = None,
        **options: Unpack[EngineOptions],
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "decouple_wd": decouple_wd,
            "decouple_lr": decouple_lr,
            "max_lr": max_lr,
        }
        super().__init__(params, defaults, **options)

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        group["dampening"] = number("dampening", group["dampening"], 0.0, 1.0, high_open=False)
        flag("nesterov", group["nesterov"])
        if "decouple_wd" in self.defaults:
            flag("decouple_wd", group["decouple_wd"])
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ValueError(
                f"nesterov=True needs momentum > 0 and dampening=0, got momentum={group['momentum']} and "
                f"dampening={group['dampening']}"
            )

    def decay_for(self, group: dict[str, Any]) -> Decay:
        decay = super().decay_for(group)
        return Decay.DECOUPLED if decay is Decay.COUPLED and group.get("decouple_wd") else decay

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
