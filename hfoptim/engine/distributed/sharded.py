"""The backend for parameters that are divided among ranks and rules that look at whole tensors.

A rule of reductions runs on the local parts, with the reductions of all tensors of a batch in one all-reduce. Any other
is run on whole tensors: each goes to one rank, its owner, and the results come back, with one all-to-all each way,
which are on their way while other tensors are computed.
Element-wise rules do not come here: the engine gives other backends the local parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch import distributed as dist

from hfoptim.engine import storage
from hfoptim.engine.apply import entering, moved
from hfoptim.engine.backends.loop import Loop
from hfoptim.engine.bucket import Bucket
from hfoptim.engine.distributed.dtensor import (
    Groups,
    cuts,
    follows,
    groups_of,
    in_rows,
    is_dtensor,
    local,
    part_of,
    span,
    whole_of,
    within_matrices,
)
from hfoptim.engine.distributed.loads import owners_of
from hfoptim.engine.distributed.messages import length, packed, unpacked
from hfoptim.engine.distributed.sharded_list import Cuts, ShardedList, Unshardable
from hfoptim.engine.plan import Plan
from hfoptim.engine.rule import Function, Scope
from hfoptim.engine.tensor_list import TensorList
from hfoptim.engine.tensor_slots import TensorSlots

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# Entries of the parameters of a batch, for each rank; their gradients, state and results come on top. Up to three are
# there at once: one on its way to its owners, one in work, one on its way back.
BATCH = 1 << 24

# Plans and shapes found to need whole tensors.
_whole_only: set[Any] = set()

_Arrival = Callable[[], list[list[Tensor]]]
Evaluate = Callable[[Bucket, Function], Iterator[dict[str, Tensor]]]


def takes(plan: Plan, row: TensorSlots) -> bool:
    """Whether a row is for this backend: sharded, and its local part cannot be stepped as a tensor by itself."""
    divided = cuts(row.param)
    if not divided:
        return False
    if plan.ordered and not in_rows(row.tensors):
        return True
    if plan.scope is Scope.MATRIX and not plan.reduces:
        # Such rules work on the last dimensions: a stack may be divided between matrices.
        return within_matrices(plan.rule, row.param)
    return plan.scope is not Scope.ELEMENT


def run(work: Sequence[tuple[Bucket, Callable[[Bucket], None]]], meanwhile: Callable[[], None] = lambda: None) -> None:
    """Step every tensor of the buckets in place.

    Batches of whole tensors are on their way to their owners, and back, while others are computed.

    Args:
        work: buckets, whose rows hold DTensors with one mesh and one way of being divided, and what is not divided;
            each with the backend for whole tensors.
        meanwhile: what else is to be done, while the last results are on their way; it touches none of these tensors.
    """
    owned: list[_AtOwners] = []
    for bucket, whole in work:
        groups = groups_of(bucket.rows[0].param)
        for batch in _batches(bucket, groups):
            if _in_parts(batch, groups):
                continue
            if len(groups) == 1:
                owned.append(_AtOwners(batch, whole, groups[0]))
            else:
                _everywhere(batch, whole)
    returning: _AtOwners | None = None
    for i, batch_of_owners in enumerate(owned):
        if i == 0:
            batch_of_owners.gather()
        if i + 1 < len(owned):
            owned[i + 1].gather()
        batch_of_owners.compute()
        if returning is not None:
            returning.finish()
        returning = batch_of_owners
    meanwhile()
    if returning is not None:
        returning.finish()


def _batches(bucket: Bucket, groups: Groups) -> Iterator[Bucket]:
    """The rows, the largest first, in batches that give each rank about as much to do and no more than `BATCH`."""
    ranks = math.prod(dist.get_world_size(group) for group in groups)
    sizes = [row.param.numel() for row in bucket.rows]
    batch: list[int] = []
    filled = 0
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        if len(batch) >= ranks and filled + sizes[i] > BATCH * ranks:
            yield bucket.chosen(batch)
            batch, filled = [], 0
        batch.append(i)
        filled += sizes[i]
    yield bucket.chosen(batch)


# -- on the local parts ----------------------------------------------------------------------------------------------


def _in_parts(bucket: Bucket, groups: Groups) -> bool:
    """Step the local parts; False, with nothing changed, where the rule needs whole tensors."""
    kind = (bucket.plan, frozenset(row.param.ndim for row in bucket.rows))
    lists = _lists(bucket, groups)
    if lists is None or kind in _whole_only:
        return False
    params, grads, *states = lists
    try:
        new, *new_states = moved(bucket.plan, bucket.hyper(), grads, params, states)
    except Unshardable:
        _whole_only.add(kind)
        return False
    for i, row in enumerate(bucket.rows):
        part = row.map(local)
        values = [
            None if state is None else state.parts.tensors[i].reshape(kept[0].shape)
            for state, kept in zip(new_states, part.states, strict=True)
        ]
        storage.encode(bucket.plan, part, new.parts.tensors[i].reshape(part.param.shape), values, 0, 0)
    return True


def evaluate(
    bucket: Bucket, function: Function, whole: Evaluate, over_ranks: bool = False
) -> Iterator[tuple[dict[str, list[Tensor]], Groups]]:
    """What a function gives for each tensor; nothing changes.

    Args:
        bucket: as for `run`.
        function: `(grad, param, *state, h) -> {name: 0-d tensor}`.
        whole: how a backend evaluates it on whole tensors.
        over_ranks: whether reductions go over all ranks. Else the function gives sums, and local ones will do.

    Yields:
        For some of the tensors, by name, a number each; and the groups of ranks that these have yet to be summed over.
    """
    groups = groups_of(bucket.rows[0].param)
    for batch in _batches(bucket, groups):
        found = _of_parts(batch, groups if over_ranks else (), function)
        if found is not None:
            yield found, () if over_ranks else groups
            continue
        if len(groups) == 1 and not over_ranks:
            yield from ((numbers, groups) for numbers in _numbers_at_owners(batch, function, whole, groups[0]))
            continue
        for index in range(len(batch.rows)):
            with gathered(batch.chosen([index])).shaped() as row:
                yield from (({name: [value] for name, value in values.items()}, ()) for values in whole(row, function))


def _of_parts(bucket: Bucket, groups: Groups, function: Function) -> dict[str, list[Tensor]] | None:
    """By name, what a function gives for each tensor from its local part; None where it needs whole tensors.

    Reductions go over the groups.
    """
    plan, lists = bucket.plan, _lists(bucket, groups)
    if lists is None:
        return None
    params, grads, *states = lists
    try:
        h = bucket.hyper()
        weights, grads = entering(plan, h, grads, params)
        found = function(grads, weights, *(state.to(plan.dtype) for state in states), h)
    except Unshardable:
        return None
    return {name: value.parts.tensors for name, value in found.items()}


def _lists(bucket: Bucket, groups: Groups) -> list[ShardedList] | None:
    """Parameters, gradients and each state, in the shape that the rule sees; None where it needs whole tensors."""
    plan = bucket.plan
    if plan.scope is Scope.MATRIX or plan.rule.whole or not plan.plain:
        return None
    rest_is_read = plan.rounding is storage.Rounding.KAHAN_READ
    rows = []
    for row in bucket.rows:
        tensors = [row.param, row.grad, *(tensor for (tensor,) in row.states), *[row.residual] * rest_is_read]
        seen = [(local(t), cuts(t)) for t in tensors] if plan.rule.shape is None else _as_seen(plan.rule.shape, tensors)
        if seen is None:
            return None
        rows.append(seen)
    lists = [
        ShardedList(TensorList([part for part, _ in column]), [own for _, own in column], groups)
        for column in zip(*rows, strict=True)
    ]
    if rest_is_read:
        lists[0] = storage.as_read(plan, lists[0], lists.pop())
    return lists


def _as_seen(shape: Callable[[torch.Size], tuple[int, ...]], tensors: list[Any]) -> list[tuple[Tensor, Cuts]] | None:
    """The local parts of a parameter and what goes with it, in the shape that the rule sees, with their cuts.

    None where that shape mixes their rows.
    """
    param, *_ = tensors
    own = param.shape
    if list(cuts(param)) != [-len(own)] or follows(shape, own, 0) != 0:
        return None
    here = (local(param).shape[0], *shape(own)[1:])
    # State of a row's shape is on every rank also where the parameter has one row only.
    return [
        (local(t).reshape(here), {-len(here): cuts(t)[-len(own)]})
        if t.shape == own and is_dtensor(t)
        else (local(t), cuts(t))
        for t in tensors
    ]


# -- on whole tensors ------------------------------------------------------------------------------------------------


class _AtOwners:
    """A batch whose rows are gathered on the ranks that own them, stepped there, and sent back in parts.

    Args:
        bucket: the rows.
        whole: the backend for whole tensors.
        group: the ranks that divide them.
    """

    def __init__(self, bucket: Bucket, whole: Callable[[Bucket], None], group: ProcessGroup) -> None:
        self.bucket, self.whole, self.group = bucket, whole, group
        self.ranks, self.me = range(dist.get_world_size(group)), dist.get_rank(group)
        self.owned = [bucket.chosen(rows) for rows in _assign(bucket.rows, len(self.ranks))]
        # What waits for the messages that are on their way: the parts for the owners, and those that come back.
        self._gathered: Callable[[], Bucket] | None = None
        self._returned: _Arrival | None = None

    def gather(self) -> None:
        """Begin to send each row to its owner."""
        self._gathered = _to_owners(self.owned, self.group, self.bucket.device)

    def compute(self) -> None:
        """Step what this rank owns, and begin to send every rank its parts of the results."""
        assert self._gathered is not None
        mine, self._gathered = self._gathered(), None
        if mine.rows:
            with mine.shaped() as shaped:
                self.whole(shaped)
        results = self._results()
        new = [t for row in mine.rows for t in row.written]
        self._returned = exchange(
            [
                [_part(value, t, self.ranks, r) for t, value in zip(results[self.me], new, strict=True)]
                for r in self.ranks
            ],
            [[(local(t).shape, t.dtype) for t in tensors] for tensors in results],
            self.group,
            self.bucket.device,
        )

    def finish(self) -> None:
        """Wait for this rank's parts, and put them in their place."""
        assert self._returned is not None
        for tensors, values in zip(self._results(), self._returned(), strict=True):
            for tensor, value in zip(tensors, values, strict=True):
                local(tensor).copy_(value)
        self._returned = None

    def _results(self) -> list[list[Any]]:
        return [[t for row in share.rows for t in row.written] for share in self.owned]


