"""AdaHessian: Adam with the diagonal of the Hessian in place of the gradient's square."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from hfoptim.engine import (
    ELEMENT,
    EngineOptions,
    RuleOptimizer,
    State,
    bias_correction,
    ema,
    nonnegative,
    rule,
    zeros,
)
from hfoptim.engine.checks import flag, integer, number
from hfoptim.engine.distributed.dtensor import is_dtensor
from hfoptim.engine.optimizer import EngineOptimizer
from hfoptim.optimizers.shared.moments import moment_rates

SEED = 2147483647


def _per_step(t: int, group: Mapping[str, Any]) -> dict[str, float]:
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
@rule(
    ELEMENT,
    per_step=_per_step,
    exp_avg=zeros,
    exp_hessian_diag_sq=nonnegative,
    hessian=State(zeros.init),
)
def adahessian(
    grad: Any, param: Any, exp_avg: Any, exp_hessian_diag_sq: Any, hessian: Any, h: Any
) -> tuple[Any, Any, Any, None]:
    """Adam's update with the Hessian's diagonal, and any power between 0 and 1 of its root mean square."""
    exp_avg = ema(exp_avg, grad, h.alpha1)
    exp_hessian_diag_sq = ema(exp_hessian_diag_sq, hessian * hessian, h.alpha2)
    return exp_avg / (exp_hessian_diag_sq**h.power + h.eps), exp_avg, exp_hessian_diag_sq, None


def rademacher(param: Tensor, generator: torch.Generator) -> Tensor:
    """A random tensor like the parameter, each entry 1 or -1."""
    return torch.empty_like(param, requires_grad=False).bernoulli_(generator=generator).mul_(2.0).sub_(1.0)


class Adahessian(RuleOptimizer):
    """Adam with the diagonal of the Hessian in place of the gradient's square, estimated by random probing.

    With g the gradient, H the Hessian of the loss, p the parameter, t the step, k = hessian_power:

        D = mean over n_samples of z * (H z), with random z of 1 and -1
        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) D^2
        p = p - lr weight_decay p - lr m / (1 - beta1^t) / ((v / (1 - beta2^t))^(k/2) + eps)

    Gradients need a graph: `loss.backward(create_graph=True)`, for which timm's training loops read `is_second_order`.
    A step costs about one more backward pass for every sample. `p.grad` is left as it is; remove it after each step
    (`zero_grad()`), as it holds the graph. Not for sharded or complex parameters, nor for gradients that
    DistributedDataParallel has averaged, whose graph is lost; not by name in the Trainer, which makes no graph.

    The random z depend on a fixed seed and the step alone, so that a resumed run repeats them. A parameter that the
    gradients do not depend on has D = 0.

    State: `exp_avg` (m), `exp_hessian_diag_sq` (v), `hessian` (D).

    Args:
        params: parameters, named parameters, or dicts that define parameter groups.
        lr (default 0.1): learning rate.
        betas (0.9, 0.999): decay rates of m and v, each in [0, 1).
        eps (1e-8): added to the power of v, >= 0.
        weight_decay (0.0): decoupled weight decay, per step and unit of lr.
        hessian_power (1.0): power k, in [0, 1]; 0 is momentum alone.
        update_each (1): steps for which one estimate of D is used.
        n_samples (1): random z per estimate.
        avg_conv_kernel (False): replace D of a 4-D parameter by the mean of |D| over its last two dimensions.
        **options: `maximize`, `foreach`, `fused`, `caution`, `kahan_sum`, see `RuleOptimizer`.

    Raises:
        ValueError: a hyper-parameter out of range, or no parameters.
        TypeError: a hyper-parameter of the wrong type, or an unknown option; from `step`, a sharded or complex
            parameter.
        RuntimeError: from `step`: no gradient has a graph, or GradScaler has scaled them.

    Source:
        Yao et al., arXiv 2006.00719; timm 1.0, `timm.optim.Adahessian`, from davda54/ada-hessian. The authors' code
        (amirgholami/adahessian) averages over convolution kernels, as `avg_conv_kernel=True` does; timm's default and
        this one do not. A checkpoint of timm's, which has no D in it, loads where D is due to be estimated anyway.
    """

    rule = adahessian
    # GradScaler then lets the optimizer know that it is there.
    _step_supports_amp_scaling = True
    absent_from_peers = frozenset({"update_each", "n_samples", "avg_conv_kernel"})

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        hessian_power: float = 1.0,
        update_each: int = 1,
        n_samples: int = 1,
        avg_conv_kernel: bool = False,
        **options: Unpack[EngineOptions],
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "hessian_power": hessian_power,
            "update_each": update_each,
            "n_samples": n_samples,
            "avg_conv_kernel": avg_conv_kernel,
        }
        EngineOptimizer.__init__(self, params, defaults, **options)

    @property
    def is_second_order(self) -> bool:
        """Gradients need a graph: `loss.backward(create_graph=True)`."""
        return True

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        group["hessian_power"] = number("hessian_power", group["hessian_power"], 0.0, 1.0, high_open=False)
        group["update_each"] = integer("update_each", group["update_each"], 1)
        group["n_samples"] = integer("n_samples", group["n_samples"], 1)
        flag("avg_conv_kernel", group["avg_conv_kernel"])

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
            state["hessian"] = torch.zeros_like(param, dtype=_exact(param))
        return state

    def _step(self, entries: list[tuple[int, Tensor, Tensor]]) -> None:
        if self.__dict__.pop("found_inf", None) is not None:
            self.__dict__.pop("grad_scale", None)
            raise RuntimeError(
                "GradScaler scales the loss, and divides the gradients, but not the Hessian that Adahessian takes from "
                "their graph; train in bfloat16 or float32"
            )
        for _, param, _ in entries:
            if param.is_complex() or is_dtensor(param):
                kind = "complex" if param.is_complex() else "sharded"
                raise TypeError(f"Adahessian differentiates gradients, and does not take {kind} parameters")
        counts = {param: int(self.state[param].get("step", 0)) for _, param, _ in entries if self.state.get(param)}
        due = [
            (self.param_groups[index], param, grad)
            for index, param, grad in entries
            if counts.get(param, 0) % self.param_groups[index]["update_each"] == 0
        ]
        if due:
            diagonals = self.diagonals(due, max(counts.values(), default=0))
            for (group, param, _), diagonal in zip(due, diagonals, strict=True):
                if group["avg_conv_kernel"] and param.ndim == 4:
                    diagonal.copy_(diagonal.abs().mean((2, 3), keepdim=True))
                self.state[param].setdefault("hessian", diagonal).copy_(diagonal)
        super()._step(entries)

    def diagonals(self, due: list[tuple[dict[str, Any], Tensor, Tensor]], step: int) -> list[Tensor]:
        """The Hessian's diagonal, estimated from products with random vectors (Hutchinson).

        Args:
            due: groups, parameters and gradients with their graph.
            step: the number of steps taken, which decides the random vectors.
        """
        grads = [grad for _, _, grad in due if grad.requires_grad]
        if not grads:
            raise RuntimeError(
                "Adahessian differentiates the gradients, and none of them has a graph; call "
                "loss.backward(create_graph=True)"
            )
        devices = list(dict.fromkeys(param.device for _, param, _ in due))
        # One seed for each device: equal draws on two of them would be correlated.
        generators = {d: torch.Generator(d).manual_seed(SEED + step * len(devices) + i) for i, d in enumerate(devices)}
        diagonals = [torch.zeros_like(param, dtype=_exact(param)) for _, param, _ in due]
        params = [param for _, param, _ in due]
        samples = max(group["n_samples"] for group, _, _ in due)
        for sample in range(samples):
            vectors = [rademacher(param, generators[param.device]) for param in params]
            products = torch.autograd.grad(
                grads,
                params,
                [vector for vector, (_, _, grad) in zip(vectors, due, strict=True) if grad.requires_grad],
                retain_graph=sample < samples - 1,
                allow_unused=True,
            )
            for (group, _, _), diagonal, product, vector in zip(due, diagonals, products, vectors, strict=True):
                if product is not None and sample < group["n_samples"]:
                    diagonal.add_(product * vector, alpha=1.0 / group["n_samples"])
        return diagonals


def _exact(param: Tensor) -> torch.dtype:
    return torch.promote_types(param.dtype, torch.float32)
