"""A list of sharded tensors that behaves like one tensor: local arithmetic, reductions over the ranks.

The tensors of a list share each reduction's communication: one all-reduce, however many they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine.distributed.dtensor import Cut, Groups
from hfoptim.engine.operators import DUNDERS, METHODS, NAMED, norm, refusal
from hfoptim.engine.tensor_list import TensorList

Cuts = dict[int, Cut]


class Unshardable(Exception):
    """A rule does to its tensors what cannot be done with parts of them."""


class ShardedList:
    """The local parts of sharded tensors, with the operators and methods rules are written in.

    Args:
        parts: what lies on this rank, tensor by tensor.
        cuts: for each tensor its dimensions, from the end, that are divided among ranks.
        groups: all groups of ranks among which they are divided; the order in which reductions go through them.
    """

    __slots__ = ("cuts", "groups", "parts")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, parts: TensorList, cuts: list[Cuts], groups: Groups) -> None:
        self.parts, self.cuts, self.groups = parts, cuts, groups

    @property
    def dtype(self) -> torch.dtype:
        return self.parts.dtype

    def __bool__(self) -> bool:
        raise TypeError("a rule may not branch on values; use torch.where")

    def to(self, dtype: torch.dtype) -> ShardedList:
        return self._with(self.parts.to(dtype))

    def clone(self) -> ShardedList:
        return self._with(self.parts.clone())

    def __getattr__(self, name: str) -> Callable[..., ShardedList]:
        if name.startswith("_"):
            raise AttributeError(f"ShardedList has no {name!r}")
        return partial(_method(name), self)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> ShardedList:
        name = func.__name__
        if name in NAMED:
            return _pointwise(func, *args, **(kwargs or {}))
        if name not in METHODS:
            raise Unshardable(refusal(name))
        result: ShardedList = getattr(args[0], METHODS[name])(*args[1:], **(kwargs or {}))
        return result

    def unsqueeze(self, dim: int) -> ShardedList:
        self._refuse_flattened("unsqueeze")
        moved = []
        for part, own in zip(self.parts, self.cuts, strict=True):
            new = dim if dim < 0 else dim - part.ndim - 1
            moved.append({k - 1 if k <= new else k: cut for k, cut in own.items()})
        return ShardedList(self.parts.unsqueeze(dim), moved, self.groups)

    def squeeze(self, dim: int) -> ShardedList:
        self._refuse_flattened("squeeze")
        moved = []
        for part, own in zip(self.parts, self.cuts, strict=True):
            (old,) = _from_end(dim, part.ndim)
            if part.shape[old] != 1 or old in own:
                raise Unshardable("squeeze")
            moved.append({k + 1 if k < old else k: cut for k, cut in own.items()})
        return ShardedList(self.parts.squeeze(dim), moved, self.groups)

    def sum(self, dim: Any = None, keepdim: bool = False) -> ShardedList:
        return self._reduce(torch.sum, dim, keepdim)[0]

    def mean(self, dim: Any = None, keepdim: bool = False) -> ShardedList:
        total, counts = self._reduce(torch.sum, dim, keepdim)
        return total._with(TensorList(torch._foreach_div(total.parts.tensors, [float(count) for count in counts])))

    def norm(self, p: Any = 2, dim: Any = None, keepdim: bool = False) -> ShardedList:
        if p not in (2, "fro", None):
            result: ShardedList = norm(self, p, dim, keepdim)
            return result

        def squares(part: Tensor, dims: tuple[int, ...], keepdim: bool) -> Tensor:
            return torch.linalg.vector_norm(part, 2, dims, keepdim).square()

        return self._reduce(squares, dim, keepdim)[0].sqrt()

    def amax(self, dim: Any = None, keepdim: bool = False) -> ShardedList:
        def largest(part: Tensor, dims: tuple[int, ...], keepdim: bool) -> Tensor:
            # A rank may have no entry at all.
            if part.numel() == 0:
                sizes = [1 if d - part.ndim in dims else size for d, size in enumerate(part.shape)]
                part = part.new_full(sizes, -math.inf)
            return part.amax(dims, keepdim)

        return self._reduce(largest, dim, keepdim, "MAX")[0]

    def amin(self, dim: Any = None, keepdim: bool = False) -> ShardedList:
        x: Any = self
        return -((-x).amax(dim, keepdim))

    def _refuse_flattened(self, what: str) -> None:
        if any(cut.stands_for_all for own in self.cuts for cut in own.values()):
            raise Unshardable(f"{what}, where dimensions are gone")

    def _with(self, parts: TensorList) -> ShardedList:
        return ShardedList(parts, self.cuts, self.groups)

    def _reduce(
        self, function: Callable[..., Tensor], dim: Any, keepdim: bool, op: str = "SUM"
    ) -> tuple[ShardedList, list[int]]:
        """(the reduction, how many entries went into each of its own)."""
        if dim is not None:
            self._refuse_flattened("a reduction over some dimensions")
        results: list[Tensor] = []
        left: list[Cuts] = []
        taken: list[Groups] = []
        counts: list[int] = []
        for part, own in zip(self.parts, self.cuts, strict=True):
            dims = tuple(range(-part.ndim, 0)) if dim is None else _from_end(dim, part.ndim)
            results.append(function(part, dims, keepdim) if dims else function(part.unsqueeze(0), (-1,), False))
            counts.append(math.prod(own[d].size if d in own else part.shape[d] for d in dims))
            # Without keepdim the dimensions further left move up.
            left.append({d if keepdim else d + sum(r > d for r in dims): c for d, c in own.items() if d not in dims})
            taken.append(tuple(group for d in dims if d in own for group in own[d].groups))
        for group in self.groups:
            rows = [i for i, groups in enumerate(taken) if group in groups]
            if not rows:
                continue
            packed = torch.cat([results[i].reshape(-1) for i in rows])
            if op == "MAX":
                # Which of a NaN and a number is larger is not the same everywhere.
                odd = packed.isnan()
                packed = torch.stack([packed.masked_fill(odd, 0.0), odd.to(packed.dtype)])
            torch.distributed.all_reduce(packed, getattr(torch.distributed.ReduceOp, op), group)
            if op == "MAX":
                packed = packed[0].masked_fill(packed[1] > 0, math.nan)
            for i, reduced in zip(rows, packed.split([results[i].numel() for i in rows]), strict=True):
                results[i] = reduced.view(results[i].shape)
        return ShardedList(TensorList(results), left, self.groups), counts


def _from_end(dim: Any, ndim: int) -> tuple[int, ...]:
    return tuple(d if d < 0 else d - ndim for d in ([dim] if isinstance(dim, int) else dim))


def _method(name: str) -> Callable[..., ShardedList]:
    """A method of tensors that computes each entry from entries in the same place."""
    if name not in NAMED and name not in DUNDERS:
        raise Unshardable(refusal(name))
    return lambda *args, **kwargs: _pointwise(lambda x, *rest, **more: getattr(x, name)(*rest, **more), *args, **kwargs)


def _pointwise(function: Callable[..., TensorList], *args: Any, **kwargs: Any) -> ShardedList:
    """Apply a function of `TensorList`s, numbers and 0-d tensors to the local parts."""
    lists = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, ShardedList)]
    merged = lists[0].cuts
    for other in lists[1:]:
        merged = _merge(merged, other.cuts)
    for arg in lists:
        if arg.cuts is not merged:
            for part, own, all_cuts in zip(arg.parts, arg.cuts, merged, strict=True):
                _check(part, own, all_cuts)
    parts = function(*map(_parts, args), **{name: _parts(value) for name, value in kwargs.items()})
    return ShardedList(parts, merged, lists[0].groups)


def _parts(value: Any) -> Any:
    return value.parts if isinstance(value, ShardedList) else value


def _merge(first: list[Cuts], second: list[Cuts]) -> list[Cuts]:
    """All cuts of both; one of the two objects wherever possible, so that most comparisons are by identity."""
    if first is second:
        return first
    merged = [{**a, **b} for a, b in zip(first, second, strict=True)]
    return first if merged == first else second if merged == second else merged


def _check(part: Tensor, own: Cuts, all_cuts: Cuts) -> None:
    """A dimension that is divided in one operand must be in the other, or be broadcast."""
    for dim, cut in all_cuts.items():
        if own.get(dim, cut) != cut or (dim not in own and part.ndim >= -dim and part.shape[dim] != 1):
            raise Unshardable("operands that are divided differently")


for _name in DUNDERS:
    setattr(ShardedList, _name, _method(_name))
