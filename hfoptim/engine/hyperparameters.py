"""Hyper-parameters as annotated class attributes: `lr: float = hyper(1e-3, "learning rate")`.

One line says all there is to say about one: name, type, default, what it is, its range. Its check, its line in the
docstring and the attribute of an optimizer that reads and writes it follow from that.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from typing import Any, TypeVar, cast

from hfoptim.engine import checks

T = TypeVar("T")
Check = Callable[[str, Any], Any]


class GroupEntry:
    """An attribute of an optimizer that is an entry of its parameter groups.

    Read, it is the value that all groups have; a list with one value per group, where they differ. Written, it is
    checked and put into every group.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, optimizer: Any, owner: type | None = None) -> Any:
        if optimizer is None:
            return self
        first, *others = values = [group[self.name] for group in optimizer.param_groups]
        return first if all(other is first or bool(other == first) for other in others) else values

    def __set__(self, optimizer: Any, value: Any) -> None:
        changed = [{**group, self.name: value} for group in optimizer.param_groups]
        for group in changed:
            optimizer.check_group(group)
        for group, checked in zip(optimizer.param_groups, changed, strict=True):
            group[self.name] = checked[self.name]


@dataclass(frozen=True)
class Hyper:
    """A declared hyper-parameter.

    Args:
        default: its default.
        doc: what it is.
        check: `(name, value) -> value` as Python's own, or an error that says what would be right.
        domain: the values it takes, for the docstring: ">= 0".
        in_group: whether it lies in the parameter groups; else it is an argument of the constructor only.
        in_peers: whether checkpoints of the classes that an optimizer interchanges with have it.
        kept: whether it lies on the optimizer instead, which it is copied and pickled with.
        keyword_only: whether it is given by name only.
        annotation: its type, as in the class.
        make_check: the check and the domain, given the name and the annotation.
    """

    default: Any
    doc: str
    make_check: Callable[[str, str], tuple[Check, str]]
    in_group: bool = True
    in_peers: bool = True
    kept: bool = False
    keyword_only: bool = False
    annotation: Any = inspect.Parameter.empty
    check: Check = lambda name, value: value
    domain: str = ""

    def parameter(self, name: str) -> inspect.Parameter:
        """The constructor's argument."""
        kinds = inspect.Parameter
        kind = kinds.KEYWORD_ONLY if self.keyword_only else kinds.POSITIONAL_OR_KEYWORD
        return kinds(name, kind, default=self.default, annotation=self.annotation)


def hyper(
    default: T,
    doc: str,
    *,
    low: float = 0.0,
    above: float | None = None,
    below: float = math.inf,
    most: float | None = None,
    excluded: str = "is out of range",
    choices: Collection[str] = (),
    check: Check | None = None,
    in_group: bool = True,
    in_peers: bool = True,
    kept: bool = False,
) -> T:
    """Declare a hyper-parameter, as the value of an annotated attribute of a class derived from `RuleOptimizer`.

    The annotation says what it is checked for: `float` a number, `int` a whole number, `bool` a flag, `str` one of
    `choices`, `tuple[float, float]` so many decay rates in [0, 1), each of them with `| None` also None. `lr` may be a
    tensor. After `_: KW_ONLY` (dataclasses) come those that are given by name only.

    Args:
        default: its default.
        doc: what it is, with its unit, in a line or two without a full stop.
        low (default 0.0): least number.
        above (None): number it must exceed, in place of `low`.
        below (inf): number it must stay under.
        most (None): largest number, in place of `below`.
        excluded ("is out of range"): what an error says of the number `above` itself.
        choices (()): names it may be; empty: any text.
        check (None): `(name, value) -> value` that returns the value as Python's own number, text or tuple or raises,
            for what has another type; None takes that of the annotation.
        in_group (True): whether it lies in the parameter groups. Others are arguments of the constructor alone, for
            `from_arguments`.
        in_peers (True): whether checkpoints of the classes that this one interchanges with have it.
        kept (False): whether it lies on the optimizer instead, as it was checked, and is copied and pickled with it.
    """

    def make_check(name: str, annotation: str) -> tuple[Check, str]:
        if check is not None:
            return check, ""
        kind = annotation.removesuffix(" | None")
        optional = kind != annotation
        found = _rate if name == "lr" and kind == "float" else _KINDS.get(kind.partition("[")[0])
        if found is None:
            raise TypeError(f"the annotation {annotation!r} says no kind of check; give one: hyper(..., check=...)")
        run, domain = found(kind, _Range(low, above, below, most, excluded, optional), tuple(choices))
        return (partial(_unless_none, run) if optional else run), domain

    # Type checkers take the attribute for what it is on an optimizer: its value.
    return cast(T, Hyper(default, doc, make_check, in_group and not kept, in_peers, kept))


