"""When each operation of a traced rule runs: as few passes over memory as its reductions allow.

Dimensions that every operation treats alike are merged. What is left is one axis (`flat`: element-wise rules and
reductions over whole tensors) or rows of columns, if need be in batches: batch, row, column, with the column fastest.

A pass (*phase*) ends where a number is needed that depends on the whole tensor, or on a whole column. A reduction
along a row needs no pass of its own: the row is walked again (*sub*) while it is in the cache. An operation of the
parameter's size is never stored; a later pass computes it again from what is in memory, preferably from state that an
earlier pass has already brought up to date.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from hfoptim.engine.codegen.trace import REDUCTIONS, Graph, Node, Product, Untraceable, Unwalkable

Time = tuple[int, int]  # phase, sub
_START: Time = (0, 0)


@dataclass
class Store:
    """A row tensor that receives the value of a node."""

    position: int
    node: int
    time: Time


@dataclass
class Program:
    """A scheduled graph.

    Args:
        nodes: the operations, in an order in which they can be computed; arguments are never "same" nodes.
        kinds: for each node what it varies over: "full", "row", "column", "batch" or "scalar".
        axes: 1 (flat), 2 (row, column) or 3 (batch, row, column).
        merged: for each axis the labels merged in it.
        stores: what is written.
        times: for each node the phase and sub it can first be computed in.
        early: full nodes that are stored exactly, and so can be read from memory after their store.
        live: nodes that something needs.
        results: scalars that are added up over all tensors and handed back.
        products: functions of whole matrices, each called once a pass has stored what it is given.
    """

    nodes: list[Node]
    kinds: list[str]
    axes: int
    merged: list[list[int]]
    stores: list[Store]
    times: list[Time]
    early: dict[int, Store] = field(default_factory=dict)
    live: set[int] = field(default_factory=set)
    results: list[int] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)

    @property
    def phases(self) -> int:
        """How many passes there are, the last of which may be empty: what is computed once the others are over."""
        return 1 + max([*(self.times[i][0] for i in self.live), *(s.time[0] for s in self.stores)])

    @property
    def flat(self) -> bool:
        """Whether tensors are seen as one run of entries, whose order does not matter."""
        return self.axes == 1

    def loops(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """(batches, rows, columns) of a parameter of that shape, as the rule sees it; a flat one is a single row."""
        if self.flat:
            return 1, 1, math.prod(shape)
        *batches, rows, columns = (math.prod(shape[label] for label in labels) for labels in self.merged)
        return batches[0] if batches else 1, rows, columns

    def walks(self, phase: int) -> bool:
        """Whether a phase goes over the tensors at all."""
        rows = any(self.kinds[i] == "row" and self.times[i][0] == phase for i in self.live)
        return rows or any(self.roots((phase, sub)) for sub in range(self.subs(phase)))

    def subs(self, phase: int) -> int:
        """How often a row is walked in a phase."""
        times = [self.times[i] for i in self.live if self.kinds[i] in ("full", "row")]
        return 1 + max([s for p, s in [*times, *(store.time for store in self.stores)] if p == phase], default=0)

    def reductions(self, time: Time, kind: str) -> list[int]:
        """Reductions of nodes of a kind that are computed at a time."""
        found = []
        for i in sorted(self.live):
            node = self.nodes[i]
            if node.op in REDUCTIONS and self.kinds[node.args[0]] == kind and self.times[node.args[0]] == time:
                found.append(i)
        return found

    def stored(self, time: Time, kind: str) -> list[Store]:
        """Stores of nodes of a kind at a time."""
        return [s for s in self.stores if s.time == time and self.kinds[s.node] == kind]

    def expand(self, time: Time, roots: Iterable[int]) -> tuple[list[int], set[int]]:
        """What full operations the roots take at a time.

        Returns:
            (nodes to compute in order, the leaves among what they read: loads, early nodes, nodes of other kinds).
        """
        order: list[int] = []
        leaves: set[int] = set()
        seen: set[int] = set()

        def visit(i: int) -> None:
            if i in seen:
                return
            seen.add(i)
            early = self.early.get(i)
            if self.kinds[i] != "full" or self.nodes[i].op == "load" or (early is not None and early.time < time):
                leaves.add(i)
                return
            for arg in self.nodes[i].args:
                visit(arg)
            order.append(i)

        for root in roots:
            visit(root)
        return order, leaves

    def reads(self, time: Time) -> dict[int, int]:
        """Full nodes that are read from memory at a time -> index of the value (parameter, gradient, state) there."""
        found = {}
        for leaf in sorted(self.expand(time, self.roots(time))[1]):
            if self.kinds[leaf] == "full":
                node = self.nodes[leaf]
                found[leaf] = node.value if node.op == "load" else self.early[leaf].position
        return found

    def roots(self, time: Time) -> list[int]:
        """Full nodes that must be computed at a time."""
        reduced = [self.nodes[i].args[0] for i in self.reductions(time, "full")]
        return [*reduced, *(store.node for store in self.stored(time, "full"))]


def schedule(graph: Graph, outputs: dict[int, int], exact: set[int], results: Iterable[int] = ()) -> Program:
    """Schedule a traced rule, or a probe.

    Args:
        graph: its operations.
        outputs: position of a row tensor -> node it receives.
        exact: positions whose memory keeps a value as it was computed.
        results: scalars to hand back.

    Raises:
        Unwalkable: it reduces over dimensions in a way no loop is generated for.
        Untraceable: a probe gives tensors.
    """
    nodes, alias = _without_same(graph)
    products = [replace(product, given=alias[product.given]) for product in graph.products]
    outputs = {position: alias[i] for position, i in outputs.items()}
    outputs |= {product.index: product.given for product in products}
    handed = [alias[i] for i in results]
    roots = [*outputs.values(), *handed]
    _join_sums(nodes, roots)
    live = _live(nodes, roots)
    merged = _merge(nodes, live)
    kinds = [_kind(node, merged) for node in nodes]
    times = _times(nodes, kinds, live)
    program = Program(nodes, kinds, len(merged), merged, [], times, live=live, results=handed, products=products)
    if any(kinds[i] != "scalar" for i in handed):
        raise Untraceable("a probe that gives something else than numbers")
    program.stores = [Store(position, i, times[i]) for position, i in outputs.items()]
    full = [s for s in program.stores if kinds[s.node] == "full"]
    program.early = {s.node: s for s in full if s.position in exact}
    _settle(program, [s for s in full if s.position not in {product.index for product in products}])
    return program


def _without_same(graph: Graph) -> tuple[list[Node], list[int]]:
    """The nodes with arguments that skip "same" nodes, and for each node the one that computes its value."""
    alias: list[int] = []
    nodes: list[Node] = []
    for i, node in enumerate(graph.nodes):
        alias.append(alias[node.args[0]] if node.op == "same" else i)
        nodes.append(Node(node.op, tuple(alias[a] for a in node.args), node.shape, node.value))
    return nodes, alias


def _join_sums(nodes: list[Node], roots: list[int]) -> None:
    """Sums over one dimension after the other that end in one number become one sum, which tells no rows apart.

    Not where anything else asks for the first of them; nor those of each matrix of a stack, which go to more programs
    by way of rows.
    """
    uses = Counter([arg for i in _live(nodes, roots) for arg in nodes[i].args] + roots)
    for i, node in enumerate(nodes):
        if node.op == "sum" and not node.labels:
            inner = nodes[node.args[0]]
            if inner.op == "sum" and inner.labels and uses[node.args[0]] == 1:
                nodes[i] = replace(node, args=inner.args, value=tuple(sorted((*inner.value, *node.value))))


def _live(nodes: list[Node], roots: Iterable[int]) -> set[int]:
    live: set[int] = set()
    stack = list(roots)
    while stack:
        i = stack.pop()
        if i not in live:
            live.add(i)
            stack += nodes[i].args
    return live


def _merge(nodes: list[Node], live: set[int]) -> list[list[int]]:
    """Neighbouring labels that no operation tells apart, together."""
    masks = {nodes[i].labels for i in live}
    masks |= {frozenset(nodes[i].value) for i in live if nodes[i].op in (*REDUCTIONS, "size")}
    labels = sorted(set().union(*masks))
    merged: list[list[int]] = []
    for label in labels:
        if merged and all((merged[-1][-1] in mask) == (label in mask) for mask in masks):
            merged[-1].append(label)
        else:
            merged.append([label])
    if len(merged) > 3:
        raise Unwalkable("a rule that treats more than three dimensions differently")
    return merged or [[]]


def _kind(node: Node, merged: list[list[int]]) -> str:
    axes = tuple(i for i, labels in enumerate(merged) if labels and labels[0] in node.labels)
    named = {
        1: {(0,): "full", (): "scalar"},
        2: {(0, 1): "full", (0,): "row", (1,): "column", (): "scalar"},
        3: {(0, 1, 2): "full", (0, 1): "row", (0, 2): "column", (0,): "batch", (): "scalar"},
    }[len(merged)]
    if axes not in named:
        raise Unwalkable("a value that varies over rows but not over the batches they are in")
    return named[axes]


def _times(nodes: list[Node], kinds: list[str], live: set[int]) -> list[Time]:
    times: list[Time] = []
    for i, node in enumerate(nodes):
        time = max((times[a] for a in node.args), default=_START)
        if node.op == "load" and node.args:
            time = (time[0] + 1, 0)
        if node.op in REDUCTIONS and i in live:
            step = kinds[node.args[0]], kinds[i]
            if step == ("full", "row"):
                time = (time[0], time[1] + 1)
            elif step in {
                *(("full", "scalar"), ("full", "column"), ("full", "batch")),
                *(("row", "scalar"), ("row", "batch")),
            }:
                time = (time[0] + 1, 0)
            else:
                raise Unwalkable(f"a reduction from {step[0]} to {step[1]}")
        times.append(time)
    return times


def _settle(program: Program, stores: list[Store]) -> None:
    """Put off stores until what they overwrite is no longer read."""
    loads = {node.value: i for i, node in enumerate(program.nodes) if node.op == "load"}
    changed = True
    while changed:
        changed = False
        times = sorted({*(program.times[i] for i in program.live), *(s.time for s in program.stores)})
        last: dict[int, Time] = {}
        for time in times:
            for leaf in program.expand(time, program.roots(time))[1]:
                last[leaf] = time
        for store in stores:
            used = last.get(loads.get(store.position, -1), _START)
            if used > store.time:
                store.time = used
                program.early.pop(store.node, None)
                changed = True
