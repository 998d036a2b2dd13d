"""Names to optimizers: list them, look them up, and the options they take."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatch
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from hfoptim.engine import ENGINE_DEFAULTS, RuleOptimizer, checks, peer_options
from hfoptim.engine.checks import closest
from hfoptim.providers import PROVIDERS
from hfoptim.registry.catalogue import COMPOSED, WRAPPERS, key, known_optimizers
from hfoptim.registry.info import OptimInfo
from hfoptim.wrappers import around, named

# What may stand in front of a name.
_WRAPPERS = {info.name: info for info in WRAPPERS}
_COMPOSED = {info.name: info for info in COMPOSED}


def canonical_name(name: str) -> str:
    """The registry's spelling of a name given in any case, with `-`, `_` or neither.

    Raises:
        TypeError: not a string.
        ValueError: unknown; the message has the closest names.
    """
    if not isinstance(name, str):
        raise TypeError(f"optimizer name {name!r} is a {type(name).__name__}, expected a string such as 'adamw'")
    known = known_optimizers()
    found = known.canonical(name)
    if found is not None:
        return found
    spelled, close = key(name), [*known.spellings(name), *_COMPOSED]
    if spelled in _COMPOSED:
        return spelled
    for prefix in _WRAPPERS:
        if not spelled.startswith(key(prefix)):
            continue
        inner = known.canonical(spelled.removeprefix(key(prefix)))
        if inner is not None:
            return f"{prefix}_{inner}"
        if spelled == key(prefix):
            raise ValueError(f"{name!r} goes around another optimizer; write its name behind: '{prefix}_sgd'")
        close = [f"{prefix}_{each}" for each in close]
    raise ValueError(f"unknown optimizer {name!r}; {closest(name.lower(), close)}")


def get_optimizer_info(name: str) -> OptimInfo:
    """The registry's entry for a name.

    Raises:
        ValueError: unknown name; the message has the closest ones.
    """
    name = canonical_name(name)
    if known_optimizers().canonical(name) is not None:
        return known_optimizers().get(name)
    if name in _COMPOSED:
        return _COMPOSED[name]
    prefix, inner = inside(name)
    return _wrapped(prefix, known_optimizers().get(inner))


def inside(name: str) -> tuple[str, str]:
    """(what stands in front of a canonical name, the name of the optimizer inside): ("", name) where nothing does."""
    if known_optimizers().canonical(name) is None and name not in _COMPOSED:
        for prefix in _WRAPPERS:
            if name.startswith(f"{prefix}_"):
                return prefix, name.removeprefix(f"{prefix}_")
    return "", name


def finds_matrices(name: str, options: Mapping[str, Any]) -> bool:
    """Whether an optimizer is to be told which parameters of a model are matrices inside the network.

    Not where its option `use_muon` says for all of them which they are.
    """
    return get_optimizer_info(name).hidden_matrices and options.get("use_muon") is None


@functools.cache
def _wrapped(prefix: str, info: OptimInfo) -> OptimInfo:
    """The entry of an optimizer with another one around it."""
    around_it = _WRAPPERS[prefix]
    return dataclasses.replace(
        info,
        name=f"{prefix}_{info.name}",
        load=lambda: around(around_it.wrapper, info.opt_class),
        description=f"{around_it.wrapper.__name__} around {info.name}: {around_it.description}",
        source=around_it.source,
        aliases=(),
        needs_closure=info.needs_closure or around_it.needs_closure,
    )


def engine_class_of(opt_class: type[Optimizer]) -> type[RuleOptimizer] | None:
    """The class that runs on the engine: this one, or the one inside it; None for an optimizer of torch's."""
    while hasattr(opt_class, "inner"):
        opt_class = opt_class.inner
    return opt_class if issubclass(opt_class, RuleOptimizer) else None


