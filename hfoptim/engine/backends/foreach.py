"""The multi-tensor backend: the same rule over lists of tensors, through `torch._foreach_*`.

Element-wise rules are cut into pieces that stay in the cache, other rules into runs of whole tensors, so that what is
allocated in between stays small.
"""

from __future__ import annotations

import torch

from hfoptim.engine import storage
from hfoptim.engine.apply import moved
from hfoptim.engine.backends.backend import Backend
from hfoptim.engine.bucket import Bucket
from hfoptim.engine.pieces import Piece, batches
from hfoptim.engine.plan import Plan
from hfoptim.engine.storage import Rounding
from hfoptim.engine.tensor_list import TensorList


class Foreach(Backend):
    """Lists of tensors at a time."""

    name = "foreach"

    def step(self, bucket: Bucket) -> None:
        plan, h = bucket.plan, bucket.hyper()
        for batch in batches(bucket):
            rows = [piece.row for piece in batch]
            weights, states = zip(*(storage.decode(plan, row) for row in rows), strict=True)
            grads = TensorList([row.grad for row in rows])
            columns = [TensorList(column) for column in zip(*states, strict=True)]
            new, *new_states = moved(plan, h, grads, TensorList(weights), columns)
            for index, values in enumerate(new_states):
                if values is not None:
                    _write_state(plan, index, batch, values)
            _write_params(plan, batch, new)


def _write_state(plan: Plan, index: int, batch: list[Piece], values: TensorList) -> None:
    kept = plan.storage[index]
    if kept.copied:
        torch._foreach_copy_([tensor for piece in batch for tensor in piece.row.states[index]], values.tensors)
        return
    for piece, value in zip(batch, values, strict=True):
        storage.encode_state(kept, piece.row.states[index], value, storage.state_seed(piece.seed, index), piece.start)


def _write_params(plan: Plan, batch: list[Piece], new: TensorList) -> None:
    params = [piece.row.param for piece in batch]
    if plan.rounding is Rounding.NEAREST:
        torch._foreach_copy_(params, new.tensors)
    elif plan.rounding.casts:
        residuals = [piece.row.residual for piece in batch]
        numbers, new_residuals = storage.with_rest(plan, new, TensorList(residuals), params[0].dtype)
        torch._foreach_copy_(params, numbers.tensors)
        torch._foreach_copy_(residuals, new_residuals.tensors)
    else:
        for piece, weight in zip(batch, new, strict=True):
            storage.encode_param(plan, piece.row, weight, piece.seed, piece.start)
