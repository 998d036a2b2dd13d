"""A parameter's slots read as the rule sees them, and written back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hfoptim.engine.storage.formats import Rounding, Storage
from hfoptim.engine.storage.quantization import dequantize, quantize
from hfoptim.engine.storage.rounding import join_float32, split_float32, state_seed, stochastic_bfloat16
from hfoptim.engine.tensor_slots import TensorSlots

if TYPE_CHECKING:
    from hfoptim.engine.plan import Plan


def decode(plan: Plan, row: TensorSlots) -> tuple[Tensor, list[Tensor]]:
    """(parameter, states) for the rule: exact weights where they are read with the rest, and codes as numbers.

    What a cast to the compute dtype is enough for comes as it is; values of codes come in the shape of the state.
    """
    remains = plan.rounding.remainder
    weight = join_float32(row.param, row.residual) if remains else as_read(plan, row.param, row.residual)
    rule, shape = plan.rule, row.param.shape
    states = zip(rule.state, plan.storage, row.states, strict=True)
    return weight, [
        decode_state(s, kept, rule.shape_of(name, shape)) if s.bits else kept[0] for name, s, kept in states
    ]


def as_read(plan: Plan, param: Any, residual: Any) -> Any:
    """A parameter with Kahan's term where the rule reads both, else as it is; for tensors and lists of them."""
    if plan.rounding is not Rounding.KAHAN_READ:
        return param
    return param.to(plan.dtype) + residual.to(plan.dtype)


def decode_state(storage: Storage, kept: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """The values of one state; codes as float32 in that shape."""
    if not storage.bits:
        return kept[0]
    codes, scale = kept
    return dequantize(storage, codes, scale, _columns(shape, len(scale))).view(tuple(shape))


def _columns(shape: Sequence[int], rows: int) -> int:
    """Entries of each of so many rows; of a part without rows, too."""
    return math.prod(shape) // rows if rows else math.prod(shape[1:])


def encode(
    plan: Plan, row: TensorSlots, weight: Tensor, states: Sequence[Tensor | None], seed: int, start: int
) -> None:
    """Write a step's result into a row.

    Args:
        plan, row: the row's.
        weight: the new parameter in the compute dtype.
        states: the new states in the compute dtype; None leaves one as it is.
        seed: the parameter's, for random bits.
        start: index of the row's first entry in the parameter, in logical order.
    """
    # States first: one of them may be the parameter as it was.
    for index, (storage, kept, new) in enumerate(zip(plan.storage, row.states, states, strict=True)):
        if new is not None:
            encode_state(storage, kept, new, state_seed(seed, index), start)
    encode_param(plan, row, weight, seed, start)


def encode_param(plan: Plan, row: TensorSlots, weight: Tensor, seed: int, start: int) -> None:
    """Write a new parameter, and what its rounding leaves."""
    rounding, param = plan.rounding, row.param
    if rounding is Rounding.NEAREST:
        param.copy_(weight)
    elif rounding is Rounding.STOCHASTIC:
        param.copy_(stochastic_bfloat16(weight, seed, start))
    else:
        if rounding.remainder:
            number, residual = split_float32(weight, row.residual.dtype)
        else:
            number, residual = with_rest(plan, weight, row.residual, param.dtype)
        param.copy_(number)
        row.residual.copy_(residual)


def with_rest(plan: Plan, weight: Any, residual: Any, dtype: torch.dtype) -> tuple[Any, Any]:
    """`kahan` for a new weight of a plan, in which the old rest is where the rule has read it."""
    return rounded(weight, dtype) if plan.rounding is Rounding.KAHAN_READ else kahan(weight, residual, dtype)


def kahan(weight: Any, residual: Any, dtype: torch.dtype) -> tuple[Any, Any]:
    """(weight plus rest, rounded; the new rest), both in `dtype`; for tensors and `TensorList`s."""
    return rounded(weight + residual.to(weight.dtype), dtype)


def rounded(weight: Any, dtype: torch.dtype) -> tuple[Any, Any]:
    """(weight, rounded; what that took), both in `dtype`; for tensors and `TensorList`s."""
    number = weight.to(dtype)
    return number, (weight - number.to(weight.dtype)).to(dtype)


def encode_state(storage: Storage, kept: Sequence[Tensor], new: Tensor, seed: int, start: int) -> None:
    """Write the new values of one state."""
    if storage.copied:
        kept[0].copy_(new)
    elif not storage.bits:
        kept[0].copy_(stochastic_bfloat16(new, seed, start))
    else:
        codes, scale = kept
        matrix = new.reshape(len(scale), _columns(new.shape, len(scale)))
        new_codes, new_scale = quantize(storage, matrix, seed, start)
        codes.copy_(new_codes.view(codes.shape))
        scale.copy_(new_scale)
