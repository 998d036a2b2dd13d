"""The reference runner: one tensor at a time. The other runners are tested against it."""

from __future__ import annotations

from hfoptim.engine.apply import step_in_place
from hfoptim.engine.bucket import Bucket, pieces
from hfoptim.engine.runners import passes


def run(bucket: Bucket) -> None:
    """Step every tensor of the bucket in place."""
    h = bucket.hyper()
    for piece in pieces(passes.run(bucket)):
        step_in_place(bucket.plan, h, piece.row, piece.seed, piece.start)
