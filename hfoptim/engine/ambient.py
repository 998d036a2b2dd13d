"""What is switched on around a step and must not reach it: autocast and inference mode.

`optimizer.step()` may be called anywhere. Autocast would turn a step's products of matrices into products of bfloat16
numbers; what is made in inference mode cannot be written to outside of it. What else surrounds a step (default dtype
and device, gradient mode, deterministic algorithms) does not matter to it, as nothing in it leaves these to a default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache, wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

_Function = TypeVar("_Function", bound=Callable[..., Any])


@cache
def _device_types() -> tuple[str, ...]:
    try:
        accelerator = torch.accelerator.current_accelerator()
    except RuntimeError:  # what torch 2.6 built for CPUs alone answers, where later ones return None
        accelerator = None
    return ("cpu",) if accelerator is None or accelerator.type == "cpu" else ("cpu", accelerator.type)


class _Undisturbed:
    """The context where nothing is switched on."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        # Autocast keeps the weights it has cast until the outermost context of it ends, enabled or not: a forward pass
        # to come in it would see those from before the step.
        torch.clear_autocast_cache()


_NOTHING_ON = _Undisturbed()


def undisturbed() -> AbstractContextManager[None]:
    """A context without autocast and inference mode. For work on weights and state, never around a user's closure."""
    # Asked at every step, so as fast as can be.
    for device in _device_types():
        if torch.is_autocast_enabled(device):
            return _without()
    return _without() if torch.is_inference_mode_enabled() else _NOTHING_ON


@contextmanager
def _without() -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(_NOTHING_ON)
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())  # leaving inference mode switches gradients on
        for device in _device_types():
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def leave_undisturbed(function: _Function) -> _Function:
    """The function, `undisturbed`."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with undisturbed():
            return function(*args, **kwargs)

    return run  # type: ignore[return-value]


def float32_products_are_exact(device: torch.device) -> bool:
    """Whether products of float32 matrices are computed in float32: users may allow tf32 or bfloat16 in its place."""
    backend = torch.backends.mkldnn if device.type == "cpu" else torch.backends.cuda
    own = getattr(getattr(backend, "matmul", None), "fp32_precision", None)
    if own is not None:  # torch >= 2.9, where the older question may be refused
        return own in ("none", "ieee")
    return torch.get_float32_matmul_precision() == "highest"


def lasting(tensor: Tensor) -> Tensor:
    """A tensor that can be written to: a copy of one that was made in inference mode."""
    return tensor.clone() if tensor.is_inference() else tensor
