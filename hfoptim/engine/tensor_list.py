"""A list of tensors that behaves like one tensor, on torch's multi-tensor (`torch._foreach_*`) functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

_Operand = Any  # TensorList, 0-d tensor or number


class TensorList:
    """Tensors of any shapes, one dtype and one device, with the operators and methods rules are written in.

    What torch has no multi-tensor function for (reductions, reshapes, comparisons) runs tensor by tensor, through the
    tensor's own method.

    Args:
        tensors: the tensors; kept, never copied.
    """

    __slots__ = ("tensors",)

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors: list[Tensor] = list(tensors)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __bool__(self) -> bool:
        raise TypeError("a rule may not branch on values; use torch.where")

    def __getitem__(self, index: Any) -> TensorList:
        """Every tensor indexed alike."""
        return self._each("__getitem__", index)

    @property
    def dtype(self) -> torch.dtype:
        return self.tensors[0].dtype

    def to(self, dtype: torch.dtype) -> TensorList:
        return self if self.dtype == dtype else TensorList([t.to(dtype) for t in self.tensors])

    def __neg__(self) -> TensorList:
        return TensorList(torch._foreach_neg(self.tensors))

    def __add__(self, other: _Operand) -> TensorList:
        return _binary(torch._foreach_add, "__add__", self, other)

    def __sub__(self, other: _Operand) -> TensorList:
        return _binary(torch._foreach_sub, "__sub__", self, other)

    def __mul__(self, other: _Operand) -> TensorList:
        return _binary(torch._foreach_mul, "__mul__", self, other)

    def __truediv__(self, other: _Operand) -> TensorList:
        return _binary(torch._foreach_div, "__truediv__", self, other)

    __radd__ = __add__
    __rmul__ = __mul__

    def __rsub__(self, other: _Operand) -> TensorList:
        return -self + other

    def __rtruediv__(self, other: _Operand) -> TensorList:
        return self.reciprocal() * other

    def __pow__(self, exponent: _Operand) -> TensorList:
        return _binary(torch._foreach_pow, "__pow__", self, exponent)

    def __gt__(self, other: _Operand) -> TensorList:
        return self._each("__gt__", other)

    def __lt__(self, other: _Operand) -> TensorList:
        return self._each("__lt__", other)

    def __ge__(self, other: _Operand) -> TensorList:
        return self._each("__ge__", other)

    def __le__(self, other: _Operand) -> TensorList:
        return self._each("__le__", other)

    def add(self, other: TensorList, alpha: float = 1.0) -> TensorList:
        return TensorList(torch._foreach_add(self.tensors, other.tensors, alpha=alpha))

    def sqrt(self) -> TensorList:
        return TensorList(torch._foreach_sqrt(self.tensors))

    def rsqrt(self) -> TensorList:
        return TensorList(torch._foreach_rsqrt(self.tensors))

    def reciprocal(self) -> TensorList:
        return TensorList(torch._foreach_reciprocal(self.tensors))

    def sign(self) -> TensorList:
        return TensorList(torch._foreach_sign(self.tensors))

    def abs(self) -> TensorList:
        return TensorList(torch._foreach_abs(self.tensors))

    def lerp(self, end: TensorList, weight: _Operand) -> TensorList:
        if isinstance(weight, Tensor):
            return self._each("lerp", end, weight)
        return TensorList(torch._foreach_lerp(self.tensors, end.tensors, weight))

    def __getattr__(self, name: str) -> Callable[..., TensorList]:
        # Only public tensor methods: dunder look-ups by copy, pickle and numpy must fail as usual.
        if name.startswith("_") or not hasattr(Tensor, name):
            raise AttributeError(f"TensorList has no {name!r}")
        return lambda *args, **kwargs: self._each(name, *args, **kwargs)

    def _each(self, name: str, *args: Any, **kwargs: Any) -> TensorList:
        out = []
        for i, tensor in enumerate(self.tensors):
            out.append(getattr(tensor, name)(*_row(args, i), **kwargs))
        return TensorList(out)

    @classmethod
    def __torch_function__(cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> TensorList:
        length = next(len(a) for a in args if isinstance(a, TensorList))
        return cls([func(*_row(args, i), **(kwargs or {})) for i in range(length)])


def _row(args: Sequence[Any], i: int) -> list[Any]:
    """The arguments that go with tensor `i`."""
    return [a.tensors[i] if isinstance(a, TensorList) else a for a in args]


def _binary(function: Callable[..., Any], name: str, left: TensorList, right: _Operand) -> TensorList:
    """A multi-tensor binary operator, or the operator tensor by tensor where shapes differ or torch has no overload."""
    if isinstance(right, TensorList):
        same = all(a.shape == b.shape for a, b in zip(left.tensors, right.tensors, strict=True))
        return TensorList(function(left.tensors, right.tensors)) if same else left._each(name, right)
    if isinstance(right, Tensor):
        return left._each(name, right)
    return TensorList(function(left.tensors, right))
