"""What all schedules share: the optimizer's groups, their learning rates, and one advance per step of the optimizer.

**Whose a learning rate is.** A schedule that is loaded alone should go on where it was, so that loading writes the
saved learning rate into the optimizer. Where several move it (torch's SequentialLR and ChainedScheduler, a plateau
schedule beside another one), only one of them was the last to do so, and torch's own schedules, most of which multiply
what they find, would go on from whatever another one wrote. So a saved learning rate is written only if

- it was the optimizer's when the state was saved: the state says so if it was not;
- the schedule has begun: a member of a SequentialLR waits at position -1 (nested ones even before that);
- the optimizer still has what the loading schedule itself gave it: then its own ``load_state_dict`` was not called.
  That decides for states that say nothing, of transformers or from before they did.

**One advance.** Accelerate steps a prepared schedule as many times as there are processes at each step of the
optimizer, so that the learning rate depends on how many processes there are. Before each of these calls it asks a
schedule that has ``total_steps``, as torch's OneCycleLR, whether there is a step left. Ours answer that there is one
for each step of the optimizer. Whoever calls ``step()`` without asking is not held back: that is torch's meaning of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.optim import Optimizer

from .checks import plain

# In a state dict, with the value False, where the optimizer had another learning rate. Absent otherwise, so that the
# layout is that of torch and of transformers.
MARK = "lr_in_force"


def check_optimizer(optimizer: Optimizer) -> Optimizer:
    """Return ``optimizer`` if a schedule can drive it, else raise."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    if hasattr(optimizer, "optimizer_dict"):
        # transformers' layer-wise stand-in owns no parameter: a schedule over it would change nothing.
        raise TypeError(
            f"{type(optimizer).__name__} stands for one optimizer per parameter: "
            "make one schedule for each optimizer in its optimizer_dict"
        )
    for index, group in enumerate(optimizer.param_groups):
        if group["lr"] is None:
            raise ValueError(
                f"param group {index} has lr=None: its optimizer sets the learning rate, a schedule cannot"
            )
    return optimizer


def check_groups(optimizer: Optimizer, known: int, way_out: str = "") -> None:
    """Raise a ValueError if the optimizer has another number of param groups than a schedule was made for.

    Args:
        optimizer: the optimizer.
        known: the number of groups that the schedule was made for.
        way_out (default ""): what else the schedule offers; the end of the message.
    """
    if len(optimizer.param_groups) != known:
        raise ValueError(
            f"the optimizer has {len(optimizer.param_groups)} param groups, its schedule was made for {known}: make "
            "the schedule after the last add_param_group; go_to(step) takes a new one to where the old one was"
            f"{way_out}"
        )


def check_saved_groups(optimizer: Optimizer, known: int, lrs: Sequence[Any]) -> None:
    """Raise a ValueError if a state is of another number of param groups than the optimizer has.

    Args:
        optimizer: the optimizer.
        known: the number of groups in the state.
        lrs: their learning rates, as far as it has them.
    """
    groups = optimizer.param_groups
    if known != len(groups):
        saved = f" (lr {', '.join(f'{float(lr):g}' for lr in lrs)})" if len(lrs) else ""
        here = "; ".join(map(_described, groups))
        raise ValueError(f"the state has {known} param groups{saved}, the optimizer has {len(groups)}: {here}")


def _described(group: Mapping[str, Any]) -> str:
    """A group in the words of a message."""
    names = [*map(repr, group.get("param_names") or ())]
    which = f" ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})" if names else ""
    count = len(group["params"])
    lr = float(group.get("initial_lr", group["lr"]))
    return f"{count} parameter{'' if count == 1 else 's'}{which} with lr {lr:g}"


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


def in_force(schedule: Any) -> bool:
    """Whether the optimizer still has the learning rates that the schedule left there."""
    now, last = copy_lrs(schedule.optimizer), schedule.get_last_lr()
    return len(now) == len(last) and all(bool(a == b) for a, b in zip(now, last, strict=True))


def marked(state: dict[str, Any], schedule: Any) -> dict[str, Any]:
    """Return a schedule's state dict, marked if its learning rates are not those of the optimizer."""
    return state if in_force(schedule) else {**state, MARK: False}


def gives_back(state: Mapping[str, Any], schedule: Any) -> bool:
    """Say whether the learning rates of a saved state are to be written into the optimizer of a schedule."""
    return bool(state.get(MARK, True)) and state.get("last_epoch", 0) >= 0 and in_force(schedule)


# Kept here and not in the objects: counts belong to a process, neither to a checkpoint nor to a copy.
_steps_taken: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()
_advanced_at: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


class StepsWithOptimizer:
    """A schedule that Accelerate advances once per step of the optimizer, whatever the number of processes."""

    optimizer: Any
    # Accelerate also adds to it for each micro-batch that it accumulates; torch's metric schedules have none.
    _step_count: int = 0

    @property
    def total_steps(self) -> int:
        """The count of calls up to which Accelerate may go on: one more than now, once the optimizer has stepped."""
        return self._step_count if self._has_a_step_left() else self._step_count - 1

    def _has_a_step_left(self) -> bool:
        optimizer = _counted(self.optimizer)
        if optimizer is None:
            return True
        if optimizer not in _steps_taken:
            _steps_taken[optimizer] = 0
            optimizer.register_step_post_hook(_count)
        return _advanced_at.get(self) != _steps_taken[optimizer]

    def _advanced(self) -> None:
        """To be called at the end of ``step()``."""
        optimizer = _counted(self.optimizer)
        if optimizer is not None and optimizer in _steps_taken:
            _advanced_at[self] = _steps_taken[optimizer]


def _count(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    _steps_taken[optimizer] += 1


def _counted(optimizer: Any) -> Any:
    """The optimizer whose steps count, inside wrappers such as Accelerate's and DeepSpeed's; None if none can."""
    while getattr(optimizer, "optimizer", None) is not None:
        optimizer = optimizer.optimizer
    # LOMO's optimizers step in backward; nobody calls their step().
    countable = isinstance(optimizer, Optimizer) and not hasattr(optimizer, "fused_backward")
    return optimizer if countable else None
