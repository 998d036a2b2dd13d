"""State tensors made, and brought from one form into another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine.memory import sections
from hfoptim.engine.rule import Rule
from hfoptim.engine.storage.codebooks import codebook
from hfoptim.engine.storage.formats import (
    FULL,
    RESIDUALS,
    Format,
    Rounding,
    Storage,
    ceil_div,
    exact_dtype,
    matrix_shape,
    scale_name,
)
from hfoptim.engine.storage.quantization import quantize
from hfoptim.engine.storage.rows import decode_state

Init = Callable[[Tensor, torch.dtype], Tensor]

# Entries encoded at once: what is allocated in between stays small.
_PIECE = 1 << 20


def inits(storage: Storage, rule: Rule, name: str) -> dict[str, Init]:
    """How the tensors of a state begin, by their keys in a parameter's state.

    Args:
        storage: how the state is kept.
        rule, name: whose state, and which.
    """
    first = partial(rule.first, name)
    if storage.format is Format.FULL:
        return {name: first}
    if storage.format is Format.BF16:
        return {name: lambda param, dtype: first(param, torch.bfloat16)}
    zero = rule.state[name].starts_at_zero
    shape = partial(rule.shape_of, name)
    parts = [
        partial(_zero_part, storage, index, shape) if zero else partial(_encoded_part, storage, index, first)
        for index in range(2)
    ]
    return dict(zip(storage.names(name), parts, strict=True))


def _zero_part(
    storage: Storage,
    index: int,
    shape_of: Callable[[torch.Size], Sequence[int]],
    param: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    shape = storage.shapes(shape_of(param.shape))[index]
    if index == 1:
        return torch.zeros(shape, dtype=torch.float32, device=param.device)
    zero = int((codebook(storage.bits, storage.signed, torch.device("cpu")) < 0).sum())
    return torch.full(shape, zero if storage.bits == 8 else zero | zero << 4, dtype=torch.uint8, device=param.device)


def _encoded_part(storage: Storage, index: int, first: Init, param: Tensor, dtype: torch.dtype) -> Tensor:
    return _encoded(storage, first(param, dtype))[index]


def is_coded(value: Any) -> bool:
    """Whether a state's (first) tensor holds codes."""
    return isinstance(value, Tensor) and value.dtype is torch.uint8


def kept_as(name: str, state: Mapping[str, Any], signed: bool, shape: Sequence[int]) -> Storage:
    """How a state of that shape is kept, by its tensors.

    Raises:
        ValueError: codes without scales, or of shapes that no state of that shape has.
    """
    tensor = state[name]
    if not is_coded(tensor):
        return Storage(Format.BF16) if tensor.dtype is torch.bfloat16 else FULL
    scale = state.get(scale_name(name))
    found = (tensor.shape, None if scale is None else scale.shape)
    for format in (Format.Q8, Format.Q4):
        storage = Storage(format, signed)
        if found == storage.shapes(shape):
            return storage
    raise ValueError(
        f"{name} has codes of shape {tuple(tensor.shape)} and "
        f"{'no scales' if scale is None else f'scales of shape {tuple(scale.shape)}'}, which do not go with its shape "
        f"{tuple(shape)}"
    )


def fits(storage: Storage, tensor: Tensor, shape: Sequence[int]) -> bool:
    """Whether the (first) tensor of a state of that shape is of the form that is asked for."""
    if storage.bits:
        return is_coded(tensor) and tensor.shape == storage.shapes(shape)[0]
    return (tensor.dtype is torch.bfloat16) == (storage.format is Format.BF16) and not is_coded(tensor)


def converted(storage: Storage, rule: Rule, name: str, state: Mapping[str, Any], param: Tensor) -> dict[str, Tensor]:
    """The tensors of a state, on the parameter's device, in the form asked for; as they are if that is theirs.

    Args:
        storage: the form asked for.
        rule, name: whose state, and which.
        state: what there is.
        param: the parameter.

    Raises:
        ValueError: codes whose shapes do not go with the parameter's.
    """
    dtype = exact_dtype(param.dtype)
    shape = rule.shape_of(name, param.shape)
    present = kept_as(name, state, rule.state[name].signed, shape)
    kept = [state[key].to(param.device) for key in present.names(name)]
    if present.format is storage.format:
        if storage.format is Format.FULL and kept[0].is_complex() == param.is_complex():
            kept[0] = kept[0].to(dtype)
        return dict(zip(storage.names(name), kept, strict=True))
    values = decode_state(present, kept, shape)
    if storage.bits:
        return dict(zip(storage.names(name), _encoded(storage, values), strict=True))
    if not present.bits:
        return {name: values.to(torch.bfloat16 if storage.format is Format.BF16 else dtype)}
    # In the parameter's layout, which codes do not have.
    return {key: init(param, dtype).copy_(values) for key, init in inits(storage, rule, name).items()}


def _encoded(storage: Storage, values: Tensor) -> list[Tensor]:
    """The codes and scales of a whole state, each entry rounded to the nearest."""
    codes, scale = (
        torch.empty(shape, dtype=dtype, device=values.device)
        for shape, dtype in zip(storage.shapes(values.shape), (torch.uint8, torch.float32), strict=True)
    )
    nearest = Storage(storage.format, storage.signed)
    rows, columns = matrix_shape(values.shape)
    matrix = values.reshape(rows, columns)
    for top, bottom, left, right in sections(rows, columns, _PIECE, storage.block):
        parts = quantize(nearest, matrix[top:bottom, left:right].to(torch.float32))
        for whole, part, span in zip((codes.view(rows, -1), scale), parts, storage.spans, strict=True):
            whole[top:bottom, left // span : ceil_div(right, span)] = part
    return [codes, scale]


def fit_residual(rounding: Rounding, state: dict[str, Any]) -> None:
    """Bring the rest of a parameter's rounding, where there is one, into the form of that rounding.

    Another kind's is taken away: of a parameter that was rounded otherwise in between it would be a wrong one.
    """
    for name in RESIDUALS - {rounding.residual}:
        state.pop(name, None)
    wanted, residual = rounding.remainder, state.get("remainder")
    if wanted is not None and residual is not None and residual.dtype is not wanted:
        wide = residual.to(torch.int32)
        wide = wide << 8 if wanted is torch.int16 else ((wide + 128) >> 8).clamp_(max=127)
        state["remainder"] = wide.to(wanted)
