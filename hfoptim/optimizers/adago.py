"""AdaGO: Muon's orthogonal step with AdaGrad's step size, by the norms of gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import MATRIX, Group, MatrixFunction, Name, Rule, Scalars, State, hyper, zeros
from hfoptim.optimizers.shared import newton_schulz
from hfoptim.optimizers.shared.matrices import Form, MatrixOptimizer
from hfoptim.optimizers.shared.newton_schulz import NewtonSchulz, Triple, newton_schulz_of
from hfoptim.optimizers.shared.spectral import direction, norm_of_matrix

# The least norm that Newton-Schulz divides by.
_LEAST_NORM = 1e-7


def _rates(t: int, group: Group) -> Scalars:
    lr, momentum = float(group["lr"]), group["momentum"]
    return {
        "alpha": 1.0 - momentum,
        "momentum": momentum,
        "gamma": group["gamma"],
        "rate": lr,
        "floor": group["eps"] if lr else 0.0,  # a learning rate of 0 freezes
        "lr": 1.0,
        "decay": lr * group["weight_decay"],
    }


@cache
def _per_matrix(value: float) -> State:
    """One number for each matrix."""

    def init(param: Tensor, dtype: torch.dtype) -> Tensor:
        return torch.full((*param.shape[:-2], 1, 1), value, dtype=dtype, device=param.device)

    return State(init, signed=False, of_shaped=True)


@cache
def adago(form: Form, iteration: NewtonSchulz, nesterov: bool, v: float) -> Rule:
    """The rule for matrices of one form, whose sums of squares begin at `v`."""

    @MatrixFunction
    def orthogonal(stacks: Sequence[Tensor]) -> list[Tensor]:
        return form.all(lambda parts: list(iteration.each(parts, _LEAST_NORM)), stacks)

    def fn(grad: Any, param: Any, momentum_buffer: Any, v: Any, h: Any) -> tuple[Any, Any, Any]:
        update, momentum_buffer = direction(grad, momentum_buffer, h, nesterov)
        norm = norm_of_matrix(grad)
        norm = torch.where(norm > h.gamma, h.gamma, norm)
        v = v + norm * norm
        size = norm * h.rate / v.sqrt()
        return orthogonal(update) * torch.where(size < h.floor, h.floor, size), momentum_buffer, v

    fn.__name__ = "adago"
    return Rule(fn, MATRIX, {"momentum_buffer": zeros, "v": _per_matrix(v)}, _rates, shape=form.shape)


class AdaGO(MatrixOptimizer):
    """Muon's orthogonal step with AdaGrad's step size: one number per matrix, by the norms of its gradients.

    With G the gradient, P the parameter:

        B = momentum B + (1 - momentum) G
        U = (1 - momentum) G + momentum B with nesterov, else B
        n = min(|G|, gamma)
        V = V + n^2, from `v` on
        P = P - max(eps, lr n / sqrt(V)) NewtonSchulz(U) - lr weight_decay P

    `eps` is the least step size, whatever lr is, but 0, which freezes a group: schedules that fall below it stay there.
    Everything else takes AdamW's step with lr f, f = `fallback_lr_scale`, see `Muon`, which also says what is a
    hidden matrix.

    State: `momentum_buffer` (B), `v` (V); for everything else `exp_avg`, `exp_avg_sq`.

    Raises:
        ValueError: no hidden matrix among the parameters, one with fewer than two dimensions, or parameters that need
            names and have none.
        TypeError: a complex matrix.

    Source:
        Zhang, Liu and Schaeffer, AdaGrad Meets Muon, arXiv 2509.02981, algorithm 1. pytorch_optimizer 4.1 differs: it
        divides by V, not by its root, measures the norm after nesterov has gone into the gradient, and multiplies lr by
        Muon's factor of the shape.
    """

    hidden_matrices = True
    names = (Name("adago"),)
    lr: float = hyper(5e-2, "learning rate")
    momentum: float = hyper(0.95, "decay rate of B", below=1.0)
    weight_decay: float = hyper(0.0, "decoupled weight decay, per step and unit of lr")
    gamma: float = hyper(10.0, "the largest norm that counts", above=0.0)
    eps: float = hyper(5e-4, "the least step size")
    v: float = hyper(1e-6, "what V begins at", above=0.0)
    nesterov: bool = hyper(False, "look one step ahead")
    _: KW_ONLY
    adam_eps: float = hyper(1e-10, "AdamW's eps")
    ns_coefficients: str | Triple | Sequence[Triple] = newton_schulz.COEFFICIENTS
    ns_steps: int = newton_schulz.STEPS
    safety_factor: float = newton_schulz.SAFETY_FACTOR
    ns_dtype: torch.dtype | str | None = newton_schulz.DTYPE

    def matrix_rule(self, form: Form, group: dict[str, Any]) -> Rule:
        return adago(form, newton_schulz_of(group), group["nesterov"], group["v"])
