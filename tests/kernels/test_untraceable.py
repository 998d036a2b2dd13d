"""Rules of which no kernel can be made: an error where kernels were asked for, foreach and one warning where not."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from rows import bucket_of, by_loop, copied

import hfoptim
from hfoptim.engine import ELEMENT, MATRIX, TENSOR, Probe, Rule, RuleOptimizer, State, backends, hyper
from hfoptim.engine.backends import compiled, matrix
from hfoptim.engine.backends.foreach import Foreach
from hfoptim.engine.backends.loop import Loop
from hfoptim.engine.codegen import build

pytestmark = pytest.mark.skipif(compiled.missing() is not None, reason=f"needs {compiled.missing()}")

SHAPES = [(7, 5), (9,)]
# name -> (rule, what the message says about it)
RULES = {
    "sort": (lambda g, p, h: (g / g.flatten().sort()[0].amax(),), "flatten"),
    "median": (lambda g, p, h: (g - g.median(),), "median"),
    "branch": (lambda g, p, h: (g if g.sum() > 0 else -g,), "branch"),
    "float": (lambda g, p, h: (g * math.sqrt(abs(float(g.sum()))),), "numbers"),
    "index": (lambda g, p, h: (g + p[0],), "indexing"),
    "matrix product": (lambda g, p, h: (g + (g.reshape(1, -1) @ p.reshape(-1, 1)).sum(),), "reshape"),
    "a set": (lambda g, p, h: (g * len({g, p}),), "unhashable"),
}


def optimizer_of(chosen, **options):
    class Custom(RuleOptimizer):
        rule = chosen
        lr: float = hyper(1e-2, "learning rate")
        weight_decay: float = hyper(0.1, "weight decay")

    g = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, generator=g)) for shape in SHAPES]
    for param in params:
        param.grad = torch.randn(param.shape, generator=g)
    return Custom(params, **options), params


def named(fn, scope=TENSOR, **more):
    fn.__name__ = "homemade"
    return Rule(fn, scope, **more)


@pytest.mark.parametrize(("fn", "word"), RULES.values(), ids=RULES)
def test_asked_for_kernels_are_an_error_that_names_rule_and_operation(fn, word):
    optimizer, params = optimizer_of(named(fn), fused=True)
    before = copy.deepcopy(params)
    for _ in range(2):  # at every step, not at the first alone
        with pytest.raises(
            NotImplementedError, match=f"fused=True has no kernel for the rule homemade: .*{word}.*; use"
        ):
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(params, before, strict=True))


def test_a_rule_may_not_branch_in_foreach_either():
    optimizer, _ = optimizer_of(named(RULES["branch"][0]), foreach=True)
    with pytest.raises(TypeError, match="branch"):
        optimizer.step()


@pytest.mark.parametrize("name", ["median", "index"])
def test_chosen_automatically_foreach_steps_it_with_one_warning(name, monkeypatch):
    monkeypatch.setitem(backends.COMPILE_FROM, "cpu", 1)
    taken = []
    monkeypatch.setattr(Loop, "step", lambda self, bucket: pytest.fail("the loop was taken"))
    step = Foreach.step
    monkeypatch.setattr(Foreach, "step", lambda self, bucket: taken.append(len(bucket.rows)) or step(self, bucket))
    rule = named(RULES[name][0])
    mine, params = optimizer_of(rule)
    with pytest.warns(UserWarning, match=r"without compiled kernels.*the rule homemade: ") as caught:
        _ = [mine.step() for _ in range(3)]
    assert len(caught) == 1
    assert taken == [2, 2, 2]
    other, theirs = optimizer_of(rule, foreach=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            other.step()
    assert all(torch.equal(a, b) for a, b in zip(params, theirs, strict=True))


def test_a_probe_without_a_kernel():
    probe = Probe(lambda g, p, h: {"middle": g.median()})
    rule = named(lambda g, p, h: (g * h.middle,), ELEMENT, probe=probe, per_step=lambda t, group, **sums: sums)
    optimizer, _ = optimizer_of(rule, fused=True)
    with pytest.raises(NotImplementedError, match=r"the probe of the rule homemade: .*median"):
        optimizer.step()


def test_prodigy_with_slices_says_so():
    param = torch.nn.Parameter(torch.ones(40))
    param.grad = torch.ones(40)
    optimizer = hfoptim.Prodigy([param], slice_p=3, fused=True)
    with pytest.raises(NotImplementedError, match=r"the probe of the rule prodigy: .*state"):
        optimizer.step()


# -- tensors that no kernel walks through, of a rule that has kernels -------------------------------------------------


def totals(g, p, h):
    return (g * p.norm(),)


def test_gaps_in_memory_go_to_the_loop_without_a_word(recwarn):
    bucket = bucket_of(totals, [(6, 8), (5, 4)])
    bucket.rows[0] = bucket.rows[0].map(lambda t: t[:, ::2])
    expected = by_loop(bucket)
    backends.KERNELS_ASKED.step(bucket)
    assert not recwarn.list
    assert torch.equal(bucket.rows[0].param, expected.rows[0].param)
    torch.testing.assert_close(bucket.rows[1].param, expected.rows[1].param)


def test_shapes_without_a_loop_go_to_the_eager_loop_with_one_warning():
    def twisted(g, p, h):
        return (g - g.mean((0, 2), keepdim=True) - g.mean((0, 1), keepdim=True),)

    bucket = bucket_of(twisted, [(3, 4, 5), (2, 4, 5)])
    expected, again = by_loop(bucket), copied(bucket)
    with pytest.warns(UserWarning, match=r"the rule twisted on shapes such as \(3, 4, 5\): ") as caught:
        _ = [backends.KERNELS_ASKED.step(bucket), backends.KERNELS.step(again)]
    assert len(caught) == 1
    for stepped in (bucket, again):
        for mine, theirs in zip(stepped.rows, expected.rows, strict=True):
            assert torch.equal(mine.param, theirs.param)


def test_a_compiler_that_does_not_know_float16(monkeypatch):
    def half(g, p, h):
        return (g * 0.5,)

    monkeypatch.setattr(build, "has_float16", lambda: False)
    bucket = bucket_of(half, [(7,)], ELEMENT, dtype=torch.float16)
    expected = by_loop(bucket)
    with pytest.raises(RuntimeError, match="float16"):
        backends.KERNELS_ASKED.step(bucket)
    compiled.warn_uncompiled.cache_clear()
    with pytest.warns(UserWarning, match="float16"):
        backends.KERNELS.step(bucket)
    assert torch.equal(bucket.rows[0].param, expected.rows[0].param)


def test_a_state_that_parameters_of_other_sizes_have_not_is_none_of_a_kernel():
    ragged = torch.Size((7, 5))

    def blocks(param, dtype):
        # As of the second kind of blocks, which only a ragged side has.
        return [torch.zeros(2, 3, 3, dtype=dtype, device=param.device)][0 if param.shape == ragged else 1]

    bucket = bucket_of(lambda g, p, b, h: (g * b.sum(), b), [tuple(ragged)], MATRIX, b=State(blocks))
    assert not matrix._traceable(bucket)
