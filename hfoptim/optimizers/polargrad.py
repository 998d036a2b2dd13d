"""PolarGrad: momentum made orthogonal, times its nuclear norm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import MATRIX, MatrixFunction, Name, Rule, hyper, zeros
from hfoptim.optimizers.shared import newton_schulz
from hfoptim.optimizers.shared.matrices import Form, MatrixOptimizer
from hfoptim.optimizers.shared.newton_schulz import NewtonSchulz, Triple, newton_schulz_of
from hfoptim.optimizers.shared.spectral import direction, momentum_rates, over_matrix


@cache
def polargrad(form: Form, iteration: NewtonSchulz, nesterov: bool) -> Rule:
    """The rule for matrices of one form."""

    def scaled(parts: Sequence[Tensor], eps: Any) -> list[Tensor]:
        made = zip(parts, iteration.each(parts, eps), strict=True)
        return [polar * over_matrix(polar * part, "sum") for part, polar in made]

    @MatrixFunction
    def steepest(stacks: Sequence[Tensor], eps: Any) -> list[Tensor]:
        return form.all(lambda parts: scaled(parts, eps), stacks)

    def fn(grad: Any, param: Any, momentum_buffer: Any, h: Any) -> tuple[Any, Any]:
        update, momentum_buffer = direction(grad, momentum_buffer, h, nesterov)
        return steepest(update, h.eps), momentum_buffer

    fn.__name__ = "polargrad"
    return Rule(fn, MATRIX, {"momentum_buffer": zeros}, momentum_rates, shape=form.shape)


class PolarGrad(MatrixOptimizer):
    """Momentum made orthogonal, times its nuclear norm: steepest descent by the spectral norm, with its length.

    With G the gradient, P the parameter:

        B = momentum B + (1 - momentum) G
        U = (1 - momentum) G + momentum B with nesterov, else B
        O = NewtonSchulz(U), about the polar factor of U
        P = P - lr <O, U> O - lr weight_decay P

    <O, U>, the sum of the products of their entries, is about the nuclear norm of U, the sum of its singular values. So
    the step falls with the gradient, unlike Muon's, and lr has to suit the size of gradients. A matrix that makes
    queries, keys and values has a nuclear norm for each of the three. Everything else takes AdamW's step with
    lr f, f = `fallback_lr_scale`, see `Muon`, which also says what is a hidden matrix.

    State: `momentum_buffer` (B); for everything else `exp_avg`, `exp_avg_sq`.

    Raises:
        ValueError: no hidden matrix among the parameters, one with fewer than two dimensions, or parameters that need
            names and have none.
        TypeError: a complex matrix.

    Source:
        Lau, Long and Su, PolarGrad, arXiv 2505.21799; timlautk/polargrad, with the momentum before the polar factor;
        NVIDIA Emerging-Optimizers, PolarGrad, from which nesterov and the coefficients are. The author's polar factor
        is that of QDWH by default, and nearly exact; so is this one with `ns_coefficients="polar_express"`,
        `ns_steps=8`, `safety_factor=1.01`. His `polar_first` is not here.
    """

    hidden_matrices = True
    names = (Name("polargrad"),)
    lr: float = hyper(0.02, "learning rate")
    weight_decay: float = hyper(0.0, "decoupled weight decay, per step and unit of lr")
    momentum: float = hyper(0.95, "decay rate of B", below=1.0)
    _: KW_ONLY
    nesterov: bool = hyper(False, "look one step ahead")
    eps: float = hyper(1e-7, "least norm that Newton-Schulz divides by; AdamW's eps")
    ns_coefficients: str | Triple | Sequence[Triple] = newton_schulz.coefficients_option("quintic")
    ns_steps: int = newton_schulz.STEPS
    safety_factor: float = newton_schulz.SAFETY_FACTOR
    ns_dtype: torch.dtype | str | None = newton_schulz.DTYPE

    def matrix_rule(self, form: Form, group: dict[str, Any]) -> Rule:
        return polargrad(form, newton_schulz_of(group), group["nesterov"])
