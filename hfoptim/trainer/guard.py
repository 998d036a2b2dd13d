"""`GuardSteps`: in a Trainer, all ranks take a step or none does, and a rank that is missing is named."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from transformers import TrainerCallback

from hfoptim.trainer import private, second_pass
from hfoptim.training.step_guard import StepGuard

logger = logging.getLogger(__name__)


class GuardSteps(TrainerCallback):
    """Takes a Trainer's steps once all ranks have agreed on them, as `hfoptim.StepGuard` does in a loop of one's own.

        Trainer(model, args, train_dataset=data, callbacks=[hfoptim.GuardSteps(nonfinite="skip", timeout=60)])

    With every optimizer, chosen in every way; on one process, with DDP and with FSDP2. The ranks agree after the
    backward pass of a step's last micro-batch, before gradients are clipped, which makes all of them NaN where one is.

    A step that is left out is as one that float16 has overflowed in: the schedule waits, `global_step` goes on, so that
    `max_steps` and the order of the data are as without, and a run ends that many steps before the end of its schedule.
    Its gradients are dropped, accumulated ones too; the log has 0 for their norm, and a warning says why. Checkpoints
    know nothing of it, and a training resumes as any other.

    A rank that fails, ends or is stuck in a backward pass or a step is named on the others, as soon as its connection
    is closed, or after the timeout of the process group: `TrainingArguments(ddp_timeout=...)`. transformers leaves it
    out with `use_cpu=True`: there call torch.distributed.init_process_group before the arguments are made. NCCL may end
    the process before anything can be said; TORCH_NCCL_BLOCKING_WAIT=1 lets it raise.

    Args:
        nonfinite (default "raise"): what becomes of a step where a gradient of any rank has an infinite or undefined
            entry: "raise", or "skip" on all ranks. Those of second passes (SAM) are not looked at.
        differing (default "raise"): what becomes of a step for which some ranks have a gradient of a parameter and
            others have none: "raise", "skip", or "allow", for parameters that differ between ranks.
        timeout (default None): seconds that the ranks wait for each other before a step; None: as the group does.

    `skipped` counts the steps of the last training that were left out.

    Raises:
        ValueError: a choice that there is none of. At the start of the training: fp16, which finds overflows by itself,
            DeepSpeed, FSDP of version 1, gradient release, several GPUs in one process, or a second GuardSteps.
        RuntimeError: in the training, see `hfoptim.StepGuard`.
    """

    def __init__(self, *, nonfinite: str = "raise", differing: str = "raise", timeout: float | None = None) -> None:
        self._options: dict[str, Any] = {"nonfinite": nonfinite, "differing": differing, "timeout": timeout}
        StepGuard.check(**self._options)
        self.skipped = 0

    def __repr__(self) -> str:
        return f"GuardSteps({', '.join(f'{name}={value!r}' for name, value in self._options.items())})"

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = private.trainer_in_charge()
        _refuse(trainer)
        self.skipped = 0
        _guards[trainer] = _Guarded(StepGuard(trainer.optimizer, **self._options))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Around all that others have put around these methods when the training began.
        trainer = private.trainer_in_charge()
        private.intercept(trainer, "training_step", _agreeing)
        private.intercept(trainer.optimizer, "step", _stepping)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.skipped = _guards[private.trainer_in_charge()].guard.skipped

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        _guards.pop(private.trainer_in_charge(), None)


@dataclass
class _Guarded:
    """A training's guard, whether the step to come is to be taken, and whether it is being taken."""

    guard: StepGuard
    taken: bool = True
    within: bool = False


_guards: WeakKeyDictionary[Any, _Guarded] = WeakKeyDictionary()


def _refuse(trainer: Any) -> None:
    args = trainer.args
    if sum(isinstance(each, GuardSteps) for each in trainer.callback_handler.callbacks) > 1:
        raise ValueError("the Trainer got two GuardSteps, which would ask all ranks twice; give one")
    if args.fp16 or trainer.accelerator.scaler is not None:
        raise ValueError(
            "fp16=True scales gradients until they overflow, and leaves such steps out by itself; give bf16=True, or "
            "leave out GuardSteps"
        )
    if trainer.is_deepspeed_enabled:
        raise ValueError(
            "DeepSpeed has the gradients in its own hands, flattened; take FSDP2 or DDP, or leave out GuardSteps"
        )
    if args.n_gpu > 1:
        raise ValueError(
            f"GuardSteps needs a process for each GPU, but this one has {args.n_gpu}; start with torchrun or "
            f"accelerate launch"
        )


def _agreeing(trainer: Any, step: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Any:
    """`training_step`: after the last micro-batch of a step, all ranks decide about it."""
    found = _guards.get(trainer)
    if found is None or second_pass.happens_in(trainer):
        return step(*args, **kwargs)
    with found.guard.during("backward pass"):
        loss = step(*args, **kwargs)
    if trainer.accelerator.sync_gradients:
        found.taken = found.guard.agree()
        if not found.taken:
            if trainer.args.should_log:
                logger.warning("step %d is left out: %s", trainer.state.global_step + 1, found.guard.reason)
            # On all ranks alike: their norm is taken next, together.
            trainer.model.zero_grad()
    return loss


def _stepping(optimizer: Any, step: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Any:
    """`step` of the optimizer that the Trainer calls."""
    trainer = private.trainer_in_charge()
    found = _guards.get(trainer)
    # A schedule of a second training puts itself in between, and then this is around it once more.
    if found is None or found.within:
        return step(*args, **kwargs)
    if not found.taken:
        private.forget_meshes(trainer)
        return None
    found.within = True
    try:
        with found.guard.during("step"):
            return step(*args, **kwargs)
    finally:
        found.within = False
