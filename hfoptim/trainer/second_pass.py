"""A second gradient in a Trainer: a step's batches once more, those of all steps, gradients with a graph."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import LBFGS, Optimizer
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback

from hfoptim.engine import RuleOptimizer, unmasked, unwrap, unwrap_all
from hfoptim.engine.checks import integer
from hfoptim.engine.inputs import mean_over_ranks
from hfoptim.optimizers.bsam import BSAM
from hfoptim.optimizers.mars import Mars
from hfoptim.optimizers.sophia import SophiaG
from hfoptim.trainer import private
from hfoptim.trainer.random_numbers import RandomNumbers
from hfoptim.trainer.token_weights import IGNORED, leaves_out_the_first
from hfoptim.wrappers import SVRG, TwoPoints


class SecondPass(TrainerCallback):
    """Gives optimizers in a Trainer the other gradients they need: SAM, bSAM, SVRG, LBFGS, Adahessian, Sophia, MARS.

        Trainer(model, args, train_dataset=data, optimizers=(optimizer, None), callbacks=[SecondPass()])

    An optimizer that was chosen by name, or by `OptimizerCallback`, gets it without.

    - SAM, LBFGS: `step` gets a closure that goes through all micro-batches of the step once more, with the random
      numbers of the first time (dropout is the same), and clips as the Trainer does.
    - BSAM: likewise; the step's first pass is at weights drawn around the mean, which the model has from the beginning
      of a step to its end only.
    - SVRG: likewise, and a snapshot at the beginning of each epoch, or every `snapshot_every` steps: the gradient of
      each step of that epoch at the weights there are then, clipped as the steps' are, and the mean of all. The batches
      come from a dataloader of its own in the order of the epoch, and random numbers go on as without.
    - MARS with is_approx=False: likewise, for the gradient at the weights before the last step. The one at the present
      weights is kept meanwhile, and not computed again.
    - Adahessian, SophiaH: at the steps that estimate the Hessian, each micro-batch's gradient gets a graph, its part of
      the estimate is taken from it, and the graph is freed. Attention is computed by plain operations then.
    - SophiaG: after every `update_period`-th step, the step's batches once more with labels drawn from the model's own
      predictions, and `update_hessian()`.

    Losses, norms and schedules are those of the first pass.

    Args:
        snapshot_every: steps of the optimizer from one of SVRG's snapshots to the next, at least 1; None (default): an
            epoch.

    Raises:
        TypeError: `snapshot_every` is not a whole number.
        ValueError: it is less than 1. At the start of the training: fp16, DeepSpeed, FSDP of version 1, several GPUs in
            one process, parallelism that splits a model or a sequence; `max_grad_norm` with LBFGS; torch.compile, flash
            attention, reentrant checkpointing and FSDP for a Hessian; models that have no labels for SophiaG; training
            data without a length for SVRG, or `snapshot_every` without SVRG.
    """

    def __init__(self, snapshot_every: int | None = None) -> None:
        self.snapshot_every = None if snapshot_every is None else integer("snapshot_every", snapshot_every, 1)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = private.trainer_in_charge()
        _end(trainer)  # a training that was broken off
        _begin(trainer)
        svrg = unwrap(trainer.optimizer, SVRG)
        if svrg is not None:
            _steps_of_an_epoch(args, kwargs.get("train_dataloader"))
        elif self.snapshot_every is not None:
            raise ValueError(
                f"snapshot_every={self.snapshot_every!r} is about SVRG's snapshots, and the optimizer is no SVRG; "
                f"leave it out"
            )

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = private.trainer_in_charge()
        if trainer not in _windows:
            return
        for each in unwrap_all(trainer.optimizer, BSAM):
            each.sample()
        svrg = unwrap(trainer.optimizer, SVRG)
        if svrg is None:
            return
        steps = _steps_of_an_epoch(args, kwargs.get("train_dataloader"))
        # A training that begins with the state of another optimizer has none yet.
        first = not any(group["svrg_taken"] for group in svrg.param_groups)
        if first or state.global_step % (self.snapshot_every or steps) == 0:
            _take_snapshot(trainer, svrg, state.global_step // steps)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        _end(private.trainer_in_charge())


def attend(trainer: Any, optimizer: Any) -> None:
    """Have an optimizer given what its steps need in a trainer that is about to train.

    Args:
        trainer: the trainer.
        optimizer: its optimizer, wrapped or not.
    """
    needed = _needs(optimizer)
    if needed and not any(isinstance(callback, SecondPass) for callback in trainer.callback_handler.callbacks):
        trainer.add_callback(SecondPass())


def happens_in(trainer: Any) -> bool:
    """Whether a trainer's `training_step` is called for a second gradient, or a snapshot, at the moment."""
    window = _windows.get(trainer)
    return window is not None and window.again


