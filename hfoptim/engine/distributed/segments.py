"""What of which parameter lies where in flattened memory: read from what DeepSpeed's ZeRO and FSDP1 keep about it.

ZeRO-1 and -2 (and DeepSpeed's optimizer for bfloat16) lay the parameters of a group one behind the other and divide the
whole into equal parts; the model's own parameters are views of that memory, so that their addresses say where each is.
ZeRO-3 divides each parameter by itself, and lays a rank's parts one behind the other. FSDP1 does as ZeRO-1 for each
module that it wraps, and notes shapes and sizes. All of them keep the entries of a parameter in their logical order.
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.utils.weak import WeakIdKeyDictionary

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Span = tuple[int, int]


class Unrecorded(Exception):
    """What flattens parameters keeps no record of them that is read here; the argument says what is missing."""


@dataclass(frozen=True, eq=False)
class Segment:
    """The entries of one parameter that lie on this rank.

    Args:
        shape: of the parameter.
        spans: (first entry, number of entries) of what lies on each rank, in logical order; none may be there.
        part: the memory of this rank's entries, 1-D.
        flat: the tensor that is stepped and has the gradient; `part` begins at its entry `at`.
        at: see `flat`.
        model: gives the model's own copy of `part`, where there is one besides.
    """

    shape: torch.Size
    spans: tuple[Span, ...]
    part: Tensor
    flat: Tensor
    at: int
    model: Callable[[], Tensor] | None = None

    @property
    def numel(self) -> int:
        return self.shape.numel()

    def of(self, gradient: Tensor) -> Tensor:
        """This rank's entries of a gradient of `flat`."""
        return gradient.reshape(-1).narrow(0, self.at, self.part.numel())


@dataclass(frozen=True, eq=False)
class Layout:
    """Where everything lies.

    Args:
        rows: for each group a segment for each of its parameters; None for one that is not trained.
        process_group: the ranks among which all are divided.
        refresh: brings the weights of the model up to date, after parts of them were written on each rank; every rank
            calls it.
    """

    rows: list[list[Segment | None]]
    process_group: ProcessGroup
    refresh: Callable[[], None]


def spans_of(begin: int, size: int, share: int, ranks: int) -> tuple[Span, ...]:
    """What each rank has of the entries [begin, begin + size) of a vector of which each has `share`, in their order."""
    found = []
    for rank in range(ranks):
        first, last = max(begin, rank * share), min(begin + size, (rank + 1) * share)
        found.append((first - begin, last - first) if first < last else (0, 0))
    return tuple(found)


def _everywhere(group: Any) -> ProcessGroup:
    """The group of ranks, if it is of all of them.

    Others hold parts of parameters that are divided by somebody else, too, or copies of them.
    """
    if group is None or dist.get_world_size(group) != dist.get_world_size():
        raise Unrecorded("other parallelism beside it, which divides or repeats parameters")
    found: ProcessGroup = group
    return found


def _plain(flat: Tensor) -> Tensor:
    if flat.ndim != 1 or not flat.is_contiguous():
        raise Unrecorded("a flat tensor with gaps")
    return flat.detach()


# -- DeepSpeed --------------------------------------------------------------------------------------------------------


def of_zero(originals: Sequence[Sequence[Tensor]], flats: Sequence[Sequence[Tensor]]) -> Layout:
    """The layout under DeepSpeed's ZeRO.

    Args:
        originals: for each group the parameters of the model.
        flats: for each group what DeepSpeed has put in their place.

    Raises:
        Unrecorded: an unknown version, parameters on another device than their gradients, expert parallelism, ...
    """
    params: list[Any] = [param for group in originals for param in group]
    if any(getattr(param, "ds_tensor", None) is not None for param in params):
        return _of_stage_3(originals, flats)
    return _of_stages_1_and_2(originals, flats)


