"""From a configuration to an optimizer with its groups and its schedule."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from os import PathLike
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from hfoptim import schedules
from hfoptim.engine.checks import choice, integer, number
from hfoptim.factory.create import create_optimizer_v2
from hfoptim.factory.modules import Chosen
from hfoptim.factory.nodes import check_keys, plain_node, read_config, take_target
from hfoptim.param_groups.options import param_groups_options
from hfoptim.param_groups.paramwise import param_groups_paramwise
from hfoptim.param_groups.selection import ParamGroups, split_hidden_matrices
from hfoptim.registry.lookup import finds_matrices, group_defaults, option_defaults

_ENTRIES = ("optimizer", "schedule", "groups", "paramwise_cfg", "clip_grad", "accumulative_counts")
_OF_WRAPPER = ("type", "constructor", *_ENTRIES)
_PARAMWISE = [
    each.name for each in signature(param_groups_paramwise).parameters.values() if each.kind is each.KEYWORD_ONLY
]
_GROUPS = (
    "layer_decay",
    "head_lr",
    "param_options",
    "group_matcher",
    "mup",
    "filter_bias_and_bn",
    "layer_decay_min_scale",
    "layer_decay_no_opt_scale",
    "fallback_list",
    "fallback_no_weight_decay",
)
_OF_ANY_CLASS = ("layer_decay", "head_lr", "param_options", "group_matcher", "no_weight_decay_list")
_CLIPPING = {"norm": ("max_norm", "norm_type", "error_if_nonfinite", "foreach"), "value": ("clip_value", "foreach")}


class Configured(NamedTuple):
    """What a configuration describes, made.

    Args:
        optimizer: the optimizer of the model's parameters.
        schedule: its schedule, None where there is none.
        clip_grad: what gradients are clipped to, `{"max_norm": 1.0, "norm_type": 2}` or `{"clip_value": 0.5}`; None
            where they are not.
        accumulative_counts: how many batches a step of the optimizer is for.
    """

    optimizer: Optimizer
    schedule: LRScheduler | None = None
    clip_grad: dict[str, Any] | None = None
    accumulative_counts: int = 1

    def clip_gradients(self) -> Tensor | None:
        """Clip the gradients as `clip_grad` says, before a step of the optimizer.

        Returns:
            The norm of all gradients before, where they are clipped by it.
        """
        if self.clip_grad is None:
            return None
        params = [param for group in self.optimizer.param_groups for param in group["params"]]
        if "clip_value" in self.clip_grad:
            torch.nn.utils.clip_grad_value_(params, **self.clip_grad)
            return None
        return torch.nn.utils.clip_grad_norm_(params, **self.clip_grad)


def from_config(config: Mapping[str, Any] | str | PathLike[str], model: nn.Module) -> Configured:
    """Make the optimizer, the groups and the schedule that a configuration describes, for a model.

        from_config(dict(optimizer=dict(type="AdamW", lr=1e-4, weight_decay=0.05), schedule="constant"), model)
        from_config("optim.yaml", model)

    Entries, all but the first optional:

    - `optimizer`: a name, or `type` and options, see `OPTIMIZERS.build`; or Hydra's `_target_` with options.
    - `schedule`: a name, or `type` with `num_warmup_steps`, `num_training_steps` and the schedule's options; or
      `_target_`, which is called with the optimizer.
    - `groups`: `layer_decay`, `head_lr`, `param_options` and the other ways of `create_optimizer_v2` to group. Then
      biases, norms and other vectors are not decayed unless `filter_bias_and_bn` is False.
    - `paramwise_cfg`: MMEngine's, see `param_groups_paramwise`, in place of `groups`.
    - `clip_grad`, `accumulative_counts`: MMEngine's, handed back for the training loop.

    Without `groups` and `paramwise_cfg` all parameters are alike, as in MMEngine: biases are decayed, too. MMEngine's
    `optim_wrapper=dict(type="OptimWrapper", optimizer=..., ...)` is taken as well, inside or as the whole; and so is an
    optimizer's dict alone.

    Args:
        config: a mapping of any class (a dict, a node of OmegaConf, Hydra or MMEngine), the path of a YAML or JSON
            file, or YAML as text.
        model: its trainable parameters are optimized.

    Returns:
        A `Configured`: `optimizer`, `schedule`, `clip_grad` and `accumulative_counts`.

    Raises:
        ValueError: an unknown entry, name or option, with the closest ones, or a value out of range.
        TypeError: a value of the wrong type.
        ImportError: YAML without PyYAML.
    """
    node = read_config(config)
    if "optim_wrapper" in node:
        check_keys("a configuration with optim_wrapper", node, ("optim_wrapper", "schedule"))
        wrapper = plain_node("optim_wrapper", node.pop("optim_wrapper"))
        if "schedule" in wrapper and "schedule" in node:
            raise ValueError("the configuration has two schedules, in optim_wrapper and beside it; give one of them")
        node = {**wrapper, **node}
    elif "optimizer" not in node and ("type" in node or "_target_" in node):
        node = {"optimizer": node}  # of an optimizer alone
    check_keys("the configuration", node, _OF_WRAPPER if "type" in node or "constructor" in node else _ENTRIES)
    if node.get("type", "OptimWrapper") != "OptimWrapper":
        raise ValueError(
            f"optim_wrapper: type={node['type']!r} also does what is the training loop's, autocast and loss scaling; "
            f"expected 'OptimWrapper'"
        )
    if node.get("constructor", "DefaultOptimWrapperConstructor") != "DefaultOptimWrapperConstructor":
        raise ValueError(
            f"optim_wrapper: constructor={node['constructor']!r} is not known; layers are scaled by "
            f"groups=dict(layer_decay=0.75)"
        )
    if node.get("optimizer") is None:
        raise ValueError("the configuration has no optimizer; write optimizer=dict(type='AdamW', lr=1e-4)")
    given = node["optimizer"]
    chosen = Chosen.from_node({"type": given} if isinstance(given, str) else plain_node("optimizer", given))
    optimizer = _optimizer(chosen, model, node.get("groups"), node.get("paramwise_cfg"))
    return Configured(
        optimizer,
        _schedule(node.get("schedule"), optimizer),
        _clipping(node.get("clip_grad")),
        integer("accumulative_counts", node.get("accumulative_counts", 1), 1),
    )


def _optimizer(chosen: Chosen, model: nn.Module, groups: Any, paramwise: Any) -> Optimizer:
    if groups is not None and paramwise is not None:
        raise ValueError("groups and paramwise_cfg both say how parameters differ; give one of them")
    if groups is not None:
        return _grouped(chosen, model, plain_node("groups", groups))
    if paramwise is not None:
        cfg = plain_node("paramwise_cfg", paramwise)
        check_keys("paramwise_cfg", cfg, _PARAMWISE)
        if chosen.name is not None and isinstance(cfg.get("custom_keys"), dict):
            for key, own in cfg["custom_keys"].items():
                known = ("lr_mult", "decay_mult", *group_defaults(chosen.name))
                check_keys(f"custom_keys[{key!r}]", plain_node(f"custom_keys[{key!r}]", own), known)
        made = param_groups_paramwise(model, chosen.options.get("lr"), chosen.options.get("weight_decay"), **cfg)
    else:
        made = [{"params": [(name, param) for name, param in model.named_parameters() if param.requires_grad]}]
    return chosen.make(_with_matrices(chosen, model, made))


def _with_matrices(chosen: Chosen, model: nn.Module, groups: ParamGroups) -> ParamGroups:
    if chosen.name is None or not finds_matrices(chosen.name, chosen.options):
        return groups
    return split_hidden_matrices(model, groups)


def _grouped(chosen: Chosen, model: nn.Module, groups: dict[str, Any]) -> Optimizer:
    """The optimizer with the groups of `create_optimizer_v2`."""
    options = dict(chosen.options)
    if chosen.name is not None:
        check_keys("groups", groups, _GROUPS)
        decay = options.pop("weight_decay", option_defaults(chosen.name).get("weight_decay"))
        return create_optimizer_v2(model, chosen.name, weight_decay=decay or 0.0, **options, **groups)
    check_keys(f"groups of {chosen.cls.__name__}, which is none of hfoptim's,", groups, _OF_ANY_CLASS)
    if "lr" not in options:
        raise ValueError(f"groups of {chosen.cls.__name__} need its learning rate; give lr")
    decay = options.get("weight_decay", 0.0)
    return chosen.make(param_groups_options(model, options["lr"], decay, **groups))


def _schedule(given: Any, optimizer: Optimizer) -> LRScheduler | None:
    if given is None:
        return None
    options = {"type": given} if isinstance(given, str) else plain_node("schedule", given)
    if "_target_" in options:
        made = take_target("schedule", options)(optimizer, **options)
        if not isinstance(made, LRScheduler):
            raise TypeError(f"schedule: _target_ gave a {type(made).__name__}, expected a torch scheduler")
        return made
    name: Any = options.pop("type", None)
    if name is None:
        raise ValueError("schedule has no type; write schedule=dict(type='cosine', num_training_steps=1000)")
    warmup: Any = options.pop("num_warmup_steps", None)
    total: Any = options.pop("num_training_steps", None)
    check_keys(f"the schedule {name}", options, schedules.get_schedule_info(name).kwargs)
    return schedules.get_scheduler(name, optimizer, warmup, total, options)


def _clipping(given: Any) -> dict[str, Any] | None:
    if given is None:
        return None
    options = plain_node("clip_grad", given)
    kind = choice("clip_grad: type", options.pop("type", "norm"), tuple(_CLIPPING))
    check_keys(f"clip_grad of type {kind}", options, _CLIPPING[kind])
    needed = _CLIPPING[kind][0]
    if needed not in options:
        raise ValueError(f"clip_grad needs {needed}, got {given!r}")
    return {**options, needed: number(f"clip_grad: {needed}", options[needed])}
