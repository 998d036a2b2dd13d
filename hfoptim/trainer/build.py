"""From a name, its options and the TrainingArguments to an optimizer's class and arguments, and to a schedule.

What an optimizer is built with, the first that is there:
1. what was given by name: `OptimizerCallback(...)` or `optim_args`;
2. what was changed in the TrainingArguments: learning_rate, weight_decay, adam_beta1, adam_beta2, adam_epsilon;
3. the optimizer's own default.
"Changed" is different from the default of the arguments' own class, see `hfoptim.trainer.defaults`.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from hfoptim import registry, schedules
from hfoptim.engine import unwrap
from hfoptim.factory import grouped
from hfoptim.optimizers.adafactor import Adafactor, AdafactorSchedule
from hfoptim.optimizers.adam_weight_decay import KERAS
from hfoptim.param_groups.options import OPTIONS as GROUPING_OPTIONS
from hfoptim.param_groups.options import Grouping
from hfoptim.registry.recommendation import Recommendation
from hfoptim.registry.recommended import RECOMMENDED, take_recommended
from hfoptim.trainer import defaults
from hfoptim.trainer.options import fit, parse_options
from hfoptim.training.gradient_release import releasable
from hfoptim.wrappers import CombinedOptimizer

logger = logging.getLogger(__name__)

# The fields of TrainingArguments by what optimizers call them.
FIELDS = {
    "lr": "learning_rate",
    "weight_decay": "weight_decay",
    "eps": "adam_epsilon",
    "betas[0]": "adam_beta1",
    "betas[1]": "adam_beta2",
}


@dataclass(frozen=True)
class Choice:
    """An optimizer chosen by name, with the options given for it.

    Args:
        name: its canonical name.
        options: constructor keywords and values, checked.
        grouping: how the parameters differ, other optimizers among them.
        recommended: whose learning rate was taken for lr="recommended"; None where none was.
    """

    name: str
    options: Mapping[str, Any]
    grouping: Grouping = dataclasses.field(default_factory=Grouping)
    recommended: Recommendation | None = None

    @classmethod
    def make(cls, name: str, options: Mapping[str, Any]) -> Choice:
        """Check a name and options.

        Raises:
            ValueError: the name or an option is unknown (lists the closest), a value is of the wrong kind, or the
                optimizer needs what the Trainer does not give.
        """
        name = registry.canonical_name(name)
        info = registry.get_optimizer_info(name)
        if not info.in_trainer:
            raise ValueError(
                f"{name} needs {info.needs}, which the Trainer does not give; use it in a training loop of your own, "
                f"or choose another optimizer here"
            )
        registry.check_options(name, options, also=(*GROUPING_OPTIONS, "task"))
        grouping, options = grouped.take_grouping(name, options, fit)
        for other in grouping.others:
            cls.make(other, {})
        own = registry.option_defaults(name)
        fitted = {k: v if (k, v) == ("lr", RECOMMENDED) else fit(k, v, own.get(k)) for k, v in options.items()}
        taken, recommended = take_recommended(name, _common(fitted, own))
        return cls(name, taken, grouping, recommended)

    @classmethod
    def from_arguments(cls, name: str, args: Any) -> Choice:
        """The choice that `TrainingArguments(optim=name, optim_args=...)` makes."""
        return cls.make(name, parse_options(args.optim_args))

    @property
    def optimizer_class(self) -> type[torch.optim.Optimizer]:
        return CombinedOptimizer if self.grouping.others else registry.get_optimizer_info(self.name).opt_class

    def resolve(self, args: Any | None) -> Resolved:
        """Settle every value, and try them.

        Args:
            args: the TrainingArguments; None when they are not known yet.

        Raises:
            ValueError: a value is out of range, two exclude each other, or the optimizer cannot release gradients.
        """
        own = registry.option_defaults(self.name)
        unused: list[str] = []
        changed = {} if args is None else _from_arguments(own, args, unused)
        if self.options.get("relative_step"):
            changed.pop("lr", None)
        elif args is None and self.options.get("relative_step") is False:
            # The arguments will have to give one.
            changed["lr"] = 1e-3
        elif args is None and self.grouping and self.options.get("lr", own["lr"]) is None:
            changed["lr"] = 1e-3  # they may
        kwargs = registry.resolve_options(self.name, {**changed, **self.options})
        try:
            made = registry.dummy(registry.get_optimizer_info(self.name).opt_class, kwargs)
        except (TypeError, ValueError) as error:
            if args is None:
                raise
            raise type(error)(_as_written(str(error), changed.keys() - self.options.keys())) from error
        if kwargs.get("gradient_release"):
            releasable(made)
        others = {other: Choice.make(other, {}).resolve(args) for other in self.grouping.others}
        if self.grouping:
            grouped.check_grouping(self.grouping, chosen_kwargs(self.name, kwargs, others))
        if args is not None:
            self._refuse_mixed_rates(kwargs.get("lr", own["lr"]), others)
        lr_given = "lr" in changed or "lr" in self.options or self.options.get("relative_step", False)
        decay = kwargs.pop("weight_decay", own.get("weight_decay", 0.0))
        return Resolved(self, kwargs, decay, kwargs.get("lr", own["lr"]), bool(lr_given), tuple(unused), made, others)

    def _refuse_mixed_rates(self, lr: Any, others: Mapping[str, Resolved]) -> None:
        """Raise if some parameters get a learning rate and others set theirs: no schedule is for both kinds."""
        given = {f"param_options[{p!r}]": o for p, o in self.grouping.param_options.items() if "optimizer" not in o}
        changing = [where for where, options in given.items() if options.get("lr") is not None]
        changing += ["head_lr"] if self.grouping.head_lr is not None else []
        if lr is None and changing:
            raise ValueError(
                f"{self.name} sets its own learning rate, which no schedule can scale together with that of "
                f"{changing[0]}; give lr"
            )
        rates = {self.name: lr}
        for options in self.grouping.param_options.values():
            other = options.get("optimizer")
            if other is not None and (other not in rates or rates[other] is not None):
                rates[other] = options.get("lr", others[other].lr)
        alone = [name for name, rate in rates.items() if rate is None]
        if alone and others:
            raise ValueError(
                f"{alone[0]} sets its own learning rate, which no schedule can scale together with that of another "
                f"optimizer; give it an lr"
            )


@dataclass(frozen=True)
class Resolved:
    """A choice with every value settled.

    Args:
        choice: what was chosen.
        kwargs: the constructor's keywords, without weight decay.
        weight_decay: of the parameters that get any.
        lr: the learning rate, None if the optimizer sets its own.
        lr_given: whether the user gave the learning rate.
        unused: the fields of TrainingArguments that were changed and that this optimizer does not have.
        made: such an optimizer, of a parameter of no size.
        others: the other optimizers of the grouping, by name.
    """

    choice: Choice
    kwargs: Mapping[str, Any]
    weight_decay: float
    lr: Any
    lr_given: bool
    unused: tuple[str, ...]
    made: torch.optim.Optimizer
    others: Mapping[str, Resolved] = dataclasses.field(default_factory=dict)

    @property
    def certain_lrs(self) -> list[float]:
        """Learning rates that some parameter gets for certain, whatever the model is; none if it sets its own.

        Patterns that have one of their own may be all there is, and each of them decides something, else it is refused.
        """
        grouping = self.choice.grouping
        if grouping.param_options:
            lrs = [options.get("lr") for options in grouping.param_options.values()]
        else:
            lrs = [self.lr, grouping.head_lr]
        return [lr for lr in lrs if lr is not None]

    @property
    def sets_its_own_lr(self) -> bool:
        return self.lr is None

    @property
    def all_kwargs(self) -> dict[str, Any]:
        has_decay = "weight_decay" in registry.option_defaults(self.choice.name)
        return {**self.kwargs, **({"weight_decay": self.weight_decay} if has_decay else {})}


def chosen_kwargs(name: str, kwargs: Mapping[str, Any], others: Mapping[str, Resolved]) -> dict[str, Mapping[str, Any]]:
    """The constructor's keywords of all optimizers by name, the main one first."""
    return {name: kwargs, **{other: resolved.all_kwargs for other, resolved in others.items()}}