def _to_owners(owned: list[Bucket], group: ProcessGroup, device: torch.device) -> Callable[[], Bucket]:
    """Begin to send every rank's parts of the rows to the ranks that own them, in one all-to-all.

    Args:
        owned: the rows by the rank that owns them.
        group: the ranks.
        device: of all tensors.

    Returns:
        What waits for them, and gives the whole tensors of the rows that this rank owns.
    """
    ranks, mine = range(dist.get_world_size(group)), owned[dist.get_rank(group)]
    divided = [[t for row in share.rows for t in row.tensors if cuts(t)] for share in owned]
    own = [t for row in mine.rows for t in row.tensors if cuts(t)]
    arrived = exchange(
        [[local(t) for t in tensors] for tensors in divided],
        [[(_part_shape(t, ranks, r), t.dtype) for t in own] for r in ranks],
        group,
        device,
    )

    def gathered() -> Bucket:
        whole = iter([torch.cat(parts, _dim(t)) for t, *parts in zip(own, *arrived(), strict=True)])
        rows = [row.map(lambda t: next(whole) if cuts(t) else local(t)) for row in mine.rows]
        return Bucket(mine.plan, rows, mine.scalars, mine.seeds)

    return gathered


def _numbers_at_owners(
    bucket: Bucket, function: Function, whole: Evaluate, group: ProcessGroup
) -> Iterator[dict[str, list[Tensor]]]:
    """What a function gives for each row on the rank that owns it: sums over the ranks are those over all rows."""
    ranks = dist.get_world_size(group)
    owned = [bucket.chosen(rows) for rows in _assign(bucket.rows, ranks)]
    mine = _to_owners(owned, group, bucket.device)()
    if mine.rows:
        with mine.shaped() as shaped:
            yield from ({name: [value] for name, value in values.items()} for values in whole(shaped, function))
        return
    # A rank that owns nothing adds nothing, under every name that the others sum up.
    first = bucket.chosen([0]).rows[0].map(lambda t: torch.empty(t.shape, dtype=t.dtype, device="meta"))
    with Bucket(bucket.plan, [first], bucket.scalars, []).shaped() as shaped:
        for values in Loop().evaluate(shaped, function):
            yield {name: [torch.zeros((), dtype=v.dtype, device=bucket.device)] for name, v in values.items()}


