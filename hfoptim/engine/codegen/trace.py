"""A rule, run once on symbols: what it computes becomes a graph, from which kernels are generated.

A symbol has no sizes. Its shape is one label per dimension (the position of that dimension in the parameter), or None
for a dimension of size 1, so that one graph serves every parameter with as many dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

Shape = tuple[int | None, ...]

UNARY = {"neg", "sqrt", "abs", "sign", "exp", "log", "tanh", "isfinite", "not"}
BINARY = {"add", "sub", "mul", "div", "pow", "max", "min", "gt", "ge", "lt", "le", "eq", "ne", "and", "or"}
BOOLEAN = {"gt", "ge", "lt", "le", "eq", "ne", "and", "or", "not", "isfinite"}


class Untraceable(TypeError):
    """A rule does what no kernel is generated for."""


class Unwalkable(Untraceable):
    """The operations of a rule are known, but no loop is generated for tensors of this shape or storage format."""


@dataclass(frozen=True)
class Node:
    """One operation.

    Args:
        op: "load" (a tensor of the row), "scalar" (an entry of h), "number", "size" (how many entries the labels in
            `value` span), "sum" or "amax" (over the labels in `value`), "where", "round" (to the dtype in `value` and
            back), or one of UNARY and BINARY.
        args: the nodes it reads.
        shape: one label per dimension.
        value: what the operation needs besides.
    """

    op: str
    args: tuple[int, ...]
    shape: Shape
    value: Any = None

    @property
    def labels(self) -> frozenset[int]:
        return frozenset(label for label in self.shape if label is not None)


@dataclass
class Graph:
    """Operations in an order in which they can be computed; equal ones are there once."""

    nodes: list[Node] = field(default_factory=list)
    _known: dict[Node, int] = field(default_factory=dict)

    def add(self, op: str, args: Sequence[Symbol] = (), shape: Shape = (), value: Any = None) -> Symbol:
        node = Node(op, tuple(arg.index for arg in args), shape, value)
        if node not in self._known:
            self._known[node] = len(self.nodes)
            self.nodes.append(node)
        return Symbol(self, self._known[node])


class Symbol:
    """A value of a traced rule, with the operators and methods that rules are written in."""

    __slots__ = ("graph", "index")

    def __init__(self, graph: Graph, index: int) -> None:
        self.graph, self.index = graph, index

    @property
    def node(self) -> Node:
        return self.graph.nodes[self.index]

    @property
    def ndim(self) -> int:
        return len(self.node.shape)

    def __bool__(self) -> bool:
        raise Untraceable("it may not branch on values; use torch.where")

    def __getattr__(self, name: str) -> Any:
        raise Untraceable(f"no kernel is generated for .{name}")

    @classmethod
    def __torch_function__(cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Symbol:
        method = _FUNCTIONS.get(getattr(func, "__name__", ""))
        if method is None:
            raise Untraceable(f"no kernel is generated for {func}")
        result: Symbol = method(*args, **(kwargs or {}))
        return result

    # -- operators ----------------------------------------------------------------------------------------------

    def __neg__(self) -> Symbol:
        return self._unary("neg")

    def __add__(self, other: Any) -> Symbol:
        return _binary("add", self, other)

    def __sub__(self, other: Any) -> Symbol:
        return _binary("sub", self, other)

    def __rsub__(self, other: Any) -> Symbol:
        return _binary("sub", other, self)

    def __mul__(self, other: Any) -> Symbol:
        return _binary("mul", self, other)

    def __truediv__(self, other: Any) -> Symbol:
        return _binary("div", self, other)

    def __rtruediv__(self, other: Any) -> Symbol:
        return _binary("div", other, self)

    def __pow__(self, exponent: Any) -> Symbol:
        if isinstance(exponent, (int, float)):
            if exponent == 2:
                return self * self
            if exponent in (0.5, -0.5):
                return self.sqrt() if exponent > 0 else self.rsqrt()
        return _binary("pow", self, exponent)

    def __rpow__(self, base: Any) -> Symbol:
        return _binary("pow", base, self)

    def __gt__(self, other: Any) -> Symbol:
        return _binary("gt", self, other)

    def __ge__(self, other: Any) -> Symbol:
        return _binary("ge", self, other)

    def __lt__(self, other: Any) -> Symbol:
        return _binary("lt", self, other)

    def __le__(self, other: Any) -> Symbol:
        return _binary("le", self, other)

    def __eq__(self, other: object) -> Symbol:  # type: ignore[override]
        return _binary("eq", self, other)

    def __ne__(self, other: object) -> Symbol:  # type: ignore[override]
        return _binary("ne", self, other)

    def __and__(self, other: Any) -> Symbol:
        return _binary("and", self, other)

    def __or__(self, other: Any) -> Symbol:
        return _binary("or", self, other)

    def __invert__(self) -> Symbol:
        return self._unary("not")

    def _refuse(self, *args: Any) -> Any:
        raise Untraceable("no kernel is generated for indexing, matrix products, or symbols turned into numbers")

    __hash__ = None  # type: ignore[assignment]
    __radd__, __rmul__ = __add__, __mul__
    # Looked up on the class, these do not reach __getattr__.
    __getitem__ = __iter__ = __len__ = __float__ = __int__ = __index__ = __abs__ = _refuse
    __matmul__ = __rmatmul__ = __mod__ = __rmod__ = __floordiv__ = __rfloordiv__ = _refuse

    # -- methods of tensors -------------------------------------------------------------------------------------

    def add(self, other: Any, alpha: Any = 1.0) -> Symbol:
        return self + (other if isinstance(alpha, (int, float)) and alpha == 1 else other * alpha)

    def lerp(self, end: Any, weight: Any) -> Symbol:
        return self + (end - self) * weight

    def sqrt(self) -> Symbol:
        return self._unary("sqrt")

    def rsqrt(self) -> Symbol:
        return 1.0 / self.sqrt()

    def reciprocal(self) -> Symbol:
        return 1.0 / self

    def square(self) -> Symbol:
        return self * self

    def abs(self) -> Symbol:
        return self._unary("abs")

    def sign(self) -> Symbol:
        return self._unary("sign")

    def exp(self) -> Symbol:
        return self._unary("exp")

    def log(self) -> Symbol:
        return self._unary("log")

    def tanh(self) -> Symbol:
        return self._unary("tanh")

    def pow(self, exponent: Any) -> Symbol:
        return self**exponent

    def isfinite(self) -> Symbol:
        return self._unary("isfinite")

    def maximum(self, other: Any) -> Symbol:
        return _binary("max", self, other)

    def minimum(self, other: Any) -> Symbol:
        return _binary("min", self, other)

    def clamp(self, min: Any = None, max: Any = None) -> Symbol:
        out = self if min is None else self.maximum(min)
        return out if max is None else out.minimum(max)

    def where(self, condition: Symbol, other: Any) -> Symbol:
        return _where(condition, self, other)

    def to(self, dtype: torch.dtype) -> Symbol:
        """Everything is computed in one dtype; only a cast to a narrower one does something."""
        if self.node.op in BOOLEAN:
            return _where(self, 1.0, 0.0)
        if dtype in (torch.float16, torch.bfloat16):
            return self.graph.add("round", [self], self.node.shape, dtype)
        return self

    def clone(self) -> Symbol:
        return self

    def sum(self, dim: Any = None, keepdim: bool = False) -> Symbol:
        return self._reduce("sum", dim, keepdim)

    def amax(self, dim: Any = None, keepdim: bool = False) -> Symbol:
        return self._reduce("amax", dim, keepdim)

    def mean(self, dim: Any = None, keepdim: bool = False) -> Symbol:
        total = self.sum(dim, keepdim)
        over = self.node.labels - total.node.labels
        return total / self.graph.add("size", (), (), tuple(sorted(over))) if over else total

    def norm(self, p: Any = 2, dim: Any = None, keepdim: bool = False) -> Symbol:
        if p not in (2, 2.0, "fro"):
            raise Untraceable(f"no kernel is generated for norm(p={p!r})")
        return (self * self).sum(dim, keepdim).sqrt()

    def unsqueeze(self, dim: int) -> Symbol:
        place = dim if dim >= 0 else dim + self.ndim + 1
        return self._reshaped((*self.node.shape[:place], None, *self.node.shape[place:]))

    def squeeze(self, dim: int) -> Symbol:
        place = dim % self.ndim
        if self.node.shape[place] is not None:
            raise Untraceable("squeeze of a dimension larger than 1")
        return self._reshaped((*self.node.shape[:place], *self.node.shape[place + 1 :]))

    # -- how nodes are made -------------------------------------------------------------------------------------

    def _unary(self, op: str) -> Symbol:
        return self.graph.add(op, [self], self.node.shape)

    def _reshaped(self, shape: Shape) -> Symbol:
        return self.graph.add("same", [self], shape)

    def _reduce(self, op: str, dim: Any, keepdim: bool) -> Symbol:
        shape = self.node.shape
        dims = range(len(shape)) if dim is None else [dim] if isinstance(dim, int) else dim
        places = {d % len(shape) for d in dims} if shape else set()
        over = tuple(sorted(label for i in places if (label := shape[i]) is not None))
        kept = [None if i in places else label for i, label in enumerate(shape) if keepdim or i not in places]
        if not over:
            return self._reshaped(tuple(kept))
        return self.graph.add(op, [self], tuple(kept), over)


def _symbols(*values: Any) -> list[Symbol]:
    """All values as symbols of the graph that one of them belongs to."""
    graph = next(value.graph for value in values if isinstance(value, Symbol))
    out = []
    for value in values:
        if isinstance(value, Symbol):
            out.append(value)
        elif isinstance(value, (int, float)):
            out.append(graph.add("number", (), (), float(value)))
        else:
            raise Untraceable(f"a rule that mixes in a {type(value).__name__}")
    return out


def _broadcast(symbols: Sequence[Symbol]) -> Shape:
    length = max(s.ndim for s in symbols)
    out: list[int | None] = [None] * length
    for symbol in symbols:
        shape = symbol.node.shape
        for i, label in enumerate(shape, start=length - len(shape)):
            if label is not None and out[i] not in (None, label):
                raise Untraceable("shapes that do not match")
            out[i] = label if label is not None else out[i]
    return tuple(out)


def _binary(op: str, left: Any, right: Any) -> Symbol:
    symbols = _symbols(left, right)
    return symbols[0].graph.add(op, symbols, _broadcast(symbols))


def _where(condition: Any, yes: Any, no: Any) -> Symbol:
    symbols = _symbols(condition, yes, no)
    return symbols[0].graph.add("where", symbols, _broadcast(symbols))


_FUNCTIONS: dict[str, Callable[..., Symbol]] = {
    "where": _where,
    **{
        name: getattr(Symbol, name)
        for name in (
            *("add", "lerp", "sqrt", "rsqrt", "reciprocal", "square", "abs", "sign", "exp", "log", "tanh", "pow"),
            *(
                "isfinite",
                "maximum",
                "minimum",
                "clamp",
                "sum",
                "amax",
                "mean",
                "norm",
                "unsqueeze",
                "squeeze",
                "clone",
            ),
        )
    },
}
