"""timm's way to say which layer a parameter is of: a `group_matcher`, of regular expressions or a function."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

# Regular expressions of names by layer, or a function from a name to the number of its layer.
GroupMatcher = Mapping[str, Any] | Callable[[str], Any]

# In a matcher: with the layer before it.
_WITH_THE_LAST = 99999


def matched_layers(names: Iterable[str], group_matcher: GroupMatcher) -> dict[str, int]:
    """The layer of every name, 0 at the bottom.

    Args:
        names: names of parameters, without the prefixes of wrappers.
        group_matcher: a function from a name to a number, or several, by which the layers are sorted; or a mapping as
            timm's models have it: in their order from the bottom up, a regular expression each whose groups are the
            numbers, or a list of (expression, numbers that follow) pairs, where 99999 means: with the layer before.
            Expressions match from the start of a name. A name that none matches is of the last layer.

    Raises:
        ValueError: a regular expression is none.
        TypeError: neither form, or a function that does not return numbers.

    Source:
        timm 1.0, `timm.models.group_parameters`.
    """
    order = check_matcher(group_matcher)
    keys = {name: order(name) for name in names}
    layers: dict[tuple[float, ...], int] = {}
    layer = -1
    for key in sorted(set(keys.values())):
        if layer < 0 or key[-1] != _WITH_THE_LAST:
            layer += 1
        layers[key] = layer
    return {name: layers[key] for name, key in keys.items()}


def check_matcher(group_matcher: Any) -> Callable[[str], tuple[float, ...]]:
    """The function from a name to the numbers its layer is sorted by, if the matcher is one; see `matched_layers`."""
    return _by_function(group_matcher) if callable(group_matcher) else _by_expressions(group_matcher)


def _by_function(function: Callable[[str], Any]) -> Callable[[str], tuple[float, ...]]:
    def order(name: str) -> tuple[float, ...]:
        found = function(name)
        try:
            return tuple(map(float, found if isinstance(found, Iterable) else (found,)))
        except (TypeError, ValueError) as error:
            raise TypeError(f"group_matcher gave {found!r} for {name!r}, expected a number or several") from error

    return order


def _by_expressions(matcher: Any) -> Callable[[str], tuple[float, ...]]:
    if not isinstance(matcher, Mapping):
        raise TypeError(
            f"group_matcher={matcher!r} is a {type(matcher).__name__}, expected a mapping of regular expressions such "
            f"as {{'stem': '^embed', 'blocks': r'^layers\\.(\\d+)'}}, or a function from a name to a number"
        )
    rules: list[tuple[re.Pattern[str], int, tuple[float, ...]]] = []
    for place, (part, given) in enumerate(matcher.items()):
        entries = [] if given is None else [(given, None)] if isinstance(given, str) else given
        try:
            for expression, suffix in entries:
                rules.append((re.compile(expression), place, tuple(suffix or ())))
        except re.error as error:
            raise ValueError(f"group_matcher[{part!r}]: {expression!r} is no regular expression: {error}") from error
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"group_matcher[{part!r}]={given!r}, expected a regular expression or (expression, numbers) pairs"
            ) from error

    def order(name: str) -> tuple[float, ...]:
        for expression, place, suffix in rules:
            if found := expression.match(name):
                return (float(place), *(float(group) for group in found.groups() if group is not None), *suffix)
        return (float("inf"),)

    return order


def own_matcher(module: nn.Module) -> GroupMatcher | None:
    """What a module's own `group_matcher` says; not one that a wrapper passes on."""
    own = vars(module).get("group_matcher") or getattr(type(module), "group_matcher", None)
    return module.group_matcher(coarse=False) if callable(own) else None  # type: ignore[operator]