def _everywhere(bucket: Bucket, whole: Callable[[Bucket], None]) -> None:
    """Gather each row on all ranks, which all step it: for tensors that several dimensions of a mesh divide."""
    everything = gathered(bucket)
    with everything.shaped() as shaped:
        whole(shaped)
    for row, full in zip(bucket.rows, everything.rows, strict=True):
        for tensor, value in zip(row.written, full.written, strict=True):
            if cuts(tensor):
                local(tensor).copy_(part_of(value, tensor.device_mesh, tensor.placements))


def gathered(bucket: Bucket) -> Bucket:
    """The bucket with whole tensors, on every rank."""
    rows = [row.map(lambda t: whole_of(t) if cuts(t) else local(t)) for row in bucket.rows]
    return Bucket(bucket.plan, rows, bucket.scalars, bucket.seeds)


def _assign(rows: list[TensorSlots], ranks: int) -> list[list[int]]:
    """The rows by the rank that owns them."""
    owned: list[list[int]] = [[] for _ in range(ranks)]
    for i, owner in enumerate(owners_of((row.param.numel() for row in rows), ranks)):
        owned[owner].append(i)
    return owned


def _dim(tensor: Tensor) -> int:
    """The dimension in which a tensor is divided."""
    (dim,) = cuts(tensor)
    return dim


