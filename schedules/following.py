"""Hyper-parameters besides the learning rate that follow curves: where they lie in the groups, what they may be."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer

from .checks import closest, is_list, plain, whole_number
from .curves import Curve, bind_group

# A curve is tried at so many steps at most when it is given.
_TRIED = 1000


@dataclass(frozen=True)
class Place:
    """Where a number lies in a group: a key, and the place in a tuple if it is in one."""

    key: str
    index: int | None = None

    @property
    def name(self) -> str:
        """The number's own name: ``weight_decay``, ``beta1``, ``eps[0]``."""
        if self.index is None:
            return self.key
        return f"beta{self.index + 1}" if self.key == "betas" else f"{self.key}[{self.index}]"

    def of(self, group: Mapping[str, Any]) -> Any:
        """The number."""
        return group[self.key] if self.index is None else group[self.key][self.index]

    def put(self, group: dict[str, Any], value: float) -> None:
        """Write the number. A tensor is filled in place: replacing it would recompile a compiled step."""
        if isinstance(self.of(group), torch.Tensor):
            self.of(group).fill_(value)
        elif self.index is None:
            group[self.key] = value
        else:
            numbers = list(group[self.key])
            numbers[self.index] = value
            group[self.key] = numbers if isinstance(group[self.key], list) else tuple(numbers)


