"""A bucket: tensors that take the same step, with the same scalars."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine.plan import Plan
from hfoptim.engine.rule import hyper_type
from hfoptim.engine.tensor_slots import TensorSlots


@dataclass
class Bucket:
    """Tensors of one group, rule, dtype, device and step count.

    All tensors are real (complex ones come as views) and are written in place by the backend.

    Args:
        plan: rule and options.
        rows: for each parameter its tensors.
        scalars: what the rule sees as `h`: numbers, or 0-d tensors on the bucket's device.
        seeds: for each row that of the parameter's random bits; empty where the plan needs none.
        memo: what the backend has worked out about the rows; its own, which steps of the same rows find again.
    """

    plan: Plan
    rows: list[TensorSlots] = field(default_factory=list)
    scalars: dict[str, float | Tensor] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)
    memo: Any = None

    @property
    def device(self) -> torch.device:
        device: torch.device = self.rows[0].param.device
        return device

    def hyper(self) -> Any:
        """The scalars as the NamedTuple a rule reads."""
        return hyper_type(tuple(self.scalars))(*self.scalars.values())

    def chosen(self, rows: list[int]) -> Bucket:
        """The same bucket with these of its rows."""
        seeds = [self.seeds[i] for i in rows] if self.seeds else []
        return Bucket(self.plan, [self.rows[i] for i in rows], self.scalars, seeds)

    def occupied(self) -> Bucket:
        """The same bucket without parameters that have no entries, such as empty parts of sharded ones."""
        if all(row.param.numel() for row in self.rows):
            return self
        return self.chosen([i for i, row in enumerate(self.rows) if row.param.numel()])

    @contextmanager
    def shaped(self) -> Iterator[Bucket]:
        """The same bucket with its rows in the shape that the rule sees: views, or copies that are written back."""
        shape = self.plan.rule.shape
        if shape is None:
            yield self
            return
        rows, copies = [], []
        for row in self.rows:
            shaped = row.map(partial(_reshaped, row.param.shape, shape(row.param.shape)))
            copies += [(t, s) for t, s in zip(row.written, shaped.written, strict=True) if t.data_ptr() != s.data_ptr()]
            rows.append(shaped)
        yield Bucket(self.plan, rows, self.scalars, self.seeds)
        for tensor, copied in copies:
            tensor.copy_(copied.reshape(tensor.shape))


def _reshaped(own: torch.Size, seen: tuple[int, ...], tensor: Tensor) -> Tensor:
    return tensor.reshape(seen) if tensor.shape == own else tensor
