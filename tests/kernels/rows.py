"""Rows for kernels: parameters stepped by the generated kernel and by the loop, from equal memory."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from hfoptim.engine import backends, storage
from hfoptim.engine.bucket import Bucket
from hfoptim.engine.plan import Decay, plan_of
from hfoptim.engine.rule import TENSOR, Rule
from hfoptim.engine.storage import Rounding


def bucket_of(
    fn,
    shapes,
    scope=TENSOR,
    dtype=torch.float32,
    scalars=None,
    grad_dtype=None,
    shape=None,
    rounding=Rounding.NEAREST,
    kept=None,
    **state,
):
    """A bucket for a rule of a test: noise in every tensor, above 0 in states, any codes; nothing in rests.

    Args:
        fn, scope, state: the rule's.
        shapes: of the parameters.
        dtype, grad_dtype: of parameters and gradients.
        scalars: the entries of h beside lr.
        shape: the rule's, in which it sees its tensors.
        rounding, kept: the plan's.
    """
    g = torch.Generator().manual_seed(0)
    compute = torch.float64 if dtype is torch.float64 else torch.float32
    plan = plan_of(Rule(fn, scope, state, shape=shape), Decay.NONE, compute, rounding=rounding, kept=kept)
    bucket = Bucket(plan, scalars={"lr": 0.1, **(scalars or {})})
    for number, size in enumerate(shapes):
        param = torch.zeros(size, dtype=dtype)
        row = [param, torch.zeros(size, dtype=grad_dtype or dtype)]
        for name, how in zip(state, plan.storage, strict=True):
            row += [init(param, compute) for init in storage.inits(how, plan.rule, name).values()]
        for place, tensor in enumerate(row):
            if tensor.dtype is torch.uint8:
                tensor.random_(0, 256, generator=g)
                continue
            noise = torch.randn(tensor.shape, generator=g, dtype=torch.float64)
            tensor.copy_(noise if place < 2 else noise.abs() + 0.1)
        if rounding.residual:
            row.append(torch.zeros_like(param, dtype=rounding.remainder or dtype))
        bucket.rows.append(plan.slots(row))
        bucket.seeds.append(storage.row_seed(7, number))
    return bucket


def copied(bucket):
    rows = [row.map(lambda t: t.clone(memory_format=torch.preserve_format)) for row in bucket.rows]
    return Bucket(bucket.plan, rows, bucket.scalars, list(bucket.seeds))


def refuse(bucket):
    raise AssertionError(
        f"{len(bucket.rows)} rows were left without a kernel, the first of {tuple(bucket.rows[0].param.shape)}"
    )


def by_kernel(bucket, monkeypatch, threads=1):
    """A copy of the bucket, stepped by kernels alone."""
    out = copied(bucket)
    before = torch.get_num_threads()
    with monkeypatch.context() as patch:
        for name in ("loop", "foreach"):
            patch.setattr(backends.KERNELS, name, SimpleNamespace(step=refuse))
        torch.set_num_threads(threads)
        try:
            with out.shaped() as shaped:
                backends.KERNELS.step(shaped)
        finally:
            torch.set_num_threads(before)
    return out


def by_loop(bucket):
    """A copy of the bucket, stepped by the loop."""
    out = copied(bucket)
    with out.shaped() as shaped:
        backends.LOOP.step(shaped)
    return out


def assert_near(ours, theirs, before, tolerance):
    """Every tensor of every row is where it is in the other bucket, within a share of the largest entry or movement."""
    for number, rows in enumerate(zip(ours.rows, theirs.rows, before.rows, strict=True)):
        for place, (mine, other, start) in enumerate(zip(*(row.tensors for row in rows), strict=True)):
            assert mine.dtype == other.dtype
            apart = float((mine.double() - other.double()).abs().max())
            moved = float((other.double() - start.double()).abs().max())
            size = max(float(other.double().abs().max()), moved)
            assert apart <= tolerance * size, (number, place, tuple(mine.shape), apart / size)