@dataclass(frozen=True)
class _Range:
    low: float
    above: float | None
    below: float
    most: float | None
    excluded: str
    optional: bool

    def number(self, name: str, value: Any) -> float:
        high = self.below if self.most is None else self.most
        low = self.low if self.above is None else self.above
        found = checks.number(name, value, low, high, high_open=self.most is None)
        if found == self.above:
            or_none = ", or None" if self.optional else ""
            raise ValueError(f"{name}={found:g} {self.excluded}, expected a number above {self.above:g}{or_none}")
        return found

    def integer(self, name: str, value: Any) -> int:
        self.number(name, found := checks.integer(name, value, int(self.low)))
        return found

    def __str__(self) -> str:
        low = f"[{self.low:g}" if self.above is None else f"({self.above:g}"
        if self.most is not None:
            return f"<= {self.most:g}" if self.low == -math.inf else f"in {low}, {self.most:g}]"
        if self.below != math.inf:
            return f"in {low}, {self.below:g})"
        return "" if self.low == -math.inf else f">= {self.low:g}" if self.above is None else f"> {self.above:g}"


def _number(kind: str, bounds: _Range, choices: tuple[str, ...]) -> tuple[Check, str]:
    return bounds.number, str(bounds)


def _rate(kind: str, bounds: _Range, choices: tuple[str, ...]) -> tuple[Check, str]:
    return checks.learning_rate, str(bounds)


def _integer(kind: str, bounds: _Range, choices: tuple[str, ...]) -> tuple[Check, str]:
    return bounds.integer, str(bounds)


def _flag(kind: str, bounds: _Range, choices: tuple[str, ...]) -> tuple[Check, str]:
    def check(name: str, value: Any) -> Any:
        checks.flag(name, value, bounds.optional)
        return value

    return check, ""


def _choice(kind: str, bounds: _Range, choices: tuple[str, ...]) -> tuple[Check, str]:
    return partial(checks.choice, choices=choices), " or ".join(map(repr, choices))


def _betas(kind: str, bounds: _Range, choices: tuple[str, ...]) -> tuple[Check, str]:
    return partial(checks.betas, count=kind.count("float")), "each in [0, 1)"


_KINDS = {"float": _number, "int": _integer, "bool": _flag, "str": _choice, "tuple": _betas}


def _unless_none(check: Check, name: str, value: Any) -> Any:
    return None if value is None else check(name, value)


def declared(cls: type) -> dict[str, Hyper]:
    """The hyper-parameters that a class body declares, with their checks.

    Raises:
        TypeError: one has no annotation, or an annotation that says no kind of check.
    """
    annotations, keyword_only, found = inspect.get_annotations(cls), False, {}
    for name, annotation in annotations.items():
        text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
        if annotation is KW_ONLY or text.rpartition(".")[2] == "KW_ONLY":
            keyword_only = True
        value = vars(cls).get(name)
        if isinstance(value, Hyper):
            try:
                check, domain = value.make_check(name, text)
            except TypeError as error:
                raise TypeError(f"{cls.__name__}.{name}: {error}") from None
            found[name] = replace(value, keyword_only=keyword_only, annotation=annotation, check=check, domain=domain)
    bare = [name for name, value in vars(cls).items() if isinstance(value, Hyper) and name not in found]
    if bare:
        raise TypeError(f"{cls.__name__}.{bare[0]} has no annotation; write {bare[0]}: float = hyper(...)")
    return found
