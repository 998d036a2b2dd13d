"""Steps of rules that take sums over whole tensors, on flattened segments: one all-reduce for each sum of a rule.

All tensors of a batch share each all-reduce, as sharded ones do. What a rule does is found out beforehand: every rank
has to know which parameters go another way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch import distributed as dist

from hfoptim.engine import storage
from hfoptim.engine.apply import moved
from hfoptim.engine.bucket import Bucket
from hfoptim.engine.distributed.dtensor import Cut, Groups
from hfoptim.engine.distributed.sharded import BATCH
from hfoptim.engine.distributed.sharded_list import ShardedList, Unshardable
from hfoptim.engine.plan import Plan
from hfoptim.engine.rule import Rule, Scope
from hfoptim.engine.tensor_list import TensorList

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def are_parts(rule: Rule) -> bool:
    """Whether a rule's states begin alike in a segment: an entry for each of the parameter's, or a number for all."""
    return all(_is_part(rule, name) for name in rule.state)


def _is_part(rule: Rule, name: str) -> bool:
    state = rule.state[name]
    if state.drawn or state.placed or state.of_values or state.shape is not None or state.of_shaped:
        return False
    for shape in ((6, 5, 4), (8, 3), (16,)):
        whole = torch.arange(1.0, 1.0 + math.prod(shape)).reshape(shape)
        begun, part = (rule.first(name, param, torch.float32) for param in (whole, whole.flatten()[7:15]))
        if begun.shape not in (whole.shape, torch.Size()):
            return False
        if not torch.equal(part, begun.flatten()[7:15] if begun.ndim else begun):
            return False
    return True


@cache
def takes(plan: Plan) -> bool:
    """Whether a plan steps segments: all that it asks for beyond single entries are sums over its whole tensor."""
    rule = plan.rule
    if plan.scope is not Scope.TENSOR or rule.shape is not None or rule.partner is not None or not plan.plain:
        return False
    if rule.probe is not None and (rule.probe.of_tensors or plan.changes_by_reductions):
        return False
    return are_parts(rule) and _is_tried(plan)


class _AnyNumbers:
    """Hyper-parameters of any name, for a trial."""

    def __getattr__(self, name: str) -> float:
        if name.startswith("_"):
            raise AttributeError(name)
        return 0.5


def _is_tried(plan: Plan) -> bool:
    """Whether a step of a small tensor, as a segment that is all of it, goes through."""

    def some(of: Tensor) -> ShardedList:
        return _list([of], [of.numel()] if of.ndim else [None], ())

    like = torch.ones(6, dtype=plan.dtype)
    states = [plan.rule.first(name, like, plan.dtype).to(like) for name in plan.rule.state]
    try:
        new, *_ = moved(plan, _AnyNumbers(), some(like), some(like.clone()), [some(state) for state in states])
    except (Unshardable, TypeError, AttributeError, RuntimeError, ValueError):
        return False
    return isinstance(new, ShardedList) and new.parts.tensors[0].shape == like.shape


def _list(parts: Sequence[Tensor], sizes: Sequence[int | None], groups: Groups) -> ShardedList:
    cuts = [{} if size is None else {-1: Cut(size, groups, stands_for_all=True)} for size in sizes]
    return ShardedList(TensorList(parts), cuts, groups)


def step(bucket: Bucket, sizes: Sequence[int], group: ProcessGroup) -> None:
    """Step the segments of a bucket in place; every rank has the same parameters in the same order.

    Args:
        bucket: its rows are 1-D, and may be empty.
        sizes: how many entries each whole parameter has.
        group: the ranks among which they are divided.
    """
    for batch in _batches(sizes, BATCH * dist.get_world_size(group)):
        chosen = bucket.chosen(batch)
        own = [sizes[i] for i in batch]
        weights = [storage.as_read(bucket.plan, row.param, row.residual) for row in chosen.rows]
        rows = [
            [weight, row.grad, *(tensor for (tensor,) in row.states)]
            for weight, row in zip(weights, chosen.rows, strict=True)
        ]
        columns = [
            _list(column, [size if tensor.ndim else None for tensor, size in zip(column, own, strict=True)], (group,))
            for column in zip(*rows, strict=True)
        ]
        params, grads, *states = columns
        new, *new_states = moved(bucket.plan, bucket.hyper(), grads, params, states)
        for i, row in enumerate(chosen.rows):
            values = [None if state is None else state.parts.tensors[i] for state in new_states]
            storage.encode(bucket.plan, row, new.parts.tensors[i], values, 0, 0)


def _batches(sizes: Sequence[int], most: int) -> Iterator[list[int]]:
    """Indices in runs of about `most` entries."""
    batch: list[int] = []
    filled = 0
    for i, size in enumerate(sizes):
        if batch and filled + size > most:
            yield batch
            batch, filled = [], 0
        batch.append(i)
        filled += size
    yield batch
