"""One step of one bucket in the making: its rows, the state they need, the sums it starts from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import points, storage
from hfoptim.engine.backends.backend import Backend
from hfoptim.engine.bucket import Bucket
from hfoptim.engine.counters import Counters
from hfoptim.engine.distributed import dtensor, sharded
from hfoptim.engine.distributed.owners import stepped_elsewhere
from hfoptim.engine.plan import Plan, option_scalars
from hfoptim.engine.rule import Group, Scope
from hfoptim.engine.tensor_slots import TensorSlots


@dataclass
class BucketStep:
    """A bucket with what it takes to step it: its group, the step's number, its backend and its step counters."""

    group: dict[str, Any]
    t: int
    backend: Backend
    bucket: Bucket
    groups: dtensor.Groups
    whole: bool
    # Whether its gradients are.
    sparse: bool = False
    # Whether its tensors are flattened parts, and sums over the whole are of all ranks.
    by_sums: bool = False
    params: list[Tensor] = field(default_factory=list)
    steps: list[Tensor] = field(default_factory=list)
    ordinals: list[int] = field(default_factory=list)
    # Of plain tensors that are stepped again and again.
    counters: Counters | None = None

    def __post_init__(self) -> None:
        # A bucket of its own for the probe, for which a backend may work out something, too.
        self._probed = Bucket(self.bucket.plan, self.bucket.rows)
        # The bucket by round, where its results are sent in rounds.
        self._parts: dict[int, tuple[Bucket, list[int]]] | None = None

    @property
    def elsewhere(self) -> bool:
        """Whether another rank steps its tensors."""
        return self.bucket.plan.rule is stepped_elsewhere

    def advance(self) -> None:
        """Go on to the next step with the same rows, of plain tensors."""
        self.t += 1
        if self.bucket.plan.ordered:
            self.bucket.seeds = [storage.row_seed(self.t, ordinal) for ordinal in self.ordinals]

    def draw(self, states: Mapping[Tensor, Mapping[str, Tensor]]) -> None:
        """Draw what state is due to be drawn again, from the optimizer's."""
        for name, due in self.bucket.plan.rule.redrawn.items():
            if due(self.t, self.group):
                runs, seeds = [], []
                for param, ordinal in zip(self.params, self.ordinals, strict=True):
                    state = states[param][name]
                    run = _run_of(state)
                    if run is None:
                        _draw(state, storage.drawing_seed(self.t, ordinal))
                    else:
                        runs.append(run[0])
                        seeds.append(storage.drawing_seed(self.t, ordinal, run[1]))
                self.backend.draw(runs, seeds)

    def count(self) -> None:
        """Advance the step counters: the step is taken."""
        if self.counters is not None:
            self.counters.set(self.t)
        else:
            torch._foreach_add_(self.steps, 1.0)

    def probed(self, scalars: dict[str, Any]) -> Bucket:
        """The bucket that the rule's probe is called with."""
        self._probed.scalars = scalars
        return self._probed

    @cached_property
    def _has_empty(self) -> bool:
        return not all(row.param.numel() for row in self.bucket.rows)

    def in_round(self, number: int, round_of: Mapping[Tensor, int]) -> Bucket | None:
        """What of the bucket is stepped in a round; None for nothing.

        Args:
            number: of the round.
            round_of: that of each parameter; the same for all steps of this bucket.
        """
        if self._parts is None:
            rounds: dict[int, list[int]] = {}
            for i, param in enumerate(self.params):
                rounds.setdefault(round_of[param], []).append(i)
            self._parts = {number: (self.bucket.chosen(rows), rows) for number, rows in rounds.items()}
        if number not in self._parts:
            return None
        part, rows = self._parts[number]
        part.scalars = self.bucket.scalars
        part.seeds = [self.bucket.seeds[i] for i in rows] if self.bucket.seeds else []
        return part.occupied()

    def occupied(self) -> Bucket:
        """The bucket without parameters that have no entries, such as empty parts of sharded ones."""
        return self.bucket.occupied() if self._has_empty else self.bucket

    def add(self, own: Tensor, row: TensorSlots, step: Tensor, ordinal: int) -> None:
        self.params.append(own)
        self.ordinals.append(ordinal)
        param = row.param
        if dtensor.is_dtensor(param) and not self.whole:
            row = row.map(dtensor.local)
        if param.is_complex():
            row = row.map(lambda t: torch.view_as_real(t) if t.is_complex() else t)
        self.bucket.rows.append(row)
        if self.bucket.plan.ordered:
            start = 0 if self.whole else dtensor.start(param)
            self.bucket.seeds.append(storage.row_seed(self.t, ordinal, start))
        self.steps.append(step)


def row_of(plan: Plan, param: Tensor, grad: Tensor, state: dict[str, Any]) -> TensorSlots:
    """A parameter's tensors; DTensors where it is sharded."""
    # Detached: a view of a parameter would require a gradient, which a kernel is not compiled for.
    return plan.slots([param.detach(), grad.detach(), *(state[key] for key in plan.keys)])


