"""Kernels that are written by hand are tried before their first use on a device, once for each dtype."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache, wraps
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from functools import _lru_cache_wrapper

Trial = Callable[[torch.device, torch.dtype], str | None]


def told_once(instead: str) -> Callable[[Trial], _lru_cache_wrapper[str | None]]:
    """Makes `(device, dtype) -> why a kernel must not be used there, or None` of a trial: run once, and told once.

    What cannot run at all is a finding, too. On meta tensors nothing is tried.

    Args:
        instead: what hfoptim does in the kernel's place, and the kernel.
    """

    def of_trial(tried: Trial) -> _lru_cache_wrapper[str | None]:
        @cache
        @wraps(tried)
        def problem(device: torch.device, dtype: torch.dtype) -> str | None:
            if device.type == "meta":
                return None
            try:
                found = tried(device, dtype)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # whatever a compiler or a driver may say
                found = f"does not run ({type(error).__name__}: {error})"
            if found is not None:
                warnings.warn(
                    f"hfoptim {instead} {found} on {device}; please report it, with the versions of triton and torch "
                    f"and the device",
                    stacklevel=2,
                )
            return found

        return problem

    return of_trial
