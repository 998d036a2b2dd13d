"""The compiled runner: one generated kernel steps all tensors of a bucket in one call.

On a CPU the kernel is C++ made from the rule (`engine/kernels`). Elsewhere the rule goes through torch.compile.
"""

from __future__ import annotations

import warnings
from functools import cache

import torch
from torch import Tensor

from hfoptim.engine.backends import inductor, loop
from hfoptim.engine.bucket import Bucket, flat
from hfoptim.engine.codegen import build, native


def run(bucket: Bucket) -> None:
    """Step every tensor of the bucket in place; what no kernel takes (gaps in memory, for example) by the loop.

    Also what a kernel cannot be compiled for, with a warning.
    """
    _run(bucket, kernels_or_error=False)


def run_as_asked(bucket: Bucket) -> None:
    """The same where the user has asked for kernels: one that cannot be compiled is an error.

    Raises:
        RuntimeError: the compiler fails.
    """
    _run(bucket, kernels_or_error=True)


def compiles(runner: object) -> bool:
    """Whether a runner is one of these two."""
    return runner is run or runner is run_as_asked


def _run(bucket: Bucket, kernels_or_error: bool) -> None:
    if bucket.device.type != "cpu":
        inductor.run(bucket)
        return
    calls, left = _calls(bucket, kernels_or_error)
    for call in calls:
        call.run(bucket.scalars)
    if left.rows:
        loop.run(left)


def probe(bucket: Bucket, runner: object) -> tuple[dict[str, Tensor], Bucket]:
    """The sums of the rule's probe over the rows that a kernel takes, and the rows that are left.

    Args:
        bucket: the bucket.
        runner: the one of this module's that steps it.

    Raises:
        RuntimeError: as from the runner.
    """
    if bucket.device.type != "cpu":
        return {}, bucket
    calls, left = _calls(bucket, runner is run_as_asked, probe=True)
    sums: dict[str, float] = {}
    for call in calls:
        for name, value in call.run(bucket.scalars).items():
            sums[name] = sums.get(name, 0.0) + value
    return {
        name: torch.tensor(value, dtype=bucket.plan.dtype, device=bucket.device) for name, value in sums.items()
    }, left


def _calls(bucket: Bucket, kernels_or_error: bool, probe: bool = False) -> tuple[list[native.Call], Bucket]:
    """Kernel calls for a bucket's rows, and the rows that are left."""
    plan, names = bucket.plan, tuple(bucket.scalars)
    calls: dict[int, native.Call] = {}
    scales = native.scales_place(plan)
    left = Bucket(plan, [], bucket.scalars, [])
    kernel = None
    for index, row in enumerate(bucket.rows):
        if index == 0 or not native.shapeless(plan, probe):
            try:
                kernel = native.kernel(plan, names, row, probe)
            except RuntimeError as error:
                if kernels_or_error:
                    raise
                kernel = None
                warn_uncompiled(str(error))
        seed = bucket.seeds[index] if bucket.seeds else 0
        if kernel is None or not _takes(kernel, bucket, row):
            left.rows.append(row)
            left.seeds.append(seed)
            continue
        call = calls.get(id(kernel.step))
        if call is None:
            call = calls[id(kernel.step)] = native.Call(kernel, scales)
        call.add(kernel, row, seed)
    return list(calls.values()), left


def _takes(kernel: native.Kernel, bucket: Bucket, row: list[Tensor]) -> bool:
    """Whether the memory of a row's tensors is what the kernel walks through."""
    if all([t.is_contiguous() for t in row]):  # noqa: C419 - twice as fast as a generator
        return True
    if not kernel.flat or bucket.plan.ordered:
        return False
    # State of other shapes (a number per tensor) is read whole.
    return flat([t for t in row if t.shape == row[0].shape]) is not None


@cache
def warn_uncompiled(problem: str) -> None:
    """Say, once, why steps are slower than they could be."""
    warnings.warn(
        f"hfoptim takes these steps without compiled kernels, several times slower: {problem}. The results are right; "
        f"fused=False says that this is meant",
        stacklevel=2,
    )


def missing(device_type: str) -> str | None:
    """What the compiled runner lacks on this machine for a device type, or None when it can be used."""
    if device_type == "cpu":
        return build.missing()
    return inductor.missing(device_type)
