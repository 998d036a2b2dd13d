"""What is said once, when a training with an optimizer of hfoptim begins: settings that do nothing, or train wrong."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakSet

import torch
from transformers import Trainer

from hfoptim import schedules
from hfoptim.engine import RuleOptimizer, unwrap_all
from hfoptim.registry.recommended import in_force, say_if_far
from hfoptim.trainer import private
from hfoptim.trainer.build import Resolved
from hfoptim.wrappers import ScheduleFree

logger = logging.getLogger(__name__)


_seen: WeakSet[Any] = WeakSet()


def attend(trainer: Any, optimizer: Any, schedule: str, steps: int, options: Mapping[str, Any] | None = None) -> None:
    """Look at a trainer that is about to make its schedule, the first time.

    Args:
        trainer: the trainer.
        optimizer: its optimizer, wrapped or not.
        schedule: name of the schedule that it makes unless it was given one.
        steps: the number of optimizer steps of the whole training.
        options (default None): the schedule's options that were not given in the TrainingArguments.
    """
    ours, args = unwrap_all(optimizer, RuleOptimizer), trainer.args
    if not ours or trainer in _seen:
        return
    _seen.add(trainer)
    if trainer.lr_scheduler is None and args.should_log:
        warmup, given = args.get_warmup_steps(steps), _warm_up_as_given(args)
        if options is not None and "num_warmup_steps" in options:
            warmup = options["num_warmup_steps"]
            given = f"num_warmup_steps={warmup}"
        if unwrap_all(optimizer, ScheduleFree) and "constant" not in schedule:
            logger.warning(
                "ScheduleFree takes the place of a schedule and wants a constant learning rate, which %r is not; use "
                "'constant' or 'constant_with_warmup'",
                schedule,
            )
        for inner in ours:
            _say_of_warm_ups(inner, schedule, warmup, given)
    if args.gradient_accumulation_steps * args.world_size > 1 and args.n_gpu <= 1 and not args.torch_compile:
        private.intercept(trainer, "compute_loss", _watching)


# -- learning rates ---------------------------------------------------------------------------------------------------

_told: WeakSet[Any] = WeakSet()


def attend_rates(trainer: Any, resolved: Resolved, args: Any) -> None:
    """Warn, once for a trainer, of learning rates given that are far from all that anybody trains with.

    Args:
        trainer: who makes an optimizer; None where nobody knows.
        resolved: the optimizer and its values.
        args: the TrainingArguments.
    """
    if trainer in _told or not args.should_log:
        return
    if trainer is not None:
        _told.add(trainer)
    for each in (resolved, *resolved.others.values()):
        if each.lr_given and not getattr(each.made, "lr_is_factor", False):  # the optimizer itself warns of those
            options = in_force(each.choice.name, each.kwargs)
            warning = say_if_far(each.choice.name, each.lr, options)
            if warning is not None:
                logger.warning(warning)


# -- warm-ups ---------------------------------------------------------------------------------------------------------


def _say_of_warm_ups(optimizer: RuleOptimizer, schedule: str, warmup: float, given: str) -> None:
    """Warn of a schedule where none is wanted, of a warm-up that does nothing, and of two that meet."""
    cls = type(optimizer).__name__
    # Schedule-free optimizers have a warm-up of their own, in place of a schedule's.
    own = max((group["warmup_steps"] for group in optimizer.param_groups if "warmup_steps" in group), default=None)
    steps = own or (int(warmup) if warmup >= 1 else 100)
    how = f'optim_args="warmup_steps={steps}" or OptimizerCallback(..., warmup_steps={steps})'
    if optimizer.wants_constant_lr and "constant" not in schedule:
        logger.warning(
            "%s takes the place of a schedule and wants a constant learning rate, which %r is not; use 'constant'. %s; "
            "warmup_steps of the TrainingArguments is not read",
            cls,
            schedule,
            "It needs no warm-up" if own is None else f"A warm-up is then an option of the optimizer, {how}",
        )
    if not warmup:
        return
    if not _has_warm_up(schedule):
        instead = "use 'constant_with_warmup'" if schedule.endswith("constant") else "leave it out"
        instead = instead if own is None else f"the optimizer's own is {how}"
        logger.warning("%s does nothing: the schedule %r has no warm-up; %s", given, schedule, instead)
    elif own:
        logger.warning(
            "two warm-ups multiply, %s of the schedule and the optimizer's own warmup_steps=%d (%s); leave one out",
            given,
            own,
            cls,
        )


def _warm_up_as_given(args: Any) -> str:
    """The field of TrainingArguments that asks for a warm-up: steps, which come first, or a share (4.57)."""
    field = "warmup_steps" if args.warmup_steps or not getattr(args, "warmup_ratio", None) else "warmup_ratio"
    return f"{field}={getattr(args, field):g}"


def _has_warm_up(schedule: str) -> bool:
    """Whether a schedule takes notice of `num_warmup_steps`; one that is unknown here is transformers' and does."""
    try:
        info = schedules.get_schedule_info(schedule.removeprefix("hfoptim_"))
    except ValueError:
        return True
    return "num_warmup_steps" in inspect.signature(info.factory).parameters


# -- losses that nobody divides ---------------------------------------------------------------------------------------


class _Witness(torch.Tensor):
    """A tensor that notes whether anything was done with it."""

    used: bool

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in (*args, *(kwargs or {}).values()):
            if isinstance(value, cls):
                value.used = True
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


_watched: WeakSet[Any] = WeakSet()


def _watching(trainer: Any, compute: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Any:
    """`compute_loss`: see in the first micro-batch whether the loss is divided by the number of items that it is given.

    The Trainer leaves out its own division by the number of micro-batches (and of processes) where a model's forward
    takes `**kwargs`, which says nothing about whether the model looks at `num_items_in_batch`.
    """
    items = kwargs.get("num_items_in_batch")
    if trainer in _watched or not trainer.is_in_train or type(items) is not torch.Tensor:
        return compute(*args, **kwargs)
    _watched.add(trainer)
    witness = items.as_subclass(_Witness)
    witness.used = False
    result = compute(*args, **{**kwargs, "num_items_in_batch": witness})
    if not witness.used and trainer.args.should_log and _counts_as_divided(trainer):
        _say_times(trainer)
    return result


def _counts_as_divided(trainer: Any) -> bool:
    """Whether the Trainer takes the loss for one that is divided already, without having been told so.

    `loss_is_scaled_for_ga` says it in transformers 5; 4.57 does not know it.
    """
    told = hasattr(Trainer, "loss_is_scaled_for_ga") and trainer.loss_is_scaled_for_ga is not None
    return trainer.model_accepts_loss_kwargs and trainer.compute_loss_func is None and not told


def _say_times(trainer: Any) -> None:
    args = trainer.args
    across = args.world_size if args.average_tokens_across_devices else 1
    times = args.gradient_accumulation_steps * across
    logger.warning(
        "the loss of %s makes no use of num_items_in_batch, though the Trainer relies on that: with %d micro-batches "
        "in a step, on %d process(es), loss and gradients are %d times too large, and each micro-batch counts alike, "
        "however few tokens it has. Put it right with callbacks=[hfoptim.TokenWeights()] or, for a script as it is, "
        "with python -m hfoptim --token-weights SCRIPT",
        type(trainer.accelerator.unwrap_model(trainer.model)).__name__,
        args.gradient_accumulation_steps,
        args.world_size,
        times,
    )
