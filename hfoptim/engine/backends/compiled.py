"""The compiled backend of CPUs: one generated kernel (`engine/codegen`) steps all tensors of a bucket in one call."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from weakref import WeakSet

import torch
from torch import Tensor

from hfoptim.engine.backends import inductor
from hfoptim.engine.backends.backend import Backend
from hfoptim.engine.bucket import Bucket
from hfoptim.engine.codegen import build, native
from hfoptim.engine.codegen.trace import Untraceable, Unwalkable
from hfoptim.engine.memory import alike, contiguous
from hfoptim.engine.plan import Plan
from hfoptim.engine.rule import Rule
from hfoptim.engine.tensor_slots import TensorSlots


class Kernels(Backend):
    """Kernels in C++ that are generated from rules.

    Where a rule has no kernel, because it cannot be traced or the compiler fails, that is an error if the user has
    asked for kernels; else the multi-tensor backend steps it, with a warning. Single tensors that the kernel cannot
    walk through, because of gaps in memory or of their shape, go to the loop.

    Args:
        asked: whether the user has asked for kernels.
        loop, foreach: these backends.
    """

    name = "kernels"
    compiles = True

    def __init__(self, asked: bool, loop: Backend, foreach: Backend) -> None:
        self.asked, self.loop, self.foreach = asked, loop, foreach

    def supports(self, plan: Plan, device: torch.device) -> str | None:
        return None if device.type == "cpu" else f"kernels in C++ run on a CPU, not on {device}"

    def step(self, bucket: Bucket) -> None:
        """Step every tensor of the bucket in place.

        Raises:
            NotImplementedError: asked for kernels, and the rule cannot be traced.
            RuntimeError: asked for kernels, and the compiler fails.
        """
        work = self._sorted(bucket)
        for call in work.calls:
            call.run(bucket.scalars, bucket.seeds)
        if work.unwalkable:
            self.loop.step(bucket.chosen(work.unwalkable))
        if work.others:
            self.foreach.step(bucket.chosen(work.others))

    def probe(self, bucket: Bucket) -> Iterator[dict[str, Tensor]]:
        work = self._sorted(bucket, probe=True)
        sums: dict[str, float] = {}
        for call in work.calls:
            for name, value in call.run(bucket.scalars).items():
                sums[name] = sums.get(name, 0.0) + value
        yield {name: torch.tensor(value, dtype=bucket.plan.dtype, device=bucket.device) for name, value in sums.items()}
        for left in (work.unwalkable, work.others):
            if left:
                yield from self.loop.probe(bucket.chosen(left))

    def _sorted(self, bucket: Bucket, probe: bool = False) -> _Sorted:
        """The bucket's rows by what steps them, with this step's gradients."""
        work, names = bucket.memo, tuple(bucket.scalars)
        if isinstance(work, _Sorted) and work.names == names and all(call.take_gradients() for call in work.calls):
            return work
        work = _sort(bucket, names, self.asked, probe)
        # Calls that are just made have their gradients; asked is whether they may be used again.
        bucket.memo = work if work.lasts and all(call.take_gradients() for call in work.calls) else None
        return work


@dataclass
class _Sorted:
    """A bucket's rows by what steps them.

    Args:
        names: of the scalars that the kernels take.
        calls: kernels with their rows.
        unwalkable: places of rows that no kernel walks through.
        others: places of rows whose rule has no kernel.
        lasts: whether rows were sorted by their shapes alone, and not by how one gradient lies in memory.
    """

    names: tuple[str, ...]
    calls: list[native.Call]
    unwalkable: list[int]
    others: list[int]
    lasts: bool


def _sort(bucket: Bucket, names: tuple[str, ...], kernels_or_error: bool, probe: bool) -> _Sorted:
    plan = bucket.plan
    calls: dict[int, native.Call] = {}
    unwalkable: list[int] = []
    others: list[int] = []
    kernel, left, lasts = None, unwalkable, True
    for index, row in enumerate(bucket.rows):
        if index == 0 or not native.shapeless(plan, probe):
            try:
                kernel, left = native.kernel(plan, names, row, probe), unwalkable
            except Unwalkable as error:
                kernel, left = None, unwalkable
                if row.param.numel() > 1:
                    _warn_once(
                        plan.rule, f"the rule {plan.rule.name} on shapes such as {tuple(row.param.shape)}: {error}"
                    )
            except Untraceable as error:
                kernel, left = None, others
                problem = f"{'the probe of ' if probe else ''}the rule {plan.rule.name}: {error}"
                if kernels_or_error:
                    raise NotImplementedError(
                        f"fused=True has no kernel for {problem}; use fused=None or foreach=True"
                    ) from error
                _warn_once(plan.rule, problem)
            except RuntimeError as error:
                if kernels_or_error:
                    raise
                kernel, left = None, others
                warn_uncompiled(str(error))
        if kernel is None or not _takes(kernel, bucket, row):
            left.append(index)
            lasts = lasts and kernel is None
            continue
        call = calls.get(id(kernel.step))
        if call is None:
            call = calls[id(kernel.step)] = native.Call(kernel, native.coded_state(plan))
        call.add(kernel, row, index)
    return _Sorted(names, list(calls.values()), unwalkable, others, lasts)


def _takes(kernel: native.Kernel, bucket: Bucket, row: TensorSlots) -> bool:
    """Whether the memory of a row's tensors is what the kernel walks through."""
    tensors = row.tensors
    if contiguous(tensors):
        return True
    # State of other shapes (a number per tensor) is read whole.
    walked = [t for t in tensors if t.shape == row.param.shape]
    return kernel.flat and not bucket.plan.ordered and alike(walked)


_told: WeakSet[Rule] = WeakSet()


def _warn_once(rule: Rule, problem: str) -> None:
    """Say, once for each rule, why its steps are slower than they could be."""
    if rule not in _told:
        _told.add(rule)
        warn_uncompiled(f"no kernel is generated for {problem}")


@cache
def warn_uncompiled(problem: str) -> None:
    """Say, once, why steps are slower than they could be."""
    warnings.warn(
        f"hfoptim takes these steps without compiled kernels, several times slower: {problem}. The results are right; "
        f"fused=False says that this is meant",
        stacklevel=2,
    )


def missing(device_type: str) -> str | None:
    """What the compiled backend lacks on this machine for a device type, or None when it can be used."""
    if device_type == "cpu":
        return build.missing()
    return inductor.missing(device_type)
