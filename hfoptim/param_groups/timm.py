"""timm's functions that make parameter groups, with timm's contract: its arguments, its order, plain parameters.

They give no names, so an optimizer that goes by them (`Muon` tells by them what is an embedding or a head) cannot use
them: `hfoptim.decay_groups`, `layer_decay_groups` and `param_groups_muon` give named parameters.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from hfoptim.engine.checks import flag, number, shape_in_model, strings
from hfoptim.engine.parameter_names import bare_names_of, unwrapped
from hfoptim.param_groups.group_matcher import matched_layers
from hfoptim.param_groups.selection import ParamGroups, matching

logger = logging.getLogger(__name__)


def param_groups_weight_decay(
    model: nn.Module,
    weight_decay: float | None = 1e-5,
    weight_decay_exclude_1d: bool = True,
    no_weight_decay_list: Collection[str] = (),
    fallback_list: Collection[str] = (),
    fallback_no_weight_decay: bool = False,
) -> ParamGroups:
    """timm's groups: parameters without weight decay, then those with it.

    Args:
        model: its trainable parameters are grouped, each once. What `model.no_weight_decay()` names counts only where
            it is given: `no_weight_decay_list=model.no_weight_decay()`.
        weight_decay (default 1e-5): of the decayed ones; 0 or None for all in the first group.
        weight_decay_exclude_1d (True): vectors and what is called `bias` are not decayed. (In timm before 1.0.16 the
            list stood here, and a list is refused.)
        no_weight_decay_list (()): names or wildcard patterns of further parameters without decay.
        fallback_list (()): names or patterns of parameters for the second rule of a hybrid optimizer such as Muon:
            in groups of their own, last, with `use_fallback=True`.
        fallback_no_weight_decay (False): what `no_weight_decay_list` matches is for the second rule too.

    Returns:
        Parameter groups with plain parameters; empty ones are left out.

    Raises:
        TypeError, ValueError: a value of the wrong type or out of range.

    Source:
        timm 1.0.31, `timm.optim.param_groups_weight_decay`.
    """
    decay = 0.0 if weight_decay is None else number("weight_decay", weight_decay)
    undecayed, fallback = _chosen(
        model, weight_decay_exclude_1d, no_weight_decay_list, fallback_list, fallback_no_weight_decay
    )
    found: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, param in model.named_parameters():
        if param.requires_grad:
            vector = weight_decay_exclude_1d and (name.endswith(".bias") or len(shape_in_model(name, param)) <= 1)
            decayed = decay > 0.0 and not vector and id(param) not in undecayed
            found.setdefault((id(param) in fallback, decayed), []).append(param)
    return [
        {
            "params": params,
            "weight_decay": decay if decayed else 0.0,
            **({"use_fallback": True} if is_fallback else {}),
        }
        for (is_fallback, decayed), params in sorted(found.items(), key=lambda item: item[0])
    ]


def param_groups_layer_decay(
    model: nn.Module,
    weight_decay: float = 0.05,
    no_weight_decay_list: Collection[str] = (),
    fallback_list: Collection[str] = (),
    fallback_no_weight_decay: bool = False,
    weight_decay_exclude_1d: bool = True,
    layer_decay: float = 0.75,
    min_scale: float = 0.0,
    no_opt_scale: float | None = None,
    verbose: bool = False,
    *,
    end_layer_decay: float | None = None,
) -> ParamGroups:
    """timm's groups by layer, with the factor of the learning rate in `lr_scale`.

    The learning rate itself is not scaled: timm's schedules do that, and those of `schedules.timm`. Layers are those of
    `model.group_matcher()`, which timm's models have, else `auto_group_layers`' runs of 12 parameters; for a model of
    transformers see `hfoptim.layer_decay_groups`, which knows its blocks.

    Args:
        model: its trainable parameters are grouped, each once. What `model.no_weight_decay()` names counts only where
            it is given: `no_weight_decay_list=model.no_weight_decay()`.
        weight_decay (default 0.05): of matrices and higher.
        no_weight_decay_list (()): names or wildcard patterns of parameters without decay.
        fallback_list (()), fallback_no_weight_decay (False): as in `param_groups_weight_decay`.
        weight_decay_exclude_1d (True): vectors are not decayed.
        layer_decay (0.75): factor per layer from the top down, in (0, 1].
        min_scale (0.0): least factor.
        no_opt_scale (None): parameters whose factor is below it are frozen (`requires_grad` False) and left out.
        verbose (False): log the names by group.
        end_layer_decay (None): timm had it before 1.0.16, and nothing followed from it; given, a warning says so.

    Returns:
        Parameter groups with plain parameters, in the order in which their first parameters are in the model.

    Raises:
        TypeError, ValueError: a value of the wrong type or out of range.

    Source:
        timm 1.0.31, `timm.optim.param_groups_layer_decay`; BEiT, `optim_factory.py`.
    """
    decay = number("weight_decay", weight_decay)
    layer_decay = number("layer_decay", layer_decay, 0.0, 1.0, high_open=False)
    if layer_decay == 0.0:
        raise ValueError("layer_decay=0 would freeze all layers but the last, expected a number in (0, 1]")
    min_scale = number("min_scale", min_scale, 0.0, 1.0, high_open=False)
    if no_opt_scale is not None:
        no_opt_scale = number("no_opt_scale", no_opt_scale)
    flag("verbose", verbose)
    if end_layer_decay is not None:
        warnings.warn(
            f"end_layer_decay={end_layer_decay!r} has no effect, here and in timm; min_scale is the least factor",
            stacklevel=2,
        )
    undecayed, fallback = _chosen(
        model, weight_decay_exclude_1d, no_weight_decay_list, fallback_list, fallback_no_weight_decay
    )
    layers = _layers(model)
    top = max(layers.values(), default=0)
    groups: dict[tuple[int, bool, bool], dict[str, Any]] = {}
    names: dict[str, dict[str, Any]] = {}
    for name, param in model.named_parameters():
        if not param.requires_grad:
            continue
        layer = layers[name]
        scale = max(min_scale, layer_decay ** (top - layer))
        if no_opt_scale and scale < no_opt_scale:
            param.requires_grad_(False)
            continue
        vector = weight_decay_exclude_1d and len(shape_in_model(name, param)) <= 1
        decayed = not vector and id(param) not in undecayed
        is_fallback = id(param) in fallback
        options: dict[str, Any] = {"lr_scale": scale, "weight_decay": decay if decayed else 0.0}
        group = groups.setdefault((layer, decayed, is_fallback), {**options, "params": []})
        if is_fallback:
            group["use_fallback"] = True
        group["params"].append(param)
        label = f"layer_{layer}_{'decay' if decayed else 'no_decay'}{'_fallback' if is_fallback else ''}"
        names.setdefault(label, {**options, "param_names": []})["param_names"].append(name)
    if verbose:
        logger.info("parameter groups:\n%s", json.dumps(names, indent=2))
    return list(groups.values())


def auto_group_layers(model: nn.Module, layers_per_group: int = 12, num_groups: int | None = None) -> dict[str, int]:
    """timm's layers of a model that does not say its own: runs of parameters in their order, the classifier on top.

    Args:
        model: the model; `model.pretrained_cfg["classifier"]` has the name, or names, of its classifier. Where there is
            none, all is classifier.
        layers_per_group (default 12): parameters to a layer.
        num_groups (None): layers below the classifier, in place of that.

    Returns:
        The layer of every parameter by its name, 0 at the bottom.

    Source:
        timm 1.0.31, `timm.optim.auto_group_layers`.
    """
    config = getattr(unwrapped(model), "pretrained_cfg", None)
    head = config.get("classifier") if isinstance(config, Mapping) else getattr(config, "classifier", None)
    prefixes = tuple(head) if isinstance(head, (tuple, list)) else head
    short = bare_names_of(model)
    names = [name for name, _ in model.named_parameters()]
    trunk = [name for name in names if prefixes and not short[name].startswith(prefixes)]
    size = layers_per_group if num_groups is None else -(-len(trunk) // num_groups)
    layers = {name: place // size for place, name in enumerate(trunk)}
    top = max(layers.values(), default=-1) + 1
    return {name: layers.get(name, top) for name in names}


def _layers(model: nn.Module) -> dict[str, int]:
    matcher = getattr(unwrapped(model), "group_matcher", None)
    if matcher is None:
        layers = auto_group_layers(model)
    else:
        short = bare_names_of(model)
        names = {name: short[name] for name, _ in model.named_parameters()}
        found = matched_layers(names.values(), matcher(coarse=False))
        layers = {name: found[own] for name, own in names.items()}
    if len(set(layers.values())) == 1:
        logger.warning(
            "layer_decay has no effect: %s has no group_matcher and no pretrained_cfg['classifier'], so all of its "
            "parameters are of one layer, as in timm; hfoptim.layer_decay_groups reads the layers from its modules",
            type(model).__name__,
        )
    return layers


def _chosen(
    model: nn.Module,
    exclude_1d: bool,
    no_weight_decay_list: Collection[str],
    fallback_list: Collection[str],
    joined: bool,
) -> tuple[set[int], set[int]]:
    """The ids of the parameters without decay by name, and of those for the second rule."""
    if not isinstance(exclude_1d, bool):
        raise TypeError(
            f"weight_decay_exclude_1d={exclude_1d!r} is a {type(exclude_1d).__name__}, expected True or False; give "
            f"no_weight_decay_list by its name"
        )
    flag("fallback_no_weight_decay", joined)
    undecayed = matching(model, strings("no_weight_decay_list", no_weight_decay_list))
    fallback = matching(model, strings("fallback_list", fallback_list))
    return undecayed, fallback | undecayed if joined else fallback


def optimizer_kwargs(cfg: Any) -> dict[str, Any]:
    """timm's keywords of `create_optimizer_v2` from the arguments of a timm script.

    Args:
        cfg: has `opt`, `lr`, `weight_decay` and `momentum`, and may have `opt_eps`, `opt_betas`, `layer_decay`,
            `layer_decay_min_scale`, `layer_decay_no_opt_scale`, `opt_foreach` and `opt_args`, further keywords; None is
            as if it were not there.

    Returns:
        The keywords: `create_optimizer_v2(model, **optimizer_kwargs(args))`.

    Source:
        timm 1.0.31, `timm.optim.optimizer_kwargs`.
    """
    found = {name: getattr(cfg, name) for name in ("opt", "lr", "weight_decay", "momentum")}
    optional = {
        **{"eps": "opt_eps", "betas": "opt_betas"},
        **{name: name for name in ("layer_decay", "layer_decay_min_scale", "layer_decay_no_opt_scale")},
    }
    given = {name: getattr(cfg, theirs, None) for name, theirs in optional.items()}
    found |= {name: value for name, value in given.items() if value is not None}
    found |= getattr(cfg, "opt_args", None) or {}
    foreach = getattr(cfg, "opt_foreach", None)
    return found if foreach is None else {**found, "foreach": foreach}
