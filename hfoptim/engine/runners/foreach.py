"""The multi-tensor runner: the same rule over lists of tensors, through `torch._foreach_*`.

Element-wise rules are cut into pieces that stay in the cache, other rules into runs of whole tensors, so that what is
allocated in between stays small.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hfoptim.engine.apply import advance
from hfoptim.engine.bucket import Bucket, bucket_tensors, flat
from hfoptim.engine.rule import Scope
from hfoptim.engine.tensor_list import TensorList

# Entries a piece may have: on a CPU, few enough that what is computed in between stays in the caches and many enough
# that the work outweighs the calls (measured from 4 thousand to a million); a GPU wants launches that fill it.
PIECE = {"cpu": 1 << 17, "default": 1 << 24}


def run(bucket: Bucket) -> None:
    """Step every tensor of the bucket in place."""
    h = bucket.hyper()
    for params, grads, states, compensations in _pieces(bucket):
        new_params, new_compensations, *new_states = advance(
            bucket.plan,
            h,
            TensorList(grads),
            TensorList(params),
            [TensorList(s) for s in states],
            TensorList(compensations) if compensations else None,
        )
        torch._foreach_copy_(params, new_params.tensors)
        if compensations:
            torch._foreach_copy_(compensations, new_compensations.tensors)
        for old, new in zip(states, new_states, strict=True):
            torch._foreach_copy_(old, new.tensors)


Piece = tuple[list[Tensor], list[Tensor], list[list[Tensor]], list[Tensor]]


def _pieces(bucket: Bucket) -> Iterator[Piece]:
    """Cut the bucket: (params, grads, one list per state, compensations or an empty list)."""
    limit = PIECE.get(bucket.params[0].device.type, PIECE["default"])
    n_state = len(bucket.plan.rule.state)
    batch: list[list[Tensor]] = []
    filled = 0
    for i in range(len(bucket.params)):
        tensors = bucket_tensors(bucket, i)
        numel = tensors[0].numel()
        views = flat(tensors) if bucket.plan.scope is Scope.ELEMENT and numel > limit else None
        if views is not None:
            for start in range(0, numel, limit):
                length = min(limit, numel - start)
                yield _columns([[v.narrow(0, start, length) for v in views]], n_state)
            continue
        if batch and filled + numel > limit:
            yield _columns(batch, n_state)
            batch, filled = [], 0
        batch.append(tensors)
        filled += numel
    if batch:
        yield _columns(batch, n_state)


def _columns(rows: list[list[Tensor]], n_state: int) -> Piece:
    columns = [list(column) for column in zip(*rows, strict=True)]
    states = columns[2 : 2 + n_state]
    return columns[0], columns[1], states, columns[2 + n_state] if len(columns) > 2 + n_state else []
