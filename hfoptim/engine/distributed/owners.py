"""Matrices that every rank has, under data parallelism, divided by work: each is stepped by one rank, its owner.

What a rule of whole matrices computes, every rank would compute again from the same averaged gradients. With
`distribute_matrices=True` the owner alone does, keeps the state alone, and sends the others the new parameter. Owners
follow from shapes and their order, so that all ranks choose the same ones without asking each other. Parameters go out
in rounds, each with one all-gather, or with broadcasts where few ranks have much to send; a round is on its way while
the next one is computed.

Every rank takes part in every round, whatever gradients it has: a gradient that one of them lacks makes none wait.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property
from itertools import chain
from operator import is_
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch import distributed as dist

from hfoptim.engine.distributed.loads import owners_of
from hfoptim.engine.distributed.messages import ALIGNMENT, length, packed, unpacked
from hfoptim.engine.rule import ELEMENT, rule

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# Entries that a rank sends in a round, as a mean, if it is not one parameter. Rounds are there to overlap: the last one
# is waited for, so it should be short, and each costs the start of a collective.
ROUND = 1 << 22
# How long a rank that asks for the whole state waits for the others to do so, too.
MEETING = timedelta(minutes=10)
# Seconds between two looks at who has come.
_EVERY = 0.01

# Its newer name warns of the older one.
_all_gather: Any = getattr(dist, "all_gather_single", None) or getattr(dist, "all_gather_into_tensor", None)
# What waits for the messages of a round, and the memory for those of each rank.
_Sent = tuple[list[Any], list[Tensor]]
# States by the index of their parameter.
_States = dict[int, dict[str, Any]]


@rule(ELEMENT)
def stepped_elsewhere(grad: Any, param: Any, h: Any) -> tuple[Any, ...]:
    """The rule of a parameter that another rank steps: this one counts the steps, and keeps nothing else."""
    raise AssertionError("a parameter of another rank's was to be stepped here")


def ranks_of(group: ProcessGroup | None) -> int:
    """How many ranks there are; 1 where no processes are connected."""
    if not (dist.is_available() and dist.is_initialized()):
        return 1
    return dist.get_world_size(group)


class Owners:
    """Who steps which matrix, in which round.

    Args:
        params: the parameters of each group that has the option, in the optimizer's order.
        matrices: those of them that are divided.
        group: the ranks; None: all.

    Attributes:
        elsewhere: the parameters that other ranks step.
        rounds: for each round the parameters of each rank.
        round_of: the round of each parameter that this rank steps.
    """

    def __init__(
        self, params: list[list[Tensor]], matrices: Sequence[Sequence[Tensor]], group: ProcessGroup | None
    ) -> None:
        self.params, self.group, self.ranks = params, group, ranks_of(group)
        self.rank = dist.get_rank(group) if self.ranks > 1 else 0
        # Group by group, so that one that joins later changes nothing for those that are there.
        order = [param for own in matrices for param in sorted(own, key=lambda p: -p.numel())]
        self.owner = dict(zip(order, owners_of((param.numel() for param in order), self.ranks), strict=True))
        self.elsewhere = {param for param, owner in self.owner.items() if owner != self.rank}
        self.rounds = list(self._rounds())
        self.round_of = {param: i for i, each in enumerate(self.rounds) for param in each[self.rank]}
        self._agreed = False
        # A group for states, and how often they have been gathered.
        self._meeting: ProcessGroup | None = None
        self._meetings = 0

    def are_for(self, params: list[list[Tensor]], group: ProcessGroup | None) -> bool:
        """Whether these are the owners of the same parameters among the same ranks."""
        return (
            group is self.group
            and ranks_of(group) == self.ranks
            and [len(own) for own in params] == [len(own) for own in self.params]
            and all(map(is_, chain(*params), chain(*self.params)))
        )

    def _rounds(self) -> Iterator[list[list[Tensor]]]:
        each: list[list[Tensor]] = [[] for _ in range(self.ranks)]
        filled, largest, device = 0, 0, None
        for param, owner in self.owner.items():
            # Large ones of a kind go together, so that all ranks have about as much to send.
            full = filled + param.numel() > ROUND * self.ranks and (all(each) or 2 * param.numel() < largest)
            if any(each) and (full or param.device != device):
                yield each
                each, filled, largest = [[] for _ in range(self.ranks)], 0, 0
            each[owner].append(param)
            filled, largest, device = filled + param.numel(), max(largest, param.numel()), param.device
        if any(each):
            yield each

    def agree(self) -> None:
        """See, once, that all ranks divide the same parameters.

        Raises:
            RuntimeError: they do not; on every rank.
        """
        if self._agreed:
            return
        found: list[Any] = [None] * self.ranks
        dist.all_gather_object(found, (len(self.owner), self._digest), group=self.group)
        if len(set(found)) > 1:
            raise RuntimeError(
                f"distribute_matrices=True divides matrices that every rank has, and the ranks have other ones, or in "
                f"another order: {', '.join(str(count) for count, _ in found)} matrices; give every rank the same "
                f"parameters, or set optimizer.process_group to the ranks that have the same"
            )
        self._agreed = True

    @cached_property
    def _digest(self) -> str:
        """The same for all that divide the same parameters."""
        text = ";".join(f"{tuple(param.shape)} {param.dtype} {owner}" for param, owner in self.owner.items())
        return hashlib.sha256(text.encode()).hexdigest()

    # -- parameters -------------------------------------------------------------------------------------------------

    def step(self, compute: Callable[[int], None]) -> None:
        """Compute each round, and send what was computed while the next one is.

        Args:
            compute: steps this rank's parameters of a round, given its number.
        """
        on_the_way: list[tuple[int, _Sent]] = []
        failure: BaseException | None = None
        failed: set[int] = set()
        for i in range(len(self.rounds)):
            try:
                if failure is None:
                    compute(i)
            except Exception as error:
                # The others wait for what it sends.
                failure = error
            on_the_way.append((i, self._send(i, failure is not None)))
            if len(on_the_way) > 2:
                failed |= self._receive(*on_the_way.pop(0))
        for each in on_the_way:
            failed |= self._receive(*each)
        if failure is not None:
            raise failure
        if failed:
            ranks = " and ".join(map(str, sorted(failed)))
            raise RuntimeError(
                f"the step failed on rank {ranks}, whose error says why; the matrices that it steps "
                f"(distribute_matrices=True) are as they were, or part of them, and the others are stepped"
            )

    def share(self) -> None:
        """Send every rank the parameters that this one steps, as they are."""
        self.agree()
        self.step(lambda _: None)

    def _send(self, index: int, failed: bool) -> _Sent:
        """Begin to send a round's parameters, and whether this rank failed; and the memory for those of each rank."""
        each = self.rounds[index]
        sizes = [sum(length(param.shape, param.dtype) for param in params) + ALIGNMENT for params in each]
        device = next(param.device for params in each for param in params)
        most, wasted = max(sizes), self.ranks * max(sizes) - sum(sizes)
        alone = wasted > max(4 * ROUND, sum(sizes))
        outgoing = packed([param.detach() for param in each[self.rank]], device, sizes[self.rank] if alone else most)
        outgoing[-1] = failed
        if not alone:
            received = torch.empty(most * self.ranks, dtype=torch.uint8, device=device)
            work = _all_gather(received, outgoing, group=self.group, async_op=True)
            return [work], list(received.chunk(self.ranks))
        # In one all-gather all would send as much as the one that has most.
        works, parts = [], []
        for rank, (params, size) in enumerate(zip(each, sizes, strict=True)):
            mine = rank == self.rank
            parts.append(outgoing if mine else torch.empty(size if params else 0, dtype=torch.uint8, device=device))
            if params:
                root = rank if self.group is None else dist.get_global_rank(self.group, rank)
                works.append(dist.broadcast(parts[-1], root, group=self.group, async_op=True))
        return works, parts

    def _receive(self, index: int, sent: _Sent) -> set[int]:
        """Wait for a round's parameters, and put them in their place: the ranks that failed, as far as can be seen."""
        works, parts = sent
        for work in works:
            work.wait()
        failed = set()
        for rank, (params, part) in enumerate(zip(self.rounds[index], parts, strict=True)):
            if rank != self.rank and params:
                kinds = [(param.shape, param.dtype) for param in params]
                for param, value in zip(params, unpacked(part, kinds), strict=True):
                    param.detach().copy_(value)
                # Elsewhere the host would wait for the device; the rank that failed has raised an error by itself.
                if part.device.type == "cpu" and part[-1]:
                    failed.add(rank)
        return failed

    # -- state ------------------------------------------------------------------------------------------------------

    def whole_state(self, states: _States, indices: Mapping[Tensor, int]) -> _States:
        """The states of all ranks' parameters, on every rank: what other ranks keep comes on the CPU.

        Every rank has to call it. They meet in a group of its own, once all have come: one that asks alone is told so,
        and disturbs no collective of a training that goes on, nor a later meeting.

        Args:
            states: as they are here, by index.
            indices: those of the parameters.

        Raises:
            RuntimeError: another rank did not come in time.
        """
        of_rank: list[list[int]] = [[] for _ in range(self.ranks)]
        for param, owner in self.owner.items():
            of_rank[owner].append(indices[param])
        own = {
            i: {key: (value.shape, value.dtype) if isinstance(value, Tensor) else value for key, value in state.items()}
            for i in of_rank[self.rank]
            if (state := states.get(i))
        }
        kinds: list[Any] = [None] * self.ranks
        with self._met() as group:
            dist.all_gather_object(kinds, own, group=group)
        found = dict(states)
        for rank, described in enumerate(kinds):
            for i, state in described.items():
                found[i] = self._broadcast(states.get(i, {}), state, rank, group)
        return found

    @contextmanager
    def _met(self) -> Iterator[ProcessGroup]:
        """The ranks in a group of their own, on the CPU, for a first collective there.

        Each leaves word of having come: a group, and what is begun in it, is all ranks' or is broken for all.

        Raises:
            RuntimeError: another rank did not come in time.
        """
        ranks = dist.get_process_group_ranks(self.group if self.group is not None else dist.group.WORLD)
        store = dist.distributed_c10d._get_default_store()
        words = {rank: f"hfoptim.Owners/{self._digest}/{self._meetings}/{rank}" for rank in ranks}
        store.set(words[dist.get_rank()], "here")
        try:
            end = time.monotonic() + MEETING.total_seconds()
            while not store.check(list(words.values())):
                if time.monotonic() > end:
                    raise RuntimeError(
                        "the state of an optimizer with distribute_matrices=True lies on several ranks, and "
                        "state_dict() gathers it: call it on every rank, and save on one of them. Another rank did "
                        f"not come within {MEETING.total_seconds():.0f} s"
                    )
                time.sleep(_EVERY)
            if self._meeting is None:
                self._meeting = dist.new_group(ranks, timeout=MEETING, backend="gloo", use_local_synchronization=True)
            yield self._meeting
            # Who has come so far has seen the words of all.
            self._meetings += 1
        finally:
            store.delete_key(words[dist.get_rank()])

    def _broadcast(
        self, own: Mapping[str, Any], kinds: Mapping[str, Any], rank: int, group: ProcessGroup
    ) -> dict[str, Any]:
        """One parameter's state, of the rank that has it."""
        tensors = {key: kind for key, kind in kinds.items() if isinstance(kind, tuple)}
        cpu = torch.device("cpu")
        if rank == self.rank:
            message = packed([own[key].detach().to(cpu) for key in tensors], cpu)
        else:
            message = torch.empty(sum(length(*kind) for kind in tensors.values()), dtype=torch.uint8)
        dist.broadcast(message, dist.get_global_rank(group, rank), group=group)
        if rank == self.rank:
            return dict(own)
        # Each with memory of its own: what is saved of one is not the whole message.
        values = [value.clone() for value in unpacked(message, list(tensors.values()))]
        return {**kinds, **dict(zip(tensors, values, strict=True))}