def _part_shape(tensor: Tensor, ranks: Sequence[int], rank: int) -> torch.Size:
    shape = list(tensor.shape)
    shape[_dim(tensor)] = span(shape[_dim(tensor)], len(ranks), rank)[1]
    return torch.Size(shape)


def _part(value: Tensor, tensor: Tensor, ranks: Sequence[int], rank: int) -> Tensor:
    """What a rank has of a value for `tensor`: its part, or all of it."""
    if not cuts(tensor):
        return value
    dim = _dim(tensor)
    return value.narrow(dim, *span(value.shape[dim], len(ranks), rank))


def exchange(
    outgoing: list[list[Tensor]],
    incoming: list[list[tuple[torch.Size, torch.dtype]]],
    group: ProcessGroup,
    device: torch.device,
) -> _Arrival:
    """Begin to send `outgoing[r]` to each rank r, in one all-to-all.

    Args:
        outgoing: tensors of any shapes and dtypes.
        incoming: the shapes and dtypes of what each rank sends here.
        group: the ranks.
        device: of all tensors.

    Returns:
        What waits for that, and gives what each rank sent.
    """
    sent = packed([t for tensors in outgoing for t in tensors], device)
    into = [sum(length(*kind) for kind in kinds) for kinds in incoming]
    received = torch.empty(sum(into), dtype=torch.uint8, device=device)
    work = dist.all_to_all_single(
        received,
        sent,
        into,
        [sum(length(t.shape, t.dtype) for t in tensors) for tensors in outgoing],
        group=group,
        async_op=True,
    )

    def arrived(sent: Tensor = sent) -> list[list[Tensor]]:
        work.wait()
        return [unpacked(part, kinds) for part, kinds in zip(received.split(into), incoming, strict=True)]

    return arrived
