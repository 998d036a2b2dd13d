"""Gradient release: each parameter is stepped inside of backward as soon as its gradient is complete, which then goes.

A step begins with the first gradient after the last `optimizer.step()`, which only ends it.
"""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Iterable, Iterator
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from hfoptim.engine import RuleOptimizer, unmasked, unwrap, unwrap_all
from hfoptim.engine.ambient import undisturbed
from hfoptim.engine.inputs import refuse_scaler
from hfoptim.engine.optimizer import EngineOptimizer, Survey
from hfoptim.engine.row_sparse import refuse_dense


class Release:
    """The steps of one optimizer whose gradients are released.

    Groups are looked up at every gradient: schedules write into them, and a loaded state_dict replaces them.
    """

    def __init__(self) -> None:
        self._survey: Survey | None = None  # None between two steps
        self._more: dict[int, dict[str, Any]] = {}  # what the run state gives this step
        self._stepped: set[Tensor] = set()
        self._looked_around = False
        # Backward has a thread for every device.
        self._lock = Lock()

    def take(self, optimizer: EngineOptimizer, param: Tensor) -> None:
        """Step a parameter with its gradient, and free that.

        Raises:
            RuntimeError: it has been stepped since the last `end`, its gradient has a graph, or
                DistributedDataParallel is to average it.
            TypeError: the gradient is sparse, and the optimizer does not take it, or dense and the optimizer does not.
        """
        grad = param.grad
        if grad is None:
            return
        with self._lock, torch.no_grad(), undisturbed():
            if not self._looked_around:
                _refuse_ddp_around(param)
                self._looked_around = True
            survey = optimizer._survey() if self._survey is None else self._survey
            if param not in survey.places:  # no longer the optimizer's
                return
            index, position, _ = survey.places[param]
            if param in self._stepped:
                raise RuntimeError(_came_twice(optimizer._name_of(index, position)))
            if grad.requires_grad:
                raise RuntimeError(
                    "gradients have a graph (create_graph=True), which steps inside of backward would break; call "
                    "remove_gradient_release(model) to differentiate gradients"
                )
            if optimizer.sparse_only:
                refuse_dense(type(optimizer).__name__, [(index, param, grad)], optimizer.param_groups)
            if grad.layout is not torch.strided:
                optimizer._check_sparse(param, grad, index, position)
            if self._survey is None:
                optimizer.check_ready()
                self._more = optimizer._begin({})
                self._survey = survey
            work = optimizer._collect([(index, param, grad)], survey)
            for item in work:
                item.bucket.scalars = optimizer._scalars(item, {}, self._more.get(id(item.group), {}))
            optimizer._run(work)
            self._stepped.add(param)
            param.grad = None

    def end(self, optimizer: EngineOptimizer, entries: list[tuple[int, Tensor, Tensor]]) -> None:
        """End a step.

        Args:
            optimizer: the optimizer.
            entries: the gradients that are there; there should be none.

        Raises:
            RuntimeError: there are some, or GradScaler has scaled them.
        """
        refuse_scaler(optimizer, type(optimizer).__name__)
        if entries:
            param = entries[0][1]
            index, position, _ = optimizer._survey().places[param]
            raise RuntimeError(_left_over(optimizer._name_of(index, position), is_released(param)))
        if self._survey is None:  # no parameter had a gradient
            optimizer._begin({})
        self._survey = None
        self._stepped.clear()


class _Hook:
    """Hands a parameter with a gradient to its optimizer, which it does not keep alive."""

    def __init__(self, optimizer: RuleOptimizer) -> None:
        self.optimizer = weakref.ref(optimizer)
        self.handle: Any = None

    def __call__(self, param: Tensor) -> None:
        optimizer = self.optimizer()
        if optimizer is None:
            raise RuntimeError(
                "the optimizer of prepare_for_gradient_release(model, optimizer) is gone; keep it as long as the model "
                "trains, or call remove_gradient_release(model)"
            )
        if optimizer.release is not None:
            optimizer.release.take(optimizer, param)


def prepare_for_gradient_release(model: nn.Module, optimizer: Optimizer, ignore_existing_hooks: bool = False) -> None:
    """Let backward step each parameter and free its gradient at once, so that one gradient is alive at a time.

    From then on `loss.backward()` takes the step with the groups as they are, `optimizer.step()` must be called once
    after it, to end the step, and `zero_grad()` finds nothing to do. Gradients cannot be clipped, accumulated, scaled
    or averaged over processes by DistributedDataParallel; what is seen of that is refused. Call it after the model was
    moved, sharded (FSDP2) and given to the optimizer.

    Args:
        model: the model; all the optimizer's parameters are to be in it. Others of the model keep their gradients.
        optimizer: an optimizer of hfoptim, or Accelerate's wrapper of one. Made with `gradient_release=True` or not.
        ignore_existing_hooks (default False): add hooks to parameters that have others, which run first.

    Raises:
        ValueError: the optimizer needs all gradients at once, or is not hfoptim's; it has parameters that are not the
            model's; the model is wrapped in DistributedDataParallel or FSDP1; parameters have hooks already.

    Source:
        optimi 0.3, `prepare_for_gradient_release`. There `optimizer.step()` need not be called.
    """
    inner = releasable(optimizer)
    if any(isinstance(module, DistributedDataParallel) for module in model.modules()):
        raise ValueError(_DDP)
    own = [param for group in inner.param_groups for param in group["params"]]
    held = set(model.parameters())
    strangers = sum(param not in held for param in own)
    if strangers:
        raise ValueError(
            f"{strangers} of {len(own)} parameters of {type(inner).__name__} are not the model's; give the model that "
            f"the optimizer was made for, after it was moved and sharded"
        )
    trained = [param for param in own if param.requires_grad]
    for param in trained:
        if hasattr(param, "_fsdp_flattened"):
            raise ValueError("FSDP1 makes gradients after backward, out of reach of gradient release; use FSDP2")
        if is_released(param):
            raise ValueError("the model's gradients are released already; call remove_gradient_release(model) first")
        if _hooks(param) and not ignore_existing_hooks:
            raise ValueError(
                "parameters have post-accumulate-grad hooks already; with ignore_existing_hooks=True they run before "
                "the step"
            )
    for param in trained:
        hook = _Hook(inner)
        hook.handle = param.register_post_accumulate_grad_hook(hook)
    for group in inner.param_groups:
        group["gradient_release"] = True
    inner.release = Release()