def _of_stages_1_and_2(originals: Sequence[Sequence[Any]], flats: Sequence[Sequence[Tensor]]) -> Layout:
    trained = [[param for param in group if hasattr(param, "_hp_mapping")] for group in originals]
    if any(not group or len(own) != 1 for group, own in zip(trained, flats, strict=True)):
        raise Unrecorded("no addresses of parameters in flat parts")
    (process_group,) = _one_of({id(param._dp_group): param._dp_group for group in trained for param in group})
    process_group = _everywhere(process_group)
    ranks, rank = dist.get_world_size(process_group), dist.get_rank(process_group)
    rows: list[list[Segment | None]] = []
    buffers: list[tuple[list[Any], int]] = []
    for group, own, (flat,) in zip(originals, trained, flats, strict=True):
        share, memory = flat.numel(), own[0].untyped_storage()
        if any(getattr(param._hp_mapping, "use_offload", False) for param in own):
            raise Unrecorded("its offloading")
        if any(
            param.untyped_storage().data_ptr() != memory.data_ptr()
            or param.device != flat.device
            or not param.is_contiguous()
            for param in own
        ):
            raise Unrecorded("parameters that are no views of one vector on the device of the flat part")
        if memory.nbytes() != share * ranks * own[0].element_size():
            raise Unrecorded(f"a vector that is not divided into {ranks} equal parts")
        found: list[Segment | None] = []
        for param in group:
            if not hasattr(param, "_hp_mapping"):
                found.append(None)
                continue
            begin = param.storage_offset()
            spans = spans_of(begin, param.numel(), share, ranks)
            start, length = spans[rank]
            at = begin + start - rank * share if length else 0
            part = _plain(flat).narrow(0, at, length)
            found.append(Segment(param.shape, spans, part, flat, at, _model_part(param, start, length)))
        rows.append(found)
        buffers.append((own, share))

    def refresh() -> None:
        for own, share in buffers:
            whole = own[0].detach().as_strided((share * ranks,), (1,), 0)
            dist.all_gather_into_tensor(whole, whole.narrow(0, rank * share, share).clone(), group=process_group)

    return Layout(rows, process_group, refresh)


def _model_part(param: Tensor, start: int, length: int) -> Callable[[], Tensor]:
    return lambda: param.detach().view(-1).narrow(0, start, length)


def _of_stage_3(originals: Sequence[Sequence[Any]], flats: Sequence[Sequence[Tensor]]) -> Layout:
    trained = [[param for param in group if param.requires_grad] for group in originals]
    params = [param for group in trained for param in group]
    if any(getattr(param, "ds_tensor", None) is None for param in params):
        raise Unrecorded("parameters without a part of their own")
    groups = {id(param.ds_process_group): param.ds_process_group for param in params}
    (process_group,) = _one_of(groups)
    process_group = _everywhere(process_group)
    ranks, rank = dist.get_world_size(process_group), dist.get_rank(process_group)
    rows: list[list[Segment | None]] = []
    for group, own in zip(originals, flats, strict=True):
        left, flat, at = list(own), torch.empty(0), 0
        found: list[Segment | None] = []
        for param in group:
            if not param.requires_grad:
                found.append(None)
                continue
            share = param.ds_tensor.ds_numel
            if at == flat.numel():
                if not left:
                    raise Unrecorded("parts that are not laid one behind the other")
                flat, at = left.pop(0), 0
            if at + share > flat.numel() or hasattr(param.ds_tensor, "ds_quant_scale"):
                raise Unrecorded("parts that are not laid one behind the other, or are kept in codes")
            if param.ds_tensor.device != flat.device or param.ds_tensor.numel() != share:
                raise Unrecorded("its offloading")
            spans = spans_of(0, param.ds_numel, share, ranks)
            part = _plain(flat).narrow(0, at, spans[rank][1])
            found.append(
                Segment(torch.Size(param.ds_shape), spans, part, flat, at, _stage_3_part(param, spans[rank][1]))
            )
            at += share
        if left or at != flat.numel():
            raise Unrecorded("parts that are not those of the parameters")
        rows.append(found)

    def refresh() -> None:
        # Small parameters stay whole on every rank.
        kept = [param for param in params if getattr(param, "ds_persist", False)]
        if kept:
            kept[0].partition(kept)
            kept[0].all_gather(kept)

    return Layout(rows, process_group, refresh)


