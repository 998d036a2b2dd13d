"""MMEngine's `paramwise_cfg`: learning rates and weight decay by kind of module, and by pieces of names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from hfoptim.engine.checks import flag, learning_rate, number, shape_in_model, warn
from hfoptim.engine.parameter_names import bare_names_of, unwrapped
from hfoptim.param_groups.selection import ParamGroups

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.GroupNorm, nn.LayerNorm)
_DEFORMABLE = ("DeformConv2d", "ModulatedDeformConv2d")


def param_groups_paramwise(
    model: nn.Module,
    lr: float | None = None,
    weight_decay: float | None = None,
    *,
    custom_keys: Mapping[str, Mapping[str, Any]] | None = None,
    bias_lr_mult: float | None = None,
    bias_decay_mult: float | None = None,
    norm_decay_mult: float | None = None,
    dwconv_decay_mult: float | None = None,
    flat_decay_mult: float | None = None,
    dcn_offset_lr_mult: float | None = None,
    bypass_duplicate: bool = False,
) -> ParamGroups:
    """Groups by MMEngine's `paramwise_cfg`: multiples of the learning rate and of the weight decay.

    A parameter whose name has one of `custom_keys` in it has what that says, and nothing else counts: the longest key,
    of several the first in the alphabet. For all others: the first of norm, bias, depthwise convolution and vector
    that it is, and has a multiple given, decides its weight decay. What nothing is said about has the optimizer's own
    options. MMEngine makes a group of each parameter; here those with the same options share one.

    Norms are BatchNorm, InstanceNorm, GroupNorm and LayerNorm, as there; RMSNorm's scales are vectors.

    Args:
        model: its trainable parameters are grouped.
        lr (default None): the learning rate that is multiplied; needed where any is.
        weight_decay (None): the weight decay that is multiplied; needed where any is.
        custom_keys (None): for pieces of names `lr_mult` and `decay_mult`, and other options of the optimizer, which go
            into the group as they are.
        bias_lr_mult (None): for biases, but not those of norms.
        bias_decay_mult (None): for biases, but not those of norms and of depthwise convolutions.
        norm_decay_mult (None): for all parameters of norms.
        dwconv_decay_mult (None): for all parameters of depthwise convolutions.
        flat_decay_mult (None): for all other vectors.
        dcn_offset_lr_mult (None): for the offsets of mmcv's deformable convolutions, in place of `bias_lr_mult`.
        bypass_duplicate (False): leave out a parameter that is found at a second place of the model.

    Returns:
        Parameter groups with named parameters.

    Raises:
        ValueError: a number out of range, a multiple of what is not given, or a parameter at two places without
            `bypass_duplicate`.
        TypeError: a value of the wrong type.

    Source:
        MMEngine 0.10, `DefaultOptimWrapperConstructor`.
    """
    keys = _checked_keys(custom_keys)
    flag("bypass_duplicate", bypass_duplicate)
    rate = None if lr is None else learning_rate("lr", lr)
    decay = None if weight_decay is None else number("weight_decay", weight_decay)

    def scaled(name: str, base: Any, multiple: Any) -> Any:
        if base is None:
            what = "lr" if "lr" in name else "weight_decay"
            raise ValueError(f"{name}={multiple!r} multiplies the {what}, which is not given; give it, too")
        return base * number(name, multiple)

    mults = {
        "bias_lr_mult": bias_lr_mult,
        "bias_decay_mult": bias_decay_mult,
        "norm_decay_mult": norm_decay_mult,
        "dwconv_decay_mult": dwconv_decay_mult,
        "flat_decay_mult": flat_decay_mult,
        "dcn_offset_lr_mult": dcn_offset_lr_mult,
    }
    values = {
        name: scaled(name, rate if "lr" in name else decay, mult) for name, mult in mults.items() if mult is not None
    }
    for key, options in keys.items():
        for name, option, base in (("lr_mult", "lr", rate), ("decay_mult", "weight_decay", decay)):
            if name in options:
                options[option] = scaled(f"custom_keys[{key!r}]: {name}", base, options.pop(name))

    found: list[tuple[dict[str, Any], list[Any]]] = []
    seen: dict[int, str] = {}
    used: set[str] = set()
    for name, short, param, module, parent in _places(model):
        if id(param) in seen:
            if bypass_duplicate:
                continue
            raise ValueError(
                f"{name} is the parameter {seen[id(param)]}, found at a second place; give bypass_duplicate=True to "
                f"leave it out there"
            )
        seen[id(param)] = name
        if not param.requires_grad:
            continue
        decides = next((key for key in keys if key in short), None)
        if decides is None:
            options = _by_kind(short, param, module, parent, values)
        else:
            used.add(decides)
            options = dict(keys[decides])
        for known, members in found:
            if known == options:
                members.append((name, param))
                break
        else:
            found.append((options, [(name, param)]))
    unused = [repr(key) for key in keys if key not in used]
    if unused:
        warn(f"no parameter is decided by custom_keys {', '.join(unused)}")
    return [{"params": members, **options} for options, members in found]


def _checked_keys(custom_keys: Any) -> dict[str, dict[str, Any]]:
    """The keys in the order in which they are looked for."""
    if custom_keys is None:
        return {}
    if not isinstance(custom_keys, Mapping):
        raise TypeError(f"custom_keys={custom_keys!r} is a {type(custom_keys).__name__}, expected a mapping")
    for key, options in custom_keys.items():
        if not isinstance(key, str) or not isinstance(options, Mapping):
            raise TypeError(f"custom_keys[{key!r}]={options!r}, expected a piece of names and {{'lr_mult': 0.1}}")
    return {key: dict(custom_keys[key]) for key in sorted(custom_keys, key=lambda key: (-len(key), key))}


def _places(model: nn.Module) -> Any:
    """(name, bare name, parameter, module, module above) of every place of a parameter, in MMEngine's order."""
    inside = unwrapped(model)
    names = bare_names_of(model)
    modules = dict(inside.named_modules(remove_duplicate=False))
    full = {short: name for name, short in names.items()}
    for path, module in modules.items():
        parent = modules[path.rpartition(".")[0]] if path else None
        for own, param in module.named_parameters(recurse=False):
            short = f"{path}.{own}" if path else own
            yield full.get(short, short), short if path else f".{own}", param, module, parent


def _by_kind(short: str, param: Any, module: nn.Module, parent: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a parameter that no key names."""
    path, _, own = short.rpartition(".")
    norm, bias = isinstance(module, _NORMS), own == "bias"
    depthwise = isinstance(module, nn.Conv2d) and module.in_channels == module.groups
    deformable = any(
        cls.__name__ in _DEFORMABLE and cls.__module__.split(".")[0] == "mmcv" for cls in type(parent).__mro__
    )
    options: dict[str, Any] = {}
    if bias and not norm and not deformable and "bias_lr_mult" in values:
        options["lr"] = values["bias_lr_mult"]
    if "conv_offset" in path and deformable and isinstance(module, nn.Conv2d) and "dcn_offset_lr_mult" in values:
        options["lr"] = values["dcn_offset_lr_mult"]
    kinds = {
        "norm_decay_mult": norm,
        "bias_decay_mult": bias and not deformable,
        "dwconv_decay_mult": depthwise,
        "flat_decay_mult": len(shape_in_model(short, param)) == 1 and not deformable,
    }
    decides = next((name for name, is_one in kinds.items() if is_one and name in values), None)
    return options if decides is None else {**options, "weight_decay": values[decides]}
