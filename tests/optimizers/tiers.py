"""Which optimizers a test runs over in `make test`; `make test-all` runs it over all of them.

What depends on an optimizer's rule runs over every optimizer, with the first options that lead to each of its rules.
What is the engine's business runs over one optimizer of each kind: one for each way in which classes differ to the
engine. What is left out so is marked `slow`. A test of one optimizer, by `pytest -k NAME`, leaves nothing out.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any

import pytest
from cases import ENTRIES, Entry, Variant
from harness import parameters
from torch.optim import Optimizer

import hfoptim
from hfoptim.engine import ELEMENT, RuleOptimizer

# Checks and defaults are about values, not about how the engine steps, saves or loads.
_VALUES = {"__init__", "check_group", "own_default", "defaults_by_name", "ignores_peer_flag"}
# What they choose is seen in the rules.
_CHOICES = {"rule_for", "decay_for"}


def kind_of(cls: type[Optimizer], options: Mapping[str, Any]) -> Hashable:
    """What the engine can tell an optimizer by: the kinds of its rules, and what its class changes of the engine.

    Args:
        cls: its class; one that does not run on the engine is a kind of its own.
        options: of the constructor.
    """
    if not issubclass(cls, RuleOptimizer):
        return cls.__name__
    params = parameters(("matrix", "vector", "conv"))
    optimizer = cls(list(params.items()), **options)
    traits = frozenset(tuple(_traits(rule)) for rule in _rules(optimizer))
    changed = frozenset(
        name
        for name, inherited in vars(RuleOptimizer).items()
        if (callable(inherited) or isinstance(inherited, (bool, classmethod, property)))
        and name not in _VALUES | _CHOICES
        # torch wraps every class's step.
        if inspect.unwrap(inspect.getattr_static(cls, name)) is not inspect.unwrap(inherited)
    )
    return traits, changed, len(optimizer.param_groups)


def _traits(rule: Any) -> Iterator[Hashable]:
    """What a rule is to the engine: its scope, and which of the other things that a rule may have it has."""
    for field in dataclasses.fields(rule):
        value = getattr(rule, field.name)
        # What is read of bfloat16 weights is tried in test_low_precision.py, with every runner.
        if field.name not in ("fn", "state", "per_step", "exact_weights"):
            yield value if isinstance(value, (bool, enum.Enum)) else value is not None


def _rules(optimizer: Any) -> frozenset[Any]:
    return frozenset(optimizer.rule_for(p, group) for group in optimizer.param_groups for p in group["params"])


@cache
def kind_of_name(name: str) -> Hashable:
    """That of an optimizer by its name in the registry."""
    info = hfoptim.get_optimizer_info(name)
    return kind_of(info.opt_class, info.defaults)


def is_without_sums(name: str) -> bool:
    """Whether no step of an optimizer depends on a sum over a tensor or over all of them."""
    info = hfoptim.get_optimizer_info(name)
    cls = getattr(info.opt_class, "inner", info.opt_class)
    if not issubclass(cls, RuleOptimizer):
        return False
    optimizer = cls(list(parameters(("matrix", "vector", "conv")).items()), **info.defaults)
    return all(rule.scope is ELEMENT and rule.probe is None for rule in _rules(optimizer))


def _of_engine(name: str) -> Any:
    """An optimizer over a matrix inside of a network and a vector, by name; None where it is not on the engine."""
    info = hfoptim.get_optimizer_info(name)
    params = [(f"body.{key}", param) for key, param in parameters(("matrix", "vector")).items()]
    return info.opt_class(params, **info.defaults) if issubclass(info.opt_class, RuleOptimizer) else None


def works_on_whole_tensors(name: str) -> bool:
    """Whether some step of an optimizer depends on more than the entry it is of: no complex parameters, then."""
    optimizer = _of_engine(name)
    return optimizer is not None and (
        bool(optimizer.defaults["caution"]) or any(rule.scope is not ELEMENT for rule in _rules(optimizer))
    )


def sums_over_all(name: str) -> bool:
    """Whether a step of an optimizer needs a sum over all its parameters."""
    optimizer = _of_engine(name)
    return optimizer is not None and any(rule.probe is not None for rule in _rules(optimizer))


def _first_of_each(items: Iterable[Any], of: Callable[[Any], Hashable]) -> list[bool]:
    kinds = [of(item) for item in items]
    return [kind not in kinds[:place] for place, kind in enumerate(kinds)]


def one_of_each_kind(items: Iterable[Any], of: Callable[[Any], Hashable], ids: Callable[[Any], str]) -> list[Any]:
    """Parameters of a test: the first item of each kind, which stands for its kind, and the others, marked `slow`."""
    items = list(items)
    marks = {True: pytest.mark.kind, False: pytest.mark.slow}
    return [
        pytest.param(item, id=ids(item), marks=marks[first])
        for item, first in zip(items, _first_of_each(items, of), strict=True)
    ]


def names_by_kind(names: Iterable[str]) -> list[Any]:
    """Names of the registry as parameters, those that are not the first of their kind marked `slow`."""
    return one_of_each_kind(names, kind_of_name, str)


def rules_of(entry: Entry) -> int:
    """How many rules an optimizer has, whatever its options: the tests of rules run over each."""
    found: set[Any] = set()
    for name in few_variants(entry):
        params = parameters(("matrix", "vector", "conv"))
        found |= _rules(entry.cls(list(params.items()), **entry.variants[name].options))
    return len(found)


def _first(entry: Entry) -> Variant:
    return next(iter(entry.variants.values()))


def _shows_new_rules(entry: Entry) -> list[bool]:
    """For each variant whether it leads to a rule that none before it leads to."""
    seen: set[Any] = set()
    found = []
    for variant in entry.variants.values():
        params = parameters(("matrix", "vector", "conv"))
        rules = _rules(entry.cls(list(params.items()), **variant.options))
        found.append(not rules <= seen)
        seen |= rules
    return found


def variants(choose: Callable[[Variant], bool] = lambda variant: True, by_kind: bool = False) -> list[Any]:
    """(entry, variant) parameters of a test.

    Args:
        choose: which variants it applies to; the others are left out, not skipped.
        by_kind: whether one optimizer of each kind is enough.
    """
    firsts = dict(zip((e.name for e in ENTRIES), _first_of_each(ENTRIES, _kind_of_entry), strict=True))
    made = []
    for entry in ENTRIES:
        applicable = [name for name, variant in entry.variants.items() if choose(variant)]
        for (name, variant), new in zip(entry.variants.items(), _new_rules(entry.name), strict=True):
            if name not in applicable:
                continue
            stands = firsts[entry.name] and name == applicable[0]
            wanted = stands if by_kind else new or name == applicable[0]
            mark = pytest.mark.slow if not wanted else [pytest.mark.kind] if by_kind else []
            made.append(pytest.param(entry, variant, id=f"{entry.name}-{name}", marks=mark))
    return made


@cache
def _new_rules(name: str) -> list[bool]:
    return _shows_new_rules(next(entry for entry in ENTRIES if entry.name == name))


_kinds: dict[str, Hashable] = {}


def _kind_of_entry(entry: Entry) -> Hashable:
    if entry.name not in _kinds:
        _kinds[entry.name] = kind_of(entry.cls, _first(entry).options)
    return _kinds[entry.name]


def few_variants(entry: Entry) -> list[str]:
    """The names of the options that lead to each of an optimizer's rules."""
    return [name for name, new in zip(entry.variants, _new_rules(entry.name), strict=True) if new]


# Takes signs in eigenbases of gradients: where these are singular, some are of rounding alone, and other ones where
# gradients are averages over ranks.
SIGNS_OF_ROUNDING = frozenset({"splus"})
# Those that take dense gradients: a sharded parameter has no others.
DENSE = [entry for entry in ENTRIES if not getattr(entry.cls, "sparse_only", False)]


def entries_of_each_kind() -> list[Entry]:
    """The first entry of each kind among those that take dense gradients."""
    return [entry for entry, first in zip(DENSE, _first_of_each(DENSE, _kind_of_entry), strict=True) if first]


every_variant = pytest.mark.parametrize(("entry", "variant"), variants())
every_kind_of_variant = pytest.mark.parametrize(("entry", "variant"), variants(by_kind=True))
every_entry = pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.name)
every_kind_of_entry = pytest.mark.parametrize("entry", one_of_each_kind(ENTRIES, _kind_of_entry, lambda e: e.name))
