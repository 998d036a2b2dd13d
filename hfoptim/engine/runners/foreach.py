"""The multi-tensor runner: the same rule over lists of tensors, through `torch._foreach_*`.

Element-wise rules are cut into pieces that stay in the cache, other rules into runs of whole tensors, so that what is
allocated in between stays small.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hfoptim.engine.apply import advance
from hfoptim.engine.bucket import Bucket, piece_size, pieces
from hfoptim.engine.tensor_list import TensorList


def run(bucket: Bucket) -> None:
    """Step every tensor of the bucket in place."""
    h = bucket.hyper()
    for rows in _batches(bucket):
        params, grads, *states = (TensorList(column) for column in zip(*rows, strict=True))
        compensations = states.pop() if bucket.plan.kahan else None
        new_params, new_compensations, *new_states = advance(bucket.plan, h, grads, params, states, compensations)
        torch._foreach_copy_(params.tensors, new_params.tensors)
        if compensations is not None:
            torch._foreach_copy_(compensations.tensors, new_compensations.tensors)
        for old, new in zip(states, new_states, strict=True):
            if new is not None:
                torch._foreach_copy_(old.tensors, new.tensors)


def _batches(bucket: Bucket) -> Iterator[list[list[Tensor]]]:
    """Pieces put together until they have as many entries as the device takes at once."""
    limit = piece_size(bucket)
    batch: list[list[Tensor]] = []
    filled = 0
    for row in pieces(bucket):
        numel = row[0].numel()
        if batch and filled + numel > limit:
            yield batch
            batch, filled = [], 0
        batch.append(row)
        filled += numel
    if batch:
        yield batch
