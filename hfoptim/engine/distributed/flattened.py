"""Parameters that somebody has flattened: parts of one long vector, which FSDP1 and DeepSpeed's ZeRO make of them.

An entry's own step is the same in such a part. Whatever looks at a shape, at a whole tensor or at a parameter's place
would compute something else without a word, so it is refused by name before the first step.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from hfoptim.engine import bucket_cache, modes
from hfoptim.engine.distributed.dtensor import is_dtensor
from hfoptim.engine.precision import precise
from hfoptim.engine.rule import Rule, Scope

if TYPE_CHECKING:
    from hfoptim.engine.optimizer import EngineOptimizer
    from hfoptim.engine.plan import Plan

Group = Mapping[str, Any]


@dataclass(frozen=True)
class Flattener:
    """What flattens parameters.

    Args:
        name: in messages.
        steps_once: whether all parts are stepped by one `step()`, and sums over them go over all ranks. Else the parts
            are stepped one by one, on weights that are copied into the model afterwards.
    """

    name: str
    steps_once: bool


FSDP1 = Flattener("FullyShardedDataParallel (FSDP1)", True)
ZERO = Flattener("DeepSpeed ZeRO", False)
UNKNOWN = Flattener("another library", False)

# Shapes that some rules tell apart: by dimensions, by sides of 1, by the sizes from which moments are factored.
_SHAPES = ((), (512,), (512, 256), (256, 512), (512, 1), (1024, 1024), (64, 32, 3, 3), (4, 256, 256))


def is_flattened(groups: Sequence[Group]) -> bool:
    """Whether parameters of these groups are parts: FSDP1 marks them, or the option `fsdp_in_use` says so."""
    return any(
        group.get("fsdp_in_use") or any(hasattr(param, "_fsdp_flattened") for param in group["params"])
        for group in groups
    )


def sum_over_ranks(groups: Sequence[Group], sums: Mapping[str, Tensor], names: Sequence[str]) -> Mapping[str, Tensor]:
    """Sums over all ranks from those of this one, in double precision; as they are where nothing is flattened.

    Args:
        groups: the parameter groups.
        sums: by name; without any where no parameter of this rank has a gradient: the other ranks wait for it.
        names: of the sums that there are on the other ranks.
    """
    if not is_flattened(groups):
        return sums
    if sums:
        nothing = torch.zeros_like(next(iter(sums.values())))
        packed = torch.stack([sums.get(name, nothing) for name in names])
    else:
        packed = torch.zeros(len(names), dtype=torch.float32, device=groups[0]["params"][0].device)
    packed = precise(packed)
    torch.distributed.all_reduce(packed)
    return {**sums, **dict(zip(names, packed.unbind(), strict=True))}


# -- noticing ---------------------------------------------------------------------------------------------------------


class Given:
    """The parameters that an optimizer was given, by which it is noticed that a flat one took their place.

    Others may do so: FSDP2 puts DTensors there, mixed precision copies in float32. These have the same shapes.
    """

    def __init__(self, groups: Sequence[Group] = ()) -> None:
        self._params: dict[int, weakref.ref[Tensor]] = {}
        self._shapes: dict[int, list[torch.Size]] = {}
        # The groups that were let pass, with the options that they had.
        self._taken: dict[int, tuple[Flattener, list[list[Any]]]] = {}
        # The part of each group that was stepped first.
        self._parts: dict[int, weakref.ref[Tensor]] = {}
        for group in groups:
            self.add(group)

    def add(self, group: Group) -> None:
        """Note a group and its parameters."""
        # Under DeepSpeed's zero.Init they are empty, and know what they were.
        self._shapes[id(group)] = [getattr(param, "ds_shape", param.shape) for param in group["params"]]
        self._params.update((id(param), weakref.ref(param)) for param in group["params"])

    def flattener(self, group: Group) -> Flattener | None:
        """What has flattened a group's parameters, if anything has."""
        params = group["params"]
        if is_flattened([group]):
            return FSDP1
        if any(hasattr(param, "ds_shape") for param in params):
            return ZERO
        if not params or any(self._knows(param) or param.ndim != 1 or is_dtensor(param) for param in params):
            return None
        if [param.shape for param in params] == self._shapes.get(id(group)):
            return None
        return ZERO if "deepspeed" in sys.modules else UNKNOWN

    def _knows(self, param: Tensor) -> bool:
        known = self._params.get(id(param))
        return known is not None and known() is param

    def was_taken(self, group: Group, by: Flattener, options: list[list[Any]]) -> bool:
        """Whether a group with these options was let pass before."""
        return self._taken.get(id(group)) == (by, options)

    def take(self, group: Group, by: Flattener, options: list[list[Any]]) -> None:
        """Let a group with these options pass from now on."""
        self._taken[id(group)] = (by, options)

    def is_another_part(self, group: Group) -> bool:
        """Whether another part of this group was stepped before."""
        (part, *rest) = group["params"]
        first = self._parts.setdefault(id(group), weakref.ref(part))()
        return bool(rest) or (first is not None and first is not part)