def list_optimizers(
    filter: str | list[str] = "",
    exclude_filters: list[str] | None = None,
    with_description: bool = False,
    provider: str | None = None,
) -> list[str] | list[tuple[str, str]]:
    """Names of the optimizers there are, sorted.

    Without `provider` they are those of this package and the registered ones, the same ones whatever else is
    installed. Names of other packages (`hfoptim.providers`) work everywhere as well, and are listed by provider.

    Args:
        filter (default ""): a pattern or several, with the wildcards `*`, `?`, `[...]`; one without wildcards matches
            every name that contains it. Empty: all.
        exclude_filters (None): patterns of names to leave out.
        with_description (False): give (name, description) pairs.
        provider (None): "bitsandbytes", "deepspeed", "torchao", "torch", "apex" or "flashoptim", whether it is
            installed or not.

    Returns:
        The names, or pairs.

    Raises:
        ValueError: there is no such provider.
    """
    names = known_optimizers().names(outside=provider is not None)
    if provider is not None:
        if provider not in (known_providers := [each.name for each in PROVIDERS]):
            raise ValueError(f"provider {provider!r} is not known; {closest(str(provider), known_providers)}")
        names = [name for name in names if known_optimizers().get(name).provider == provider]
    include = [filter] if isinstance(filter, str) else list(filter) or [""]
    names = [name for name in names if any(_matches(name, pattern) for pattern in include)]
    names = [name for name in names if not any(_matches(name, pattern) for pattern in exclude_filters or ())]
    return [(name, known_optimizers().get(name).description) for name in names] if with_description else names


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


# What classes call their first argument; the second one is DeepSpeed's.
_PARAMS = ("params", "model_params")


def option_names(name: str) -> list[str]:
    """The options an optimizer takes, its own first, then the engine's, where it runs on that."""
    opt_class = get_optimizer_info(name).opt_class
    parameters = inspect.signature(opt_class).parameters.values()
    own = [p.name for p in parameters if p.name not in _PARAMS and p.kind is not p.VAR_KEYWORD]
    return [*own, *ENGINE_DEFAULTS] if engine_class_of(opt_class) else own


def check_options(name: str, options: Mapping[str, Any], also: Iterable[str] = ()) -> None:
    """Check that an optimizer takes all the options given.

    Args:
        name: its name.
        options: the options.
        also (default ()): further options to name in the message.

    Raises:
        ValueError: it does not; the message says what the option is called here, or names the closest ones.
    """
    known = [*option_names(name), *also]
    _refuse_engine_options(get_optimizer_info(name), options, known)
    # Their values decide, in the constructor.
    flags = peer_options.FLAGS if engine_class_of(get_optimizer_info(name).opt_class) else {}
    for option in options:
        if option not in known and option not in flags:
            raise ValueError(f"{canonical_name(name)} has no option {option!r}; {peer_options.hint(option, known)}")


def _refuse_engine_options(info: OptimInfo, options: Mapping[str, Any], known: Iterable[str]) -> None:
    foreign = [option for option in options if option in ENGINE_DEFAULTS and option not in known]
    if info.outside and foreign:
        raise ValueError(
            f"{foreign[0]}={options[foreign[0]]!r} is an option of hfoptim's own optimizers; {info.name} is "
            f"{info.provider}'s {info.opt_class.__name__}, which has {', '.join(known)}. "
            f"Ours with the same equations is {info.algorithm!r}"
        )


def resolve_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments to construct an optimizer with that is chosen by name: the name's own, then the given ones.

    Raises:
        ValueError: unknown name or option.
        TypeError: for an optimizer of torch's, a value that is no number where one is wanted.
    """
    info = get_optimizer_info(name)
    check_options(name, options)
    engine_class = engine_class_of(info.opt_class)
    if engine_class is None:
        options = _as_numbers(info.opt_class, options, whole=not info.outside)
    return {**info.defaults, **_following(name, options), **options}


def _following(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults that follow from the options given, where an optimizer is chosen by name."""
    engine_class = engine_class_of(get_optimizer_info(name).opt_class)
    return engine_class.defaults_by_name(options) if engine_class else {}


