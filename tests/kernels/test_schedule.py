"""How often generated kernels go over memory, what they read and write there, and when."""

from __future__ import annotations

import pytest
import torch

import hfoptim
from hfoptim.engine import backends, storage
from hfoptim.engine.codegen import native
from hfoptim.engine.codegen.trace import Untraceable
from hfoptim.engine.plan import Decay, plan_of
from hfoptim.engine.rule import ELEMENT, MATRIX, TENSOR, Rule, scalar, zeros, zeros_without


def of_optimizer(cls, shape, dtype=torch.float32, name="w", **options):
    """The program of an optimizer's step for one parameter."""
    param = torch.nn.Parameter(torch.randn(shape, dtype=torch.float64).to(dtype))
    param.grad = torch.randn_like(param)
    optimizer = cls([(name, param)], foreach=False, **options)
    (work,) = optimizer._collect(optimizer._entries())
    work.bucket.scalars = optimizer._scalars(work, {}, {})
    assert work.backend is backends.LOOP
    with work.bucket.shaped() as bucket:
        return native.program_of(bucket.plan, tuple(bucket.scalars), bucket.rows[0])[0]


def of_rule(fn, scope=TENSOR, shape=(6, 4), kept=None, dtype=torch.float32, **state):
    plan = plan_of(Rule(fn, scope, state), Decay.NONE, torch.float32, kept=kept)
    param = torch.zeros(shape, dtype=dtype)
    row = [param, param.clone()]
    for name, how in zip(state, plan.storage, strict=True):
        row += [init(param, torch.float32) for init in storage.inits(how, plan.rule, name).values()]
    return native.program_of(plan, ("lr",), plan.slots(row))[0]


def walks(program):
    """For each walk over the tensors ((phase, sub): again along the row) what of the parameter's size it moves.

    Returns:
        {(phase, sub): (positions read, positions written)}, without walks that move nothing.
    """
    found = {}
    for phase in range(program.phases):
        for sub in range(program.subs(phase)):
            time = phase, sub
            leaves = [i for i in program.expand(time, program.roots(time))[1] if program.kinds[i] == "full"]
            read = {
                program.nodes[i].value if program.nodes[i].op == "load" else program.early[i].position for i in leaves
            }
            written = {store.position for store in program.stored(time, "full")}
            if read or written:
                found[time] = sorted(read), sorted(written)
    return found


# Positions in a row: parameter, gradient, the first states.
P, G, M, V = 0, 1, 2, 3
# What each walk reads and writes.
ONE_PASS_OF_ADAM = {(0, 0): ([P, G, M, V], [P, M, V])}
TRAFFIC = {
    "adamw": ((hfoptim.AdamW, (10, 11), {"weight_decay": 0.1}), ONE_PASS_OF_ADAM),
    "adamw, bfloat16": ((hfoptim.AdamW, (10, 11), {"dtype": torch.bfloat16}), ONE_PASS_OF_ADAM),
    "adamw, 8bit": ((hfoptim.AdamW, (70, 64), {"state_dtype": "8bit"}), ONE_PASS_OF_ADAM),
    "lion": ((hfoptim.Lion, (10, 11), {"weight_decay": 0.1}), {(0, 0): ([P, G, M], [P, M])}),
    "sgd": ((hfoptim.SGD, (10, 11), {"momentum": 0.9}), {(0, 0): ([P, G, M], [P, M])}),
    # The norms of update and parameter; then the step, from moments that are already new.
    "lamb": (
        (hfoptim.Lamb, (10, 11), {"weight_decay": 0.1, "max_grad_norm": None}),
        {(0, 0): ([P, G, M, V], [M, V]), (1, 0): ([P, M, V], [P])},
    ),
    # Rounded, they are no longer what the norm was taken of, and are computed again.
    "lamb, 8bit": (
        (hfoptim.Lamb, (70, 64), {"weight_decay": 0.1, "max_grad_norm": None, "state_dtype": "8bit"}),
        {(0, 0): ([P, G, M, V], []), (1, 0): ([P, G, M, V], [P, M, V])},
    ),
    # Row means and column means; the update's mean square; the step.
    "adafactor": (
        (hfoptim.Adafactor, (10, 11), {}),
        {(0, 0): ([P, G], []), (1, 0): ([G], []), (2, 0): ([P, G], [P])},
    ),
    "adafactor, stack": (
        (hfoptim.Adafactor, (3, 10, 11), {}),
        {(0, 0): ([P, G], []), (1, 0): ([G], []), (2, 0): ([P, G], [P])},
    ),
    "adafactor, vector": (
        (hfoptim.Adafactor, (10,), {}),
        {(0, 0): ([P, G, M], [M]), (1, 0): ([P, G, M], [P])},
    ),
    "adafactor, momentum": (
        (hfoptim.Adafactor, (10, 11), {"beta1": 0.9}),
        {(0, 0): ([P, G], []), (1, 0): ([G], []), (2, 0): ([P, G, 4], [P, 4])},
    ),
    # The row again, from the cache.
    "adam_mini, rows": (
        (hfoptim.AdamMini, (10, 11), {"name": "mlp.weight"}),
        {(0, 0): ([G, M], [M]), (0, 1): ([P, M], [P])},
    ),
    "adam_mini, heads": (
        (hfoptim.AdamMini, (16, 4), {"name": "q_proj", "dim": 4, "n_heads": 2}),
        {(0, 0): ([G, M], [M]), (0, 1): ([P, M], [P])},
    ),
    "adam_mini, tensor": (
        (hfoptim.AdamMini, (10, 11), {"name": "other"}),
        {(0, 0): ([G, M], [M]), (1, 0): ([P, M], [P])},
    ),
    "novograd": (
        (hfoptim.NvNovoGrad, (10, 11), {"weight_decay": 0.1}),
        {(0, 0): ([G], []), (1, 0): ([P, G, M], [P, M])},
    ),
    "adamw, caution": (
        (hfoptim.AdamW, (10, 11), {"caution": True}),
        {(0, 0): ([G, M, V], [M, V]), (1, 0): ([P, G, M, V], [P])},
    ),
}


