"""What rules say about a step, for those who watch: numbers about each tensor, such as its trust ratio."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from hfoptim.engine.backends import eager_tiled
from hfoptim.engine.bucket import Bucket, each_row
from hfoptim.engine.bucket_step import BucketStep
from hfoptim.engine.distributed import sharded
from hfoptim.engine.plan import Plan
from hfoptim.engine.rule import Probe


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
        bucket = item.bucket
        if bucket.plan.rule.report is None:
            return
        asked = Bucket(_asking(bucket.plan), bucket.rows, bucket.scalars, bucket.seeds)
        for found in sharded.numbers(asked, bucket.plan.rule.report) if item.whole else _plain(asked):
            for name, numbers in found.items():
                self.values.setdefault(name, []).append(torch.stack(numbers))


@cache
def _asking(plan: Plan) -> Plan:
    """The same plan with the rule's report in the place of its probe: both are functions for numbers by name."""
    assert plan.rule.report is not None
    return replace(plan, rule=replace(plan.rule, probe=Probe(plan.rule.report)))


def _plain(asked: Bucket) -> Iterator[dict[str, list[Tensor]]]:
    report = asked.plan.rule.report
    assert report is not None
    with asked.occupied().shaped() as bucket:
        for index, row in enumerate(bucket.rows):
            found = eager_tiled.probed(bucket, row)
            if found is None:
                (found,) = each_row(bucket.chosen([index]), report)
            yield {name: [number] for name, number in found.items()}
