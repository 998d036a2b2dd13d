"""Rows of a bucket that share a generated kernel, whatever language that is written in."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from hfoptim.engine.tensor_slots import TensorSlots


@dataclass
class Rows:
    """Rows for one kernel. Used again as long as the rows are the same.

    Attributes:
        rows: their tensors.
        places: where in their bucket they are.
        tensors: of all rows, without gradients between steps.
    """

    rows: list[TensorSlots] = field(default_factory=list, init=False)
    places: list[int] = field(default_factory=list, init=False)
    tensors: list[Any] = field(default_factory=list, init=False)

    def take(self, row: TensorSlots, place: int) -> None:
        """Take a row, and its place in the bucket."""
        self.rows.append(row)
        self.places.append(place)
        self.tensors += row.tensors

    def is_full(self, row: TensorSlots) -> bool:
        """Whether another row must go elsewhere."""
        return False

    def take_gradients(self) -> bool:
        """Take the rows' gradients of this step; says whether no tensor has gaps or another order in memory."""
        if self.rows:
            self.tensors[1 :: self._width] = [row.grad for row in self.rows]
        return all(map(Tensor.is_contiguous, self.tensors))

    def addresses(self) -> array[int]:
        """Where the tensors are, one row's after the other's; gradients are not kept alive any longer."""
        # Asked anew at every step: memory may have been replaced. Three times as fast as a method call for each.
        found = array("Q", map(Tensor.data_ptr, self.tensors))
        self.tensors[1 :: self._width] = [None] * len(self.rows)
        return found

    def drawn(self, seeds: Sequence[int]) -> list[int]:
        """Of the bucket's seeds, of which there may be none, those of the rows."""
        return [seeds[place] for place in self.places] if seeds else [0] * len(self.rows)

    @property
    def _width(self) -> int:
        return len(self.tensors) // len(self.rows)
