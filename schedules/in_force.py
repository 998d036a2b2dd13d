"""The learning rates of an optimizer, and whose they are: which schedule may put its own back when its state is loaded.

A schedule that is loaded alone should go on where it was, so that loading writes the saved learning rate into the
optimizer. Where several move it (torch's SequentialLR and ChainedScheduler, a plateau schedule beside another one),
only one of them was the last to do so, and torch's own schedules, most of which multiply what they find, would go on
from whatever another one wrote. So a saved learning rate is written only if

- it was the optimizer's when the state was saved: the state says so if it was not;
- the schedule has begun: a member of a SequentialLR waits at position -1 (nested ones even before that);
- the optimizer still has what the loading schedule itself gave it: then its own ``load_state_dict`` was not called.
  That decides for states that say nothing, of transformers or from before they did.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from .checks import plain

__all__ = ["MARK", "copy_lrs", "gives_back", "marked", "plain_lr", "set_lr", "set_lrs"]

# In a state dict, with the value False, where the optimizer had another learning rate. Absent otherwise, so that the
# layout is that of torch and of transformers.
MARK = "lr_in_force"


def copy_lrs(optimizer: Optimizer) -> list[Any]:
    """Return the learning rate of every param group; tensors are cloned."""
    lrs = (group["lr"] for group in optimizer.param_groups)
    return [lr.clone() if isinstance(lr, torch.Tensor) else plain(lr) for lr in lrs]


def plain_lr(lr: Any) -> Any:
    """A learning rate as it may lie in a group: a tensor, which schedules fill in place, or Python's own number."""
    return lr if isinstance(lr, torch.Tensor) else plain(lr)


def set_lr(group: dict[str, Any], lr: Any) -> None:
    """Set a group's learning rate. A tensor is filled in place: replacing it would recompile a compiled step."""
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(float(lr))
    else:
        group["lr"] = float(lr)


def set_lrs(optimizer: Optimizer, lrs: Iterable[Any]) -> None:
    """Set the learning rate of every param group."""
    for group, lr in zip(optimizer.param_groups, lrs, strict=True):
        set_lr(group, lr)


def _in_force(schedule: Any) -> bool:
    """Whether the optimizer still has the learning rates that the schedule left there."""
    now, last = copy_lrs(schedule.optimizer), schedule.get_last_lr()
    return len(now) == len(last) and all(bool(a == b) for a, b in zip(now, last, strict=True))


def marked(state: dict[str, Any], schedule: Any) -> dict[str, Any]:
    """Return a schedule's state dict, marked if its learning rates are not those of the optimizer."""
    return state if _in_force(schedule) else {**state, MARK: False}


def gives_back(state: Mapping[str, Any], schedule: Any) -> bool:
    """Say whether the learning rates of a saved state are to be written into the optimizer of a schedule."""
    return bool(state.get(MARK, True)) and state.get("last_epoch", 0) >= 0 and _in_force(schedule)
