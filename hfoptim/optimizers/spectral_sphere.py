"""SpectralSphere: steepest descent on matrices of one spectral norm, along their sphere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import MATRIX, Group, Name, Rule, Scalars, hyper, zeros
from hfoptim.optimizers.shared import newton_schulz
from hfoptim.optimizers.shared.matrices import Form, MatrixOptimizer
from hfoptim.optimizers.shared.newton_schulz import NewtonSchulz, Triple, newton_schulz_of
from hfoptim.optimizers.shared.spectral import direction, momentum_rates, norm_of_matrix, over_matrix

# How far from 0 a second multiplier is tried where nothing better is known.
_FIRST = 1e-3
# From which product on a matrix counts as nearly along another.
_ALONG = 0.9


def _rates(t: int, group: Group) -> Scalars:
    lr = float(group["lr"])
    return {
        **momentum_rates(t, group),
        "rate": lr,
        "lr": 1.0 if lr else 0.0,  # what a learning rate of 0 freezes stays off the sphere
        "decay": 0.0,  # the norm is given
    }


def _unit(x: Tensor, eps: Any) -> Tensor:
    norm: Tensor = norm_of_matrix(x)
    return x / norm.clamp(min=eps)


def _leading(matrix: Tensor, steps: int, eps: Any) -> tuple[Tensor, Tensor, Tensor]:
    """About the largest singular value, and its vectors as columns, by power iterations from a row of ones."""
    v = matrix.new_ones((*matrix.shape[:-2], matrix.shape[-1], 1))
    for _ in range(steps):
        u = _unit(matrix @ v, eps)
        v = _unit(matrix.mT @ u, eps)
    return u.mT @ matrix @ v, u, v


def _tangent(momentum: Tensor, normal: Tensor, iteration: NewtonSchulz, h: Any, tol: float, steps: int) -> Tensor:
    """msign(M + x N), with the x at which it is orthogonal to the matrix N.

    <N, msign(M + x N)> rises with x, from -1 to 1. Secants find its zero; where they leave the bracket that is known,
    or do not halve it in two steps, its middle is taken. No step waits for a number: what has come to `tol` stays.
    """

    def at(x: Tensor) -> tuple[Tensor, Tensor]:
        made = iteration(momentum + x * normal, h.eps)
        return made, over_matrix(normal * made, "sum")

    x = torch.zeros_like(momentum[..., :1, :1])
    made, f = at(x)
    # Beyond twice the nuclear norm the sign is that of x.
    bound = 2.0 * over_matrix(momentum * made, "sum").abs() + 2.0 * _FIRST
    low, high = torch.where(f > 0, -bound, x), torch.where(f > 0, x, bound)
    best, least, last, last_f, width = made, f.abs(), x, f, 4.0 * (high - low)
    # Where M is nearly along N the product hardly changes before x has taken that part away.
    near = torch.where(f > 0, x - _FIRST, x + _FIRST)
    x = torch.where(f.abs() > _ALONG, -over_matrix(normal * momentum, "sum"), near)
    for _ in range(steps):
        made, f = at(x)
        better = f.abs() < least
        best, least = torch.where(better & (least > tol), made, best), torch.where(better, f.abs(), least)
        low, high = torch.where(f > 0, low, torch.maximum(low, x)), torch.where(f > 0, torch.minimum(high, x), high)
        step = -f * (x - last) / (f - last_f)
        last, last_f, shrunk = x, f, high - low
        x = x + step
        halves = (2.0 * shrunk <= width) & (x > low) & (x < high)
        x, width = torch.where(halves, x, 0.5 * (low + high)), shrunk
    return best


@cache
def spectral_sphere(
    form: Form, iteration: NewtonSchulz, nesterov: bool, radius: float, power: int, tol: float, steps: int
) -> Rule:
    """The rule for matrices of one form."""

    def moved(param: Tensor, momentum: Tensor, h: Any) -> Tensor:
        target = radius * math.sqrt(param.shape[-2] / param.shape[-1])
        sigma, u, v = _leading(param, power, h.eps)
        made = _tangent(_unit(momentum, h.eps), u @ v.mT, iteration, h, tol, steps)
        new: Tensor = param * (target / (sigma.clamp(min=0.0) + h.eps)) - made * (h.rate * target)
        return new

    def fn(grad: Tensor, param: Tensor, momentum_buffer: Tensor, h: Any) -> tuple[Tensor, Tensor]:
        update, momentum_buffer = direction(grad, momentum_buffer, h, nesterov)
        parts = zip(form.cut(param), form.cut(update), strict=True)
        return param - form.joined([moved(part, each, h) for part, each in parts]), momentum_buffer

    fn.__name__ = "spectral_sphere"
    return Rule(fn, MATRIX, {"momentum_buffer": zeros}, _rates, shape=form.shape, exact_weights=True)


class SpectralSphere(MatrixOptimizer):
    """Muon on a sphere: matrices keep one spectral norm, and steps go along the sphere of that norm.

    With G the gradient, P the parameter, a matrix of r rows and c columns:

        B = momentum B + (1 - momentum) G
        U = (1 - momentum) G + momentum B with nesterov, else B
        s, u, v = the largest singular value of P, and its vectors
        O = NewtonSchulz(U / |U| + x u v^T) with the x at which <u v^T, O> = 0
        R = radius_scaler sqrt(r / c)
        P = P - (1 - R / (s + eps)) P - lr R O

    Without the multiplier x this is Muon and a division (the paper's MuonSphere): `solver_max_iter=0`. With it the
    spectral norm stays to first order, and the division corrects the rest. P leaves the sphere by one step, and is
    brought back at the next. Matrices begin with the norm they were made with, and are on the sphere after two steps:
    with a model that is trained already this changes what it computes, by as much as the norms differ from R.
    Weight decay has no place where the norm is given; `weight_decay` is that of everything else, which takes AdamW's
    step with lr f, f = `fallback_lr_scale`, see `Muon`, which also says what is a hidden matrix. Matrices that make
    queries, keys and values at once are three, each on a sphere of its own.

    s, u and v are those of `power_iter_steps` power iterations from a vector of ones. A step takes
    `solver_max_iter` + 1 Newton-Schulz iterations of `ns_steps` each, as many as it would for the worst matrix, since
    it does not wait to see whether the last one was enough; after that the x whose product was least is used.

    State: `momentum_buffer` (B); for everything else `exp_avg`, `exp_avg_sq`.

    Raises:
        ValueError: no hidden matrix among the parameters, one with fewer than two dimensions, or parameters that need
            names and have none; cautious or corrected weight decay.
        TypeError: a complex matrix.

    Source:
        Xie et al., Controlled LLM Training on Spectral Sphere, arXiv 2601.08393; Unakar/Spectral-Sphere-Optimizer,
        `SSO`, which finds x by bisection from the x of the step before, in some 20 to 30 Newton-Schulz iterations, and
        takes that x where it finds no bracket within 1. pytorch_optimizer 4.1's SpectralSphere differs: it leaves P off
        the sphere, its step is lr O without R, and it computes in bfloat16.
    """

    hidden_matrices = True
    names = (Name("spectralsphere", aliases=("sso",)),)
    lr: float = hyper(0.02, "learning rate")
    momentum: float = hyper(0.9, "decay rate of B", below=1.0)
    nesterov: bool = hyper(True, "look one step ahead")
    radius_scaler: float = hyper(1.0, "factor of the spectral norm", above=0.0)
    power_iter_steps: int = hyper(5, "power iterations for s, u and v", low=1, most=99)
    ns_steps: int = hyper(8, "iterations of Newton-Schulz", low=1, most=99)
    solver_tol: float = hyper(1e-6, "a product <u v^T, O> that is small enough")
    solver_max_iter: int = hyper(8, "how many x are tried after 0", low=0, most=99)
    weight_decay: float = hyper(0.0, "AdamW's, for everything else")
    eps: float = hyper(1e-7, "least norm to divide by; AdamW's eps")
    _: KW_ONLY
    ns_coefficients: str | Triple | Sequence[Triple] = newton_schulz.coefficients_option("polar_express")
    safety_factor: float = hyper(1.01, "multiplies the norm before Newton-Schulz", above=0.0)
    ns_dtype: torch.dtype | str | None = newton_schulz.DTYPE

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        for name in ("cautious_weight_decay", "corrected_weight_decay"):
            if group[name]:
                raise ValueError(f"{name}=True is not for SpectralSphere, whose matrices have a norm and no decay")

    def matrix_rule(self, form: Form, group: dict[str, Any]) -> Rule:
        return spectral_sphere(
            form,
            newton_schulz_of(group),
            group["nesterov"],
            group["radius_scaler"],
            group["power_iter_steps"],
            group["solver_tol"],
            group["solver_max_iter"],
        )
