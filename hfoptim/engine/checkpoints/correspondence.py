"""Which parameter of a state_dict is which parameter here: by name where both sides have names, else by position."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.optim import Optimizer

from hfoptim.engine.parameter_names import aligned, bare, bare_names, listed

Shape = tuple[int, ...]


class _Group(NamedTuple):
    """What is known of the parameters of a group, here or in a state_dict, in their order.

    Args:
        names: their names, if they have any.
        keys: the keys of a state_dict, where these are names: torch.distributed.checkpoint's are.
        shapes: their shapes, None where it is not known.
    """

    names: list[str] | None
    keys: list[str] | None
    shapes: list[Shape | None]


def ordered_groups(optimizer: Optimizer, state_dict: Any) -> list[dict[str, Any]]:
    """The groups of a state_dict with their keys in the order of the optimizer's parameters.

    The order is by name, without the parts of wrappers, where both sides have names, that of whole groups too;
    `param_names` are then those of the optimizer. If it has none they stay those of the state_dict.

    Args:
        optimizer: the optimizer that is to load it.
        state_dict: an optimizer's, or one of torch.distributed.checkpoint, whose keys are names.

    Raises:
        ValueError: it is no state_dict, or its groups or parameters are not these.
    """
    groups = _groups_of(state_dict)
    own, saved = _groups_here(optimizer), _saved_groups(state_dict, groups)
    places = _places_of_groups(own, saved)
    groups, saved = [groups[place] for place in places], [saved[place] for place in places]
    _check_sizes(type(optimizer).__name__, own, saved)
    found = aligned(_flat_names(own), _flat_names(saved))
    ordered = []
    for index, (mine, theirs, group) in enumerate(zip(own, saved, groups, strict=True)):
        order = _order(index, own, saved, found)
        changed = {**group, "params": [group["params"][place] for place in order]}
        changed.pop("param_names", None)
        if theirs.names is not None:
            changed["param_names"] = list(mine.names or [theirs.names[place] for place in order])
        ordered.append(changed)
    return ordered


def described(optimizer: Optimizer, param: Tensor) -> str:
    """A parameter in the words of a message: its name, or its place where it has none, and its shape."""
    shape = f"of shape {tuple(param.shape)}"
    for index, group in enumerate(optimizer.param_groups):
        for place, other in enumerate(group["params"]):
            if other is param:
                names = group.get("param_names")
                return f"parameter {repr(names[place]) if names else f'{place} of group {index}'} {shape}"
    return f"a parameter {shape}"


# -- what is known of both sides --------------------------------------------------------------------------------------


def _groups_of(state_dict: Any) -> list[dict[str, Any]]:
    """The groups of a state_dict, if it is one."""
    if not isinstance(state_dict, dict) or not {"state", "param_groups"} <= state_dict.keys():
        raise ValueError(
            "state_dict must be a dict with the keys 'state' and 'param_groups', as optimizer.state_dict() is"
        )
    for index, group in enumerate(state_dict["param_groups"]):
        names = group.get("param_names")
        if names and len(names) != len(group["params"]):
            raise ValueError(
                f"group {index} of the state_dict has {len(group['params'])} parameters and {len(names)} names: "
                f"{listed(map(repr, names))}"
            )
    return list(state_dict["param_groups"])


def _groups_here(optimizer: Optimizer) -> list[_Group]:
    return [
        _Group(
            list(group["param_names"]) if group.get("param_names") else None,
            None,
            [tuple(param.shape) for param in group["params"]],
        )
        for group in optimizer.param_groups
    ]


def _saved_groups(state_dict: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> list[_Group]:
    known = []
    for group in groups:
        keys, names = list(group["params"]), group.get("param_names")
        named = all(isinstance(key, str) for key in keys)
        if names and named:
            names = _names_of_keys(keys, names)
        shapes = [_shape(state_dict["state"].get(key)) for key in keys]
        known.append(_Group(list(names) if names else None, keys if named else None, shapes))
    return known


def _places_of_groups(own: Sequence[_Group], saved: Sequence[_Group]) -> Sequence[int]:
    """Which of the saved groups each one here is, by the names in it; in their order where that cannot be told."""
    here, there = ([frozenset(map(bare, group.names or ())) for group in groups] for groups in (own, saved))
    if Counter(here) != Counter(there) or len(set(here)) < len(here):
        return range(len(saved))
    return [there.index(names) for names in here]


def _names_of_keys(keys: Sequence[str], names: Sequence[str]) -> list[str] | None:
    """The names of parameters whose keys are names too, in the order of the keys; None where that cannot be told.

    torch.distributed.checkpoint puts the keys in the order of the optimizer that loads, and leaves `param_names` in the
    order in which they were saved. Names may be those in a part of the model.
    """
    found = []
    for key, name in zip(keys, names, strict=True):
        fitting = [name] if _ends(key, name) else [other for other in names if _ends(key, other)]
        found += [max(fitting, key=len)] if fitting else []
    return found if len(set(found)) == len(keys) else None


def _ends(key: str, name: str) -> bool:
    return f".{bare(key)}".endswith(f".{bare(name)}")


def _shape(state: Any) -> Shape | None:
    """The shape of a parameter, judged by its state; None where that does not tell."""
    if not isinstance(state, Mapping):
        return None
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor) and value.ndim}
    shapes = {tuple(value.shape) for value in tensors.values()}
    # Sums of rows and columns, and codes, have other shapes than their parameter.
    parts = any("row" in name or "col" in name or not value.is_floating_point() for name, value in tensors.items())
    return shapes.pop() if len(shapes) == 1 and not parts else None


def _flat_names(groups: Sequence[_Group]) -> list[str]:
    return [name for group in groups for name in group.names or ()]


# -- how they go together ---------------------------------------------------------------------------------------------


def _check_sizes(optimizer: str, own: Sequence[_Group], saved: Sequence[_Group]) -> None:
    if len(own) != len(saved):
        theirs, mine = (f"{_count(len(side), 'parameter group')} ({_sizes(side)})" for side in (saved, own))
        raise ValueError(f"the state_dict has {theirs}, {optimizer} has {mine}: {_difference(own, saved)}")
    for index, (here, there) in enumerate(zip(own, saved, strict=True)):
        if len(here.shapes) != len(there.shapes):
            raise ValueError(
                f"group {index} of the state_dict has {_count(len(there.shapes), 'parameter')}, here it has "
                f"{len(here.shapes)}: {_difference(own, saved, index)}"
            )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _sizes(groups: Sequence[_Group]) -> str:
    return f"of {listed(str(len(group.shapes)) for group in groups)} parameters"


def _order(index: int, own: list[_Group], saved: list[_Group], found: Mapping[str, str] | None) -> Sequence[int]:
    """The places in a saved group of the parameters here."""
    mine, theirs = own[index], saved[index]
    given = theirs.names or theirs.keys
    if mine.names is None or given is None:
        return range(len(mine.shapes))
    # All groups are looked at together, so that the same name in two of them, with and without `module`, stays apart.
    which = found if found is not None and theirs.names else aligned(mine.names, given)
    places = {name: place for place, name in enumerate(given)}
    if which is not None and all(which[name] in places for name in mine.names):
        return [places[which[name]] for name in mine.names]
    if theirs.names:
        raise ValueError(f"group {index} of the state_dict has other parameters: {_difference(own, saved, index)}")
    return range(len(mine.shapes))  # keys of torch.distributed.checkpoint, which has ordered them


def _difference(own: Sequence[_Group], saved: Sequence[_Group], index: int | None = None) -> str:
    """What one side has and the other has not: names, or shapes where one of them has no names; of one group or all."""
    mine, theirs = ([*groups] if index is None else [groups[index]] for groups in (own, saved))
    if all(group.names or not group.shapes for group in (*mine, *theirs)):
        found = aligned(_flat_names(own), _flat_names(saved))
        # Names by which both sides are compared.
        here = bare_names(_flat_names(own)) if found is None else {name: name for name in found}
        there = bare_names(_flat_names(saved)) if found is None else {given: name for name, given in found.items()}
        parts = [
            _named(theirs, there, mine, here, {here[n]: f"group {i} here" for i, n in _numbered(own)}),
            _named(mine, here, theirs, there, {there[n]: f"group {i} there" for i, n in _numbered(saved)}),
        ]
    else:
        counts = [Counter(shape for group in side for shape in group.shapes) for side in (theirs, mine)]
        if None in counts[0]:  # there is no state yet, or not of all
            known = any(group.names or group.keys or any(group.shapes) for group in theirs)
            return f"{f'it has {_all(theirs)}' if known else 'it does not say which'}; here are {_all(mine)}"
        parts = [_shapes(counts[0] - counts[1], theirs), _shapes(counts[1] - counts[0], mine)]
    sides = zip(("the state_dict has", "here are"), parts, strict=True)
    return (
        "; ".join(f"only {side} {part}" for side, part in sides if part)
        or "the parameters are the same, in other groups"
    )


def _named(
    groups: Sequence[_Group],
    short: Mapping[str, str],
    others: Sequence[_Group],
    others_short: Mapping[str, str],
    elsewhere: Mapping[str, str],
) -> str:
    """What some groups have and others have not: names, shapes, and where the other side has it."""
    known = {others_short[name] for name in _flat_names(others)}
    pairs = [(name, shape) for group in groups for name, shape in _pairs(group) if name is not None]
    return listed(
        _entry(name, shape) + (f" ({elsewhere[short[name]]})" if short[name] in elsewhere else "")
        for name, shape in pairs
        if short[name] not in known
    )


def _numbered(groups: Sequence[_Group]) -> list[tuple[int, str]]:
    return [(index, name) for index, group in enumerate(groups) for name in group.names or ()]


def _shapes(counts: Mapping[Shape | None, int], groups: Sequence[_Group]) -> str:
    """Shapes, how often if several times, and the names of the parameters that have them."""
    pairs = [pair for group in groups for pair in _pairs(group)]
    parts = []
    for shape, count in counts.items():
        names = [repr(name) for name, other in pairs if other == shape and name is not None]
        which = f" ({'' if len(names) == count else 'of '}{listed(names)})" if names else ""
        parts.append(f"{f'{count} times ' if count > 1 else ''}shape {shape}{which}")
    return listed(parts)


def _all(groups: Sequence[_Group]) -> str:
    return listed(_entry(*pair) for group in groups for pair in _pairs(group))


def _pairs(group: _Group) -> list[tuple[str | None, Shape | None]]:
    names: Sequence[str | None] = group.names or group.keys or [None] * len(group.shapes)
    return list(zip(names, group.shapes, strict=True))


def _entry(name: str | None, shape: Shape | None) -> str:
    if shape is None:
        return repr(name) if name is not None else "one of unknown shape"
    return f"{'one' if name is None else repr(name)} of shape {shape}"
