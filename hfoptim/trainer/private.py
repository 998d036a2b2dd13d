"""All that touches parts of transformers, accelerate and enum which are not their public interface.

Checked with transformers 4.57 and 5.23, accelerate 1.15, Python 3.10 to 3.13. When a new release breaks hfoptim, this
is the file to look at.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

import transformers
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from transformers import Trainer, hf_argparser, trainer_utils
from transformers import trainer as trainer_module
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from transformers.pytorch_utils import Conv1D
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from hfoptim.engine.parameter_names import bare, bare_names_of

__all__ = [
    "SAVING",
    "AcceleratedOptimizer",
    "OptimizerNames",
    "SchedulerType",
    "add_member",
    "add_schedule_function",
    "attention_kind",
    "checkpoint_folder",
    "checkpointing_is_reentrant",
    "choice_reader",
    "clip_gradients",
    "clipping_method",
    "decay_parameter_names",
    "deletion_order",
    "forget_meshes",
    "in_every_trainer",
    "intercept",
    "keep_scheduler",
    "last_checkpoint_finder",
    "open_choices",
    "remove_member",
    "remove_schedule_function",
    "replace",
    "trainer_in_charge",
    "windows_of_epoch",
]

# The methods of a Trainer that write the model or the optimizer to disk (4.57 and 5.x); push_to_hub calls the first.
SAVING = ("save_model", "_save_checkpoint", "_save_optimizer_and_scheduler")


def trainer_in_charge() -> Any:
    """The `Trainer` whose event is being handled.

    transformers hands a callback the arguments, state, control and model, but not the trainer (4.57 and 5.x). Every
    event is fired from a method of the trainer, so it is the `self` of the nearest caller that is a Trainer. The other
    way would be to replace methods of the class for every trainer of the process, those without the callback included.

    Returns:
        The trainer.

    Raises:
        RuntimeError: no transformers.Trainer is among the callers.
    """
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, Trainer):
            return owner
        frame = frame.f_back  # type: ignore[assignment]
    raise RuntimeError("callbacks of hfoptim work in a transformers.Trainer (or a subclass of it) only")


def intercept(trainer: Any, name: str, handler: Callable[..., Any]) -> None:
    """Have the calls of one trainer's method go through a function. Nothing if they do already; handlers stack.

    Args:
        trainer: the trainer; others, also of its class, are not touched.
        name: the method.
        handler: called as `handler(trainer, method, name, *args, **kwargs)`; importable, so that it can be pickled.
    """
    known = vars(trainer).get(name)
    layer = known
    while isinstance(layer, _Intercepted):
        if layer.handler is handler:
            return
        layer = layer.method
    setattr(trainer, name, _Intercepted(trainer, known, name, handler))


class _Intercepted:
    """A method of one trainer. Holds it weakly: in a circle it would keep its model until the next gc run."""

    def __init__(self, trainer: Any, method: Any, name: str, handler: Callable[..., Any]) -> None:
        self.__setstate__((trainer, method, name, handler))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        trainer = self.trainer()
        method = self.method or functools.partial(getattr(type(trainer), self.name), trainer)
        return self.handler(trainer, method, self.name, *args, **kwargs)

    @property
    def __func__(self) -> Callable[..., Any]:
        """What torch's schedules take the `step` of an optimizer for: a bound method, whose function they wrap."""
        return lambda owner, *args, **kwargs: self(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        # They mark it, and look for the mark.
        method = self.__dict__.get("method")
        if method is None:
            raise AttributeError(name)
        return getattr(method, name)

    def __getstate__(self) -> tuple[Any, ...]:
        return self.trainer(), self.method, self.name, self.handler

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        trainer, self.method, self.name, self.handler = state
        self.trainer = weakref.ref(trainer)


def keep_scheduler(trainer: Any, scheduler: Any) -> None:
    """Give a trainer its schedule, marked as made by itself, so that the next train() makes a new one (4.57, 5.x)."""
    trainer.lr_scheduler = scheduler
    trainer._created_lr_scheduler = True


def clipping_method(trainer: Any) -> tuple[Any, str]:
    """What clips a trainer's gradients and returns the norm they had: an object and the name of its method.

    Called once for every optimizer step, if `max_grad_norm` is above 0: of the Trainer (5.x), where meshes of several
    kinds are taken care of, or of its Accelerator (4.57).
    """
    name = "_clip_grad_norm"
    return (trainer, name) if hasattr(type(trainer), name) else (trainer.accelerator, "clip_grad_norm_")


def clip_gradients(trainer: Any, model: Any) -> None:
    """Clip a model's gradients as a trainer does between backward pass and step, past what watches that."""
    owner, name = clipping_method(trainer)
    clip = functools.partial(getattr(type(owner), name), owner)
    clip(model) if owner is trainer else clip(model.parameters(), trainer.args.max_grad_norm)


def forget_meshes(trainer: Any) -> None:
    """Have a trainer look again on which meshes its gradients lie: it may have looked when there were none (5.x)."""
    if hasattr(trainer, "_mixed_mesh_grads"):
        trainer._mixed_mesh_grads = None


def windows_of_epoch(trainer: Any, epoch: int) -> Iterator[tuple[list[Any], Any]]:
    """The micro-batches of each step of an epoch, as a trainer takes them, from a dataloader of their own.

    The Trainer's loop (4.57 and 5.x) sets `current_gradient_accumulation_steps`, which `training_step` divides by, and
    Accelerate keeps every dataloader that it has prepared.

    Args:
        trainer: the trainer.
        epoch: its number, from 0: which order a shuffled dataset comes in.

    Yields:
        A step's micro-batches, and what `training_step` gets as the number of items in them.
    """
    kept = getattr(trainer.accelerator, "_dataloaders", [])
    before, accumulated = len(kept), getattr(trainer, "current_gradient_accumulation_steps", None)
    loader = trainer.get_train_dataloader()
    del kept[before:]
    if hasattr(loader, "set_epoch"):
        loader.set_epoch(epoch)
    batches = iter(loader)
    each = trainer.args.gradient_accumulation_steps
    try:
        while (found := trainer.get_batch_samples(batches, each, trainer.args.device))[0]:
            trainer.current_gradient_accumulation_steps = len(found[0])
            yield found
    finally:
        trainer.current_gradient_accumulation_steps = accumulated


def zero_stage(trainer: Any) -> int:
    """The stage of DeepSpeed's ZeRO that a trainer uses; 0 without."""
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None) if trainer.is_deepspeed_enabled else None
    return int(getattr(plugin, "zero_stage", 0) or 0)


