"""The reference: one tensor at a time. The other backends are tested against it."""

from __future__ import annotations

from hfoptim.engine.apply import step_in_place
from hfoptim.engine.backends.backend import Backend
from hfoptim.engine.bucket import Bucket
from hfoptim.engine.pieces import pieces


class Loop(Backend):
    """One tensor at a time."""

    name = "loop"

    def step(self, bucket: Bucket) -> None:
        h = bucket.hyper()
        for piece in pieces(bucket):
            step_in_place(bucket.plan, h, piece.row, piece.seed, piece.start)