@pytest.mark.parametrize(("what", "expected"), TRAFFIC.values(), ids=TRAFFIC)
def test_what_optimizers_read_and_write(what, expected):
    cls, shape, options = what
    assert walks(of_optimizer(cls, shape, **options)) == expected


# -- axes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fn", "axes", "merged"),
    [
        (lambda g, p, h: (g * p,), 1, [[0, 1, 2, 3]]),
        (lambda g, p, h: (g * g.mean(),), 1, [[0, 1, 2, 3]]),
        (lambda g, p, h: (g * g.mean(-1, keepdim=True),), 2, [[0, 1, 2], [3]]),
        (lambda g, p, h: (g * g.mean(0, keepdim=True),), 2, [[0], [1, 2, 3]]),
        (lambda g, p, h: (g * g.mean((-2, -1), keepdim=True),), 2, [[0, 1], [2, 3]]),
        (lambda g, p, h: (g * g.mean(-2, keepdim=True),), 3, [[0, 1], [2], [3]]),
        (lambda g, p, h: (g * g.mean((0, 1, 2, 3), keepdim=True),), 1, [[0, 1, 2, 3]]),
    ],
)
def test_dimensions_that_are_treated_alike_are_one(fn, axes, merged):
    program = of_rule(fn, shape=(2, 3, 4, 5))
    assert (program.axes, program.merged) == (axes, merged)


def test_dimensions_of_size_1_are_no_axes():
    fn = lambda g, p, h: (g * g.mean(-1, keepdim=True),)  # noqa: E731
    assert of_rule(fn, shape=(6, 1)).axes == 1
    assert of_rule(fn, shape=(1, 6)).axes == 1
    assert of_rule(fn, shape=(6, 1, 5)).merged == [[0], [2]]


@pytest.mark.parametrize(
    ("fn", "match"),
    [
        (lambda g, p, h: (g * g.mean((0, 2), keepdim=True).mean((1, 3), keepdim=True),), "more than three"),
        (lambda g, p, h: (g * g.mean((0, 2), keepdim=True),), "more than three"),
        (lambda g, p, h: (g * g.mean(-1, keepdim=True) * g.mean(0, keepdim=True),), "batches"),
        (lambda g, p, h: (g * g.mean(0, keepdim=True).mean(),), "reduction from column"),
    ],
)
def test_reductions_without_a_loop_are_refused(fn, match):
    with pytest.raises(Untraceable, match=match):
        of_rule(fn, shape=(2, 3, 4, 5))


def test_the_largest_entry_of_a_row_needs_no_pass_of_its_own():
    assert walks(of_rule(lambda g, p, h: (g / g.abs().amax(-1, keepdim=True),))) == {
        (0, 0): ([G], []),
        (0, 1): ([P, G], [P]),
    }


