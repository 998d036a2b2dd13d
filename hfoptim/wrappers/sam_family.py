"""What others have made of sharpness-aware minimization: GSAM, WSAM, LookSAM, FriendlySAM."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from hfoptim.engine.checks import flag, integer, number
from hfoptim.engine.distributed.dtensor import local
from hfoptim.wrappers.sam import SAM, TINY, made, square
from hfoptim.wrappers.two_points import FIRST, OLD
from hfoptim.wrappers.wrapper import Wrapper


class GSAM(SAM):
    """SAM that also lowers the gap between the loss at the worst point and that at the weights.

    With g the gradient at the weights, g' that at SAM's worst point, both over all parameters together:

        g_perp = g - <g, g'> / |g'|^2 g'
        p = step of the base optimizer from p with g' - gsam_alpha g_perp

    Everything else is as in `SAM`. `rho` may follow a curve, as in the author's code, where it is in proportion to the
    learning rate: schedule the group's `rho` (`schedules.schedule_hyperparameter`, or `hyperparameters={"rho": ...}`
    of `OptimizerCallback`). Clipping between the passes changes g; the Trainer clips both.

    Args:
        params, base_optimizer, rho, adaptive, **options: as for `SAM`.
        gsam_alpha (default 0.4): share of the part of g orthogonal to g', 0 to 1.

    Raises:
        TypeError, ValueError, RuntimeError: as for `SAM`.

    Source:
        Zhuang et al., Surrogate Gap Minimization Improves Sharpness-Aware Training, arXiv 2203.08065;
        juntang-zhuang/GSAM, which pytorch_optimizer 4.1 follows.
    """

    by_name = {**SAM.by_name, "gsam_alpha": 0.4}
    keeps = {**SAM.keeps, FIRST: True}
    between = (OLD, FIRST)

    def __init__(
        self,
        params: ParamsT | None,
        base_optimizer: type[Optimizer] | str | Optimizer,
        rho: float = 0.05,
        gsam_alpha: float = 0.4,
        adaptive: bool = False,
        **options: Any,
    ) -> None:
        own = {"rho": rho, "adaptive": adaptive, "gsam_alpha": gsam_alpha}
        Wrapper.__init__(self, made(params, base_optimizer, options), own)

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        group["gsam_alpha"] = number("gsam_alpha", group["gsam_alpha"], high=1.0, high_open=False)

    def before_base_step(self) -> None:
        first, gradients = self.kept[FIRST], self.gradients()
        sums = self.sums(
            product=lambda p, _: _product(p.grad, first.get(p)),
            new=lambda p, _: square(p.grad),
            old=lambda p, _: _square(first.get(p), p),
        )
        new, old = sums["new"].sqrt(), sums["old"].sqrt()
        along = sums["product"] / (new * old + TINY) * old / (new + TINY)
        for group in self.param_groups:
            alpha = float(group["gsam_alpha"])
            for param in group["params"]:
                if param in gradients:
                    grad = local(gradients[param])
                    grad.mul_(1.0 + alpha * along.to(grad.device, grad.dtype))
                    if param in first:
                        grad.sub_(local(first[param]), alpha=alpha)


class WSAM(SAM):
    """SAM that weighs the sharpness, and takes its gradient apart from the loss's.

    With g the gradient at the weights, g' that at SAM's worst point, a = wsam_gamma / (1 - wsam_gamma):

        wsam_decouple:  p = step of the base optimizer from p with g;  p = p - lr a (g' - g)
        otherwise:      p = step of the base optimizer from p with (1 - a) g + a g'

    Without decoupling, wsam_gamma=0.5 is SAM. Everything else is as in `SAM`.

    Args:
        params, base_optimizer, rho, adaptive, **options: as for `SAM`.
        wsam_gamma (default 0.9): weight of the sharpness, >= 0 and below 1.
        wsam_decouple (True): whether momentum and preconditioner of the base optimizer see the gradient of the loss
            alone.

    Raises:
        TypeError, ValueError, RuntimeError: as for `SAM`.

    Source:
        Yue et al., Sharpness-Aware Minimization Revisited: Weighted Sharpness as a Regularization Term, arXiv
        2305.15817; atorch's WeightedSAM, which pytorch_optimizer 4.1 follows (there `max_norm` clips the second
        gradient; here that is up to the loop).
    """

    by_name = {**SAM.by_name, "wsam_gamma": 0.9, "wsam_decouple": True}
    keeps = {**SAM.keeps, FIRST: True}
    between = (OLD, FIRST)

    def __init__(
        self,
        params: ParamsT | None,
        base_optimizer: type[Optimizer] | str | Optimizer,
        rho: float = 0.05,
        wsam_gamma: float = 0.9,
        adaptive: bool = False,
        wsam_decouple: bool = True,
        **options: Any,
    ) -> None:
        own = {"rho": rho, "adaptive": adaptive, "wsam_gamma": wsam_gamma, "wsam_decouple": wsam_decouple}
        Wrapper.__init__(self, made(params, base_optimizer, options), own)

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        group["wsam_gamma"] = number("wsam_gamma", group["wsam_gamma"], high=1.0)
        flag("wsam_decouple", group["wsam_decouple"])

    def before_base_step(self) -> None:
        for group in self.param_groups:
            for param, own in self.gradients(group).items():
                grad, kept = local(own), local(self.kept[FIRST].setdefault(param, torch.zeros_like(own)))
                sharpness = grad - kept
                if group["wsam_decouple"]:  # the sharpness takes the first gradient's place
                    grad.copy_(kept)
                    kept.copy_(sharpness)
                else:
                    grad.copy_(kept).add_(sharpness, alpha=_weight(group))

    def after_base_step(self) -> None:
        for group in self.param_groups:
            rate = float(group["lr"]) * _weight(group) * (-1.0 if group.get("maximize") else 1.0)
            for param in group["params"]:
                if group["wsam_decouple"] and param.grad is not None:
                    local(param).sub_(local(self.kept[FIRST][param]), alpha=rate)


def _weight(group: dict[str, Any]) -> float:
    return float(group["wsam_gamma"] / (1.0 - group["wsam_gamma"]))


class LookSAM(SAM):
    """SAM whose second gradient is made every few steps, and used again in between.

    With g the gradient at the weights, g' that at SAM's worst point, both over all parameters together, t from 0:

        t % looksam_k = 0:  v = g' - <g', g> / |g|^2 g;  step of the base optimizer with g'
        otherwise:          step of the base optimizer with g + looksam_alpha |g| / (|v| + 1e-8) v

    `second_is_due` says whether the step to come takes a second gradient; `step(closure)` and the Trainer make it only
    then. By hand, `second_step()` alone is a step in between. Everything else is as in `SAM`.

    Args:
        params, base_optimizer, adaptive, **options: as for `SAM`.
        rho (default 0.1): radius of the neighbourhood, >= 0.
        looksam_k (10): steps for which one second gradient is used.
        looksam_alpha (0.7): share of v, >= 0.

    State: v of each parameter; in the groups `looksam_step`.

    Raises:
        TypeError, ValueError, RuntimeError: as for `SAM`.

    Source:
        Liu et al., Towards Efficient and Scalable Sharpness-Aware Minimization, arXiv 2203.02714, Algorithm 1.
        pytorch_optimizer 4.1 differs: it takes norms and angles tensor by tensor.
    """

    by_name = {"rho": 0.1, "adaptive": False, "looksam_k": 10, "looksam_alpha": 0.7}
    counters = {"looksam_step": 0}
    keeps = {**SAM.keeps, FIRST: True, "sharpness": True}
    between = (OLD, FIRST)
    expects = "sharpness", lambda group: group.get("looksam_step", 0) > 0

    def __init__(
        self,
        params: ParamsT | None,
        base_optimizer: type[Optimizer] | str | Optimizer,
        rho: float = 0.1,
        looksam_k: int = 10,
        looksam_alpha: float = 0.7,
        adaptive: bool = False,
        **options: Any,
    ) -> None:
        own = {"rho": rho, "adaptive": adaptive, "looksam_k": looksam_k, "looksam_alpha": looksam_alpha}
        Wrapper.__init__(self, made(params, base_optimizer, options), own)

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        group["looksam_k"] = integer("looksam_k", group["looksam_k"], 1)
        group["looksam_alpha"] = number("looksam_alpha", group["looksam_alpha"])
        group["looksam_step"] = integer("looksam_step", group["looksam_step"], 0)

    @property
    def second_is_due(self) -> bool:
        group = self.param_groups[0]
        return int(group["looksam_step"]) % int(group["looksam_k"]) == 0

    def before_base_step(self) -> None:
        first, kept, gradients = self.kept[FIRST], self.kept["sharpness"], self.gradients()
        if self.second_is_due:
            sums = self.sums(
                product=lambda p, _: _product(p.grad, first.get(p)),
                old=lambda p, _: _square(first.get(p), p),
            )
            along = sums["product"] / (sums["old"] + TINY)
            for param, grad in gradients.items():
                kept[param] = grad.clone()
                if param in first:
                    own = local(kept[param])
                    own.sub_(local(first[param]) * along.to(own.device, own.dtype))
            return
        sums = self.sums(
            new=lambda p, _: square(p.grad),
            kept=lambda p, _: _square(kept.get(p), p),
        )
        scale = sums["new"].sqrt() / (sums["kept"].sqrt() + 1e-8)
        for group in self.param_groups:
            for param in group["params"]:
                if param in gradients and param in kept:
                    grad = local(gradients[param])
                    share = float(group["looksam_alpha"]) * scale.to(grad.device, grad.dtype)
                    grad.add_(local(kept[param]) * share)

    def after_base_step(self) -> None:
        for group in self.param_groups:
            group["looksam_step"] += 1


class FriendlySAM(SAM):
    """SAM that climbs along what is new in the batch's gradient, less the average of gradients before.

    With g the gradient at the weights, m an average of them, which begins with the first g:

        first step:   d = g;            m = g
        afterwards:   d = g - friendlysam_sigma m;  m = friendlysam_lambda m + (1 - friendlysam_lambda) g
        p' = p + rho d / |d|            (adaptive as in SAM)

    Everything else is as in `SAM`. Clipping the first gradient changes d; the Trainer clips both.

    Args:
        params, base_optimizer, rho, adaptive, **options: as for `SAM`.
        friendlysam_sigma (default 1.0): share of m that is taken off, >= 0.
        friendlysam_lambda (0.9): decay rate of m, 0 to 1.

    State: m of each parameter, `gradient_average`; in the groups `friendlysam_step`.

    Raises:
        TypeError, ValueError, RuntimeError: as for `SAM`.

    Source:
        Li et al., Friendly Sharpness-Aware Minimization, CVPR 2024, arXiv 2403.12350; nblt/F-SAM.
    """

    by_name = {**SAM.by_name, "friendlysam_sigma": 1.0, "friendlysam_lambda": 0.9}
    counters = {"friendlysam_step": 0}
    keeps = {**SAM.keeps, "gradient_average": True}
    expects = "gradient_average", lambda group: group.get("friendlysam_step", 0) > 0

    def __init__(
        self,
        params: ParamsT | None,
        base_optimizer: type[Optimizer] | str | Optimizer,
        rho: float = 0.05,
        friendlysam_sigma: float = 1.0,
        friendlysam_lambda: float = 0.9,
        adaptive: bool = False,
        **options: Any,
    ) -> None:
        own = {"rho": rho, "adaptive": adaptive}
        own |= {"friendlysam_sigma": friendlysam_sigma, "friendlysam_lambda": friendlysam_lambda}
        Wrapper.__init__(self, made(params, base_optimizer, options), own)

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        group["friendlysam_sigma"] = number("friendlysam_sigma", group["friendlysam_sigma"])
        group["friendlysam_lambda"] = number(
            "friendlysam_lambda", group["friendlysam_lambda"], high=1.0, high_open=False
        )
        group["friendlysam_step"] = integer("friendlysam_step", group["friendlysam_step"], 0)

    def at_weights(self) -> None:
        kept = self.kept["gradient_average"]
        for group in self.param_groups:
            sigma, decay = group["friendlysam_sigma"], group["friendlysam_lambda"]
            for param, own in self.gradients(group).items():
                if param not in kept or not group["friendlysam_step"]:
                    kept[param] = own.clone()
                    continue
                grad, average = local(own), local(kept[param])
                before = average.clone()
                average.mul_(decay).add_(grad, alpha=1.0 - decay)
                grad.sub_(before, alpha=sigma)

    def after_base_step(self) -> None:
        for group in self.param_groups:
            group["friendlysam_step"] += 1


def _square(tensor: Tensor | None, param: Tensor) -> Tensor:
    """`square` of a tensor that a parameter has; 0 where it has none."""
    return torch.zeros_like(square(param.grad)) if tensor is None else square(tensor)


def _product(one: Any, other: Tensor | None) -> Tensor:
    """The inner product of this rank's entries, in single precision at least; 0 where there is no other."""
    own = local(one)
    if other is None:
        return torch.zeros_like(square(one))
    pair = (own, local(other))
    left, right = map(torch.view_as_real, pair) if own.is_complex() else pair
    wide = torch.promote_types(left.dtype, torch.float32)
    return (left.to(wide) * right.to(wide)).sum()
