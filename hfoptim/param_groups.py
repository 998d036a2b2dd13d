"""Which parameter gets which weight decay and learning rate. Knows models, not optimizers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatch
from typing import Any

from torch import nn

from hfoptim.engine.checks import number, strings

ParamGroups = list[dict[str, Any]]

_INDEX = re.compile(r"(?:^|\.)(\d+)\.")


def _undecayed(model: nn.Module, extra: Iterable[str]) -> list[str]:
    """Names and patterns of parameters without decay: those given and those the model itself names."""
    own = getattr(model, "no_weight_decay", None)
    return [*strings("no_weight_decay_list", extra), *(own() if callable(own) else ())]


def _is_decayed(name: str, param: nn.Parameter, exempt: list[str], exclude_1d: bool) -> bool:
    if exclude_1d and (param.ndim <= 1 or name.endswith("bias")):
        return False
    return not any(name == pattern or fnmatch(name, pattern) for pattern in exempt)


def param_groups_weight_decay(
    model: nn.Module, weight_decay: float = 1e-5, no_weight_decay_list: Iterable[str] = ()
) -> ParamGroups:
    """Two groups: matrices and higher with weight decay; biases, norms and other vectors without.

    Args:
        model: its trainable parameters are grouped, each once.
        weight_decay (default 1e-5): of the first group.
        no_weight_decay_list (()): names or wildcard patterns of further parameters without decay, besides those that
            `model.no_weight_decay()` names, if it has that method.

    Returns:
        Parameter groups with named parameters; empty ones are left out.

    Raises:
        ValueError: weight_decay out of range.
    """
    number("weight_decay", weight_decay)
    exempt = _undecayed(model, no_weight_decay_list)
    named = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    groups: ParamGroups = []
    for decayed in (True, False):
        chosen = [(n, p) for n, p in named if _is_decayed(n, p, exempt, True) is decayed]
        if chosen:
            groups.append({"params": chosen, "weight_decay": weight_decay if decayed else 0.0})
    return groups


def layer_depths(model: nn.Module) -> dict[str, int]:
    """The depth of every parameter, frozen ones too: 0 before the blocks, 1.. in them, the last after them.

    Blocks are recognised by the first number in a parameter's name (`h.3.attn...`, `encoder.layer.3...`); what is
    registered after the last block (final norm, head) is the last depth. Where an encoder and a decoder both have
    blocks, the number alone counts.
    """
    names = [name for name, _ in model.named_parameters()]
    blocks = {name: int(found.group(1)) for name in names if (found := _INDEX.search(name))}
    if not blocks:
        return dict.fromkeys(names, 0)
    last_block = max(blocks.values())
    first_seen = names.index(next(iter(blocks)))
    depths = {}
    for position, name in enumerate(names):
        if name in blocks:
            depths[name] = blocks[name] + 1
        else:
            depths[name] = 0 if position < first_seen else last_block + 2
    return depths


def param_groups_layer_decay(
    model: nn.Module,
    weight_decay: float = 0.05,
    no_weight_decay_list: Iterable[str] = (),
    weight_decay_exclude_1d: bool = True,
    layer_decay: float = 0.75,
    lr: float | None = None,
    min_scale: float = 0.0,
) -> ParamGroups:
    """Groups by layer: the learning rate shrinks by `layer_decay` with every layer from the top down.

        lr_scale = max(min_scale, layer_decay ^ (deepest - depth))

    Args:
        model: its trainable parameters are grouped, each once.
        weight_decay (default 0.05): of matrices and higher.
        no_weight_decay_list (()): names or wildcard patterns of parameters without decay.
        weight_decay_exclude_1d (True): biases, norms and other vectors are not decayed.
        layer_decay (0.75): factor per layer, in (0, 1].
        lr (None): learning rate of the top layer; given, every group has `lr = lr * lr_scale`.
        min_scale (0.0): least `lr_scale`.

    Returns:
        Parameter groups with named parameters and the key `lr_scale`.

    Raises:
        ValueError: a number out of range.
    """
    number("weight_decay", weight_decay)
    number("min_scale", min_scale, 0.0, 1.0, high_open=False)
    if lr is not None:
        lr = number("lr", lr)
    if number("layer_decay", layer_decay, 0.0, 1.0, high_open=False) == 0.0:
        raise ValueError("layer_decay=0 would freeze all layers but the last, expected a number in (0, 1]")
    exempt = _undecayed(model, no_weight_decay_list)
    depths = layer_depths(model)
    deepest = max(depths.values(), default=0)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, param in model.named_parameters():
        if not param.requires_grad:
            continue
        decayed = _is_decayed(name, param, exempt, weight_decay_exclude_1d)
        key = (depths[name], decayed)
        if key not in groups:
            scale = max(min_scale, layer_decay ** (deepest - depths[name]))
            group = {"params": [], "weight_decay": weight_decay if decayed else 0.0, "lr_scale": scale}
            groups[key] = group if lr is None else {**group, "lr": lr * scale}
        groups[key]["params"].append((name, param))
    return [groups[key] for key in sorted(groups)]
