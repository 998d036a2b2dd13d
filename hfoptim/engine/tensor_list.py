"""A list of tensors that behaves like one tensor, on torch's multi-tensor (`torch._foreach_*`) functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine.operators import DUNDERS, NAMED, Operator


class TensorList:
    """Tensors of any shapes, one dtype and one device, with the operators and methods rules are written in.

    They are those of `engine/operators.py`. What torch has no multi-tensor function for (reductions, reshapes,
    comparisons, operands of other shapes) runs tensor by tensor, as does every other method of tensors.

    Args:
        tensors: the tensors; kept, never copied.
    """

    __slots__ = ("tensors",)
    __hash__ = None  # type: ignore[assignment]

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
        return _each(Tensor.__getitem__, (self, index))

    @property
    def dtype(self) -> torch.dtype:
        return self.tensors[0].dtype

    def to(self, dtype: torch.dtype) -> TensorList:
        return self if self.dtype == dtype else TensorList([t.to(dtype) for t in self.tensors])

    def __getattr__(self, name: str) -> Any:
        # Only public tensor methods: dunder look-ups by copy, pickle and numpy must fail as usual.
        if name.startswith("_") or not hasattr(Tensor, name):
            raise AttributeError(f"TensorList has no {name!r}")
        return lambda *args, **kwargs: _each(getattr(Tensor, name), (self, *args), kwargs)

    @classmethod
    def __torch_function__(cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> TensorList:
        operator = NAMED.get(getattr(func, "__name__", ""))
        if operator is not None and func is operator.eager:
            return _apply(operator, *args, **(kwargs or {}))
        return _each(func, args, kwargs or {})


def _each(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any] = {}) -> TensorList:
    """Call a function of tensors for each tensor."""
    length = next(len(a) for a in (*args, *kwargs.values()) if isinstance(a, TensorList))

    def of(value: Any, i: int) -> Any:
        return value.tensors[i] if isinstance(value, TensorList) else value

    return TensorList(
        [function(*[of(a, i) for a in args], **{k: of(v, i) for k, v in kwargs.items()}) for i in range(length)]
    )


def _apply(operator: Operator, *args: Any, **kwargs: Any) -> TensorList:
    """An operation, by torch's multi-tensor function where there is one for such operands."""
    first, *others = args
    if operator.foreach is not None and isinstance(first, TensorList) and _alike(first, others, kwargs):
        operands = [a.tensors if isinstance(a, TensorList) else a for a in others]
        return TensorList(operator.foreach(first.tensors, *operands, **kwargs))
    return _each(operator.eager, args, kwargs)


def _alike(first: TensorList, others: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether the other operands are numbers, or lists of tensors of the same shapes."""
    lists = [a for a in others if isinstance(a, TensorList)]
    if kwargs and not lists:
        return False
    if any(a.shape != b.shape for other in lists for a, b in zip(first.tensors, other.tensors, strict=True)):
        return False
    return all(isinstance(a, (TensorList, int, float)) for a in others)


def _reversed(operator: Operator, x: TensorList, other: Any) -> TensorList:
    """`other <operator> x`, of a number or a tensor with a list."""
    if operator.commutes:
        return _apply(operator, x, other)
    if operator.name == "sub":
        return _apply(NAMED["add"], _apply(NAMED["neg"], x), other)
    if operator.name == "div":
        return _apply(NAMED["mul"], _apply(NAMED["reciprocal"], x), other)
    return _each(operator.eager, (other, x))


def _method(operator: Operator) -> Callable[..., TensorList]:
    return lambda *args, **kwargs: _apply(operator, *args, **kwargs)


def _reversed_method(operator: Operator) -> Callable[..., TensorList]:
    return lambda x, other: _reversed(operator, x, other)


for _name, _operator in {**NAMED, **DUNDERS}.items():
    # As a method, `where` has its operands in another order.
    if _name != "where" and hasattr(Tensor, _name):
        setattr(TensorList, _name, (_reversed_method if _name.startswith("__r") else _method)(_operator))
