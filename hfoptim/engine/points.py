"""Weights moved to other points, for optimizers that take gradients there; every rank moves its part."""

from __future__ import annotations

import torch
from torch import Tensor

from hfoptim.engine import storage
from hfoptim.engine.distributed.dtensor import here, local


def reals(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, complex entries as pairs; it shares the tensor's memory."""
    own = local(tensor.detach())
    return torch.view_as_real(own) if own.is_complex() else own


def filled_like(param: Tensor, value: float) -> Tensor:
    """A number for each of the `reals` of a parameter, in the dtype of exact state."""
    return torch.full_like(reals(param), value, dtype=storage.exact_dtype(param.dtype).to_real())


def noise_for(param: Tensor, step: int, ordinal: int) -> Tensor:
    """Numbers of a standard normal distribution for the `reals` of a parameter, the same in every sharding.

    Args:
        param: the parameter.
        step: the number of the step, from 1.
        ordinal: the parameter's place among those of all groups.
    """
    exact = storage.exact_dtype(param.dtype).to_real()
    shape = (*param.shape, 2) if param.is_complex() else param.shape
    noise = storage.normal(shape, storage.drawing_seed(step, ordinal), exact, param.device)
    return reals(here(torch.view_as_complex(noise), param)) if param.is_complex() else here(noise, param)


def move(param: Tensor, by: Tensor, divisor: Tensor, factor: float) -> None:
    """Add `factor * by / divisor`, given for the `reals` of a parameter, rounded once."""
    weight = reals(param)
    weight.copy_(weight.to(by.dtype).addcdiv(by, divisor.to(by.dtype), value=factor))
