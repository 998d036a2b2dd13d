"""`ScheduleChange`: another schedule at a step of a Trainer's run."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback

from hfoptim import schedules
from hfoptim.engine.checks import integer


class ScheduleChange(TrainerCallback):
    """Extends, replaces or anneals a Trainer's schedule once so many steps are done.

        Trainer(model, args, train_dataset=data, callbacks=[ScheduleChange(600, extend=2000)])

    The schedule must be one of this package's, chosen by name or given. What is changed goes into `scheduler.pt`, so
    that a run that is resumed after it goes on bit for bit, with this callback or without. A run that is resumed at the
    step itself is changed then, unless it was before.

    Args:
        step: how many steps of the optimizer are done before it; 0 or more.
        extend: the step at which the schedule shall end, see `schedules.ScheduleLR.extend`. Give this or one of the
            next two.
        replace: the curve to follow, see `schedules.ScheduleLR.replace`.
        anneal: the number of steps in which to fall to 0, or a dict of arguments of `schedules.ScheduleLR.anneal`.
        restart (default False): let the curve of `replace` count from 0 at `step`.

    Raises:
        TypeError, ValueError: none or several changes, or a value of the wrong type or out of range. From the Trainer:
            the change cannot be made, or the schedule is none of this package's.
    """

    def __init__(
        self,
        step: int,
        *,
        extend: int | None = None,
        replace: schedules.Curve | None = None,
        anneal: int | dict[str, Any] | None = None,
        restart: bool = False,
    ) -> None:
        self.step = integer("step", step, 0)
        given = {"extend": extend, "replace": replace, "anneal": anneal}
        asked = {kind: value for kind, value in given.items() if value is not None}
        if len(asked) != 1:
            raise ValueError(f"give one of extend, replace and anneal, got {', '.join(asked) or 'none'}")
        if restart and replace is None:
            raise ValueError("restart=True is about the curve of replace, which is not given")
        ((self.kind, value),) = asked.items()
        if self.kind == "extend":
            self.arguments: dict[str, Any] = {"total": value}
        elif self.kind == "replace":
            self.arguments = {"curve": value, "restart": restart}
        else:
            self.arguments = dict(value) if isinstance(value, dict) else {"num_steps": value}
        # What is wrong with it is said now, as far as it can be: by a schedule that is on its way.
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)
        trial = schedules.ScheduleLR(optimizer, schedules.linear(self.step + 1))
        trial.go_to(self.step)
        self._change(trial)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return f"ScheduleChange({self.step}, {self.kind}: {arguments})"

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Change the schedule of a run that begins, or is resumed, at the step."""
        self._at(state, kwargs.get("lr_scheduler"))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Change the schedule after the step."""
        self._at(state, kwargs.get("lr_scheduler"))

    def _at(self, state: Any, scheduler: Any) -> None:
        if state.global_step != self.step:
            return
        schedule = getattr(scheduler, "scheduler", scheduler)  # of Accelerate
        if not isinstance(schedule, schedules.ScheduleLR):
            raise TypeError(
                f"{self!r} changes schedules of hfoptim, and the Trainer has a {type(schedule).__name__}; choose one "
                f"by name: OptimizerCallback(..., schedule='cosine'), or lr_scheduler_type='hfoptim_cosine'"
            )
        self._change(schedule)

    def _change(self, schedule: schedules.ScheduleLR) -> None:
        if all((each["kind"], each["start"]) != (self.kind, self.step) for each in schedule.changes):
            getattr(schedule, self.kind)(**self.arguments)
