"""The reference runner: one tensor at a time. The other runners are tested against it."""

from __future__ import annotations

from hfoptim.engine.apply import advance
from hfoptim.engine.bucket import Bucket, pieces


def run(bucket: Bucket) -> None:
    """Step every tensor of the bucket in place."""
    h = bucket.hyper()
    for param, grad, *state in pieces(bucket):
        compensation = state.pop() if bucket.plan.kahan else None
        new_param, new_compensation, *new_state = advance(bucket.plan, h, grad, param, state, compensation)
        param.copy_(new_param)
        if compensation is not None:
            compensation.copy_(new_compensation)
        for old, new in zip(state, new_state, strict=True):
            old.copy_(new)