def _stage_3_part(param: Any, length: int) -> Callable[[], Tensor]:
    return lambda: param.ds_tensor.detach().view(-1).narrow(0, 0, length)


def size_in_parts(originals: Sequence[Any]) -> int | None:
    """How many entries the flat parts of a group have together on this rank; None: there is one part of any size."""
    if any(getattr(param, "ds_tensor", None) is not None for param in originals):
        return sum(param.ds_tensor.ds_numel for param in originals if param.requires_grad)
    return None


# -- FSDP1 ------------------------------------------------------------------------------------------------------------

# The handles of parameters that FSDP1 has flattened, by the parameter.
_handles: Any = WeakIdKeyDictionary()  # -> (weak reference to the handle, the number of the parameter in it)


def of_fsdp1(groups: Sequence[Sequence[Tensor]]) -> Layout:
    """The layout under FullyShardedDataParallel with its parameters under their own names.

    Args:
        groups: for each group its parameters, which FSDP1 has made views of its flat ones.

    Raises:
        Unrecorded: parameters beside it, several groups of ranks, parameters that it does not divide, ...
    """
    params = [param for group in groups for param in group]
    if any(param not in _handles for param in params):
        _find_handles()
    if any(param not in _handles for param in params):
        raise Unrecorded("parameters beside it, or flat ones by their own names: use_orig_params=False")
    handles: dict[int, Any] = {id(h): h for h in (_handles[param][0]() for param in params)}
    if any(handle is None or not handle.uses_sharded_strategy for handle in handles.values()):
        raise Unrecorded("parameters that it does not divide (NO_SHARD)")
    (process_group,) = _one_of({id(handle.process_group): handle.process_group for handle in handles.values()})
    process_group = _everywhere(process_group)
    ranks, rank = dist.get_world_size(process_group), dist.get_rank(process_group)
    places = {number: _begins(handle) for number, handle in handles.items()}
    rows: list[list[Segment | None]] = []
    for group in groups:
        found: list[Segment | None] = []
        for param in group:
            reference, index = _handles[param]
            handle: Any = reference()
            begins, share = places[id(handle)]
            shape = handle.flat_param._shapes[index]
            spans = spans_of(begins[index], shape.numel(), share, ranks)
            if param.numel() != spans[rank][1]:
                raise Unrecorded("parameters that are not divided now; step outside of summon_full_params")
            found.append(Segment(shape, spans, param, param, 0))
        rows.append(found)
    return Layout(rows, process_group, lambda: None)


def original_shape(param: Tensor) -> torch.Size:
    """The shape that a parameter had before it was flattened or emptied; its own, where nothing is known of one."""
    if hasattr(param, "ds_shape"):
        return torch.Size(param.ds_shape)
    if not hasattr(param, "_fsdp_flattened"):
        return param.shape
    if param not in _handles:
        _find_handles()
    handle = _handles[param][0]() if param in _handles else None
    return param.shape if handle is None else handle.flat_param._shapes[_handles[param][1]]


def _begins(handle: Any) -> tuple[list[int], int]:
    """(where each parameter begins in the whole flat one, how much of it a rank has)."""
    flat = handle.flat_param
    ranks = dist.get_world_size(handle.process_group)
    begins, at = [], 0
    for size, padding in zip(flat._numels_with_padding, flat._is_padding_mask, strict=True):
        if not padding:
            begins.append(at)
        at += size
    return begins, -(-at // ranks)


def _find_handles() -> None:
    """Note whose parameters which handle has. They know nothing of it: all objects that there are have to be seen."""
    module = sys.modules.get("torch.distributed.fsdp._flat_param")
    if module is None:
        return
    for handle in (each for each in gc.get_objects() if type(each) is module.FlatParamHandle):
        for index, param in enumerate(getattr(handle.flat_param, "_params", None) or ()):
            _handles[param] = (weakref.ref(handle), index)


def _one_of(found: dict[int, Any]) -> list[Any]:
    if len(found) != 1:
        raise Unrecorded("parameters that are divided among different ranks")
    return list(found.values())
