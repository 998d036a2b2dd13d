"""Several optimizers as one: each steps parameters of its own."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from typing import Any

from torch import Tensor
from torch.autograd.profiler import record_function
from torch.optim import Optimizer

from hfoptim.engine import checks
from hfoptim.engine.checkpoints import loading
from hfoptim.engine.checkpoints.correspondence import ordered_groups
from hfoptim.engine.checkpoints.hooks import hooked_load, hooked_state_dict
from hfoptim.engine.distributed import flattened
from hfoptim.wrappers.closures import evaluate, refuse_those_with_closures
from hfoptim.wrappers.wrapper import known_around


class CombinedOptimizer(Optimizer):
    """Several optimizers that step, are scheduled and are saved as one.

        muon = hfoptim.Muon(param_groups, lr=2e-3)
        adamw = torch.optim.AdamW(model.lm_head.parameters(), lr=1e-3)
        optimizer = hfoptim.CombinedOptimizer([muon, adamw])

    The parameter groups are those of the optimizers themselves, in the order of the optimizers, so schedules,
    Accelerate and the Trainer write into them as they do into those of one. The state_dict has torch's layout,
    parameters numbered through all groups. What an optimizer computes from all gradients, such as a norm to clip by, it
    computes from those of its own parameters.

    A group that is added goes to the first optimizer, or to the one that `add_param_group(group, optimizer)` names, and
    comes after all others. `defaults` are those of the first. `train()` and `eval()` reach those that have them.

    Args:
        optimizers: torch optimizers, of hfoptim or not, over different parameters.

    Raises:
        TypeError: `optimizers` is no list of optimizers.
        ValueError: there are none, two of them have the same parameter, one needs a closure (LBFGS, SAM, SVRG),
            releases gradients, or keeps more in its state_dict than state and parameter groups.
    """

    optimizers: tuple[Optimizer, ...]
    # For every group, which optimizer has it; their groups come in their own order.
    _owners: list[int]

    def __init__(self, optimizers: Iterable[Optimizer]) -> None:
        if isinstance(optimizers, Optimizer) or not isinstance(optimizers, Iterable):
            raise TypeError(f"optimizers is a {type(optimizers).__name__}, expected a list of optimizers")
        members = tuple(optimizers)
        for member in members:
            _check_member(member)
        if not members:
            raise ValueError("optimizers is empty, expected one optimizer or more")
        held = Counter(id(param) for member in members for group in member.param_groups for param in group["params"])
        shared = sum(count > 1 for count in held.values())
        if shared:
            raise ValueError(f"{shared} parameters are in more than one of the optimizers, which would step them twice")
        # Not Optimizer.__init__, which would make groups and state of its own.
        self.__setstate__({"optimizers": members, "_owners": []})

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        known_around(self)

    def why_not_flattened(self, steps_once: bool) -> str:
        """Why the optimizers do not step flattened parameters; empty if they do."""
        return "" if steps_once else "is one of several optimizers, which are stepped together"

    # -- what is the optimizers' ----------------------------------------------------------------------------------

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizers' own parameter groups, in a new list."""
        return self._in_order([member.param_groups for member in self.optimizers])

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        if len(groups) < len(self._owners) and "deepspeed" in sys.modules:
            raise ValueError(
                flattened.message(type(self).__name__, "steps several optimizers together", flattened.ZERO)
            )
        for member, own in zip(self.optimizers, self._divided(groups), strict=True):
            member.param_groups = own

    @property
    def state(self) -> Any:
        """The optimizers' state, as one mapping from parameters."""
        return _States([member.state for member in self.optimizers], self._owner_of)

    @state.setter
    def state(self, state: Any) -> None:
        for owner, member in enumerate(self.optimizers):
            member.state = defaultdict(dict, {k: v for k, v in state.items() if (self._owner_of(k) or 0) == owner})

    @property
    def defaults(self) -> dict[str, Any]:
        """The first optimizer's defaults."""
        return self.optimizers[0].defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self.optimizers[0].defaults = defaults

    @property
    def is_second_order(self) -> bool:
        """Whether gradients need a graph: `loss.backward(create_graph=True)`. timm's training loops ask for it."""
        return any(getattr(member, "is_second_order", False) for member in self.optimizers)

    def train(self) -> None:
        """Put the optimizers that have two modes, such as schedule-free ones, into training mode."""
        self._switch("train")

    def eval(self) -> None:
        """Put the optimizers that have two modes into evaluation mode."""
        self._switch("eval")

    def _switch(self, mode: str) -> None:
        for member in self.optimizers:
            switch = getattr(member, mode, None)
            if callable(switch):
                switch()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Remove the gradients, or set them to zero."""
        with record_function(self._zero_grad_profile_name):
            for member in self.optimizers:
                member.zero_grad(set_to_none=set_to_none)

    def add_param_group(self, param_group: dict[str, Any], optimizer: int = 0) -> None:
        """Add a parameter group.

        Args:
            param_group: the group.
            optimizer (default 0): which of `optimizers` gets it.

        Raises:
            ValueError: one of the optimizers has a parameter of it already, or it asks for gradient release.
            IndexError: there is no such optimizer.
        """
        self._notice_groups()
        given = checks.group_dict(param_group)["params"]
        entries = [given] if isinstance(given, Tensor) else list(given)
        tensors = [entry[1] if isinstance(entry, tuple) else entry for entry in entries]
        held = {id(param) for group in self.param_groups for param in group["params"]}
        if any(id(param) in held for param in tensors):
            raise ValueError("the new group has parameters that one of the optimizers has already")
        if param_group.get("gradient_release"):
            raise ValueError(_RELEASE)
        self.optimizers[optimizer].add_param_group({**param_group, "params": entries})
        self._notice_groups()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step of every optimizer.

        Args:
            closure: re-evaluates the model and returns the loss; called once, with gradients enabled.

        Returns:
            The closure's loss, or None.
        """
        loss = evaluate(self, closure)
        for member in self.optimizers:
            member.step()
        return loss

    # -- copies and checkpoints -----------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        return {"optimizers": self.optimizers, "_owners": self._owners}

    def state_dict(self) -> dict[str, Any]:
        """All that a checkpoint needs, in the layout of one optimizer."""
        return hooked_state_dict(self, self._state_dict)

    def _state_dict(self) -> dict[str, Any]:
        parts = [member.state_dict() for member in self.optimizers]
        groups, state, total = [], {}, 0
        numbers: list[dict[Any, int]] = [{} for _ in parts]
        in_order = self._in_order([part["param_groups"] for part in parts])
        for owner, group in zip(self._owners, in_order, strict=True):
            ours = list(range(total, total + len(group["params"])))
            numbers[owner].update(zip(group["params"], ours, strict=True))
            groups.append({**group, "params": ours})
            total += len(ours)
        for number, part in zip(numbers, parts, strict=True):
            state.update({number.get(key, key): value for key, value in part["state"].items()})
        return loading.portable({"state": dict(sorted(state.items(), key=_ordinal)), "param_groups": groups})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state_dict.

        Args:
            state_dict: of such optimizers in this order.

        Raises:
            ValueError: its groups or parameters are not these, or one of the optimizers does not take its part; nothing
                has changed.
        """
        hooked_load(self, state_dict, self._load)

    def _load(self, state_dict: dict[str, Any]) -> None:
        groups = ordered_groups(self, state_dict)
        owner_of = {key: owner for owner, group in zip(self._owners, groups, strict=True) for key in group["params"]}
        parts: list[dict[str, Any]] = [
            {**state_dict, "state": {}, "param_groups": own} for own in self._divided(groups)
        ]
        for key, value in state_dict["state"].items():
            parts[owner_of.get(key, 0)]["state"][key] = value
        before = [(inner, dict(vars(inner))) for member in self.optimizers for inner in _chain(member)]
        try:
            for member, part in zip(self.optimizers, parts, strict=True):
                member.load_state_dict(part)
        except BaseException as error:
            for inner, attributes in before:
                vars(inner).clear()
                vars(inner).update(attributes)
            if isinstance(error, ValueError):
                which = f"optimizer {self.optimizers.index(member)} ({type(member).__name__})"
                raise ValueError(f"{which}: {error}") from error
            raise

    # ----------------------------------------------------------------------------------------------------------------

    def _notice_groups(self) -> None:
        """Add to the order the groups that the optimizers have been given since."""
        known = Counter(self._owners)
        for owner, member in enumerate(self.optimizers):
            self._owners += [owner] * (len(member.param_groups) - known[owner])

    def _in_order(self, of_each: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
        self._notice_groups()
        left = [iter(groups) for groups in of_each]
        return [next(left[owner]) for owner in self._owners]

    def _divided(self, groups: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        """Groups in this optimizer's order, by the optimizer that has them."""
        self._notice_groups()
        if len(groups) != len(self._owners):
            raise ValueError(f"{len(groups)} parameter groups, expected the {len(self._owners)} of the optimizers")
        return [
            [group for owner, group in zip(self._owners, groups, strict=True) if owner == index]
            for index in range(len(self.optimizers))
        ]

    def _owner_of(self, param: Any) -> int | None:
        for owner, member in enumerate(self.optimizers):
            if any(param is other for group in member.param_groups for other in group["params"]):
                return owner
        return None


