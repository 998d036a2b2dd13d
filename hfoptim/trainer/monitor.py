"""What an optimizer does, in the Trainer's log: learning rates, norms, updates, trust ratios, clipping."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from torch.optim import Optimizer
from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from hfoptim.engine.distributed.dtensor import is_dtensor
from hfoptim.trainer import private
from hfoptim.training.step_metrics import (
    MEASURED,
    READ,
    WATCHED,
    NonfiniteGradients,
    StepMeasurement,
    check_quantities,
    lacking,
    noted_rates,
    read_groups,
)

logger = logging.getLogger(__name__)

QUANTITIES = ("lr", *MEASURED, "d", "clipped_share", *WATCHED)
SHOWN = 20
PREFIX = "optimizer/"


class OptimizerMonitor(TrainerCallback):
    """Put what an optimizer does into the Trainer's log, so into TensorBoard, trackio and whatever else listens.

        Trainer(model, args, train_dataset=data, callbacks=[OptimizerMonitor("grad_norm", "update_to_weight")])

    For any optimizer; `OptimizerCallback(..., log=...)` does the same. The numbers come with the loss, at the steps
    that the Trainer logs, under `optimizer/<quantity>` and, with several parameter groups,
    `optimizer/<quantity>/<group>`. At other steps nothing is measured. Over k parameters x of a group, or of all:

        lr                  the learning rate that the step was taken with, group by group
        grad_norm           sqrt(sum(g^2)), of the gradients that the optimizer was given: after clipping
        update_rms          sqrt(sum((x' - x)^2) / k), of what the step changed
        update_to_weight    sqrt(sum((x' - x)^2) / sum(x^2))
        zero_updates        share of the entries that the step left as they were
        lost_updates        the same, of the entries with a gradient: what was too small to move the weight, as it is
                            kept; Kahan's term and `master_weights` remember it, plain rounding does not
        trust_ratio         least, mean and largest factor that tensors' updates were scaled by: LAMB, LARS
        d                   Prodigy's estimate of its step size, and `d_lr`, d times the learning rate
        clipped_share       share of the steps since the last log whose gradients were longer than `max_grad_norm`
        nonfinite_gradients how many parameters had infinite or undefined gradients since the last log; a warning
                            names them. Only if asked for by name: it reads the gradients of every step

    What an optimizer or a training has not is left out, with a warning if it was asked for by name. One monitor may
    serve several trainers.

    Args:
        *quantities: the names of some; none for all but `nonfinite_gradients`.

    Raises:
        ValueError: an unknown quantity (says the closest ones). At the start of the training: there are two monitors.
        TypeError: something else than names.
    """

    def __init__(self, *quantities: str) -> None:
        self.by_name = bool(quantities)
        # What is looked at in every step is not among those that come by themselves.
        self.quantities = check_quantities("quantities", quantities or set(QUANTITIES) - set(WATCHED), QUANTITIES)

    def __repr__(self) -> str:
        return f"OptimizerMonitor({', '.join(map(repr, self.quantities)) if self.by_name else ''})"

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to watch the trainer, which has its optimizer now."""
        trainer = private.trainer_in_charge()
        callbacks = trainer.callback_handler.callbacks
        if sum(isinstance(callback, OptimizerMonitor) for callback in callbacks) > 1:
            raise ValueError(
                "the Trainer got two monitors of its optimizer (OptimizerMonitor, OptimizerCallback(log=...)), which "
                "would log the same; give one"
            )
        watch = next((callback for callback in callbacks if isinstance(callback, _Watch)), None)
        if watch is None:
            watch = _Watch()
            trainer.add_callback(watch)
        watch.training = _Training(trainer, self.quantities, self.by_name)
        private.intercept(trainer, "log", _log)
        owner, name = private.clipping_method(trainer)
        _clipping[owner] = watch
        private.intercept(owner, name, _clip)


class _Watch(TrainerCallback):
    """Tells a trainer's monitor when a step comes and when it has been taken. Between trainings it is empty."""

    training: _Training | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.training is not None:
            self.training.before_step(args, state, control)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.training is not None:
            self.training.after_step()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.training = None


class _Training:
    """What is watched of one training, and what is known since the last log."""

    def __init__(self, trainer: Any, quantities: Iterable[str], by_name: bool) -> None:
        optimizer = trainer.optimizer
        while isinstance(optimizer, private.AcceleratedOptimizer):
            optimizer = optimizer.optimizer
        missing = _missing(trainer, optimizer, quantities)
        if trainer.args.should_log:
            said: dict[str, list[str]] = {}
            for name, (reason, expected) in missing.items():
                if by_name or not expected:
                    said.setdefault(reason, []).append(PREFIX + name)
            for reason, names in said.items():
                logger.warning("%s not logged: %s", ", ".join(names), reason)
        self.trainer: Callable[[], Any] = weakref.ref(trainer)
        self.optimizer = optimizer
        self.quantities = frozenset(quantities) - missing.keys()
        self.measurement: StepMeasurement | None = None
        # The step that was measured, and the learning rates of the last one.
        self.measured = -1
        self.rates: list[Any] | None = None
        # Steps since the last log, and how many of them were clipped: a tensor where the norms are tensors.
        self.steps = 0
        self.clipped: Any = 0
        self.nonfinite: NonfiniteGradients | None = None
        if self.quantities.intersection(WATCHED):
            of_model = {id(param): name for name, param in trainer.model.named_parameters()}
            self.nonfinite = NonfiniteGradients(optimizer, of_model)

    def note_norm(self, norm: Any) -> None:
        """Count a step by the norm of its gradients, without waiting for the device."""
        if norm is not None and "clipped_share" in self.quantities:
            norm = norm.full_tensor() if is_dtensor(norm) else norm
            self.steps += 1
            self.clipped = self.clipped + (norm > self.trainer().args.max_grad_norm)

    def before_step(self, args: Any, state: Any, control: Any) -> None:
        if self.nonfinite is not None:
            self.nonfinite.note()
        wanted = self.quantities.intersection(MEASURED)
        if wanted and _will_log(self.trainer(), args, state, control):
            self.measurement = StepMeasurement(self.optimizer, wanted)
            self.measured = state.global_step + 1

    def after_step(self) -> None:
        if self.measurement is not None:
            self.measurement.close()  # of a step that was left out, for an overflow in float16
        if self.quantities.intersection(READ):
            self.rates = noted_rates(self.optimizer)

    def numbers(self, step: int) -> dict[str, float]:
        """What is to be logged after a step, by key."""
        found: dict[str, float] = {}
        if self.rates is not None:
            found |= read_groups(self.optimizer, self.rates, self.quantities)
        if self.measurement is not None and self.measured == step:
            found |= self.measurement.values()
        if self.steps:
            found["clipped_share"] = float(self.clipped) / self.steps
        if self.nonfinite is not None:
            names = self.nonfinite.take()
            found["nonfinite_gradients"] = float(len(names))
            if names and self.trainer().args.should_log:
                more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
                logger.warning(
                    "gradients with infinite or undefined entries up to step %d, of %d parameters: %s%s",
                    step,
                    len(names),
                    ", ".join(names[:SHOWN]),
                    more,
                )
        self.measurement, self.steps, self.clipped = None, 0, 0
        return {f"{PREFIX}{key}": value for key, value in found.items()}


# Who counts the steps that the owner of a clipping method clips.
_clipping: weakref.WeakKeyDictionary[Any, _Watch] = weakref.WeakKeyDictionary()


def _clip(owner: Any, clip: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Any:
    norm = clip(*args, **kwargs)
    watch = _clipping.get(owner)
    if watch is not None and watch.training is not None:
        watch.training.note_norm(norm)
    return norm


def _log(trainer: Any, log: Callable[..., Any], name: str, logs: dict[str, float], *args: Any, **kwargs: Any) -> Any:
    """Log the numbers together with a trainer's loss.

    `Trainer.log` is there to be overridden. Callbacks' `on_log` would come too late: the loggers among them come before
    those of the user, and the log's history is written before all.
    """
    watch = next((callback for callback in trainer.callback_handler.callbacks if isinstance(callback, _Watch)), None)
    if watch is not None and watch.training is not None and "loss" in logs and "learning_rate" in logs:
        logs = {**logs, **watch.training.numbers(trainer.state.global_step)}
    return log(logs, *args, **kwargs)


def _missing(trainer: Any, optimizer: Any, quantities: Iterable[str]) -> dict[str, tuple[str, bool]]:
    """Quantities that cannot be logged: why, and whether that is a matter of course for an optimizer."""
    found: dict[str, tuple[str, bool]] = {}
    quantities = list(quantities)
    reason = None
    if trainer.is_deepspeed_enabled:
        reason = "DeepSpeed has the parameters, gradients and clipping in its own hands"
    elif not isinstance(optimizer, Optimizer):
        reason = f"{type(optimizer).__name__} is no torch.optim.Optimizer"
    if reason is not None:
        return {name: (reason, False) for name in quantities if name != "lr"}
    for name, reason in lacking(optimizer, [name for name in quantities if name != "clipped_share"]).items():
        found[name] = reason, name in ("trust_ratio", "d")
    if "clipped_share" in quantities and not trainer.args.max_grad_norm:
        found["clipped_share"] = f"max_grad_norm={trainer.args.max_grad_norm!r} clips nothing", True
    return found


def _will_log(trainer: Any, args: Any, state: Any, control: Any) -> bool:
    """Whether the Trainer will log after the step that it is about to take."""
    coming = state.global_step + 1
    if control.should_log or (coming == 1 and args.logging_first_step):
        return True
    if args.logging_strategy == IntervalStrategy.STEPS:
        return bool(coming % state.logging_steps == 0)
    if args.logging_strategy == IntervalStrategy.EPOCH:
        return bool(trainer.accelerator.gradient_state.end_of_dataloader or coming >= state.max_steps)
    return False
