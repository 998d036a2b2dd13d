"""Parameters that somebody has flattened: parts of one long vector, which FSDP1 and DeepSpeed's ZeRO make of them.

An entry's own step is the same in such a part. Whatever looks at a shape, at a whole tensor or at a parameter's place
would compute something else without a word: it is stepped with the shapes that there were (`segmented.py`), and where
these are not to be had, or would not do, refused by name before the first step.
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
from hfoptim.engine.distributed import segments
from hfoptim.engine.distributed.dtensor import added_up, is_dtensor
from hfoptim.engine.distributed.segmented import KEY, Gradients, Segmented
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
    device = next((value.device for value in sums.values()), groups[0]["params"][0].device)
    return {**sums, **added_up(sums, names, device)}


# -- noticing ---------------------------------------------------------------------------------------------------------


class Given:
    """The parameters that an optimizer was given, by which it is noticed that a flat one took their place.

    Others may do so: FSDP2 puts DTensors there, mixed precision copies in float32. These have the same shapes.
    """

    def __init__(self, groups: Sequence[dict[str, Any]] = ()) -> None:
        # All groups that there are: DeepSpeed lets an optimizer have one of them at a time.
        self.groups: list[dict[str, Any]] = []
        # By the place of the group, flat tensors and their gradients.
        self._waiting: dict[int, Gradients] = {}
        self._params: dict[int, weakref.ref[Tensor]] = {}
        self._originals: list[list[weakref.ref[Tensor]]] = []
        self._shapes: dict[int, list[torch.Size]] = {}
        # The groups that were let pass, with the options that they had.
        self._taken: dict[int, tuple[Flattener, list[list[Any]]]] = {}
        # The part of each group that was stepped first.
        self._parts: dict[int, weakref.ref[Tensor]] = {}
        for group in groups:
            self.add(group)

    def add(self, group: dict[str, Any]) -> None:
        """Note a group and its parameters, once."""
        if self.groups and self.groups[-1] is group:
            return
        self.groups.append(group)
        self._originals.append([weakref.ref(param) for param in group["params"]])
        # Under DeepSpeed's zero.Init they are empty, and know what they were.
        self._shapes[id(group)] = [getattr(param, "ds_shape", param.shape) for param in group["params"]]
        self._params.update((id(param), weakref.ref(param)) for param in group["params"])

    def replace(self, groups: list[dict[str, Any]]) -> None:
        """Note that other groups, with the same parameters, have taken the place of those that there were."""
        if len(groups) != len(self.groups):
            self.groups, self._originals = [], []
            for group in groups:
                self.add(group)
            return
        for old, new in zip(self.groups, groups, strict=True):
            self._shapes[id(new)] = self._shapes[id(old)]
        self.groups = list(groups)

    def remove_last(self) -> None:
        """Forget the group that was added last."""
        self.groups.pop()
        self._originals.pop()

    def originals(self) -> list[list[Tensor]] | None:
        """The parameters that were given, by groups; None where one is no longer there."""
        found = [[reference() for reference in group] for group in self._originals]
        return None if any(param is None for group in found for param in group) else found  # type: ignore[return-value]

    def wait(self, groups: Sequence[Group], by: str, name: str) -> None:
        """Note the flat tensors of groups, and the gradients that they have now.

        Args:
            groups: some of them.
            by: what has flattened them.
            name: of the optimizer.

        Raises:
            RuntimeError: one of them is waiting; all are forgotten then.
        """
        places = {id(group): place for place, group in enumerate(self.groups)}
        for group in groups:
            for flat in group["params"]:
                waiting = self._waiting.setdefault(places[id(group)], {})
                if flat in waiting:
                    self._waiting = {}
                    raise RuntimeError(
                        f"{by} has stepped a part of the parameters twice before all had been stepped once; {name} "
                        f"looks at all of them"
                    )
                waiting[flat] = None if flat.grad is None else flat.grad.detach()

    def are_all_waiting(self) -> bool:
        """Whether the flat tensors of all groups have been noted."""
        for place, originals in enumerate(self._originals):
            size = segments.size_in_parts([reference() for reference in originals])
            waiting = self._waiting.get(place, {})
            if size == 0:
                continue
            if not waiting or (size is not None and sum(flat.numel() for flat in waiting) < size):
                return False
        return True

    def gradients(self) -> Gradients:
        """Those of the flat tensors that wait, which are then forgotten."""
        found = {flat: grad for flats in self._waiting.values() for flat, grad in flats.items()}
        self._waiting = {}
        return found

    def flats(self) -> list[list[Tensor]]:
        """The flat tensors of each group."""
        return [list(self._waiting.get(place, {})) for place in range(len(self.groups))]

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


def refuse(optimizer: EngineOptimizer, groups: Sequence[dict[str, Any]], given: Given, made: bool = False) -> None:
    """Raise a ValueError if parameters of these groups are flattened, and the optimizer's step is another one then.

    Args:
        optimizer: the optimizer.
        groups: some of its groups.
        given: its parameters.
        made: whether the groups are being added: what can be stepped with its shapes may pass, and is looked at anew
            when it is stepped.
    """
    for group in groups:
        by = given.flattener(group)
        if by is None:
            continue
        name = type(optimizer).__name__
        options = bucket_cache.options_of([group], optimizer.changing_options)
        if not given.was_taken(group, by, options):
            reason = why_not(optimizer, group, by)
            more = unmet(optimizer, group, by) if reason else ""
            if reason and made and not more and is_recorded(group, by):
                continue
            if reason:
                raise ValueError(message(name, more or reason, by))
            given.take(group, by, options)
        if not by.steps_once and optimizer.run_state.init and given.is_another_part(group):
            raise ValueError(
                f"{by.name} steps this parameter group in several parts, and {name} counts its steps: raise "
                f"sub_group_size above the number of parameters of a group, or take FSDP2"
            )


def is_recorded(group: Group, by: Flattener) -> bool:
    """Whether shapes of parameters that are flattened before the optimizer is made can be had."""
    if by is ZERO:
        return all(getattr(param, "ds_tensor", None) is not None for param in group["params"])
    try:
        segments.of_fsdp1([group["params"]])
    except segments.Unrecorded:
        return False
    return True


# -- stepping with shapes ---------------------------------------------------------------------------------------------


def stepped(optimizer: EngineOptimizer) -> bool:
    """Take a step with the shapes that parameters had before they were flattened, where the optimizer needs them.

    Under DeepSpeed, which steps one group after the other, it is taken with the last of them.

    Returns:
        Whether the step is taken, or will be. Else nothing is flattened, or entries are stepped as they are.

    Raises:
        ValueError: what has flattened them keeps no record that is read here.
    """
    given, found, name = optimizer._parameters_given(), optimizer._segmented, type(optimizer).__name__
    if found is None:
        by = _needing_shapes(optimizer, given)
        if by is None:
            return False
        given.wait(optimizer.param_groups, by.name, name)
        if not given.are_all_waiting():
            return True
        found = optimizer._segmented = _segmented(optimizer, given, by)
        _refuse_watching(optimizer, by.name)
    else:
        _refuse_watching(optimizer, found.name)
        given.wait(optimizer.param_groups, found.name, name)
        if not found.flats <= {flat for flats in given.flats() for flat in flats}:
            return True
    found.step(optimizer, given.groups, given.gradients())
    return True


def of_state(optimizer: EngineOptimizer, state_dict: Mapping[str, Any]) -> Segmented | None:
    """What is to load a state_dict; None: the optimizer is not stepped with shapes, or nothing is to be loaded for it.

    Every rank calls it with what it has itself saved.

    Raises:
        ValueError: as for `stepped`; or the state_dict is of flattened parameters, and these are not flattened.
    """
    given = optimizer._parameters_given()
    held = not isinstance(state_dict, Mapping) or KEY in state_dict or any(state_dict.get("state", {}).values())
    if optimizer._segmented is None and optimizer._within is None and held:
        by = _needing_shapes(optimizer, given)
        if by is not None:
            given.wait(optimizer.param_groups, by.name, type(optimizer).__name__)
            optimizer._segmented = _segmented(optimizer, given, by)
            given.gradients()
        elif isinstance(state_dict, Mapping) and KEY in state_dict:
            raise ValueError(
                "the state_dict is of parameters that were flattened and stepped with their shapes, which these are "
                "not; it goes on where it was saved"
            )
    return optimizer._segmented


def _refuse_watching(optimizer: EngineOptimizer, by: str) -> None:
    """Raise a RuntimeError for what would see a part of the parameters only."""
    if optimizer.report is not None or optimizer.release is not None:
        what = "reports of its rules" if optimizer.report is not None else "gradient release"
        raise RuntimeError(
            f"{by} has flattened the parameters, each of which {type(optimizer).__name__} steps on some of the ranks; "
            f"{what} would be of these alone. Leave it out, or take FSDP2"
        )


def switch(optimizer: EngineOptimizer, change: Callable[[], None]) -> None:
    """Put other weights into an optimizer's parameters, by `change`, and from there into the model of every rank."""
    found = optimizer._segmented
    if found is None:
        change()
    else:
        found.switch(optimizer, optimizer._parameters_given().groups, change)


