"""Changes of a schedule in mid-run, and curves written as plain data, as a state dict can hold them.

A change is a dict: ``kind``, ``start``, the step at which it was asked for, and what was asked for. A schedule with
changes follows its own curve to the first of them, and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any

from .checks import Checked
from .curves import Curve
from .shapes import Stretched, annealed


def replaced(curve: Curve, start: int, following: Mapping[str, Any], restart: bool) -> Curve:
    """Return ``curve`` before step ``start`` and the curve that ``following`` says from there on.

    Args:
        curve: the curve before.
        start: the first step of the other one.
        following: that one, by :func:`written`.
        restart: it counts from 0 at step ``start``. Otherwise it has counted from the beginning.

    Raises:
        ValueError: as :func:`read`.
    """
    other = read(following)
    if not isinstance(other, Curve):
        raise ValueError(f"{following!r} is no curve")
    return curve.then(other, at=start) if restart else curve.switch(other, at=start)


def extended(curve: Curve, start: int, total: int) -> Curve:
    """Return the curve whose steps from ``start`` on are stretched so that it ends at step ``total``."""
    return Stretched(curve, start, total)


_KINDS: dict[str, Callable[..., Curve]] = {"anneal": annealed, "replace": replaced, "extend": extended}


def with_changes(curve: Curve, changes: Iterable[Mapping[str, Any]]) -> Curve:
    """Return the curve after all changes that were asked for.

    Raises:
        TypeError, ValueError: one of them is none, or what it asks for cannot be had.
    """
    for change in changes:
        asked = dict(change)
        kind = asked.pop("kind", None)
        if kind not in _KINDS:
            raise ValueError(f"{change!r} is no change of a schedule: its kind is none of {', '.join(_KINDS)}")
        curve = _KINDS[kind](curve, **asked)
    return curve


def written(value: Any) -> Any:
    """Return a curve as numbers, text, lists and dicts, which :func:`read` makes the curve of again.

    Raises:
        TypeError: it holds something else, such as a function.
    """
    if isinstance(value, Checked):
        entries = {field.name: written(getattr(value, field.name)) for field in _fields(value)}
        return {"class": _path(type(value)), **entries}
    if isinstance(value, tuple):
        return [written(each) for each in value]
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(
        f"a schedule that is replaced in mid-run is saved with its state, and a curve that holds {value!r} cannot be: "
        "use one that is made of numbers"
    )


def read(value: Any) -> Any:
    """Return what :func:`written` was given.

    Nothing is imported: a class of one's own must have been.

    Raises:
        ValueError: a class is unknown, or its fields are others.
    """
    if isinstance(value, list):
        return tuple(read(each) for each in value)
    if not isinstance(value, Mapping):
        return value
    entries = {key: read(each) for key, each in value.items()}
    path = entries.pop("class", None)
    known = {_path(cls): cls for cls in _classes(Checked)}
    if path not in known:
        raise ValueError(f"the state has a curve of the class {path!r}, which is not known: import its module first")
    try:
        return known[path](**entries)
    except TypeError as error:
        raise ValueError(f"the state has a curve of the class {path}, with other fields: {error}") from None


def _fields(value: Any) -> list[Any]:
    return [field for field in fields(value) if field.init]


def _path(cls: type[Any]) -> str:
    """What a class is called in a state: those of this package alike, under whatever name it was imported."""
    return f"{cls.__module__.removeprefix(f'{__package__}.')}.{cls.__qualname__}"


def _classes(base: type[Any]) -> Iterator[type[Any]]:
    for cls in base.__subclasses__():
        yield cls
        yield from _classes(cls)
