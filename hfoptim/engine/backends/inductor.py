"""The compiled backend of devices other than a CPU: the same rule under torch.compile, one fused kernel per tensor.

Element-wise rules see flat views, so that one compilation serves every shape. Scalars enter packed in one tensor: a
Python float would recompile whenever it changes.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine.apply import step_in_place
from hfoptim.engine.backends.backend import Backend
from hfoptim.engine.bucket import Bucket
from hfoptim.engine.memory import contiguous, flat
from hfoptim.engine.plan import Plan
from hfoptim.engine.rule import Scope, hyper_type
from hfoptim.engine.tensor_slots import TensorSlots

# Element-wise, smaller tensors are copied together and stepped in one call: a call costs as much time as it takes to
# copy about this many entries to and fro.
PACK_BELOW = 1 << 15

# Element-wise kernels step as many tensors per call: entering a compiled function costs some 40 microseconds of Python.
SHARE = 4
_FILLER = 64

# A kernel traced at one of these shapes (by number of dimensions) is valid for all: no size is 0, 1 or equal to
# another, and there are enough entries that the compiler decides to run it on all cores.
_TRACE_SHAPES = ((), (1 << 18,), (1021, 2039), (509, 1021, 3), (127, 509, 3, 5), (61, 127, 3, 5, 7))

# Reductions over as few entries as this or fewer are compiled for themselves; the loop takes them.
_FEW = 1 << 12


class Inductor(Backend):
    """Kernels of torch.compile; what they do not take (sizes 0 and 1, gaps in memory) by another backend.

    Args:
        other: that backend.
    """

    name = "inductor"
    compiles = True

    def __init__(self, other: Backend) -> None:
        self.other = other

    def step(self, bucket: Bucket) -> None:
        left = _step(bucket)
        if left:
            self.other.step(Bucket(bucket.plan, left, bucket.scalars))


def _step(bucket: Bucket) -> list[TensorSlots]:
    """Step what kernels take; gives the rows that are left."""
    names = tuple(name for name, value in bucket.scalars.items() if not isinstance(value, Tensor))
    device = bucket.device
    packed = torch.tensor([bucket.scalars[name] for name in names], dtype=bucket.plan.dtype, device="cpu")
    if device.type != "cpu":
        packed = packed.pin_memory().to(device, non_blocking=True)
    tensor_scalars = {name: value for name, value in bucket.scalars.items() if isinstance(value, Tensor)}
    rows, small, left_over = _sort(bucket)
    together = None
    if small:
        together = bucket.plan.slots(map(torch.cat, zip(*(row.tensors for row in small), strict=True)))
        rows.append(together)
    compiled: dict[int, Kernel] = {}
    for call in _calls(bucket.plan, rows):
        first = call[0]
        ndim = first.param.ndim
        if ndim not in compiled:
            signature = tuple((t.dtype, t.ndim) for t in first.tensors)
            compiled[ndim] = kernel(bucket.plan, device, names, tuple(tensor_scalars), signature)
            compiled[ndim].ready(bucket.plan, packed, tensor_scalars, first)
        compiled[ndim].function(packed, list(tensor_scalars.values()), [row.tensors for row in call])
    if together is not None:
        sizes = [row.param.numel() for row in small]
        for whole, *parts in zip(together.written, *(row.written for row in small), strict=True):
            torch._foreach_copy_(parts, list(whole.split(sizes)))
    return left_over


def _calls(plan: Plan, rows: list[TensorSlots]) -> Iterator[list[TensorSlots]]:
    """The rows by kernel call: several element-wise ones share one, each other has its own."""
    if plan.scope is not Scope.ELEMENT:
        yield from ([row] for row in rows)
        return
    for start in range(0, len(rows), SHARE):
        together = rows[start : start + SHARE]
        # One kernel for any number of rows: the missing ones are throw-away tensors.
        while len(together) < SHARE:
            together.append(rows[0].map(lambda t: torch.zeros(_FILLER, dtype=t.dtype, device=t.device)))
        yield together


def _sort(bucket: Bucket) -> tuple[list[TensorSlots], list[TensorSlots], list[TensorSlots]]:
    """The bucket's rows: those with a kernel call of their own, small ones to be packed, those that are left."""
    large: list[TensorSlots] = []
    small: list[TensorSlots] = []
    left_over: list[TensorSlots] = []
    for row in bucket.rows:
        views = _views(bucket.plan, row)
        if views is None:
            left_over.append(row)
        elif bucket.plan.scope is Scope.ELEMENT and row.param.numel() < PACK_BELOW:
            small.append(views)
        else:
            large.append(views)
    # Sizes 0 and 1 would be compiled for themselves, packed as well as alone.
    if sum(row.param.numel() for row in small) < 2:
        return large, [], [*left_over, *small]
    return large, small, left_over


