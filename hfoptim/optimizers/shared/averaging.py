"""Weights averaged over the steps, for schedule-free optimizers: the weights of the average, and the two modes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import Decay, Group, RuleOptimizer, RunState, Scalars, local, modes, storage
from hfoptim.engine.ambient import leave_undisturbed
from hfoptim.engine.rule import add_scaled


def warmed_up(k: int, group: Mapping[str, Any]) -> float:
    """The learning rate of step k, which grows linearly over `warmup_steps`."""
    return float(group["lr"]) * (min(1.0, k / group["warmup_steps"]) if group["warmup_steps"] else 1.0)


def weighed(state: Mapping[str, Any], lr: Any, r: float, weight_lr_power: float) -> dict[str, Any]:
    """The next step of an average over steps of which each weighs `k ** r * lr_max ** weight_lr_power`.

    Args:
        state: `k`, `lr_max` and `weight_sum` after the step before; 0, -1 and 0 at first.
        lr: of this step, a number or, where that is found on the device, a 0-d tensor there. Then all but k are, too.
        r, weight_lr_power: the options.

    Returns:
        The same after this step, with its `weight`.
    """
    k, least = state["k"] + 1, state["lr_max"]
    lr_max = lr.clamp(min=least) if isinstance(lr, Tensor) else max(least, lr)
    weight = lr_max**weight_lr_power * float(k**r)
    return {"k": k, "lr_max": lr_max, "weight_sum": state["weight_sum"] + weight, "weight": weight}


def share_of(weight: Any, weight_sum: Any) -> Any:
    """What a step of this weight is of the average; a learning rate of 0 from the start leaves nothing to average."""
    if isinstance(weight_sum, Tensor):
        return torch.where(weight_sum > 0.0, weight / weight_sum, 0.0)
    return weight / weight_sum if weight_sum else 0.0


def average_of(rate: Callable[[int, Mapping[str, Any]], float]) -> RunState:
    """The run state of an average as `weighed` makes it.

    Args:
        rate: `(k, group)` -> the learning rate of step k, from 1.
    """

    def weigh(state: Mapping[str, Any], totals: Mapping[str, Tensor], group: Mapping[str, Any]) -> dict[str, Any]:
        lr = rate(state["k"] + 1, group)
        return {"scheduled_lr": lr, **weighed(state, lr, group["r"], group["weight_lr_power"])}

    return RunState({"k": 0, "weight_sum": 0.0, "lr_max": -1.0, "scheduled_lr": 0.0, "train_mode": True}, weigh)


def average_rates(group: Group, weight: float, beta: float) -> Scalars:
    """What `averaged` reads: of a step that weighs `weight`, with `beta` the share of the average in y."""
    lr = group["scheduled_lr"]
    share = share_of(weight, group["weight_sum"])
    return {
        "lr": lr,
        "share": share,
        "step_of_y": lr * (1.0 - beta * (1.0 - share)),
    }


def averaged(direction: Any, param: Any, z: Any, h: Any) -> tuple[Any, Any, Any]:
    """The update of y, the step size, and z after its step: y is pulled towards z as the average moves."""
    direction = add_scaled(direction, param, h.weight_decay)
    update = add_scaled(direction * h.step_of_y, param - z, h.share)
    return update, h.lr, add_scaled(z, direction, -h.lr)


class TwoModes(RuleOptimizer):
    """An optimizer with other weights to evaluate with than those it trains, which lie in the state `y` meanwhile.

    Its groups have the entry `train_mode`.
    """

    occasional_state = RuleOptimizer.occasional_state | {"y"}

    def check_ready(self) -> None:
        modes.check_training(type(self).__name__, self.param_groups)

    @leave_undisturbed
    @torch.no_grad()
    def eval(self) -> None:
        """Put the weights for evaluation into the parameters; nothing if they are there.

        With `distribute_matrices`, on every rank; also where parameters are flattened.
        """
        if any(group["train_mode"] for group in self.param_groups):
            self.switch_weights(self._to_evaluate)

    def _to_evaluate(self) -> None:
        with self._switching(to_train=False) as changing:
            for param, state, group in changing:
                state["y"] = param.detach().clone()
                local(param.detach()).copy_(self.evaluated(param, state, group))

    @leave_undisturbed
    @torch.no_grad()
    def train(self) -> None:
        """Put the training weights, y, back into the parameters; nothing if they are there.

        With `distribute_matrices`, on every rank; also where parameters are flattened.
        """
        if not all(group["train_mode"] for group in self.param_groups):
            self.switch_weights(self._to_train)

    def _to_train(self) -> None:
        with self._switching(to_train=True) as changing:
            for param, state, group in changing:
                if "y" in state:
                    param.copy_(state.pop("y"))
                else:
                    local(param.detach()).copy_(self.trained(param, state, group))

    def evaluated(self, param: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """The weights to evaluate with, their part on this rank, of a parameter that holds the trained ones."""
        raise NotImplementedError

    def trained(self, param: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """The trained weights, likewise, of a parameter that holds those for evaluation and came without the others."""
        raise NotImplementedError

    @contextmanager
    def _switching(self, to_train: bool) -> Iterator[list[tuple[Tensor, dict[str, Any], dict[str, Any]]]]:
        """(parameter, state, group) of all that change here when the mode does; what others change comes afterwards."""
        changing, owners = modes.switched(self.param_groups, to_train), self.owners()
        elsewhere = owners.elsewhere if owners is not None else ()
        yield [
            (param, self.state[param], group)
            for group in changing
            for param in group["params"]
            if self.state.get(param) and param not in elsewhere
        ]
        if owners is not None and changing:
            owners.share()


class Averaging(TwoModes):
    """An optimizer that trains at y, between z, where a step leads, and x, the average of all z.

    Its rule keeps z in the state `z`, and its `per_step` is handed `weight`, what the step weighs in the average.
    """

    # The option that is the share of x in y, or has it as its first number.
    share_option = "betas"
    run_state = average_of(warmed_up)
    decay = Decay.INSIDE
    wants_constant_lr = True

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        if self._share(group) == 0.0:
            name, of = self.share_option, "[0]" if self.share_option == "betas" else ""
            raise ValueError(
                f"{name}={group[name]!r}: without a share of the average in the training point the average is lost; "
                f"expected {name}{of} above 0"
            )

    def _share(self, group: Mapping[str, Any]) -> float:
        share = group[self.share_option]
        return float(share[0] if isinstance(share, tuple) else share)

    def evaluated(self, param: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        y, z = self._exact(param), local(state["z"])
        return y + (z - y) * (1.0 - 1.0 / self._share(group))

    def trained(self, param: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        # A checkpoint of schedulefree, which keeps x only.
        x, z = self._exact(param), local(state["z"])
        return x + (z - x) * (1.0 - self._share(group))

    def adapt_loaded(self, param: Tensor, state: dict[str, Any], group: dict[str, Any]) -> dict[str, Any]:
        # schedulefree counts steps by group only.
        return {"step": group["k"], **state}

    def _exact(self, param: Tensor) -> Tensor:
        """The parameter with what rounding took from it, in the dtype of the state."""
        state = {name: local(value) for name, value in self.state[param].items() if name in storage.RESIDUALS}
        return storage.exact_weight(local(param.detach()), state).to(self.state[param]["z"].dtype)