# -- what excludes it -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Needs:
    """What the optimizers of a trainer need.

    Args:
        closure: those that evaluate the loss again in their step: SAM, bSAM, SVRG, LBFGS.
        exact: those that do it at the weights before the last step: MARS.
        graph: those that take curvature from the gradients' graph.
        labels: those that take it from gradients for sampled labels.
    """

    closure: list[Any]
    exact: list[Mars]
    graph: list[RuleOptimizer]
    labels: list[SophiaG]

    def __bool__(self) -> bool:
        return bool(self.closure or self.exact or self.graph or self.labels)

    @property
    def lbfgs(self) -> bool:
        return any(isinstance(each, LBFGS) for each in self.closure)

    @property
    def only_points(self) -> bool:
        return not (self.lbfgs or self.exact or self.graph or self.labels)

    @property
    def name(self) -> str:
        return type((*self.closure, *self.exact, *self.graph, *self.labels)[0]).__name__


def _needs(optimizer: Any) -> _Needs:
    rules = unwrap_all(optimizer, RuleOptimizer)
    return _Needs(
        unwrap_all(optimizer, (TwoPoints, LBFGS, BSAM)),
        [each for each in rules if isinstance(each, Mars) and each.calls_closure_twice],
        [each for each in rules if each.is_second_order],
        [each for each in rules if isinstance(each, SophiaG)],
    )


def check_arguments(optimizer: Any, args: Any) -> None:
    """Raise if TrainingArguments ask for what excludes the second gradient that an optimizer needs.

    Raises:
        ValueError: see `SecondPass`.
    """
    needs = _needs(optimizer)
    if not needs:
        return
    if args.fp16:
        raise ValueError(
            f"fp16=True scales the loss by a factor that changes, and {needs.name} needs two gradients of one loss in "
            f"a step; give bf16=True"
        )
    if args.deepspeed:
        raise ValueError(f"DeepSpeed takes its steps with one gradient, and {needs.name} needs two; use FSDP2 or DDP")
    if needs.lbfgs and args.max_grad_norm is not None and args.max_grad_norm > 0:
        raise ValueError(
            f"max_grad_norm={args.max_grad_norm!r} shortens gradients, from whose differences LBFGS learns the "
            f"curvature; give max_grad_norm=0"
        )
    if needs.graph and args.torch_compile:
        raise ValueError(
            f"torch_compile=True makes a backward pass that cannot be differentiated, as {needs.name} does; give "
            f"torch_compile=False"
        )


def _refuse(trainer: Any, needs: _Needs) -> None:
    """Raise for what only the trainer knows."""
    args, name = trainer.args, needs.name
    check_arguments(trainer.optimizer, args)
    if trainer.accelerator.scaler is not None:
        raise ValueError(f"GradScaler unscales one gradient per step, and {name} needs two; train in bfloat16")
    if args.n_gpu > 1:
        raise ValueError(
            f"{name} needs a process for each GPU in a Trainer, but this one has {args.n_gpu}; start with torchrun or "
            f"accelerate launch"
        )
    if getattr(trainer.accelerator, "parallelism_config", None) is not None:
        raise ValueError(f"{name} works with data parallelism only, but the Trainer has a parallelism_config")
    if trainer.is_fsdp_enabled and not (needs.only_points and trainer.accelerator.is_fsdp2):
        sharded = "FSDP of version 1" if needs.only_points else "FSDP"
        raise ValueError(
            f"{sharded} cuts parameters in a way that {name} does not take; use DDP or, for SAM and SVRG, FSDP2"
        )
    if needs.graph:
        kind = private.attention_kind(trainer.model)
        if kind not in (None, "eager", "sdpa"):
            raise ValueError(
                f"attn_implementation={kind!r} cannot be differentiated twice, as {name} does; load the model with "
                f"attn_implementation='sdpa' or 'eager'"
            )
        if private.checkpointing_is_reentrant(args):
            raise ValueError(
                f"reentrant gradient checkpointing cannot make the graph that {name} needs; give "
                f"gradient_checkpointing_kwargs={{'use_reentrant': False}}"
            )