# -- when stores happen ----------------------------------------------------------------------------------------------


def test_a_store_waits_until_the_old_value_is_no_longer_read():
    def fn(g, p, m, h):
        return m * g.mean(), m + g

    assert walks(of_rule(fn, m=zeros)) == {(0, 0): ([G], []), (1, 0): ([P, G, M], [P, M])}


def test_an_early_store_is_read_back():
    def fn(g, p, m, h):
        new = m + g * g
        return new * new.mean(), new

    program = of_rule(fn, m=zeros)
    assert walks(program) == {(0, 0): ([G, M], [M]), (1, 0): ([P, M], [P])}
    assert [store.position for store in program.early.values()] == [M]
    assert program.stores[1].time == (0, 0)


@pytest.mark.parametrize("form", [storage.Format.BF16, storage.Format.Q8])
def test_what_is_rounded_on_its_way_to_memory_is_not_read_back(form):
    def fn(g, p, m, h):
        new = m + g * g
        return new * new.mean(), new

    program = of_rule(fn, shape=(70, 64), kept=(storage.Storage(form),), m=zeros)
    assert walks(program) == {(0, 0): ([G, M], []), (1, 0): ([P, G, M], [P, M])}
    assert not program.early


def test_a_store_waits_for_a_walk_along_the_same_row():
    def fn(g, p, m, h):
        return m * g.mean(-1, keepdim=True), m + g

    assert walks(of_rule(fn, m=zeros)) == {(0, 0): ([G], []), (0, 1): ([P, G, M], [P, M])}


def test_stores_that_wait_for_each_other_are_settled():
    # m waits for its old value; n is made from m's new one, which then is not in memory yet.
    def fn(g, p, m, n, h):
        new = m + g
        return (n + new) * (m * g.mean()), new, new * n.square().mean()

    program = of_rule(fn, m=zeros, n=zeros)
    times = {store.position: store.time for store in program.stores}
    assert times == {P: (1, 0), M: (1, 0), 3: (1, 0)}
    assert not any(store.time < (1, 0) for store in program.early.values())


def test_two_states_may_change_places():
    program = of_rule(lambda g, p, m, n, h: (g, n, m), ELEMENT, m=zeros, n=zeros)
    assert walks(program) == {(0, 0): ([P, G, M, 3], [P, M, 3])}


def test_what_nothing_needs_is_not_computed():
    def fn(g, p, m, h):
        m.exp().mean()
        return g, None

    assert walks(of_rule(fn, m=zeros)) == {(0, 0): ([P, G], [P])}


def test_small_states_are_stored_once_their_sums_are_known():
    def fn(g, p, row, column, total, h):
        return g, row + g.mean(-1), column + g.mean(-2), total + g.mean()

    program = of_rule(fn, row=zeros_without(-1), column=zeros_without(-2), total=scalar)
    kinds = {store.position: (program.kinds[store.node], store.time) for store in program.stores}
    assert kinds == {P: ("full", (0, 0)), 2: ("row", (0, 1)), 3: ("column", (1, 0)), 4: ("scalar", (1, 0))}
    # Nothing is left to be walked over in the second phase.
    assert (program.phases, program.walks(0), program.walks(1)) == (2, True, False)


def summed_twice(how):
    """A rule with the sum over each matrix, taken over one dimension after the other."""

    def fn(grad, param, m, h):
        rows = (grad * grad).sum(dim=-1, keepdim=True)
        whole = rows.sum(dim=-2, keepdim=True)
        return grad * (whole + rows if how == "rows, too" else whole), m

    return fn


def test_a_sum_of_sums_that_is_one_number_tells_no_rows_apart():
    one = of_rule(summed_twice("alone"), MATRIX, m=zeros)
    assert one.flat
    assert walks(one) == {(0, 0): ([G, M], [M]), (1, 0): ([P, G], [P])}
    # So state may be in codes, whose scales are those of blocks.
    coded = (storage.Storage(storage.Format.Q8),)
    assert of_rule(summed_twice("alone"), MATRIX, (64, 64), coded, m=zeros).flat
    # The rows' own sums are asked for, or each matrix of a stack has one.
    assert not of_rule(summed_twice("rows, too"), MATRIX, m=zeros).flat
    assert not of_rule(summed_twice("alone"), MATRIX, (2, 6, 4), m=zeros).flat