class Following:
    """One hyper-parameter of some groups, each its initial value times a curve.

    Args:
        optimizer: the optimizer.
        name: a key of the groups; one number of a tuple as ``key[i]``, for ``betas`` also ``beta1``, ``beta2``, ...;
            ``momentum`` is beta1 in groups that have no such key.
        curve: the multiplier as a function of the step.
        groups: the indices of the groups; None for all that have it.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a group has no such number, all of them are 0, or the curve takes it out of its range.
    """

    def __init__(self, optimizer: Optimizer, name: str, curve: Curve, groups: Iterable[int] | None = None) -> None:
        self.curve = curve
        self.places = _places(optimizer, name, groups)
        names = {place.name for place in self.places.values()}
        self.name = names.pop() if len(names) == 1 else name
        initial = {}
        for number, place in self.places.items():
            group = optimizer.param_groups[number]
            current = _checked(f"{place.name} of param group {number}", place.of(group))
            initial[number] = float(group.get(f"initial_{place.name}", current))
        if not any(initial.values()):
            raise ValueError(
                f"{self.name} is 0 in the param groups {[*self.places]}, and a curve multiplies the initial value: "
                f"give the optimizer a {self.name} that is not 0"
            )
        self.start_from(list(initial.values()))
        self._try()
        for number, place in self.places.items():
            # As torch keeps `initial_lr`: a schedule made anew over a loaded optimizer starts from it.
            optimizer.param_groups[number][f"initial_{place.name}"] = initial[number]

    def at(self, step: float) -> dict[int, float]:
        """Return the value in each group at a step, by the group's index.

        Raises:
            ValueError: a value is out of range.
        """
        values = {}
        for (number, place), initial, curve in zip(self.places.items(), self.initial, self._curves, strict=True):
            value = initial * curve(step)
            wrong = _wrong(place, value, initial)
            if wrong:
                raise ValueError(f"{place.name} of param group {number} would be {value:g} at step {step:g}: {wrong}")
            values[number] = value
        return values

    def put(self, optimizer: Optimizer, values: Mapping[int, float]) -> None:
        """Write values into the groups."""
        for number, value in values.items():
            self.places[number].put(optimizer.param_groups[number], value)

    def current(self, optimizer: Optimizer) -> list[float]:
        """Return the values in the groups."""
        return [float(place.of(optimizer.param_groups[number])) for number, place in self.places.items()]

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise a ValueError if a saved state is not of this hyper-parameter."""
        if state["name"] != self.name or list(state["groups"]) != [*self.places]:
            raise ValueError(
                f"the state has a curve for {state['name']} in the param groups {list(state['groups'])}, the schedule "
                f"for {self.name} in {[*self.places]}"
            )
        self._bound(state["initial"])

    def start_from(self, initial: Sequence[float]) -> None:
        """Replace the initial values."""
        self.initial = [float(value) for value in initial]
        self._curves = self._bound(self.initial)

    def _bound(self, initial: Sequence[float]) -> list[Curve]:
        try:
            return [bind_group(self.curve, *each) for each in zip(self.places, initial, strict=True)]
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None

    def _try(self) -> None:
        """Raise now for what the curve does later, as far as it can be seen."""
        length = self.curve.length
        end = int(length) if length is not None and math.isfinite(length) else _TRIED
        for step in sorted({*range(0, end + 1, max(1, end // _TRIED)), end}):
            self.at(step)


class Followers:
    """All hyper-parameters that one schedule moves besides the learning rate."""

    def __init__(self) -> None:
        self.all: list[Following] = []

    def add(self, new: Following) -> None:
        """Take one more, unless there is a curve for it already, which raises a ValueError."""
        for known in self.all:
            both = [number for number, _ in known.places.items() & new.places.items()]
            if both:
                raise ValueError(f"{new.name} of the param groups {sorted(both)} follows a curve already")
        self.all.append(new)

    def at(self, step: float) -> dict[str, dict[int, float]]:
        """Return the values at a step, by hyper-parameter and group."""
        values: dict[str, dict[int, float]] = {}
        for each in self.all:
            values.setdefault(each.name, {}).update(each.at(step))
        return values

    def go_to(self, optimizer: Optimizer, step: float) -> None:
        """Put the values of a step into the optimizer: all of them or, if one is out of range, none."""
        for each, values in [(each, each.at(step)) for each in self.all]:
            each.put(optimizer, values)

    def state(self, optimizer: Optimizer) -> list[dict[str, Any]]:
        """Return names, groups, initial and current values: numbers, text and lists only."""
        return [
            {
                "name": each.name,
                "groups": [*each.places],
                "initial": list(each.initial),
                "current": each.current(optimizer),
            }
            for each in self.all
        ]

    def check_state(self, state: Sequence[Mapping[str, Any]] | None) -> Sequence[Mapping[str, Any]] | None:
        """Return a saved state, if it is of the same hyper-parameters, else raise a ValueError.

        None is the state of a schedule of the learning rate alone, such as one of transformers.
        """
        if state is None:
            return None
        saved, own = [each["name"] for each in state], [each.name for each in self.all]
        if len(saved) != len(own):
            raise ValueError(
                f"the state has curves for {', '.join(saved)}, the schedule for {', '.join(own) or 'the lr only'}: "
                "call schedule_hyperparameter for the same hyper-parameters before loading"
            )
        for each, values in zip(self.all, state, strict=True):
            each.check_state(values)
        return state

    def load(self, optimizer: Optimizer, state: Sequence[Mapping[str, Any]] | None, step: float) -> None:
        """Go on at a step from a state that was checked, and put its values back into the optimizer.

        Without a state the values are those of the curves at that step; before the first they are left as they are.
        """
        if state is None:
            if step >= 0:
                self.go_to(optimizer, step)
            return
        for each, saved in zip(self.all, state, strict=True):
            each.start_from(saved["initial"])
            each.put(optimizer, dict(zip(each.places, map(float, saved["current"]), strict=True)))


def find(group: Mapping[str, Any], name: str) -> Place | None:
    """Return where a hyper-parameter lies in a group, by its name; None where it has none.

    Args:
        group: the param group.
        name: as for :class:`Following`.

    Raises:
        TypeError: ``name`` is no text.
        ValueError: it is the learning rate, which has schedules of its own.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be the name of a hyper-parameter, got {name!r}")
    if name == "lr":
        raise ValueError("the lr has schedules of its own: get_scheduler, or ScheduleLR(optimizer, curve)")
    if name in group and not _is_hidden(name):
        return Place(name)
    part = re.fullmatch(r"(\w+)\[(\d+)\]", name)
    beta = re.fullmatch(r"beta([1-9])", "beta1" if name == "momentum" else name)
    place = Place(part[1], int(part[2])) if part else Place("betas", int(beta[1]) - 1) if beta else None
    if place is None or _is_hidden(place.key):
        return None
    numbers = group.get(place.key)
    return place if is_list(numbers) and (place.index or 0) < len(numbers) else None


