"""Loading a state_dict: all of it or, with an error that says why not, nothing."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from hfoptim.engine import sharding, storage
from hfoptim.engine.rule import zeros

if TYPE_CHECKING:
    from hfoptim.engine.optimizer import RuleOptimizer
    from hfoptim.engine.rule import Rule

# How a step is computed belongs to the run that loads, not to the checkpoint.
_OF_THE_RUN = {
    *("params", "param_names", "foreach", "fused", "capturable", "differentiable"),
    *("kahan_sum", "stochastic_rounding", "master_weights", "state_dtype", "state_rounding"),
    "gradient_release",
}

# What schedules and grouping functions (torch's, timm's) write into groups beside an optimizer's hyper-parameters.
_OF_SCHEDULES = {"initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum", "swa_lr", "lr_scale", "name"}


def load(optimizer: RuleOptimizer, state_dict: dict[str, Any]) -> None:
    """Put `state_dict` into `optimizer`. torch's own loader would cast the state to the parameters' dtype."""
    if isinstance(state_dict, dict):  # hooks may change it, and the caller's own stays as it is
        state_dict = state_dict.copy()
    for pre_hook in optimizer._optimizer_load_state_dict_pre_hooks.values():
        changed = pre_hook(optimizer, state_dict)
        if changed is not None:
            state_dict = changed
    groups = [_match_group(optimizer, i, saved) for i, saved in enumerate(saved_groups(optimizer, state_dict))]
    own = {key: param for group, order in groups for key, param in zip(order, group["params"], strict=True)}
    group_of = {param: group for group, _ in groups for param in group["params"]}
    # Some peers, such as timm's Adan, count the steps of a group, not of a parameter.
    counted = {key: g["step"] for g in state_dict["param_groups"] if "step" in g for key in g["params"]}
    state: defaultdict[Any, dict[str, Any]] = defaultdict(dict)
    for key, saved in state_dict["state"].items():
        if key in own:
            param = own[key]
            if saved and key in counted:
                saved = {"step": counted[key], **saved}
            state[param] = _match_state(optimizer, key, param, saved, group_of[param])
        else:
            state[key] = saved
    optimizer.__setstate__({"state": state, "param_groups": [group for group, _ in groups]})
    for post_hook in optimizer._optimizer_load_state_dict_post_hooks.values():
        post_hook(optimizer)


def saved_groups(optimizer: Optimizer, state_dict: Any) -> list[dict[str, Any]]:
    """The groups of a state_dict, if it is one and they are as many as the optimizer's, as large."""
    if not isinstance(state_dict, dict) or not {"state", "param_groups"} <= state_dict.keys():
        raise ValueError(
            "state_dict must be a dict with the keys 'state' and 'param_groups', as optimizer.state_dict() is"
        )
    saved = state_dict["param_groups"]
    if len(saved) != len(optimizer.param_groups):
        raise ValueError(
            f"the state_dict has {len(saved)} parameter groups, {type(optimizer).__name__} has "
            f"{len(optimizer.param_groups)}"
        )
    for index, (current, group) in enumerate(zip(optimizer.param_groups, saved, strict=True)):
        if len(group["params"]) != len(current["params"]):
            raise ValueError(
                f"group {index} of the state_dict has {len(group['params'])} parameters, here it has "
                f"{len(current['params'])}"
            )
    return list(saved)


def saved_order(index: int, current: dict[str, Any], saved: dict[str, Any]) -> list[Any]:
    """The saved keys of a group's parameters, in the order of the parameters here: by name, where both have names."""
    names, saved_names = current.get("param_names"), saved.get("param_names")
    if not names or not saved_names:
        return list(saved["params"])
    if sorted(names) != sorted(saved_names):
        missing = sorted(set(names) ^ set(saved_names))
        raise ValueError(f"group {index} of the state_dict has other parameters: {', '.join(missing[:5])} differ")
    by_name = dict(zip(saved_names, saved["params"], strict=True))
    return [by_name[name] for name in names]