def _as_numbers(opt_class: type[Optimizer], options: Mapping[str, Any], whole: bool) -> dict[str, Any]:
    """Options with Python's own numbers, for a class that keeps in its groups what it is given.

    Args:
        opt_class: the class.
        options: its options.
        whole: whether a default that is an integer says that others have to be; a package's `weight_decay=0` does not.
    """
    found = dict(options)
    for option, parameter in inspect.signature(opt_class).parameters.items():
        default = parameter.default
        if option == "lr" and found.get("lr") is not None:
            found["lr"] = checks.learning_rate("lr", found["lr"])
        elif option in found and isinstance(default, (int, float)) and not isinstance(default, bool):
            number = checks.number(option, found[option], -math.inf)
            if isinstance(default, int) and whole:
                found[option] = checks.integer(option, found[option], 0)
            else:
                found[option] = int(number) if isinstance(default, int) and float(number).is_integer() else number
        elif option in found:
            found[option] = checks.portable(checks.plain(found[option]))
    return found


def complete_groups(name: str, params: Any, options: Mapping[str, Any]) -> Any:
    """Parameters as they are, and groups of them with what follows from their own options, as from options by name.

    Adafactor's own steps are switched off by an lr, whether it is given for all parameters or for a group of them.

    Args:
        name: the optimizer's name.
        params: parameters, named parameters, or dicts that define parameter groups.
        options: the constructor's arguments, from `resolve_options`. What they ask for beyond the name stays.
    """
    if isinstance(params, (torch.Tensor, dict, set, str)) or not isinstance(params, Iterable):
        return params  # the constructor says what is wrong with it
    bound = get_optimizer_info(name).defaults

    def completed(entry: Any) -> Any:
        if not isinstance(entry, dict):
            return entry
        for option, value in _following(name, entry).items():
            if option not in options or options[option] == bound.get(option):
                entry.setdefault(option, value)
        return entry

    return [completed(entry) for entry in params]


def dummy(opt_class: type[Optimizer], options: Mapping[str, Any], *groups: Mapping[str, Any]) -> Optimizer:
    """Make an optimizer for one small parameter, and one for each of the groups, to have its values checked.

    The parameters are named and matrices, as some optimizers need them.
    """

    def param(place: int) -> list[Any]:
        return [(f"weight{place}", nn.Parameter(torch.zeros(2, 2, dtype=torch.float32, device="cpu")))]

    create: Callable[..., Optimizer] = opt_class
    # What it warns of is said when the optimizer itself is made.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return create([{"params": param(place), **group} for place, group in enumerate([{}, *groups])], **options)


# Where a whole optimizer is of one mind.
_OF_THE_WHOLE = ("gradient_release",)


def option_defaults(name: str) -> dict[str, Any]:
    """Every option of an optimizer with its default.

    That of an optimizer that has been made by this name: a signature may leave it open.
    """
    info = get_optimizer_info(name)
    made, signature = made_of(info).defaults, inspect.signature(info.opt_class).parameters
    return {option: made.get(option, getattr(signature.get(option), "default", None)) for option in option_names(name)}


def group_defaults(name: str) -> dict[str, Any]:
    """The options of an optimizer that may differ between its parameter groups, with their defaults."""
    (group,) = made_of(get_optimizer_info(name)).param_groups
    return {option: group[option] for option in option_names(name) if option in group and option not in _OF_THE_WHOLE}


@functools.cache  # by entry: a name may be registered anew
def made_of(info: OptimInfo) -> Optimizer:
    return dummy(info.opt_class, resolve_options(info.name, {}))


def _made(name: str, params: Any, options: dict[str, Any]) -> Optimizer:
    resolved = resolve_options(name, options)
    return get_optimizer_class(name, bind_defaults=False)(complete_groups(name, params, resolved), **resolved)


named.made_by(_made)
