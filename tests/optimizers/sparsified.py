"""Optimizers that are handed dense gradients by harnesses, and step with them made sparse."""

from __future__ import annotations

import functools
from typing import Any

import torch


@functools.cache
def sparsified(cls: type[Any]) -> type[Any]:
    """A class whose steps see the rows of each gradient that are not 0, and no others."""

    class Sparsified(cls):  # type: ignore[misc]
        @torch.no_grad()
        def step(self, closure: Any = None, **more: Any) -> Any:
            params = [param for group in self.param_groups for param in group["params"] if param.grad is not None]
            dense = [param.grad for param in params]
            for param, grad in zip(params, dense, strict=True):
                dims = min(1, grad.dim())  # whole rows
                param.grad = grad.to_sparse(dims) if grad.layout is torch.strided else grad
            try:
                return super().step(closure, **more)
            finally:
                for param, grad in zip(params, dense, strict=True):
                    param.grad = grad

    Sparsified.__qualname__ = Sparsified.__name__ = f"Sparsified{cls.__name__}"
    return Sparsified
