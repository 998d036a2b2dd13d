"""AdamWeightDecay: Keras' Adam with name patterns for decoupled decay and clipping inside the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, InitVar
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from hfoptim.engine import (
    ELEMENT,
    TENSOR,
    Group,
    Name,
    Probe,
    Rule,
    RunState,
    Scalars,
    checks,
    hyper,
)
from hfoptim.optimizers.shared.clipping import clip_at, clip_factor, squared_norm
from hfoptim.optimizers.shared.exempt_by_name import ExemptByName, exempt_by_patterns, patterns
from hfoptim.optimizers.shared.moments import adam_state, folded, moments_step
from hfoptim.optimizers.shared.peer_flags import TORCH_ADAM

CLIPS = ("clipnorm", "clipvalue", "global_clipnorm")
# Keras' names of what is a number in the groups.
KERAS = {"learning_rate": "lr", "epsilon": "eps", "weight_decay_rate": "weight_decay"}


def _clip_of(group: Group) -> str | None:
    return next((name for name in CLIPS if group[name] is not None), None)


def _per_step(t: int, group: Group, grad_sq: Tensor | None = None) -> Scalars:
    clip = _clip_of(group)
    if clip is None:
        return folded(t, group)
    return {**folded(t, group), "clip": group[clip] if grad_sq is None else clip_factor(grad_sq, group[clip])}


@cache
def adam_weight_decay(clip: str | None, amsgrad: bool) -> Rule:
    """The rule for one way of clipping (one of `CLIPS`, None), with or without AMSGrad."""

    def fn(grad: Any, *args: Any) -> tuple[Any, ...]:
        h = args[-1]
        if clip == "clipvalue":
            grad = grad.clamp(min=-h.clip, max=h.clip)
        elif clip is not None:
            grad = grad * (clip_factor(grad.square().sum(), h.clip) if clip == "clipnorm" else h.clip)
        return moments_step(grad, *args)

    fn.__name__ = "adam_weight_decay"
    state = adam_state(amsgrad)
    scope = TENSOR if clip == "clipnorm" else ELEMENT
    return Rule(fn, scope, state, _per_step, Probe(squared_norm) if clip == "global_clipnorm" else None)


def _number_or_function(name: str, value: Any) -> Any:
    """A learning rate, or a function of the step count that gives it."""
    return value if callable(value) and not isinstance(value, Tensor) else checks.learning_rate("lr", value)


_FOUND = "regular expressions; a parameter whose name one of them is found in is"


class AdamWeightDecay(ExemptByName):
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

    names = (Name("adam_weight_decay"),)
    if TYPE_CHECKING:
        params: InitVar[nn.Module | ParamsT]
    absent_from_peers = frozenset({"iterations"})
    peer_flags = {**TORCH_ADAM, "correct_bias": True}
    learning_rate: float | Callable[[int], float] = hyper(
        1e-3,
        "a number, or a function of the step count (from 0) that gives it, for example `schedules.WarmUp`",
        check=_number_or_function,
        kept=True,
    )
    beta_1: float = hyper(0.9, "decay rate of m", below=1.0, in_group=False)
    beta_2: float = hyper(0.999, "decay rate of v", below=1.0, in_group=False)
    epsilon: float = hyper(1e-7, "added to the root of v", in_group=False)
    amsgrad: bool = hyper(False, "divide by the largest v so far", in_peers=False)
    weight_decay_rate: float = hyper(0.0, "decoupled weight decay, per step and unit of lr", in_group=False)
    include_in_weight_decay: Sequence[str] | None = hyper(
        None, f"{_FOUND} decayed, whatever the next says", check=patterns, kept=True
    )
    exclude_from_weight_decay: Sequence[str] | None = hyper(
        None, f"{_FOUND} not decayed. All others are", check=patterns, kept=True
    )
    name: str = hyper("AdamWeightDecay", "kept as `.name`", kept=True)
    _: KW_ONLY
    clipnorm: float | None = clip_at(None, "norm of each gradient", in_peers=False)
    clipvalue: float | None = clip_at(None, "absolute entry of a gradient", in_peers=False)
    global_clipnorm: float | None = clip_at(None, "norm of all gradients together", in_peers=False)
    # As arguments they may be None; in a group they are checked as these functions do.
    lr: float | Callable[[int], float] | None = hyper(
        None, "PyTorch's name, in place of `learning_rate`", check=checks.learning_rate
    )
    betas: tuple[float, float] | None = hyper(
        None, "PyTorch's name, in place of `beta_1` and `beta_2`", check=partial(checks.betas, count=2)
    )
    eps: float | None = hyper(None, "PyTorch's name, in place of `epsilon`", check=checks.number)
    weight_decay: float | None = hyper(None, "PyTorch's name, in place of `weight_decay_rate`", check=checks.number)

    def from_arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        keras = {"betas": (given["beta_1"], given["beta_2"]), **{name: given[theirs] for theirs, name in KERAS.items()}}
        given = {**given, **{name: value for name, value in keras.items() if given[name] is None}}
        rate = given["learning_rate"] = _number_or_function("lr", given["lr"])
        given["lr"] = rate(0) if callable(rate) else rate
        if isinstance(given["params"], nn.Module):
            given["params"] = given["params"].named_parameters()
        return given

    @property
    def run_state(self) -> RunState:
        """The count of steps, for a function that gives the learning rate."""
        return RunState({"iterations": 0}, self._scheduled)

    def _scheduled(self, state: Group, totals: Mapping[str, Tensor], group: Group) -> Scalars:
        if not callable(self.learning_rate):
            return {}
        rate = checks.number("learning_rate's value", self.learning_rate(state["iterations"]))
        return {"lr": rate * group.get("lr_scale", 1.0), "iterations": state["iterations"] + 1}

    def exempt(self, names: Sequence[str | None]) -> set[str | None]:
        return exempt_by_patterns(names, self.include_in_weight_decay, self.exclude_from_weight_decay)

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        given = [name for name in CLIPS if group[name] is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other; give one way of clipping")

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        return adam_weight_decay(_clip_of(group), group["amsgrad"])

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments but `params`, as Keras' optimizers give them."""
        numbers = {theirs: self.defaults[name] for theirs, name in KERAS.items()}
        numbers["beta_1"], numbers["beta_2"] = self.defaults["betas"]
        options = {name: self.defaults[name] for name in ("amsgrad", *CLIPS)}
        kept = {name: getattr(self, name) for name, each in self.hypers.items() if each.kept}
        return {**numbers, **options, **kept}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], params: nn.Module | ParamsT) -> AdamWeightDecay:
        """An optimizer from `get_config()`; in PyTorch it also needs the parameters."""
        return cls(params, **config)
