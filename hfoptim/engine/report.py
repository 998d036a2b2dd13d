"""What rules say about a step, for those who watch: numbers about each tensor, such as its trust ratio."""

from __future__ import annotations

import torch
from torch import Tensor

from hfoptim.engine.backends import LOOP
from hfoptim.engine.bucket_step import BucketStep
from hfoptim.engine.distributed import sharded


class Report:
    """Notes what rules report of the steps that an optimizer takes while this is its `report`.

    A report is computed before the step, from what the step is taken with, and by torch's own operations in every
    backend: it costs about what the step costs in the loop backend. Nothing is read from a device.

    Attributes:
        values: by name, 1-D tensors with a number for every parameter that has one; under sharding the same on every
            rank.
    """

    def __init__(self) -> None:
        self.values: dict[str, list[Tensor]] = {}

    def take(self, item: BucketStep) -> None:
        """Note the numbers of a bucket that is about to be stepped."""
        report = item.bucket.plan.rule.report
        if report is None:
            return
        if item.whole:
            for found, _ in sharded.evaluate(item.bucket, report, LOOP.evaluate, over_ranks=True):
                self._note(found)
            return
        with item.bucket.occupied().shaped() as bucket:
            for numbers in LOOP.evaluate(bucket, report):
                self._note({name: [number] for name, number in numbers.items()})

    def _note(self, found: dict[str, list[Tensor]]) -> None:
        for name, numbers in found.items():
            self.values.setdefault(name, []).append(torch.stack(numbers))
