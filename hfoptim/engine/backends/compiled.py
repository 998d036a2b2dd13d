"""Backends with generated kernels (`engine/codegen`), of which one steps all tensors of a bucket; that of CPUs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from hfoptim.engine.backends.backend import Backend
from hfoptim.engine.bucket import Bucket
from hfoptim.engine.codegen import build, native
from hfoptim.engine.codegen.trace import Untraceable, Unwalkable
from hfoptim.engine.memory import alike, contiguous
from hfoptim.engine.plan import Plan
from hfoptim.engine.rule import Function, Rule, Scope
from hfoptim.engine.tensor_slots import TensorSlots


class Generated(Backend):
    """Kernels that are generated from rules; subclasses say in which language.

    Where a rule has no kernel, because it cannot be traced or the compiler fails, that is an error if the user has
    asked for kernels; else the multi-tensor backend steps it, with a warning. Single tensors that the kernel cannot
    walk through, because of gaps in memory or of their shape, go to the loop.

    Args:
        asked: whether the user has asked for kernels.
        loop, foreach: these backends.
    """

    compiles = True

    def __init__(self, asked: bool, loop: Backend, foreach: Backend) -> None:
        self.asked, self.loop, self.foreach = asked, loop, foreach

    def kernel(self, bucket: Bucket, row: TensorSlots, function: Function | None) -> Any:
        """The kernel for rows like this one: of the bucket's step, or of a function instead.

        Raises:
            Untraceable: none can be generated.
            RuntimeError: it cannot be compiled, or does not do what it should.
        """
        raise NotImplementedError

    def known_by(self, scalars: Mapping[str, Any]) -> tuple[Any, ...]:
        """What of the scalars decides which kernel takes them."""
        return tuple(scalars)

    def call(self, kernel: Any, plan: Plan) -> Any:
        """What takes rows for a kernel and runs it."""
        raise NotImplementedError

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

    def probe(self, bucket: Bucket, arithmetic: Any = None) -> Iterator[dict[str, Any]]:
        probe = bucket.plan.rule.probe
        assert probe is not None
        work = self._sorted(bucket, probe.fn)
        more = {} if arithmetic is None else {"arithmetic": arithmetic}
        yield from self.sums(bucket, [call.run(bucket.scalars, **more) for call in work.calls])
        for left in (work.unwalkable, work.others):
            if left:
                yield from self.loop.probe(bucket.chosen(left))

    def sums(self, bucket: Bucket, found: list[dict[str, Any]]) -> Iterator[dict[str, Tensor]]:
        """What the calls of a probe gave, as tensors."""
        raise NotImplementedError

    def _sorted(self, bucket: Bucket, function: Function | None = None) -> _Sorted:
        """The bucket's rows by what steps them, with this step's gradients."""
        work, scalars = bucket.memo, self.known_by(bucket.scalars)
        if isinstance(work, _Sorted) and work.scalars == scalars and all(call.take_gradients() for call in work.calls):
            return work
        work = self._sort(bucket, scalars, function)
        # Calls that are just made have their gradients; asked is whether they may be used again.
        bucket.memo = work if work.lasts and all(call.take_gradients() for call in work.calls) else None
        return work

    def _sort(self, bucket: Bucket, scalars: tuple[Any, ...], function: Function | None) -> _Sorted:
        plan = bucket.plan
        calls: dict[int, list[Any]] = {}
        unwalkable: list[int] = []
        others: list[int] = []
        kernel, left, lasts = None, unwalkable, True
        rows = list(enumerate(bucket.rows))
        if plan.scope is Scope.MATRIX:
            rows.sort(key=lambda each: tuple(each[1].param.shape))  # what is alike is stepped together
        for place, (index, row) in enumerate(rows):
            if place == 0 or not native.shapeless(plan, function):
                try:
                    kernel, left = self.kernel(bucket, row, function), unwalkable
                except Unwalkable as error:
                    kernel, left = None, unwalkable
                    if row.param.numel() > 1:
                        _warn_once(
                            plan.rule, f"the rule {plan.rule.name} on shapes such as {tuple(row.param.shape)}: {error}"
                        )
                except Untraceable as error:
                    kernel, left = None, others
                    problem = f"{'the probe of ' if function else ''}the rule {plan.rule.name}: {error}"
                    if self.asked:
                        raise NotImplementedError(
                            f"fused=True has no kernel for {problem}; use fused=None or foreach=True"
                        ) from error
                    _warn_once(plan.rule, problem)
                except RuntimeError as error:
                    if self.asked:
                        raise
                    kernel, left = None, others
                    warn_uncompiled(str(error))
            if kernel is None or not _takes(kernel, bucket, row):
                left.append(index)
                lasts = lasts and kernel is None
                continue
            same = calls.setdefault(id(kernel.step), [])
            if not same or same[-1].is_full(row):
                same.append(self.call(kernel, plan))
            same[-1].add(kernel, row, index)
        return _Sorted(scalars, [call for same in calls.values() for call in same], unwalkable, others, lasts)


class Kernels(Generated):
    """Kernels in C++."""

    name = "kernels"

    def supports(self, plan: Plan, device: torch.device) -> str | None:
        return None if device.type == "cpu" else f"kernels in C++ run on a CPU, not on {device}"

    def kernel(self, bucket: Bucket, row: TensorSlots, function: Function | None) -> native.Kernel:
        return native.kernel(bucket.plan, tuple(bucket.scalars), row, function)

    def call(self, kernel: native.Kernel, plan: Plan) -> native.Call:
        return native.Call(kernel, native.coded_state(plan))

    def sums(self, bucket: Bucket, found: list[dict[str, Any]]) -> Iterator[dict[str, Tensor]]:
        sums: dict[str, float] = {}
        for each in found:
            for name, value in each.items():
                sums[name] = sums.get(name, 0.0) + value
        yield {name: torch.tensor(value, dtype=bucket.plan.dtype, device=bucket.device) for name, value in sums.items()}


@dataclass
class _Sorted:
    """A bucket's rows by what steps them.

    Args:
        scalars: what the kernels were chosen for, as `known_by` has it.
        calls: kernels with their rows.
        unwalkable: places of rows that no kernel walks through.
        others: places of rows whose rule has no kernel.
        lasts: whether rows were sorted by their shapes alone, and not by how one gradient lies in memory.
    """

    scalars: tuple[Any, ...]
    calls: list[Any]
    unwalkable: list[int]
    others: list[int]
    lasts: bool


def _takes(kernel: Any, bucket: Bucket, row: TensorSlots) -> bool:
    """Whether the memory of a row's tensors is what the kernel walks through."""
    tensors = row.tensors
    if contiguous(tensors):
        return True
    if kernel.program.products:
        return False
    # State of other shapes (a number per tensor) is read whole.
    walked = [t for t in tensors if t.shape == row.param.shape]
    return kernel.program.flat and not bucket.plan.ordered and alike(walked)


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


def missing() -> str | None:
    """What kernels in C++ lack on this machine, or None where they can be had."""
    return build.missing()