def reordered_groups(optimizer: Optimizer, state_dict: Any) -> list[dict[str, Any]]:
    """The groups of a state_dict with their keys and names in the order of the optimizer's parameters.

    For an optimizer around others, which hands each of them its part.
    """
    groups = saved_groups(optimizer, state_dict)
    for index, (current, saved) in enumerate(zip(optimizer.param_groups, groups, strict=True)):
        groups[index] = {**saved, "params": saved_order(index, current, saved)}
        if "param_names" in current and "param_names" in saved:
            groups[index]["param_names"] = list(current["param_names"])
    return groups


def _match_group(optimizer: RuleOptimizer, index: int, saved: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """The group as it will be, and the saved parameter keys in the order of its parameters."""
    cls, current = type(optimizer), optimizer.param_groups[index]
    foreign = [
        name
        for name, value in saved.items()
        if name not in current
        and name not in _OF_THE_RUN | _OF_SCHEDULES | {"maximize", "step"}
        and not _is_initial_value(name, current)
        and not optimizer.ignores_peer_flag(name, value, {**current, **saved})
    ]
    absent = [
        name
        for name in optimizer.defaults
        if name != "differentiable"
        and name not in saved
        and name not in cls.absent_from_peers
        and name not in optimizer.engine_option_names()
    ]
    if foreign or absent:
        what = [f"has {name}={saved[name]!r}" for name in foreign] + [f"lacks {name!r}" for name in absent]
        raise ValueError(f"the state_dict is not one of {cls.__name__}: group {index} {', '.join(what)}")
    group = {name: current[name] for name in current if name in _OF_THE_RUN or name in optimizer.defaults}
    for name, value in saved.items():
        kept = name in current or name in _OF_SCHEDULES | {"maximize"} or _is_initial_value(name, current)
        if name not in _OF_THE_RUN and kept:
            # torch.distributed.checkpoint makes lists of tuples.
            tupled = isinstance(value, list) and isinstance(current.get(name), tuple)
            group[name] = tuple(value) if tupled else deepcopy(value)
    order = saved_order(index, current, saved)
    optimizer.check_group(group)
    return group, order


def _is_initial_value(name: str, group: Mapping[str, Any]) -> bool:
    """Whether an entry is the first value of a hyper-parameter that follows a curve: `initial_weight_decay`."""
    of = name.removeprefix("initial_")
    return of != name and (of in group or re.fullmatch(r"beta\d|(\w+)\[\d+\]", of) is not None)


def _match_state(
    optimizer: RuleOptimizer, key: Any, param: Tensor, saved: dict[str, Any], group: dict[str, Any]
) -> dict[str, Any]:
    """The saved state of one parameter, on its device and in the form that the group asks for."""
    cls = type(optimizer)
    saved = optimizer.adapt_loaded(param, dict(saved), group) if saved else {}
    if not saved:
        return {}
    rule = optimizer.rule_for(param, group)
    forms = dict(zip(rule.state, storage.storages(rule, param, group), strict=True))
    wanted = {"step", *rule.state}
    # Also without codes: where forms differ, torch.distributed.checkpoint leaves those of the state it loads into.
    scales = {storage.scale_name(name) for name in rule.state}
    if {*saved} - cls.occasional_state - scales != wanted:
        raise ValueError(
            f"the state_dict is not one of {cls.__name__}: parameter {key} has the state {sorted(map(str, saved))}, "
            f"expected {sorted(wanted)}"
        )
    out: dict[str, Any] = {}
    for name, value in saved.items():
        if name == "step":
            out[name] = torch.as_tensor(value, dtype=torch.float32).detach().to("cpu").reshape(()).clone()
            continue
        if name in scales:
            continue
        tensor = torch.as_tensor(value)
        shape = param.shape if name in cls.occasional_state else _state_shape(rule, name, param)
        if tensor.shape != shape and not storage.is_coded(tensor):
            raise ValueError(
                f"{name} of parameter {key} has the shape {tuple(tensor.shape)} in the state_dict, expected "
                f"{tuple(shape)}"
            )
        if name in forms:
            out |= sharding.converted(forms[name], rule, name, {**saved, name: tensor}, param)
        else:
            out[name] = sharding.placed(tensor, param, zeros)
    storage.fit_rest(storage.rounding_of(param.dtype, group), out)
    return out


def _state_shape(rule: Rule, name: str, param: Tensor) -> torch.Size:
    return rule.first(name, torch.empty(param.shape, device="meta"), param.dtype).shape
