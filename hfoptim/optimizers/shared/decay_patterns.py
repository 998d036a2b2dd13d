"""Weight decay for parameters chosen by their names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from hfoptim.engine import RuleOptimizer, hyper
from hfoptim.engine.checks import group_dict, strings
from hfoptim.engine.parameter_names import bare_names, searched


def patterns(name: str, value: Sequence[str] | None) -> list[str]:
    """Regular expressions, as a list; none for None.

    Raises:
        TypeError: no list of strings.
        ValueError: one is no regular expression.
    """
    found = strings(name, () if value is None else value)
    for pattern in found:
        _check_pattern(name, pattern)
    return found


def _check_pattern(name: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{name} holds {pattern!r}, which is no regular expression: {error}") from error


_FOUND = "regular expressions; a parameter whose name one of them is found in is"
INCLUDED = hyper(None, f"{_FOUND} decayed, whatever the next says", check=patterns, in_group=False)
EXCLUDED = hyper(None, f"{_FOUND} not decayed. All others are", check=patterns, in_group=False)


class DecayedByName(RuleOptimizer):
    """An optimizer with the arguments `include_in_weight_decay` and `exclude_from_weight_decay`."""

    def from_arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        self.include_in_weight_decay = given["include_in_weight_decay"]
        self.exclude_from_weight_decay = given["exclude_from_weight_decay"]
        return super().from_arguments(given)

    def __getstate__(self) -> dict[str, Any]:
        own = ("include_in_weight_decay", "exclude_from_weight_decay")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; parameters that the patterns exempt from decay form a second one beside it."""
        if not (self.include_in_weight_decay or self.exclude_from_weight_decay):
            super().add_param_group(param_group)
            return
        names, params = _names_and_params(group_dict(param_group)["params"])
        rate = param_group.get("weight_decay", self.defaults["weight_decay"])
        decaying = self._decaying(names)
        for decayed in (True, False):
            chosen = [(n, p) for n, p in zip(names, params, strict=True) if (n in decaying) is decayed]
            if chosen:
                super().add_param_group({**param_group, "params": chosen, "weight_decay": rate if decayed else 0.0})

    def _decaying(self, names: list[str]) -> set[str]:
        short = bare_names(names)
        included, excluded = (
            {name for pattern in chosen for name in searched(pattern, short)}
            for chosen in (self.include_in_weight_decay, self.exclude_from_weight_decay)
        )
        return included | ({*names} - excluded)


def _names_and_params(params: Iterable[Any]) -> tuple[list[str], list[Tensor]]:
    pairs = list(params)
    if not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
        raise ValueError(
            "include_in_weight_decay and exclude_from_weight_decay match names; give the model or "
            "model.named_parameters() as params"
        )
    return [name for name, _ in pairs], [param for _, param in pairs]
