"""`OPTIMIZERS`: the optimizers by class names and short names, as configurations in MMEngine's style name them."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from torch.optim import Optimizer

from hfoptim.engine.checks import portable
from hfoptim.factory.nodes import plain_node, take_target
from hfoptim.registry.catalogue import known_optimizers, register
from hfoptim.registry.info import OptimInfo
from hfoptim.registry.lookup import (
    canonical_name,
    check_options,
    complete_groups,
    get_optimizer_info,
    resolve_options,
)
from hfoptim.registry.recommended import say_taken, take_recommended, warn_if_far

logger = logging.getLogger(__name__)

C = TypeVar("C", bound=type[Optimizer])

# A class by its own name is torch's where the short name means another one of the family.
_OF_CLASS: dict[str, dict[str, Any]] = {"SGD": {"momentum": 0.0, "nesterov": False}}
# Class names of torch's and others' whose rules have another class here.
_NAMES = ("AdamW", "LAMB")


class ModuleDict(Mapping[str, Callable[..., Optimizer]]):
    """What there is by name: class names and short names. The classes are imported when they are asked for."""

    def __getitem__(self, name: str) -> Callable[..., Optimizer]:
        try:
            canonical, found, own = _resolved(name)
        except (TypeError, ValueError):
            raise KeyError(name) from None
        bound = {**({} if canonical is None else get_optimizer_info(canonical).defaults), **own}
        return functools.partial(found, **bound) if bound else found

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*known_optimizers().names(), *known_optimizers().by_class(), *_NAMES}))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __repr__(self) -> str:
        return f"ModuleDict({', '.join(self)})"


class OptimizerRegistry:
    """Builds optimizers from dicts that name them by `type`, and takes classes of one's own.

        OPTIMIZERS.build(dict(type="AdamW", lr=1e-4, weight_decay=0.05), model.parameters())

    A `type` is a class name, or a name of `hfoptim.list_optimizers()` in any case. Both mean the same, but for `SGD`:
    so written it is torch's, without momentum unless it is given, where `sgd` is timm's with Nesterov's 0.9.
    """

    @property
    def module_dict(self) -> ModuleDict:
        """All optimizers by class names and short names, as a mapping."""
        return ModuleDict()

    def __contains__(self, name: object) -> bool:
        return name in self.module_dict

    def __len__(self) -> int:
        return len(self.module_dict)

    def __repr__(self) -> str:
        return f"OPTIMIZERS({len(self)} names)"

    def get(self, name: str) -> Callable[..., Optimizer] | None:
        """What a name stands for: a class, with the arguments bound that the name stands for; None for none."""
        return self.module_dict.get(name)

    def build(self, cfg: Mapping[str, Any], params: Any = None) -> Optimizer:
        """Make the optimizer that a configuration describes.

        Args:
            cfg: `type` (or Hydra's `_target_`), and the optimizer's options; a dict, or a node of OmegaConf or
                MMEngine. `lr="recommended"`, with `task`, is as in `create_optimizer_v2`.
            params: parameters, named parameters or parameter groups; they may also be in `cfg`, as `params`.

        Raises:
            TypeError: no mapping, no type, or a value of the wrong type.
            ValueError: an unknown type or option, with the closest names, or a value out of range.
        """
        node = plain_node("the configuration of an optimizer", cfg, keep=("params",))
        given = node.pop("params", None)
        if params is None:
            params = given
        elif given is not None:
            raise TypeError("the parameters are given twice, in the configuration and beside it")
        if params is None:
            raise TypeError("there are no parameters: OPTIMIZERS.build(cfg, model.parameters())")
        return Chosen.from_node(node).make(params)

    def register_module(self, name: str | None = None, module: type[Optimizer] | None = None) -> Any:
        """Make a class of one's own known, in configurations and everywhere else: a decorator.

            @OPTIMIZERS.register_module()
            class Mine(torch.optim.Optimizer): ...

        Args:
            name (default None): the name; None: that of the class.
            module (None): the class, where this is no decorator.

        Returns:
            The class, or the decorator.

        Raises:
            TypeError: it is no class of an optimizer.
            ValueError: the name is taken; the message says by whom.
        """
        if isinstance(name, type):  # @OPTIMIZERS.register_module without brackets
            name, module = None, name
        if module is None:
            return lambda cls: self.register_module(name, cls)
        if not (isinstance(module, type) and issubclass(module, Optimizer)):
            raise TypeError(f"{module!r} is no class that derives from torch.optim.Optimizer")
        if name is None and isinstance(vars(module).get("names"), tuple):
            return register(module)
        chosen = module.__name__ if name is None else str(name)
        where = f"{module.__module__}.{module.__qualname__}"
        text = (module.__doc__ or "").strip().partition("\n")[0]
        known_optimizers().add(OptimInfo(chosen, lambda: module, text, "", where=where))
        return module


OPTIMIZERS = OptimizerRegistry()


class Chosen:
    """An optimizer that a configuration names, with its options.

    Args:
        name: its canonical name; None for a class that no name has.
        cls: its class.
        options: as given, with those that the way in which it was named stands for.
    """

    def __init__(self, name: str | None, cls: type[Optimizer], options: dict[str, Any]) -> None:
        self.name, self.cls, self.options = name, cls, options

    @classmethod
    def from_node(cls, node: Mapping[str, Any]) -> Chosen:
        """Read a plain node.

        Raises:
            TypeError: it has no type, or one that is no optimizer.
            ValueError: an unknown type or option.
        """
        options = {key: portable(value) for key, value in node.items() if key not in ("type", "_target_")}
        kind: Any = node.get("type")
        if "_target_" in node:
            options["_target_"] = node["_target_"]
            kind = take_target("the configuration of an optimizer", options)
        if isinstance(kind, str):
            name, found, bound = _resolved(kind)
        elif isinstance(kind, type) and issubclass(kind, Optimizer):
            name, found, bound = _of_class(kind)
        else:
            raise TypeError(
                f"the configuration of an optimizer names none, got {kind!r}; write dict(type='AdamW', lr=1e-4)"
            )
        if name is not None:
            options, taken = take_recommended(name, options)
            check_options(name, options)
            if taken is not None:
                logger.warning(say_taken(name, taken))
        return cls(name, found, {**bound, **options})

    def make(self, params: Any) -> Optimizer:
        """The optimizer of parameters or groups."""
        create: Callable[..., Optimizer] = self.cls
        if self.name is None:
            return create(params, **self.options)
        resolved = resolve_options(self.name, self.options)
        warn_if_far(self.name, resolved)
        return create(complete_groups(self.name, params, resolved), **resolved)


def _resolved(kind: str) -> tuple[str | None, type[Optimizer], dict[str, Any]]:
    """(canonical name, class, options that the name as it is written stands for); no name for a class without one."""
    try:
        name = canonical_name(kind)
    except ValueError:
        classes = known_optimizers().by_class()
        if kind in classes:
            return _of_class(get_optimizer_info(classes[kind]).opt_class)
        raise
    return name, get_optimizer_info(name).opt_class, _OF_CLASS.get(kind, {})


def _of_class(found: type[Optimizer]) -> tuple[str | None, type[Optimizer], dict[str, Any]]:
    """The same of a class, whose own defaults count."""
    name = known_optimizers().by_class().get(found.__name__)
    if name is None or get_optimizer_info(name).opt_class is not found:
        return None, found, {}
    own = inspect.signature(found).parameters
    return name, found, {option: own[option].default for option in get_optimizer_info(name).defaults if option in own}