# -- the step's batches -----------------------------------------------------------------------------------------------


@dataclass
class _Batch:
    """A micro-batch, as `training_step` was called with it, and the random numbers' states before."""

    model: Any
    inputs: Any
    rest: tuple[Any, ...]
    named: dict[str, Any]
    random: RandomNumbers


@dataclass
class _Window:
    """What the gradients of the step to come are made of.

    Args:
        step: the number of steps before it.
        batches: the micro-batches so far.
        loss: the sum of their losses, as `backward` was called on them.
        takes_closure: whether the step goes through them once more, and is taken with the gradients of that.
        again: whether that is happening, or a snapshot is being taken.
        shifted: whether the loss leaves out the first label of each row; None: not known yet.
        handles: what takes the hooks from the optimizer.
    """

    step: int = -1
    batches: list[_Batch] = field(default_factory=list)
    loss: Tensor | None = None
    takes_closure: bool = False
    again: bool = False
    shifted: bool | None = None
    handles: list[RemovableHandle] = field(default_factory=list)


_windows: WeakKeyDictionary[Any, _Window] = WeakKeyDictionary()


def _begin(trainer: Any) -> None:
    optimizer = _hooked(trainer.optimizer)
    needs = _needs(optimizer)
    if not needs:
        return
    _refuse(trainer, needs)
    window = _windows[trainer] = _Window(takes_closure=bool(needs.closure))
    if needs.closure or needs.exact or needs.labels:
        private.intercept(trainer, "training_step", _recording)
    if needs.closure or needs.exact:
        hook: Any = functools.partial(_give_closure, weakref.ref(trainer))
        window.handles.append(optimizer.register_step_pre_hook(hook))
    if needs.graph:
        private.intercept(trainer, "training_step", _estimating)
        private.intercept(trainer.accelerator, "backward", _with_graph)
    if needs.labels:
        hook = functools.partial(_sample_labels, weakref.ref(trainer))
        window.handles.append(optimizer.register_step_post_hook(hook))


def _end(trainer: Any) -> None:
    window = _windows.pop(trainer, None)
    if window is None:
        return
    for handle in window.handles:
        handle.remove()
    for each in unwrap_all(trainer.optimizer, BSAM):
        each.restore()  # of a step that was broken off


def _hooked(optimizer: Any) -> Optimizer:
    """The optimizer whose `step` Accelerate's wrapper calls."""
    while isinstance(optimizer, private.AcceleratedOptimizer):
        optimizer = optimizer.optimizer
    found: Optimizer = unmasked(optimizer)
    return found


def _recording(
    trainer: Any, step: Callable[..., Any], name: str, model: Any, inputs: Any, *rest: Any, **named: Any
) -> Any:
    """`training_step`: keep what it is called with until the optimizer has taken its step."""
    window = _windows.get(trainer)
    if window is None or window.again:
        return step(model, inputs, *rest, **named)
    if window.step != trainer.state.global_step:
        window.step, window.batches, window.loss = trainer.state.global_step, [], None
    # Of inputs that a subclass takes things out of.
    window.batches.append(_Batch(model, copy.copy(inputs), rest, named, RandomNumbers.now(trainer.args.device)))
    loss = step(model, inputs, *rest, **named)
    window.loss = loss if window.loss is None else window.loss + loss
    return loss


@contextlib.contextmanager
def _once_more(trainer: Any) -> Iterator[Iterator[_Batch]]:
    """The step's micro-batches once more; gradients are reduced over the processes after the last one."""
    window, after = _windows[trainer], RandomNumbers.now(trainer.args.device)

    def batches() -> Iterator[_Batch]:
        for number, batch in enumerate(window.batches, 1):
            last = number == len(window.batches)
            with contextlib.nullcontext() if last else trainer.accelerator.no_sync(batch.model):
                yield batch

    window.again = True
    try:
        yield batches()
    finally:
        window.again = False
        after.restore()


# -- a closure --------------------------------------------------------------------------------------------------------


