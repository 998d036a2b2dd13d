"""A rule, run once on symbols: what it computes becomes a graph, from which kernels are generated.

A symbol has no sizes. Its shape is one label per dimension (the position of that dimension in the parameter), or None
for a dimension of size 1, so that one graph serves every parameter with as many dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from hfoptim.engine.operators import BOOLEAN, DUNDERS, METHODS, NAMED, OPERATORS, REFUSED, Operator, norm, refusal

Shape = tuple[int | None, ...]

REDUCTIONS = ("sum", "amax")


class Untraceable(TypeError):
    """A rule does what no kernel is generated for."""


class Unwalkable(Untraceable):
    """The operations of a rule are known, but no loop is generated for tensors of this shape or storage format."""


@dataclass(frozen=True)
class Node:
    """One operation.

    Args:
        op: "load" (a tensor of the row; with an argument, what a `Product` has made of that), "scalar" (an entry of h),
            "number", "size" (how many entries the labels in `value` span), "sum" or "amax" (over the labels in
            `value`), "cast" (to the dtype in `value` and back), or the name of an operator.
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


@dataclass(frozen=True)
class Product:
    """A function of whole matrices, which no kernel is generated for: it is called between two passes.

    Args:
        function: the rule's `MatrixFunction`.
        numbers: what it is given beside the matrices: numbers, or names of entries of h.
        given: the node it is given.
        index: of the value in memory that has this first, and then what the function makes of it.
    """

    function: Any
    numbers: tuple[Any, ...]
    given: int
    index: int


