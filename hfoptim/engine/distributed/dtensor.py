"""Sharded parameters (DTensor): what of them lies on this rank, how their state is sharded, sums over the ranks.

DTensor is not imported before somebody has made one: it would cost every other run a second.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hfoptim.engine import storage
from hfoptim.engine.precision import precise
from hfoptim.engine.rule import Rule, Scope
from hfoptim.engine.storage import Storage

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.placement_types import Placement

Init = Callable[[Tensor, torch.dtype], Tensor]
# The groups of ranks among which a tensor is divided.
Groups = tuple["ProcessGroup", ...]


@dataclass(frozen=True)
class Cut:
    """One dimension of a tensor that is divided among ranks.

    Args:
        size: of the whole dimension.
        groups: the ranks that have the parts; one group per dimension of the mesh that divides it.
        stands_for_all: whether it is that of a flattened tensor, whose own dimensions are gone.
    """

    size: int
    groups: Groups
    stands_for_all: bool = False


def is_dtensor(tensor: Tensor) -> bool:
    """Whether the tensor is a DTensor, sharded or not."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Any) -> Tensor:
    """The part of a tensor that lies on this rank; a plain tensor is itself."""
    return tensor.to_local() if is_dtensor(tensor) else tensor


def cuts(tensor: Any) -> dict[int, Cut]:
    """The dimensions, counted from the end, in which this rank has only a part of the tensor."""
    if not is_dtensor(tensor):
        return {}
    found: dict[int, Cut] = {}
    mesh = tensor.device_mesh
    for i, placement in enumerate(tensor.placements):
        if placement.is_replicate() or mesh.size(i) == 1:
            continue
        dim = placement.dim - tensor.ndim
        groups = found[dim].groups if dim in found else ()
        found[dim] = Cut(tensor.shape[dim], (*groups, mesh.get_group(i)))
    return found


def groups_of(tensor: Any) -> Groups:
    """The groups of ranks among which a tensor is divided, in the order of its mesh; none where each has all of it."""
    if not is_dtensor(tensor):
        return ()
    divided = {group for cut in cuts(tensor).values() for group in cut.groups}
    mesh = tensor.device_mesh
    return tuple(group for group in map(mesh.get_group, range(mesh.ndim)) if group in divided)


def layout(tensor: Any) -> Any:
    """What tensors that are stepped together must have in common."""
    return (tensor.device_mesh, tensor.placements) if is_dtensor(tensor) else None


def aligned(grad: Any, param: Any) -> Tensor:
    """The gradient, divided among the ranks as the parameter is."""
    if not is_dtensor(param) or grad.placements == param.placements:
        return grad
    return grad.redistribute(param.device_mesh, param.placements)


