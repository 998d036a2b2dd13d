"""State that begins at a number other than 0."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from hfoptim.engine import State


@cache
def filled(value: float) -> State:
    """The parameter's shape, at first `value` and never below 0: what squares go into."""

    def init(param: Tensor, dtype: torch.dtype) -> Tensor:
        # The parts of a complex parameter are two parameters.
        first = complex(value, value) if dtype.is_complex else value
        return torch.full_like(param, first, dtype=dtype, memory_format=torch.preserve_format)

    return State(init, signed=False, compressible=True)
