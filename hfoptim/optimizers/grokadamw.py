"""GrokAdamW."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from torch import Tensor

from hfoptim.engine import (
    TENSOR,
    Group,
    Name,
    Rule,
    RuleOptimizer,
    RunState,
    Scalars,
    add_scaled,
    checks,
    ema,
    hyper,
    place,
    zeros,
)
from hfoptim.optimizers.shared.moments import adam_state, folded, normed


def _per_step(t: int, group: Group) -> Scalars:
    beta1, _ = group["betas"]
    memory = group["alpha_init"] * math.exp(-group["grokking_signal_decay_rate"] * group["grokking_signal"])
    return {
        **folded(t, group),
        "beta1": beta1,
        "fading": math.log1p(-group["gamma"]),
        "alpha_slow": 1.0 - memory,
        "lamb": group["lamb"],
        "clip": group["gradient_clipping"],
    }


# Passes over memory, in tensors of the parameter's size:
#   the norm: read grad                                                         1
#   update: read grad, param, e, m, v; write param, e, m, v                     9
@cache
def grokadamw(clips: bool) -> Rule:
    """The rule, with or without clipping of each gradient by its norm."""

    def fn(grad: Any, param: Any, at: Any, grok_ema: Any, exp_avg: Any, exp_avg_sq: Any, h: Any) -> tuple[Any, ...]:
        if clips:
            grad = grad * (h.clip / (grad.norm() + 1e-6)).clamp(max=1.0)
        grok_ema = ema(grok_ema, grad, h.alpha_slow)
        grad = add_scaled(grad, grok_ema, h.lamb)
        # 1 - beta1 (1 - gamma)^i without cancellation.
        exp_avg = exp_avg + (grad - exp_avg) * (h.alpha1 - (at * h.fading).expm1() * h.beta1)
        exp_avg_sq = ema(exp_avg_sq, grad * grad, h.alpha2)
        (update,) = normed(exp_avg, exp_avg_sq, h)
        return update, None, grok_ema, exp_avg, exp_avg_sq

    fn.__name__ = "grokadamw"
    return Rule(fn, TENSOR, {"place": place, "grok_ema": zeros, **adam_state(amsgrad=False)}, _per_step)


def _functions(name: str, value: Any) -> list[Callable[[], float | None]] | None:
    """Functions without arguments, or None.

    Raises:
        TypeError: something else.
    """
    if value is None:
        return None
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(callable(each) for each in value):
        raise TypeError(f"{name}={value!r}, expected a list of functions that give a number, or None")
    return list(value)


class GrokAdamW(RuleOptimizer):
    """AdamW of gradients with their slow average on top, for runs that generalise late (grokking).

    With g the gradient of a parameter, p the parameter, i its place in its group from 0, t the step, s the signal:

        g = g min(1, gradient_clipping / (|g| + 1e-6))                  (0: not clipped)
        a = alpha_init exp(-grokking_signal_decay_rate s)
        e = a e + (1 - a) g;    g = g + lamb e
        m = b m + (1 - b) g,    b = beta1 (1 - gamma)^i
        v = beta2 v + (1 - beta2) g^2
        p = p - lr sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + eps) - lr weight_decay p

    s is `grokking_signal` in the parameter groups, 0 at first. It is the mean of what `grokking_signal_fns` give before
    each step (None is left out), or whatever you write there, such as max(0, eval_loss - train_loss) / max(eval_loss,
    train_loss), the author's default. A checkpoint has the number; functions cannot be saved and stay those of the run.

    Its numbers are the author's. He counts i over the parameters that have a gradient at the step, here over all of the
    group, so that b of one does not depend on another's gradient; a function that fails is skipped there and raises
    here; and his state, on the CPU and outside of `optimizer.state`, is kept like everybody's here. By i the order of
    parameters matters, and 50 parameters into a group b is half a per cent of beta1: give layers groups of their own,
    or gamma=0. State: `place` (i, where the state was made), `grok_ema` (e), `exp_avg` (m), `exp_avg_sq` (v).

    Raises:
        TypeError: a complex parameter.

    Source:
        Hartford, https://github.com/cognitivecomputations/grokadamw; the slow average: Lee et al., Grokfast,
        arXiv 2405.20233.
    """

    names = (Name("grokadamw", paper="https://github.com/cognitivecomputations/grokadamw"),)
    lr: float = hyper(1e-3, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.999), "decay rates of m, of a group's first parameter, and of v")
    eps: float = hyper(1e-8, "added to the root of v")
    weight_decay: float = hyper(1e-2, "decoupled weight decay, per step and unit of lr")
    alpha_init: float = hyper(0.98, "decay rate of the slow average while the signal is 0", most=1.0)
    lamb: float = hyper(2.0, "weight of the slow average")
    gamma: float = hyper(0.1, "share of the decay rate of m that each place takes", below=1.0)
    grokking_signal_fns: Sequence[Callable[[], float | None]] | None = hyper(
        None, "functions whose mean is the signal of a step", check=_functions, kept=True
    )
    grokking_signal_decay_rate: float = hyper(0.1, "how fast the decay rate of the slow average falls with the signal")
    gradient_clipping: float = hyper(1.0, "largest norm of each parameter's gradient; 0 does not clip")

    @property
    def run_state(self) -> RunState:
        """The signal."""
        return RunState({"grokking_signal": 0.0}, self._signalled)

    def _signalled(self, state: Group, totals: Mapping[str, Tensor], group: Group) -> Scalars:
        found = [signal for each in self.__dict__.get("grokking_signal_fns") or () if (signal := each()) is not None]
        if not found:
            return {}
        numbers = [checks.number("a grokking signal", signal, -math.inf) for signal in found]
        return {"grokking_signal": sum(numbers) / len(numbers)}

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        return grokadamw(group["gradient_clipping"] != 0)
