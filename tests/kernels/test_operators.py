"""Every operation of the table in every backend gives what torch gives for tensors, whatever the numbers."""

from __future__ import annotations

import pytest
import torch
from operator_cases import (
    ELEMENTWISE,
    ELEMENTWISE_STATES,
    REDUCTION_STATES,
    REDUCTIONS,
    differing,
    elementwise,
    operands,
    reducing,
)

from hfoptim.engine.backends import FOREACH, KERNELS_ASKED, LOOP, eager_tiled
from hfoptim.engine.bucket import Bucket
from hfoptim.engine.codegen import build, native
from hfoptim.engine.codegen.trace import Graph, Untraceable
from hfoptim.engine.distributed.dtensor import Cut
from hfoptim.engine.distributed.sharded_list import ShardedList, Unshardable
from hfoptim.engine.operators import OPERATORS, REFUSED
from hfoptim.engine.plan import Decay, plan_of
from hfoptim.engine.rule import ELEMENT, TENSOR, Rule
from hfoptim.engine.tensor_list import TensorList

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
needs_compiler = pytest.mark.skipif(build.compiler() is None, reason="needs a C++ compiler")


def stepped(rule, grads, params, run):
    """The states of each row after a step."""
    plan = plan_of(rule, Decay.NONE, grads[0].dtype)
    rows = [
        [p.clone(), g.clone(), *(rule.first(name, p, p.dtype) for name in rule.state)]
        for p, g in zip(params, grads, strict=True)
    ]
    run(Bucket(plan, [plan.slots(row) for row in rows], {"lr": 0.0}, [0] * len(rows)))
    return [row[2:] for row in rows]


def tiled(bucket):
    assert not eager_tiled._step_large(bucket).rows


BACKENDS = {
    "loop": LOOP.step,
    "foreach": FOREACH.step,
    "eager tiled": tiled,
    "C++": KERNELS_ASKED.step,
}
backends = pytest.mark.parametrize(
    "backend", [pytest.param(name, marks=needs_compiler if name == "C++" else ()) for name in BACKENDS]
)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(eager_tiled, "LARGE", 1)
    monkeypatch.setattr(eager_tiled, "PIECE", 100)


def test_every_operation_has_a_case():
    assert {name.split()[0] for name in ELEMENTWISE} >= set(OPERATORS)


@DTYPES
@backends
def test_element_wise(backend, dtype):
    x, y = operands(dtype)
    scope = TENSOR if backend == "eager tiled" else ELEMENT
    found = stepped(Rule(elementwise, scope, ELEMENTWISE_STATES), [x, x[:9]], [y, y[:9]], BACKENDS[backend])
    wrong = {}
    for (name, fn), mine, short in zip(ELEMENTWISE.items(), *found, strict=True):
        assert torch.equal(short.nan_to_num(9.5), mine[:9].nan_to_num(9.5)), name
        if bad := differing(name, mine, x, y):
            wrong[name] = [(float(x[i]), float(y[i]), float(mine[i]), float(fn(x, y)[i])) for i in bad[:4]]
    assert not wrong


@DTYPES
def test_element_wise_on_parts_of_sharded_tensors(dtype):
    x, y = operands(dtype)
    cuts = [{-1: Cut(len(x), ())}] * 2
    mine, other = (ShardedList(TensorList([t, t[:9]]), cuts, ()) for t in (x, y))
    for name, fn in ELEMENTWISE.items():
        found = fn(mine, other)
        assert found.cuts == cuts
        assert not differing(name, found.parts.tensors[0], x, y), name


# -- reductions ------------------------------------------------------------------------------------------------------


def matrices(dtype):
    """One of finite numbers; one with what is not finite in some of the rows."""
    g = torch.Generator().manual_seed(0)
    finite = torch.randn((37, 19), generator=g, dtype=torch.float64).to(dtype)
    odd = finite.clone()
    odd[5, 3], odd[7, 0], odd[9, 4], odd[9, 5] = torch.nan, torch.inf, -torch.inf, torch.nan
    return [finite, odd]


def assert_reduced(found, dtype):
    for number, (name, (fn, _)) in enumerate(REDUCTIONS.items()):
        for given, states in zip(matrices(dtype), found, strict=True):
            theirs = (fn(given) * 1.0).to(dtype)
            rounding = 1e-5 if dtype is torch.float32 else 1e-13
            torch.testing.assert_close(states[number], theirs, rtol=rounding, atol=rounding, equal_nan=True, msg=name)


REDUCING = Rule(reducing, TENSOR, REDUCTION_STATES)


@DTYPES
@backends
def test_reductions(backend, dtype, monkeypatch):
    given = matrices(dtype)
    assert_reduced(stepped(REDUCING, given, given, BACKENDS[backend]), dtype)
    if backend == "C++":
        before = torch.get_num_threads()
        monkeypatch.setattr(native, "_ONE_THREAD", 0)
        torch.set_num_threads(3)
        try:
            assert_reduced(stepped(REDUCING, given, given, BACKENDS[backend]), dtype)
        finally:
            torch.set_num_threads(before)


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_reductions_over_ranks(process_group):
    groups = (torch.distributed.group.WORLD,)
    given = ShardedList(TensorList(matrices(torch.float64)), [{-2: Cut(37, groups)}] * 2, groups)
    reduced = [(fn(given) * 1.0).to(torch.float64).parts.tensors for fn, _ in REDUCTIONS.values()]
    assert_reduced([*zip(*reduced, strict=True)], torch.float64)


# -- what is refused -------------------------------------------------------------------------------------------------

USES = {
    "sort": lambda x: x.sort(),
    "median": lambda x: torch.median(x),
    "quantile": lambda x: torch.quantile(x, 0.5),
    "cumsum": lambda x: x.cumsum(0),
    "__getitem__": lambda x: x[0],
    "matmul": lambda x: torch.matmul(x, x),
    "__matmul__": lambda x: x @ x,
    "flatten": lambda x: x.flatten(),
    "item": lambda x: x.item(),
    "__float__": lambda x: float(x),
    "numel": lambda x: x.numel(),
    "__floordiv__": lambda x: x // 2.0,
    "max": lambda x: x.max(),
}


@pytest.mark.parametrize("name", USES)
def test_what_has_no_place_in_a_kernel_is_refused_with_the_reason(name):
    symbol = Graph().add("load", (), (0, 1), 0)
    with pytest.raises(Untraceable) as refused:
        USES[name](symbol)
    assert str(refused.value) == f"it uses {name}, which {REFUSED[name]}"


@pytest.mark.parametrize("name", [name for name in USES if not name.startswith("__")])
def test_what_needs_whole_tensors_does_not_go_through_parts(name):
    part = ShardedList(TensorList([torch.ones(3, 3)]), [{-1: Cut(6, ())}], ())
    with pytest.raises(Unshardable, match=name):
        USES[name](part)