class _States(MutableMapping[Any, Any]):
    """The states of several optimizers as one mapping. Like an optimizer's own it makes an empty entry when asked."""

    def __init__(self, states: list[Any], owner_of: Callable[[Any], int | None]) -> None:
        self._states, self._owner_of = states, owner_of

    def _place(self, key: Any) -> Any:
        for state in self._states:
            if key in state:
                return state
        owner = self._owner_of(key)
        if owner is None:
            raise KeyError(key)
        return self._states[owner]

    def __getitem__(self, key: Any) -> Any:
        return self._place(key)[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._place(key)[key] = value

    def __delitem__(self, key: Any) -> None:
        del self._place(key)[key]

    def __contains__(self, key: Any) -> bool:
        return any(key in state for state in self._states)

    def get(self, key: Any, default: Any = None) -> Any:
        state = next((state for state in self._states if key in state), None)
        return default if state is None else state[key]

    def __iter__(self) -> Iterator[Any]:
        for state in self._states:
            yield from state

    def __len__(self) -> int:
        return sum(map(len, self._states))


_RELEASE = "gradient_release=True steps parameters of one optimizer inside of backward, and here are several"


def _check_member(member: Any) -> None:
    if not isinstance(member, Optimizer):
        raise TypeError(f"optimizers holds {member!r}, a {type(member).__name__}, expected torch.optim.Optimizer")
    refuse_those_with_closures(member, "which the steps of the others would disturb")
    if any(group.get("gradient_release") for group in member.param_groups):
        raise ValueError(_RELEASE)
    more = sorted(map(str, member.state_dict().keys() - {"state", "param_groups"}))
    if more:
        raise ValueError(
            f"{type(member).__name__} keeps {', '.join(more)} in its state_dict, for which there is no place"
        )


def _chain(optimizer: Any) -> Iterator[Any]:
    """An optimizer and those inside of it."""
    yield optimizer
    inside = getattr(optimizer, "optimizers", None) or [getattr(optimizer, "optimizer", None)]
    for inner in inside:
        if isinstance(inner, Optimizer):
            yield from _chain(inner)


def _ordinal(entry: tuple[Any, Any]) -> tuple[bool, int]:
    """Numbered parameters first, by their number."""
    return (False, entry[0]) if isinstance(entry[0], int) else (True, 0)
