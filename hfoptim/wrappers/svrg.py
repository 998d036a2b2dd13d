"""SVRG: gradients whose variance is reduced by those at a snapshot of the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from hfoptim.engine.ambient import leave_undisturbed
from hfoptim.engine.checks import integer, number
from hfoptim.engine.distributed.dtensor import local
from hfoptim.wrappers.two_points import FIRST, OLD, TwoPoints
from hfoptim.wrappers.wrapper import refuse_second_order

SNAPSHOT, FULL = "svrg_snapshot", "svrg_full_grad"


class SVRG(TwoPoints):
    """Takes off each gradient what is special to its batch, as a snapshot of the weights shows it, times a coefficient.

    With p the weights, p' their snapshot, g the gradient of the step's batch and G that of all batches:

        step of the inner optimizer from p with  g(p) - alpha_k (g(p') - G(p'))
        alpha_k = coefficient                              (snapshots = 0)
        alpha_k = coefficient (1 - k / (snapshots - 1))    (at least 0), after the snapshot number k, from 0

    alpha = 1 is SVRG as it was first; alpha-SVRG has a smaller one that falls to 0 at the last snapshot, since the
    gradients at p' say less about those at p the further training is. A snapshot is made at the beginning of each
    epoch, or more often:

        for epoch in range(epochs):
            optimizer.snapshot(whole)        # a backward pass of each batch's loss / number of batches
            for batch in batches:
                optimizer.step(closure)      # zero_grad, loss and backward of this batch; returns the loss

    The closure is called at p and at p', so a step has two gradients, and an epoch three in the place of each one. Both
    calls have to see the same batch with the same augmentation; dropout should leave out the same entries. By hand:
    `loss.backward()`, `first_step(zero_grad=True)`, `loss.backward()`, `second_step(zero_grad=True)`. Steps whose alpha
    is 0 take one gradient (`second_is_due`). The weights come back bit for bit, also if the closure raises. Gradients
    are changed as clipping changes them; clip in the closure, if at all. Batch norms see the batches of all passes. A
    parameter that had no gradient in any batch of the snapshot keeps the gradients it has.

    Memory: two tensors for each parameter, p' and G, and two more during a step. By name: `svrg_adamw`, with the
    options `svrg_coefficient` and `svrg_snapshots`, which lie in the parameter groups. In a Trainer the callback
    `SecondPass` takes the snapshots. torch.amp.GradScaler cannot be used.

    Args:
        optimizer: any torch optimizer that evaluates no model in its step.
        coefficient (default 0.75): alpha_0, at least 0.
        snapshots (0): number of snapshots in the whole training; 0: the coefficient stays.

    State: p' as `svrg_snapshot`, G as `svrg_full_grad`; in the groups `svrg_taken`, the number of snapshots so far.

    Raises:
        TypeError: no optimizer, or an option of the wrong type; from the steps, a sparse gradient.
        ValueError: an option out of range, or an inner optimizer that takes closures, or gradients with a graph. From
            `step`: without a closure.
        RuntimeError: from the steps: no snapshot was made, or they are taken in the wrong order.

    Source:
        Johnson and Zhang, Accelerating Stochastic Gradient Descent using Predictive Variance Reduction, 2013; the
        coefficient: Yin et al., A Coefficient Makes SVRG Effective, arXiv 2311.05589; davidyyd/alpha-SVRG, whose
        commands have 0.75, with `svrg_schedule` linear (`snapshots`: epochs times snapshots in each) or constant. Its
        schedule "optimal", a coefficient of each weight from all batches' gradients, is not here.
    """

    by_name = {"svrg_coefficient": 0.75, "svrg_snapshots": 0}
    counters = {"svrg_taken": 0}
    keeps = {**TwoPoints.keeps, FIRST: True, SNAPSHOT: True, FULL: True}
    between = (OLD, FIRST)
    expects = SNAPSHOT, lambda group: group.get("svrg_taken", 0) > 0

    def __init__(self, optimizer: Optimizer, coefficient: float = 0.75, snapshots: int = 0) -> None:
        super().__init__(optimizer, {"svrg_coefficient": coefficient, "svrg_snapshots": snapshots})

    def check_inner(self, optimizer: Optimizer) -> None:
        super().check_inner(optimizer)
        refuse_second_order(self, optimizer)

    def check_group(self, group: dict[str, Any]) -> None:
        group["svrg_coefficient"] = number("svrg_coefficient", group["svrg_coefficient"])
        for name in ("svrg_snapshots", "svrg_taken"):
            group[name] = integer(name, group[name], 0)

    def snapshot(self, closure: Callable[[], Any]) -> Any:
        """Take the weights as the snapshot, with the gradient of all batches there.

        Args:
            closure: leaves the mean of all batches' gradients in the parameters: one backward pass for each batch, of
                its loss divided by the number of batches. It is called once, with gradients enabled and removed before.

        Returns:
            What the closure returns. The gradients are removed.

        Raises:
            RuntimeError: between `first_step` and `second_step`, or no parameter has a gradient after the closure.
            TypeError: a gradient is sparse.
        """
        if self.kept[OLD]:
            raise RuntimeError("snapshot was called between first_step and second_step")
        self.zero_grad()
        with torch.enable_grad():
            found = closure()
        self._keep()
        self.zero_grad()
        return found

    @leave_undisturbed
    @torch.no_grad()
    def _keep(self) -> None:
        self.complete_groups()
        self.check_dense()
        self.keep_gradients(FULL)
        if not self.kept[FULL]:
            raise RuntimeError("no parameter has a gradient; the closure of snapshot calls backward for each batch")
        self.kept[SNAPSHOT] = {param: param.detach().clone() for param in self.kept[FULL]}
        taken = 1 + max(group["svrg_taken"] for group in self.param_groups)
        for group in self.param_groups:
            group["svrg_taken"] = taken

    def alpha(self, group: Mapping[str, Any]) -> float:
        """The coefficient of a group until the next snapshot; 0 if the group has been added since the last one."""
        taken, snapshots = group["svrg_taken"], group["svrg_snapshots"]
        if not taken:
            return 0.0
        fallen = (taken - 1) / max(snapshots - 1, 1) if snapshots else 0.0
        return float(group["svrg_coefficient"]) * max(0.0, 1.0 - fallen)

    @property
    def second_is_due(self) -> bool:
        self.complete_groups()
        if not any(group["svrg_taken"] for group in self.param_groups):
            raise RuntimeError(
                "SVRG has no snapshot; call snapshot(closure) before the first step, and again in each epoch"
            )
        return any(self.alpha(group) != 0.0 for group in self.param_groups)

    def move(self) -> None:
        for param, snapshot in self.kept[SNAPSHOT].items():
            self.keep_weight(param)
            local(param).copy_(local(snapshot))

    def loss_of_step(self, at_weights: Any, second: Any) -> Any:
        return at_weights

    def before_base_step(self) -> None:
        if not self.second_is_due:
            return
        first, full, second = self.kept[FIRST], self.kept[FULL], self.gradients()
        for group in self.param_groups:
            alpha = self.alpha(group)
            for param in group["params"]:
                param.grad = first.get(param)
                if param not in full or not alpha:
                    continue
                if param.grad is None:  # the gradient of a batch that does not reach the parameter
                    param.grad = torch.zeros_like(full[param])
                grad = local(param.grad)
                grad.add_(local(full[param]), alpha=alpha)
                if param in second:
                    grad.sub_(local(second[param]), alpha=alpha)
