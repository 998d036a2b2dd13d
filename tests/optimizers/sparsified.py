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
            dense: dict[torch.Tensor, torch.Tensor] = {}

            def sparsify() -> None:
                for param in (param for group in self.param_groups for param in group["params"]):
                    if param.grad is not None and param.grad.layout is torch.strided:
                        dense[param] = param.grad
                        param.grad = param.grad.to_sparse(min(1, param.grad.dim()))  # whole rows

            def closed() -> Any:
                loss = closure()
                sparsify()
                return loss

            if closure is None:
                sparsify()
            try:
                return super().step(None if closure is None else closed, **more)
            finally:
                for param, grad in dense.items():
                    param.grad = grad

    Sparsified.__qualname__ = Sparsified.__name__ = f"Sparsified{cls.__name__}"
    globals()[Sparsified.__name__] = Sparsified  # where pickle looks for it
    return Sparsified
