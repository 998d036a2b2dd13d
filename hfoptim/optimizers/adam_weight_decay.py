"""AdamWeightDecay: Keras' Adam with name patterns for decoupled decay and clipping inside the optimizer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from hfoptim.engine import ELEMENT, TENSOR, EngineOptions, Probe, Rule, RuleOptimizer, nonnegative, zeros
from hfoptim.engine.checks import flag, group_dict, integer, number, strings
from hfoptim.engine.checks import learning_rate as check_lr
from hfoptim.engine.optimizer import EngineOptimizer
from hfoptim.engine.parameter_names import bare_names, searched
from hfoptim.optimizers.shared.moments import folded, moments, moments_step
from hfoptim.optimizers.shared.peer_flags import TORCH_ADAM

_CLIPS = ("clipnorm", "clipvalue", "global_clipnorm")


def _per_step(t: int, group: Mapping[str, Any], grad_sq: Tensor | None = None) -> dict[str, Any]:
    scalars: dict[str, Any] = folded(t, group)
    for name in ("clipnorm", "clipvalue"):
        if group[name] is not None:
            scalars[name] = float(group[name])
    if grad_sq is not None:
        norm = grad_sq.sqrt()
        scalars["global_clip"] = group["global_clipnorm"] / norm.clamp(min=group["global_clipnorm"])
    return scalars


def squared_norm(grad: Any, param: Any, *state_and_h: Any) -> dict[str, Any]:
    """A probe for the norm of all gradients together."""
    return {"grad_sq": grad.square().sum()}


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


class AdamWeightDecay(RuleOptimizer):
    """Adam with decoupled weight decay chosen by parameter name, and gradient clipping: Keras' numbers in PyTorch.

    With g the clipped gradient, p the parameter, t the step:

        m = beta_1 m + (1 - beta_1) g
        v = beta_2 v + (1 - beta_2) g^2;  with amsgrad, w = max(w, v) takes its place below
        p = p - lr weight_decay_rate p - lr sqrt(1 - beta_2^t) / (1 - beta_1^t) m / (sqrt(v) + epsilon)

    State: `exp_avg` (m), `exp_avg_sq` (v), `max_exp_avg_sq` (w). Clipping leaves `p.grad` as it is.

    Args:
        params: a module, named parameters, parameters, or dicts that define parameter groups. Name patterns need names.
        learning_rate (default 1e-3): a number, or a function of the step count (from 0) that gives it, for example
            `schedules.WarmUp`.
        beta_1 (0.9), beta_2 (0.999): decay rates of m and v, each in [0, 1).
        epsilon (1e-7): added to the root of v, >= 0.
        amsgrad (False): divide by the largest v so far.
        weight_decay_rate (0.0): decoupled weight decay, per step and unit of lr.
        include_in_weight_decay (None): regular expressions; a parameter whose name one of them is found in is decayed,
            whatever the next argument says.
        exclude_from_weight_decay (None): regular expressions; a parameter whose name one of them is found in is not
            decayed. All others are.
        name ("AdamWeightDecay"): kept as `.name`.
        clipnorm (None): largest norm of each gradient.
        clipvalue (None): largest absolute entry of a gradient.
        global_clipnorm (None): largest norm of all gradients together.
        lr, betas, eps, weight_decay (None): PyTorch's names; each replaces its counterpart above.
        **options: `maximize`, `foreach`, `fused`, `caution`, `kahan_sum`, see `RuleOptimizer`.

    Raises:
        ValueError: a hyper-parameter out of range, two ways of clipping, patterns without names, or no parameters.
        TypeError: a hyper-parameter of the wrong type, or an unknown option.

    Source:
        transformers 4.34, `optimization_tf.AdamWeightDecay`; Keras `Adam`; Loshchilov and Hutter, arXiv 1711.05101.
    """

    per_step_options = frozenset({"lr", "iterations"})
    peer_flags = {"correct_bias": True, **TORCH_ADAM}
    absent_from_peers = frozenset(_CLIPS) | {"amsgrad", "iterations"}

    def __init__(
        self,
        params: nn.Module | ParamsT,
        learning_rate: float | Callable[[int], float] = 1e-3,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        amsgrad: bool = False,
        weight_decay_rate: float = 0.0,
        include_in_weight_decay: Sequence[str] | None = None,
        exclude_from_weight_decay: Sequence[str] | None = None,
        name: str = "AdamWeightDecay",
        *,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        lr: float | Callable[[int], float] | None = None,
        betas: tuple[float, float] | None = None,
        eps: float | None = None,
        weight_decay: float | None = None,
        **options: Unpack[EngineOptions],
    ) -> None:
        learning_rate = learning_rate if lr is None else lr
        if not callable(learning_rate) or isinstance(learning_rate, Tensor):
            learning_rate = check_lr("lr", learning_rate)
        self.name = name
        self.learning_rate = learning_rate
        self.include_in_weight_decay = _patterns("include_in_weight_decay", include_in_weight_decay)
        self.exclude_from_weight_decay = _patterns("exclude_from_weight_decay", exclude_from_weight_decay)
        defaults = {
            "lr": learning_rate(0) if callable(learning_rate) else learning_rate,
            "betas": (beta_1, beta_2) if betas is None else betas,
            "eps": epsilon if eps is None else eps,
            "amsgrad": amsgrad,
            "weight_decay": weight_decay_rate if weight_decay is None else weight_decay,
            "clipnorm": clipnorm,
            "clipvalue": clipvalue,
            "global_clipnorm": global_clipnorm,
            "iterations": 0,
        }
        params = params.named_parameters() if isinstance(params, nn.Module) else params
        EngineOptimizer.__init__(self, params, defaults, **options)

    def __getstate__(self) -> dict[str, Any]:
        own = ("name", "learning_rate", "include_in_weight_decay", "exclude_from_weight_decay")
        return {**super().__getstate__(), **{key: getattr(self, key) for key in own}}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; parameters that the patterns exempt from decay form a second one beside it."""
        if not (self.include_in_weight_decay or self.exclude_from_weight_decay):
            super().add_param_group(param_group)
            return
        names, params = _names_and_params(group_dict(param_group)["params"])
        rate = param_group.get("weight_decay", self.defaults["weight_decay"])
        decaying = self._decaying(names)
        for decayed in (True, False):
            chosen = [(n, p) for n, p in zip(names, params, strict=True) if (n in decaying) is decayed]
            if chosen:
                super().add_param_group({**param_group, "params": chosen, "weight_decay": rate if decayed else 0.0})

    def _decaying(self, names: list[str]) -> set[str]:
        short = bare_names(names)
        included, excluded = (
            {name for pattern in patterns for name in searched(pattern, short)}
            for patterns in (self.include_in_weight_decay, self.exclude_from_weight_decay)
        )
        return included | ({*names} - excluded)

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        flag("amsgrad", group["amsgrad"])
        group["iterations"] = integer("iterations", group["iterations"], 0)
        given = [name for name in _CLIPS if group[name] is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other; give one way of clipping")
        for name in given:
            group[name] = number(name, group[name])
            if group[name] == 0.0:
                raise ValueError(f"{name}=0 would erase every gradient, expected a number above 0, or None")

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        return adam_weight_decay(next((name for name in _CLIPS if group[name] is not None), None), group["amsgrad"])

    def on_step_start(self, totals: Mapping[str, Tensor]) -> None:
        if callable(self.learning_rate):
            for group in self.param_groups:
                rate = number("learning_rate's value", self.learning_rate(group["iterations"]))
                group["lr"] = rate * group.get("lr_scale", 1.0)
                group["iterations"] += 1

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


def _patterns(name: str, value: Sequence[str] | None) -> list[str]:
    patterns = strings(name, () if value is None else value)
    for pattern in patterns:
        _check_pattern(name, pattern)
    return patterns


def _check_pattern(name: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{name} holds {pattern!r}, which is no regular expression: {error}") from error


def _names_and_params(params: Iterable[Any]) -> tuple[list[str], list[Tensor]]:
    pairs = list(params)
    if not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
        raise ValueError(
            "include_in_weight_decay and exclude_from_weight_decay match names; give the model or "
            "model.named_parameters() as params"
        )
    return [name for name, _ in pairs], [param for _, param in pairs]
