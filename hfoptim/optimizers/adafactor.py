"""Adafactor: second moments kept as a row and a column per matrix, and the schedule that shows its own step sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY
from functools import cache
from typing import Any, ClassVar

from torch import Size, Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from hfoptim.engine import TENSOR, Group, Name, RuleOptimizer, hyper, unwrap
from hfoptim.engine.checks import betas as check_betas
from hfoptim.engine.checks import choice, entries, flag, number
from hfoptim.engine.rule import Rule, Scalars, ema, rms, scalar, zeros
from hfoptim.optimizers.shared.factored import Factored, inverse_clip, last_two, pair, scaled

__all__ = ["Adafactor", "AdafactorSchedule", "get_adafactor_schedule"]


def relative_step(t: int, group: Group) -> float:
    """The step size before it is scaled by the parameter: the group's lr, or min(1e-2 or 1e-6 t, 1 / sqrt(t))."""
    if not group["relative_step"]:
        return float(group["lr"])
    return min(1e-6 * t if group["warmup_init"] else 1e-2, 1.0 / math.sqrt(t))


def _scales(group: Group) -> bool:
    """Whether step sizes are multiplied by the parameter's root mean square."""
    scale: bool = group["relative_step"] if group["scale_parameter"] == "relative" else group["scale_parameter"]
    return scale


def moment_scalars(t: int, group: Group) -> Scalars:
    """What the second moment, the clipping and the scale of the parameter go by."""
    eps, eps_scale = group["eps"]
    return {
        "alpha2": t ** group["decay_rate"],
        "eps": eps,
        "inverse_clip": 1.0 / group["clip_threshold"],
        "eps_scale": eps_scale,
    }


def _per_step(t: int, group: Group) -> Scalars:
    scalars = {**moment_scalars(t, group), "lr": relative_step(t, group)}
    if group["beta1"] is not None:
        scalars["alpha1"] = 1.0 - group["beta1"]
    return scalars


@cache
def adafactor(moment: Factored, scale_parameter: bool, first_moment: bool) -> Rule:
    """The rule for one kind of parameter and options.

    Args:
        moment: how the second moment is kept.
        scale_parameter: multiply the step by the parameter's root mean square.
        first_moment: keep a moving average of the finished updates.
    """
    second = moment.state("exp_avg_sq")

    # The gradient of a matrix is read four times: for either mean, for the update's mean square, which follows from the
    # squares that the means took, and for the update itself.
    def fn(grad: Any, param: Any, *args: Any) -> tuple[Any, ...]:
        *state, h = args
        squared = grad * grad
        factors, moments = moment.averaged(squared, state[: len(second)], h.alpha2, h.eps)
        divisor = inverse_clip(moment.mean_square(squared, factors), h.inverse_clip)
        size, rest = h.lr, []
        if scale_parameter:
            size_of_param = rms(param)
            size = h.lr * size_of_param.clamp(min=h.eps_scale)
            rest = [size_of_param]
        update = scaled(grad, factors, size / divisor)
        if first_moment:
            update = ema(state[len(second)], update, h.alpha1)
            rest = [update, *rest]
        return (update, size, *moments, *rest)

    fn.__name__ = "adafactor_vector" if moment.dims is None else "adafactor_matrix"
    first = {"exp_avg": zeros} if first_moment else {}
    parameter = {"RMS": scalar} if scale_parameter else {}
    return Rule(fn, TENSOR, {**second, **first, **parameter}, _per_step, returns_step_size=True)


def _scale(name: str, value: Any) -> bool | str:
    if isinstance(value, str):
        return choice(name, value, ("relative",))
    flag(name, value)
    return bool(value)


def _betas(name: str, value: Any) -> tuple[float, ...] | None:
    found = entries(value)
    if value is not None and not found:
        raise TypeError(f"{name}={value!r}, expected a tuple of numbers in [0, 1), of which the first is used")
    return check_betas(name, found, len(found)) if found else None


