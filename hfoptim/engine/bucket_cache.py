"""What a step found out about parameters, groups and state, kept for the next one.

Sorting parameters into buckets takes longer than stepping small ones, and its outcome is the same step after step. It
is used again only where everything it was made of is still the very same: parameters, their memory, state tensors,
step counts, and the groups' options.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hfoptim.engine.tensor_slots import TensorSlots


@dataclass
class CachedSlot:
    """One parameter's place in a bucket.

    Args:
        index: of its group.
        param: the parameter.
        state: its state.
        keys: the entries of the state that are in its row, in order.
        row: its tensors, those that the bucket has.
        step, version: its step counter, and that tensor's version after the engine last wrote it.
        grad_dtype: of the gradient the bucket was chosen for.
    """

    index: int
    param: Tensor
    state: dict[str, Any]
    keys: tuple[str, ...]
    row: TensorSlots
    step: Tensor
    version: int
    grad_dtype: Any

    def holds(self, index: int, param: Tensor, grad: Tensor, states: Mapping[Tensor, dict[str, Any]]) -> bool:
        """Whether the parameter would get this slot again."""
        state, step = self.state, self.step
        row = self.row
        if param is not self.param or index != self.index or states.get(param) is not state:
            return False
        if state.get("step") is not step or step._version != self.version:
            return False
        if grad.dtype is not self.grad_dtype or not _same_memory(row.param, param):
            return False
        return all(state.get(key) is tensor for key, tensor in zip(self.keys, row.kept, strict=True))


def _same_memory(kept: Tensor, param: Tensor) -> bool:
    # Meta tensors have none; they are there to see what a step would do.
    return kept.is_meta or kept.is_set_to(param)


# Schedules move these numbers. A rule is chosen by whether they are 0, if they matter to the choice at all.
_ZERO_OR_NOT = frozenset({"weight_decay", "momentum", "betas"})


def options_of(groups: Sequence[Mapping[str, Any]], per_step_options: frozenset[str]) -> list[list[Any]]:
    """The groups' entries that the choice of a plan or a backend may depend on."""
    left_out = per_step_options | {"params", "param_names"}
    return [
        [
            value if name not in _ZERO_OR_NOT else _whether_zero(value)
            for name, value in group.items()
            if name not in left_out and not isinstance(value, Tensor)
        ]
        for group in groups
    ]


def _whether_zero(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        # A tensor stays: to ask it would wait for the device.
        return [each if isinstance(each, Tensor) else each == 0 for each in value]
    return value == 0
