"""How a bucket of tensors is stepped, and which way is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from hfoptim.engine.backends import compiled
from hfoptim.engine.backends.backend import Backend
from hfoptim.engine.backends.eager_tiled import Tiled
from hfoptim.engine.backends.foreach import Foreach
from hfoptim.engine.backends.inductor import Inductor
from hfoptim.engine.backends.loop import Loop
from hfoptim.engine.backends.matrix import Matrix
from hfoptim.engine.options import refused_option
from hfoptim.engine.plan import Plan

LOOP, FOREACH, MATRIX = Tiled(Loop()), Tiled(Foreach()), Matrix()
# Chosen by the engine, and asked for by the user.
KERNELS, KERNELS_ASKED = (compiled.Kernels(asked, LOOP, FOREACH) for asked in (False, True))
INDUCTOR = Inductor(LOOP)

# Compiling costs seconds, once; it is worth it from about this many entries on, where a step without it takes longer
# than a hundredth of that. Fixed by the size of the model alone, so that a resumed run takes the same path.
COMPILE_FROM = {"cpu": 10_000_000, "default": 10_000_000}


def choose(group: Mapping[str, Any], device_type: str, numel: int) -> tuple[Backend, ...]:
    """The backends for a group's buckets on a device, in the order in which they are tried.

    Args:
        group: a parameter group; `fused` asks for the compiled backend, `foreach` for the multi-tensor one (False: the
            loop). None for both leaves it to the engine.
        device_type: "cpu", "cuda", ...
        numel: entries of all parameters of the optimizer on that device.

    Raises:
        NotImplementedError: `fused=True` with an option whose forms the compiled backend does not know on that device.
        RuntimeError: `fused=True` where the compiled backend lacks something, a compiler for example.
    """
    asked = group["fused"]
    if group["foreach"] is False and not asked:
        return (LOOP,)
    large = numel >= COMPILE_FROM.get(device_type, COMPILE_FROM["default"])
    if not asked and (group["foreach"] or asked is False or not large):
        return (MATRIX, FOREACH)
    backend = INDUCTOR if device_type != "cpu" else KERNELS_ASKED if asked else KERNELS
    unknown = refused_option(group, backend.name)
    if unknown is not None:
        if asked:
            raise NotImplementedError(
                f"fused=True does not know {unknown} on {device_type} yet; use fused=None or foreach=True"
            )
        return (MATRIX, FOREACH)
    lacking = compiled.missing(device_type)
    if lacking is None:
        return (MATRIX, backend)
    if asked:
        raise RuntimeError(f"fused=True needs {lacking}, missing on this machine; use fused=None or foreach=True")
    compiled.warn_uncompiled(f"they need {lacking}, missing on this machine")
    return (MATRIX, FOREACH)


def first_of(tried: tuple[Backend, ...], plan: Plan, device: torch.device) -> Backend:
    """The first of several backends that steps buckets of a plan on a device."""
    return next(backend for backend in tried if backend.supports(plan, device) is None)