def attention_kind(model: Any) -> str | None:
    """How a model of transformers computes attention (4.57 and 5.x); None for other models."""
    return getattr(getattr(model, "config", None), "_attn_implementation", None)


def checkpointing_is_reentrant(args: Any) -> bool:
    """Whether a training's activations are computed again in the reentrant way: by default in 4.57, not in 5.x."""
    new = hasattr(args, "activation_checkpointing")  # its newer name
    given = (args.activation_checkpointing_kwargs if new else args.gradient_checkpointing_kwargs) or {}
    asked = args.activation_checkpointing if new else args.gradient_checkpointing
    return bool(asked and given.get("use_reentrant", int(transformers.__version__.split(".")[0]) < 5))


def last_checkpoint_finder(make: Callable[[Any], Callable[[str], str | None]], scripts: bool) -> list[Any]:
    """Replace what finds the last checkpoint of a folder for `Trainer.train(True)`.

    `get_last_checkpoint` is defined in `transformers.trainer_utils`, where scripts import it from, and looked up in
    `transformers.trainer` (4.57 and 5.x).

    Args:
        make: gets the original and returns the replacement.
        scripts: whether to replace it for scripts too.

    Returns:
        Functions that undo it.
    """
    modules = (trainer_module, trainer_utils) if scripts else (trainer_module,)
    return [replace(module, "get_last_checkpoint", make) for module in modules]


