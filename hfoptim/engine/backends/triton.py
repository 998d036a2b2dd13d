"""The compiled backend of GPUs that Triton knows: a few launches step all tensors of a bucket."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine.backends import trial
from hfoptim.engine.backends.compiled import Generated
from hfoptim.engine.bucket import Bucket
from hfoptim.engine.codegen.triton import drawing, launch
from hfoptim.engine.codegen.triton import kernel as kernels
from hfoptim.engine.codegen.triton.scalars import Arithmetic
from hfoptim.engine.plan import Plan
from hfoptim.engine.rule import Function
from hfoptim.engine.tensor_slots import TensorSlots

# torch's names of NVIDIA's and AMD's GPUs, and of Intel's.
DEVICES = ("cuda", "xpu")


class Triton(Generated):
    """Kernels in Triton.

    Each is tried once on each device, on a small sample against the loop, before it steps anything: where it cannot be
    compiled or does something else, the multi-tensor backend steps, with a warning.
    """

    name = "triton"
    arithmetic = Arithmetic

    def supports(self, plan: Plan, device: torch.device) -> str | None:
        return None if device.type in DEVICES else f"kernels in Triton run on a GPU, not on {device}"

    def kernel(self, bucket: Bucket, row: TensorSlots, function: Function | None) -> kernels.Kernel:
        kernel = kernels.kernel(bucket.plan, bucket.scalars, row, function)
        problem = trial.problem(kernel, bucket, row, self.loop)
        if problem is not None:
            raise RuntimeError(problem)
        return kernel

    def draw(self, tensors: list[Tensor], seeds: list[int]) -> None:
        kinds = {(tensor.device, tensor.dtype) for tensor in tensors}
        if all(dtype in drawing.DTYPES and drawing.problem(device, dtype) is None for device, dtype in kinds):
            drawing.draw(tensors, seeds)
        else:
            super().draw(tensors, seeds)

    def known_by(self, scalars: Mapping[str, Any]) -> tuple[Any, ...]:
        # A kernel reads a tensor's number on the device.
        return tuple([(name, isinstance(value, Tensor)) for name, value in scalars.items()])

    def call(self, kernel: kernels.Kernel, plan: Plan) -> launch.Call:
        return launch.Call(kernel)

    def sums(self, bucket: Bucket, found: list[dict[str, Any]]) -> Iterator[dict[str, Tensor]]:
        yield from found


@cache
def missing() -> str | None:
    """What kernels in Triton lack on this machine, or None where they can be had."""
    if importlib.util.find_spec("triton") is None:
        return "Triton"
    # Triton builds what launches its kernels with a C compiler.
    if not any(name and shutil.which(name) for name in (os.environ.get("CC"), "gcc", "clang")):
        return "a C compiler (gcc or clang)"
    if not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")):
        return "the C headers of Python (Python.h)"
    return None