def _needing_shapes(optimizer: EngineOptimizer, given: Given) -> Flattener | None:
    """What has flattened the parameters of an optimizer that can be stepped with their shapes alone; None: not so."""
    by = next(filter(None, map(given.flattener, optimizer.param_groups)), None)
    if by is None or by is UNKNOWN or any(optimizer.state.values()):
        return None
    options = [bucket_cache.options_of([group], optimizer.changing_options) for group in given.groups]
    if all(given.was_taken(group, by, own) for group, own in zip(given.groups, options, strict=True)):
        return None
    if any(unmet(optimizer, group, by) for group in given.groups):
        return None
    return by if any(why_not(optimizer, group, by) for group in given.groups) else None


def _segmented(optimizer: EngineOptimizer, given: Given, by: Flattener) -> Segmented:
    """Find out where the parameters lie; every rank does so, and all raise where one cannot."""
    layout, problem = None, ""
    try:
        layout = segments.of_fsdp1([group["params"] for group in given.groups]) if by is FSDP1 else _of_zero(given)
    except segments.Unrecorded as error:
        problem = str(error)
    problems = [problem]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        problems = [""] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(problems, problem)
    found = next(filter(None, problems), "")
    if found or layout is None:
        reason = next(filter(None, (why_not(optimizer, group, by) for group in given.groups)))
        raise ValueError(message(type(optimizer).__name__, reason, by, found))
    return Segmented(optimizer, by.name, given.groups, layout, not by.steps_once)


