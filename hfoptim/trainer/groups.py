"""Parameter groups on their way from a Trainer to its optimizer: names and options find their parameters again.

Between the two stand Trainer itself, which makes groups without names, and subclasses, which take parameters out of
groups and add groups of their own (sentence-transformers' `learning_rate_mapping`). They handle plain parameters. So
the groups handed out have plain ones, and what belongs to a parameter is given back where the optimizer is made.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from hfoptim.engine import RuleOptimizer, unwrap_all
from hfoptim.optimizers.adam_mini import AdamMini
from hfoptim.param_groups.selection import ParamGroups

logger = logging.getLogger(__name__)


@dataclass
class _Place:
    """What belongs to a parameter.

    Args:
        name: its name.
        decayed: whether it is one of those that get weight decay.
        options: the options of its group.
    """

    name: str
    decayed: bool
    options: dict[str, Any] = field(default_factory=dict)


class Places:
    """What belongs to the parameters of a model, kept without keeping the model.

    Args:
        model: the model.
        decayed: names of the parameters that get weight decay.
        divide (default None): divides groups by what the optimizer is to be told of their parameters, such as which are
            hidden matrices.
        owner (default None): the trainer; parameters of other modules of it are named after its attribute.
    """

    def __init__(
        self,
        model: nn.Module,
        decayed: Collection[str],
        divide: Callable[[ParamGroups], ParamGroups] | None = None,
        owner: Any | None = None,
    ) -> None:
        self._places: Any = WeakIdKeyDictionary()
        for name, param in model.named_parameters():
            self._places[param] = _Place(name, name in decayed)
        for prefix, module in modules_of(owner):
            for name, param in module.named_parameters():
                if param not in self._places:
                    self._places[param] = _Place(f"{prefix}.{name}", False)
        if divide is not None:
            trained = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
            self.hand_out(divide([{"params": trained}]))

    def hand_out(self, groups: Iterable[dict[str, Any]]) -> ParamGroups:
        """Groups with plain parameters, from such with named ones; what their parameters belong to is noted."""
        plain = []
        for group in groups:
            options = {key: value for key, value in group.items() if key != "params"}
            for name, param in group["params"]:
                place = self._places.setdefault(param, _Place(name, False))
                place.options = {**place.options, **options}
            plain.append({**group, "params": [param for _, param in group["params"]]})
        return plain

    def complete(self, params: Any) -> ParamGroups:
        """Groups with named parameters, from what a Trainer gives its optimizer.

        Args:
            params: parameters or groups of them. A group that lacks an option which its parameters were handed out
                with gets it, and is divided where they differ in it. What it has stays.
        """
        given = list(params)
        if given and not isinstance(given[0], dict):
            given = [{"params": given}]
        completed: ParamGroups = []
        for number, group in enumerate(given):
            parts: list[tuple[dict[str, Any], list[tuple[str, Tensor]]]] = []
            entries = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
            names = group.get("param_names") or ()
            if len(names) != len(entries):  # somebody took some away
                names = [None] * len(entries)
            own = {key: value for key, value in group.items() if key not in ("params", "param_names")}
            for position, (name, entry) in enumerate(zip(names, entries, strict=True)):
                name, param = (name, entry) if isinstance(entry, Tensor) else entry
                place = self._places.get(param)
                options = {**_lacking(place, own), **own} if place else own
                named = (name or (place.name if place else f"group{number}.{position}"), param)
                for known, members in parts:
                    if known == options:
                        members.append(named)
                        break
                else:
                    parts.append((options, [named]))
            # torch wants names in all groups or in none, also in an empty one.
            completed += [{**options, "params": members} for options, members in parts] or [
                {**own, "params": [], "param_names": []}
            ]
        return completed

    def decayed_otherwise(self, groups: ParamGroups, weight_decay: float) -> list[str]:
        """Names of the parameters that are to be decayed, and by a group's other weight decay than handed out.

        Args:
            groups: completed groups.
            weight_decay: the one to look for.
        """
        found = []
        for group in groups:
            for name, param in group["params"] if group.get("weight_decay") == weight_decay else ():
                place = self._places.get(param)
                if place and place.decayed and place.options.get("weight_decay", weight_decay) != weight_decay:
                    found.append(name)
        return found


def _lacking(place: _Place, group: dict[str, Any]) -> dict[str, Any]:
    """The options of a place that a group has no word about."""
    said = {*group, "lr", "lr_scale"} if "lr" in group else set(group)
    return {key: value for key, value in place.options.items() if key not in said}


def modules_of(owner: Any | None) -> list[tuple[str, nn.Module]]:
    """The modules that are attributes of an object, or in a dict or list that is one."""
    found = []
    for name, value in vars(owner).items() if owner is not None else ():
        if isinstance(value, nn.Module):
            found.append((name, value))
        elif isinstance(value, dict):
            found += [(f"{name}.{key}", each) for key, each in value.items() if isinstance(each, nn.Module)]
        elif isinstance(value, (list, tuple)):
            found += [(f"{name}.{place}", each) for place, each in enumerate(value) if isinstance(each, nn.Module)]
    return found


def give_names(optimizer: Any, model: nn.Module) -> None:
    """Name the parameters of an optimizer of ours that a Trainer has just made of groups without names.

    Not those of Adam-mini, to which a name means other blocks.
    """
    names = {param: name for name, param in model.named_parameters()}
    for inner in unwrap_all(optimizer, RuleOptimizer):
        held = [param for group in inner.param_groups for param in group["params"]]
        named = any("param_names" in group for group in inner.param_groups)
        if not named and not isinstance(inner, AdamMini) and all(param in names for param in held):
            for group in inner.param_groups:
                group["param_names"] = [names[param] for param in group["params"]]


def made_by(cls: type[torch.optim.Optimizer], make: Callable[..., torch.optim.Optimizer]) -> Any:
    """An optimizer's class whose calls go through a function; the optimizers made are of the class itself.

    Trainers hand on a class, and some make the optimizer from it by themselves.

    Args:
        cls: the class.
        make: called as `make(params, **kwargs)` in place of the class.
    """

    def new(_: Any, params: Any, **kwargs: Any) -> torch.optim.Optimizer:
        return make(params, **kwargs)

    kept = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return type(cls.__name__, (cls,), {"__new__": new, "__signature__": inspect.signature(cls), **kept})
