"""The contract of a rule: one optimizer's mathematics as a pure function.

    rule(grad, param, *state, h) -> (update, *new_state)

A rule reads nothing but its arguments and writes nothing: the engine writes the parameter and the state back. `h`
holds what `per_step` returned, plus `lr`: Python floats in the loop and foreach runners, 0-d tensors in the compiled
one, so a rule must only do arithmetic on them, never branch. What depends on the step, or on `1 - beta` for a beta
close to 1, is computed by `per_step` on the host in double precision: in float32 `1 - 0.999` is off by 1e-5.
"""

from __future__ import annotations

import enum
import math
from collections import namedtuple
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine.tensor_list import TensorList

Init = Callable[[Tensor, torch.dtype], Tensor]
Scalars = dict[str, Any]
PerStep = Callable[..., Scalars]


class Scope(enum.Enum):
    """What one entry of an update may depend on; decides which runners are legal."""

    ELEMENT = "its own entry only: tensors may be flattened, cut and sharded freely"
    TENSOR = "reductions over its tensor"
    MATRIX = "the whole matrix"


ELEMENT, TENSOR, MATRIX = Scope.ELEMENT, Scope.TENSOR, Scope.MATRIX


def zeros(param: Tensor, dtype: torch.dtype) -> Tensor:
    """State of the parameter's shape, zero."""
    return torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)


def scalar(param: Tensor, dtype: torch.dtype) -> Tensor:
    """One number per parameter, zero, on the parameter's device."""
    return torch.zeros((), dtype=dtype, device=param.device)


def zeros_without(dim: int) -> Init:
    """State of the parameter's shape without dimension `dim`, zero: one factor of a factored moment."""

    def init(param: Tensor, dtype: torch.dtype) -> Tensor:
        shape = list(param.shape)
        del shape[dim]
        return torch.zeros(shape, dtype=dtype, device=param.device)

    return init


def _nothing(t: int, group: Mapping[str, Any]) -> Scalars:
    return {}


@dataclass(frozen=True, eq=False)
class Rule:
    """A rule with what the engine has to know about it.

    Args:
        fn: the pure function `(grad, param, *state, h) -> (update, *new_state)`.
        scope: what one entry of the update may depend on.
        state: name -> initialiser `(param, dtype) -> Tensor`, in the order of the rule's arguments.
        per_step: `(t, group, **totals) -> {name: float or 0-d tensor}`, called on the host once per bucket of tensors;
            `t` counts from 1. What it returns is what the rule sees as `h`. `lr` in it is what the update is multiplied
            by, instead of the group's lr; weight decay goes by the group's.
        probe: `(grad, param, *state) -> {name: 0-d tensor}`; summed over all tensors and handed to `per_step`.
        scaled: the update already contains the learning rate, and the rule returns its own step size, a number or a 0-d
            tensor, right after it: `(update, size, *new_state)`. Decoupled weight decay then follows that size.
    """

    fn: Callable[..., tuple[Any, ...]]
    scope: Scope
    state: Mapping[str, Init] = field(default_factory=dict)
    per_step: PerStep = _nothing
    probe: Callable[..., dict[str, Tensor]] | None = None
    scaled: bool = False

    @property
    def name(self) -> str:
        return self.fn.__name__

    def __repr__(self) -> str:
        return f"rule({self.name}, {self.scope.name}, state={list(self.state)})"


def rule(
    scope: Scope,
    *,
    per_step: PerStep = _nothing,
    probe: Callable[..., dict[str, Tensor]] | None = None,
    scaled: bool = False,
    **state: Init,
) -> Callable[[Callable[..., tuple[Any, ...]]], Rule]:
    """Turn a pure function into a `Rule`; the keyword arguments are those of `Rule`, every other one a state."""

    def decorate(fn: Callable[..., tuple[Any, ...]]) -> Rule:
        return Rule(fn, scope, state, per_step, probe, scaled)

    return decorate


@cache
def hyper_type(names: tuple[str, ...]) -> type[Any]:
    """The NamedTuple a rule sees as `h`; one type per set of names, so that torch.compile traces it once."""
    return namedtuple("Hyper", names)


def ema(average: Any, new: Any, alpha: Any) -> Any:
    """Exponential moving average: `average + alpha * (new - average)`.

    A number goes to `lerp`, one pass. Traced, `lerp` would compute both of its formulas and select one.
    """
    return average + (new - average) * alpha if isinstance(alpha, Tensor) else average.lerp(new, alpha)


def add_scaled(x: Any, y: Any, factor: Any) -> Any:
    """`x + factor * y`; in one pass if the factor is a number."""
    return x.add(y, alpha=factor) if isinstance(factor, (int, float)) else x + y * factor


def rms(x: Any) -> Any:
    """Root mean square over a whole tensor, in one pass without a temporary."""
    if torch.compiler.is_compiling():
        return (x * x).mean().sqrt()
    if isinstance(x, TensorList):
        norms = torch._foreach_norm(x.tensors)
        return TensorList([norm / tensor.numel() ** 0.5 for norm, tensor in zip(norms, x.tensors, strict=True)])
    return x.norm() / x.numel() ** 0.5


def bias_correction(beta: float, t: int) -> float:
    """`1 - beta**t` without cancellation, for beta in [0, 1) and t >= 1."""
    return -math.expm1(t * math.log(beta)) if beta > 0.0 else 1.0
