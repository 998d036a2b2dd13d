"""The tensors of one parameter's step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(eq=False)
class TensorSlots:
    """The tensors that a step of one parameter reads and writes.

    Args:
        param: the parameter.
        grad: its gradient; each step puts its own here.
        states: for each state of the rule its tensors: one, or codes and scales.
        residual: what rounding has left of the parameter, Kahan's term or the remainder; None where nothing is kept.

    Attributes:
        kept: the tensors of all states, then the residual if there is one.
    """

    param: Any
    grad: Any
    states: tuple[tuple[Any, ...], ...]
    residual: Any = None
    kept: tuple[Any, ...] = field(init=False)

    def __post_init__(self) -> None:
        # Made once: kernels are given all tensors at every step.
        self.kept = tuple([tensor for state in self.states for tensor in state])
        if self.residual is not None:
            self.kept += (self.residual,)

    @property
    def tensors(self) -> tuple[Any, ...]:
        """All tensors: parameter, gradient, then `kept`; `Plan.slots` turns them into slots again."""
        return (self.param, self.grad, *self.kept)

    @property
    def written(self) -> tuple[Any, ...]:
        """What a step writes: everything but the gradient."""
        return (self.param, *self.kept)

    def map(self, function: Callable[[Any], Tensor]) -> TensorSlots:
        """What a function makes of each tensor."""
        return TensorSlots(
            function(self.param),
            function(self.grad),
            tuple([tuple([function(tensor) for tensor in state]) for state in self.states]),
            None if self.residual is None else function(self.residual),
        )
