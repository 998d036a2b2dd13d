"""Optimizers with given learning rates, and the learning rates that a schedule gives them."""

from __future__ import annotations

from typing import Any

import torch


def make(*lrs: Any) -> torch.optim.Optimizer:
    """An optimizer with one group for each learning rate."""
    groups = [{"params": [torch.nn.Parameter(torch.zeros(2))], "lr": lr} for lr in lrs]
    return torch.optim.SGD(groups, lr=float(lrs[0]))


def trace(schedule: Any, steps: int) -> list[list[float]]:
    """The learning rates of all groups at steps 0, 1, ..."""
    lrs = []
    for step in range(steps):
        if step:
            schedule.optimizer.step()
            schedule.step()
        lrs.append([float(group["lr"]) for group in schedule.optimizer.param_groups])
    return lrs
