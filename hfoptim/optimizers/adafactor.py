"""Adafactor: second moments kept as a row and a column per matrix, and the schedule that shows its own step sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY
from functools import cache, partial
from typing import Any

from torch import Size, Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from hfoptim.engine import TENSOR, Group, Name, RuleOptimizer, hyper, unwrap
from hfoptim.engine.checks import betas as check_betas
from hfoptim.engine.checks import choice, entries, flag, number
from hfoptim.engine.rule import Rule, Scalars, ema, nonnegative, rms, scalar, zeros, zeros_without

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


def _per_step(t: int, group: Group) -> Scalars:
    beta2 = 1.0 - t ** group["decay_rate"]
    scalars = {
        "lr": relative_step(t, group),
        "alpha2": 1.0 - beta2,
        "eps": group["eps"][0],
        "inverse_clip": 1.0 / group["clip_threshold"],
    }
    if _scales(group):
        scalars["eps_scale"] = group["eps"][1]
    if group["beta1"] is not None:
        scalars["alpha1"] = 1.0 - group["beta1"]
    return scalars


def _vector_factors(grad: Any, moments: list[Any], h: Any) -> tuple[list[Any], Any, list[Any]]:
    """The factors whose roots scale the gradient to the update, the update's mean square, the new moment."""
    squared = grad * grad
    exp_avg_sq = ema(moments[0], squared + h.eps, h.alpha2)
    factor = exp_avg_sq.reciprocal()
    return [factor], (squared * factor).mean(), [exp_avg_sq]


def _matrix_factors(column: int, row: int, grad: Any, moments: list[Any], h: Any) -> tuple[list[Any], Any, list[Any]]:
    """The same from row and column means.

    The gradient is read four times: for either mean, for the update's mean square, which follows from the squares that
    the means took, and for the update itself. eps is added to the means: the mean of a sum is the same number.
    """
    squared = grad * grad
    rows = ema(moments[0], squared.mean(row) + h.eps, h.alpha2)
    columns = ema(moments[1], squared.mean(column) + h.eps, h.alpha2)
    # Among the dimensions that the row means kept, the column has its place: it comes before the row.
    row_factor = rows.mean(column + 1 if column < 0 else column, keepdim=True) / rows
    column_factor = columns.reciprocal().unsqueeze(column)
    mean_square = ((squared * column_factor).mean(row) * row_factor).mean()
    return [row_factor.unsqueeze(row), column_factor], mean_square, [rows, columns]


@cache
def adafactor(factored: tuple[int, int] | None, scale_parameter: bool, first_moment: bool) -> Rule:
    """The rule for one kind of parameter and options.

    Args:
        factored: the dimensions (column, row) whose means are kept, negative or not; None keeps the whole moment.
        scale_parameter: multiply the step by the parameter's root mean square.
        first_moment: keep a moving average of the finished updates.
    """
    second = {"exp_avg_sq": nonnegative}
    factors_of = _vector_factors
    if factored is not None:
        second = {"exp_avg_sq_row": zeros_without(factored[1]), "exp_avg_sq_col": zeros_without(factored[0])}
        factors_of = partial(_matrix_factors, *factored)

    def fn(grad: Any, param: Any, *args: Any) -> tuple[Any, ...]:
        *state, h = args
        (factor, *more), mean_square, moments = factors_of(grad, state[: len(second)], h)
        size, rest = h.lr, []
        if scale_parameter:
            size_of_param = rms(param)
            size = h.lr * size_of_param.clamp(min=h.eps_scale)
            rest = [size_of_param]
        # The step size and the clipping go into the smaller factor.
        update = grad * (factor.sqrt() * (size / (mean_square.sqrt() * h.inverse_clip).clamp(min=1.0)))
        for factor in more:
            update = update * factor.sqrt()
        if first_moment:
            update = ema(state[len(second)], update, h.alpha1)
            rest = [update, *rest]
        return (update, size, *moments, *rest)

    fn.__name__ = "adafactor_vector" if factored is None else "adafactor_matrix"
    first = {"exp_avg": zeros} if first_moment else {}
    parameter = {"RMS": scalar} if scale_parameter else {}
    return Rule(fn, TENSOR, {**second, **first, **parameter}, _per_step, returns_step_size=True)


def _pair(name: str, value: Any) -> tuple[float, ...]:
    found = entries(value)
    if found is None or len(found) != 2:
        raise ValueError(f"{name}={value!r}, expected two numbers: for the squared gradient and for the scale")
    return tuple(number(f"{name}[{i}]", entry) for i, entry in enumerate(found))


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
    names = (
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
        check=_pair,
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
    betas: Any = hyper(None, "timm's form of beta1, its first entry", check=_betas, in_group=False)

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
        """An lr is meant to be used: it switches `relative_step` off unless that is asked for."""
        return {} if given.get("lr") is None else {"relative_step": False}

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        dims = _factored_dims(param.shape, group["min_dim_size_to_factor"])
        return adafactor(dims, _scales(group), group["beta1"] is not None)

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


def _factored_dims(shape: Size, least: int | None) -> tuple[int, int] | None:
    """The dimensions (column, row) of a factored second moment, from the end unless timm's rule takes the first two."""
    if len(shape) < 2:
        return None
    if least is None:
        return -2, -1
    if len(shape) > 2 and min(shape[0], shape[1]) > least:
        return 0, 1
    return (-2, -1) if min(shape[-2], shape[-1]) > least else None


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
