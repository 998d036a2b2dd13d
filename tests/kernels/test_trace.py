"""Rules run on symbols: the graph computes what torch computes, and what cannot be traced is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from hfoptim.engine import storage
from hfoptim.engine.codegen import native
from hfoptim.engine.codegen.trace import Graph, Symbol, Untraceable
from hfoptim.engine.operators import OPERATORS
from hfoptim.engine.plan import Decay, plan_of
from hfoptim.engine.rule import ELEMENT, TENSOR, Rule, ema, rms, zeros, zeros_without

# Of the dimension with each label.
SIZES = (4, 3, 5)
# Arguments of the expressions below: name -> shape as labels.
SHAPES = {
    "x": (0, 1, 2),
    "y": (0, 1, 2),
    "positive": (0, 1, 2),
    "row": (0, 1, None),
    "column": (0, None, 2),
    "last": (2,),
    "one": (None,),
    "total": (),
}
SCALARS = {"a": 0.3, "b": -1.7}

UNARY = {
    "neg": lambda v: -v["x"],
    "sqrt": lambda v: v["positive"].sqrt(),
    "rsqrt": lambda v: v["positive"].rsqrt(),
    "reciprocal": lambda v: v["positive"].reciprocal(),
    "square": lambda v: v["x"].square(),
    "abs": lambda v: v["x"].abs(),
    "sign": lambda v: (v["x"] * (v["x"] > 0)).sign() + v["x"].sign(),
    "exp": lambda v: v["x"].exp(),
    "log": lambda v: v["positive"].log(),
    "tanh": lambda v: v["x"].tanh(),
    "clone": lambda v: v["x"].clone(),
    "isfinite": lambda v: torch.where((v["x"] / (v["x"] - v["x"].abs())).isfinite(), v["x"], v["y"]),
}
BINARY = {
    "add": lambda v: v["x"] + v["y"],
    "sub": lambda v: v["x"] - v["y"],
    "mul": lambda v: v["x"] * v["y"],
    "div": lambda v: v["x"] / v["y"],
    "number_left": lambda v: 2.0 - (3.0 + 4.0 * v["x"]) + 1.0 / v["x"],
    "number_right": lambda v: (v["x"] - 2.0) * 3.0 / 4.0 + 1.0,
    "scalar_left": lambda v: v["a"] - (v["b"] + v["a"] * v["x"]) + v["a"] / v["x"],
    "scalar_right": lambda v: (v["x"] - v["a"]) * v["b"] / v["a"] + v["b"],
    "scalars_alone": lambda v: v["x"] * (1.0 - v["a"] * v["b"] + 2.0**3),
    "power_2": lambda v: v["x"] ** 2,
    "power_3": lambda v: v["x"] ** 3,
    "power_half": lambda v: v["positive"] ** 0.5 + v["positive"] ** -0.5,
    "power_scalar": lambda v: v["positive"] ** v["b"],
    "power_of_number": lambda v: 2.0 ** v["x"],
    "pow": lambda v: v["positive"].pow(1.5) + v["positive"].pow(v["y"]),
    "add_alpha": lambda v: v["x"].add(v["y"]) + v["x"].add(v["y"], alpha=2.5) + v["x"].add(v["y"], alpha=v["a"]),
    "lerp": lambda v: v["x"].lerp(v["y"], v["a"]) + v["x"].lerp(v["y"], 0.25),
    "maximum": lambda v: v["x"].maximum(v["y"]) + torch.maximum(v["y"], v["x"]),
    "minimum": lambda v: v["x"].minimum(v["y"]) - torch.minimum(v["y"], v["positive"]),
    "clamp": lambda v: v["x"].clamp(min=-0.5, max=0.5) + v["x"].clamp(min=0.1) + v["y"].clamp(max=0.2),
    "clamp_to_scalars": lambda v: v["x"].clamp(max=v["a"]) + v["x"].clamp(min=v["b"]),
    "to": lambda v: v["x"].to(torch.float64),
    "bfloat16": lambda v: v["x"].to(torch.bfloat16).to(torch.float64) - v["y"],
    "float16": lambda v: v["x"].to(torch.float16).to(torch.float64),
    "ema": lambda v: ema(v["x"], v["y"], v["a"]),
    "torch_functions": lambda v: torch.sqrt(torch.abs(v["x"])) + torch.square(v["y"]) * torch.sign(v["x"]),
}
COMPARED = {
    "greater": lambda v: (v["x"] > v["y"]).to(torch.float64),
    "at_least": lambda v: (v["x"] >= v["x"]).to(torch.float64),
    "less": lambda v: (v["x"] < 0.3).to(torch.float64),
    "at_most": lambda v: (v["x"] <= v["x"]).to(torch.float64),
    "equal": lambda v: (v["x"] == v["x"].abs()).to(torch.float64),
    "unequal": lambda v: (v["x"] != v["x"].abs()).to(torch.float64),
    "and": lambda v: ((v["x"] > 0) & (v["y"] > 0)).to(torch.float64),
    "or": lambda v: ((v["x"] > 0) | (v["y"] > 0)).to(torch.float64),
    "not": lambda v: (~(v["x"] > 0)).to(torch.float64),
    "mask": lambda v: v["y"] * (v["x"] > 0),
    "where": lambda v: torch.where(v["x"] > 0, v["x"], v["y"]),
    "where_numbers": lambda v: torch.where(v["x"] > 0, 1.0, v["a"] * v["y"]),
    "where_method": lambda v: v["x"].where(v["y"] > 0, v["positive"]),
    "where_of_row": lambda v: torch.where(v["row"] > 0, v["x"], v["column"]),
}
REDUCED: dict[str, Any] = {
    **{
        f"{name}{label}": lambda v, name=name, options=options: getattr(v["x"], name)(**options) * 1.0
        for name in ("sum", "mean", "amax", "norm")
        for label, options in {
            "": {},
            "_0": {"dim": 0},
            "_last": {"dim": -1},
            "_last_kept": {"dim": -1, "keepdim": True},
            "_two": {"dim": (0, -1)},
            "_two_kept": {"dim": (-2, -1), "keepdim": True},
        }.items()
    },
    "of_all_dimensions": lambda v: v["x"].sum((0, 1, 2), keepdim=True) * v["x"].amax((0, 1, 2)),
    "of_the_rest": lambda v: v["x"].mean(-1).mean(-1).mean(),
    "over_ones": lambda v: v["row"].sum(-1) + v["row"].mean(-1) + v["row"].norm(dim=-1),
    "of_a_number": lambda v: v["total"].mean() + v["total"].sum() + v["total"].norm() + v["one"].amax(),
    "norm_positional": lambda v: v["x"].norm(2, -1, True) + v["x"].norm(2),
    "rms": lambda v: rms(v["x"]),
    "torch_functions": lambda v: torch.mean(v["x"]) + torch.sum(v["x"]) + torch.amax(v["x"]),
}
SHAPED = {
    "broadcast_row": lambda v: v["x"] * v["row"],
    "broadcast_column": lambda v: v["column"] - v["x"],
    "broadcast_both": lambda v: v["row"] + v["column"],
    "broadcast_last": lambda v: v["x"] * v["last"],
    "broadcast_one": lambda v: v["x"] + v["one"],
    "broadcast_total": lambda v: v["total"] * v["x"] + v["total"],
    "unsqueeze": lambda v: v["x"].mean(-1).unsqueeze(-1) * v["x"] + v["x"].sum(0).unsqueeze(0),
    "unsqueeze_middle": lambda v: v["x"] - v["x"].mean(1).unsqueeze(1) + v["x"].mean(1).unsqueeze(-2),
    "squeeze": lambda v: v["row"].squeeze(-1) + v["x"].sum(-1, keepdim=True).squeeze(2),
    "twice_unsqueezed": lambda v: v["last"].unsqueeze(0).unsqueeze(0) * v["x"],
    "factored": lambda v: (
        v["x"]
        * (v["x"].square().mean(-1) / v["x"].square().mean((-2, -1), keepdim=True).squeeze(-1)).rsqrt().unsqueeze(-1)
    ),
}
EXPRESSIONS = [
    pytest.param(fn, id=f"{kind}-{name}")
    for kind, table in {
        "unary": UNARY,
        "binary": BINARY,
        "compared": COMPARED,
        "reduced": REDUCED,
        "shaped": SHAPED,
    }.items()
    for name, fn in table.items()
]


def sizes_of(shape):
    return [1 if label is None else SIZES[label] for label in shape]


def symbols(graph):
    made = {name: graph.add("load", (), shape, i) for i, (name, shape) in enumerate(SHAPES.items())}
    return made | {name: graph.add("scalar", (), (), name) for name in SCALARS}


def tensors(seed=0):
    g = torch.Generator().manual_seed(seed)
    made = {name: torch.randn(sizes_of(s), generator=g, dtype=torch.float64) for name, s in SHAPES.items()}
    return {**made, "positive": made["positive"].abs() + 0.1}


def evaluate(graph, index, loads):
    """The value of a node, by torch: the meaning that every generated kernel must have."""
    computed = {}
    for i, node in enumerate(graph.nodes):
        args = [computed[a] for a in node.args]
        if node.op == "load":
            value = loads[node.value]
        elif node.op in ("scalar", "number"):
            value = torch.tensor(SCALARS[node.value] if node.op == "scalar" else node.value, dtype=torch.float64)
        elif node.op == "size":
            value = torch.tensor(float(math.prod(SIZES[label] for label in node.value)), dtype=torch.float64)
        elif node.op in ("sum", "amax"):
            shape = graph.nodes[node.args[0]].shape
            over = [i for i, label in enumerate(shape) if label in node.value and label is not None]
            value = getattr(args[0], node.op)(over)
        elif node.op == "same":
            value = args[0]
        elif node.op == "cast":
            value = args[0].to(node.value).to(torch.float64)
        else:
            value = OPERATORS[node.op].eager(*args)
        computed[i] = value.reshape(sizes_of(node.shape))
    return computed[index]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_a_graph_computes_what_torch_does(expression):
    graph, given = Graph(), tensors()
    symbol = expression(symbols(graph))
    expected = expression({**given, **SCALARS})
    value = evaluate(graph, symbol.index, list(given.values()))
    assert isinstance(symbol, Symbol)
    assert symbol.ndim == expected.ndim
    assert value.shape == expected.shape
    torch.testing.assert_close(value, expected, rtol=1e-13, atol=1e-13)


def test_arguments_come_before_what_reads_them_and_equal_operations_are_there_once():
    graph = Graph()
    v = symbols(graph)
    first = (v["x"] * v["y"]).mean() + 2.0 * v["a"]
    count = len(graph.nodes)
    assert ((v["x"] * v["y"]).mean() + 2.0 * v["a"]).index == first.index
    assert len(graph.nodes) == count
    assert all(a < i for i, node in enumerate(graph.nodes) for a in node.args)
    assert (v["y"] * v["x"]).index != first.index


def test_operations_that_change_nothing_leave_no_node():
    graph = Graph()
    v = symbols(graph)
    count = len(graph.nodes)
    assert v["x"].clone().to(torch.float64).to(torch.float32).index == v["x"].index
    assert len(graph.nodes) == count


REFUSED = {
    "a_number_of_decimals": lambda v: v["x"].round(decimals=2),
    "a_rounded_quotient": lambda v: v["x"].div(v["y"], rounding_mode="floor"),
    "branch": lambda v: v["x"] if v["x"].sum() > 0 else v["y"],
    "branch_on_a_scalar": lambda v: v["x"] if v["a"] else v["y"],
    "conjunction": lambda v: (v["x"] > 0 and v["y"] > 0) * 1.0,
    "max_of_python": lambda v: max(v["a"], 1.0),
    "float": lambda v: v["x"] * float(v["x"].sum()),
    "int": lambda v: v["x"] * int(v["a"]),
    "item": lambda v: v["x"] * v["x"].sum().item(),
    "math": lambda v: math.sqrt(v["a"]) * v["x"],
    "range": lambda v: sum(v["x"] for _ in range(v["a"])),
    "numel": lambda v: v["x"].sum() / v["x"].numel(),
    "shape": lambda v: v["x"] * v["x"].shape[0],
    "length": lambda v: v["x"] * len(v["x"]),
    "index": lambda v: v["x"][0],
    "unpack": lambda v: [*v["x"]],
    "matrix_product": lambda v: v["x"] @ v["y"],
    "median": lambda v: v["x"].median(),
    "sort": lambda v: torch.sort(v["x"])[0],
    "transpose": lambda v: v["x"].mT,
    "view": lambda v: v["x"].view(-1),
    "in_place": lambda v: v["x"].add_(1.0),
    "a_tensor": lambda v: v["x"] + torch.ones(5),
    "a_tensor_left": lambda v: torch.ones(5) * v["x"],
    "rows_and_columns": lambda v: v["x"] + v["x"].mean(-1),
    "squeeze_of_a_size": lambda v: v["x"].squeeze(0),
    "a_string": lambda v: v["x"] + "1",
}


@pytest.mark.parametrize("expression", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_traced_is_refused(expression):
    with pytest.raises(Untraceable):
        expression(symbols(Graph()))


def test_in_place_operators_make_new_symbols():
    graph = Graph()
    v = symbols(graph)
    x = y = v["x"]
    x += v["y"]
    assert x.index != y.index == v["x"].index


# -- rules of which no kernel is made --------------------------------------------------------------------------------


def program(fn, scope=TENSOR, shape=(6, 4), **state):
    plan = plan_of(Rule(fn, scope, state), Decay.NONE, torch.float32)
    param = torch.zeros(shape)
    row = [param, param.clone()]
    for name, kept in zip(state, plan.storage, strict=True):
        row += [init(param, torch.float32) for init in storage.inits(kept, plan.rule, name).values()]
    return native.program_of(plan, ("lr",), plan.slots(row))


@pytest.mark.parametrize(
    ("fn", "state"),
    [
        pytest.param(lambda g, p, h: (None,), {}, id="no update"),
        pytest.param(lambda g, p, h: (g * (2.0 if g.mean() > 0 else 1.0),), {}, id="branch"),
        pytest.param(lambda g, p, s, h: (g, s.mean()), {"s": zeros}, id="smaller new state"),
        pytest.param(lambda g, p, s, h: (g, g), {"s": zeros_without(0)}, id="larger new state"),
        pytest.param(lambda g, p, s, h: (g, 0.0), {"s": zeros}, id="a new state that is a number"),
        pytest.param(lambda g, p, s, h: (g, [s]), {"s": zeros}, id="a new state that is a list"),
    ],
)
def test_a_rule_without_a_kernel_is_refused(fn, state):
    with pytest.raises(Untraceable):
        program(fn, **state)


def test_a_new_state_of_none_is_not_written():
    made, _, _ = program(lambda g, p, s, h: (g + s, None), ELEMENT, s=zeros)
    assert [store.position for store in made.stores] == [0]