def checkpoint_folder(trainer: Any, trial: Any) -> str:
    """The folder that `trainer._save_checkpoint(model, trial)` writes now (4.57 and 5.x)."""
    folder = f"{trainer_utils.PREFIX_CHECKPOINT_DIR}-{trainer.state.global_step}"
    return os.path.join(trainer._get_output_dir(trial=trial), folder)


@contextlib.contextmanager
def deletion_order(order: Callable[[list[str]], list[str]]) -> Iterator[None]:
    """For a while, let `order` have the last word on the order in which `save_total_limit` deletes checkpoints.

    The list it gets and returns begins with the one that goes first. It is made by a function of
    `transformers.trainer_utils` (5.x), or a method of the Trainer (4.57).
    """
    owner, name = (
        (trainer_utils, "sort_checkpoints")
        if hasattr(trainer_utils, "sort_checkpoints")
        else (Trainer, "_sorted_checkpoints")
    )

    def make(original: Callable[..., list[str]]) -> Callable[..., list[str]]:
        @functools.wraps(original)
        def ordered(*args: Any, **kwargs: Any) -> list[str]:
            return order(original(*args, **kwargs))

        return ordered

    with _ordering:
        undo = replace(owner, name, make)
        try:
            yield
        finally:
            undo()


# Trainers in several threads save one after the other, so that the last one puts the original back.
_ordering = threading.RLock()


def decay_parameter_names(model: Any, trainer: Any | None) -> list[str]:
    """The names of the parameters that a trainer gives weight decay: not biases and normalisation layers.

    Its class may override the method. Trainer's own uses nothing of its trainer (4.57 and 5.x), so that without one it
    is Trainer's. One that writes the names by itself may not have those of wrappers (torch.compile).
    """
    if trainer is None:
        found = set(Trainer.get_decay_parameter_names(None, model))
    else:
        found = set(trainer.get_decay_parameter_names(model))
    return [name for name, short in bare_names_of(model).items() if not found.isdisjoint((name, short))]


def target_weight_names(model: Any, targets: Any) -> set[str]:
    """The names of the weights of linear layers that `TrainingArguments.optim_target_modules` names (4.57 and 5.x).

    Args:
        model: the model. transformers' Conv1D, of GPT-2, counts as a linear layer.
        targets: parts of module names, a regular expression of whole ones, or "all-linear".

    Raises:
        TypeError: they are something else.
        ValueError: they name no linear layer.
    """
    if not isinstance(targets, (list, tuple, str)) or not all(isinstance(each, str) for each in targets):
        raise TypeError(
            f"optim_target_modules={targets!r}, expected a list of parts of module names, a regular expression, or "
            f"'all-linear'"
        )
    everywhere = isinstance(targets, str) and targets.replace("_", "-") == "all-linear"
    targets = targets if isinstance(targets, str) else list(targets)
    found = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
        and (everywhere or trainer_utils.check_target_module_exists(targets, bare(name)))
    }
    if not found:
        raise ValueError(f"optim_target_modules={targets!r} names no linear layer of {type(model).__name__}")
    return found


def add_member(kind: Any, name: str, value: str, restore: Callable[[str, str], Enum]) -> Any:
    """Add a member to a string enum, seen by `kind(value)`, iteration, `len`, `kind.NAME` and pickle.

    Args:
        kind: the enum class (`OptimizerNames`, `SchedulerType`).
        name: the member's name, in capitals; must be free.
        value: the string.
        restore: called as `restore(kind.__name__, value)` when a pickled member is read.

    Returns:
        The member.
    """
    member: Any = str.__new__(kind, value)
    member._name_ = name
    member._value_ = value
    member.__objclass__ = kind
    member._sort_order_ = len(kind._member_names_)
    # A pickled member is read in a process that may not have the names yet, so reading it goes through `restore`.
    # pickle looks this method up on the object, copy and deepcopy on its class.
    member.__reduce_ex__ = lambda protocol: (restore, (kind.__name__, value))
    kind._member_names_.append(name)
    kind._member_map_[name] = member
    kind._value2member_map_[value] = member
    # The metaclass forbids to reassign members, and from Python 3.12 on looks them up as plain class attributes.
    type.__setattr__(kind, name, member)
    return member