def unknown(name: str, groups: Iterable[Mapping[str, Any]]) -> ValueError:
    """Return the error for a hyper-parameter that groups do not have; it lists the closest names they have."""
    names = {place.name for group in groups for place in _numbers_of(group)}
    return ValueError(f"there is no hyper-parameter {name!r} to schedule; {closest(name, names)}")


def _places(optimizer: Optimizer, name: str, groups: Iterable[int] | None) -> dict[int, Place]:
    """Where a hyper-parameter lies, by the group's index."""
    all_groups = optimizer.param_groups
    if isinstance(groups, int | str):
        raise TypeError(f"groups must be a list of the groups' indices, got {groups!r}")
    chosen = range(len(all_groups)) if groups is None else [whole_number("groups", index) for index in groups]
    if not chosen or max(chosen) >= len(all_groups) or len(set(chosen)) < len(chosen):
        raise ValueError(
            f"groups={list(chosen)} must be different indices of param groups, from 0 to {len(all_groups) - 1}"
        )
    found = {number: find(all_groups[number], name) for number in chosen}
    places = {number: place for number, place in found.items() if place is not None}
    if not places or (groups is not None and len(places) < len(found)):
        raise unknown(name, [all_groups[number] for number, place in found.items() if place is None])
    return places


def _checked(what: str, value: Any) -> float:
    """The value of a hyper-parameter, if it is a number that can be scaled."""
    if is_list(value):
        raise ValueError(f"{what} is {value!r}: schedule each number by itself, by its name such as beta1 or eps[0]")
    if not _is_number(value):
        hint = f"; if it is not, give the optimizer {float(value)!r}" if type(value) is int else ""
        raise ValueError(f"{what} is {value!r}, {'a count' if hint else 'not a number that can be scaled'}{hint}")
    number = float(plain(value))
    if not math.isfinite(number):
        raise ValueError(f"{what} is {value!r}, which cannot be scaled")
    return number


def _wrong(place: Place, value: float, initial: float) -> str | None:
    """Say what is wrong with a value, if anything is."""
    if not math.isfinite(value):
        return "it must be finite"
    if value * initial < 0:
        return f"it must not be {'negative' if initial > 0 else 'positive'}"
    if re.fullmatch(r"momentum|beta\d", place.name) and abs(value) >= 1:
        return "it must stay below 1"
    if value == 0 and initial and place.name in ("momentum", "beta1"):
        # SGD, LARS and Prodigy then take another update, with other state.
        return "without momentum some optimizers keep no state for it; stay above 0, with floor(0.01) for example"
    return None


def _numbers_of(group: Mapping[str, Any]) -> Iterator[Place]:
    """All that could be scheduled in a group."""
    for key, value in group.items():
        if _is_hidden(key):
            continue
        if is_list(value):
            yield from (Place(key, index) for index, each in enumerate(value) if _is_number(each))
        elif _is_number(value):
            yield Place(key)


def _is_hidden(key: str) -> bool:
    return key in ("params", "param_names", "lr", "max_lr", "min_lr", "swa_lr") or key.startswith("initial_")


def _is_number(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.numel() == 1 and value.is_floating_point()
    value = plain(value)
    # Of whole numbers these two are as likely coefficients as counts.
    return isinstance(value, float) or (type(value) is int and value in (0, 1))
