"""Loading a state_dict: all of it or, with an error that says why not, nothing."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hfoptim.engine import checks, storage
from hfoptim.engine.ambient import lasting
from hfoptim.engine.checkpoints import foreign
from hfoptim.engine.checkpoints.correspondence import described, ordered_groups
from hfoptim.engine.checkpoints.hooks import hooked_load
from hfoptim.engine.distributed import dtensor
from hfoptim.engine.options import ENGINE_DEFAULTS, OF_THE_RUN
from hfoptim.engine.rule import zeros

if TYPE_CHECKING:
    from hfoptim.engine.optimizer import EngineOptimizer
    from hfoptim.engine.rule import Rule

# What a group has that is not read from a checkpoint: parameters, what torch adds, the options of the run that loads.
_OF_THE_RUN = {"params", "param_names", "capturable", "differentiable", *OF_THE_RUN}

# What schedules and grouping functions (torch's, timm's) write into groups beside an optimizer's hyper-parameters.
_OF_SCHEDULES = {"initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum", "swa_lr", "lr_scale", "name"}

# What no optimizer of ours has got later: without them a state_dict is another's.
_IN_ALL = {"lr", "betas", "eps", "weight_decay", "momentum", "rank"}

# Options of this engine in every state_dict of it, and together in nobody else's.
_OF_ENGINE = {"caution", "kahan_sum"}


def portable(state_dict: dict[str, Any]) -> dict[str, Any]:
    """A state_dict with the entries of its groups as Python's own numbers, text and tuples, see `checks.portable`."""
    return {**state_dict, "param_groups": [checks.portable(group) for group in state_dict["param_groups"]]}


def load(optimizer: EngineOptimizer, state_dict: dict[str, Any]) -> None:
    """Put `state_dict` into `optimizer`. torch's own loader would cast the state to the parameters' dtype."""
    hooked_load(optimizer, state_dict, partial(_load, optimizer))


def _load(optimizer: EngineOptimizer, state_dict: dict[str, Any]) -> None:
    state_dict = foreign.plain(optimizer, state_dict)
    groups = [_match_group(optimizer, i, saved) for i, saved in enumerate(ordered_groups(optimizer, state_dict))]
    own = {key: param for group, order in groups for key, param in zip(order, group["params"], strict=True)}
    group_of = {param: group for group, _ in groups for param in group["params"]}
    # Some peers, such as timm's Adan, count the steps of a group, not of a parameter.
    counted = {key: g["step"] for g in state_dict["param_groups"] if "step" in g for key in g["params"]}
    owners = optimizer.owners_now()
    elsewhere = owners.elsewhere if owners is not None else set()
    state: defaultdict[Any, dict[str, Any]] = defaultdict(dict)
    for key, saved in state_dict["state"].items():
        if key in own:
            param = own[key]
            if saved and key in counted:
                saved = {"step": counted[key], **saved}
            try:
                matched = _match_state(optimizer, param, saved, group_of[param])
            except ValueError as error:
                raise ValueError(
                    f"{described(optimizer, param)}: {error}{_taken_in_order(optimizer, state_dict)}"
                ) from error
            kept = {"step"} if param in elsewhere else matched.keys()
            state[param] = {name: value for name, value in matched.items() if name in kept}
        else:
            state[key] = saved
    optimizer.__setstate__({"state": state, "param_groups": [group for group, _ in groups]})
    optimizer.set_owners(owners)


