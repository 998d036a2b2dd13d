"""The plan of a step: everything that fixes its computation, apart from numbers."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

from hfoptim.engine import storage
from hfoptim.engine.rule import Rule, Scope
from hfoptim.engine.storage import Rounding, Storage
from hfoptim.engine.tensor_slots import TensorSlots


class Decay(enum.Enum):
    """Where weight decay enters a step.

    With update u, parameter p, learning rate lr and coefficient wd:
    """

    NONE = "nowhere"
    COUPLED = "L2: grad + wd * p, before the rule"
    DECOUPLED = "p - lr * u - lr * wd * p"
    DECOUPLED_AFTER = "(p - lr * u) * (1 - lr * wd): the decay sees the parameter after the update"
    INSIDE = "where the rule puts it, which reads h.weight_decay: inside a trust ratio, for example"
    FULLY_DECOUPLED = "p - lr * u - wd * lr / max_lr * p: wd does not depend on the peak learning rate"


# The placements that take a share of the parameter itself.
DECOUPLED_PLACES = frozenset({Decay.DECOUPLED, Decay.DECOUPLED_AFTER, Decay.FULLY_DECOUPLED})


@dataclass(frozen=True, eq=False)
class Plan:
    """All that fixes the computation of a step, apart from numbers: a compiled kernel is made for one plan.

    `plan_of` makes them: equal plans are one object, so that looking things up by plan costs nothing.

    Args:
        rule: the rule.
        decay: where weight decay enters.
        dtype: what is computed in.
        maximize, caution: the options.
        rounding: how new parameters get into their dtype.
        storage: how each of the rule's states is kept.
        cautious_decay: whether a decoupled decay takes only what agrees in sign with the update.
        centralized: dimensions, from the end, over which the gradient's mean is taken away; none: it stays.
        clipped: dimensions, from the end, of a unit, by whose norms the gradient is clipped; none of them: the whole
            tensor is one. None: it is not clipped.
        orthogonal, sphere: dimensions, from the end, of a parameter to which the gradient is made orthogonal, and whose
            norm is kept; none of them: all that there are. None: not so.

    Attributes:
        plain: whether casts are all that lies between the tensors and what is computed, Kahan's term apart.
        ordered: whether an entry's place in its tensor counts: blocks share scales, random bits go by the index.
        keys: those of a parameter's state that its slots have, in the order of `TensorSlots.kept`.
    """

    rule: Rule
    decay: Decay
    dtype: torch.dtype
    maximize: bool
    caution: bool
    rounding: Rounding
    storage: tuple[Storage, ...]
    cautious_decay: bool = False
    centralized: tuple[int, ...] = ()
    clipped: tuple[int, ...] | None = None
    orthogonal: tuple[int, ...] | None = None
    sphere: tuple[int, ...] | None = None
    plain: bool = field(init=False)
    ordered: bool = field(init=False)
    keys: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        rounding, kept = self.rounding, self.storage
        keys = [key for name, how in zip(self.rule.state, kept, strict=True) for key in how.names(name)]
        for name, value in {
            "plain": rounding.casts and all(how is storage.FULL for how in kept),
            "ordered": rounding is Rounding.STOCHASTIC or any(how.bits or how.stochastic for how in kept),
            "keys": (*keys, rounding.residual) if rounding.residual else tuple(keys),
        }.items():
            object.__setattr__(self, name, value)

    @property
    def scope(self) -> Scope:
        """The rule's scope, or `TENSOR` where an option has reductions over the tensor."""
        return Scope.TENSOR if self.reduces and self.rule.scope is Scope.ELEMENT else self.rule.scope

    @property
    def reduces(self) -> bool:
        """Whether an option takes a mean or a norm over entries of the tensor."""
        of_tensor = (self.clipped, self.orthogonal, self.sphere)
        return self.caution or bool(self.centralized) or any(dims is not None for dims in of_tensor)

    @property
    def changes_by_reductions(self) -> bool:
        """Whether a gradient, before a rule or probe sees it, is changed by a mean or a norm over entries of it."""
        return bool(self.centralized) or self.clipped is not None or self.orthogonal is not None

    def slots(self, tensors: Iterable[Any]) -> TensorSlots:
        """The slots with these tensors, which are in the order of `TensorSlots.tensors`."""
        param, grad, *kept = tensors
        residual = kept.pop() if self.rounding.residual else None
        states = []
        for how in self.storage:
            states.append(tuple(kept[: how.tensors]))
            kept = kept[how.tensors :]
        return TensorSlots(param, grad, tuple(states), residual)


