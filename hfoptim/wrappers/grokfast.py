"""GrokFast: gradients whose slow part is amplified before an optimizer sees them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim import Optimizer

from hfoptim.engine.ambient import lasting, leave_undisturbed
from hfoptim.engine.checks import choice, dense, flag, integer, number
from hfoptim.engine.distributed.dtensor import aligned, local, new_state, placed
from hfoptim.engine.storage import exact_dtype
from hfoptim.wrappers.closures import evaluate, refuse_those_with_closures
from hfoptim.wrappers.wrapper import Wrapper, refuse_second_order

AVERAGE = "grokfast_average"
WINDOW = "grokfast_gradients"
FILTERS = ("ema", "mean", "sum")


@cache
def _empty(window: int) -> Any:
    """How the last gradients of a parameter begin."""
    return lambda param, dtype: param.new_zeros((window, *param.shape), dtype=dtype)


class GrokFast(Wrapper):
    """Adds an average of the gradients, times a factor, to each gradient before the inner optimizer's step.

    With g the gradient:

        m = alpha m + (1 - alpha) g,  at first m = g               (filter_type "ema")
        m = mean, or sum, of the group's last `window_size` gradients, this one included   ("mean", "sum")
        g = g + lamb m

    The parameters' `.grad` is changed in place, as gradient clipping does it. The first `after_step` steps of a group
    go as without it; with a window also those before it is full, unless `warmup` is off. One tensor of the parameter's
    shape, in float32 for gradients of fewer bits; with a window also the gradients in it, `window_size` tensors. As
    gradients grow by the factor 1 + lamb, optimizers that take them in their length (SGD) want a learning rate so much
    lower.

    By name: `grokfast_adamw`, with the options `grokfast_alpha`, `grokfast_lamb`, `grokfast_after_step`,
    `grokfast_filter_type`, `grokfast_window_size` and `grokfast_warmup`. They lie in the parameter groups and may
    differ between them or change, but for the filter and its window once there is one.

    Args:
        optimizer: any torch optimizer that evaluates no model in its step.
        alpha (default 0.98): decay rate of the average, in [0, 1].
        lamb (2.0): factor of the average, at least 0. The authors' for a window is 5.
        after_step (0): steps before the first filtered one.
        filter_type ("ema"): "ema", an exponential average; "mean" or "sum" of a window.
        window_size (100): gradients in the window, at least 1.
        warmup (True): leave gradients as they are until the window is full.

    Raises:
        TypeError: no optimizer, or an option of the wrong type; from `step()`, a sparse gradient.
        ValueError: an option out of range, or an inner optimizer that takes closures, or gradients with a graph.

    Source:
        Lee et al., arXiv 2405.20233 (Grokfast-EMA, Grokfast-MA); the numbers are those of gradfilter_ema and
        gradfilter_ma of ironjr/grokfast and of pytorch_optimizer, but that a step without a gradient is one of zeros
        in the window here, and does not count there. pytorch_optimizer's GrokFastAdamW is `grokfast_adamw` with
        lr / (1 + lamb), and with the root of the second moment limited from below by eps, in place of eps added to it.
    """

    by_entries = True
    by_name = {
        "grokfast_alpha": 0.98,
        "grokfast_lamb": 2.0,
        "grokfast_after_step": 0,
        "grokfast_filter_type": "ema",
        "grokfast_window_size": 100,
        "grokfast_warmup": True,
    }
    counters = {"grokfast_step": 0}
    keeps = {AVERAGE: False, WINDOW: True}
    keeps_exact = frozenset({AVERAGE})
    expects = AVERAGE, lambda group: group.get("grokfast_step", 0) > 0

    def __init__(
        self,
        optimizer: Optimizer,
        alpha: float = 0.98,
        lamb: float = 2.0,
        after_step: int = 0,
        filter_type: str = "ema",
        window_size: int = 100,
        warmup: bool = True,
    ) -> None:
        options = (alpha, lamb, after_step, filter_type, window_size, warmup)
        super().__init__(optimizer, dict(zip(self.by_name, options, strict=True)))

    def check_inner(self, optimizer: Optimizer) -> None:
        refuse_those_with_closures(optimizer, "with gradients that GrokFast has not seen")
        refuse_second_order(self, optimizer)

    def check_group(self, group: dict[str, Any]) -> None:
        group["grokfast_alpha"] = number("grokfast_alpha", group["grokfast_alpha"], 0.0, 1.0, high_open=False)
        group["grokfast_lamb"] = number("grokfast_lamb", group["grokfast_lamb"])
        for name in ("grokfast_after_step", "grokfast_step"):
            group[name] = integer(name, group[name], 0)
        group["grokfast_filter_type"] = choice("grokfast_filter_type", group["grokfast_filter_type"], FILTERS)
        group["grokfast_window_size"] = integer("grokfast_window_size", group["grokfast_window_size"], 1)
        flag("grokfast_warmup", group["grokfast_warmup"])

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
            for group in self.stepping():
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
            if group["grokfast_filter_type"] == "ema":
                factor = group["grokfast_lamb"]
                if grads:
                    news = [grad.to(average.dtype) for grad, average in zip(grads, averages, strict=True)]
                    torch._foreach_lerp_(averages, news, 1.0 - group["grokfast_alpha"])
            else:
                factor = self._move_window(group)
            if grads and factor and group["grokfast_step"] >= group["grokfast_after_step"]:
                torch._foreach_add_(grads, averages, alpha=factor)

    def _move_window(self, group: Mapping[str, Any]) -> float:
        """Take a step's gradients into the windows, and their sums; what a sum is multiplied by, 0 for not yet."""
        size = group["grokfast_window_size"]
        number, place = divmod(group["grokfast_step"], size)
        windows = self.kept[WINDOW]
        for param in group["params"]:
            if param not in self.kept[AVERAGE]:
                continue
            if param not in windows:
                windows[param] = new_state(_empty(size), param.detach(), param.dtype)
                local(self.kept[AVERAGE][param]).zero_()
            window, total = local(windows[param]), local(self.kept[AVERAGE][param])
            if window.shape[0] != size:
                raise ValueError(
                    f"grokfast_window_size={size!r}, and there is a window of {window.shape[0]} gradients; it cannot "
                    f"change any more"
                )
            total.sub_(window[place])
            if param.grad is None:
                window[place].zero_()
            else:
                window[place].copy_(local(param.grad.detach()))
            total.add_(window[place])
            if place == size - 1:  # what rounding has left in the sum goes
                torch.sum(window, 0, dtype=total.dtype, out=total)
        filled = size if number else place + 1
        if group["grokfast_warmup"] and filled < size:
            return 0.0
        return float(group["grokfast_lamb"]) / (filled if group["grokfast_filter_type"] == "mean" else 1)

    def _taken(self, name: str, param: Tensor, value: Tensor) -> Tensor:
        if name != WINDOW or value.shape[1:] != param.shape or value.ndim == 0:
            return super()._taken(name, param, value)
        return placed(lasting(value).to(param.dtype, copy=True), param, _empty(value.shape[0]))
