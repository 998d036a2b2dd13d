"""The backend of rules that look at whole matrices: parameters of equal shape are stacked and take one step together.

A rule of scope MATRIX works on the last two dimensions of what it gets, so a stack of matrices costs it as many calls
as one: products of small matrices become batched ones, and a GPU is asked for one large piece of work. Where the rule's
products are in functions of their own (`MatrixFunction`), generated kernels do all that is around them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import storage
from hfoptim.engine.apply import moved, step_in_place
from hfoptim.engine.backends.backend import Backend
from hfoptim.engine.bucket import Bucket
from hfoptim.engine.codegen import native
from hfoptim.engine.codegen.trace import Untraceable
from hfoptim.engine.plan import Plan
from hfoptim.engine.rule import Scope

# Entries a stack may have, and how many arrays of that size a step keeps at once, at most: 9 MB on a CPU, where larger
# matrices gain nothing from each other, and 250 MB elsewhere.
STACK = {"cpu": 1 << 18, "default": 7 << 20}
ARRAYS = 9


class Matrix(Backend):
    """Stacks of matrices at a time."""

    name = "matrix"

    def supports(self, plan: Plan, device: torch.device) -> str | None:
        return None if plan.scope is Scope.MATRIX else f"{plan.rule.name} is no rule of whole matrices"

    def step(self, bucket: Bucket) -> None:
        h = bucket.hyper()
        for stack in _stacks(bucket):
            seeds = stack.seeds or [0] * len(stack.rows)
            if len(stack.rows) == 1:
                step_in_place(bucket.plan, h, stack.rows[0], seeds[0])
            else:
                _together(stack, h, seeds)


class MatrixKernels(Matrix):
    """Generated kernels for all but the products of matrices, if these are in functions of their own.

    Args:
        kernels: the backend with these.
        other: that of rules which cannot be traced.
    """

    compiles = True

    def __init__(self, kernels: Backend, other: Matrix) -> None:
        self.kernels, self.other, self.arithmetic = kernels, other, kernels.arithmetic

    def draw(self, tensors: list[Tensor], seeds: list[int]) -> None:
        self.kernels.draw(tensors, seeds)

    def step(self, bucket: Bucket) -> None:
        (self.kernels if _traceable(bucket) else self.other).step(bucket)


def _traceable(bucket: Bucket) -> bool:
    try:
        native.traced(bucket.plan, tuple(bucket.scalars), bucket.rows[0])
    except Untraceable:
        return False
    return True


def _together(stack: Bucket, h: Any, seeds: list[int]) -> None:
    """Step rows of equal shapes; a function of its own, so that one stack is gone before the next is made."""
    plan = stack.plan
    rows = stack.rows
    weights, states = zip(*(storage.decode(plan, row) for row in rows), strict=True)
    columns = [torch.stack(column) for column in zip(*states, strict=True)]
    grads, stacked = torch.stack([row.grad for row in rows]), torch.stack(weights)
    new, *new_states = moved(plan, h, grads, stacked, columns, overwrite=True)
    for i, (row, seed) in enumerate(zip(rows, seeds, strict=True)):
        storage.encode(plan, row, new[i], [None if state is None else state[i] for state in new_states], seed, 0)


def _stacks(bucket: Bucket) -> Iterator[Bucket]:
    """The bucket in parts, rows of equal shapes together, as many as a stack may hold."""
    # The mean that caution takes is that of one parameter.
    limit = 0 if bucket.plan.caution else STACK.get(bucket.device.type, STACK["default"])
    alike: dict[tuple[torch.Size, ...], list[int]] = {}
    for index, row in enumerate(bucket.rows):
        alike.setdefault(tuple(t.shape for t in row.tensors), []).append(index)
    for indices in alike.values():
        # The factors of a preconditioner may be far larger than the parameter.
        count = max(1, limit // max(1, *(t.numel() for t in bucket.rows[indices[0]].tensors)))
        for start in range(0, len(indices), count):
            yield bucket.chosen(indices[start : start + count])
