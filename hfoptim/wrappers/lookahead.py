"""Lookahead: weights that follow an optimizer slowly, and pull it back to themselves every k steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from hfoptim.engine.ambient import leave_undisturbed
from hfoptim.engine.checks import integer, number
from hfoptim.engine.distributed.dtensor import local
from hfoptim.wrappers.wrapper import Wrapper

SLOW, SLOW_MOMENTUM = "lookahead_slow_buff", "lookahead_slow_momentum"
MOMENTA = ("momentum_buffer", "exp_avg")
PULLBACKS = ("none", "reset", "pullback")


class Lookahead(Wrapper):
    """Every k steps, moves slow weights a part of the way to the optimizer's weights, and those back to them.

    With p the parameter, which the inner optimizer moves, and s the slow weights, which begin as p:

        after each k-th step    s = s + alpha (p - s);  p = s

    The wrapper and the inner optimizer share parameter groups, state and defaults: schedules, Accelerate, the Trainer
    and GradScaler treat it like the inner one. `k` and `alpha` lie in the groups as `lookahead_k` and
    `lookahead_alpha`, where they may differ and be changed; a group's steps are counted there in `lookahead_step`. The
    slow weights have the parameter's dtype and layout, and are made at the first step.

    By name (`lookahead_adamw`) k is 6, as in timm; the options are `lookahead_k`, `lookahead_alpha` and
    `lookahead_pullback_momentum`.

    Args:
        optimizer: any torch optimizer.
        k (default 5): inner steps between two synchronisations, at least 1.
        alpha (0.5): part of the way that the slow weights go, in [0, 1].
        pullback_momentum ("none"): what becomes of the inner momentum (`momentum_buffer`, else `exp_avg`) when the
            weights are pulled back: "none" keeps it, "reset" sets it to zero, "pullback" treats it like the weights,
            with a slow momentum that begins as zero.

    Raises:
        TypeError: no optimizer, or an option of the wrong type.
        ValueError: an option out of range, or an inner Lookahead. From `step`: `pullback_momentum` asks for a momentum
            that the inner optimizer does not have.

    Source:
        Zhang et al., arXiv 1907.08610; the author's code (michaelrzhang/lookahead), which pytorch_optimizer follows,
        except that slow and inner momentum are two tensors, as pytorch_optimizer has them (in the author's code they
        become one). timm's slow weights begin at its first synchronisation, so that its first k steps are the inner
        optimizer's alone; torch_optimizer synchronises after the first step already. A checkpoint of timm's loads.
    """

    by_entries = True
    by_name = {"lookahead_k": 6, "lookahead_alpha": 0.5, "lookahead_pullback_momentum": "none"}
    counters = {"lookahead_step": 0}
    keeps = {SLOW: True, SLOW_MOMENTUM: False}
    # timm's state_dicts, which have no such option, have no slow weights before the first synchronisation.
    expects = SLOW, lambda group: group.get("lookahead_step", 0) > 0 and "lookahead_pullback_momentum" in group

    def __init__(self, optimizer: Optimizer, k: int = 5, alpha: float = 0.5, pullback_momentum: str = "none") -> None:
        own = {"lookahead_k": k, "lookahead_alpha": alpha, "lookahead_pullback_momentum": pullback_momentum}
        super().__init__(optimizer, own)

    def check_group(self, group: dict[str, Any]) -> None:
        group["lookahead_k"] = integer("lookahead_k", group["lookahead_k"], 1)
        group["lookahead_step"] = integer("lookahead_step", group["lookahead_step"], 0)
        group["lookahead_alpha"] = number("lookahead_alpha", group["lookahead_alpha"], 0.0, 1.0, high_open=False)
        pullback = group["lookahead_pullback_momentum"]
        if pullback not in PULLBACKS:
            raise ValueError(f"pullback_momentum={pullback!r} is unknown, expected one of {', '.join(PULLBACKS)}")
        group["lookahead_pullback_momentum"] = str(pullback)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step of the inner optimizer; after each k-th one of a group, synchronise it.

        Args:
            closure: handed to the inner optimizer.

        Returns:
            What the inner optimizer returns.
        """
        self._begin()
        loss = self._inner.step(closure)
        if self.only_made_state("lookahead_step"):
            return loss
        for group in self.stepping():
            group["lookahead_step"] += 1
            if group["lookahead_step"] % group["lookahead_k"] == 0:
                self._synchronise(group)
        return loss

    @leave_undisturbed
    def _begin(self) -> None:
        """Make the slow weights of parameters that have none."""
        slow = self.kept[SLOW]
        self.complete_groups()
        for group in self.param_groups:
            for param in group["params"]:
                if param.requires_grad and param not in slow:
                    slow[param] = param.detach().clone()

    def reads_state(self, own: Mapping[str, Any]) -> bool:
        return bool(own["lookahead_pullback_momentum"] != "none")

    def sync_lookahead(self) -> None:
        """Synchronise now, whatever the number of steps since the last time. timm's training loop asks for it."""
        self.complete_groups()
        for group in self.param_groups:
            self._synchronise(group)

    @leave_undisturbed
    @torch.no_grad()
    def _synchronise(self, group: Mapping[str, Any]) -> None:
        alpha = float(group["lookahead_alpha"])
        params = [param for param in group["params"] if param in self.kept[SLOW]]
        if group["lookahead_pullback_momentum"] != "none":
            self._pull_momentum(params, alpha, reset=group["lookahead_pullback_momentum"] == "reset")
        _meet(params, [self.kept[SLOW][param] for param in params], alpha)

    def _pull_momentum(self, params: list[Tensor], alpha: float, reset: bool) -> None:
        stepped = [param for param in params if self.state.get(param)]
        momenta = {param: _momentum(self.state[param]) for param in stepped}
        if any(momentum is None for momentum in momenta.values()):
            raise ValueError(
                f"pullback_momentum needs a momentum ({' or '.join(MOMENTA)}), and {type(self._inner).__name__} "
                f"keeps none; use pullback_momentum='none'"
            )
        if reset:
            for momentum in momenta.values():
                momentum.zero_()
            return
        slow = self.kept[SLOW_MOMENTUM]
        for param, momentum in momenta.items():
            slow[param] = slow[param].to(momentum.dtype) if param in slow else torch.zeros_like(momentum)
        _meet(list(momenta.values()), [slow[param] for param in momenta], alpha)


def _momentum(state: Mapping[str, Any]) -> Any:
    return next((state[name] for name in MOMENTA if isinstance(state.get(name), Tensor)), None)


def _meet(fast: list[Tensor], slow: list[Tensor], alpha: float) -> None:
    """Move the slow tensors the part `alpha` of the way, and put the fast ones there."""
    if fast:
        fast, slow = [local(tensor) for tensor in fast], [local(tensor) for tensor in slow]
        torch._foreach_lerp_(slow, fast, alpha)
        torch._foreach_copy_(fast, slow)
