"""MARS: steps from gradients corrected by their change, for three kinds of step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import (
    ELEMENT,
    MATRIX,
    TENSOR,
    Group,
    Name,
    Rule,
    RuleOptimizer,
    Scalars,
    State,
    clone,
    ema,
    hyper,
    zeros,
)
from hfoptim.engine.ambient import undisturbed
from hfoptim.optimizers.shared.matrices import as_matrix
from hfoptim.optimizers.shared.moments import adam_state, corrected, moment_rates, moments_step
from hfoptim.optimizers.shared.newton_schulz import NewtonSchulz, iterations


def _correction(t: int, group: Group) -> float:
    """The weight of the gradient's change: at the first step there is none."""
    beta1 = group["betas"][0]
    return group["gamma"] * beta1 / (1.0 - beta1) if t > 1 else 0.0


def _adamw_scalars(t: int, group: Group) -> Scalars:
    return {**corrected(t, group), "correction": _correction(t, group)}


def _plain_scalars(t: int, group: Group) -> Scalars:
    return {**moment_rates(t, group), "correction": _correction(t, group), "eps": group["eps"]}


def _vector_scalars(t: int, group: Group) -> Scalars:
    """Of AdamW, for what MARS leaves to it: another learning rate, and perhaps other betas."""
    betas, lr = group["betas_1d"] or group["betas"], float(group["lr"]) * group["lr_1d_factor"]
    return {**corrected(t, {**group, "betas": betas, "lr": lr}), "decay": lr * group["weight_decay"]}


@cache
def mars(mars_type: str, amsgrad: bool) -> Rule:
    """The rule with one kind of step: "adamw", with AMSGrad or without, "lion" or "shampoo"."""
    newton_schulz = NewtonSchulz(iterations("original", 5), None, 1.0)

    def fn(grad: Any, param: Any, exp_avg: Any, last_grad: Any, *args: Any) -> tuple[Any, ...]:
        h = args[-1]
        reduced = grad + (grad - last_grad) * h.correction
        # Matrices come in batches.
        norm = reduced.norm(dim=(-2, -1), keepdim=True) if mars_type == "shampoo" else reduced.norm()
        reduced = reduced / norm.clamp(min=1.0)
        if mars_type == "adamw":
            update, exp_avg, *second = moments_step(reduced, param, exp_avg, *args)
            return update, exp_avg, grad, *second
        exp_avg = ema(exp_avg, reduced, h.alpha1)
        if mars_type == "lion":
            return exp_avg.sign(), exp_avg, grad
        rows, columns = exp_avg.shape[-2:]
        factor = max(1.0, rows / columns) ** 0.5
        return newton_schulz(exp_avg / h.alpha1, h.eps) * factor, exp_avg, grad

    fn.__name__ = f"mars_{mars_type}"
    first, *second = adam_state(amsgrad).items() if mars_type == "adamw" else [("exp_avg", zeros)]
    return Rule(
        fn,
        MATRIX if mars_type == "shampoo" else TENSOR,
        dict([first, ("last_grad", zeros), *second]),
        _adamw_scalars if second else _plain_scalars,
        shape=as_matrix if mars_type == "shampoo" else None,
    )


# Of what MARS leaves to AdamW, by whether that is AMSGrad.
_VECTORS = {amsgrad: Rule(moments_step, ELEMENT, adam_state(amsgrad), _vector_scalars) for amsgrad in (False, True)}


@cache
def remembering(inner: Rule) -> Rule:
    """The rule with a copy of the parameter from before the step; the optimizer writes the gradient there."""

    def fn(grad: Any, param: Any, *args: Any) -> tuple[Any, ...]:
        *state, _, h = args
        update, *new = inner.fn(grad, param, *state, h)
        return update, *new, param

    fn.__name__ = inner.name
    exact = {"last_grad": State(zeros.init)} if "last_grad" in inner.state else {}
    return replace(inner, fn=fn, state={**inner.state, **exact, "previous_param": clone})