def ensure_state(plan: Plan, param: Tensor, state: dict[str, Any], ordinal: int, position: int) -> dict[str, Any]:
    """Create what a parameter's state lacks: at its first step, or after an option that needs more state changed.

    Args:
        plan, param: the parameter's.
        state: what there is of it.
        ordinal: the parameter's place among those of all groups, by which random numbers are drawn.
        position: its place in its group.
    """
    if param.is_complex() and plan.scope is not Scope.ELEMENT:
        raise TypeError(f"{plan.rule.name} works on whole tensors and does not take complex parameters")
    if "step" not in state:
        state["step"] = torch.zeros((), dtype=torch.float32, device="cpu")
    dtype = storage.exact_dtype(param.dtype)
    for name, kept in zip(plan.rule.state, plan.storage, strict=True):
        if name not in state:
            owned, of_values = dtensor.at_owner(plan.rule, param), plan.rule.state[name].of_values
            for key, init in storage.inits(kept, plan.rule, name).items():
                state[key] = dtensor.new_state(init, param, dtype, owned, of_values)
            if plan.rule.state[name].placed:
                state[name].fill_(position)
            if plan.rule.state[name].drawn:
                _draw(state[name], storage.row_seed(0, ordinal))
        elif not storage.fits(kept, state[name], plan.rule.shape_of(name, param.shape)):
            state.update(dtensor.converted(kept, plan.rule, name, state, param))
            if not kept.bits:
                state.pop(storage.scale_name(name), None)
    storage.fit_residual(plan.rounding, state)
    residual = plan.rounding.residual
    if residual and residual not in state:
        dtype = plan.rounding.remainder or param.dtype
        state[residual] = torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)
    return state


def _draw(state: Tensor, seed: int) -> None:
    """Fill a state with numbers of a standard normal distribution."""
    points.reals(state).copy_(points.drawn(state, seed, state.dtype.to_real()))


def _run_of(state: Tensor) -> tuple[Tensor, int] | None:
    """What this rank has of a state, as real numbers that follow one another, and where they begin; None where not so.

    Numbers of a normal distribution go by their index: those of a run need none of the others.
    """
    start = 0
    if dtensor.is_dtensor(state):
        cuts = dtensor.cuts(state)
        if any(dim != -state.ndim or len(cut.groups) > 1 for dim, cut in cuts.items()):
            return None
        start = dtensor.start(state)
    own = points.reals(state)
    start *= 2 if state.is_complex() else 1
    return (own, start) if own.is_contiguous() else None


def placed(scalars: dict[str, Any], bucket: Bucket) -> dict[str, Any]:
    """The scalars for a bucket, with tensors on its device and in what it computes in: sums of all tensors have one."""
    device, dtype = bucket.device, bucket.plan.dtype
    return {name: value.to(device, dtype) if isinstance(value, Tensor) else value for name, value in scalars.items()}


def probe_scalars(work: list[BucketStep]) -> list[dict[str, Any]]:
    """What the rule's probe is called with, for each bucket; nothing without one."""
    found: list[dict[str, Any]] = []
    for item in work:
        plan, probe = item.bucket.plan, item.bucket.plan.rule.probe
        found.append({})
        if probe is not None:
            found[-1] |= {**option_scalars(plan, item.group), **probe.per_step(item.t, item.group)}
    return found


def totals_of(
    work: list[BucketStep],
    scalars: list[dict[str, Any]],
    arithmetic: Any = None,
    named: Callable[[Group, str], str] = lambda group, name: name,
) -> dict[str, Any]:
    """The rules' probes, summed over all tensors and ranks, on the device of the first of them.

    Args:
        work: the buckets.
        scalars: what `probe_scalars` gives.
        arithmetic: what goes on computing with the sums, if backends may give symbols of its.
        named: the name of the total that a sum over parameters of a group is part of, from the group and the sum's.
    """
    if any(item.groups or item.whole for item in work):
        arithmetic = None  # ranks exchange tensors
    sums: dict[dtensor.Groups, dict[str, Any]] = {}
    for item, numbers in zip(work, scalars, strict=True):
        probe = item.bucket.plan.rule.probe
        if probe is None:
            continue
        bucket, groups = item.probed(placed(numbers, item.bucket)), item.groups
        if item.whole:
            # Clipping by units comes before the sums, and may need all parts of a tensor.
            over_ranks = probe.of_tensors or item.bucket.plan.changes_by_reductions
            for found, left in sharded.evaluate(bucket, probe.fn, item.backend.evaluate, over_ranks):
                values = {named(item.group, name): torch.stack(each).sum() for name, each in found.items()}
                add_sums(sums.setdefault(left, {}), values)
            continue
        with bucket.shaped() as bucket:
            for values in item.backend.probe(bucket, arithmetic):
                of = arithmetic.of if arithmetic is not None else lambda value: value
                add_sums(sums.setdefault(groups, {}), {named(item.group, name): of(v) for name, v in values.items()})
    return dtensor.sum_over_ranks(sums)


def add_sums(totals: dict[str, Any], values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if name in totals:
            value = totals[name] + (value.to(totals[name].device) if isinstance(value, Tensor) else value)
        totals[name] = value
