"""Weights averaged over the steps, for schedule-free optimizers: the weights of the average, and the two modes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import RuleOptimizer, RunState, local
from hfoptim.engine.ambient import leave_undisturbed
from hfoptim.engine.storage.rounding import join_float32


def _weigh(state: Mapping[str, Any], totals: Mapping[str, Tensor], group: Mapping[str, Any]) -> dict[str, Any]:
    """A step weighs `k ** r * lr_max ** weight_lr_power` in the average, with lr warmed up over `warmup_steps`."""
    k, warmup = state["k"] + 1, group["warmup_steps"]
    lr = float(group["lr"]) * (min(1.0, k / warmup) if warmup else 1.0)
    lr_max = max(state["lr_max"], lr)
    weight = float(k ** group["r"] * lr_max ** group["weight_lr_power"])
    return {
        "k": k,
        "scheduled_lr": lr,
        "lr_max": lr_max,
        "weight_sum": state["weight_sum"] + weight,
        "weight": weight,
    }


class Averaging(RuleOptimizer):
    """An optimizer that trains at y, between z, where a step leads, and x, the average of all z.

    With betas[0] the share of x in y. It has the options `warmup_steps`, `r` and `weight_lr_power`; its rule keeps z
    in the state `z`, and its `per_step` is handed `weight`, what the step weighs in the average.
    """

    run_state = RunState({"k": 0, "weight_sum": 0.0, "lr_max": -1.0, "scheduled_lr": 0.0, "train_mode": True}, _weigh)
    occasional_state = RuleOptimizer.occasional_state | {"y"}
    wants_constant_lr = True

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        if group["betas"][0] == 0.0:
            raise ValueError(
                f"betas={group['betas']!r}: without a share of the average in the training point the average is lost; "
                f"expected betas[0] above 0"
            )

    def check_ready(self) -> None:
        if not all(group["train_mode"] for group in self.param_groups):
            raise RuntimeError(
                f"{type(self).__name__} is in evaluation mode, in which the parameters are not where training goes on; "
                f"call optimizer.train() before the forward pass"
            )

    @leave_undisturbed
    @torch.no_grad()
    def eval(self) -> None:
        """Put the averaged weights, x, into the parameters; nothing if they are there."""
        for param, state, group in self._switching(to_train=False):
            state["y"] = param.detach().clone()
            y, z = _exact(param, state), local(state["z"])
            local(param.detach()).copy_(y + (z - y) * (1.0 - 1.0 / group["betas"][0]))

    @leave_undisturbed
    @torch.no_grad()
    def train(self) -> None:
        """Put the training weights, y, back into the parameters; nothing if they are there."""
        for param, state, group in self._switching(to_train=True):
            if "y" in state:
                param.copy_(state.pop("y"))
            else:  # a checkpoint of schedulefree, which keeps x only
                x, z = _exact(param, state), local(state["z"])
                local(param.detach()).copy_(x + (z - x) * (1.0 - group["betas"][0]))

    def _switching(self, to_train: bool) -> list[tuple[Tensor, dict[str, Any], dict[str, Any]]]:
        """(parameter, state, group) of all that change when the mode does, and the mode changed."""
        found = []
        for group in self.param_groups:
            if group["train_mode"] is not to_train:
                group["train_mode"] = to_train
                found += [(p, self.state[p], group) for p in group["params"] if self.state.get(p)]
        return found


def _exact(param: Tensor, state: dict[str, Any]) -> Tensor:
    """The parameter with what rounding took from it, in the dtype of the state."""
    weight = local(param.detach())
    if "remainder" in state:
        return join_float32(weight, local(state["remainder"]))
    weight = weight.to(state["z"].dtype)
    return weight + local(state["kahan_comp"]) if "kahan_comp" in state else weight
