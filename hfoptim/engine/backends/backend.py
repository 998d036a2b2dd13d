"""What a backend is: one way of stepping buckets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import storage
from hfoptim.engine.apply import entering
from hfoptim.engine.bucket import Bucket
from hfoptim.engine.plan import Plan
from hfoptim.engine.rule import Function


class Backend:
    """One way of stepping buckets; there is one object of each."""

    # By which messages and the table of options call it.
    name: str
    # Traces what is computed from numbers on a device between kernels, and computes it; None: torch's operations do.
    arithmetic: type[Any] | None = None
    # Whether it makes code for each plan, so that plans that differ needlessly cost a compilation.
    compiles = False

    def supports(self, plan: Plan, device: torch.device) -> str | None:
        """Why it does not step buckets of a plan on a device; None where it does."""
        return None

    def step(self, bucket: Bucket) -> None:
        """Step every tensor of the bucket in place."""
        raise NotImplementedError

    def draw(self, tensors: list[Tensor], seeds: list[int]) -> None:
        """Fill tensors with numbers of a standard normal distribution, as `storage.normal` gives them.

        Args:
            tensors: contiguous, of one device and dtype.
            seeds: of each.
        """
        for tensor, seed in zip(tensors, seeds, strict=True):
            tensor.copy_(storage.normal(tensor.shape, seed, tensor.dtype, tensor.device))

    def evaluate(self, bucket: Bucket, function: Function) -> Iterator[dict[str, Tensor]]:
        """What a function gives for each row, in order; nothing changes."""
        plan, h = bucket.plan, bucket.hyper()
        for row in bucket.rows:
            weight, state = storage.decode(plan, row)
            weight, grad = entering(plan, h, row.grad, weight)
            yield function(grad, weight, *(s.to(plan.dtype) for s in state), h)

    def probe(self, bucket: Bucket, arithmetic: Any = None) -> Iterator[dict[str, Any]]:
        """What the probe of the bucket's rule gives, in parts that are to be added up; nothing changes.

        Args:
            bucket: the bucket.
            arithmetic: of the backend's class `arithmetic`; parts may then be symbols of its.
        """
        probe = bucket.plan.rule.probe
        assert probe is not None
        yield from self.evaluate(bucket, probe.fn)
