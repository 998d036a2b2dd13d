"""Normal noise, and weights moved to other points where gradients are taken; every rank has its part."""

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


def drawn(tensor: Tensor, seed: int, dtype: torch.dtype) -> Tensor:
    """Numbers of a standard normal distribution for the `reals` of a tensor, the same in every sharding."""
    shape = (*tensor.shape, 2) if tensor.is_complex() else tensor.shape
    noise = storage.normal(shape, seed, dtype, tensor.device)
    return reals(here(torch.view_as_complex(noise), tensor)) if tensor.is_complex() else here(noise, tensor)


def noise_for(param: Tensor, step: int, ordinal: int) -> Tensor:
    """Numbers of a standard normal distribution for the `reals` of a parameter, at one step.

    Args:
        param: the parameter.
        step: the number of the step, from 1.
        ordinal: the parameter's place among those of all groups.
    """
    return drawn(param, storage.drawing_seed(step, ordinal), storage.exact_dtype(param.dtype).to_real())


def move(param: Tensor, by: Tensor, divisor: Tensor, factor: float) -> None:
    """Add `factor * by / divisor`, given for the `reals` of a parameter, rounded once."""
    weight = reals(param)
    weight.copy_(weight.to(by.dtype).addcdiv(by, divisor.to(by.dtype), value=factor))