def _give_closure(trainer_of: Callable[[], Any], optimizer: Any, args: Any, kwargs: Any) -> Any:
    """Before a step: the closure that the Trainer does not give."""
    trainer, (own, *given) = trainer_of(), args
    if kwargs.get("closure", given[0] if given else None) is not None or not _windows[trainer].batches:
        return None
    needs = _needs(optimizer)
    if needs.exact:
        return (own,), {**kwargs, "closure": _back_and_here(trainer, optimizer, needs.exact)}
    lbfgs = needs.lbfgs
    # LBFGS evaluates where it is at first, and there the gradients are.
    known = [_windows[trainer].loss] if lbfgs else []

    def closure() -> Any:
        loss = known.pop() if known else _evaluate(trainer, optimizer)
        return mean_over_ranks(loss) if lbfgs and loss is not None else loss

    return (own,), {**kwargs, "closure": closure}


def _back_and_here(trainer: Any, optimizer: Any, exact: list[Mars]) -> Callable[[], Any]:
    """A closure that is called at the weights before the last step, if there was one, and then at the present ones."""
    earlier = [any(each.second_is_due for each in exact)]
    here = {
        param: param.grad.clone()
        for group in (optimizer.param_groups if earlier[0] else ())
        for param in group["params"]
        if param.grad is not None
    }

    def closure() -> Any:
        if earlier.pop() if earlier else False:
            return _evaluate(trainer, optimizer)
        if here:
            optimizer.zero_grad()
            for param, grad in here.items():
                param.grad = grad
        return _windows[trainer].loss

    return closure


def _evaluate(trainer: Any, optimizer: Any) -> Tensor:
    """Loss and gradients of the step's batches at the weights that there are now."""
    optimizer.zero_grad()
    total = torch.zeros((), device=trainer.args.device)
    with _once_more(trainer) as batches:
        for batch in batches:
            batch.random.restore()
            total = total + trainer.training_step(batch.model, copy.copy(batch.inputs), *batch.rest, **batch.named)
    _clip(trainer, batch.model)
    return total


def _clip(trainer: Any, model: Any) -> None:
    if trainer.args.max_grad_norm is not None and trainer.args.max_grad_norm > 0:
        private.clip_gradients(trainer, model)


# -- the batches of all steps -----------------------------------------------------------------------------------------


def _steps_of_an_epoch(args: Any, loader: Any) -> int:
    """How many steps an epoch has.

    Raises:
        ValueError: nobody knows.
    """
    try:
        batches: int = len(loader)
    except TypeError:
        raise ValueError(
            "SVRG takes the gradient of all batches at every snapshot, and the training data has no length; give a "
            "dataset with one"
        ) from None
    return max(1, math.ceil(batches / int(args.gradient_accumulation_steps)))


def _take_snapshot(trainer: Any, svrg: SVRG, epoch: int) -> None:
    """Have the weights and the mean of the gradients of an epoch's steps taken as SVRG's snapshot."""
    window, after = _windows[trainer], RandomNumbers.now(trainer.args.device)
    window.again = True
    try:
        svrg.snapshot(functools.partial(_mean_gradient, trainer, epoch))
    finally:
        window.again = False
        after.restore()


def _mean_gradient(trainer: Any, epoch: int) -> None:
    """Leave the mean of the gradients of all steps of an epoch at the weights that there are now."""
    optimizer, model = _hooked(trainer.optimizer), trainer.model_wrapped
    params = [param for group in optimizer.param_groups for param in group["params"]]
    sums: dict[Tensor, Tensor] = {}
    steps = 0
    for batches, rest in private.windows_of_epoch(trainer, epoch):
        optimizer.zero_grad()
        steps += 1
        for number, inputs in enumerate(batches, 1):
            last = number == len(batches)
            with contextlib.nullcontext() if last else trainer.accelerator.no_sync(model):
                trainer.training_step(model, inputs, rest)
        _clip(trainer, model)
        for param in params:
            if param.grad is not None:
                # Of a thousand steps the last bits of bfloat16 would be lost.
                grad = param.grad.detach().to(torch.promote_types(param.grad.dtype, torch.float32))
                sums[param] = sums[param].add_(grad) if param in sums else grad.clone()
    optimizer.zero_grad()
    for param, total in sums.items():
        param.grad = total.div_(steps).to(param.dtype)


