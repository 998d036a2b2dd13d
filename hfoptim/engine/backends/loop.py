"""The reference runner: one tensor at a time. The other runners are tested against it."""

from __future__ import annotations

from hfoptim.engine.apply import step_in_place
from hfoptim.engine.backends import eager_tiled
from hfoptim.engine.bucket import Bucket, pieces


def run(bucket: Bucket) -> None:
    """Step every tensor of the bucket in place."""
    h = bucket.hyper()
    for piece in pieces(eager_tiled.run(bucket)):
        step_in_place(bucket.plan, h, piece.row, piece.seed, piece.start)
