"""The compiled backend of CPUs: one generated kernel (`engine/codegen`) steps all tensors of a bucket in one call."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
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
        calls, unwalkable, others = _calls(bucket, self.asked)
        for call in calls:
            call.run(bucket.scalars)
        if unwalkable.rows:
            self.loop.step(unwalkable)
        if others.rows:
            self.foreach.step(others)

    def probe(self, bucket: Bucket) -> Iterator[dict[str, Tensor]]:
        calls, unwalkable, others = _calls(bucket, self.asked, probe=True)
        sums: dict[str, float] = {}
        for call in calls:
            for name, value in call.run(bucket.scalars).items():
                sums[name] = sums.get(name, 0.0) + value
        yield {name: torch.tensor(value, dtype=bucket.plan.dtype, device=bucket.device) for name, value in sums.items()}
        for left in (unwalkable, others):
            if left.rows:
                yield from self.loop.probe(left)


def _calls(bucket: Bucket, kernels_or_error: bool, probe: bool = False) -> tuple[list[native.Call], Bucket, Bucket]:
    """Kernel calls for a bucket's rows, the rows that no kernel walks through, and those whose rule has no kernel."""
    plan, names = bucket.plan, tuple(bucket.scalars)
    calls: dict[int, native.Call] = {}
    unwalkable, others = Bucket(plan, [], bucket.scalars, []), Bucket(plan, [], bucket.scalars, [])
    kernel, left = None, unwalkable
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
        seed = bucket.seeds[index] if bucket.seeds else 0
        if kernel is None or not _takes(kernel, bucket, row):
            left.rows.append(row)
            left.seeds.append(seed)
            continue
        call = calls.get(id(kernel.step))
        if call is None:
            call = calls[id(kernel.step)] = native.Call(kernel, native.coded_state(plan))
        call.add(kernel, row, seed)
    return list(calls.values()), unwalkable, others


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