class Adafactor(RuleOptimizer):
    """Adam with a second moment factored into rows and columns, step sizes relative to the parameter.

    With G the gradient, P the parameter, t the step, R and C the kept means over columns and rows:

        b2 = 1 - t^decay_rate
        R = b2 R + (1 - b2) mean_row(G^2 + eps1);  C = b2 C + (1 - b2) mean_col(G^2 + eps1)
        U = G / sqrt(R C / mean(R));                U = U / max(1, rms(U) / clip_threshold)
        a = lr * max(eps2, rms(P)),  lr = min(1e-2, 1 / sqrt(t)) if relative_step
        M = beta1 M + (1 - beta1) a U               (if beta1 is given, else M = a U)
        P = P - M - a weight_decay P

    Vectors keep the whole second moment. State: `exp_avg_sq_row` and `exp_avg_sq_col`, or `exp_avg_sq`; `exp_avg` with
    beta1; with scale_parameter `RMS`, the parameter's root mean square before its last step. A state_dict of
    transformers.Adafactor loads.

    Follows transformers: the last two dimensions of every parameter with two or more are factored. With
    `min_dim_size_to_factor` it follows timm: the first two of a convolution's, and only sizes above that number.
    In timm `scale_parameter` applies to the relative step alone, here as in transformers to every lr, unless it is
    "relative". The name `cadafactor` has timm's options.

    Raises:
        ValueError: lr together with relative_step, neither of them, warmup_init without relative_step, beta1 and betas.
        TypeError: a complex parameter.

    Source:
        Shazeer and Stern, arXiv 1804.04235; transformers and timm, `Adafactor`.
    """

    peer_state = {"RMS": None}
    names: ClassVar[tuple[Name, ...]] = (
        Name("adafactor"),
        Name(
            "cadafactor",
            "Adafactor with momentum and caution, with timm's defaults",
            options={"caution": True, "beta1": 0.9, "scale_parameter": "relative", "min_dim_size_to_factor": 16},
        ),
    )
    lr: float | None = hyper(None, "learning rate; None with `relative_step`")
    eps: Any = hyper(
        (1e-30, 1e-3),
        "eps1, added to the squared gradient, and eps2, least scale of a parameter. A number is eps1 alone",
        check=pair,
    )
    clip_threshold: float = hyper(1.0, "largest root mean square of U", above=0.0, excluded="would stop every step")
    decay_rate: float = hyper(-0.8, "exponent of the moment's decay", low=-math.inf, most=0.0)
    beta1: float | None = hyper(None, "decay rate of the moving average of updates", below=1.0)
    weight_decay: float = hyper(0.0, "weight decay, per step and unit of step size")
    scale_parameter: Any = hyper(
        True,
        'multiply the step size by the parameter\'s root mean square; "relative": only where `relative_step` is on',
        check=_scale,
    )
    relative_step: bool = hyper(True, "the step size follows t; needs lr=None")
    warmup_init: bool = hyper(False, "relative steps start at 1e-6 t")
    _: KW_ONLY
    eps_scale: float | None = hyper(
        None, "timm's name for eps2; None leaves it at that of `eps`, or 1e-3", in_group=False
    )
    min_dim_size_to_factor: float | None = hyper(
        None, "factor only dimensions larger than this; None factors all", in_peers=False
    )
    betas: tuple[float] | None = hyper(None, "timm's form of beta1, its first entry", check=_betas, in_group=False)

    def from_arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        eps, beta1 = entries(given["eps"]), given["beta1"]
        if eps is None:
            eps = (number("eps", given["eps"]), 1e-3)
        if given["eps_scale"] is not None:
            eps = (*eps[:1], given["eps_scale"])
        if given["betas"] is not None:
            if beta1 is not None:
                raise ValueError(
                    f"beta1={beta1!r} and betas={given['betas']!r} name the same coefficient; give one of them"
                )
            beta1 = given["betas"][0]
        return {**given, "eps": eps, "beta1": beta1}

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        if group["warmup_init"] and not group["relative_step"]:
            raise ValueError("warmup_init=True needs relative_step=True")

    def check_added(self, group: dict[str, Any]) -> None:
        # Later a schedule may write an lr beside relative_step, as `AdafactorSchedule` does to show it.
        if group["lr"] is not None and group["relative_step"]:
            raise ValueError(
                f"lr={group['lr']!r} and relative_step=True exclude each other; give relative_step=False to use lr, or "
                f"lr=None to let the step size follow the step count"
            )
        if group["lr"] is None and not group["relative_step"]:
            raise ValueError("relative_step=False needs a learning rate; give lr, for example 1e-3")

    @classmethod
    def defaults_by_name(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """An lr is meant to be used: it switches `relative_step` off unless that is asked for. So are betas."""
        steps = {} if given.get("lr") is None else {"relative_step": False}
        return steps if given.get("betas") is None else {**steps, "beta1": None}

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        moment = _factored(param.shape, group["min_dim_size_to_factor"])
        return adafactor(moment, _scales(group), group["beta1"] is not None)

    def applied_lr(self, index: int) -> float | None:
        """The step size that group `index` took last: of its first parameter that has taken a step, or None.

        Parameters of a group differ in it with `scale_parameter`. Reads a number from the device.
        """
        group = self.param_groups[index]
        for param in group["params"]:
            state = self.state.get(param)
            if state:
                scale = max(group["eps"][1], float(state["RMS"])) if _scales(group) else 1.0
                return relative_step(max(1, int(state["step"])), group) * scale
        return None


def _factored(shape: Size, least: int | None) -> Factored:
    """How a second moment is kept: by the last two dimensions, unless timm's rule takes the first two."""
    if least is None or len(shape) < 2:
        return last_two(shape)
    if len(shape) > 2 and min(shape[0], shape[1]) > least:
        return Factored((0, 1))
    return Factored((-2, -1) if min(shape[-2], shape[-1]) > least else None)


class AdafactorSchedule(LambdaLR):
    """A learning-rate scheduler that changes nothing and shows the step sizes Adafactor takes by itself.

    For training loops and loggers that want a scheduler. Each group shows the step size of its first parameter that
    has taken a step, so a frozen or unused first parameter does not shift the groups against each other.

    Args:
        optimizer: an `Adafactor` with `relative_step=True`.
        initial_lr (default 0.0): what is shown before the first step.

    Raises:
        TypeError: another optimizer.
        ValueError: a group has relative_step=False.

    Source:
        transformers, `optimization.AdafactorSchedule`.
    """

    def __init__(self, optimizer: Optimizer, initial_lr: float = 0.0) -> None:
        if unwrap(optimizer, Adafactor) is None:
            raise TypeError(f"AdafactorSchedule reads the step sizes of Adafactor, got {type(optimizer).__name__}")
        if not all(group["relative_step"] for group in optimizer.param_groups):
            raise ValueError(
                "AdafactorSchedule shows step sizes that Adafactor chooses, which it does with relative_step=True; "
                "with an lr of yours use an ordinary schedule"
            )
        self.initial_lr = number("initial_lr", initial_lr)
        for group in optimizer.param_groups:
            group["initial_lr"] = self.initial_lr
        super().__init__(optimizer, _one)
        for group in optimizer.param_groups:
            del group["initial_lr"]

    def get_last_lr(self) -> list[Any]:
        """The same as `get_lr`: loggers may ask between the optimizer's step and the schedule's."""
        return self.get_lr()

    def get_lr(self) -> list[Any]:
        """The step size each group took last."""
        optimizer = unwrap(self.optimizer, Adafactor)
        applied = [optimizer.applied_lr(i) for i in range(len(optimizer.param_groups))]
        return [self.initial_lr if lr is None else lr for lr in applied]


def _one(step: int) -> float:
    return 1.0


def get_adafactor_schedule(optimizer: Optimizer, initial_lr: float = 0.0) -> AdafactorSchedule:
    """The schedule that shows Adafactor's own step sizes; arguments as for `AdafactorSchedule`."""
    return AdafactorSchedule(optimizer, initial_lr)