def _views(plan: Plan, row: TensorSlots) -> TensorSlots | None:
    """A row in the form its kernel takes, or None."""
    if plan.scope is Scope.ELEMENT:
        views = flat(row.tensors)
        return None if views is None else plan.slots(views)
    shape = row.param.shape
    takes = 0 < len(shape) < len(_TRACE_SHAPES) and min(shape) > 1 and row.param.numel() > _FEW
    return row if takes and contiguous(row.tensors) else None


@dataclass
class Kernel:
    """A compiled step for one plan and one signature of tensors."""

    function: Callable[..., None]
    traced: bool = field(default=False)

    def ready(self, plan: Plan, packed: Tensor, tensor_scalars: dict[str, Tensor], like: TensorSlots) -> None:
        """Compile once, on throw-away tensors whose sizes all differ, so that no size is taken for another."""
        if self.traced:
            return
        shapes: list[tuple[int, ...]] = [_TRACE_SHAPES[like.param.ndim]]
        if plan.scope is Scope.ELEMENT:
            shapes = [(shapes[0][0] + i,) for i in range(SHARE)]
        rows = []
        for shape in shapes:
            param = torch.zeros(shape, dtype=like.param.dtype, device=like.param.device)
            states = [
                init(param, kept.dtype) for init, (kept,) in zip(plan.rule.state.values(), like.states, strict=True)
            ]
            residual = [torch.zeros_like(param)] if plan.kahan else []
            rows.append((param, torch.zeros_like(param, dtype=like.grad.dtype), *states, *residual))
        self.function(packed, list(tensor_scalars.values()), rows)
        self.traced = True


_kernels: dict[Any, Kernel] = {}


def kernel(
    plan: Plan,
    device: torch.device,
    names: tuple[str, ...],
    tensor_names: tuple[str, ...],
    signature: tuple[tuple[torch.dtype, int], ...],
) -> Kernel:
    """The kernel for a plan and a signature (dtype and number of dimensions of each tensor); made once."""
    key = (plan, device, names, tensor_names, signature)
    if key not in _kernels:
        _kernels[key] = Kernel(_compile(plan, names, tensor_names))
    return _kernels[key]


def _compile(plan: Plan, names: tuple[str, ...], tensor_names: tuple[str, ...]) -> Callable[..., None]:
    hyper = hyper_type((*names, *tensor_names))

    def step(packed: Tensor, tensor_scalars: list[Tensor], rows: list[tuple[Tensor, ...]]) -> None:
        h = hyper(*packed.unbind(), *tensor_scalars)
        for row in rows:
            step_in_place(plan, h, plan.slots(row))

    # Dynamo keeps its cache, and counts its limit of recompilations, per code object: every kernel has its own.
    own = FunctionType(step.__code__.replace(), step.__globals__, step.__name__, None, step.__closure__)
    # Kahan's term is what a cast to the parameter's dtype loses; the compiler takes such a cast for superfluous.
    options: dict[str, Any] | None = {"emulate_precision_casts": True} if plan.kahan else None
    return torch.compile(own, dynamic=True, fullgraph=True, options=options)


def compilations() -> int:
    """How many kernels this process has compiled."""
    return sum(k.traced for k in _kernels.values())


@cache
def missing(device_type: str) -> str | None:
    """What torch.compile lacks on this machine for a device type, or None when it can be used."""
    if device_type != "cpu":
        from torch.utils._triton import has_triton

        if not has_triton():
            return f"Triton for {device_type}"
    # For a GPU too: Triton builds its launchers with a C compiler.
    compilers = [os.environ.get("CXX"), "g++", "clang++", "cl"]
    if device_type != "cpu":
        compilers += [os.environ.get("CC"), "gcc", "clang"]
    if not any(name and shutil.which(name) for name in compilers):
        return "a C++ compiler (g++ or clang++)"
    if not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")):
        return "the C headers of Python (Python.h)"
    return None
