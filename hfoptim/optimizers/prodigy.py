"""Prodigy: Adam whose step size follows an estimate of the distance to the solution."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from hfoptim.engine import (
    ELEMENT,
    TENSOR,
    Decay,
    EngineOptions,
    Probe,
    Rule,
    RuleOptimizer,
    State,
    bias_correction,
    clone,
    ema,
    nonnegative,
    zeros,
)
from hfoptim.engine.checks import flag, group_dict, integer, number, plain, warn
from hfoptim.engine.distributed.dtensor import is_dtensor
from hfoptim.engine.optimizer import EngineOptimizer
from hfoptim.optimizers.shared.moments import moment_rates

# The estimate is one for all groups: these options are, too, and these numbers are kept in every group.
_COMMON = ("betas", "beta3", "use_bias_correction", "d0", "d_coef", "growth_rate")
_ESTIMATE = ("d", "d_max", "d_hat", "d_numerator", "d_denom", "k")
# Where reading a number back does not make the host wait: there the estimate is kept as numbers, else as tensors.
HOST = ("cpu",)
# A learning rate below this is one that was meant for another optimizer, such as TrainingArguments' default 5e-5.
_SUSPICIOUS_LR = 1e-2


def _beta3(group: Mapping[str, Any]) -> float:
    return math.sqrt(group["betas"][1]) if group["beta3"] is None else float(group["beta3"])


def _rate(group: Mapping[str, Any]) -> float:
    """What d is multiplied by to give the step size."""
    lr = float(group["lr"])
    if not group["use_bias_correction"]:
        return lr
    (beta1, beta2), t = group["betas"], group["k"] + 1
    return lr * math.sqrt(bias_correction(beta2, t)) / bias_correction(beta1, t)


def _weights(group: Mapping[str, Any], d: Any, dlr: Any) -> dict[str, Any]:
    """How s decays, and what gradients weigh in it; both sums are kept divided by d0, as d itself is tiny at first."""
    return {"beta3": _beta3(group), "weight": (d / group["d0"]) * (d if group["safeguard_warmup"] else dlr)}


def _probing(t: int, group: Mapping[str, Any]) -> dict[str, Any]:
    d = group["d"]
    dlr = d * _rate(group)
    return {**_weights(group, d, dlr), "pull": (d / group["d0"]) * dlr}


def _per_step(t: int, group: Mapping[str, Any], d: Any, dlr: Any, **sums: Tensor) -> dict[str, Any]:
    """`d` and `dlr` are the estimate and the step size from before this step, `group["d"]` is the new estimate."""
    return {
        **moment_rates(t, group),
        **_weights(group, d, dlr),
        "d": d,
        "d_new": group["d"],
        "eps": group["d"] * group["eps"],
        "lr": dlr,
        "decay": dlr * float(group["weight_decay"]),
    }


def _sampled(x: Any, every: int) -> Any:
    """The entries that the estimate is made from."""
    return x if every == 1 else x.flatten()[::every]


@cache
def prodigy(first_moment: bool, every: int) -> Rule:
    """The rule for one kind of group.

    Args:
        first_moment: keep one; not for beta1 = 0.
        every: make the estimate from every so many-th entry of a tensor.
    """

    def new_s(grad: Any, s: Any, h: Any) -> Any:
        return s * h.beta3 + _sampled(grad, every) * h.weight

    def sums(grad: Any, param: Any, *args: Any) -> dict[str, Any]:
        p0, s, h = args[-3:]
        gone = p0 - _sampled(param, every)
        return {
            "numerator": (_sampled(grad, every) * gone).sum() * h.pull,
            "denominator": new_s(grad, s, h).abs().sum(),
        }

    def fn(grad: Any, param: Any, *args: Any) -> tuple[Any, ...]:
        *moments, _, s, h = args
        scaled = grad * h.d
        exp_avg_sq = ema(moments[-1], scaled * scaled, h.alpha2)
        exp_avg = [ema(moments[0], scaled, h.alpha1)] if first_moment else []
        direction = exp_avg[0] if first_moment else grad * h.d_new
        return (direction / (exp_avg_sq.sqrt() + h.eps), *exp_avg, exp_avg_sq, None, new_s(grad, s, h))

    fn.__name__ = "prodigy"
    first = {"exp_avg": zeros} if first_moment else {}
    # s is read before a step and compared over all steps: never in few bits.
    own = {"p0": clone, "s": State(zeros.init)}
    if every > 1:
        own = {"p0": _sample(clone, every), "s": _sample(zeros, every)}
    scope = ELEMENT if every == 1 else TENSOR
    return Rule(fn, scope, {**first, "exp_avg_sq": nonnegative, **own}, _per_step, Probe(sums, _probing))


def _sample(state: State, every: int) -> State:
    return State(lambda param, dtype: state.init(param, dtype).flatten()[::every].clone())


class Prodigy(RuleOptimizer):
    """Adam that finds its step size by itself, from the distance it has come: leave lr at 1.

    With g the gradient, p the parameter, p0 where it started, sums over all entries of all parameters:

        a = d lr c,  c = sqrt(1 - beta2^t) / (1 - beta1^t) with use_bias_correction, else 1
        r = beta3 r + d a <g, p0 - p>;  s = beta3 s + d a g         (safeguard_warmup: s = beta3 s + d^2 g)
        D = max(D, d_coef r / |s|_1);   d' = min(D, growth_rate d)
        m = beta1 m + (1 - beta1) d g;  v = beta2 v + (1 - beta2) d^2 g^2
        p = p - a m / (sqrt(v) + d' eps) - a weight_decay p;        d = d'

    The groups share d, so they must agree in lr and in the options it depends on; a group with lr=0 is frozen and takes
    no part. At lr=0 everywhere, as at the start of a warm-up, nothing happens. A schedule that falls from 1, such as a
    cosine, goes well with it. Every group holds `d`, `d_max`, `d_hat`, `d_numerator`, `d_denom` and `k`: numbers for
    parameters on a CPU, else 0-d tensors on their device, so that no step waits for it.

    Follows prodigyopt, whose state_dict loads, but for two things: there a group with lr=0 still decays, and goes on
    with the momentum it had; and options that groups disagree in are those of the first group. optax has
    `use_bias_correction=True` only. State: `exp_avg` (m), unless beta1 is 0, `exp_avg_sq` (v), `p0`, `s`.

    Args:
        params: parameters, named parameters, or dicts that define parameter groups.
        lr (default 1.0): factor of the step size found; for a schedule. Below 0.01 it draws a warning.
        betas (0.9, 0.999): decay rates of m and v, each in [0, 1).
        beta3 (None): decay rate of r and s, in [0, 1); None is sqrt(beta2).
        eps (1e-8): added to the root of v in units of d, > 0.
        weight_decay (0.0): weight decay, per step and unit of step size.
        decouple (True): decoupled weight decay; False adds it to the gradient.
        use_bias_correction (False): Adam's bias corrections.
        safeguard_warmup (False): keep lr out of s, so that a long warm-up does not inflate d.
        d0 (1e-6): first d, > 0.
        d_coef (1.0): factor of the estimate, >= 0; the knob to turn, say from 0.5 to 2.
        growth_rate (inf): largest factor that d grows by in a step, >= 1.
        fsdp_in_use (False): parameters are sharded over the ranks of torch.distributed: sums are taken over all ranks.
            PyTorch's FullyShardedDataParallel is noticed without it.
        slice_p (1): estimate d from every slice_p-th entry of each parameter, which makes `p0` and `s` smaller.
        **options: `maximize`, `foreach`, `fused`, `caution`, `kahan_sum`, see `RuleOptimizer`.

    Raises:
        ValueError: a hyper-parameter out of range, groups that disagree, no parameters, or, from `step()`, slice_p > 1
            with a sharded parameter.
        TypeError: a hyper-parameter of the wrong type, an unknown option, or a complex parameter with slice_p > 1.

    Source:
        Mishchenko and Defazio, Prodigy: An Expeditiously Adaptive Parameter-Free Learner, arXiv 2306.06101;
        konstmish/prodigy (prodigyopt 1.1).
    """

    per_step_options = frozenset({"lr", "d", "d_max", "d_hat", "d_numerator", "d_denom", "k"})
    absent_from_peers = frozenset({"d_hat", "d_denom"})
    one_lr = True

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        beta3: float | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decouple: bool = True,
        use_bias_correction: bool = False,
        safeguard_warmup: bool = False,
        d0: float = 1e-6,
        d_coef: float = 1.0,
        growth_rate: float = math.inf,
        fsdp_in_use: bool = False,
        slice_p: int = 1,
        **options: Unpack[EngineOptions],
    ) -> None:
        d0 = number("d0", d0)  # where the estimate begins, too
        defaults = {
            "lr": lr,
            "betas": betas,
            "beta3": beta3,
            "eps": eps,
            "weight_decay": weight_decay,
            "decouple": decouple,
            "use_bias_correction": use_bias_correction,
            "safeguard_warmup": safeguard_warmup,
            "d0": d0,
            "d_coef": d_coef,
            "growth_rate": growth_rate,
            "fsdp_in_use": fsdp_in_use,
            "slice_p": slice_p,
            "d": d0,
            "d_max": d0,
            "d_hat": d0,
            "d_numerator": 0.0,
            "d_denom": 0.0,
            "k": 0,
        }
        EngineOptimizer.__init__(self, params, defaults, **options)
        largest = max(float(group["lr"]) for group in self.param_groups)
        if 0.0 < largest < _SUSPICIOUS_LR:
            warn(
                f"a learning rate of {largest:g} multiplies the step size that Prodigy finds by itself, so that it "
                f"hardly moves; leave it at 1.0"
            )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; it joins in with the estimate that the other groups have come to."""
        if self.param_groups:
            group, first = {**self.defaults, **group_dict(param_group)}, self.param_groups[0]
            self.check_group(group)
            for name in _COMMON:
                if group[name] != first[name]:
                    raise ValueError(
                        f"{name}={group[name]!r} in one group and {first[name]!r} in another: Prodigy makes one "
                        f"estimate for all groups, so they must agree"
                    )
            param_group = {**param_group, **{name: first[name] for name in _ESTIMATE}}
        super().add_param_group(param_group)

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        for name in ("eps", "d0"):
            group[name] = number(name, group[name])
            if group[name] == 0.0:
                raise ValueError(f"{name}=0 is out of range, expected a number above 0")
        group["d_coef"] = number("d_coef", group["d_coef"])
        if group["beta3"] is not None:
            group["beta3"] = number("beta3", group["beta3"], 0.0, 1.0)
        unlimited = plain(group["growth_rate"]) == math.inf
        group["growth_rate"] = math.inf if unlimited else number("growth_rate", group["growth_rate"], 1.0)
        for name in ("decouple", "use_bias_correction", "safeguard_warmup", "fsdp_in_use"):
            flag(name, group[name])
        group["slice_p"] = integer("slice_p", group["slice_p"], 1)
        for name in _ESTIMATE:
            group[name] = group[name] if isinstance(group[name], Tensor) else plain(group[name])

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        if group["slice_p"] > 1 and is_dtensor(param):
            raise ValueError(
                f"slice_p={group['slice_p']} takes every so many-th entry of a whole tensor, which a sharded parameter "
                f"(DTensor) is not; use slice_p=1"
            )
        return prodigy(group["betas"][0] > 0, group["slice_p"])

    def decay_for(self, group: dict[str, Any]) -> Decay:
        return Decay.DECOUPLED if group["decouple"] else Decay.COUPLED

    def adapt_loaded(self, param: Tensor, state: dict[str, Any], group: dict[str, Any]) -> dict[str, Any]:
        # prodigyopt keeps p0 and s flat, and a start of zeros as one number.
        for name, init in self.rule_for(param, group).state.items():
            if name not in ("p0", "s") or name not in state:
                continue
            wanted = init(param.detach(), param.dtype)
            saved = torch.as_tensor(state[name], dtype=None if isinstance(state[name], Tensor) else wanted.dtype)
            if saved.ndim == 0:
                saved = saved.expand(wanted.numel())
            if saved.shape != wanted.shape and saved.numel() == wanted.numel():
                state[name] = wanted.to(saved.dtype).copy_(saved.reshape(wanted.shape))
        return state

    def _step(self, entries: list[Any]) -> None:
        rates = {float(group["lr"]) for group in self.param_groups}
        if len(rates - {0.0}) > 1:
            raise ValueError(
                f"groups have the learning rates {', '.join(f'{rate:g}' for rate in sorted(rates))}: Prodigy makes one "
                f"estimate for all groups, so lr must be the same, or 0 for a frozen group"
            )
        super()._step([entry for entry in entries if float(self.param_groups[entry[0]]["lr"]) > 0.0])

    def _is_sharded(self) -> bool:
        return any(
            group["fsdp_in_use"] or any(hasattr(param, "_fsdp_flattened") for param in group["params"])
            for group in self.param_groups
        )

    def on_step_start(self, totals: dict[str, Any]) -> None:
        first, sharded = self.param_groups[0], self._is_sharded()
        if totals:
            sums = torch.stack([totals["numerator"], totals["denominator"]])
        elif sharded:  # the other ranks wait for this one
            sums = torch.zeros(2, dtype=torch.float32, device=first["params"][0].device)
        else:
            return
        # The estimate grows over the whole run: in double precision where the device has it.
        sums = sums if sums.device.type == "mps" else sums.double()
        if sharded:
            torch.distributed.all_reduce(sums)
        denominator, lr = sums[1], max(float(group["lr"]) for group in self.param_groups)
        d, largest, numerator = (_like(sums[0], first[name]) for name in ("d", "d_max", "d_numerator"))
        numerator = numerator * _beta3(first) + sums[0]
        # Without any gradient that is not 0 nothing is known, and nothing moves.
        known = denominator > 0
        d_hat = torch.where(known, first["d_coef"] * numerator / denominator, d)
        largest = torch.maximum(largest, d_hat)
        grown = torch.where(d == first["d0"], torch.maximum(d, d_hat), d) * first["growth_rate"]
        found: dict[str, Any] = {
            "dlr": torch.where(known, d * _rate({**first, "lr": lr}), 0.0),
            "d_before": d,
            "d": torch.minimum(largest, grown),
            "d_max": largest,
            "d_hat": d_hat,
            "d_numerator": numerator,
            "d_denom": denominator,
        }
        if sums.device.type in HOST:
            found = {name: value.item() for name, value in found.items()}
        totals.update(dlr=found.pop("dlr"), d=found.pop("d_before"))
        found["k"] = first["k"] + 1
        for group in self.param_groups:
            group.update(found)


def _like(number: Tensor, value: Any) -> Tensor:
    """`value` as a tensor like `number`, made on its device."""
    return value.to(number) if isinstance(value, Tensor) else torch.full_like(number, value)
