"""Schedule-free AdamW: a running average of the weights in place of a learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from hfoptim.engine import (
    ELEMENT,
    Decay,
    EngineOptions,
    RuleOptimizer,
    add_scaled,
    bias_correction,
    clone,
    ema,
    nonnegative,
    rule,
)
from hfoptim.engine.ambient import leave_undisturbed
from hfoptim.engine.checks import flag, integer
from hfoptim.engine.distributed.dtensor import local
from hfoptim.engine.optimizer import EngineOptimizer
from hfoptim.engine.storage.rounding import join_float32


def _weight(group: Mapping[str, Any]) -> float:
    """What the step that `on_step_start` has just counted weighs in the average."""
    return float(group["k"] ** group["r"] * group["lr_max"] ** group["weight_lr_power"])


def _per_step(t: int, group: Mapping[str, Any]) -> dict[str, float]:
    beta1, beta2 = group["betas"]
    lr = group["scheduled_lr"]
    # A learning rate of 0 from the start leaves nothing to average.
    share = _weight(group) / group["weight_sum"] if group["weight_sum"] else 0.0
    root = math.sqrt(bias_correction(beta2, group["k"]))
    return {
        "alpha2": 1.0 - beta2,
        "root": root,
        "eps": group["eps"] * root,
        "weight_decay": float(group["weight_decay"]),
        "lr": lr,
        "share": share,
        "step_of_y": lr * (1.0 - beta1 * (1.0 - share)),
    }


@rule(ELEMENT, per_step=_per_step, returns_step_size=True, z=clone, exp_avg_sq=nonnegative)
def schedule_free(grad: Any, param: Any, z: Any, exp_avg_sq: Any, h: Any) -> tuple[Any, Any, Any, Any]:
    """z takes Adam's step without momentum; the parameter is pulled towards z as the average moves."""
    exp_avg_sq = ema(exp_avg_sq, grad * grad, h.alpha2)
    direction = add_scaled(grad / (exp_avg_sq.sqrt() + h.eps) * h.root, param, h.weight_decay)
    update = add_scaled(direction * h.step_of_y, param - z, h.share)
    return update, h.lr, add_scaled(z, direction, -h.lr), exp_avg_sq


