"""EMA-Nesterov: steps that begin ahead of the weights, along an average of the ways they went."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim import LBFGS, Optimizer

from hfoptim.engine import unwrap_all
from hfoptim.engine.ambient import leave_undisturbed
from hfoptim.engine.checks import flag, integer, number
from hfoptim.engine.distributed.dtensor import local
from hfoptim.wrappers.two_modes import TwoModes

WEIGHTS, WAY = "ema_nesterov_weights", "ema_nesterov_average"


class EMANesterov(TwoModes):
    """Nesterov's lookahead along an exponential average of the weights' steps, around any optimizer.

    With x the weights, m the average, at first 0, and t the number of the step, from 0:

        y = x + beta m                        the parameter: where the gradient is taken
        x' = step of the inner optimizer from y
        m = lookahead_ema m + (1 - lookahead_ema) (x' - x);  x = x'

        beta = lookahead_stepsize lr / initial_lr     (warmup_step <= t < rest_step; without
        beta = lookahead_stepsize                      use_scheduled_lookahead_stepsize)
        beta = 0                                      (otherwise)

    `initial_lr` is what schedules of torch and of hfoptim put into the groups; without a schedule the quotient is 1.
    The parameter holds y while it is trained, and x from `eval()` to `train()`: call `eval()` before evaluating and
    before saving the model, and `train()` before training goes on. transformers' Trainer does so for optimizers chosen
    by hfoptim's names. Weight decay and momentum are the inner optimizer's business. Two tensors for each parameter, in
    float32 for parameters of fewer bits.

    By name: `ema_nesterov_adamw`, with the options `ema_nesterov_stepsize`, `ema_nesterov_decay`,
    `ema_nesterov_scheduled`, `ema_nesterov_warmup` and `ema_nesterov_rest`; they lie in the parameter groups and may
    differ between them or change.

    Args:
        optimizer: any torch optimizer without an average of its own.
        lookahead_stepsize (default 0.5): how far ahead, in averages, at least 0.
        lookahead_ema (0.99): decay rate of the average, in [0, 1).
        use_scheduled_lookahead_stepsize (True): let it rise and fall with the learning rate.
        warmup_step (0): steps before the first from ahead.
        rest_step (0): the first step that is not from ahead any more; 0: none.

    State: x as `ema_nesterov_weights`, m as `ema_nesterov_average`; in the groups `ema_nesterov_step`.

    Raises:
        TypeError: no optimizer, or an option of the wrong type.
        ValueError: an option out of range, or an inner LBFGS, or an optimizer with an evaluation mode of its own.
        RuntimeError: from `step()` in evaluation mode.

    Source:
        Yau et al., EMA-Nesterov: Stabilizing Nesterov's Lookahead for Accelerated Deep Learning Optimization, arXiv
        2605.25395, and its authors' class EMA_Nesterov. There `nesterov_step()` goes ahead before each forward pass, by
        that step's lr; here `step()` goes ahead for the next one, by the lr that there is then, one step older. There
        one quotient of lr holds for all groups, and a rest_step of 0 is no lookahead at all.
    """

    by_name = {
        "ema_nesterov_stepsize": 0.5,
        "ema_nesterov_decay": 0.99,
        "ema_nesterov_scheduled": True,
        "ema_nesterov_warmup": 0,
        "ema_nesterov_rest": 0,
    }
    counters = {"ema_nesterov_step": 0, **TwoModes.counters}
    keeps = {WEIGHTS: False, WAY: False, **TwoModes.keeps}
    keeps_exact = frozenset({WEIGHTS, WAY})
    expects = WEIGHTS, lambda group: group.get("ema_nesterov_step", 0) > 0

    def __init__(
        self,
        optimizer: Optimizer,
        lookahead_stepsize: float = 0.5,
        lookahead_ema: float = 0.99,
        *,
        use_scheduled_lookahead_stepsize: bool = True,
        warmup_step: int = 0,
        rest_step: int = 0,
    ) -> None:
        given = (lookahead_stepsize, lookahead_ema, use_scheduled_lookahead_stepsize, warmup_step, rest_step)
        super().__init__(optimizer, dict(zip(self.by_name, given, strict=True)))

    def check_inner(self, optimizer: Optimizer) -> None:
        super().check_inner(optimizer)
        if unwrap_all(optimizer, LBFGS):
            raise ValueError("LBFGS takes its curvature from where its last step ended, and EMANesterov goes elsewhere")

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        group["ema_nesterov_stepsize"] = number("ema_nesterov_stepsize", group["ema_nesterov_stepsize"])
        group["ema_nesterov_decay"] = number("ema_nesterov_decay", group["ema_nesterov_decay"], 0.0, 1.0)
        flag("ema_nesterov_scheduled", group["ema_nesterov_scheduled"])
        group["ema_nesterov_scheduled"] = bool(group["ema_nesterov_scheduled"])
        for name in ("ema_nesterov_warmup", "ema_nesterov_rest", "ema_nesterov_step"):
            group[name] = integer(name, group[name], 0)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step of the inner optimizer, and go ahead of where it ends.

        Args:
            closure: handed to the inner optimizer.

        Returns:
            What the inner optimizer returns.

        Raises:
            RuntimeError: the parameters hold what is for evaluation.
        """
        self.check_training()
        self._begin()
        loss = self._inner.step(closure)
        if not self.only_made_state("ema_nesterov_step"):
            for group in self.param_groups:
                group["ema_nesterov_step"] += 1
                self._go_ahead(group)
        return loss

    @leave_undisturbed
    @torch.no_grad()
    def _begin(self) -> None:
        """Make what parameters that have none are to have."""
        for group in self.param_groups:
            for param in group["params"]:
                if param.requires_grad and param not in self.kept[WEIGHTS]:
                    self.refuse_lossy(param, group)
                    weights = self.exact_copy(param)
                    self.kept[WEIGHTS][param], self.kept[WAY][param] = weights, torch.zeros_like(weights)

    @_disable_dynamo  # its numbers change from step to step, and would compile anew
    @leave_undisturbed
    @torch.no_grad()
    def _go_ahead(self, group: Mapping[str, Any]) -> None:
        params = [param for param in group["params"] if param in self.kept[WEIGHTS]]
        if not params:
            return
        olds = [local(self.kept[WEIGHTS][param]) for param in params]
        ways = [local(self.kept[WAY][param]) for param in params]
        news = [self.exact(param) for param in params]
        torch._foreach_lerp_(ways, torch._foreach_sub(news, olds), 1.0 - group["ema_nesterov_decay"])
        torch._foreach_copy_(olds, news)
        beta = _beta(group)
        if beta:
            torch._foreach_add_(news, ways, alpha=beta)
            for param, ahead in zip(params, news, strict=True):
                self.write(param, ahead)

    def evaluated(self, param: Tensor, group: Mapping[str, Any]) -> Tensor | None:
        weights = self.kept[WEIGHTS].get(param)
        return None if weights is None else local(weights)


def _beta(group: Mapping[str, Any]) -> float:
    """How far ahead the step to come begins."""
    step, rest = group["ema_nesterov_step"], group["ema_nesterov_rest"]
    if step < group["ema_nesterov_warmup"] or (rest and step >= rest):
        return 0.0
    beta = float(group["ema_nesterov_stepsize"])
    if group["ema_nesterov_scheduled"] and "initial_lr" in group:
        first = float(group["initial_lr"])
        beta *= float(group["lr"]) / first if first else 0.0
    return beta
