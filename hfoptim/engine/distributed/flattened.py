"""Parameters of which each rank has a part without saying so: those that FullyShardedDataParallel (FSDP1) flattened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine.precision import precise


def is_flattened(groups: Sequence[Mapping[str, Any]]) -> bool:
    """Whether parameters of these groups are parts: FSDP1 marks them, or the option `fsdp_in_use` says so."""
    return any(
        group.get("fsdp_in_use") or any(hasattr(param, "_fsdp_flattened") for param in group["params"])
        for group in groups
    )


def sum_over_ranks(
    groups: Sequence[Mapping[str, Any]], sums: Mapping[str, Tensor], names: Sequence[str]
) -> Mapping[str, Tensor]:
    """Sums over all ranks from those of this one, in double precision; as they are where nothing is flattened.

    Args:
        groups: the parameter groups.
        sums: by name; without any where no parameter of this rank has a gradient: the other ranks wait for it.
        names: of the sums that there are on the other ranks.
    """
    if not is_flattened(groups):
        return sums
    if sums:
        nothing = torch.zeros_like(next(iter(sums.values())))
        packed = torch.stack([sums.get(name, nothing) for name in names])
    else:
        packed = torch.zeros(len(names), dtype=torch.float32, device=groups[0]["params"][0].device)
    packed = precise(packed)
    torch.distributed.all_reduce(packed)
    return {**sums, **dict(zip(names, packed.unbind(), strict=True))}
