"""What a step computes from numbers on the device, between its kernels: traced and one launch, where that can be had.

The host does not wait for sums over all tensors, nor for what an optimizer carries from step to step. What it makes of
them is Python's arithmetic on tensors, a launch for each operation; backends that generate kernels have one for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine.bucket_step import BucketStep
from hfoptim.engine.codegen.trace import Untraceable

# Computes the scalars of each bucket, from numbers that it makes symbols of if it is given a function for that.
Compute = Callable[[Callable[[Any], Any] | None], list[dict[str, Any]]]


def arithmetic_of(work: list[BucketStep]) -> Any:
    """What traces such a computation for the buckets of a step; None where their backends have nothing for it."""
    makers = {item.backend.arithmetic for item in work}
    maker = makers.pop() if len(makers) == 1 else None
    return None if maker is None or len({item.bucket.device for item in work}) > 1 else maker()


def computed(
    compute: Compute,
    work: list[BucketStep],
    groups: Sequence[dict[str, Any]],
    names: Iterable[str],
    arithmetic: Any,
    totals: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """What a computation gives, by one launch if that can be had.

    Args:
        compute: the computation; it may put new numbers into the groups.
        work: the buckets of a step.
        groups: all parameter groups.
        names: of their entries that may be numbers on the device.
        arithmetic: what `arithmetic_of` gives.
        totals: what it computes from beside these: tensors, or symbols, in the place of which tensors are put where it
            cannot be traced.
    """
    if arithmetic is None:
        return compute(None)
    before = [{name: group[name] for name in names if name in group} for group in groups]
    try:
        return _traced(arithmetic, compute, work, groups, before)
    except BaseException as error:
        for group, values in zip(groups, before, strict=True):
            group.update(values)
        if not isinstance(error, Untraceable):
            raise
    arithmetic.resolve([(totals or {}, torch.float64)])
    return compute(None)


def _traced(
    arithmetic: Any,
    compute: Compute,
    work: list[BucketStep],
    groups: Sequence[dict[str, Any]],
    before: list[dict[str, Any]],
) -> list[dict[str, Any]]:
    given = [{k: arithmetic.of(v) for k, v in values.items() if isinstance(v, Tensor)} for values in before]
    for group, symbols in zip(groups, given, strict=True):
        group.update(symbols)
    found = compute(arithmetic.of)
    for group, symbols, values in zip(groups, given, before, strict=True):
        group.update({name: values[name] for name, symbol in symbols.items() if group[name] is symbol})
    scalars = [(each, item.bucket.plan.dtype) for each, item in zip(found, work, strict=True)]
    arithmetic.resolve([*scalars, *((group, torch.float64) for group in groups)])
    return found