class AdamWScheduleFree(RuleOptimizer):
    """AdamW that needs no schedule: it trains at one point and evaluates at an average of where it has been.

    With g the gradient, p the parameter, t the step, and z = p at the start:

        a = lr min(1, t / warmup_steps);  w = t^r max(a so far)^weight_lr_power;  c = w / sum(w)
        v = beta2 v + (1 - beta2) g^2
        u = g / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay p
        p = p - c (p - z) - a (1 - beta1 (1 - c)) u;  z = z - a u
        x = p + (1 - 1 / beta1) (z - p)

    x is the average of all z, weighted by w; p lies between it and z, at (1 - beta1) z + beta1 x. The parameter holds x
    from `eval()` to `train()`: call `eval()` before evaluating and before saving the model, also at the end, and
    `train()` before training goes on. transformers' Trainer does so around evaluations, and for optimizers chosen by
    hfoptim's names before it saves, too. A new optimizer is in training mode. The switch is exact: p is kept aside,
    also in a state_dict. Batch norm's statistics are those at p; a few forward passes at x refresh them.

    Wants a constant lr, about AdamW's or up to ten times as large, and `warmup_steps` in place of a schedule's warm-up.
    Where lr changes all the same, the average weighs each step by the largest lr so far. Steps are counted per group:
    in each, `k` steps taken, `weight_sum`, `lr_max`, `scheduled_lr` (a) and `train_mode`.

    State: `z`, `exp_avg_sq` (v), in evaluation mode `y` (p). Follows schedulefree, whose state_dict loads, and where an
    optimizer begins in evaluation mode.

    Args:
        params: parameters, named parameters, or dicts that define parameter groups.
        lr (default 0.0025): learning rate.
        betas (0.9, 0.999): share of x in p, in (0, 1), and decay rate of v, in [0, 1).
        eps (1e-8): added to the bias-corrected root of v, >= 0.
        weight_decay (0.0): weight decay, per step and unit of lr, taken at p.
        warmup_steps (0): steps over which lr grows linearly.
        r (0.0): power of t in the weights of the average, >= 0.
        weight_lr_power (2.0): power of lr in them, >= 0.
        **options: `maximize`, `foreach`, `fused`, `caution`, `kahan_sum`, see `RuleOptimizer`.

    Raises:
        ValueError: a hyper-parameter out of range, or no parameters.
        TypeError: a hyper-parameter of the wrong type, or an unknown option.
        RuntimeError: from `step()` in evaluation mode.

    Source:
        Defazio et al., The Road Less Scheduled, arXiv 2405.15682; facebookresearch/schedule_free (schedulefree 1.4).
    """

    per_step_options = frozenset({"lr", "k", "weight_sum", "lr_max", "scheduled_lr"})
    rule = schedule_free
    decay = Decay.INSIDE
    numbers = ("eps", "weight_decay", "r", "weight_lr_power")
    occasional_state = RuleOptimizer.occasional_state | {"y"}
    wants_constant_lr = True

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.0025,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        **options: Unpack[EngineOptions],
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "warmup_steps": warmup_steps,
            "r": r,
            "weight_lr_power": weight_lr_power,
            "k": 0,
            "weight_sum": 0.0,
            "lr_max": -1.0,
            "scheduled_lr": 0.0,
            "train_mode": True,
        }
        EngineOptimizer.__init__(self, params, defaults, **options)

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        if group["betas"][0] == 0.0:
            raise ValueError(
                f"betas={group['betas']!r}: without a share of the average in the training point the average is lost; "
                f"expected betas[0] above 0"
            )
        group["warmup_steps"] = integer("warmup_steps", group["warmup_steps"], 0)
        flag("train_mode", group["train_mode"])

    def adapt_loaded(self, param: Tensor, state: dict[str, Any], group: dict[str, Any]) -> dict[str, Any]:
        # schedulefree counts steps by group only.
        return {"step": group["k"], **state}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one optimization step; arguments as for `RuleOptimizer.step`.

        Raises:
            RuntimeError: the optimizer is in evaluation mode.
        """
        self._refuse_evaluation_mode()
        return super().step(closure)

    def _refuse_evaluation_mode(self) -> None:
        if not all(group["train_mode"] for group in self.param_groups):
            raise RuntimeError(
                "AdamWScheduleFree is in evaluation mode, in which the parameters are not where training goes on; call "
                "optimizer.train() before the forward pass"
            )

    def on_step_start(self, totals: dict[str, Any]) -> None:
        self._refuse_evaluation_mode()  # gradient release steps before `step`
        for group in self.param_groups:
            group["k"] += 1
            warmup = group["warmup_steps"]
            group["scheduled_lr"] = float(group["lr"]) * (min(1.0, group["k"] / warmup) if warmup else 1.0)
            group["lr_max"] = max(group["lr_max"], group["scheduled_lr"])
            group["weight_sum"] += _weight(group)

    @leave_undisturbed
    @torch.no_grad()
    def eval(self) -> None:
        """Put the averaged weights, x, into the parameters; nothing if they are there."""
        for param, state, group in self._switching(to_train=False):
            state["y"] = param.detach().clone()
            y, z = _exact(param, state), local(state["z"])
            local(param.detach()).copy_(y + (z - y) * (1.0 - 1.0 / group["betas"][0]))

    @leave_undisturbed
    @torch.no_grad()
    def train(self) -> None:
        """Put the training weights, y, back into the parameters; nothing if they are there."""
        for param, state, group in self._switching(to_train=True):
            if "y" in state:
                param.copy_(state.pop("y"))
            else:  # a checkpoint of schedulefree, which keeps x only
                x, z = _exact(param, state), local(state["z"])
                local(param.detach()).copy_(x + (z - x) * (1.0 - group["betas"][0]))

    def _switching(self, to_train: bool) -> list[tuple[Tensor, dict[str, Any], dict[str, Any]]]:
        """(parameter, state, group) of all that change when the mode does, and the mode changed."""
        found = []
        for group in self.param_groups:
            if group["train_mode"] is not to_train:
                group["train_mode"] = to_train
                found += [(p, self.state[p], group) for p in group["params"] if self.state.get(p)]
        return found


def _exact(param: Tensor, state: dict[str, Any]) -> Tensor:
    """The parameter with what rounding took from it, in the dtype of the state."""
    weight = local(param.detach())
    if "remainder" in state:
        return join_float32(weight, local(state["remainder"]))
    weight = weight.to(state["z"].dtype)
    return weight + local(state["kahan_comp"]) if "kahan_comp" in state else weight
