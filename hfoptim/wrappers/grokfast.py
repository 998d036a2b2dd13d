"""GrokFast: gradients whose slow part is amplified before an optimizer sees them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim import Optimizer

from hfoptim.engine.ambient import leave_undisturbed
from hfoptim.engine.checks import dense, integer, number
from hfoptim.engine.distributed.dtensor import aligned, local
from hfoptim.engine.storage import exact_dtype
from hfoptim.wrappers.closures import evaluate, refuse_those_with_closures
from hfoptim.wrappers.wrapper import Wrapper, refuse_second_order

AVERAGE = "grokfast_average"


class GrokFast(Wrapper):
    """Adds an average of the gradients, times a factor, to each gradient before the inner optimizer's step.

    With g the gradient:

        m = alpha m + (1 - alpha) g,  at first m = g
        g = g + lamb m

    The parameters' `.grad` is changed in place, as gradient clipping does it. The first `after_step` steps of a group
    go as without it. One tensor of the parameter's shape, in float32 for gradients of fewer bits. As gradients grow by
    the factor 1 + lamb, optimizers that take them in their length (SGD) want a learning rate so much lower.

    By name: `grokfast_adamw`, with the options `grokfast_alpha`, `grokfast_lamb` and `grokfast_after_step`. They lie in
    the parameter groups and may differ between them or change.

    Args:
        optimizer: any torch optimizer that evaluates no model in its step.
        alpha (default 0.98): decay rate of the average, in [0, 1].
        lamb (2.0): factor of the average, at least 0.
        after_step (0): steps before the first filtered one.

    Raises:
        TypeError: no optimizer, or an option of the wrong type; from `step()`, a sparse gradient.
        ValueError: an option out of range, or an inner optimizer that takes closures, or gradients with a graph.

    Source:
        Lee et al., arXiv 2405.20233 (Grokfast-EMA); the numbers are those of gradfilter_ema of ironjr/grokfast and of
        pytorch_optimizer. pytorch_optimizer's GrokFastAdamW is `grokfast_adamw` with lr / (1 + lamb), and with
        the root of the second moment limited from below by eps, in place of eps added to it.
    """

    by_name = {"grokfast_alpha": 0.98, "grokfast_lamb": 2.0, "grokfast_after_step": 0}
    counters = {"grokfast_step": 0}
    keeps = {AVERAGE: False}
    keeps_exact = frozenset({AVERAGE})
    expects = AVERAGE, lambda group: group.get("grokfast_step", 0) > 0

    def __init__(self, optimizer: Optimizer, alpha: float = 0.98, lamb: float = 2.0, after_step: int = 0) -> None:
        super().__init__(optimizer, dict(zip(self.by_name, (alpha, lamb, after_step), strict=True)))

    def check_inner(self, optimizer: Optimizer) -> None:
        refuse_those_with_closures(optimizer, "with gradients that GrokFast has not seen")
        refuse_second_order(self, optimizer)

    def check_group(self, group: dict[str, Any]) -> None:
        group["grokfast_alpha"] = number("grokfast_alpha", group["grokfast_alpha"], 0.0, 1.0, high_open=False)
        group["grokfast_lamb"] = number("grokfast_lamb", group["grokfast_lamb"])
        for name in ("grokfast_after_step", "grokfast_step"):
            group[name] = integer(name, group[name], 0)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Amplify the slow part of the gradients, and take one step of the inner optimizer.

        Args:
            closure: re-evaluates the model and returns the loss; called once, with gradients enabled.

        Returns:
            The closure's loss, or None.
        """
        self.complete_groups()
        loss = evaluate(self, closure)
        self._filter()
        self._inner.step()
        if not self.only_made_state("grokfast_step"):
            for group in self.param_groups:
                group["grokfast_step"] += 1
        return loss

    @_disable_dynamo  # its numbers change from step to step, and would compile anew
    @leave_undisturbed
    @torch.no_grad()
    def _filter(self) -> None:
        kept = self.kept[AVERAGE]
        for index, group in enumerate(self.param_groups):
            grads: list[Tensor] = []
            averages: list[Tensor] = []
            for position, param in enumerate(group["params"]):
                if param.grad is None:
                    continue
                dense("GrokFast", param.grad, group, index, position)
                param.grad = aligned(param.grad, param)
                grads.append(local(param.grad.detach()))
                if param not in kept:
                    kept[param] = param.grad.detach().to(exact_dtype(param.dtype), copy=True)
                averages.append(local(kept[param]))
            if grads:
                news = [grad.to(average.dtype) for grad, average in zip(grads, averages, strict=True)]
                torch._foreach_lerp_(averages, news, 1.0 - group["grokfast_alpha"])
                if group["grokfast_step"] >= group["grokfast_after_step"]:
                    torch._foreach_add_(grads, averages, alpha=group["grokfast_lamb"])