def remove_gradient_release(model: nn.Module) -> None:
    """Undo `prepare_for_gradient_release`: `optimizer.step()` takes the steps again. Warns if there is nothing to undo.

    Args:
        model: the model.
    """
    found = [hook for param in model.parameters() for hook in _hooks(param) if isinstance(hook, _Hook)]
    if not found:
        warnings.warn("the model's gradients are not released: there is nothing to remove", stacklevel=2)
    for hook in found:
        hook.handle.remove()
        optimizer = hook.optimizer()
        if optimizer is not None and optimizer.release is not None:
            optimizer.release = None
            for group in optimizer.param_groups:
                group["gradient_release"] = False


def is_released(param: Tensor) -> bool:
    """Whether a parameter's gradient goes as soon as it is there."""
    return any(isinstance(hook, _Hook) for hook in _hooks(param))


def releasable(optimizer: Any) -> RuleOptimizer:
    """The optimizer itself, without Accelerate's or Lightning's wrapper.

    Raises:
        ValueError: it cannot step one parameter at a time.
    """
    inner = unmasked(optimizer)
    while type(inner).__module__.split(".")[0] == "accelerate":
        inner = unmasked(inner.optimizer)
    name = type(inner).__name__
    if not isinstance(inner, RuleOptimizer):
        why = "it is not an optimizer of hfoptim"
        if unwrap(inner, RuleOptimizer) is not None:
            why = "it goes around another optimizer, and sees the parameters before and after its step"
        elif unwrap_all(inner, RuleOptimizer):
            why = "it holds several optimizers, and one at a time can be prepared"
        raise ValueError(f"{name} does not work with gradient release: {why}")
    if inner.curvature is not None or inner.run_state.totals:
        raise ValueError(f"{name} does not work with gradient release: it computes something from all gradients first")
    if inner.calls_closure_twice:
        raise ValueError(
            f"{name} does not work with gradient release: it takes gradients at two points, and steps with both"
        )
    if inner.needs_loss:
        raise ValueError(
            f"{name} does not work with gradient release: it needs the loss, which is told after backward, before the "
            f"first parameter moves"
        )
    for group in inner.param_groups:
        for param in group["params"]:
            rule = inner.rule_for(param, group)
            if rule.partner is not None:
                raise ValueError(
                    f"{name} does not work with gradient release: the step of a parameter needs another one's value "
                    f"from before that has moved"
                )
            if rule.probe is not None:
                raise ValueError(
                    f"{name} does not work with gradient release: with these options it needs sums over all gradients, "
                    f"such as their norm, before the first parameter moves"
                )
    return inner


def _hooks(param: Tensor) -> Iterable[Any]:
    return list((param._post_accumulate_grad_hooks or {}).values())


_DDP = (
    "DistributedDataParallel averages gradients after they have been released, so that every process would step with "
    "its own; shard the model with FSDP2, or train without gradient release"
)


def _refuse_ddp_around(param: Tensor) -> None:
    """Raise if a DistributedDataParallel module holds a parameter: a model may be wrapped after it was prepared.

    No parameter knows the modules around it, so all that there are are looked at, once.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    if _ddp_around(param):
        gc.collect()  # one that is no longer used may not have been collected
        if _ddp_around(param):
            raise RuntimeError(_DDP)


def _ddp_around(param: Tensor) -> bool:
    def wrapped() -> Iterator[Tensor]:
        for thing in gc.get_objects():
            if issubclass(type(thing), DistributedDataParallel):
                yield from thing.parameters()

    return any(other is param for other in wrapped())


def _came_twice(name: str) -> str:
    return (
        f"{name} got a second gradient before optimizer.step(), and gradient release has used the first one already: "
        f"gradients of several backward passes (accumulation, several losses) or of reentrant checkpoints that share "
        f"weights cannot be added up. Call optimizer.step() after every backward, or remove_gradient_release(model)"
    )


def _left_over(name: str, released: bool) -> str:
    if released:
        return (
            f"{name} has a gradient again after gradient release has used and freed one: it was written by hand, by "
            f"GradientAccumulator or by DistributedDataParallel; use them without gradient release"
        )
    return (
        f"{name} has a gradient that is not released: it was frozen or not there in prepare_for_gradient_release; call "
        f"remove_gradient_release(model), zero_grad() and prepare_for_gradient_release(model, optimizer) again"
    )
