"""AdaHessian: Adam with the diagonal of the Hessian in place of the gradient's square."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import Curvature, Due, Group, Name, RuleOptimizer, Scalars, hyper, storage
from hfoptim.engine.rule import ELEMENT, State, bias_correction, ema, nonnegative, rule, zeros
from hfoptim.optimizers.shared import hutchinson
from hfoptim.optimizers.shared.moments import moment_rates


def _per_step(t: int, group: Group) -> Scalars:
    """Both bias corrections folded into eps and lr, as for Adam, here under the power k / 2 in place of the root."""
    beta1, beta2 = group["betas"]
    power = 0.5 * group["hessian_power"]
    scale = bias_correction(beta2, t) ** power
    return {
        **moment_rates(t, group),
        "power": power,
        "eps": group["eps"] * scale,
        "lr": float(group["lr"]) * scale / bias_correction(beta1, t),
    }


# The Hessian's estimate is written between the steps, so it is kept as it is.
@rule(ELEMENT, per_step=_per_step, exp_avg=zeros, exp_hessian_diag_sq=nonnegative, hessian=State(zeros.init))
def adahessian(
    grad: Any, param: Any, exp_avg: Any, exp_hessian_diag_sq: Any, hessian: Any, h: Any
) -> tuple[Any, Any, Any, None]:
    """Adam's update with the Hessian's diagonal, and any power between 0 and 1 of its root mean square."""
    exp_avg = ema(exp_avg, grad, h.alpha1)
    exp_hessian_diag_sq = ema(exp_hessian_diag_sq, hessian * hessian, h.alpha2)
    return exp_avg / (exp_hessian_diag_sq**h.power + h.eps), exp_avg, exp_hessian_diag_sq, None


def averaged(due: Sequence[Due], diagonals: list[Tensor]) -> list[Tensor]:
    """The diagonals, those of convolution kernels averaged where that was asked for."""
    for (group, param, _), diagonal in zip(due, diagonals, strict=True):
        if group["avg_conv_kernel"] and param.ndim == 4:
            diagonal.copy_(diagonal.abs().mean((2, 3), keepdim=True))
    return diagonals


class Adahessian(RuleOptimizer):
    """Adam with the diagonal of the Hessian in place of the gradient's square; gradients need a graph.

    With g the gradient, H the Hessian of the loss, p the parameter, t the step, k = hessian_power:

        D = mean over n_samples of z * (H z), with random z of 1 and -1
        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) D^2
        p = p - lr weight_decay p - lr m / (1 - beta1^t) / ((v / (1 - beta2^t))^(k/2) + eps)

    Gradients need a graph: `loss.backward(create_graph=True)`, for which timm's training loops read `is_second_order`.
    A step costs about one more backward pass for every sample. `p.grad` is left as it is; remove it after each step
    (`zero_grad()`), as it holds the graph. With `add_curvature()` after each backward pass, D is added up over
    micro-batches and their graphs are freed one by one, which is what the Trainer does. Sharded parameters are taken
    under tensor parallelism, whose gradients have a graph; FSDP2 gives them none, and DistributedDataParallel loses it
    (in a loop of one's own: backward and `add_curvature()` under `no_sync()`, then average the gradients). Not for
    complex parameters.

    The random z depend on a fixed seed and the step alone, so that a resumed run repeats them. A parameter that the
    gradients do not depend on has D = 0.

    State: `exp_avg` (m), `exp_hessian_diag_sq` (v), `hessian` (D).

    Raises:
        TypeError: from `step`, a complex parameter, or a sharded one whose gradient has no graph.
        RuntimeError: from `step`: no gradient has a graph, or GradScaler has scaled them.

    Source:
        Yao et al., arXiv 2006.00719; timm 1.0, `timm.optim.Adahessian`, from davda54/ada-hessian. The authors' code
        (amirgholami/adahessian) averages over convolution kernels, as `avg_conv_kernel=True` does; timm's default and
        this one do not. A checkpoint of timm's, which has no D in it, loads where D is due to be estimated anyway.
    """

    rule = adahessian
    names = (Name("adahessian"),)
    curvature = Curvature("hessian", "update_each", hutchinson.diagonals, averaged)
    lr: float = hyper(0.1, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.999), "decay rates of m and v")
    eps: float = hyper(1e-8, "added to the power of v")
    weight_decay: float = hyper(0.0, "decoupled weight decay, per step and unit of lr")
    hessian_power: float = hyper(1.0, "power k; 0 is momentum alone", most=1.0)
    update_each: int = hyper(1, "steps for which one estimate of D is used", low=1, in_peers=False)
    n_samples: int = hyper(1, "random z per estimate", low=1, in_peers=False)
    avg_conv_kernel: bool = hyper(
        False, "replace D of a 4-D parameter by the mean of |D| over its last two dimensions", in_peers=False
    )

    def adapt_loaded(self, param: Tensor, state: dict[str, Any], group: dict[str, Any]) -> dict[str, Any]:
        if "hessian step" not in state:
            return state
        # timm counts twice, begins before the first step, and keeps the estimate outside of the state.
        state = {name: value for name, value in state.items() if name != "hessian step"}
        if "step" in state and "hessian" not in state:
            if int(state["step"]) % group["update_each"]:
                raise ValueError(
                    f"the state_dict has no Hessian, and with update_each={group['update_each']} none is estimated at "
                    f"step {int(state['step']) + 1}; load one of a step that is a multiple of update_each"
                )
            state["hessian"] = torch.zeros_like(param, dtype=storage.exact_dtype(param.dtype))
        return state
