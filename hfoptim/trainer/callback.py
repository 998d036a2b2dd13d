"""`OptimizerCallback`: the optimizer and the schedule of one Trainer, chosen by name."""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from transformers import TrainerCallback

from hfoptim import schedules
from hfoptim.engine import unwrap
from hfoptim.factory.placements import ParamPlacements, describe_param_groups
from hfoptim.trainer import build, checkpoints, making, methods, private, release, second_pass
from hfoptim.trainer.monitor import QUANTITIES, OptimizerMonitor
from hfoptim.trainer.names import our_schedule
from hfoptim.trainer.options import parse_options
from hfoptim.training.step_metrics import check_quantities

logger = logging.getLogger(__name__)


class OptimizerCallback(TrainerCallback):
    """Choose a Trainer's optimizer and schedule by name, whatever its arguments' `optim` says.

        Trainer(model, args, train_dataset=data, callbacks=[OptimizerCallback("lion", lr=3e-4, schedule="cosine")])

    Parameters get weight decay as the Trainer gives it: not biases and normalisation layers. What is not given here
    comes from the TrainingArguments where the user changed them, else it is the optimizer's own default. One callback
    may serve several trainers. A Trainer subclass whose `get_optimizer_cls_and_kwargs` or `create_scheduler` calls
    `super()` gets what is chosen here from there.

    Args:
        optimizer: a name of `hfoptim.list_optimizers()`, or of another package's optimizer (`hfoptim.providers`), in
            any case, with `-` or `_`.
        lr (default None): learning rate. None: `args.learning_rate` if it is not the default of the arguments' class
            (TrainingArguments: 5e-5), else the optimizer's own. "recommended": what a source trains with for the
            `task`, see `hfoptim info`; the log says which.
        task (None): "finetune", "pretrain" or "lora", for `lr="recommended"`. None: "finetune".
        weight_decay (None): for the parameters that get any. None: `args.weight_decay` if it is not the default of
            the arguments' class (TrainingArguments: 0.0), else the optimizer's own.
        schedule (None): a name of `schedules.list_schedules()`. None: the Trainer's `lr_scheduler_type`.
        schedule_kwargs (None): options of the schedule, as a dict or as text such as "pct_start=0.3".
            `num_warmup_steps` and `num_training_steps` are the Trainer's unless given here.
        hyperparameters (None): what else follows a curve beside the learning rate, in the same schedule:
            `{"weight_decay": curve, "beta2": ("linear", {"num_warmup_steps": 0})}`, see
            `schedules.schedule_hyperparameter`. Numbers of steps that a named curve needs are the Trainer's unless
            given. Needs `schedule`.
        log (None): what of the optimizer goes into the Trainer's log: True for all, or names of quantities, see
            `OptimizerMonitor`. None: nothing.
        **options: the optimizer's own options, such as `betas`, `momentum`, `foreach`; and those by which parameters
            differ: `layer_decay`, `head_lr`, `param_options`, see `hfoptim.param_groups.options.Grouping`.

    Raises:
        ValueError: an unknown optimizer, schedule, hyper-parameter, option or quantity, a value out of range, or
            `schedule_kwargs` or `hyperparameters` without `schedule`. From the Trainer: it was also given an optimizer
            in another way, asks for no evaluation while the schedule follows a metric, or clips, accumulates or scales
            gradients that are to be released.
        TypeError: an option of the wrong type.
        RuntimeError: at the start of the training: the callback was added after the Trainer was made, or the Trainer
            built its optimizer, or the schedule where one is chosen here, in another way.
    """

    def __init__(
        self,
        optimizer: str,
        *,
        lr: float | str | None = None,
        task: str | None = None,
        weight_decay: float | None = None,
        schedule: str | None = None,
        schedule_kwargs: Mapping[str, Any] | str | None = None,
        hyperparameters: Mapping[str, Any] | None = None,
        log: bool | str | Iterable[str] | None = None,
        **options: Any,
    ) -> None:
        if isinstance(schedule_kwargs, str):
            schedule_kwargs = parse_options(schedule_kwargs, "schedule_kwargs")
        given = {"lr": lr, "task": task, "weight_decay": weight_decay}
        self.choice = build.Choice.make(optimizer, {**{k: v for k, v in given.items() if v is not None}, **options})
        resolved = self.choice.resolve(None)
        if schedule is None and schedule_kwargs:
            raise ValueError(f"schedule_kwargs={dict(schedule_kwargs)!r} needs the name of a schedule; give schedule")
        self.schedule = None if schedule is None else schedules.canonical_schedule_name(schedule)
        self.schedule_kwargs = dict(schedule_kwargs or {})
        if self.schedule is not None:
            lr_is_known = "lr" in self.choice.options or self.choice.grouping.param_options
            self._check_schedule(resolved.certain_lrs if lr_is_known else [])
        self.hyperparameters = dict(hyperparameters or {})
        build.check_hyperparameters(self.choice, self.schedule, self.hyperparameters)
        self.monitor = None
        if log is not None and log is not False:
            names = check_quantities("log", log, QUANTITIES)
            self.monitor = OptimizerMonitor() if log is True else OptimizerMonitor(*names)

    def __repr__(self) -> str:
        given = {**self.choice.options, **self.choice.grouping.given}
        options = "".join(f", {name}={value!r}" for name, value in given.items())
        names = ("schedule", "schedule_kwargs", "hyperparameters")
        rest = "".join(f", {name}={getattr(self, name)!r}" for name in names if getattr(self, name))
        return f"OptimizerCallback({self.choice.name!r}{options}{rest})"

    # -- the Trainer's events -------------------------------------------------------------------------------------

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take over the making of this trainer's optimizer and schedule: the last event before they are made."""
        trainer = private.trainer_in_charge()
        self._refuse_conflicts(trainer)
        resolved = self.choice.resolve(args)
        release.check_options(resolved.kwargs, args)
        second_pass.check_arguments(resolved.made, args)
        if self.schedule is not None:
            if resolved.sets_its_own_lr:
                raise ValueError(
                    f"{self.choice.name} with relative_step=True sets its own learning rate, which "
                    f"schedule={self.schedule!r} cannot scale; give lr, or leave out schedule"
                )
            self._check_schedule(resolved.certain_lrs, build.known_steps(args))
            build.check_hyperparameter_values(resolved, self.hyperparameters)
            build.require_metric(self.schedule, args)
        else:
            build.check_no_idle_schedule(resolved, args)
            theirs = our_schedule(args)
            if theirs is not None:
                build.prepare_schedule_arguments(theirs, args, resolved)
        methods.take_charge(trainer, self)
        _served[self] = weakref.ref(trainer)
        if self.monitor is not None:
            trainer.add_callback(self.monitor)
        _resume_from_whole_checkpoints()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Raise if this trainer does not train with the optimizer and the schedule chosen here."""
        trainer = private.trainer_in_charge()
        if methods.maker_of(trainer) is not self:
            raise RuntimeError(
                f"{self!r} was added after the Trainer was made, too late to choose its optimizer; give it to the "
                f"Trainer itself: Trainer(..., callbacks=[OptimizerCallback({self.choice.name!r}, ...)])"
            )
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("%s\n%s", self, self.describe())
        wanted = self.choice.optimizer_class
        if unwrap(trainer.optimizer, wanted) is None:
            found = type(unwrap(trainer.optimizer))
            raise RuntimeError(
                f"{self!r} chose {wanted.__name__}, but the training starts with {found.__name__}: "
                f"{type(trainer).__name__}.create_optimizer, its get_optimizer_cls_and_kwargs or a DeepSpeed "
                f"configuration makes its own; remove one"
            )
        if self.schedule is not None and not (methods.schedule_was_made(trainer) or trainer.is_deepspeed_enabled):
            raise RuntimeError(
                f"{self!r} chose schedule={self.schedule!r}, but the training starts with "
                f"{type(trainer.lr_scheduler).__name__}: {type(trainer).__name__}.create_scheduler makes its own; "
                f"remove one"
            )

    def describe(self) -> ParamPlacements:
        """Which parameter of the last trainer that got this callback has which rule, learning rate and weight decay.

        The log has it at the start of a training, at the level DEBUG.

        Returns:
            What `describe_param_groups` says; as text, a table.

        Raises:
            RuntimeError: there is no trainer, or it has no optimizer yet.
        """
        trainer = _served[self]() if self in _served else None
        if trainer is None or trainer.optimizer is None:
            raise RuntimeError(
                f"{self!r} has made no optimizer yet; ask during the training, or after trainer.create_optimizer()"
            )
        return describe_param_groups(trainer.model, trainer.optimizer)

    # -- in place of Trainer's own methods, see hfoptim.trainer.methods ------------------------------------------------

    @property
    def chosen_schedule(self) -> str | None:
        """The name of the schedule; None: that of the arguments."""
        return self.schedule

    @property
    def schedule_options(self) -> Mapping[str, Any]:
        """The options given for the schedule here."""
        return self.schedule_kwargs

    def optimizer_cls_and_kwargs(
        self, args: Any, model: Any = None, trainer: Any | None = None
    ) -> tuple[type, dict[str, Any]]:
        """The optimizer's class and arguments, in place of `Trainer.get_optimizer_cls_and_kwargs`."""
        return making.class_and_kwargs(self.choice.resolve(args), args, model, trainer)

    def make_schedule(self, trainer: Any, optimizer: Any, num_training_steps: int) -> Any | None:
        """The schedule, for `Trainer.create_scheduler`.

        Args:
            trainer: the trainer.
            optimizer: its optimizer, wrapped or not.
            num_training_steps: the number of optimizer steps of the whole training.

        Returns:
            A new schedule; None for the one that the Trainer makes by itself.
        """
        scheduler = build.own_schedule(optimizer)
        if scheduler is None and self.schedule is not None:
            warmup = trainer.args.get_warmup_steps(num_training_steps)
            steps = {"num_warmup_steps": warmup, "num_training_steps": num_training_steps}
            scheduler = build.schedule_by_name(self.schedule, optimizer, **{**steps, **self.schedule_kwargs})
            build.schedule_hyperparameters(scheduler, self.hyperparameters, steps)
        return scheduler

    # ----------------------------------------------------------------------------------------------------------------

    def _check_schedule(self, lrs: Sequence[float] = (), steps: Mapping[str, Any] | None = None) -> None:
        assert self.schedule is not None
        build.check_schedule_options(
            self.schedule,
            self.schedule_kwargs,
            "schedule_kwargs",
            extra=("num_warmup_steps", "num_training_steps"),
            lrs=lrs,
            steps=steps,
        )

    def _refuse_conflicts(self, trainer: Any) -> None:
        if trainer.optimizer is not None:
            raise ValueError(
                f"the Trainer got {self!r} and optimizers=({type(trainer.optimizer).__name__}, ...); give one of them"
            )
        if trainer.optimizer_cls_and_kwargs is not None:
            other = trainer.optimizer_cls_and_kwargs[0]
            raise ValueError(
                f"the Trainer got {self!r} and optimizer_cls_and_kwargs=({getattr(other, '__name__', other)}, ...); "
                f"give one of them"
            )
        if trainer.lr_scheduler is not None and self.schedule is not None:
            raise ValueError(
                f"the Trainer got schedule={self.schedule!r} and optimizers=(None, "
                f"{type(trainer.lr_scheduler).__name__}); give one of them"
            )
        other = methods.maker_of(trainer)
        if isinstance(other, OptimizerCallback):
            raise ValueError(f"the Trainer got two optimizers, {other!r} and {self!r}; give one of them")


# The last trainer of each callback, which is not kept by it: callbacks are copied and pickled.
_served: WeakKeyDictionary[OptimizerCallback, weakref.ref[Any]] = WeakKeyDictionary()


@functools.cache
def _resume_from_whole_checkpoints() -> None:
    """Let `train(resume_from_checkpoint=True)` of trainers with the callback pass over unfinished checkpoints.

    `train` itself cannot be replaced on a trainer: it would have to hold the trainer weakly, and in
    `Trainer(...).train()` nobody else holds it. So the function behind it asks which trainer it works for, and does
    what it always did for those without the callback. Done once in a process.
    """

    def make(original: Callable[[str], str | None]) -> Callable[[str], str | None]:
        @functools.wraps(original)
        def get_last_checkpoint(folder: str) -> str | None:
            try:
                attached = private.trainer_in_charge().callback_handler.callbacks
            except RuntimeError:
                attached = []
            ours = any(isinstance(callback, OptimizerCallback) for callback in attached)
            return checkpoints.last_whole_checkpoint(folder) if ours else original(folder)

        return get_last_checkpoint

    private.last_checkpoint_finder(make, scripts=False)
