"""PSGD-PRO: gradients whitened by a Kronecker product of small matrices, which a rotation keeps symmetric."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import MATRIX, Group, Name, Rule, RuleOptimizer, Scalars, State, ema, hyper, place, zeros
from hfoptim.optimizers.shared import psgd

# The largest angle of a rotation, of which the exponential series has three terms here.
_LARGEST_STEP = 0.125


def _per_step(t: int, group: Group) -> Scalars:
    return {
        "alpha": 1.0 - group["momentum"],
        "t": t,
        "damping": group["damping_noise_scale"],
        "precond_lr": max(
            group["precond_lr"] / math.sqrt(1.0 + (t - 1) / group["warmup_steps"]), group["min_precond_lr"]
        ),
        "keep": group["beta_lip"],
        "most": group["max_update_rms"],
    }


def _one(param: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.ones((), dtype=dtype, device=param.device)


@cache
def psgd_pro(diagonal: tuple[bool, ...], shape: psgd.Shape | None, scale: float, clips: bool) -> Rule:
    """The rule for parameters of one number of dimensions.

    Args:
        diagonal: for each dimension, whether its factor is.
        shape: as the rule's.
        scale: what the first factors are, times the unit matrix.
        clips: whether the root mean square of an update has a bound.
    """
    count = len(diagonal)
    factors = {f"Q{dim}": psgd.factor(dim, each, scale) for dim, each in enumerate(diagonal)}
    steepness = {f"L{dim}": State(_one) for dim in range(count)}

    def fn(grad: Any, param: Any, momentum: Any, at: Any, *args: Any) -> tuple[Any, ...]:
        *stored, h = args
        momentum = ema(momentum, grad, h.alpha)
        mean = psgd.batch(momentum, count)
        qs = [psgd.batch(q, 1 if d else 2) for q, d in zip(stored[:count], diagonal, strict=True)]
        ls = [steep.reshape(-1) for steep in stored[count:]]
        damped = mean + (h.damping + 1e-7 * mean.abs()) * psgd.noise(mean, h.t, at)
        qs, ls = _learned(qs, ls, psgd.whitened(damped, qs), h.precond_lr, h.keep)
        update = psgd.whitened(mean, qs)
        if clips:
            size = update.square().mean(tuple(range(1, update.ndim)), keepdim=True).sqrt()
            update = update * (h.most / (size + 1e-7)).clamp(max=1.0)
        new = [each.reshape(old.shape) for each, old in zip((*qs, *ls), stored, strict=True)]
        return update.reshape(grad.shape), momentum, None, *new

    fn.__name__ = "psgd_pro"
    state = {"exp_avg": zeros, "place": place, **factors, **steepness}
    return Rule(fn, MATRIX, state, _per_step, shape=shape, dims=count)


def _learned(
    qs: Sequence[Tensor], ls: Sequence[Tensor], whitened: Tensor, lr: float, keep: float
) -> tuple[list[Tensor], list[Tensor]]:
    """The factors after a step towards those that whiten, and how steep these steps are."""
    learned, steepness = [], []
    for dim, (q, steep) in enumerate(zip(qs, ls, strict=True)):
        diagonal, even = q.ndim == 2, whitened[0].numel() / q.shape[-1]
        moment = psgd.second_moment(whitened, dim, diagonal)
        size = (moment.amax(1) if diagonal else psgd.subspace_bound(moment).reshape(-1)) + even
        steep = torch.maximum(ema(size, steep, keep), size)
        rate = (lr / steep).reshape(-1, *[1] * (q.ndim - 1))
        learned.append(q * (1.0 - rate * (moment - even)) if diagonal else _turned(q - rate * (moment @ q - even * q)))
        steepness.append(steep)
    return (psgd.balanced(learned) if len(learned) > 1 else learned), steepness


def _turned(q: Tensor) -> Tensor:
    """The factor times a rotation that brings it closer to a symmetric one: Q^T Q stays, but for the series' rest."""
    skew = q.mT - q
    bound = psgd.subspace_bound(skew)
    skew = skew / torch.where(bound > 0, bound, 1.0)
    once = skew @ q
    twice = skew @ once
    slope, bend = (each.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None] for each in (once, twice))
    # Where the trace, which is largest for a symmetric factor, has its maximum along the rotation.
    angle = torch.where(bend < 0, (-slope / bend).clamp(min=0.0, max=_LARGEST_STEP), _LARGEST_STEP)
    return q + angle * (once + 0.5 * angle * twice)


