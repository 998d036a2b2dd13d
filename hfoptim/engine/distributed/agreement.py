"""What parameters must be for steps on many ranks to be the steps of one, where they would silently be others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from hfoptim.engine import checks
from hfoptim.engine.distributed.dtensor import Groups, is_dtensor
from hfoptim.engine.rule import Group

# Integers of the size of an entry. Their sum is the same whatever the order in which they are added up.
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def refuse_replaced(name: str, groups: Sequence[Group]) -> None:
    """Raise if `fully_shard` has put other parameters in the place of some: these would never have a gradient.

    It marks those that were there before, from torch 2.13 on.

    Args:
        name: the optimizer's.
        groups: its parameter groups.

    Raises:
        ValueError: there is one.
    """
    for index, group in enumerate(groups):
        for position, param in enumerate(group["params"]):
            if param.grad is None and hasattr(param, "_fsdp_orig_uid"):
                raise ValueError(
                    f"{checks.parameter_name(group, index, position)} is no longer in the model: fully_shard has put a "
                    f"sharded one in its place, and {name} would train nothing; make the optimizer after fully_shard"
                )


def refuse_differing(name: str, groups: Sequence[Group], over: Iterable[Groups]) -> None:
    """Raise if plain parameters are not the same on all ranks, beside others that are divided among these.

    A sum over all parameters counts what is plain once, as every rank has it. Of what one rank alone has, such as its
    own experts, the others would not know, and each would go on with a sum of its own.

    Every rank of these groups is to come here, as to the sum itself. The host waits for the numbers.

    Args:
        name: the optimizer's.
        groups: its parameter groups.
        over: the groups of ranks that the sum goes over.

    Raises:
        ValueError: they are not the same, with the same words on all ranks.
    """
    mine = {
        checks.parameter_name(group, index, position): _fingerprint(param)
        for index, group in enumerate(groups)
        for position, param in enumerate(group["params"])
        if param.requires_grad and not is_dtensor(param)
    }
    for ranks in dict.fromkeys(group for each in over for group in each):  # in the same order on all
        told: list[Any] = [None] * dist.get_world_size(ranks)
        dist.all_gather_object(told, mine, group=ranks)
        differing = sorted({key for each in told for key in each if any(other.get(key) != each[key] for other in told)})
        if differing:
            named = ", ".join(differing[:3]) + " and others" * (len(differing) > 3)
            raise ValueError(
                f"{name} sums over all parameters, and {named} "
                f"are not the same on all ranks, beside parameters that are divided among them. Make what each rank "
                f"has a part of one DTensor, as DTensor.from_local(experts, mesh, [Shard(0)]); or take an optimizer "
                f"that sums over no more than one parameter"
            )


def _fingerprint(param: Tensor) -> tuple[tuple[int, ...], str, int]:
    """The shape and dtype of a parameter, and a sum by which other values are told."""
    values = torch.view_as_real(param.detach()) if param.is_complex() else param.detach()
    entries = values.contiguous().view(_INTEGERS[values.element_size()])
    return tuple(param.shape), str(param.dtype), int(entries.sum(dtype=torch.int64))