class Mars(RuleOptimizer):
    """Variance reduction: gradients corrected by how far they have changed, then a step of AdamW, Lion or Shampoo.

    With g the gradient, g' the one before (at the first step g), p the parameter, t the step:

        c = g + gamma beta1 / (1 - beta1) (g - g');  c = c / max(1, |c|)
        m = beta1 m + (1 - beta1) c
        v = beta2 v + (1 - beta2) c^2                                                   ("adamw")
        u = m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)                         ("adamw")
        u = sign(m)                                                                     ("lion")
        u = sqrt(max(1, rows / columns)) NewtonSchulz(m / (1 - beta1))                  ("shampoo")
        p = p - lr (u + weight_decay p)

    Parameters with less than two dimensions step by AdamW with g itself, `betas_1d`, and lr_1d_factor lr in place of
    lr; with `optimize_1d` they step as the others ("shampoo": as "adamw"). |c| is the norm of one tensor. Kernels of
    convolutions are matrices to "shampoo", with all behind the first dimension as columns.

    State: `exp_avg` (m), `last_grad` (g'), `exp_avg_sq` (v, with "adamw"); without correction `exp_avg`, `exp_avg_sq`.
    With `amsgrad` also the largest v so far, `max_exp_avg_sq`.

    By default g' is the gradient of the batch before. With `is_approx=False`, the paper's exact form, it is that of
    this batch at the parameters of the step before: `step(closure)` calls the closure there first, then where the
    parameters are, so that a step costs two backward passes. The closure clears the gradients, and returns the loss.
    State then has `previous_param`, too. The Trainer supplies the closure. Wrappers that change gradients or take them
    elsewhere, and combinations of optimizers, refuse that form.

    Follows timm, which has the paper's first step. The author's code and pytorch_optimizer 4.1 have g' = 0 there; the
    author applies it to exactly two dimensions, and has other betas and a weight decay of its own for vectors.
    "shampoo" is the author's; timm has none. Where `caution` meets "lion", the mask keeps its mean here, as in the
    paper; timm takes the sign of what it masked.

    Raises:
        TypeError: a complex parameter.
        ValueError: is_approx=False with an option that changes gradients.
        RuntimeError: is_approx=False, and `step` was given no closure.

    Source:
        Yuan et al., arXiv 2411.10438; AGI-Arena/MARS; timm 1.0, `timm.optim.Mars`.
    """

    names = (
        Name("mars"),
        Name("cmars", "MARS with caution", options={"caution": True}),
    )
    lr: float = hyper(3e-3, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.99), "decay rates of m and v")
    eps: float = hyper(1e-8, "added to the root of v; least norm of what Newton-Schulz begins with")
    weight_decay: float = hyper(0.0, "decoupled weight decay, per step and unit of lr")
    gamma: float = hyper(0.025, "strength of the correction")
    mars_type: str = hyper("adamw", "kind of step", choices=("adamw", "lion", "shampoo"))
    optimize_1d: bool = hyper(False, "vectors are corrected, too")
    lr_1d_factor: float = hyper(1.0, "factor of lr for vectors")
    betas_1d: tuple[float, float] | None = hyper(None, "AdamW's decay rates for vectors; None is betas")
    _: KW_ONLY
    amsgrad: bool = hyper(False, "divide by the largest v so far, wherever there is a v", in_peers=False)
    is_approx: bool = hyper(
        True, "g' is the gradient of the batch before; False takes it of this batch, by `step(closure)`", in_peers=False
    )

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        for name in ("gradient_centralization", "adaptive_clip", "gradient_release"):
            if group[name] and not group["is_approx"]:
                raise ValueError(f"is_approx=False with {name}={group[name]!r}; expected one of them")

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        kind, amsgrad = group["mars_type"], group["amsgrad"]
        if param.ndim >= 2:
            found = mars(kind, amsgrad)
        else:
            found = mars("adamw" if kind == "shampoo" else kind, amsgrad) if group["optimize_1d"] else _VECTORS[amsgrad]
        return found if group["is_approx"] else remembering(found)

    @property
    def calls_closure_twice(self) -> bool:
        return any(not group["is_approx"] for group in self.param_groups)

    @property
    def two_points(self) -> str:
        return f"{type(self).__name__} with is_approx=False"

    @property
    def second_is_due(self) -> bool:
        """Whether the step to come calls its closure at the parameters of the step before; the first step does not."""
        return bool(self._known())

    def _known(self) -> dict[Tensor, tuple[dict[str, Any], bool]]:
        """The state, and whether the step maximizes, of the parameters whose weights before the last step are kept."""
        return {
            param: (self.state[param], group["maximize"])
            for group in self.param_groups
            if not group["is_approx"]
            for param in group["params"]
            if "previous_param" in self.state.get(param, {})
        }

    def before_closure(self, closure: Callable[[], Any] | None) -> Callable[[], Any] | None:
        """Keep the gradients at the parameters of the step before, in `last_grad`; before the first step nothing."""
        if not self.calls_closure_twice or self._is_only_for_state(self._entries()):
            return closure
        if closure is None:
            raise RuntimeError(
                "is_approx=False takes the gradient of each batch also at the parameters of the step before: call "
                "step(closure) with a closure that clears the gradients, calls backward and returns the loss"
            )
        known = self._known()
        if not known:
            return closure
        present = [param.detach().clone() for param in known]
        try:
            with undisturbed():
                for param, (state, _) in known.items():
                    param.copy_(state["previous_param"])
            with torch.enable_grad():
                closure()
            with undisturbed():
                for param, (state, maximize) in known.items():
                    if "last_grad" in state:
                        grad = torch.zeros_like(param) if param.grad is None else param.grad
                        state["last_grad"].copy_(-grad if maximize else grad)
        finally:
            with undisturbed():
                for param, kept in zip(known, present, strict=True):
                    param.copy_(kept)
        return closure