class PSGDPro(RuleOptimizer):
    """PSGD with Kronecker factors that stay near symmetric ones, so that no triangular systems are solved.

    With G the gradient of a tensor of N entries, P the parameter, t the step, M the momentum, Q_i the factor of
    dimension i (n_i by n_i, or diagonal), X x_i Q for Q applied along dimension i:

        P = P - lr weight_decay P
        M = momentum M + (1 - momentum) G
        A = (M + (damping_noise_scale + 1e-7 |M|) V) x_1 Q_1^T Q_1 x_2 Q_2^T Q_2 ...,  V normal noise
        S_i = A A^T, summed over all dimensions but i;  e = N / n_i
        L_i = max(beta_lip L_i + (1 - beta_lip) (|S_i| + e), |S_i| + e)
        Q_i = Q_i - a / L_i (S_i Q_i - e Q_i),  a = max(precond_lr / sqrt(1 + (t - 1) / warmup_steps), min_precond_lr)
        Q_i = (1 + b R + b^2 R^2 / 2) Q_i,  R = (Q_i^T - Q_i) / |Q_i^T - Q_i|     (no diagonal one)
        all Q_i with equal largest entries, and the same product
        P = P - lr M x_1 Q_1^T Q_1 x_2 Q_2^T Q_2 ...

    |.| is a lower bound of the spectral norm, by four products with 32 vectors; for a diagonal factor the largest
    entry. b, at most 1/8, is where the trace of the turned Q_i is largest: so one step of the Procrustes problem keeps
    the factors close to symmetric (`Kron` has triangular ones). `max_update_rms` above 0 bounds the root mean square of
    an update. M is not corrected for its bias, and the update whitens M, not G: its entries are of size 1 whatever
    `momentum` is, so that lr is about a fifth of AdamW's.

    A factor is diagonal where its dimension has 1 entry, more than `preconditioner_max_size`, or where n_i^2 is above
    `preconditioner_max_skew` times N: always of a vector, and of the longer side of an embedding. V goes by the step
    and the parameter's place in its group: every run, every backend and every number of ranks draws the same.

    State: `exp_avg` (M), `place`, `Q0`, `Q1`, ... and `L0`, `L1`, ...

    Raises:
        TypeError: a complex parameter.

    Source:
        Li, Stochastic Hessian Fittings with Lie Groups, arXiv 2402.11858; lixilinx/psgd_torch, where it is
        Q0.5EQ1.5 with whitened momentum; NVIDIA Emerging-Optimizers, `PSGDPro`, whose options these are, with the same
        draws equal step by step. NVIDIA has no diagonal factors (`preconditioner_max_skew=None`) and a
        `damping_noise_scale` of 0.1, far above gradients of language models; the one here is the author's. His wrapper
        `KWNS4` bounds updates by their entries, too.
    """

    names = (Name("psgd_pro"),)
    lr: float = hyper(3e-3, "learning rate")
    weight_decay: float = hyper(0.01, "decoupled weight decay, per step and unit of lr")
    momentum: float = hyper(0.9, "decay rate of M", below=1.0)
    _: KW_ONLY
    beta_lip: float = hyper(0.9, "how slowly L_i falls", most=1.0)
    precond_lr: float = hyper(0.1, "learning rate of the factors, at first")
    precond_init_scale: float = hyper(1.0, "what the first factors are, times the unit matrix", above=0.0)
    damping_noise_scale: float = hyper(1e-9, "size of the noise that M is whitened with")
    min_precond_lr: float = hyper(0.01, "least learning rate of the factors")
    warmup_steps: int = hyper(10000, "steps in which that falls to 0.7 of the first", low=1)
    max_update_rms: float = hyper(0.0, "bound of an update's root mean square; 0: none")
    preconditioner_max_size: int | None = hyper(None, "most entries of a dimension with a matrix; None: any", low=0)
    preconditioner_max_skew: float | None = hyper(
        1.0, "most entries of a factor's matrix for each of the parameter; None: any"
    )

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        shape = psgd.flattening(None)
        dims = shape(param.shape)
        return psgd_pro(
            _diagonal(dims, group["preconditioner_max_size"], group["preconditioner_max_skew"]),
            None if dims == param.shape else shape,
            group["precond_init_scale"],
            group["max_update_rms"] > 0.0,
        )


@cache
def _diagonal(dims: tuple[int, ...], most: int | None, skew: float | None) -> tuple[bool, ...]:
    """For each dimension, whether its factor is diagonal."""
    entries = math.prod(dims)
    longest = min(math.inf if most is None else most, math.inf if skew is None else math.sqrt(skew * entries))
    return tuple(size <= 1 or size > longest for size in dims)