@dataclass
class Graph:
    """Operations in an order in which they can be computed; equal ones are there once.

    Args:
        dtype: what they are computed in.
        values: how many values the rule is given: parameter, gradient, states.
    """

    dtype: torch.dtype = torch.float32
    values: int = 0
    nodes: list[Node] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
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
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, graph: Graph, index: int) -> None:
        self.graph, self.index = graph, index

    @property
    def node(self) -> Node:
        return self.graph.nodes[self.index]

    @property
    def ndim(self) -> int:
        return len(self.node.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.graph.dtype

    @property
    def is_boolean(self) -> bool:
        node = self.node
        while node.op == "same":
            node = self.graph.nodes[node.args[0]]
        return node.op in BOOLEAN

    def __bool__(self) -> bool:
        raise Untraceable("it may not branch on values; use torch.where")

    def __getattr__(self, name: str) -> Any:
        if name not in NAMED or not hasattr(torch.Tensor, name):
            raise Untraceable(refusal(name))
        return partial(_apply, NAMED[name], self)

    @classmethod
    def __torch_function__(cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Symbol:
        name = getattr(func, "__name__", str(func))
        if name in NAMED:
            return _apply(NAMED[name], *args, **(kwargs or {}))
        if name not in METHODS:
            raise Untraceable(refusal(name))
        result: Symbol = getattr(args[0], METHODS[name])(*args[1:], **(kwargs or {}))
        return result

    def where(self, condition: Any, other: Any) -> Symbol:
        """`self` where the condition holds: the operands of the method come in another order than torch.where's."""
        return _apply(NAMED["where"], condition, self, other)

    def to(self, dtype: torch.dtype) -> Symbol:
        """Everything is computed in one dtype; only a cast to a narrower one does something."""
        if self.is_boolean:
            return _node(NAMED["where"], self, 1.0, 0.0)
        if dtype in (torch.float16, torch.bfloat16):
            return self.graph.add("cast", [self], self.node.shape, dtype)
        return self

    def clone(self) -> Symbol:
        return self

    def like(self, value: Any) -> Symbol:
        """A number as a symbol of the same graph."""
        return _symbols(self, value)[1]

    def sum(self, dim: Any = None, keepdim: bool = False) -> Symbol:
        return self._reduce("sum", dim, keepdim)

    def amax(self, dim: Any = None, keepdim: bool = False) -> Symbol:
        return self._reduce("amax", dim, keepdim)

    def amin(self, dim: Any = None, keepdim: bool = False) -> Symbol:
        x: Any = self
        least: Symbol = -((-x).amax(dim, keepdim))
        return least

    def mean(self, dim: Any = None, keepdim: bool = False) -> Symbol:
        total: Any = self.sum(dim, keepdim)
        over = self.node.labels - total.node.labels
        mean: Symbol = total / self.graph.add("size", (), (), tuple(sorted(over))) if over else total
        return mean

    def norm(self, p: Any = 2, dim: Any = None, keepdim: bool = False) -> Symbol:
        result: Symbol = norm(self, 2 if p in ("fro", None) else p, dim, keepdim)
        return result

    def unsqueeze(self, dim: int) -> Symbol:
        place = dim if dim >= 0 else dim + self.ndim + 1
        return self._reshaped((*self.node.shape[:place], None, *self.node.shape[place:]))

    def squeeze(self, dim: int) -> Symbol:
        place = dim % self.ndim
        if self.node.shape[place] is not None:
            raise Untraceable("it squeezes a dimension larger than 1")
        return self._reshaped((*self.node.shape[:place], *self.node.shape[place + 1 :]))

    def given_to(self, function: Any, *numbers: Any) -> Symbol:
        """What a function of whole matrices makes of it."""
        names = [self.graph.nodes[n.index] if isinstance(n, Symbol) else n for n in numbers]
        if any(isinstance(n, Node) and n.op != "scalar" for n in names):
            raise Untraceable("it computes with numbers of h before it gives them to a function of matrices")
        index = self.graph.values + len(self.graph.products)
        given = tuple([n.value if isinstance(n, Node) else n for n in names])
        self.graph.products.append(Product(function, given, self.index, index))
        return self.graph.add("load", [self], self.node.shape, index)

    # -- how nodes are made -------------------------------------------------------------------------------------

    def _reshaped(self, shape: Shape) -> Symbol:
        return self.graph.add("same", [self], shape)

    def _reduce(self, op: str, dim: Any, keepdim: bool) -> Symbol:
        shape = self.node.shape
        dims = range(len(shape)) if dim is None else [dim] if isinstance(dim, int) else dim
        places = {d % len(shape) for d in dims} if shape else set()
        over = tuple(sorted(label for i in places if (label := shape[i]) is not None))
        kept = [None if i in places else label for i, label in enumerate(shape) if keepdim or i not in places]
        number = self.to(self.dtype)
        return self.graph.add(op, [number], tuple(kept), over) if over else number._reshaped(tuple(kept))


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
            raise Untraceable(f"it mixes in a {type(value).__name__}")
    return out


def _broadcast(symbols: Sequence[Symbol]) -> Shape:
    length = max(s.ndim for s in symbols)
    out: list[int | None] = [None] * length
    for symbol in symbols:
        shape = symbol.node.shape
        for i, label in enumerate(shape, start=length - len(shape)):
            if label is not None and out[i] not in (None, label):
                raise Untraceable("its shapes do not match")
            out[i] = label if label is not None else out[i]
    return tuple(out)


def _apply(operator: Operator, *args: Any, **kwargs: Any) -> Symbol:
    """An operation: what its formula gives, or a node of its own."""
    found: Any = NotImplemented
    if operator.formula is not None:
        first = args[0] if isinstance(args[0], Symbol) else _symbols(*args)[0]
        found = operator.formula(first, *args[1:], **kwargs)
    elif kwargs:
        raise Untraceable(f"{operator.name} has no {' and '.join(kwargs)} in kernels")
    result: Symbol = _node(operator, *args) if found is NotImplemented else found
    return result


def _node(operator: Operator, *operands: Any) -> Symbol:
    if len(operands) != operator.arity:
        raise Untraceable(f"{operator.name} takes {operator.arity} operands in kernels, not {len(operands)}")
    symbols = _symbols(*operands)
    if operator.name in ("mul", "add") and all(s.is_boolean for s in symbols):
        # As torch has it.
        operator = OPERATORS["logical_and" if operator.name == "mul" else "logical_or"]
    if operator.logical:
        symbols = [s if s.is_boolean else _node(OPERATORS["ne"], s, 0) for s in symbols]
    else:
        condition = 1 if operator.name == "where" else 0
        symbols = [*symbols[:condition], *(s.to(s.dtype) if s.is_boolean else s for s in symbols[condition:])]
    return symbols[0].graph.add(operator.name, symbols, _broadcast(symbols))


def _dunder(name: str) -> Callable[..., Any]:
    def method(self: Symbol, *args: Any) -> Symbol:
        if name not in DUNDERS:
            raise Untraceable(refusal(name))
        operator = DUNDERS[name]
        reverse = name.startswith("__r") and not operator.commutes
        return _apply(operator, *args, self) if reverse else _apply(operator, self, *args)

    return method


# Looked up on the class, these do not reach __getattr__.
for _name in (*DUNDERS, *(name for name in REFUSED if name.startswith("__"))):
    setattr(Symbol, _name, _dunder(_name))