@cache
def plan_of(
    rule: Rule,
    decay: Decay,
    dtype: torch.dtype,
    maximize: bool = False,
    caution: bool = False,
    rounding: Rounding = Rounding.NEAREST,
    kept: tuple[Storage, ...] | None = None,
    cautious_decay: bool = False,
    centralized: tuple[int, ...] = (),
    clipped: tuple[int, ...] | None = None,
    orthogonal: tuple[int, ...] | None = None,
    sphere: tuple[int, ...] | None = None,
) -> Plan:
    """The plan with these options; the same object every time. `kept` None: all states in the compute dtype."""
    kept = storage.full(rule) if kept is None else kept
    of_gradient = centralized, clipped, orthogonal
    return Plan(rule, decay, dtype, maximize, caution, rounding, kept, cautious_decay, *of_gradient, sphere)


def unit(rule: Rule, shape: torch.Size) -> tuple[int, ...]:
    """The dimensions, from the end, of what belongs to one index of a parameter's first dimension; none for a vector.

    Raises:
        ValueError: the rule sees the parameter in a shape that divides or mixes these.
    """
    seen = shape if rule.shape is None else rule.shape(shape)
    if len(shape) < 2:
        return ()
    if seen[0] != shape[0]:
        raise ValueError(
            f"{rule.name} takes a parameter of shape {tuple(shape)} as {tuple(seen)}, in which its rows are not the "
            f"units of gradient_centralization and adaptive_clip; leave these out for it"
        )
    return tuple(range(1 - len(seen), 0))


def whole(rule: Rule, shape: torch.Size) -> tuple[int, ...]:
    """The dimensions, from the end, of a whole parameter where the rule sees several at once; else none: all."""
    seen = shape if rule.shape is None else rule.shape(shape)
    return tuple(range(-len(seen), 0)) if rule.scope is Scope.MATRIX else ()


def option_scalars(plan: Plan, group: Mapping[str, Any]) -> dict[str, float]:
    """The scalars that `apply.moved` needs beside those of the rule."""
    clip = {} if plan.clipped is None else {"adaptive_clip": float(group["adaptive_clip"])}
    sphere = {} if plan.sphere is None else {"hyperball": float(group["lr"])}
    return {**_decay_scalars(plan, group), **clip, **sphere}


def _decay_scalars(plan: Plan, group: Mapping[str, Any]) -> dict[str, float]:
    decay = plan.decay
    if decay is Decay.NONE:
        return {}
    weight_decay = float(group["weight_decay"])
    if decay in (Decay.COUPLED, Decay.INSIDE) or plan.rule.returns_step_size:
        return {"weight_decay": weight_decay}
    lr = float(group["lr"])
    if decay in (Decay.DECOUPLED, Decay.DECOUPLED_AFTER):
        return {"decay": lr * weight_decay}
    max_lr = float(group["max_lr"])
    return {"decay": weight_decay * lr / max_lr if max_lr else 0.0}


def corrected(plan: Plan, group: Mapping[str, Any], scalars: dict[str, Any]) -> dict[str, Any]:
    """The scalars with the share that a decoupled decay takes multiplied by lr / max_lr (arXiv 2506.02285).

    Raises:
        ValueError: the option was switched on after the group was made, and nobody gave the peak.
    """
    name = "weight_decay" if plan.rule.returns_step_size else "decay"
    if name not in scalars:
        return scalars
    if not group.get("max_lr"):
        raise ValueError("corrected_weight_decay divides by the peak learning rate; give the group max_lr above 0")
    return {**scalars, name: scalars[name] * (float(group["lr"]) / group["max_lr"])}
