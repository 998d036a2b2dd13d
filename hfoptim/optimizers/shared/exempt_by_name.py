"""Weight decay for parameters chosen by their names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from hfoptim.engine import RuleOptimizer
from hfoptim.engine.checks import group_dict, strings
from hfoptim.engine.parameter_names import bare_names, searched


class ExemptByName(RuleOptimizer):
    """An optimizer that does not decay some of its parameters, chosen by their names."""

    def exempt(self, names: Sequence[str | None]) -> set[str | None]:
        """Those of a group's names, None where a parameter has none, that are not decayed."""
        raise NotImplementedError

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; parameters that their names exempt from decay form a second one beside it."""
        given = group_dict(param_group)["params"]
        # torch takes a tensor for a list of one, and refuses sets.
        pairs: list[Any] = [given] if isinstance(given, (Tensor, set)) else list(given)
        names = [pair[0] if isinstance(pair, tuple) and len(pair) == 2 else None for pair in pairs]
        exempt = self.exempt(names)
        decayed, others = (
            [pair for pair, name in zip(pairs, names, strict=True) if (name in exempt) is out] for out in (False, True)
        )
        if decayed or not others:
            param_group = {**param_group, "params": given if isinstance(given, set) else decayed}
            super().add_param_group(param_group)
        if others:
            super().add_param_group({**param_group, "params": others, "weight_decay": 0.0})


def patterns(name: str, value: Sequence[str] | None) -> list[str] | None:
    """Regular expressions, as a list, or None.

    Raises:
        TypeError: no list of strings.
        ValueError: one is no regular expression.
    """
    found = None if value is None else strings(name, value)
    try:
        for pattern in found or ():
            re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{name} holds {error.pattern!r}, which is no regular expression: {error}") from error
    return found


def exempt_by_patterns(
    names: Sequence[str | None], included: Sequence[str] | None, excluded: Sequence[str] | None
) -> set[str | None]:
    """The names in which a pattern of `excluded` is found and none of `included`.

    Raises:
        ValueError: there are patterns, and parameters without names.
    """
    if (included or excluded) and None in names:
        raise ValueError(
            "include_in_weight_decay and exclude_from_weight_decay match names; give the model or "
            "model.named_parameters() as params"
        )
    short = bare_names(name for name in names if name is not None)
    out, kept = ({name for each in chosen or () for name in searched(each, short)} for chosen in (excluded, included))
    return {*(out - kept)}
