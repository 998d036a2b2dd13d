"""How a bucket of tensors is stepped: `loop`, `foreach` or `compiled`, and which of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hfoptim.engine.backends import compiled, foreach, inductor, loop, matrix
from hfoptim.engine.bucket import Bucket
from hfoptim.engine.options import OPTIONS
from hfoptim.engine.rule import Scope

Runner = Callable[[Bucket], None]

# Compiling costs seconds, once; it is worth it from about this many entries on, where a step without it takes longer
# than a hundredth of that. Fixed by the size of the model alone, so that a resumed run takes the same path.
COMPILE_FROM = {"cpu": 10_000_000, "default": 10_000_000}


def choose(group: Mapping[str, Any], device_type: str, numel: int) -> Runner:
    """The runner for a group's buckets on a device.

    Args:
        group: a parameter group; `fused` asks for the compiled runner, `foreach` for the multi-tensor one (False: the
            loop). None for both leaves it to the engine.
        device_type: "cpu", "cuda", ...
        numel: entries of all parameters of the optimizer on that device.

    Raises:
        NotImplementedError: `fused=True` with an option whose forms the compiled runner does not know on that device.
        RuntimeError: `fused=True` where the compiled runner lacks something, a compiler for example.
    """
    lacks = None if device_type == "cpu" else _eager_only(group)
    if group["fused"]:
        if lacks is not None:
            raise NotImplementedError(
                f"fused=True does not know {lacks} on {device_type} yet; use fused=None or foreach=True"
            )
        lacking = compiled.missing(device_type)
        if lacking is not None:
            raise RuntimeError(f"fused=True needs {lacking}, missing on this machine; use fused=None or foreach=True")
        return compiled.run_as_asked
    if group["foreach"] is not None:
        return foreach.run if group["foreach"] else loop.run
    large = numel >= COMPILE_FROM.get(device_type, COMPILE_FROM["default"])
    if group["fused"] is None and large and lacks is None:
        lacking = compiled.missing(device_type)
        if lacking is None:
            return compiled.run
        compiled.warn_uncompiled(f"they need {lacking}, missing on this machine")
    return foreach.run


def _eager_only(group: Mapping[str, Any]) -> str | None:
    """An option of the group that torch.compile's runner does not know, or None."""
    refused = (name for name, option in OPTIONS.items() if inductor.NAME in option.refused_by)
    chosen = (name for name in refused if group.get(name, OPTIONS[name].default) != OPTIONS[name].default)
    return next((f"{name}={group[name]!r}" for name in chosen), None)


def for_scope(run: Runner, scope: Scope) -> Runner:
    """The runner in place of the chosen one: rules of whole matrices have their own, unless the loop was asked for."""
    return matrix.run if scope is Scope.MATRIX and run is not loop.run else run
