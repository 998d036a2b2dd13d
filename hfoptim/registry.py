"""Names to optimizers: list them, look them up, and the options they take."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatch
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from hfoptim.catalogue import ENTRIES, WRAPPERS, OptimInfo
from hfoptim.engine import ENGINE_DEFAULTS, RuleOptimizer
from hfoptim.engine.checks import closest
from hfoptim.wrappers import around


def _key(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


_INFOS = {info.name: info for info in ENTRIES}
_NAMES = {_key(alias): info.name for info in ENTRIES for alias in (info.name, *info.aliases)}
# What may stand in front of a name.
_WRAPPERS = {info.name: info for info in WRAPPERS}


def canonical_name(name: str) -> str:
    """The registry's spelling of a name given in any case, with `-`, `_` or neither.

    Raises:
        TypeError: not a string.
        ValueError: unknown; the message has the closest names.
    """
    if not isinstance(name, str):
        raise TypeError(f"optimizer name {name!r} is a {type(name).__name__}, expected a string such as 'adamw'")
    key, known = _key(name), [*_INFOS, *_aliases()]
    if key in _NAMES:
        return _NAMES[key]
    for prefix in _WRAPPERS:
        if key.removeprefix(prefix) in _NAMES:
            return f"{prefix}_{_NAMES[key.removeprefix(prefix)]}"
        if key == prefix:
            raise ValueError(f"{name!r} goes around another optimizer; write its name behind: '{prefix}_sgd'")
        if key.startswith(prefix):
            known = [f"{prefix}_{inner}" for inner in known]
    raise ValueError(f"unknown optimizer {name!r}; {closest(name.lower(), known)}")


def _aliases() -> list[str]:
    return [alias for info in ENTRIES for alias in info.aliases]


def get_optimizer_info(name: str) -> OptimInfo:
    """The registry's entry for a name.

    Raises:
        ValueError: unknown name; the message has the closest ones.
    """
    name = canonical_name(name)
    return _INFOS[name] if name in _INFOS else _wrapped(*name.split("_", 1))


@functools.cache
def _wrapped(prefix: str, name: str) -> OptimInfo:
    """The entry of an optimizer with another one around it."""
    info, around_it = _INFOS[name], _WRAPPERS[prefix]
    return dataclasses.replace(
        info,
        name=f"{prefix}_{name}",
        opt_class=around(around_it.wrapper, info.opt_class),
        description=f"{around_it.wrapper.__name__} around {name}: {around_it.description}",
        source=around_it.source,
        aliases=(),
        needs_closure=info.needs_closure or around_it.needs_closure,
    )


def engine_class_of(opt_class: type[Optimizer]) -> type[RuleOptimizer] | None:
    """The class that runs on the engine: this one, or the one inside it; None for an optimizer of torch's."""
    inner: type[Optimizer] = getattr(opt_class, "inner", opt_class)
    return inner if issubclass(inner, RuleOptimizer) else None


def list_optimizers(
    filter: str | list[str] = "", exclude_filters: list[str] | None = None, with_description: bool = False
) -> list[str] | list[tuple[str, str]]:
    """Names of the optimizers there are, sorted.

    Args:
        filter (default ""): a pattern or several, with the wildcards `*`, `?`, `[...]`; one without wildcards matches
            every name that contains it. Empty: all.
        exclude_filters (None): patterns of names to leave out.
        with_description (False): give (name, description) pairs.

    Returns:
        The names, or pairs.
    """
    include = [filter] if isinstance(filter, str) else list(filter) or [""]
    names = [name for name in sorted(_INFOS) if any(_matches(name, pattern) for pattern in include)]
    names = [name for name in names if not any(_matches(name, pattern) for pattern in exclude_filters or ())]
    return [(name, _INFOS[name].description) for name in names] if with_description else names


def _matches(name: str, pattern: str) -> bool:
    pattern = pattern.lower().replace("-", "_")
    return fnmatch(name, pattern) if set(pattern) & set("*?[") else pattern in name


def get_optimizer_class(name: str, bind_defaults: bool = True) -> type[Optimizer] | functools.partial[Optimizer]:
    """The class of an optimizer.

    Args:
        name: its name.
        bind_defaults (default True): give a partial with the arguments that the name stands for ("sgd": momentum 0.9,
            nesterov), where there are any.

    Returns:
        The class, or a partial of it.

    Raises:
        ValueError: unknown name; the message has the closest ones.
    """
    info = get_optimizer_info(name)
    return functools.partial(info.opt_class, **info.defaults) if bind_defaults and info.defaults else info.opt_class


def option_names(name: str) -> list[str]:
    """The options an optimizer takes, its own first, then the engine's, where it runs on that."""
    opt_class = get_optimizer_info(name).opt_class
    parameters = inspect.signature(opt_class).parameters.values()
    own = [p.name for p in parameters if p.name != "params" and p.kind is not p.VAR_KEYWORD]
    return [*own, *ENGINE_DEFAULTS] if engine_class_of(opt_class) else own


def check_options(name: str, options: Mapping[str, Any], also: Iterable[str] = ()) -> None:
    """Check that an optimizer takes all the options given.

    Args:
        name: its name.
        options: the options.
        also (default ()): further options to name in the message.

    Raises:
        ValueError: it does not; the message names the option and the closest ones.
    """
    known = [*option_names(name), *also]
    for option in options:
        if option not in known:
            raise ValueError(f"{canonical_name(name)} has no option {option!r}; {closest(option, known)}")


def resolve_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments to construct an optimizer with that is chosen by name: the name's own, then the given ones.

    Raises:
        ValueError: unknown name or option.
    """
    info = get_optimizer_info(name)
    check_options(name, options)
    engine_class = engine_class_of(info.opt_class)
    following = engine_class.defaults_by_name(options) if engine_class else {}
    return {**info.defaults, **following, **options}


def trial(opt_class: type[Optimizer], options: Mapping[str, Any], *groups: Mapping[str, Any]) -> Optimizer:
    """Make an optimizer for one small parameter, and one for each of the groups, to have its values checked.

    The parameters are named and matrices, as some optimizers need them.
    """

    def param(place: int) -> list[Any]:
        return [(f"weight{place}", nn.Parameter(torch.zeros(2, 2)))]

    create: Callable[..., Optimizer] = opt_class
    # What it warns of is said when the optimizer itself is made.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return create([{"params": param(place), **group} for place, group in enumerate([{}, *groups])], **options)


# Where a whole optimizer is of one mind.
_OF_THE_WHOLE = ("gradient_release",)


@functools.cache
def group_defaults(name: str) -> Mapping[str, Any]:
    """The options of an optimizer that may differ between its parameter groups, with their defaults."""
    name = canonical_name(name)
    group = trial(get_optimizer_info(name).opt_class, resolve_options(name, {})).param_groups[0]
    return {option: group[option] for option in option_names(name) if option in group and option not in _OF_THE_WHOLE}
