"""Adam and its weight-decay variants: one rule, three classes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from hfoptim.engine import ELEMENT, Decay, EngineOptions, bias_correction, ema, nonnegative, rule, zeros
from hfoptim.engine.checks import flag
from hfoptim.optimizers.decoupling import FullyDecoupling


def moment_rates(t: int, group: Mapping[str, Any]) -> dict[str, float]:
    """`alpha1`, `alpha2`: the weights of the new gradient in both moving averages."""
    beta1, beta2 = group["betas"]
    return {"alpha1": 1.0 - beta1, "alpha2": 1.0 - beta2}


def corrected(t: int, group: Mapping[str, Any]) -> dict[str, float]:
    """Both moments divided by their bias correction; eps is added to the corrected root, as in the paper's algorithm.

    m / c1 / (sqrt(v / c2) + eps)  =  (sqrt(c2) / c1) * m / (sqrt(v) + eps * sqrt(c2))
    """
    beta1, beta2 = group["betas"]
    root = math.sqrt(bias_correction(beta2, t))
    return {
        **moment_rates(t, group),
        "eps": group["eps"] * root,
        "lr": float(group["lr"]) * root / bias_correction(beta1, t),
    }


def folded(t: int, group: Mapping[str, Any]) -> dict[str, float]:
    """The bias correction folded into the step size; eps is added to the plain root (the paper's section 2, end)."""
    lr = float(group["lr"])
    if group.get("correct_bias", True):
        beta1, beta2 = group["betas"]
        lr *= math.sqrt(bias_correction(beta2, t)) / bias_correction(beta1, t)
    return {**moment_rates(t, group), "eps": group["eps"], "lr": lr}


def moments(grad: Any, exp_avg: Any, exp_avg_sq: Any, h: Any) -> tuple[Any, Any]:
    """Both moving averages with the new gradient in them."""
    return ema(exp_avg, grad, h.alpha1), ema(exp_avg_sq, grad * grad, h.alpha2)


def moments_step(grad: Any, param: Any, exp_avg: Any, exp_avg_sq: Any, h: Any) -> tuple[Any, Any, Any]:
    """Adam's update from exponential moving averages of the gradient and its square (arXiv 1412.6980).

    The bias corrections are in `h.eps` and `h.lr`.
    """
    exp_avg, exp_avg_sq = moments(grad, exp_avg, exp_avg_sq, h)
    return exp_avg / (exp_avg_sq.sqrt() + h.eps), exp_avg, exp_avg_sq


adam = rule(ELEMENT, per_step=corrected, exp_avg=zeros, exp_avg_sq=nonnegative)(moments_step)
adamw = rule(ELEMENT, per_step=folded, exp_avg=zeros, exp_avg_sq=nonnegative)(moments_step)


def torch_flag_is_neutral(name: str, value: Any, group: Mapping[str, Any], decoupled: bool) -> bool:
    """Whether a flag of torch.optim.Adam or AdamW says what happens here anyway."""
    if name == "decoupled_weight_decay":
        return bool(value) is decoupled or group["weight_decay"] == 0
    return name == "amsgrad" and value is False


class AdamW(FullyDecoupling):
    """Adam with decoupled weight decay, with the signature and the numbers of transformers.AdamW.

    With g the gradient, p the parameter, t the step:

        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) g^2
        p = p - lr sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + eps)
        p = p - lr weight_decay p                               (decouple_lr: - lr / max_lr weight_decay p, with it)

    Differs from torch.optim.AdamW in two places: eps is added before the bias correction of v, and the decay sees the
    parameter after the update. `Adam(decouple_wd=True)` has torch's placement of both. State: `exp_avg` (m),
    `exp_avg_sq` (v); a state_dict of torch.optim.AdamW or transformers.AdamW loads.

    Args:
        params: parameters, named parameters, or dicts that define parameter groups.
        lr (default 1e-3): learning rate.
        betas (0.9, 0.999): decay rates of m and v, each in [0, 1).
        eps (1e-6): added to the root of v, >= 0.
        weight_decay (0.0): decoupled weight decay, per step and unit of lr.
        correct_bias (True): False leaves out the bias corrections, as the original BERT did.
        no_deprecation_warning (False): accepted for code written for transformers; there is nothing to warn of.
        decouple_lr (False): fully decoupled weight decay, of the parameter before the update; wants a much smaller
            `weight_decay`, since lr no longer multiplies it.
        max_lr (None): peak learning rate of the schedule, for `decouple_lr`; None takes the `lr` given here.
        **options: `maximize`, `foreach`, `fused`, `caution`, `kahan_sum`, see `RuleOptimizer`.

    Raises:
        ValueError: a hyper-parameter out of range, or no parameters.
        TypeError: a hyper-parameter of the wrong type, or an unknown option.

    Source:
        Loshchilov and Hutter, arXiv 1711.05101; transformers 4.34, `optimization.AdamW`.
    """

    rule = adamw
    decay = Decay.DECOUPLED_AFTER
    absent_from_peers = FullyDecoupling.absent_from_peers | {"correct_bias"}

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        correct_bias: bool = True,
        no_deprecation_warning: bool = False,
        *,
        decouple_lr: bool = False,
        max_lr: float | None = None,
        **options: Unpack[EngineOptions],
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "correct_bias": correct_bias,
            "decouple_lr": decouple_lr,
            "max_lr": max_lr,
        }
        super().__init__(params, defaults, **options)

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        flag("correct_bias", group["correct_bias"])

    def ignores_peer_flag(self, name: str, value: Any, group: dict[str, Any]) -> bool:
        return torch_flag_is_neutral(name, value, group, decoupled=True)


