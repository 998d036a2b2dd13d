"""AdamWeightDecay: Keras' Adam with name patterns for decoupled decay and clipping inside the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, InitVar
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from hfoptim.engine import ELEMENT, TENSOR, Name, Probe, Rule, RunState, hyper, nonnegative, zeros
from hfoptim.engine.checks import learning_rate as check_lr
from hfoptim.engine.checks import number
from hfoptim.optimizers.shared.clipping import clip_factor, squared_norm
from hfoptim.optimizers.shared.decay_patterns import EXCLUDED, INCLUDED, DecayedByName
from hfoptim.optimizers.shared.moments import folded, moments, moments_step
from hfoptim.optimizers.shared.peer_flags import TORCH_ADAM

_CLIPS = ("clipnorm", "clipvalue", "global_clipnorm")


def _per_step(t: int, group: Mapping[str, Any], grad_sq: Tensor | None = None) -> dict[str, Any]:
    scalars: dict[str, Any] = folded(t, group)
    for name in ("clipnorm", "clipvalue"):
        if group[name] is not None:
            scalars[name] = float(group[name])
    if grad_sq is not None:
        scalars["global_clip"] = clip_factor(grad_sq, group["global_clipnorm"])
    return scalars


@cache
def adam_weight_decay(clip: str | None, amsgrad: bool) -> Rule:
    """The rule for one way of clipping (one of clipnorm, clipvalue, global_clipnorm, None), with or without AMSGrad."""

    def fn(grad: Any, param: Any, *args: Any) -> tuple[Any, ...]:
        *state, h = args
        if clip == "clipvalue":
            grad = grad.clamp(min=-h.clipvalue, max=h.clipvalue)
        elif clip == "clipnorm":
            grad = grad * (h.clipnorm / grad.square().sum().sqrt().clamp(min=h.clipnorm))
        elif clip == "global_clipnorm":
            grad = grad * h.global_clip
        if not amsgrad:
            return moments_step(grad, param, state[0], state[1], h)
        exp_avg, exp_avg_sq = moments(grad, state[0], state[1], h)
        largest = torch.maximum(state[2], exp_avg_sq)
        return exp_avg / (largest.sqrt() + h.eps), exp_avg, exp_avg_sq, largest

    fn.__name__ = "adam_weight_decay"
    state = {"exp_avg": zeros, "exp_avg_sq": nonnegative}
    if amsgrad:
        state["max_exp_avg_sq"] = nonnegative
    scope = TENSOR if clip == "clipnorm" else ELEMENT
    return Rule(fn, scope, state, _per_step, Probe(squared_norm) if clip == "global_clipnorm" else None)


def _number_or_function(name: str, value: Any) -> Any:
    """A learning rate, or a function of the step count that gives it."""
    return value if callable(value) and not isinstance(value, Tensor) else check_lr("lr", value)


LEARNING_RATE = hyper(
    1e-3,
    "a number, or a function of the step count (from 0) that gives it, for example `schedules.WarmUp`",
    check=_number_or_function,
    in_group=False,
)


def _largest(what: str) -> float | None:
    doc, excluded = f"largest {what}; None does not clip", "would erase every gradient"
    return hyper(None, doc, above=0.0, excluded=excluded, in_peers=False)


class AdamWeightDecay(DecayedByName):
    """Adam with decoupled weight decay chosen by parameter name, and gradient clipping: Keras' numbers in PyTorch.

    With g the clipped gradient, p the parameter, t the step:

        m = beta_1 m + (1 - beta_1) g
        v = beta_2 v + (1 - beta_2) g^2;  with amsgrad, w = max(w, v) takes its place below
        p = p - lr weight_decay_rate p - lr sqrt(1 - beta_2^t) / (1 - beta_1^t) m / (sqrt(v) + epsilon)

    State: `exp_avg` (m), `exp_avg_sq` (v), `max_exp_avg_sq` (w). Clipping leaves `p.grad` as it is.

    Raises:
        ValueError: two ways of clipping, or patterns without names.

    Source:
        transformers 4.34, `optimization_tf.AdamWeightDecay`; Keras `Adam`; Loshchilov and Hutter, arXiv 1711.05101.
    """

    names = (
        Name(
            "adam_weight_decay",
            "Keras' Adam with decoupled decay chosen by parameter name and gradient clipping",
            "https://arxiv.org/abs/1711.05101",
        ),
    )
    if TYPE_CHECKING:
        params: InitVar[nn.Module | ParamsT]
    absent_from_peers = frozenset({"iterations"})
    peer_flags = {**TORCH_ADAM, "correct_bias": True}
    learning_rate: float | Callable[[int], float] = LEARNING_RATE
    beta_1: float = hyper(0.9, "decay rate of m", below=1.0, in_group=False)
    beta_2: float = hyper(0.999, "decay rate of v", below=1.0, in_group=False)
    epsilon: float = hyper(1e-7, "added to the root of v", in_group=False)
    amsgrad: bool = hyper(False, "divide by the largest v so far", in_peers=False)
    weight_decay_rate: float = hyper(0.0, "decoupled weight decay, per step and unit of lr", in_group=False)
    include_in_weight_decay: Sequence[str] | None = INCLUDED
    exclude_from_weight_decay: Sequence[str] | None = EXCLUDED
    name: str = hyper("AdamWeightDecay", "kept as `.name`", in_group=False)
    _: KW_ONLY
    clipnorm: float | None = _largest("norm of each gradient")
    clipvalue: float | None = _largest("absolute entry of a gradient")
    global_clipnorm: float | None = _largest("norm of all gradients together")
    lr: float | Callable[[int], float] | None = hyper(
        None, "PyTorch's name, in place of `learning_rate`", check=check_lr
    )
    betas: tuple[float, float] | None = hyper(None, "PyTorch's name, in place of `beta_1` and `beta_2`")
    eps: float | None = hyper(None, "PyTorch's name, in place of `epsilon`")
    weight_decay: float | None = hyper(None, "PyTorch's name, in place of `weight_decay_rate`")

    def from_arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        keras = {
            "lr": given["learning_rate"],
            "betas": (given["beta_1"], given["beta_2"]),
            "eps": given["epsilon"],
            "weight_decay": given["weight_decay_rate"],
        }
        given = {**given, **{name: value for name, value in keras.items() if given[name] is None}}
        self.learning_rate = _number_or_function("lr", given["lr"])
        self.name = given["name"]
        if callable(self.learning_rate):
            given["lr"] = self.learning_rate(0)
        if isinstance(given["params"], nn.Module):
            given["params"] = given["params"].named_parameters()
        return super().from_arguments(given)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "name": self.name, "learning_rate": self.learning_rate}

    @property
    def run_state(self) -> RunState:
        """The count of steps, for a function that gives the learning rate."""
        return RunState({"iterations": 0}, self._scheduled)

    def _scheduled(
        self, state: Mapping[str, Any], totals: Mapping[str, Tensor], group: Mapping[str, Any]
    ) -> dict[str, Any]:
        if not callable(self.learning_rate):
            return {}
        rate = number("learning_rate's value", self.learning_rate(state["iterations"]))
        return {"lr": rate * group.get("lr_scale", 1.0), "iterations": state["iterations"] + 1}

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        given = [name for name in _CLIPS if group[name] is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other; give one way of clipping")
        for name in ("lr", "betas", "eps", "weight_decay"):
            if group[name] is None:  # as an argument it stands for Keras' name
                raise TypeError(f"{name}=None in a parameter group, expected a number")

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        return adam_weight_decay(next((name for name in _CLIPS if group[name] is not None), None), group["amsgrad"])

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments but `params`, as Keras' optimizers give them."""
        d = self.defaults
        return {
            "learning_rate": self.learning_rate,
            "beta_1": d["betas"][0],
            "beta_2": d["betas"][1],
            "epsilon": d["eps"],
            "amsgrad": d["amsgrad"],
            "weight_decay_rate": d["weight_decay"],
            "include_in_weight_decay": self.include_in_weight_decay or None,
            "exclude_from_weight_decay": self.exclude_from_weight_decay or None,
            "name": self.name,
            **{name: d[name] for name in _CLIPS},
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], params: nn.Module | ParamsT) -> AdamWeightDecay:
        """An optimizer from `get_config()`; in PyTorch it also needs the parameters."""
        return cls(params, **config)
