"""Kron: gradients whitened by a Kronecker product of small matrices, which are learned (PSGD)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY
from functools import cache
from random import Random
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import (
    MATRIX,
    Group,
    Name,
    Rule,
    RuleOptimizer,
    Scalars,
    bias_correction,
    checks,
    ema,
    hyper,
    place,
    zeros,
)
from hfoptim.engine.rule import in_bfloat16
from hfoptim.optimizers.shared import psgd

# Of the probability of an update: (most, least, decay rate, steps before it falls).
ANNEALED = (1.0, 0.03, 0.001, 500.0)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def annealed(n: int, most: float, least: float, decay: float, flat: float) -> float:
    """The probability of an update after n steps."""
    return min(most, max(least, most * math.exp(-decay * max(0.0, n - flat))))


class _Updates:
    """The steps at which the factors are updated: each as soon as 1 / probability steps have passed."""

    def __init__(self, probability: float | tuple[float, ...]) -> None:
        self.probability = probability
        self.last, self.known, self.steps = 0, 0, set[int]()

    def __contains__(self, t: int) -> bool:
        for step in range(self.known + 1, t + 1):
            chance = self.probability
            chance = annealed(step - 1, *chance) if isinstance(chance, tuple) else chance
            if step - self.last >= 1.0 / chance:
                self.last = step
                self.steps.add(step)
        self.known = max(self.known, t)
        return t in self.steps


_updates = cache(_Updates)


def _per_step(t: int, group: Group) -> Scalars:
    probability = group["preconditioner_update_probability"]
    chance = Random(t)
    balances, factor = (
        chance.random() < group["balance_prob"],
        2.0 * chance.random() if group["stochastic_weight_decay"] else 1.0,
    )
    due = t in _updates(ANNEALED if probability is None else probability)
    return {
        "alpha": 1.0 - group["momentum"],
        "unbiased": 1.0 / bias_correction(group["momentum"], t),
        "t": t,
        "update": float(due),
        "balance": float(due and balances),
        "precond_lr": group["precond_lr"],
        "decay": float(group["lr"]) * group["weight_decay"] * factor,
    }


@cache
def kron(
    diagonal: tuple[bool, ...],
    shape: psgd.Shape | None,
    of_momentum: bool,
    scale: float,
    narrow: tuple[bool, bool],
) -> Rule:
    """The rule for parameters of one number of dimensions.

    Args:
        diagonal: for each dimension, whether its factor is.
        shape: as the rule's.
        of_momentum: whether the factors learn from the momentum, not from the gradient.
        scale: of the first preconditioner's root.
        narrow: whether momentum and factors are kept in bfloat16.
    """
    roots = scale ** (1 / len(diagonal))
    factors = {f"Q{dim}": psgd.factor(dim, each, roots) for dim, each in enumerate(diagonal)}
    mean_narrow, factors_narrow = narrow

    def fn(grad: Any, param: Any, momentum: Any, at: Any, *args: Any) -> tuple[Any, ...]:
        *stored, h = args
        momentum = ema(momentum, grad, h.alpha)
        mean = psgd.batch(momentum, len(diagonal)) * h.unbiased
        qs = [psgd.batch(q, 1 if d else 2) for q, d in zip(stored, diagonal, strict=True)]
        if h.balance and len(qs) > 1:
            qs = psgd.balanced(qs)
        if h.update:
            noise = psgd.noise(mean, h.t, at)
            new = mean if of_momentum else psgd.batch(grad, len(diagonal))
            qs = _learned(qs, new, noise, h.precond_lr)
        update = psgd.whitened(mean, qs)
        dims = tuple(range(1, update.ndim))
        update = update * (1.1 / (update.square().mean(dims, keepdim=True).sqrt() + 1e-8)).clamp(max=1.0)
        new_qs = [q.reshape(old.shape) for q, old in zip(qs, stored, strict=True)] if h.update else [None] * len(qs)
        return update.reshape(grad.shape), momentum, None, *new_qs

    fn.__name__ = "kron"
    if factors_narrow:
        factors = {name: in_bfloat16(each) for name, each in factors.items()}
    state = {"momentum_buffer": in_bfloat16(zeros) if mean_narrow else zeros, "place": place, **factors}
    return Rule(fn, MATRIX, state, _per_step, shape=shape, dims=len(diagonal))


def _learned(qs: Sequence[Tensor], new: Tensor, noise: Tensor, lr: float) -> list[Tensor]:
    """The factors after a step towards those that whiten: what they make of the new gradient looks like noise."""
    whitened, unwhitened = psgd.applied(new, qs), psgd.solved(noise, qs)
    tiny = torch.finfo(torch.bfloat16).tiny
    learned = []
    for dim, q in enumerate(qs):
        diagonal = q.ndim == 2
        too_large, too_small = (psgd.second_moment(x, dim, diagonal) for x in (whitened, unwhitened))
        step, both = (too_large - too_small) * lr, too_large + too_small
        size = both.amax(1, keepdim=True) if diagonal else psgd.norm_bound(both)
        learned.append(q - (step * q / (size + tiny) if diagonal else step.triu() / (size + tiny) @ q))
    return learned


def _probability(name: str, value: Any) -> float | tuple[float, ...] | None:
    """A probability, the four numbers that make a falling one, or None.

    Raises:
        TypeError, ValueError: something else.
    """
    if value is None:
        return None
    if callable(value):
        raise TypeError(
            f"{name}={value!r} is a function, which no checkpoint can keep; give a probability, or four numbers "
            f"(most, least, decay rate, steps before it falls), as {ANNEALED} for the default"
        )
    numbers = checks.entries(value)
    if numbers is None:
        return _chance(name, value)
    if len(numbers) != 4:
        raise ValueError(f"{name}={value!r} has {len(numbers)} numbers, expected four: most, least, decay rate, steps")
    most, least = (_chance(name, each) for each in numbers[:2])
    return (most, least, *(checks.number(name, each) for each in numbers[2:]))


def _chance(name: str, value: Any) -> float:
    found = checks.number(name, value, 0.0, 1.0, high_open=False)
    if found == 0.0:
        raise ValueError(f"{name}={value!r}: with a probability of 0 nothing is ever learned, expected one above 0")
    return found


def _dtype(name: str, value: Any) -> str | None:
    """The name of a dtype that state can be kept in, or None.

    Raises:
        TypeError, ValueError: another one, or none.
    """
    names = {dtype: each for each, dtype in _DTYPES.items()}
    if isinstance(value, torch.dtype):
        if value not in names:
            raise ValueError(f"{name}={value} is not known here; expected torch.float32, torch.bfloat16 or None")
        return names[value]
    return None if value is None else checks.choice(name, value, tuple(_DTYPES))


class Kron(RuleOptimizer):
    """PSGD with Kronecker factors: the momentum is whitened by one small triangular matrix per dimension.

    With G the gradient of a tensor, P the parameter, t the step, M the momentum, Q_i the factor of dimension i (n_i by
    n_i, upper triangular; or diagonal), X x_i Q for Q applied along dimension i:

        M = momentum M + (1 - momentum) G;  H = M / (1 - momentum^t)
        at some steps, with V normal noise of the shape of G:
            A = H x_1 Q_1 x_2 Q_2 ...;  B = V x_1 Q_1^-T x_2 Q_2^-T ...
            S_i, T_i = A A^T, B B^T, summed over all dimensions but i
            Q_i = Q_i - precond_lr triu(S_i - T_i) Q_i / |S_i + T_i|
        U = H x_1 Q_1^T Q_1 x_2 Q_2^T Q_2 ...
        P = P - lr U min(1, 1.1 / rms(U)) - lr weight_decay P

    |.| is a lower bound of the spectral norm, for a diagonal factor the largest entry. A factor is diagonal where its
    dimension has 1 entry or more than `max_size_triangular`, where the parameter has less than `min_ndim_triangular`
    dimensions, and where `memory_save_mode` says so: "one_diag" for the largest dimension, "smart_one_diag" for that if
    it is larger than the others, "all_diag" for all. `flatten` makes one dimension of those from `flatten_start_dim` to
    `flatten_end_dim`, as for kernels of convolutions. With `momentum_into_precond_update` off, Q learns from G.

    Of all steps the share `preconditioner_update_probability` updates Q, evenly spread: with p every ceil(1 / p)-th.
    None lets it fall from 1, after 500 steps, to 0.03 at about 4000 steps; four numbers (most, least, decay rate, steps
    before) do so in their way. The share `balance_prob` of the updates makes the largest entries of the factors equal.
    V goes by the step and the parameter's place in its group, what is left to chance by the step: every run, every
    backend and every number of ranks draws the same, whatever `deterministic` is.

    kron_torch advises a third of AdamW's lr and three to ten times its weight decay. Decay is decoupled, as timm's is,
    in any case; `decoupled_decay` is asked for by `corrected_weight_decay`. `stochastic_weight_decay` multiplies it by
    a number between 0 and 2, another one at each step, the same for all parameters.

    State: `momentum_buffer` (M), `place`, `Q0`, `Q1`, ... (`mu_dtype`, `precond_dtype`: kept in bfloat16).

    Follows timm, whose draws are from a generator: with the same draws both are equal, step by step. timm solves with Q
    in float32 whatever the dtype, and computes in `precond_dtype`, in which it is only kept here. Its function of the
    step as a probability is four numbers here. kron_torch and pytorch_optimizer 4.1 decay matrices only; the latter has
    triangular factors of up to 8192 and adds 1e-6 to the root mean square, where timm adds 1e-8.

    Raises:
        TypeError: a complex parameter; a function as the probability of an update.
        ValueError: `corrected_weight_decay` without `decoupled_decay`.

    Source:
        Li, Preconditioned Stochastic Gradient Descent, arXiv 1512.04202; Li, Black Box Lie Group Preconditioners for
        SGD, arXiv 2211.04422; evanatyourservice/kron_torch; timm 1.0, `timm.optim.Kron`.
    """

    names = (
        Name("kron"),
        Name("kronw", "PSGD Kron with decoupled weight decay", options={"decoupled_decay": True}),
        Name(
            "kronc",
            "PSGD Kron with decay that falls with the square of lr",
            options={"decoupled_decay": True, "corrected_weight_decay": True},
        ),
    )
    lr: float = hyper(1e-3, "learning rate")
    momentum: float = hyper(0.9, "decay rate of M", below=1.0)
    weight_decay: float = hyper(0.0, "decoupled weight decay, per step and unit of lr")
    preconditioner_update_probability: float | tuple[float, ...] | None = hyper(
        None, "share of the steps that update the factors, or four numbers that make it fall", check=_probability
    )
    max_size_triangular: int = hyper(2048, "most entries of a dimension with a triangular factor", low=0)
    min_ndim_triangular: int = hyper(2, "least number of dimensions for triangular factors", low=0)
    memory_save_mode: str | None = hyper(
        None, "which factors are diagonal", choices=("one_diag", "smart_one_diag", "all_diag")
    )
    momentum_into_precond_update: bool = hyper(True, "factors learn from the momentum, not from the gradient")
    precond_lr: float = hyper(0.1, "learning rate of the factors")
    precond_init_scale: float = hyper(1.0, "scale of the first factors' product", above=0.0)
    mu_dtype: torch.dtype | str | None = hyper(
        None, "what M is kept in, float32 or bfloat16; None: what is computed in", check=_dtype
    )
    precond_dtype: torch.dtype | str | None = hyper(None, "what the factors are kept in, likewise", check=_dtype)
    decoupled_decay: bool = hyper(False, "decay may be corrected")
    flatten: bool = hyper(False, "make one dimension of several")
    flatten_start_dim: int = hyper(2, "first of these", low=-64)
    flatten_end_dim: int = hyper(-1, "last of these", low=-64)
    stochastic_weight_decay: bool = hyper(False, "decay varies by chance")
    deterministic: bool = hyper(False, "taken for timm's sake: it always is")
    _: KW_ONLY
    balance_prob: float = hyper(0.01, "share of the updates that balance the factors", most=1.0)

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        if group["corrected_weight_decay"] and not group["decoupled_decay"]:
            raise ValueError(
                "corrected_weight_decay=True is for decoupled weight decay; give decoupled_decay=True, too"
            )

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        ends = (group["flatten_start_dim"], group["flatten_end_dim"]) if group["flatten"] else None
        shape = psgd.flattening(ends)
        dims = shape(param.shape)
        diagonal = _diagonal(
            dims, group["memory_save_mode"], group["max_size_triangular"], group["min_ndim_triangular"]
        )
        return kron(
            diagonal,
            None if dims == param.shape else shape,
            group["momentum_into_precond_update"],
            group["precond_init_scale"],
            (group["mu_dtype"] == "bfloat16", group["precond_dtype"] == "bfloat16"),
        )


@cache
def _diagonal(dims: tuple[int, ...], mode: str | None, most: int, least_ndim: int) -> tuple[bool, ...]:
    """For each dimension, whether its factor is diagonal."""
    largest = max(range(len(dims)), key=lambda dim: (dims[dim], dim))
    if mode == "smart_one_diag" and (len(dims) < 2 or dims.count(dims[largest]) > 1):
        mode = None
    return tuple(
        size == 1
        or size > most
        or len(dims) < least_ndim
        or mode == "all_diag"
        or (mode in ("one_diag", "smart_one_diag") and dim == largest)
        for dim, size in enumerate(dims)
    )
