"""Steps of flattened parameters by rules that look at more than single entries: with the shapes that they have.

Each parameter is one of three kinds. Of what steps entry by entry each rank steps the entries that it has; so it does
where a rule takes sums over its tensor, with one all-reduce for each sum of the rule. Anything else goes to an owner:
it is put together on one rank, stepped there as on one process, and comes back, with two all-to-alls for all of them.
State lies where its parameter is stepped. Sums over all parameters are one all-reduce, however many there are.

DeepSpeed steps one group after the other. Rules may look at all groups, so the step is taken when the last has its
gradients; the weights of the others are then written into the model here, as DeepSpeed does it after each.
"""

from __future__ import annotations

import enum
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch import distributed as dist

from hfoptim.engine import bucket_cache
from hfoptim.engine.distributed import segment_lists
from hfoptim.engine.distributed.dtensor import added_up
from hfoptim.engine.distributed.loads import owners_of
from hfoptim.engine.distributed.segments import Layout, Segment
from hfoptim.engine.distributed.sharded import exchange
from hfoptim.engine.plan import Plan
from hfoptim.engine.rule import Scope

if TYPE_CHECKING:
    from hfoptim.engine.bucket import Bucket
    from hfoptim.engine.optimizer import EngineOptimizer

Group = dict[str, Any]
# Of flat tensors; None where one has none.
Gradients = dict[Tensor, Tensor | None]

# Options that are to sum over ranks, and to divide matrices among them: both are done here.
_ANSWERED = frozenset({"fsdp_in_use", "distribute_matrices"})
# What a state_dict has beside those of one process.
KEY = "flattened"


class Elsewhere(RuntimeError):
    """A step has failed on another rank, which has told all."""


class Kind(enum.Enum):
    """How a parameter is stepped."""

    FROZEN = "not at all: the flattener has left it out"
    ENTRIES = "each rank steps its entries"
    SUMS = "each rank steps its entries, and sums over the tensor are of all ranks"
    OWNED = "one rank steps all of it"


@dataclass(eq=False)
class Member:
    """A parameter: its segment, and what stands for it in the groups while a step is taken.

    Args:
        segment: None for one that is not trained.
        kind: how it is stepped.
        whole: a tensor of its shape: all of it on its owner; elsewhere without memory.
        owner: the rank that steps it, if one does.
    """

    segment: Segment | None
    kind: Kind
    whole: Tensor
    owner: int = -1


