"""Numbers that an optimizer carries from step to step, such as Prodigy's estimate of the distance to the solution."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import checks
from hfoptim.engine.distributed import flattened
from hfoptim.engine.precision import precise
from hfoptim.engine.rule import Group

# Where reading a number back does not make the host wait: there it is kept as Python's own, else as a 0-d tensor.
HOST = ("cpu",)

# (state, totals, group) -> new values by name
Advance = Callable[[Group, Mapping[str, Tensor], Group], Mapping[str, Any]]


@dataclass(frozen=True)
class RunState:
    """Numbers of a whole run, advanced once per step before any parameter moves. Declared on an optimizer's class.

    They lie in the parameter groups under their names: saved, loaded and copied with them, read there by `per_step`,
    and `per_step_options` without being listed.

    Args:
        init: name -> first value: a bool, an int for a count, else a float; or a function of the options that gives it.
        advance: `(state, totals, group) -> {name: number or 0-d tensor}`, pure: new values of the run state, and of
            other entries of the group that move, such as lr. What the group has no entry for reaches the `per_step` of
            the group's rules, by name, in this step alone. No number may be read from a tensor. What is a tensor here
            is a number in the group and for `per_step` where reading it costs nothing, which is on a CPU.
            state: the values so far; floats as 0-d tensors like the totals, where there are any.
            totals: those named below, and `loss` if the optimizer needs it, as 0-d tensors in double precision (in
                float32 on devices without it).
            group: the group with its options; where one run state is shared, the first one with the largest lr.
        totals: sums of the rules' probes, over all parameters and ranks, that it is advanced from. Without a gradient
            anywhere there are none, and it stays as it was.
        shared: one for all groups: they hold the same numbers, and a group that joins takes on those of the others.
        common: options that groups which share it must agree in.
        split_by: an option of groups that share none. Where it is true the totals are of the group's own parameters.
    """

    init: Mapping[str, Any]
    advance: Advance
    totals: tuple[str, ...] = ()
    shared: bool = False
    common: tuple[str, ...] = ()
    split_by: str | None = None

    def first(self, options: Group) -> dict[str, Any]:
        """The first values, for a group with these options."""
        return {name: value(options) if callable(value) else value for name, value in self.init.items()}

    def check(self, group: dict[str, Any]) -> None:
        """Raise if a number in a group is not of its kind, and put each there as Python's own. Tensors stay."""
        for name, first in self.init.items():
            if name not in group or isinstance(group[name], Tensor):
                continue
            if isinstance(first, bool):
                checks.flag(name, group[name])
            elif isinstance(first, int):
                group[name] = checks.integer(name, group[name], 0)
            else:
                group[name] = checks.plain(group[name])

    def join(self, group: dict[str, Any], first: Group, owner: str) -> None:
        """Give a group that joins the numbers of the first one, if they are shared.

        Raises:
            ValueError: it disagrees in an option of which there is one.
        """
        if not self.shared:
            return
        for name in self.common:
            if group[name] != first[name]:
                raise ValueError(
                    f"{name}={group[name]!r} in one group and {first[name]!r} in another: {owner} makes one estimate "
                    f"for all groups, so they must agree"
                )
        group.update({name: first[name] for name in self.init})

    def step(
        self,
        groups: Sequence[dict[str, Any]],
        totals: Mapping[str, Tensor],
        loss: Any = None,
        number: Callable[[Tensor], Any] = precise,
    ) -> dict[int, dict[str, Any]]:
        """Advance the numbers in the groups.

        Args:
            groups: all parameter groups.
            totals: sums over the parameters that this process knows to be divided among ranks.
            loss: the loss of the step, if the optimizer needs it.
            number: makes of a total what it is advanced from: a tensor in double precision, or a symbol of one.

        Returns:
            What the `per_step` of each group is to be handed, by the group's id.
        """
        if not self.init:
            return {}
        seen: dict[str, Any] = {}
        if self.split_by is not None:
            return self._step_split(groups, totals, loss, number)
        if self.totals:
            totals = flattened.sum_over_ranks(groups, totals, self.totals)
            if not totals.keys() >= {*self.totals}:
                return {}
            seen = {name: number(totals[name]) for name in self.totals}
        if not self.shared:
            # DeepSpeed steps one group at a time, and leaves the others without parameters meanwhile.
            return {id(group): _put(self._advanced(group, seen, loss), [group]) for group in groups if group["params"]}
        rates = [float(group["lr"]) for group in groups if group["lr"] is not None]
        found = _put(self._advanced({**groups[0], "lr": max(rates, default=None)}, seen, loss), groups)
        return dict.fromkeys(map(id, groups), found)

    def naming(self, groups: Sequence[Group]) -> Callable[[Group, str], str]:
        """The names of totals, from a group and the name of its sum."""
        if self.split_by is None:
            return lambda group, name: name
        places = {id(group): place for place, group in enumerate(groups)}
        return lambda group, name: f"{name}.{places[id(group)]}"

    def _step_split(
        self, groups: Sequence[dict[str, Any]], totals: Mapping[str, Tensor], loss: Any, number: Callable[[Tensor], Any]
    ) -> dict[int, dict[str, Any]]:
        """`step`, where each group may have totals of its own."""
        named = self.naming(groups)
        names = [named(group, name) for group in groups for name in self.totals]
        totals = flattened.sum_over_ranks(groups, totals, names)
        own: dict[int, dict[str, Any]] = {}
        whole: dict[str, Any] = {}
        for group in groups:
            if named(group, self.totals[0]) in totals:
                found = {name: number(totals[named(group, name)]) for name in self.totals}
                own[id(group)] = found
                whole = {name: whole[name] + value if whole else value for name, value in found.items()}
        split = str(self.split_by)
        seen = {id(group): own.get(id(group), {}) if group[split] else whole for group in groups}
        return {
            id(group): _put(self._advanced(group, seen[id(group)], loss), [group])
            for group in groups
            if seen[id(group)]
        }

    def _advanced(self, group: Group, totals: Mapping[str, Any], loss: Any) -> dict[str, Any]:
        state = {name: group[name] for name in self.init}
        if loss is not None:
            totals = {**totals, "loss": signed(loss, group)}
        if totals:
            one = next(iter(totals.values()))
            state = {name: value if isinstance(value, int) else _like(one, value) for name, value in state.items()}
        return {name: _on_host(value) for name, value in self.advance(state, totals, group).items()}


def signed(loss: Any, group: Group) -> Any:
    """The loss that goes with a group's gradients, which are negated under `maximize`."""
    return -loss if group["maximize"] else loss


def _unchanged(state: Group, totals: Mapping[str, Tensor], group: Group) -> Mapping[str, Any]:
    return {}


NO_RUN_STATE = RunState({}, _unchanged)


def _put(found: dict[str, Any], groups: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Put new values into the groups that have an entry for them; the others."""
    for group in groups:
        group.update({name: value for name, value in found.items() if name in group})
    return {name: value for name, value in found.items() if name not in groups[0]}


def _like(one: Any, value: Any) -> Any:
    """A number as a tensor like another, made on its device; as a symbol, where the other is one."""
    if not isinstance(one, Tensor):
        return one.like(value)
    return value.to(one) if isinstance(value, Tensor) else torch.full_like(one, value)


def _on_host(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) and value.device.type in HOST else value
