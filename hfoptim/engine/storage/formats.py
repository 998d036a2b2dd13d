"""In which form a state and the rest of a parameter's rounding are kept between steps."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine.rule import Rule

# State of parameters with fewer entries stays as it is: it is little memory, and norms and biases are sensitive.
# Counted over all shards of a parameter, so that sharding does not change it.
COMPRESS_FROM = 4096
# Matrices with shorter rows are seen as one row: blocks of so few entries would be mostly scales.
_LEAST_ROW = 64
_COMPRESSIBLE = (torch.float32, torch.bfloat16, torch.float16)


class Format(enum.Enum):
    """How many bits an entry of a state has."""

    FULL = "float32"
    BF16 = "bfloat16"
    Q8 = "8bit"
    Q4 = "4bit"


class Rounding(enum.Enum):
    """How a new parameter gets into its dtype, and what is kept of the rest.

    Attributes:
        residual: name of the state tensor that holds the rest; None where there is none.
        remainder: dtype of a rest that is a remainder, bits to be put behind those of the parameter; else None.

    `KAHAN` adds the rest to the new weight; with `KAHAN_READ` it is part of the weight that a rule reads.
    """

    residual: str | None
    remainder: torch.dtype | None

    def __new__(cls, value: str, residual: str | None = None, remainder: torch.dtype | None = None) -> Rounding:
        member = object.__new__(cls)
        member._value_, member.residual, member.remainder = value, residual, remainder
        return member

    NEAREST = ("nearest",)
    KAHAN = ("kahan", "kahan_comp")
    KAHAN_READ = ("kahan_read", "kahan_comp")
    STOCHASTIC = ("stochastic",)
    REMAINDER8 = ("remainder8", "remainder", torch.int8)
    REMAINDER16 = ("remainder16", "remainder", torch.int16)

    @property
    def casts(self) -> bool:
        """Whether the new parameter, with the rest or without, is cast to its dtype as numbers are."""
        return self is not Rounding.STOCHASTIC and self.remainder is None


RESIDUALS = frozenset(rounding.residual for rounding in Rounding if rounding.residual)


@dataclass(frozen=True)
class Storage:
    """How one state of a rule is kept.

    Args:
        format: how many bits an entry has. FULL: the compute dtype.
        signed: whether the codes have negative values.
        stochastic: whether entries are rounded up or down by chance, right on average, instead of to the nearest.

    Attributes:
        bits: of a code; 0 where there are no codes.
        block: how many entries share a scale; 0 where there are none.
        spans: of each tensor that keeps it (one, or codes and scales), how many entries one of its own stands for.
        tensors: how many these are.
        copied: whether writing a value is a plain copy, and reading one a cast.
    """

    format: Format = Format.FULL
    signed: bool = True
    stochastic: bool = False
    bits: int = field(init=False, repr=False, compare=False)
    block: int = field(init=False, repr=False, compare=False)
    spans: tuple[int, ...] = field(init=False, repr=False, compare=False)
    tensors: int = field(init=False, repr=False, compare=False)
    copied: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        bits, block = {Format.Q8: (8, 256), Format.Q4: (4, 128)}.get(self.format, (0, 0))
        # Attributes and not properties: they are read for every tensor at every step.
        for name, value in {
            "bits": bits,
            "block": block,
            "spans": (8 // bits, block) if bits else (1,),
            "tensors": 2 if bits else 1,
            "copied": not bits and not self.stochastic,
        }.items():
            object.__setattr__(self, name, value)

    def names(self, name: str) -> tuple[str, ...]:
        """The keys in a parameter's state."""
        return (name, scale_name(name)) if self.bits else (name,)

    def shapes(self, shape: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """The shapes of its tensors for a parameter of that shape."""
        if not self.bits:
            return (tuple(shape),)
        rows, columns = matrix_shape(shape)
        codes = tuple(shape) if self.bits == 8 else (rows, ceil_div(columns, 2))
        return codes, (rows, ceil_div(columns, self.block))


FULL = Storage()


def scale_name(name: str) -> str:
    """The key under which the scales of state `name` are kept."""
    return f"{name}_scale"


def exact_dtype(dtype: torch.dtype) -> torch.dtype:
    """What state of parameters of a dtype is kept in where it is not compressed."""
    if dtype.is_complex:
        return dtype
    return torch.float64 if dtype is torch.float64 else torch.float32


def ceil_div(count: int, size: int) -> int:
    return -(-count // size)


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """(rows, columns) in which a parameter is cut into blocks, along the rows.

    Along dimension 0 a parameter may then be sharded between any two rows without cutting a block.
    """
    row = math.prod(shape[1:])
    return (shape[0], row) if len(shape) >= 2 and row >= _LEAST_ROW else (1, math.prod(shape))


def storages(rule: Rule, param: Tensor, group: Mapping[str, Any]) -> tuple[Storage, ...]:
    """How a parameter's states are kept, in the order of the rule's.

    Raises:
        ValueError: compressed state is asked for a parameter in double precision, or a complex one.
    """
    asked = group["state_dtype"]
    if asked == "float32":
        return uncompressed(rule, param.dtype)
    if param.dtype not in _COMPRESSIBLE:
        raise ValueError(
            f"state_dtype={asked!r} is for float32, bfloat16 and float16 parameters, this one has {param.dtype}; put "
            "it in a group with state_dtype='float32'"
        )
    if param.numel() < COMPRESS_FROM:
        return uncompressed(rule, param.dtype)
    return _compressed(rule, Format(asked), group["state_rounding"])


@cache
def full(rule: Rule) -> tuple[Storage, ...]:
    """Every state in the compute dtype."""
    return (FULL,) * len(rule.state)


@cache
def uncompressed(rule: Rule, dtype: torch.dtype) -> tuple[Storage, ...]:
    """Every state in the compute dtype, but for those that a rule keeps in bfloat16 for parameters of this dtype."""
    narrow = dtype in _COMPRESSIBLE
    return tuple(Storage(Format.BF16) if state.narrow and narrow else FULL for state in rule.state.values())


@cache
def _compressed(rule: Rule, format: Format, rounding: str | None) -> tuple[Storage, ...]:
    stochastic = rounding == "stochastic" or (rounding is None and format is Format.BF16)
    return tuple(
        Storage(format, state.signed or format is Format.BF16, stochastic)
        if state.compressible
        else Storage(Format.BF16)
        if state.narrow
        else FULL
        for state in rule.state.values()
    )


def rounding_of(dtype: torch.dtype, group: Mapping[str, Any], exact_weights: bool = False) -> Rounding:
    """How new parameters of a dtype are rounded in a group.

    Args:
        dtype, group: the parameter's.
        exact_weights: whether the rule reads weights with Kahan's term; what is kept is the same.

    Raises:
        ValueError: float16 parameters with an option for bfloat16.
    """
    if dtype not in (torch.bfloat16, torch.float16):
        return Rounding.NEAREST
    for option in ("stochastic_rounding", "master_weights"):
        if dtype is torch.float16 and group[option]:
            raise ValueError(f"{option}={group[option]!r} is for bfloat16 parameters, this one has {dtype}")
    if group["stochastic_rounding"]:
        return Rounding.STOCHASTIC
    if group["master_weights"]:
        return Rounding.REMAINDER16 if group["master_weights"] == 16 else Rounding.REMAINDER8
    if group["kahan_sum"] is False:
        return Rounding.NEAREST
    return Rounding.KAHAN_READ if exact_weights else Rounding.KAHAN