def span(size: int, ranks: int, rank: int) -> tuple[int, int]:
    """(start, length) of a rank's part of a dimension: equal parts, the last ones shorter or empty."""
    part = -(-size // ranks)
    start = min(size, part * rank)
    return start, min(size, start + part) - start


def in_rows(tensors: Sequence[Any]) -> bool:
    """Whether each rank has a run of the rows of every tensor that has rows: a run of entries in logical order."""
    for tensor in tensors:
        found = list(cuts(tensor).items())
        if tensor.ndim and ([dim for dim, _ in found] != [-tensor.ndim] or len(found[0][1].groups) > 1):
            return False
    return True


def start(param: Any) -> int:
    """Index in the parameter, in logical order, of this rank's first entry; the parameter is divided by rows."""
    for dim, cut in cuts(param).items():
        (group,) = cut.groups
        ranks, rank = torch.distributed.get_world_size(group), torch.distributed.get_rank(group)
        return span(cut.size, ranks, rank)[0] * (param.numel() // param.shape[dim])
    return 0


# -- state -----------------------------------------------------------------------------------------------------------


def at_owner(rule: Rule, param: Any) -> bool:
    """Whether one rank steps this parameter as it needs all of it, or whole matrices; it is divided by one group."""
    if len(groups_of(param)) != 1:
        return False
    return rule.whole or (rule.scope is Scope.MATRIX and within_matrices(rule, param))


def within_matrices(rule: Rule, param: Any) -> bool:
    """Whether a parameter is divided otherwise than between the matrices that a rule sees in it."""
    divided = cuts(param)
    if not divided:
        return False
    return max(divided) >= -rule.dims or (rule.shape is not None and tuple(rule.shape(param.shape)) != param.shape)


def new_state(init: Init, param: Any, dtype: torch.dtype, owned: bool = False, of_values: bool = False) -> Tensor:
    """A state's first value: sharded like the parameter where it has the parameter's dimensions, else on every rank.

    Args:
        init: how the state begins.
        param: its parameter.
        dtype: the dtype of what is exact.
        owned: whether one rank steps the parameter: then others need nothing of what has other dimensions, such as the
            preconditioners of a matrix, and each keeps a part.
        of_values: whether an entry is made of several of the parameter's, which may lie on several ranks.
    """
    if not is_dtensor(param):
        return init(param, dtype)
    placements, followed = _division(init, param, owned)
    if placements is None or not followed or (of_values and not _follow(placements, param)):
        value = init(whole_of(param) if of_values else stand_in(param), dtype)
        if placements is None:
            return value
        return _dtensor(part_of(value, param.device_mesh, placements).clone(), param, placements, value.shape)
    shape = state_shape(init, param.shape)
    part = init(param.to_local(), dtype)
    if part.numel() == 0:
        part = part.new_empty(_part_shape(shape, param, placements))
    return _dtensor(part, param, placements, shape)


def _follow(placements: Sequence[Placement], param: DTensor) -> bool:
    """Whether a state of these placements is divided wherever its parameter is; each rank has what its part is of."""
    return all(
        theirs.is_replicate() or not own.is_replicate()
        for theirs, own in zip(param.placements, placements, strict=True)
    )


def stand_in(param: Any) -> Tensor:
    """A plain tensor with the whole shape of a DTensor, without the memory for it; a plain parameter is itself."""
    if not is_dtensor(param):
        return param
    return torch.zeros((), dtype=param.dtype, device=param.device).expand(param.shape)


def state_shape(init: Init, shape: Sequence[int]) -> torch.Size:
    """The shape of a state for a parameter of this shape."""
    return init(torch.empty(shape, device="meta"), torch.float32).shape


def state_placements(init: Init, param: Any, owned: bool = False) -> tuple[Placement, ...] | None:
    """How the state of a parameter is sharded; None: a plain tensor, the same on every rank.

    Args:
        init: how the state begins.
        param: its parameter.
        owned: as in `new_state`.
    """
    return _division(init, param, owned)[0] if is_dtensor(param) else None


def _division(init: Init, param: DTensor, owned: bool) -> tuple[tuple[Placement, ...] | None, bool]:
    """`state_placements`, and whether they divide what the state has of the parameter's dimensions."""
    shape = state_shape(init, param.shape)
    if all(placement.is_replicate() for placement in param.placements):
        return (param.placements if shape == param.shape else None), True
    # A matrix for one side of a square parameter has the parameter's shape, and none of its dimensions.
    placements = tuple(_followed(init, param, shape, placement) for placement in param.placements)
    if not all(placement.is_replicate() for placement in placements):
        return placements, True
    return (_evenly(param, shape) if owned and shape else None), False


def _evenly(param: DTensor, shape: torch.Size) -> tuple[Placement, ...]:
    """The longest dimension divided among the ranks that divide a parameter: a stack of blocks has few blocks."""
    from torch.distributed.tensor import Shard

    longest = max(range(len(shape)), key=shape.__getitem__)
    return tuple(placement if placement.is_replicate() else Shard(longest) for placement in param.placements)


def _followed(init: Init, param: DTensor, shape: torch.Size, placement: Any) -> Placement:
    """The placement of a state of another shape: sharded in the dimension that is the parameter's, if any."""
    from torch.distributed.tensor import Replicate

    if not placement.is_replicate():
        dim = follows(lambda of_param: state_shape(init, of_param), param.shape, placement.dim)
        if dim is not None:
            strided = {"split_factor": placement.split_factor} if hasattr(placement, "split_factor") else {}
            return type(placement)(dim, **strided)
    return Replicate()


# Added to a dimension to see what follows it: one entry, and so many that no rounding hides another slope than 1.
_LONGER = (1, 1_000_003)


def follows(function: Callable[[torch.Size], Sequence[int]], shape: torch.Size, dim: int) -> int | None:
    """Which dimension of `function(shape)` is dimension `dim` of the shape, whatever its size; None if none is."""
    before = function(shape)
    found = set()
    for more in _LONGER:
        try:
            after = function(torch.Size([*shape[:dim], shape[dim] + more, *shape[dim + 1 :]]))
        except (RuntimeError, IndexError):  # a shape that cannot be made of so many entries, or has other dimensions
            return None
        changed = [i for i, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
        if len(changed) != 1 or (before[changed[0]], after[changed[0]]) != (shape[dim], shape[dim] + more):
            return None
        found.add(changed[0])
    return found.pop() if len(found) == 1 else None


def _part_shape(shape: torch.Size, param: Any, placements: Sequence[Any]) -> list[int]:
    """The shape of this rank's part of a state."""
    sizes = list(shape)
    for own, of_param in zip(placements, param.placements, strict=True):
        if not own.is_replicate():
            sizes[own.dim] = param.to_local().shape[of_param.dim]
    return sizes


def _dtensor(part: Tensor, param: DTensor, placements: Sequence[Placement], shape: torch.Size) -> Tensor:
    from torch.distributed.tensor import DTensor

    stride = param.stride() if shape == param.shape else torch.empty(shape, device="meta").stride()
    return DTensor.from_local(part, param.device_mesh, placements, run_check=False, shape=shape, stride=stride)


def whole_of(tensor: Any) -> Tensor:
    """All of a tensor, on every rank."""
    if not is_dtensor(tensor):
        return tensor
    # No backend sends 16-bit integers, which remainders are.
    sent = tensor.to(torch.int32) if tensor.dtype is torch.int16 else tensor
    return sent.full_tensor().to(tensor.dtype)


def part_of(value: Tensor, mesh: DeviceMesh, placements: Sequence[Placement]) -> Tensor:
    """This rank's part of a tensor that every rank has."""
    from torch.distributed.tensor import DTensor, Replicate

    everywhere = DTensor.from_local(value, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return everywhere.redistribute(placements=placements).to_local()


def divided(value: Tensor, like: Any) -> Tensor:
    """A tensor that every rank has, divided as another one of its shape is."""
    return _dtensor(here(value, like), like, like.placements, value.shape) if is_dtensor(like) else value


def here(value: Tensor, like: Any) -> Tensor:
    """What another tensor, of the same shape, has on this rank of one that every rank has."""
    return part_of(value, like.device_mesh, like.placements) if is_dtensor(like) else value


def placed(value: Any, param: Any, init: Init, owned: bool = False) -> Tensor:
    """A loaded state tensor, of the right shape, as `new_state` would have made it.

    Args:
        value: a DTensor, of this mesh or another, or a plain tensor that holds all of it on every rank.
        param: its parameter.
        init: how the state begins.
        owned: as in `new_state`.
    """
    placements = state_placements(init, param, owned)
    if is_dtensor(value) and placements is not None and value.device_mesh == param.device_mesh:
        return value if value.placements == placements else value.redistribute(placements=placements)
    value = whole_of(value).to(param.device)
    if placements is None:
        return value
    part = part_of(value, param.device_mesh, placements)
    # Its own memory, in the parameter's layout: not a view that keeps all of `value` alive.
    like = param.to_local() if value.shape == param.shape else part
    own = torch.empty_like(like, dtype=value.dtype, memory_format=torch.preserve_format).copy_(part)
    return _dtensor(own, param, placements, value.shape)


def converted(kept: Storage, rule: Rule, name: str, state: Mapping[str, Any], param: Any) -> dict[str, Tensor]:
    """`storage.converted` for parameters that may be DTensors; what is only cast is not gathered."""
    present = storage.kept_as(name, state, rule.state[name].signed, rule.shape_of(name, param.shape))
    if present.format is not kept.format and is_dtensor(param):
        state = {**state, **{key: whole_of(state[key]) for key in present.names(name)}}
    new = storage.converted(kept, rule, name, state, stand_in(param))
    inits = storage.inits(kept, rule, name)
    owned = at_owner(rule, param)
    return {key: placed(value, param, inits[key], owned) for key, value in new.items()}


# -- sums ------------------------------------------------------------------------------------------------------------


def sum_over_ranks(sums: dict[Groups, dict[str, Tensor]]) -> dict[str, Tensor]:
    """Sums over all tensors by name, from this rank's.

    Args:
        sums: by the groups of ranks among which the tensors summed are divided, so that what every rank has is counted
            once; one all-reduce for each group.
    """
    totals: dict[str, Tensor] = {}
    if sums.keys() == {()}:
        return sums[()]
    for groups, values in sums.items():
        if groups:
            first = next(iter(values.values()))
            packed = torch.stack([value.to(first.device) for value in values.values()])
            for group in groups:
                torch.distributed.all_reduce(packed, group=group)
            values = dict(zip(values, packed.unbind(), strict=True))
        for name, value in values.items():
            totals[name] = totals[name] + value.to(totals[name].device) if name in totals else value
    return totals


def added_up(
    sums: Mapping[str, Tensor], names: Sequence[str], device: torch.device, group: ProcessGroup | None = None
) -> dict[str, Tensor]:
    """Sums over the ranks by name, in double precision, from this rank's; one all-reduce.

    Args:
        sums: this rank's; 0 where it has none of a name.
        names: the same on every rank.
        device: of the results.
        group: the ranks; None: all.
    """
    nothing = torch.zeros((), dtype=torch.float32, device=device)
    packed = torch.stack([precise(sums.get(name, nothing).to(device)) for name in names])
    torch.distributed.all_reduce(packed, group=group)
    return dict(zip(names, packed.unbind(), strict=True))
