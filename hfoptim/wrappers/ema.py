"""EMA: an average of the weights, beside any optimizer, to evaluate and to save."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from hfoptim.engine.ambient import leave_undisturbed
from hfoptim.engine.checks import choice, flag, integer, number
from hfoptim.engine.distributed.dtensor import local
from hfoptim.wrappers.two_modes import TwoModes

AVERAGE = "weight_average"
KINDS = ("exponential", "uniform", "polynomial")


class EMA(TwoModes):
    """Keeps an average of the weights, exponential or over all steps; `eval()` puts it into the model.

    With p the parameter after a step of the inner optimizer, and n the number of that average, from 1:

        x = x + w (p - x),  at first x = p
        w = 1 - decay                                       (exponential)
        w = 1 - min(decay, n / (9 + n))                     (exponential, with warmup)
        w = 1 / n                                           (uniform: the mean of all)
        w = (gamma + 1) / (gamma + n)                       (polynomial: the later the more)

    The parameter holds x from `eval()` to `train()`: call `eval()` before evaluating and before saving the model, also
    at the end, and `train()` before training goes on. transformers' Trainer does so around evaluations, and for
    optimizers chosen by hfoptim's names before it saves, too. The switch is exact: p is kept aside, also in a
    state_dict. Batch norm's statistics are those of training; a few forward passes with x refresh them.

    The average is kept in float32 for parameters of fewer bits, in which steps as small as its own would be lost; it is
    that of the weights with what their rounding has left over. It is made after the step `start`, then after each
    `every`-th one; before it is there, `eval()` leaves the parameters as they are. The options lie in the parameter
    groups as `ema_decay` and so on, and may differ between them or change; a group's steps are counted there in
    `ema_step`.

    By name: `ema_adamw`, with the options `ema_decay`, `ema_average`, `ema_warmup`, `ema_gamma`, `ema_every` and
    `ema_start`.

    Args:
        optimizer: any torch optimizer without an average of its own.
        decay (default 0.999): share of the average that an average keeps, in [0, 1).
        average ("exponential"): or "uniform", or "polynomial".
        warmup (False): let the share grow to `decay`, so that the first weights are soon forgotten.
        gamma (8.0): of the polynomial average, at least 0, where it is the uniform one.
        every (1): steps from one average to the next, at least 1.
        start (0): steps before the first average.

    Raises:
        TypeError: no optimizer, or an option of the wrong type.
        ValueError: an option out of range, an inner EMA, or an optimizer with an evaluation mode of its own.
        RuntimeError: from `step()` in evaluation mode.

    Source:
        Polyak and Juditsky, doi.org/10.1137/0330046; Izmailov et al., arXiv 1803.05407 (uniform); Shamir and Zhang,
        arXiv 1212.1824 (polynomial, with gamma as formll/dog has it). The numbers are those of
        torch.optim.swa_utils.AveragedModel; the warm-up is that of tf.train.ExponentialMovingAverage with num_updates,
        which diffusers has, too.
    """

    by_name = {
        "ema_decay": 0.999,
        "ema_average": "exponential",
        "ema_warmup": False,
        "ema_gamma": 8.0,
        "ema_every": 1,
        "ema_start": 0,
    }
    counters = {"ema_step": 0, **TwoModes.counters}
    keeps = {AVERAGE: False, **TwoModes.keeps}
    keeps_exact = frozenset({AVERAGE})
    expects = AVERAGE, lambda group: group.get("ema_step", 0) > group.get("ema_start", 0)

    def __init__(
        self,
        optimizer: Optimizer,
        decay: float = 0.999,
        *,
        average: str = "exponential",
        warmup: bool = False,
        gamma: float = 8.0,
        every: int = 1,
        start: int = 0,
    ) -> None:
        given = (decay, average, warmup, gamma, every, start)
        super().__init__(optimizer, dict(zip(self.by_name, given, strict=True)))

    def check_group(self, group: dict[str, Any]) -> None:
        group["ema_decay"] = number("ema_decay", group["ema_decay"], 0.0, 1.0)
        group["ema_average"] = choice("ema_average", group["ema_average"], KINDS)
        group["ema_gamma"] = number("ema_gamma", group["ema_gamma"], 0.0)
        group["ema_every"] = integer("ema_every", group["ema_every"], 1)
        group["ema_start"] = integer("ema_start", group["ema_start"], 0)
        group["ema_step"] = integer("ema_step", group["ema_step"], 0)
        flag("ema_warmup", group["ema_warmup"])
        group["ema_warmup"] = bool(group["ema_warmup"])
        super().check_group(group)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step of the inner optimizer, and average where a group is due.

        Args:
            closure: handed to the inner optimizer.

        Returns:
            What the inner optimizer returns.

        Raises:
            RuntimeError: the parameters hold the average.
        """
        self.check_training()
        loss = self._inner.step(closure)
        if not self.only_made_state("ema_step"):
            for group in self.param_groups:
                group["ema_step"] += 1
                late = group["ema_step"] - group["ema_start"] - 1
                if late >= 0 and late % group["ema_every"] == 0:
                    self._average(group, late // group["ema_every"] + 1)
        return loss

    @leave_undisturbed
    @torch.no_grad()
    def _average(self, group: Mapping[str, Any], n: int) -> None:
        averages, weight = self.kept[AVERAGE], _weight(group, n)
        news: list[Tensor] = []
        olds: list[Tensor] = []
        for param in group["params"]:
            if param not in averages and not param.requires_grad:
                continue
            if param in averages:
                olds.append(local(averages[param]))
                news.append(self.exact(param))
            else:
                averages[param] = self.exact_copy(param)
        if olds:
            torch._foreach_lerp_(olds, news, weight)

    def evaluated(self, param: Tensor, group: Mapping[str, Any]) -> Tensor | None:
        average = self.kept[AVERAGE].get(param)
        return None if average is None else local(average)


def _weight(group: Mapping[str, Any], n: int) -> float:
    """What the n-th weights weigh in the average with them."""
    kind, decay = group["ema_average"], float(group["ema_decay"])
    if kind == "exponential":
        return 1.0 - (min(decay, n / (9.0 + n)) if group["ema_warmup"] else decay)
    gamma = 0.0 if kind == "uniform" else float(group["ema_gamma"])
    return (gamma + 1.0) / (gamma + n)