def _common(options: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Options of an optimizer that takes Keras' names too, by everybody's.

    Raises:
        ValueError: one is given by both names.
    """
    if "learning_rate" not in own:
        return dict(options)
    common: dict[str, Any] = {}
    for option, value in options.items():
        name = "betas" if option in ("beta_1", "beta_2") else KERAS.get(option, option)
        if name != option and name in options:
            raise ValueError(f"{option}={value!r} and {name}={options[name]!r} are the same option; give one of them")
        if name != option and name == "betas":
            pair = list(common.get("betas", own["betas"]))
            pair[int(option[-1]) - 1] = value
            value = tuple(pair)
        common[name] = value
    return common


def _from_arguments(own: Mapping[str, Any], args: Any, unused: list[str]) -> dict[str, Any]:
    """What the user changed in the TrainingArguments; notes in `unused` what the optimizer has no option for."""
    options: dict[str, Any] = {}
    for field, option in (("learning_rate", "lr"), ("weight_decay", "weight_decay"), ("adam_epsilon", "eps")):
        # A pair of eps (Adafactor's) is not Adam's eps.
        if defaults.changed(args, field) and option in own and not isinstance(own[option], tuple):
            options[option] = getattr(args, field)
        elif defaults.changed(args, field):
            unused.append(field)
    for index, field in enumerate(("adam_beta1", "adam_beta2")):
        if defaults.changed(args, field) and isinstance(own.get("betas"), tuple):
            pair = list(options.get("betas", own["betas"]))
            pair[index] = getattr(args, field)
            options["betas"] = tuple(pair)
        elif defaults.changed(args, field):
            unused.append(field)
    return options


def _as_written(message: str, options: Iterable[str]) -> str:
    """A message about options that came from the TrainingArguments, with the names that they have there."""
    for option in options:
        for name in [name for name in FIELDS if name.partition("[")[0] == option]:
            message = re.sub(rf"(?<![\w.]){re.escape(name)}=", f"{FIELDS[name]}=", message)
    return message


# -- schedules ------------------------------------------------------------------------------------------------------


def schedule_by_name(
    name: str, optimizer: Any, num_warmup_steps: int | None = None, num_training_steps: int | None = None, **kwargs: Any
) -> Any:
    """Make a schedule of ours; the form that transformers' table of schedules wants."""
    return schedules.get_scheduler(name, optimizer, num_warmup_steps, num_training_steps, kwargs)


def own_schedule(optimizer: Any) -> AdafactorSchedule | None:
    """The schedule of an optimizer that sets its own learning rate, or None for one that does not."""
    adafactor = unwrap(optimizer, Adafactor)
    if adafactor is None or not all(group["relative_step"] for group in adafactor.param_groups):
        return None
    return AdafactorSchedule(optimizer)


def check_no_idle_schedule(resolved: Resolved, args: Any) -> None:
    """Raise if the user asked for a schedule or a warmup of an optimizer that sets its own learning rate.

    Those that the arguments' class has by default are not asked for.
    """
    if not resolved.sets_its_own_lr:
        return
    name, schedule = resolved.choice.name, str(args.lr_scheduler_type.value)
    if schedule != "constant" and defaults.changed(args, "lr_scheduler_type"):
        raise ValueError(
            f"{name} with relative_step=True sets its own learning rate, which lr_scheduler_type={schedule!r} cannot "
            f"scale; give a learning rate, or leave out lr_scheduler_type"
        )
    if defaults.warmup_changed(args):
        raise ValueError(
            f"{name} with relative_step=True sets its own learning rate, which a warmup cannot scale; give a learning "
            f"rate, or its option warmup_init=True in place of the warmup steps"
        )


def prepare_schedule_arguments(schedule: str, args: Any, resolved: Resolved | None = None) -> None:
    """Check `lr_scheduler_type` and `lr_scheduler_kwargs` for a schedule of ours.

    Args:
        schedule: its canonical name.
        args: the TrainingArguments.
        resolved: the optimizer, if it is one of ours. Of another one no more is known than `learning_rate`, and that
            only if the user changed it: optimizers made by hand have a rate of their own.

    Raises:
        TypeError: an option of the wrong type.
        ValueError: an unknown or missing option, a value out of range or a floor above the learning rate, or no
            evaluation for a schedule that follows a metric.
    """
    options, where, steps = args.lr_scheduler_kwargs or {}, "lr_scheduler_kwargs", known_steps(args)
    if resolved is not None:
        lrs = resolved.certain_lrs
    else:
        lrs = [args.learning_rate] if defaults.changed(args, "learning_rate") else []
    check_schedule_options(schedule, options, where, lrs=lrs, steps=steps)
    if not lrs and resolved is None and args.should_log:
        try:
            check_schedule_options(schedule, options, where, lrs=[args.learning_rate], steps=steps)
        except ValueError as error:
            logger.warning("%s; learning_rate is its default: unless the optimizer has another, give it", error)
    require_metric(schedule, args)


def known_steps(args: Any) -> dict[str, Any]:
    """The numbers of steps that the TrainingArguments fix by themselves; None for those that the data decides."""
    total = args.max_steps if args.max_steps > 0 else None
    warmups = {args.get_warmup_steps(steps) for steps in ([total] if total else [10**6, 2 * 10**6])}
    return {"num_warmup_steps": warmups.pop() if len(warmups) == 1 else None, "num_training_steps": total}


def require_metric(schedule: str, args: Any) -> None:
    """See that a schedule that follows an evaluation metric gets one; the default is the loss.

    Raises:
        ValueError: the TrainingArguments ask for no evaluation.
    """
    if schedules.get_schedule_info(schedule).needs_metric:
        if str(getattr(args.eval_strategy, "value", args.eval_strategy)) == "no":
            raise ValueError(
                f"schedule {schedule!r} follows an evaluation metric; give eval_strategy='steps' or 'epoch'"
            )
        if args.metric_for_best_model is None:
            args.metric_for_best_model = "loss"
        if args.greater_is_better is None:
            args.greater_is_better = not args.metric_for_best_model.endswith("loss")


def check_schedule_options(
    schedule: str,
    options: Mapping[str, Any],
    where: str,
    extra: tuple[str, ...] = (),
    lrs: Sequence[float] = (),
    steps: Mapping[str, Any] | None = None,
) -> None:
    """Check a schedule's options, names and values, before there is an optimizer.

    Args:
        schedule: its canonical name.
        options: the options.
        where: where the user gave them, for the message.
        extra: what is allowed besides the schedule's own: numbers of steps.
        lrs: learning rates that parameters are known to get.
        steps: the numbers of steps that are known otherwise.

    Raises:
        TypeError: an option of the wrong type.
        ValueError: an option is unknown or missing (names those there are), a value is out of range or is none of the
            words that there are (names the closest), or a floor is above one of the learning rates.
    """
    info = schedules.get_schedule_info(schedule)
    known = [*info.kwargs, *extra]
    for option in options:
        if option not in known:
            raise ValueError(
                f"{where}: {schedule} has no option {option!r}; it has {', '.join(known) or 'none'}"
                f"{schedules.checks.did_you_mean(option, known)}"
            )
    for option in info.required_kwargs:
        if option not in options:
            raise ValueError(f"{where}: {schedule} needs the option {option!r}")
    own = {option: value for option, value in options.items() if option not in extra}
    given = {**(steps or {}), **{option: options[option] for option in extra if option in options}}
    try:
        schedules.check_options(schedule, own, lrs or None, **given)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    except TypeError as error:
        raise TypeError(f"{where}: {error}") from None


def check_hyperparameters(choice: Choice, schedule: str | None, hyperparameters: Mapping[str, Any]) -> None:
    """Check what is to follow a curve beside the learning rate, as far as it is known before the optimizer is made.

    Args:
        choice: the optimizer.
        schedule: the canonical name of the schedule of the learning rate, None for the Trainer's.
        hyperparameters: by name, a curve, the name of a schedule, or a pair of that and its arguments.

    Raises:
        TypeError: a curve is none of these, or its schedule has no such argument.
        ValueError: there is no schedule to go with, a name is unknown, or an argument is.
    """
    if not hyperparameters:
        return
    if schedule is None or schedules.get_schedule_info(schedule).curve is None:
        given = "the Trainer's lr_scheduler_type" if schedule is None else f"{schedule!r}, which follows a metric"
        raise ValueError(
            f"hyperparameters={sorted(hyperparameters)} go along with the steps of a schedule given here, not with "
            f"{given}; give schedule='cosine' or another one"
        )
    groups = [registry.option_defaults(name) for name in (choice.name, *choice.grouping.others)]
    for name, curve in hyperparameters.items():
        if all(schedules.following.find(group, name) is None for group in groups):
            raise schedules.following.unknown(name, groups)
        _curve_with_some_steps(name, curve)


def check_hyperparameter_values(resolved: Resolved, hyperparameters: Mapping[str, Any]) -> None:
    """Try the curves over the optimizer's own numbers, where these are the same for all parameters.

    Args:
        resolved: the optimizer.
        hyperparameters: as for `check_hyperparameters`, checked by it.

    Raises:
        ValueError: a curve takes a number out of its range, or ends above it.
    """
    if resolved.choice.grouping:
        return
    group = {**registry.option_defaults(resolved.choice.name), **resolved.all_kwargs}
    for name, curve in hyperparameters.items():
        place = schedules.following.find(group, name)
        if place is None or not place.of(group):
            continue  # Parameters that get no weight decay have groups of their own: at the start of the training.
        # What a named curve does later depends on the number of steps.
        tried = curve if isinstance(curve, schedules.Curve) else _curve_with_some_steps(name, curve).until(0)
        schedules.following.Following(SimpleNamespace(param_groups=[dict(group)]), name, tried)  # type: ignore[arg-type]


def _curve_with_some_steps(name: str, curve: Any) -> schedules.Curve:
    where = f"hyperparameters[{name!r}]"
    return schedules.registry.with_some_steps(
        lambda warmup, total: schedules.table.described(where, curve, warmup, total)
    )


def schedule_hyperparameters(scheduler: Any, hyperparameters: Mapping[str, Any], steps: Mapping[str, int]) -> None:
    """Let hyper-parameters follow their curves along with the schedule of the learning rate.

    Args:
        scheduler: that schedule.
        hyperparameters: as for `check_hyperparameters`.
        steps: the Trainer's `num_warmup_steps` and `num_training_steps`, for curves that are named without their own.

    Raises:
        ValueError: a value is out of range, or 0 in all groups.
    """
    for name, curve in hyperparameters.items():
        if not isinstance(curve, schedules.Curve):
            curve = schedules.table.described(f"hyperparameters[{name!r}]", curve, **steps)
        schedules.schedule_hyperparameter(scheduler.optimizer, name, curve, scheduler)
