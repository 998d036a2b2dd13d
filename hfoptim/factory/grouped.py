"""From names and a grouping to optimizers: what differs between parameters is checked, and made."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from hfoptim.engine.checks import closest
from hfoptim.param_groups.options import OPTIONS, Base, Grouping, check_patterns
from hfoptim.param_groups.selection import ParamGroups, split_hidden_matrices
from hfoptim.registry.lookup import (
    canonical_name,
    complete_groups,
    dummy,
    engine_class_of,
    finds_matrices,
    get_optimizer_info,
    group_defaults,
)
from hfoptim.wrappers import CombinedOptimizer

DECAY_PATTERNS = ("include_in_weight_decay", "exclude_from_weight_decay")


def take_grouping(
    name: str, options: Mapping[str, Any], fit: Callable[[str, Any, Any], Any] = lambda option, value, default: value
) -> tuple[Grouping, dict[str, Any]]:
    """Part the options that say how the parameters differ (`OPTIONS`) from those of the optimizer.

    Args:
        name: the optimizer's name.
        options: both kinds of options.
        fit: called as fit(option, value, default) for every value; returns the one to take.

    Returns:
        (grouping, the other options). The grouping names other optimizers by their canonical names.

    Raises:
        ValueError: unknown names of optimizers or options in a pattern, or a value out of range.
        TypeError: a value of the wrong type.
    """
    given = {option: options[option] for option in OPTIONS if options.get(option) is not None}
    for option in ("layer_decay", "head_lr"):
        if option in given:
            given[option] = fit(option, given[option], 1.0)
    if "param_options" in given:
        check_patterns(given["param_options"])
        given["param_options"] = {
            pattern: _pattern_options(name, pattern, values, fit) for pattern, values in given["param_options"].items()
        }
    return Grouping(**given), {option: value for option, value in options.items() if option not in OPTIONS}


def _pattern_options(main: str, pattern: str, given: Mapping[str, Any], fit: Callable[..., Any]) -> dict[str, Any]:
    """The options of a pattern, checked by name; with the canonical name of another optimizer, if there is one."""
    name, options = canonical_name(main), dict(given)
    try:
        other = canonical_name(options.pop("optimizer", name))
        own = {**group_defaults(other), "lr_scale": 1.0}
        for option in options:
            if option not in own:
                known = closest(option, [*own, "optimizer"])
                raise ValueError(f"{other} has no option {option!r} that may differ between parameters; {known}")
        options = {option: fit(option, value, own[option]) for option, value in options.items()}
    except (ValueError, TypeError) as error:
        raise type(error)(f"param_options[{pattern!r}]: {error}") from error
    engine_class = engine_class_of(get_optimizer_info(other).opt_class)
    following = engine_class.defaults_by_name(options) if engine_class else {}
    return {**following, **options, **({} if other == name else {"optimizer": other})}


def check_grouping(grouping: Grouping, chosen: Mapping[str, Mapping[str, Any]]) -> None:
    """Check the values of a grouping, and whether optimizers can do what it asks for.

    Args:
        grouping: the grouping.
        chosen: the constructor's keywords of every optimizer by its canonical name, the main one first.

    Raises:
        ValueError: a value is out of range, a learning rate is scaled that an optimizer sets itself, two learning rates
            of an optimizer that has one for all, or two that say which parameters are decayed.
        TypeError: a value of the wrong type.
    """
    main = next(iter(chosen))
    closing = [name for name in chosen if len(chosen) > 1 and get_optimizer_info(name).needs_closure]
    if closing:
        raise ValueError(
            f"{closing[0]} needs a closure that computes the loss again, which the steps of other optimizers would "
            f"disturb: param_options cannot name it, nor others beside it"
        )
    for pattern, values in grouping.param_options.items():
        given = {option: value for option, value in values.items() if option not in ("optimizer", "lr_scale")}
        name = values.get("optimizer", main)
        fixed = [option for option in DECAY_PATTERNS if chosen[name].get(option)]
        if fixed and "weight_decay" in given:
            raise ValueError(
                f"param_options[{pattern!r}] has weight_decay={given['weight_decay']!r}, and {fixed[0]} says which "
                f"parameters are decayed; give one of them"
            )
        try:
            dummy(get_optimizer_info(name).opt_class, chosen[name], given)
        except (ValueError, TypeError) as error:
            raise type(error)(f"param_options[{pattern!r}]: {error}") from error
    if len(chosen) > 1 and any(options.get("gradient_release") for options in chosen.values()):
        raise ValueError(
            f"gradient_release=True is for one optimizer, and param_options names {' and '.join(list(chosen)[1:])} too"
        )
    if grouping.head_lr is not None:
        given = {"lr": grouping.head_lr}
        try:
            dummy(get_optimizer_info(main).opt_class, chosen[main], *complete_groups(main, [given], chosen[main]))
        except (ValueError, TypeError) as error:
            raise type(error)(f"head_lr={grouping.head_lr!r}: {error}") from error
    for name, options in chosen.items():
        _check_rates(grouping, name, name == main, options)


def _check_rates(grouping: Grouping, name: str, main: bool, options: Mapping[str, Any]) -> None:
    """Check the learning rates that a grouping gives parameters of one optimizer."""
    opt_class = get_optimizer_info(name).opt_class
    lr = dummy(opt_class, options).defaults["lr"]
    patterns = {p: o for p, o in grouping.param_options.items() if o.get("optimizer", name if main else None) == name}
    absolute = {f"param_options[{p!r}]": o["lr"] for p, o in patterns.items() if "lr" in o}
    if main and grouping.head_lr is not None:
        absolute["head_lr"] = grouping.head_lr
    scales = {f"param_options[{p!r}]": o["lr_scale"] for p, o in patterns.items() if "lr_scale" in o}
    if grouping.layer_decay is not None:
        scales["layer_decay"] = grouping.layer_decay
    if grouping.mup is not None:
        scales["mup"] = 0.5  # whatever it will be
    if lr is None and scales:
        raise ValueError(f"{name} sets its own learning rate, which {next(iter(scales))} changes; give lr")
    if absolute and any(callable(options.get(option)) for option in ("lr", "learning_rate")):
        raise ValueError(
            f"{next(iter(absolute))} gives a learning rate, and that of {name} is a function of the step, which would "
            f"replace it; use lr_scale"
        )
    runs = engine_class_of(opt_class)
    if runs is None or not runs.one_lr:
        return
    first = [lr] if main or any("lr" not in given for given in patterns.values()) else []
    rates = [*first, *absolute.values(), *(lr * scale for scale in scales.values())]
    if len({float(rate) for rate in rates} - {0.0}) > 1:
        said = ", ".join([*scales, *absolute])
        raise ValueError(
            f"{name} finds one step size for all of its parameters, so that their lr must be the same, or 0 for frozen "
            f"ones; {said} would make it differ"
        )


def group_params(
    model: nn.Module,
    decayed: Collection[str],
    grouping: Grouping,
    chosen: Mapping[str, Mapping[str, Any]],
    fallback: Collection[int] = (),
) -> dict[str, ParamGroups]:
    """The parameter groups of every optimizer that gets any.

    Args:
        model: the model.
        decayed: the names of the parameters that get weight decay.
        grouping: how they differ.
        chosen: the constructor's keywords of every optimizer by its canonical name, the main one first.
        fallback (default ()): the ids of parameters that count as no hidden matrices.

    Raises:
        ValueError: a pattern decides nothing, there is no head, or nothing is left for the main optimizer.
    """
    bases = {}
    for name, options in chosen.items():
        defaults = dummy(get_optimizer_info(name).opt_class, options).defaults
        eps = defaults.get("eps")
        bases[name] = Base(defaults["lr"], defaults.get("weight_decay"), eps if isinstance(eps, float) else None)
    divided = grouping.divide(model, decayed, bases)
    main = next(iter(chosen))
    if not divided[main]:
        raise ValueError(f"param_options leaves no parameter for {main}; choose another one for the rest")
    for name, groups in divided.items():
        if finds_matrices(name, chosen[name]):
            divided[name] = split_hidden_matrices(model, groups, fallback)
        divided[name] = complete_groups(name, divided[name], chosen[name])
    return {name: groups for name, groups in divided.items() if groups}


def make_grouped(
    groups: Mapping[str, ParamGroups], chosen: Mapping[str, Mapping[str, Any]]
) -> tuple[type[Optimizer], Any, dict[str, Any]]:
    """(class, first argument, keywords) of the optimizer for parameters that `group_params` has grouped."""
    classes = {name: get_optimizer_info(name).opt_class for name in groups}
    if len(groups) == 1:
        ((name, own),) = groups.items()
        return classes[name], own, dict(chosen[name])
    create: Mapping[str, Callable[..., Optimizer]] = classes
    return CombinedOptimizer, [create[name](own, **chosen[name]) for name, own in groups.items()], {}
