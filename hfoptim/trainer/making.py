"""From a choice with every value settled to what a Trainer makes its optimizer of."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import LBFGS

from hfoptim import registry
from hfoptim.engine import unwrap_all
from hfoptim.factory import grouped
from hfoptim.optimizers.adam_mini import AdamMini
from hfoptim.optimizers.shared.adapters import Adapters
from hfoptim.param_groups.selection import ParamGroups, split_hidden_matrices
from hfoptim.registry.recommended import say_taken
from hfoptim.trainer import advice, private
from hfoptim.trainer.build import Resolved, chosen_kwargs
from hfoptim.trainer.groups import Places, made_by
from hfoptim.wrappers import CombinedOptimizer

logger = logging.getLogger(__name__)


def class_and_kwargs(
    resolved: Resolved, args: Any, model: Any | None, trainer: Any | None = None
) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """What `Trainer.get_optimizer_cls_and_kwargs` returns.

    The Trainer makes two parameter groups, with `args.weight_decay` and with none. Where that is not what was asked
    for, or the optimizer has to know which parameters are hidden matrices, the groups are in the result under `params`,
    which the Trainer then uses. They hold plain parameters, for subclasses that move these to groups of their own. The
    class, when it is called, gives all of them their names and options back, see `Places`. LBFGS takes one group.

    Args:
        resolved: the optimizer and its values.
        args: the TrainingArguments.
        model: the model, None if there is none yet.
        trainer (default None): who asks; without a model the names are those of its model.

    Raises:
        ValueError: parameters are to differ, and there is no model yet; or they cannot as was asked for. The class
            raises it, too, where an optimizer of adapters gets none.
    """
    if args.should_log:
        _say_what_was_not_taken(resolved, args)
    advice.attend_rates(trainer, resolved, args)
    named = model if model is not None else getattr(trainer, "model", None)
    if resolved.choice.grouping:
        return _grouped(resolved, args, model, named, trainer)
    cls, kwargs = resolved.choice.optimizer_class, dict(resolved.kwargs)
    has_decay = "weight_decay" in registry.option_defaults(resolved.choice.name)
    if model is None and has_decay:
        kwargs["weight_decay"] = resolved.weight_decay
    if named is None:
        return cls, kwargs
    if model is not None and cls is LBFGS:
        return cls, {**kwargs, "params": [param for param in model.parameters() if param.requires_grad]}
    decayed = set(private.decay_parameter_names(named, trainer))
    divide = _dividing(named, args) if registry.finds_matrices(resolved.choice.name, kwargs) else None
    places = Places(named, decayed, divide, trainer)
    if model is not None and has_decay:
        trained = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
        if _decays_by_patterns(resolved):
            kwargs["params"] = places.hand_out([{"params": trained, "weight_decay": resolved.weight_decay}])
        elif divide is not None or resolved.weight_decay != args.weight_decay:
            groups = [
                {"params": [pair for pair in trained if pair[0] in decayed], "weight_decay": resolved.weight_decay},
                {"params": [pair for pair in trained if pair[0] not in decayed], "weight_decay": 0.0},
            ]
            kwargs["params"] = places.hand_out(groups if divide is None else divide(groups))
    # To Adam-mini a name means other blocks, which need the sizes of attention heads.
    if issubclass(cls, AdamMini):
        return cls, kwargs
    return _completing(resolved, places, args, cls, cls), kwargs


def _dividing(model: Any, args: Any) -> Callable[[ParamGroups], ParamGroups]:
    """What divides groups into those of hidden matrices, or of the modules that the arguments name, and of the rest."""
    if args.optim_target_modules is None:
        return functools.partial(split_hidden_matrices, model)
    targets = private.target_weight_names(model, args.optim_target_modules)

    def divide(groups: ParamGroups) -> ParamGroups:
        divided = []
        for group in groups:
            for chosen in (True, False):
                members = [pair for pair in group["params"] if (pair[0] in targets) is chosen]
                if members:
                    divided.append({**group, "params": members, "use_muon": chosen})
        return divided

    return divide


def _completing(
    resolved: Resolved, places: Places, args: Any, cls: type[torch.optim.Optimizer], make: Callable[..., Any]
) -> Any:
    """The class `cls`, made by `make` from completed groups."""

    def complete(params: Any, **kwargs: Any) -> torch.optim.Optimizer:
        groups = places.complete(params)
        _say_what_is_decayed_otherwise(resolved, places.decayed_otherwise(groups, args.weight_decay), args)
        made: torch.optim.Optimizer = make(groups, **kwargs)
        _check_adapters(made)
        return made

    return made_by(cls, complete)


def _check_adapters(optimizer: torch.optim.Optimizer) -> None:
    """A Trainer whose optimizer of adapters finds none would train the whole model with AdamW."""
    for inner in unwrap_all(optimizer, Adapters):
        without = inner.without_adapters()
        if without is not None:
            raise ValueError(
                f"{without}. For that choose adamw, or give the Trainer "
                f"optimizer_cls_and_kwargs=(hfoptim.{type(inner).__name__}, {{...}}), which warns"
            )


def _decays_by_patterns(resolved: Resolved) -> bool:
    return any(resolved.kwargs.get(option) for option in grouped.DECAY_PATTERNS)


def _grouped(
    resolved: Resolved, args: Any, model: Any | None, named: Any | None, trainer: Any | None
) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """The same for parameters that differ in their options, or in their optimizers."""
    if args.optim_target_modules is not None and registry.get_optimizer_info(resolved.choice.name).hidden_matrices:
        raise ValueError(
            f"optim_target_modules={args.optim_target_modules!r} does not go with options by layer, head or pattern; "
            f"say it there: param_options={{'*.weight': {{'use_muon': True}}}}"
        )
    if named is None:
        raise ValueError("layer_decay, head_lr and param_options need the model, and there is none yet")
    names = (name for name, _ in named.named_parameters())
    decayed = set(names if _decays_by_patterns(resolved) else private.decay_parameter_names(named, trainer))
    main = resolved.choice.name
    chosen = chosen_kwargs(main, resolved.all_kwargs, resolved.others)
    divided = grouped.group_params(named, decayed, resolved.choice.grouping, chosen)
    places = Places(named, decayed, owner=trainer)
    if len(divided) == 1:
        cls: Any = registry.get_optimizer_info(main).opt_class
        params, kwargs = places.hand_out(divided[main]), dict(chosen[main])
        made = _completing(resolved, places, args, cls, cls)
    else:
        marked = [{**group, "optimizer": name} for name, own in divided.items() for group in own]
        params, kwargs = places.hand_out(marked), {}

        def make(groups: ParamGroups, **given: Any) -> Any:
            owned: dict[str, ParamGroups] = {name: [] for name in divided}
            for group in groups:
                owned[group.pop("optimizer", main)].append(group)
            cls, params, own = grouped.make_grouped({name: own for name, own in owned.items() if own}, chosen)
            return cls(params, **own, **given)

        made = _completing(resolved, places, args, CombinedOptimizer, make)
    return made, {**({} if model is None else {"params": params}), **kwargs}


# -- what the log says ------------------------------------------------------------------------------------------------


def _say_what_was_not_taken(resolved: Resolved, args: Any) -> None:
    name = resolved.choice.name
    for unused in resolved.unused:
        logger.warning("%s=%r is not used: %s has no such option", unused, getattr(args, unused), name)
    taken = resolved.choice.recommended
    if taken is not None:
        logger.warning(say_taken(name, taken))
    if not resolved.lr_given:
        _say_whose_lr(resolved, args)
    patterns = resolved.choice.grouping.param_options.values()
    for other, other_resolved in resolved.others.items():
        bare = any(options.get("optimizer") == other and "lr" not in options for options in patterns)
        if bare and not other_resolved.lr_given:
            _say_whose_lr(other_resolved, args)


def _say_what_is_decayed_otherwise(resolved: Resolved, found: list[str], args: Any) -> None:
    if found and args.should_log:
        logger.warning(
            "the trainer's own groups have weight_decay=%g, which is the %s': %d parameters (%s). %s has %g; "
            "to have that everywhere, give weight_decay=%g in the arguments too",
            args.weight_decay,
            type(args).__name__,
            len(found),
            ", ".join(found[:3]) + (", ..." if len(found) > 3 else ""),
            resolved.choice.name,
            resolved.weight_decay,
            resolved.weight_decay,
        )


def _say_whose_lr(resolved: Resolved, args: Any) -> None:
    kind = type(args).__name__
    logger.warning(
        "learning_rate is %s default %g, so %s uses its own: %s. To use %g, write lr=%g in %s",
        f"{kind}'" if kind.endswith("s") else f"{kind}'s",
        args.learning_rate,
        resolved.choice.name,
        "set by itself at every step" if resolved.lr is None else f"{resolved.lr:g}",
        args.learning_rate,
        args.learning_rate,
        "optim_args or OptimizerCallback",
    )