# -- a graph ----------------------------------------------------------------------------------------------------------


# The accelerators whose backward passes make a graph at the moment.
_graphing: WeakSet[Any] = WeakSet()


def _estimating(trainer: Any, step: Callable[..., Any], name: str, model: Any, *args: Any, **named: Any) -> Any:
    """`training_step`: where a Hessian is due, take this micro-batch's part of it, and average gradients afterwards."""
    window = _windows.get(trainer)
    due = [each for each in unwrap_all(trainer.optimizer, RuleOptimizer) if each.needs_graph]
    if window is None or not due or (window.takes_closure and not window.again):
        return step(model, *args, **named)
    # Gradients that DistributedDataParallel averages lose their graph; the fast attentions have no second derivative.
    with trainer.accelerator.no_sync(model), sdpa_kernel(SDPBackend.MATH):
        _graphing.add(trainer.accelerator)
        try:
            loss = step(model, *args, **named)
        finally:
            _graphing.discard(trainer.accelerator)
    for optimizer in due:
        optimizer.add_curvature()
    if trainer.accelerator.sync_gradients and trainer.accelerator.num_processes > 1:
        _average(trainer)
    return loss


def _with_graph(accelerator: Any, backward: Callable[..., Any], name: str, loss: Tensor, **kwargs: Any) -> Any:
    """`Accelerator.backward`, of a trainer's accelerator."""
    return backward(loss, **kwargs, **({"create_graph": True} if accelerator in _graphing else {}))


def _average(trainer: Any) -> None:
    """The gradients' means over all processes, of parameters that any of them has a gradient for."""
    params = [param for group in trainer.optimizer.param_groups for param in group["params"]]
    there = torch.tensor([param.grad is not None for param in params], device=trainer.args.device)
    for param, found in zip(params, trainer.accelerator.reduce(there.float(), "sum").tolist(), strict=True):
        if found:
            grad = torch.zeros_like(param) if param.grad is None else param.grad
            param.grad = trainer.accelerator.reduce(grad, "mean")


# -- labels of the model's own ----------------------------------------------------------------------------------------


def _sample_labels(trainer_of: Callable[[], Any], optimizer: Any, args: Any, kwargs: Any) -> None:
    """After a step: where a Hessian is due, the estimate of Gauss, Newton and Bartlett from the step's batches."""
    trainer = trainer_of()
    due = [each for each in _needs(optimizer).labels if each.estimate_is_due]
    window = _windows[trainer]
    if not due or not window.batches:
        return
    optimizer.zero_grad()
    with torch.enable_grad(), _once_more(trainer) as batches:
        if window.shifted is None:
            first = window.batches[0]
            window.shifted = leaves_out_the_first(trainer.compute_loss, first.model, _labelled(first.inputs))
        counted = [_counted(_labelled(batch.inputs)["labels"], window.shifted) for batch in window.batches]
        own = torch.stack([each.sum() for each in counted]).sum().to(trainer.args.device)
        # The mean over processes of this is the mean over all labels.
        total = mean_over_ranks(own.to(torch.float32))
        for batch, mask in zip(batches, counted, strict=True):
            with trainer.compute_loss_context_manager():
                _, outputs = trainer.compute_loss(batch.model, copy.copy(batch.inputs), return_outputs=True)
            logits = (outputs["logits"] if isinstance(outputs, dict) else outputs[1]).float()[mask]
            drawn = torch.distributions.Categorical(logits=logits.detach()).sample()
            trainer.accelerator.backward(torch.nn.functional.cross_entropy(logits, drawn, reduction="sum") / total)
    for each in due:
        each.update_hessian()
    optimizer.zero_grad()


def _labelled(inputs: Any) -> Any:
    labels = inputs.get("labels")
    if not isinstance(labels, Tensor) or labels.is_floating_point():
        raise ValueError(
            "SophiaG draws labels from a model's predicted classes, and the batches have no 'labels' that are classes"
        )
    return inputs


def _counted(labels: Tensor, shifted: bool) -> Tensor:
    """Which of the model's predictions the loss counts."""
    counts = labels.ne(IGNORED)
    if not shifted:
        return counts
    return torch.cat([counts[..., 1:], torch.zeros_like(counts[..., :1])], -1)
