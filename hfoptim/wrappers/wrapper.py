"""What optimizers around optimizers have in common."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.profiler import record_function
from torch.optim import Optimizer

from hfoptim.engine import RuleOptimizer, checks, clone, modes, storage, unmasked, unwrap, unwrap_all
from hfoptim.engine.ambient import lasting, leave_undisturbed
from hfoptim.engine.checkpoints import loading
from hfoptim.engine.checkpoints.correspondence import described, ordered_groups
from hfoptim.engine.checkpoints.hooks import hooked_load, hooked_state_dict
from hfoptim.engine.distributed import dtensor


class Wrapper(Optimizer):
    """An optimizer around another one, whose parameter groups, state and defaults it shares.

    Its own options lie in the parameter groups, beside those of the inner optimizer. The tensors it keeps for
    parameters lie apart from the inner state, which torch's optimizers expect to be empty before their first step; in
    the state_dict they are beside it, so that whatever saves, shards and loads an optimizer's state takes them along.

    Args:
        optimizer: the inner optimizer.
        own: the wrapper's options, for groups that do not have them.

    Raises:
        TypeError: `optimizer` is no torch.optim.Optimizer, or an option is of the wrong type.
        ValueError: an option is out of range, the inner optimizer has one of that name, or it is such a wrapper itself.
    """

    # Options, with their values where the wrapper is chosen by name.
    by_name: ClassVar[Mapping[str, Any]] = {}
    # Numbers that groups carry from step to step, with their first values.
    counters: ClassVar[Mapping[str, Any]] = {}
    # What is kept for each parameter, by its name in the state_dict; whether it is a copy of it, of the same dtype.
    keeps: ClassVar[Mapping[str, bool]] = {}
    # Those that are kept in float32 for parameters of fewer bits.
    keeps_exact: ClassVar[frozenset[str]] = frozenset()
    # One of these, and of which groups in a state_dict it must be there.
    expects: ClassVar[tuple[str, Callable[[Mapping[str, Any]], bool]] | None] = None

    # Whether what it does to an entry depends on that entry alone, so that it is the same in flattened parts.
    by_entries: ClassVar[bool] = False

    # Not under the name `optimizer`: there Lightning's wrapper, whose class imitates this one, has this one.
    _inner: Optimizer
    own: dict[str, Any]
    kept: dict[str, dict[Tensor, Tensor]]

    def __init__(self, optimizer: Optimizer, own: Mapping[str, Any]) -> None:
        cls = type(self).__name__
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"{cls} goes around a torch.optim.Optimizer, not around a {type(optimizer).__name__}")
        taken = [name for name in own if name in optimizer.defaults]
        if taken:
            raise ValueError(f"{type(optimizer).__name__} has an option {taken[0]!r} of its own, that of {cls} clashes")
        other = unwrap(optimizer, Wrapper)
        while other is not None:
            if other.keeps == self.keeps:
                raise ValueError(f"{cls} cannot go around another {type(other).__name__}")
            other = unwrap(other.optimizer, Wrapper)
        if any(group.get("gradient_release") for group in optimizer.param_groups):
            raise ValueError(f"{cls} works before and after a step, which gradient release takes inside of backward")
        if any(group.get("distribute_matrices") for group in optimizer.param_groups):
            self._refuse_distributed(optimizer, own)
        self.check_inner(optimizer)
        own = self._own_of({**optimizer.param_groups[0], **own}, {**self.counters, **own})
        checked = [self._own_of(group, own) for group in optimizer.param_groups]
        # Not Optimizer.__init__, which would make groups and state of its own.
        self.__setstate__({"_inner": optimizer, "own": own, "kept": {name: {} for name in self.keeps}})
        for group, entries in zip(self.param_groups, checked, strict=True):
            group.update(entries)
        self.begin()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        known_around(self)

    def begin(self) -> None:
        """What is to be done once the wrapper is made, before the first gradient."""

    def check_inner(self, optimizer: Optimizer) -> None:
        """Raise if the wrapper cannot go around this optimizer."""

    def reads_state(self, own: Mapping[str, Any]) -> bool:
        """Whether, with these options, it looks at the inner optimizer's state, what rounding leaves apart."""
        return False

    def _refuse_distributed(self, optimizer: Optimizer, own: Mapping[str, Any]) -> None:
        """Raise a ValueError if it looks at what, with `distribute_matrices`, one rank alone has."""
        cls = type(self).__name__
        if self.reads_state(own):
            raise ValueError(
                f"{cls} looks at the state of {type(optimizer).__name__}, which with distribute_matrices=True lies on "
                f"one rank for each matrix; leave that out"
            )
        kept = {
            storage.rounding_of(p.dtype, group).residual for group in optimizer.param_groups for p in group["params"]
        }
        if kept - {None, ""}:
            raise ValueError(
                f"{cls} takes exact weights, whose last bits ({', '.join(sorted(filter(None, kept)))}) with "
                f"distribute_matrices=True lie on one rank for each matrix; leave that out, or train float32 parameters"
            )

    def check_group(self, group: dict[str, Any]) -> None:
        """Raise if one of the wrapper's options in a group is wrong, and put each into it as Python's own."""

    def _own_of(self, group: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
        """The wrapper's options for a group, checked; `own` has those that the group does not."""
        checked = {**own, **group}
        self.check_group(checked)
        return {name: checked[name] for name in own}

    # -- what is the inner optimizer's ----------------------------------------------------------------------------

    @property
    def optimizer(self) -> Optimizer:
        """The inner optimizer."""
        return self._inner

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The inner optimizer's parameter groups."""
        return self._inner.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self._inner.param_groups = groups

    @property
    def state(self) -> Any:
        """The inner optimizer's state."""
        return self._inner.state

    @state.setter
    def state(self, state: Any) -> None:
        self._inner.state = state

    @property
    def defaults(self) -> dict[str, Any]:
        """The inner optimizer's defaults."""
        return self._inner.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self._inner.defaults = defaults

    @property
    def is_second_order(self) -> bool:
        """Whether gradients need a graph: `loss.backward(create_graph=True)`. timm's training loops ask for it."""
        return bool(getattr(self._inner, "is_second_order", False))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Remove the gradients, or set them to zero."""
        with record_function(self._zero_grad_profile_name):
            self._inner.zero_grad(set_to_none=set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; options it does not name are the optimizers' defaults."""
        checks.group_dict(param_group).update(self._own_of(param_group, self.own))
        self._inner.add_param_group(param_group)
        self.complete_groups()

    def complete_groups(self) -> None:
        """Give groups the options they lack: new ones, and those that the inner optimizer alone has loaded."""
        for group in self.param_groups:
            for name, value in self.own.items():
                group.setdefault(name, value)

    def why_not_flattened(self, steps_once: bool) -> str:
        """What the wrapper does that is not the same in flattened parameters; empty if nothing is.

        Args:
            steps_once: whether one step is of all parts, on the weights of the model.
        """
        if not self.by_entries:
            return f"is inside of {type(self).__name__}, which looks at whole parameters or at all of them"
        if not steps_once and modes.has_two(self):
            return f"is inside of {type(self).__name__}, whose weights to evaluate would not reach the model"
        return ""

    def stepping(self) -> Iterator[dict[str, Any]]:
        """The groups that a step is of: DeepSpeed steps one at a time, and the others have no parameters meanwhile."""
        return (group for group in self.param_groups if group["params"])

    def refuse_differing(self) -> None:
        """Raise a ValueError if groups disagree in an option of the wrapper's, which is one for all of them."""
        for index, group in enumerate(self.param_groups):
            differing = [name for name in self.by_name if group[name] != self.param_groups[0][name]]
            if differing:
                raise ValueError(
                    f"{differing[0]} is {group[differing[0]]!r} in group {index} and "
                    f"{self.param_groups[0][differing[0]]!r} in group 0; it must be the same in all groups"
                )

    def residual_of(self, param: Tensor) -> dict[str, Tensor]:
        """What the inner optimizer keeps of a parameter's rounding, as `storage.exact_weight` takes it."""
        state = self.state.get(param, {})
        return {name: dtensor.local(state[name]) for name in storage.RESIDUALS if name in state}

    def exact(self, param: Tensor) -> Tensor:
        """This rank's part of a parameter with what rounding took from it, in the dtype of exact state.

        It shares the parameter's memory where that is its dtype.
        """
        return storage.exact_weight(dtensor.local(param.detach()), self.residual_of(param))

    def exact_copy(self, param: Tensor) -> Tensor:
        """A tensor like a parameter, divided as it is, that holds its exact weight."""
        exact = self.exact(param)
        copy: Tensor = torch.empty_like(param.detach(), dtype=exact.dtype)
        dtensor.local(copy).copy_(exact)
        return copy

    def write(self, param: Tensor, weight: Tensor) -> None:
        """Put this rank's part of an exact weight into a parameter, and what rounding takes from it beside it."""
        storage.write_weight(dtensor.local(param.detach()), self.residual_of(param), weight)

    def refuse_lossy(self, param: Tensor, group: Mapping[str, Any]) -> None:
        """Raise a ValueError if what rounding takes from a parameter is lost, and with it what a wrapper puts there."""
        kept = "kahan_sum" in group and storage.rounding_of(param.dtype, group).residual
        if not kept and storage.exact_dtype(param.dtype) is not param.dtype:
            raise ValueError(
                f"{described(self, param)}: {type(self).__name__} moves weights by less than {param.dtype} holds; keep "
                f"float32 weights under autocast, or take an optimizer of hfoptim with kahan_sum or master_weights"
            )

    def only_made_state(self, counter: str) -> bool:
        """Whether the inner optimizer has not counted its first step, which was there to create state.

        torch.distributed.checkpoint asks for such a step before it reads or loads a state.

        Args:
            counter: the name that the wrapper counts its steps by, in the groups.
        """
        if any(group[counter] for group in self.param_groups):
            return False
        counts = [state.get("step") for state in self.state.values() if state]
        return bool(counts) and all(isinstance(count, Tensor) and not count.any() for count in counts)

    # -- copies and checkpoints -----------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        return {"_inner": self._inner, "own": self.own, "kept": self.kept}

    def state_dict(self) -> dict[str, Any]:
        """All that a checkpoint needs: the inner optimizer's state_dict, with what the wrapper keeps in it."""
        return hooked_state_dict(self, self._state_dict)

    def _state_dict(self) -> dict[str, Any]:
        state_dict = self._inner.state_dict()
        state = dict(state_dict["state"])
        keys = [group["params"] for group in state_dict["param_groups"]]
        for key, param in self._pairs(keys):
            kept = {name: tensors[param] for name, tensors in self.kept.items() if param in tensors}
            if kept:
                state[key] = {**state.get(key, {}), **kept}
        return loading.portable({**state_dict, "state": state})

    @leave_undisturbed
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state_dict.

        Args:
            state_dict: of this wrapper around this optimizer. That of the inner optimizer alone loads, too: the
                wrapper then begins anew.

        Raises:
            ValueError: its groups, parameters or shapes are not these, or the inner optimizer does not take it.
        """
        inner = unmasked(self)
        hooked_load(inner, state_dict, inner._load)

    def _load(self, state_dict: dict[str, Any]) -> None:
        groups = ordered_groups(self, state_dict)
        for index, group in enumerate(groups):
            own = self._own_of(group, self.own)
            groups[index] = {**group, **{name: value for name, value in own.items() if name in group}}
        state = dict(state_dict["state"])
        kept: dict[str, dict[Tensor, Tensor]] = {name: {} for name in self.keeps}
        for key, param in self._pairs([group["params"] for group in groups]):
            entry = state.get(key, {})
            found = [name for name in self.keeps if name in entry]
            for name in found:
                kept[name][param] = self._taken(name, param, entry[name])
            if found:
                state[key] = {name: value for name, value in entry.items() if name not in found}
                if not state[key]:  # a parameter that the inner optimizer has not stepped yet
                    del state[key]
        for group in groups:
            if self.expects and self.expects[1](group) and not kept[self.expects[0]]:
                raise ValueError(
                    f"the state_dict has steps of {type(self).__name__} in its groups and no {self.expects[0]!r} for "
                    f"any parameter. torch leaves out what optimizers around optimizers keep where it flattens a "
                    f"state_dict; save it with flatten_optimizer_state_dict=False"
                )
        self._inner.load_state_dict({**state_dict, "state": state, "param_groups": groups})
        self.kept = kept
        self.complete_groups()

    def _pairs(self, keys: Iterable[Iterable[Any]]) -> Iterator[tuple[Any, Tensor]]:
        """The parameters with their keys in a state_dict, given group by group."""
        for group, of_group in zip(self.param_groups, keys, strict=True):
            yield from zip(of_group, group["params"], strict=True)

    def _taken(self, name: str, param: Tensor, value: Tensor) -> Tensor:
        if value.shape != param.shape:
            raise ValueError(
                f"{described(self, param)}: {name} has the shape {tuple(value.shape)} in the state_dict, expected "
                f"{tuple(param.shape)}"
            )
        value = lasting(value)
        if name in self.keeps_exact:
            value = value.to(storage.exact_dtype(param.dtype))
        return dtensor.placed(value.to(param.dtype) if self.keeps[name] else value, param, clone)


def known_around(outer: Optimizer) -> None:
    """Let the optimizers of the engine inside of another one know of it."""
    for inner in unwrap_all(outer, RuleOptimizer):
        if not any(other is outer for other in inner.around):
            inner.around = (*inner.around, outer)


def refuse_second_order(wrapper: Wrapper, optimizer: Optimizer) -> None:
    """Raise a ValueError if an inner optimizer needs the gradients' graph, of which a wrapper changes the ends."""
    if getattr(optimizer, "is_second_order", False):
        raise ValueError(
            f"{type(wrapper).__name__} changes weights or gradients before the step of {type(optimizer).__name__}, "
            f"which needs the graph of the gradients as they were made"
        )


_made: dict[Any, type[Wrapper]] = {}


def around(wrapper: type[Wrapper], inner: type[Optimizer]) -> type[Wrapper]:
    """A class that makes an optimizer and a wrapper around it in one call: what a name like `lookahead_adamw` means.

    Args:
        wrapper: the wrapper's class; `by_name` has its options and their defaults.
        inner: the optimizer's class; its signature is the new one's, with the wrapper's options.

    Returns:
        The class, the same one every time.
    """
    if (wrapper, inner) not in _made:
        _made[wrapper, inner] = _make(wrapper, inner)
    return _made[wrapper, inner]


def _make(wrapper: type[Wrapper], inner: type[Optimizer]) -> type[Wrapper]:
    def __init__(self: Wrapper, params: Any, **options: Any) -> None:
        own = {name: options.pop(name, default) for name, default in wrapper.by_name.items()}
        Wrapper.__init__(self, inner(params, **options), own)

    def __reduce_ex__(self: Wrapper, protocol: Any) -> tuple[Callable[..., Wrapper], Any, Any]:
        return _blank, (wrapper, _recipe(inner)), self.__getstate__()

    kinds = inspect.Parameter
    parameters = list(inspect.signature(inner).parameters.values())
    end = len(parameters) - (parameters[-1].kind is kinds.VAR_KEYWORD)
    parameters[end:end] = [kinds(name, kinds.KEYWORD_ONLY, default=d) for name, d in wrapper.by_name.items()]
    return type(
        f"{wrapper.__name__}{inner.__name__}",
        (wrapper,),
        {
            "__doc__": f"`{wrapper.__name__}` around `{inner.__name__}`, with the arguments of `{inner.__name__}`.\n\n"
            f"{wrapper.__name__}: {inspect.getdoc(wrapper)}\n\n{inner.__name__}: {inspect.getdoc(inner)}",
            "__module__": wrapper.__module__,
            "__signature__": inspect.Signature(parameters),
            "__init__": __init__,
            "__reduce_ex__": __reduce_ex__,
            "inner": inner,
            "made_of": (wrapper, inner),
        },
    )


def _blank(wrapper: type[Wrapper], inner: Any) -> Wrapper:
    """A made class's object without content: such a class has no name that pickle could find."""
    return object.__new__(around(wrapper, _made_by(inner)))


def _recipe(cls: type[Optimizer]) -> Any:
    """A class, or of one that was made, what of."""
    wrapper, inner = vars(cls).get("made_of", (None, cls))
    return (wrapper, _recipe(inner)) if wrapper else cls


def _made_by(recipe: Any) -> type[Optimizer]:
    return around(recipe[0], _made_by(recipe[1])) if isinstance(recipe, tuple) else recipe
