"""What tells the state_dicts of two optimizers apart: the options in their groups and the state of their parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cases import ENTRIES, Entry
from harness import Params, parameters, train

from hfoptim.engine import ENGINE_DEFAULTS

NAMES = ("matrix", "vector", "conv")
# Options that no optimizer has got in a later version: a state_dict without one that the optimizer has is another's.
FROM_THE_FIRST_DAY = {"lr", "betas", "eps", "weight_decay", "momentum", "rank"}
# In a group, and no hyper-parameter.
NO_OPTIONS = {"params", "param_names", *ENGINE_DEFAULTS}


@dataclass(frozen=True)
class Fingerprint:
    """What a state_dict shows of the optimizer that wrote it.

    Args:
        options: the names of its own options, without those that every optimizer has.
        groups: how many parameters each group has.
        state: for each parameter the names and shapes of its state.
    """

    options: frozenset[str]
    groups: tuple[int, ...]
    state: tuple[frozenset[tuple[str, tuple[int, ...]]], ...]


def made(entry: Entry, steps: int = 0) -> tuple[Params, Any]:
    """An optimizer with the first options of its entry, over three named parameters, after so many steps."""
    params = parameters(NAMES)
    optimizer = entry.cls(list(params.items()), **next(iter(entry.variants.values())).options)
    train(optimizer, params, range(1, steps + 1))
    return params, optimizer


_known: dict[str, Fingerprint] = {}


def fingerprint(entry: Entry) -> Fingerprint:
    """That of the state_dict of an entry's optimizer, after two steps."""
    if entry.name not in _known:
        _known[entry.name] = of_state_dict(made(entry, steps=2)[1].state_dict())
    return _known[entry.name]


def of_state_dict(state_dict: Mapping[str, Any]) -> Fingerprint:
    groups = state_dict["param_groups"]
    return Fingerprint(
        frozenset(name for name in groups[0] if name not in NO_OPTIONS),
        tuple(len(group["params"]) for group in groups),
        tuple(
            frozenset((name, tuple(value.shape)) for name, value in state.items())
            for _, state in sorted(state_dict["state"].items())
        ),
    )


def can_be_told_from(source: Fingerprint, target: Fingerprint, stepped: bool) -> bool:
    """Whether an optimizer can see that a state_dict is not its own.

    It cannot where the state_dict has no option that the optimizer lacks, has those that were there from the first day,
    and its state, if there is any yet, has the same names and shapes.

    Args:
        source: of the state_dict.
        target: of the optimizer that loads it.
        stepped: whether the state_dict has state.
    """
    return (
        not source.options <= target.options
        or bool((target.options - source.options) & FROM_THE_FIRST_DAY)
        or source.groups != target.groups
        or (stepped and source.state != target.state)
    )


def cannot_be_told_apart(stepped: bool) -> list[tuple[Entry, Entry]]:
    """All (source, target) where the target cannot see that the source's state_dict is not its own."""
    return [
        (source, target)
        for source in ENTRIES
        for target in ENTRIES
        if source is not target and not can_be_told_from(fingerprint(source), fingerprint(target), stepped)
    ]


def others(entry: Entry, stepped: bool, count: int = 2) -> list[Entry]:
    """The next entries in the table, in a ring, whose state_dicts an optimizer can see not to be its own."""
    place = ENTRIES.index(entry)
    ring = ENTRIES[place + 1 :] + ENTRIES[:place]
    told = (e for e in ring if can_be_told_from(fingerprint(e), fingerprint(entry), stepped))
    return [each for each, _ in zip(told, range(count), strict=False)]