# -- refusing ---------------------------------------------------------------------------------------------------------


def refuse(optimizer: EngineOptimizer, groups: Sequence[Group], given: Given) -> None:
    """Raise a ValueError if parameters of these groups are flattened, and the optimizer's step is another one then."""
    for group in groups:
        by = given.flattener(group)
        if by is None:
            continue
        name = type(optimizer).__name__
        options = bucket_cache.options_of([group], optimizer.changing_options)
        if not given.was_taken(group, by, options):
            reason = why_not(optimizer, group, by)
            if reason:
                raise ValueError(message(name, reason, by))
            given.take(group, by, options)
        if not by.steps_once and optimizer.run_state.init and given.is_another_part(group):
            raise ValueError(
                f"{by.name} steps this parameter group in several parts, and {name} counts its steps: raise "
                f"sub_group_size above the number of parameters of a group, or take FSDP2"
            )


def unflattened(optimizer: Optimizer) -> Optimizer:
    """An optimizer that may be torch's LBFGS, as it is.

    On flattened parameters its products of vectors would be those of one rank, and each rank would evaluate the loss
    another number of times, for which the others wait.

    Raises:
        ValueError: it is, and its parameters are flattened.
    """
    if isinstance(optimizer, LBFGS):
        by = Given(optimizer.param_groups).flattener(optimizer.param_groups[0])
        if by is not None:
            raise ValueError(message("LBFGS", "takes products of vectors of all gradients", by))
    return optimizer


def message(name: str, reason: str, by: Flattener) -> str:
    """What a refusal says."""
    return (
        f"{name} {reason}, and {by.name} has flattened the parameters into parts of one long vector, where that would "
        f"be something else without a word. Train with FSDP2 (fully_shard; fsdp_version 2 of Accelerate and the "
        f"Trainer) or DDP, or take an optimizer of single entries, such as adamw, lion or adan"
    )


def why_not(optimizer: EngineOptimizer, group: Group, by: Flattener) -> str:
    """What an optimizer does that is not the same in flattened parts; empty if nothing is."""
    return _of_wrappers(optimizer, by) or _of_optimizer(optimizer, by) or _of_rules(optimizer, group, by)


def _of_wrappers(optimizer: EngineOptimizer, by: Flattener) -> str:
    return next(filter(None, (outer.why_not_flattened(by.steps_once) for outer in optimizer.around)), "")


def _of_optimizer(optimizer: EngineOptimizer, by: Flattener) -> str:
    if optimizer.curvature is not None:
        return "differentiates gradients"
    if optimizer.goes_by_names:
        return "takes parameters by their names"
    if optimizer.calls_closure_twice:
        return "takes gradients of a batch twice"
    if optimizer.sparse_only:
        return "takes sparse gradients alone"
    if by.steps_once:
        return ""
    if optimizer.needs_loss:
        return "takes a loss, which it is told once for all parameters"
    if optimizer.run_state.shared or optimizer.run_state.totals:
        return "carries numbers from step to step that are of all parameters"
    if modes.has_two(optimizer):
        return "evaluates with other weights, which would not reach the model"
    return ""


def _of_rules(optimizer: EngineOptimizer, group: Group, by: Flattener) -> str:
    dtype = group["params"][0].dtype if group["params"] else torch.float32
    plans: list[Plan] = []
    for shape in _SHAPES:
        param = torch.empty(shape, dtype=dtype, device="meta")
        try:
            plans.append(optimizer.plan_for(param, dict(group)))
        except (KeyError, ValueError, TypeError, RuntimeError):  # a rule that is chosen by more than shape and options
            return "takes parameters by their names, their partners or their shapes"
    for plan in plans:
        for reason, holds in _REASONS:
            if holds(plan):
                return reason
        if plan.rule.probe is not None and not (by.steps_once and optimizer.run_state.totals):
            return "sums over all parameters"
    if any(plan.rule is not plans[0].rule for plan in plans):
        return "takes matrices in another way than vectors"
    return ""


def _starts(rule: Rule, kind: str) -> bool:
    return any(getattr(state, kind) for state in rule.state.values())


_REASONS: tuple[tuple[str, Callable[[Plan], bool]], ...] = (
    ("looks at other parameters", lambda plan: plan.rule.partner is not None),
    ("looks at whole matrices", lambda plan: plan.rule.scope is Scope.MATRIX),
    ("takes means or norms of whole tensors", lambda plan: plan.rule.scope is Scope.TENSOR),
    ("has an option that takes means or norms of whole tensors", lambda plan: plan.scope is not Scope.ELEMENT),
    ("sees parameters in another shape", lambda plan: plan.rule.shape is not None),
    ("keeps codes in blocks, or rounds by an entry's place", lambda plan: plan.ordered),
    ("draws noise by an entry's place", lambda plan: _starts(plan.rule, "drawn")),
    ("goes by the place of a parameter in its group", lambda plan: _starts(plan.rule, "placed")),
)