def _match_group(optimizer: EngineOptimizer, index: int, saved: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """The group as it will be, and the saved keys of its parameters."""
    cls, current = type(optimizer), optimizer.param_groups[index]
    foreign = [
        name
        for name, value in saved.items()
        if name not in current
        and name not in _OF_THE_RUN | _OF_SCHEDULES | {"maximize", "step"}
        and not _is_initial_value(name, current)
        and not _changes_nothing(optimizer, name, value, {**current, **saved})
    ]
    absent = [
        name
        for name in optimizer.defaults
        if name != "differentiable" and name not in saved and name not in ENGINE_DEFAULTS
    ]
    ours = saved.keys() >= _OF_ENGINE
    lacking = [name for name in absent if name not in cls.absent_from_peers and (name in _IN_ALL or not ours)]
    if foreign or lacking:
        what = [f"has {name}={saved[name]!r}" for name in foreign] + [f"lacks {name!r}" for name in lacking]
        raise ValueError(f"the state_dict is not one of {cls.__name__}: group {index} {', '.join(what)}")
    group = {name: current[name] for name in current if name in _OF_THE_RUN or name in optimizer.defaults}
    if ours:
        # Of an earlier version, which did what these options have as their defaults since.
        group |= {name: optimizer.own_default(name) for name in absent}
    for name, value in saved.items():
        kept = name in current or name in _OF_SCHEDULES | {"maximize"} or _is_initial_value(name, current)
        if name not in _OF_THE_RUN and kept:
            # torch.distributed.checkpoint makes lists of tuples.
            tupled = isinstance(value, list) and isinstance(current.get(name), tuple)
            group[name] = tuple(value) if tupled else deepcopy(value)
    if group["corrected_weight_decay"] and not group.get("max_lr") and "max_lr_snapshot" in saved:
        group["max_lr"] = saved["max_lr_snapshot"]  # timm's name for it
    if "param_names" in saved:
        group["param_names"] = saved["param_names"]
    try:
        optimizer.check_group(group)
    except (TypeError, ValueError) as error:
        raise type(error)(f"group {index} of the state_dict: {error}") from error
    return group, saved["params"]


def _changes_nothing(optimizer: EngineOptimizer, name: str, value: Any, group: dict[str, Any]) -> bool:
    """Whether a peer's hyper-parameter that this class has not changes nothing here at that value, see `peer_flags`."""
    flags = optimizer.peer_flags
    return name in flags and bool(
        flags[name](optimizer, value, group) if callable(flags[name]) else value is flags[name]
    )


def _taken_in_order(optimizer: EngineOptimizer, state_dict: dict[str, Any]) -> str:
    """What is to be said where parameters were not found by name."""
    sides = {"the state_dict": state_dict["param_groups"], "the optimizer": optimizer.param_groups}
    lacking = [side for side, groups in sides.items() if not all(group.get("param_names") for group in groups)]
    if not lacking:
        return ""
    which = f"{' and '.join(lacking)} {'has' if len(lacking) == 1 else 'have'} no names"
    return f"; {which}, so parameters were taken in their order"


def _is_initial_value(name: str, group: Mapping[str, Any]) -> bool:
    """Whether an entry is the first value of a hyper-parameter that follows a curve: `initial_weight_decay`."""
    of = name.removeprefix("initial_")
    return of != name and (of in group or re.fullmatch(r"beta\d|(\w+)\[\d+\]", of) is not None)


def _match_state(
    optimizer: EngineOptimizer, param: Tensor, saved: dict[str, Any], group: dict[str, Any]
) -> dict[str, Any]:
    """The saved state of one parameter, on its device and in the form that the group asks for."""
    cls = type(optimizer)
    saved = optimizer.adapt_loaded(param, dict(saved), group) if saved else {}
    if not saved:
        return {}
    rule = optimizer.rule_for(param, group)
    saved = {
        cls.peer_state.get(name) or name: value
        for name, value in saved.items()
        if cls.peer_state.get(name, name) is not None or name in rule.state
    }
    forms = dict(zip(rule.state, storage.storages(rule, param, group), strict=True))
    wanted = {"step", *rule.state}
    # Also without codes: where forms differ, torch.distributed.checkpoint leaves those of the state it loads into.
    scales = {storage.scale_name(name) for name in rule.state}
    if {*saved} - cls.occasional_state - scales != wanted:
        raise ValueError(
            f"the state_dict is not one of {cls.__name__}: it has the state {', '.join(sorted(map(str, saved)))} here, "
            f"expected {', '.join(sorted(wanted))}"
        )
    out: dict[str, Any] = {}
    saved = {name: lasting(value) if isinstance(value, Tensor) else value for name, value in saved.items()}
    for name, value in saved.items():
        if name == "step":
            out[name] = torch.as_tensor(value, dtype=torch.float32, device="cpu").detach().reshape(()).clone()
            continue
        if name in scales:
            continue
        # A number's does not go by the default dtype and device.
        exact = storage.exact_dtype(param.dtype) if isinstance(value, (int, float)) else None
        tensor = value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=exact, device="cpu")
        shape = param.shape if name in cls.occasional_state else _state_shape(rule, name, param)
        if tensor.shape != shape and not storage.is_coded(tensor):
            raise ValueError(f"{name} has the shape {tuple(tensor.shape)} in the state_dict, expected {tuple(shape)}")
        if name in forms:
            out |= dtensor.converted(forms[name], rule, name, {**saved, name: tensor}, param)
        else:
            out[name] = dtensor.placed(tensor, param, zeros)
    storage.fit_residual(storage.rounding_of(param.dtype, group), out)
    return out


def _state_shape(rule: Rule, name: str, param: Tensor) -> torch.Size:
    return rule.first(name, torch.empty(param.shape, device="meta"), param.dtype).shape