def _of_zero(given: Given) -> segments.Layout:
    originals = given.originals()
    if originals is None:
        raise segments.Unrecorded("no parameters of the model any more")
    return segments.of_zero(originals, given.flats())


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


def message(name: str, reason: str, by: Flattener, unrecorded: str = "") -> str:
    """What a refusal says; `unrecorded`: why there are no shapes to step with."""
    found = f" (their shapes were not to be had: {unrecorded})" if unrecorded else ""
    return (
        f"{name} {reason}, and {by.name} has flattened the parameters into parts of one long vector{found}, where "
        f"that would be something else without a word. Train with FSDP2 (fully_shard; fsdp_version 2 of Accelerate "
        f"and the Trainer) or DDP, or take an optimizer of single entries, such as adamw, lion or adan"
    )


def why_not(optimizer: EngineOptimizer, group: Group, by: Flattener) -> str:
    """What an optimizer does that is not the same in flattened parts; empty if nothing is."""
    return _always(optimizer, by) or _of_optimizer(optimizer, by) or _of_rules(optimizer, group, by)


def unmet(optimizer: EngineOptimizer, group: Group, by: Flattener) -> str:
    """What an optimizer does for which the shapes that parameters had are not enough; empty if nothing is."""
    reason = _always(optimizer, by)
    if not reason and optimizer.around and not by.steps_once:
        # The wrapper's step would come before that of the parameters, which waits for all groups.
        reason = why_not(optimizer, group, by)
        reason = f"is inside of {type(optimizer.around[0]).__name__} and {reason}" if reason else ""
    return reason


def _always(optimizer: EngineOptimizer, by: Flattener) -> str:
    reason = _of_wrappers(optimizer, by)
    if reason:
        return reason
    if optimizer.curvature is not None:
        return "differentiates gradients"
    if optimizer.calls_closure_twice:
        return "takes gradients of a batch twice"
    if optimizer.sparse_only:
        return "takes sparse gradients alone"
    return ""


def _of_wrappers(optimizer: EngineOptimizer, by: Flattener) -> str:
    return next(filter(None, (outer.why_not_flattened(by.steps_once) for outer in optimizer.around)), "")


def _of_optimizer(optimizer: EngineOptimizer, by: Flattener) -> str:
    if optimizer.goes_by_names:
        return "takes parameters by their names"
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