class Adam(FullyDecoupling):
    """Adam with L2, decoupled or fully decoupled weight decay, with the options of optimi.Adam.

    With g the gradient, p the parameter, t the step:

        g = g + weight_decay p                                  (L2, the default)
        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) g^2
        u = m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)
        p = p - lr u
        p = p - lr u - lr weight_decay p                        (decouple_wd: AdamW as in torch)
        p = p - lr u - lr / max_lr weight_decay p               (decouple_lr)

    State: `exp_avg` (m), `exp_avg_sq` (v), in torch's form: a state_dict of torch.optim.Adam loads. (optimi keeps m and
    v divided by their bias corrections: the same parameters, another checkpoint.)

    Args:
        params: parameters, named parameters, or dicts that define parameter groups.
        lr (default 1e-3): learning rate.
        betas (0.9, 0.99): decay rates of m and v, each in [0, 1).
        weight_decay (0.0): coefficient of the decay that the two following options select.
        eps (1e-6): added to the bias-corrected root of v, >= 0.
        decouple_wd (False): decoupled weight decay.
        decouple_lr (False): fully decoupled weight decay; wants a much smaller `weight_decay`, since lr no longer
            multiplies it.
        max_lr (None): peak learning rate of the schedule, for `decouple_lr`; None takes the `lr` given here.
        triton (None): optimi's name for `fused`; on a GPU the compiled kernels are Triton's.
        **options: `maximize`, `foreach`, `fused`, `caution`, `kahan_sum`, `gradient_release`, see `RuleOptimizer`.

    Raises:
        ValueError: a hyper-parameter out of range, or no parameters.
        TypeError: a hyper-parameter of the wrong type, or an unknown option.

    Source:
        Kingma and Ba, arXiv 1412.6980; options after optimi.Adam 0.3.
    """

    rule = adam
    decay = Decay.COUPLED
    absent_from_peers = FullyDecoupling.absent_from_peers | {"decouple_wd"}

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        eps: float = 1e-6,
        decouple_wd: bool = False,
        decouple_lr: bool = False,
        max_lr: float | None = None,
        *,
        triton: bool | None = None,
        **options: Unpack[EngineOptions],
    ) -> None:
        if triton is not None:
            if options.get("fused") is not None:
                raise ValueError(f"triton={triton!r} and fused={options['fused']!r} name one option; give one of them")
            options["fused"] = triton
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "decouple_wd": decouple_wd,
            "decouple_lr": decouple_lr,
            "max_lr": max_lr,
        }
        super().__init__(params, defaults, **options)

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        flag("decouple_wd", group["decouple_wd"])

    def ignores_peer_flag(self, name: str, value: Any, group: dict[str, Any]) -> bool:
        return torch_flag_is_neutral(name, value, group, decoupled=self.decay_for(group) is not Decay.COUPLED)

    def decay_for(self, group: dict[str, Any]) -> Decay:
        decay = super().decay_for(group)
        return Decay.DECOUPLED if decay is Decay.COUPLED and group["decouple_wd"] else decay