def remove_member(kind: Any, member: Any) -> None:
    """Undo `add_member`."""
    kind._member_names_.remove(member._name_)
    del kind._member_map_[member._name_]
    del kind._value2member_map_[member._value_]
    type.__delattr__(kind, member._name_)


def add_schedule_function(member: Any, function: Callable[..., Any]) -> None:
    """Let `transformers.get_scheduler` build the schedule `member` with `function`.

    It calls `function(optimizer, num_warmup_steps=..., num_training_steps=..., **scheduler_specific_kwargs)`.
    """
    TYPE_TO_SCHEDULER_FUNCTION[member] = function


def remove_schedule_function(member: Any) -> None:
    """Undo `add_schedule_function`."""
    del TYPE_TO_SCHEDULER_FUNCTION[member]


def replace(owner: Any, name: str, make: Callable[[Any], Any]) -> Callable[[], None]:
    """Put `make(original)` in the place of an attribute that `owner` itself defines.

    Args:
        owner: a class or module.
        name: the attribute.
        make: gets the original as stored (a staticmethod object stays one) and returns the replacement.

    Returns:
        A function that puts the original back. If somebody has since put something else there, that stays: it may
        call our replacement, which is why replacements pass everything on when hfoptim's names are disabled.
    """
    original = vars(owner)[name]
    replacement = make(original)
    setattr(owner, name, replacement)

    def undo() -> None:
        if vars(owner)[name] is replacement:
            setattr(owner, name, original)

    return undo


def choice_reader(read: Callable[[Any, str], str]) -> Callable[[], None]:
    """Let the command line accept spellings of a choice that are not listed.

    HfArgumentParser hands argparse the values of an enum as `choices`, and a function made by
    `hf_argparser.make_choice_type_function(choices)` to turn the word into one of them (4.57 and 5.x).

    Args:
        read: `read(enum, word)` returns the listed value that the word means, or raises ValueError.

    Returns:
        A function that undoes it.
    """

    def make(original: Callable[[list[Any]], Callable[[str], Any]]) -> Callable[[list[Any]], Callable[[str], Any]]:
        def make_choice_type_function(choices: list[Any]) -> Callable[[str], Any]:
            plain = original(choices)
            for kind in (OptimizerNames, SchedulerType):
                if list(choices) == [member.value for member in kind]:
                    return lambda word: _read_choice(read, kind, plain(word), choices)
            return plain

        return make_choice_type_function

    return replace(hf_argparser, "make_choice_type_function", make)


def open_choices(ours: Callable[[Any], bool]) -> Callable[[], None]:
    """Let every argparse parser take values beside its `choices`.

    transformers' scripts without a Trainer have `type=SchedulerType, choices=["linear", ...]`: the type makes a member
    of the word, and then the member is looked up in a list from before ours were there. What checks that is
    `ArgumentParser._check_value(action, value)` (Python 3.10 to 3.14); help and messages keep the script's list.

    Args:
        ours: whether a value, as the argument's type made it, is to pass.

    Returns:
        A function that undoes it.
    """

    def make(original: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(original)
        def _check_value(self: Any, action: Any, value: Any) -> None:
            if not (isinstance(value, (OptimizerNames, SchedulerType)) and ours(value)):
                original(self, action, value)

        return _check_value

    return replace(argparse.ArgumentParser, "_check_value", make)


def in_every_trainer(callback: type) -> Callable[[], None]:
    """Give every Trainer made from now on a callback, made by this class (4.57 and 5.x).

    Returns:
        A function that undoes it.
    """
    trainer_module.DEFAULT_CALLBACKS.append(callback)
    return lambda: trainer_module.DEFAULT_CALLBACKS.remove(callback)


def _read_choice(read: Callable[[Any, str], str], kind: Any, word: Any, choices: list[Any]) -> Any:
    try:
        value = read(kind, word)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if value not in choices:  # the parser's own list, which it looks the value up in next
        choices.append(value)
    return value
