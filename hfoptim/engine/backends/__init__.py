"""How a bucket of tensors is stepped, and which way is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine.backends import compiled, triton
from hfoptim.engine.backends.backend import Backend
from hfoptim.engine.backends.eager_tiled import Tiled
from hfoptim.engine.backends.foreach import Foreach
from hfoptim.engine.backends.loop import Loop
from hfoptim.engine.backends.matrix import Matrix, MatrixKernels
from hfoptim.engine.plan import Plan

LOOP, FOREACH, MATRIX = Tiled(Loop()), Tiled(Foreach()), Matrix()
# Chosen by the engine, and asked for by the user.
KERNELS, KERNELS_ASKED = (compiled.Kernels(asked, LOOP, FOREACH) for asked in (False, True))
TRITON, TRITON_ASKED = (triton.Triton(asked, LOOP, FOREACH) for asked in (False, True))
# Rules of whole matrices: what is around their products by Triton, too.
MATRIX_TRITON, MATRIX_TRITON_ASKED = (
    MatrixKernels(triton.Triton(asked, LOOP, MATRIX), MATRIX) for asked in (False, True)
)

# The size, by `size_of`, from which compiling is worth it: half a second on a CPU, once on a machine, which AdamW's
# steps have earned after a thousand, Adafactor's after two hundred (measured from 1 k to 100 M entries in 1 to 3000
# tensors). Elsewhere it takes a second or three, once on a machine, and saves from 60 to some thousand launches a step
# at any size; no GPU has been measured. Fixed by the model alone, so that a resumed run takes the same path.
COMPILE_FROM = {"cpu": 100_000, "default": 1_000_000}
# The size from which it is told that nothing can be compiled: a step is some ten milliseconds longer.
TELL_FROM = 1_000_000
# Each tensor costs the multi-tensor backend as much time as so many entries do.
_PER_TENSOR = 5_000


def size_of(param: Tensor) -> int:
    """How much a parameter counts for in the choice of a backend: its entries, and so many for being a tensor."""
    return param.numel() + _PER_TENSOR


def choose(group: Mapping[str, Any], device_type: str, size: int) -> tuple[Backend, ...]:
    """The backends for a group's buckets on a device, in the order in which they are tried.

    Args:
        group: a parameter group; `fused` asks for the compiled backend, `foreach` for the multi-tensor one (False: the
            loop). None for both leaves it to the engine.
        device_type: "cpu", "cuda", ...
        size: of all parameters of the optimizer on that device, by `size_of`.

    Raises:
        RuntimeError: `fused=True` on a device without a compiled backend, or where that lacks something, a compiler for
            example.
    """
    asked = group["fused"]
    if group["foreach"] is False and not asked:
        return (LOOP,)
    large = size >= COMPILE_FROM.get(device_type, COMPILE_FROM["default"])
    if not asked and (group["foreach"] or asked is False or not large):
        return (MATRIX, FOREACH)
    found: tuple[Backend, ...]
    if device_type == "cpu":
        found, lacking = (MATRIX, KERNELS_ASKED if asked else KERNELS), compiled.missing()
    elif device_type in triton.DEVICES:
        found = (MATRIX_TRITON_ASKED, TRITON_ASKED) if asked else (MATRIX_TRITON, TRITON)
        lacking = triton.missing()
    elif asked:
        raise RuntimeError(
            f"fused=True has kernels for CPUs and for GPUs that Triton knows, not for {device_type}; use fused=None or "
            f"foreach=True"
        )
    else:
        return (MATRIX, FOREACH)
    if lacking is None:
        return found
    if asked:
        raise RuntimeError(f"fused=True needs {lacking}, missing on this machine; use fused=None or foreach=True")
    if size >= TELL_FROM:
        compiled.warn_uncompiled(f"they need {lacking}, missing on this machine")
    return (MATRIX, FOREACH)


def eager(group: Mapping[str, Any]) -> tuple[Backend, ...]:
    """The backends for what changes in size from step to step, for which kernels have no memory: sparse gradients."""
    return (LOOP,) if group["foreach"] is False else (FOREACH,)


def first_of(tried: tuple[Backend, ...], plan: Plan, device: torch.device) -> Backend:
    """The first of several backends that steps buckets of a plan on a device."""
    return next(backend for backend in tried if backend.supports(plan, device) is None)