class Segmented:
    """What an optimizer needs to step parameters that somebody has flattened.

    Args:
        optimizer: the optimizer; it has not stepped yet.
        name: of what has flattened the parameters.
        groups: all its parameter groups.
        layout: where the parameters lie.
        deferred: whether groups are stepped one by one, so that the model's weights are written here.
    """

    def __init__(
        self, optimizer: EngineOptimizer, name: str, groups: Sequence[Group], layout: Layout, deferred: bool
    ) -> None:
        self.name, self.layout, self.deferred = name, layout, deferred
        self.ranks, self.rank = dist.get_world_size(layout.process_group), dist.get_rank(layout.process_group)
        self.state: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)
        self._last_step: bucket_cache.LastStep | None = None
        self._checked = self._stepped = False
        # The names of the sums over all parameters, and for which step they were found out.
        self._names: tuple[Any, list[str]] | None = None
        self._key: Any = None
        self._options: list[list[Any]] = []
        self._rows: list[list[Member]] = []
        self._arrange(optimizer, groups)
        self.flats = {_flat(member) for row in self._rows for member in row if member.segment is not None}
        # What is stepped part by part -> what stands for it in the groups.
        parts = [*self._of(Kind.ENTRIES), *self._of(Kind.SUMS)]
        self.wholes = {_kept(member): member.whole for member in parts}
        # How many entries the whole has, of what goes by sums.
        self._sizes = {_kept(member): member.whole.numel() for member in self._of(Kind.SUMS)}

    # -- what is stepped how --------------------------------------------------------------------------------------

    def _arrange(self, optimizer: EngineOptimizer, groups: Sequence[Group]) -> None:
        """Find out how each parameter is stepped, and by whom: the same on every rank."""
        self._rows = [
            [Member(segment, Kind.FROZEN, _stand_in(segment)) for segment in segments] for segments in self.layout.rows
        ]
        with self._in_place_of_flat(optimizer, groups):
            kinds = self._kinds(optimizer, optimizer.param_groups)
            self._options = bucket_cache.options_of(optimizer.param_groups, optimizer.changing_options)
            members = [member for row in self._rows for member in row]
            for member, kind in zip(members, kinds, strict=True):
                member.kind = kind
            together = self._together(optimizer, optimizer.param_groups)
        sized = [(sum(member.whole.numel() for member in one), one) for one in together]
        sized.sort(key=lambda each: -each[0])
        for (_, one), owner in zip(sized, owners_of((size for size, _ in sized), self.ranks), strict=True):
            for member in one:
                member.owner = owner
                if owner == self.rank:
                    member.whole = torch.zeros(member.whole.shape, dtype=member.whole.dtype, device=member.whole.device)

    def _kinds(self, optimizer: EngineOptimizer, groups: Sequence[Group]) -> list[Kind]:
        return [
            Kind.FROZEN if member.segment is None else _kind(optimizer.plan_for(member.whole, group))
            for row, group in zip(self._rows, groups, strict=True)
            for member in row
        ]

    def _together(self, optimizer: EngineOptimizer, groups: Sequence[Group]) -> list[list[Member]]:
        """The parameters that owners step, those together of which one is to know of the other."""
        sets = {member.whole: [member] for member in self._of(Kind.OWNED)}
        for row, group in zip(self._rows, groups, strict=True):
            for member in row:
                if member.kind is Kind.OWNED and optimizer.plan_for(member.whole, group).rule.partner is not None:
                    first, second = sets[member.whole], sets[optimizer.partner_of(member.whole, group)]
                    if first is not second:
                        first += second
                        sets.update((other.whole, first) for other in second)
        return list({id(one): one for one in sets.values()}.values())

    def _of(self, kind: Kind) -> list[Member]:
        return [member for row in self._rows for member in row if member.kind is kind]

    @contextmanager
    def _in_place_of_flat(
        self, optimizer: EngineOptimizer, groups: Sequence[Group], stepped: bool = False
    ) -> Iterator[None]:
        """Let an optimizer have parameters with their shapes in its groups, and the state of these.

        Args:
            optimizer: the optimizer.
            groups: all its groups.
            stepped: whether to give it what it keeps state for, where that is a part, in place of the whole.
        """
        inner: Any = optimizer
        before = {name: getattr(inner, name) for name in ("param_groups", "state", "_last_step", "_given")}
        flat = [
            {"params": group["params"], **{name: group[name] for name in _ANSWERED & group.keys()}} for group in groups
        ]
        for group, row in zip(groups, self._rows, strict=True):
            group["params"] = [_kept(member) if stepped else member.whole for member in row]
            group.update(dict.fromkeys(_ANSWERED & group.keys(), False))
        inner.param_groups, inner.state = list(groups), self.state
        inner._last_step, inner._given, inner._segmented, inner._within = self._last_step, None, None, self
        try:
            yield
        finally:
            now = list(inner.param_groups)  # loading makes new ones
            self.state, self._last_step = inner.state, inner._last_step
            for group, values in zip(now, flat, strict=True):
                group.update(values)
            if any(own is not other for own, other in zip(now, groups, strict=True)):
                before["param_groups"] = now
            for name, value in before.items():
                setattr(inner, name, value)
            inner._segmented, inner._within = self, None
            if before["_given"] is not None:
                before["_given"].replace(now)

    # -- a step ---------------------------------------------------------------------------------------------------

    def step(self, optimizer: EngineOptimizer, groups: Sequence[Group], gradients: Gradients) -> None:
        """Take a step.

        Args:
            optimizer: the optimizer, which may have some of its groups at the moment.
            groups: all of them.
            gradients: of all flat tensors.
        """
        if not self._checked:
            self._check_weights()
            self._checked = True
        with self._in_place_of_flat(optimizer, groups):
            self._check_options(optimizer)
        present = self._present(gradients)
        owned = [member for member in self._of(Kind.OWNED) if id(member) in present]
        found = self._gather(owned, gradients)
        entries: list[tuple[int, Tensor, Tensor]] = []
        for index, row in enumerate(self._rows):
            for member in row:
                if id(member) not in present:
                    continue
                assert member.segment is not None
                if member.kind is Kind.SUMS or (member.kind is Kind.ENTRIES and member.segment.part.numel()):
                    entries.append((index, member.segment.part, _gradient(member.segment, gradients)))
                elif member.owner == self.rank:
                    entries.append((index, member.whole, found[member.whole]))
        options = self._options, frozenset(present)
        if self._names is not None and self._names[0] != options:
            self._names = None
        self._key = options
        with self._in_place_of_flat(optimizer, groups):
            self._all_or_none(optimizer, entries)
        self._scatter(owned)
        self._into_model(member for row in self._rows for member in row if id(member) in present)

    def _all_or_none(self, optimizer: EngineOptimizer, entries: list[tuple[int, Tensor, Tensor]]) -> None:
        """Take a step; in the first one, raise everywhere what is raised anywhere: the others would wait for ever."""
        try:
            optimizer._step(entries)
        except Elsewhere:
            raise
        except Exception as error:
            if self._names is None or not self._stepped:
                self._agree([], error)
            raise
        if not self._stepped:
            self._agree([], None)
            self._stepped = True

    def _agree(self, names: list[str], error: Exception | None) -> list[list[str]]:
        """Give the names of every rank, and raise a RuntimeError if another has failed."""
        said: list[Any] = [None] * self.ranks
        own = names, None if error is None else f"{type(error).__name__}: {error}"
        dist.all_gather_object(said, own, group=self.layout.process_group)
        for rank, (_, failure) in enumerate(said):
            if failure is not None and error is None:
                raise Elsewhere(f"the step of rank {rank} failed: {failure}")
        return [each for each, _ in said]

    def _check_weights(self) -> None:
        """Raise a RuntimeError if the flat memory has not the weights that the model has in these places.

        DeepSpeed copies each part into the model after its step, so that this is where it puts them itself.
        """
        wrong = 0
        for row in self._rows:
            for member in row:
                if member.segment is not None and member.segment.model is not None:
                    there = member.segment.model()
                    wrong += not torch.equal(member.segment.part.to(there.dtype), there)
        counted = torch.tensor(wrong, device=self._device)
        dist.all_reduce(counted, group=self.layout.process_group)
        if int(counted):
            raise RuntimeError(
                f"{int(counted)} parameters are not where {self.name} was thought to have put them in its flat parts; "
                f"take FSDP2 (fully_shard) or DDP"
            )

    def _check_options(self, optimizer: EngineOptimizer) -> None:
        options = bucket_cache.options_of(optimizer.param_groups, optimizer.changing_options)
        if options == self._options:
            return
        kinds = self._kinds(optimizer, optimizer.param_groups)
        if kinds != [member.kind for row in self._rows for member in row]:
            raise ValueError(
                f"an option of {type(optimizer).__name__} was changed between steps so that parameters would be "
                f"stepped by other ranks, and {self.name} has flattened them; give it from the start"
            )
        self._options = options

    def _present(self, gradients: Gradients) -> set[int]:
        """Which members have a gradient, by id: those that have one on any rank."""
        members = [member for row in self._rows for member in row if member.segment is not None]
        if self.deferred:
            return {id(member) for member in members if gradients[_flat(member)] is not None}
        there = [gradients[_flat(member)] is not None for member in members]
        flags = torch.tensor(there, dtype=torch.uint8, device=self._device)
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self.layout.process_group)
        return {id(member) for member, flag in zip(members, flags.tolist(), strict=True) if flag}

    @property
    def _device(self) -> torch.device:
        return next(member.whole.device for row in self._rows for member in row if member.segment is not None)

    def _gather(self, owned: list[Member], gradients: Gradients | None) -> dict[Tensor, Tensor]:
        """Put the parameters of each owner together there; gives their gradients, by what holds them.

        Args:
            owned: which parameters.
            gradients: of the flat tensors; None: the parameters alone.
        """
        if not owned:
            return {}
        outgoing: list[list[Tensor]] = [[] for _ in range(self.ranks)]
        for member in owned:
            segment = member.segment
            assert segment is not None
            if segment.part.numel():
                outgoing[member.owner].append(segment.part.detach())
                if gradients is not None:
                    outgoing[member.owner].append(_gradient(segment, gradients))
        mine = [member for member in owned if member.owner == self.rank]
        incoming = [
            [
                (torch.Size((member.segment.spans[rank][1],)), dtype)
                for member in mine
                if member.segment is not None and member.segment.spans[rank][1]
                for dtype in [member.whole.dtype] * (1 if gradients is None else 2)
            ]
            for rank in range(self.ranks)
        ]
        received = [iter(each) for each in exchange(outgoing, incoming, self.layout.process_group, self._device)()]
        found: dict[Tensor, Tensor] = {}
        for member in mine:
            assert member.segment is not None
            whole, gradient = member.whole.view(-1), torch.empty_like(member.whole)
            for (start, length), pieces in zip(member.segment.spans, received, strict=True):
                if length:
                    whole.narrow(0, start, length).copy_(next(pieces))
                    if gradients is not None:
                        gradient.view(-1).narrow(0, start, length).copy_(next(pieces))
            found[member.whole] = gradient
        return found

    def _scatter(self, owned: list[Member]) -> None:
        """Send each rank its parts of what the owners have stepped."""
        if not owned:
            return
        outgoing = [
            [
                member.whole.view(-1).narrow(0, *member.segment.spans[rank])
                for member in owned
                if member.owner == self.rank and member.segment is not None and member.segment.spans[rank][1]
            ]
            for rank in range(self.ranks)
        ]
        wanted = [
            [member.segment.part for member in owned if member.owner == rank and member.segment is not None]
            for rank in range(self.ranks)
        ]
        wanted = [[part for part in parts if part.numel()] for parts in wanted]
        incoming = [[(part.shape, part.dtype) for part in parts] for parts in wanted]
        returned = exchange(outgoing, incoming, self.layout.process_group, self._device)()
        for parts, values in zip(wanted, returned, strict=True):
            for part, value in zip(parts, values, strict=True):
                part.detach().copy_(value)

    def _into_model(self, members: Iterator[Member]) -> None:
        for member in members:
            if member.segment is not None and member.segment.model is not None:
                member.segment.model().copy_(member.segment.part)

    def goes_by_sums(self, part: Tensor) -> bool:
        """Whether a part is stepped with sums over the whole tensor."""
        return part in self._sizes

    def step_by_sums(self, bucket: Bucket, params: Sequence[Tensor]) -> None:
        """Step the parts of a bucket of these parameters, which go by sums; on every rank at once."""
        sizes = [self._sizes[param] for param in params]
        segment_lists.step(bucket, sizes, self.layout.process_group)

    def summed(self, totals: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sums over the parameters of all ranks, from those of this one; called once in each step."""
        if self._names is None:
            self._names = self._key, sorted({name for names in self._agree(list(totals), None) for name in names})
        names = self._names[1]
        if not names:
            return dict(totals)
        return added_up(totals, names, self._device, self.layout.process_group)

    # -- modes and checkpoints ------------------------------------------------------------------------------------

    def switch(self, optimizer: EngineOptimizer, groups: Sequence[Group], switch: Callable[[], None]) -> None:
        """Let an optimizer put other weights into the parameters, and these into the model of every rank."""
        owned = self._of(Kind.OWNED)
        self._gather(owned, None)
        with self._in_place_of_flat(optimizer, groups, stepped=True):
            switch()
        self._scatter(owned)
        self._into_model(member for row in self._rows for member in row)
        self.layout.refresh()

    def state_dict(
        self, optimizer: EngineOptimizer, groups: Sequence[Group], make: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """What this rank has of the state, so that it loads into the same ranks again."""
        with self._in_place_of_flat(optimizer, groups, stepped=True):
            made = make()
        return {**made, "state": {}, KEY: {"ranks": self.ranks, "rank": self.rank, "state": made["state"]}}

    def load(
        self,
        optimizer: EngineOptimizer,
        groups: Sequence[Group],
        state_dict: Mapping[str, Any],
        load: Callable[[dict[str, Any]], None],
    ) -> None:
        """Take over what `state_dict` has made.

        Raises:
            ValueError: it is of other ranks, or not of flattened parameters.
        """
        saved = state_dict.get(KEY)
        if saved is None and any(state_dict["state"].values()):
            raise ValueError(
                f"the state_dict is of parameters with their shapes, and {self.name} has flattened them; load it "
                f"without"
            )
        if saved is not None and (saved["ranks"], saved["rank"]) != (self.ranks, self.rank):
            raise ValueError(
                f"the state_dict is of rank {saved['rank']} of {saved['ranks']}, here is rank {self.rank} of "
                f"{self.ranks}: what of the state lies where differs, so that it goes on with as many ranks only"
            )
        state = {} if saved is None else saved["state"]
        with self._in_place_of_flat(optimizer, groups, stepped=True):
            load({**{key: value for key, value in state_dict.items() if key != KEY}, "state": state})


def _kind(plan: Plan) -> Kind:
    if segment_lists.takes(plan):
        return Kind.SUMS
    rule = plan.rule
    alone = plan.scope is Scope.ELEMENT and rule.shape is None and rule.partner is None and not plan.ordered
    return Kind.ENTRIES if alone and segment_lists.are_parts(rule) else Kind.OWNED


def _stand_in(segment: Segment | None) -> Tensor:
    """A tensor of the parameter's shape without memory."""
    if segment is None:
        return torch.empty(0)
    return torch.zeros((), dtype=segment.part.dtype, device=segment.part.device).expand(segment.shape)


def _kept(member: Member) -> Tensor:
    """What state is kept for."""
    if member.kind in (Kind.ENTRIES, Kind.SUMS):
        assert member.segment is not None
        return member.segment.part
    return member.whole


def _flat(member: Member) -> Tensor:
    assert member.segment is not None
    return member.segment.flat


def _gradient(segment: Segment, gradients: Gradients) -> Tensor:
    """This rank's entries of a gradient; zeros where it has none and others have."""
    gradient = gradients.get(segment.flat)
    return torch.zeros_like(segment.part.detach()) if gradient is None else segment.of(gradient)
